"""Thresholds from benign episodes, and the card that says what they hold for.

The threshold is the split-conformal quantile of the largest value of an episode (Vovk, Gammerman & Shafer 2005; Lei et
al. 2018): the next benign episode exceeds it with a chance of at most the target, if it is exchangeable with those of
the calibration. Tokens of one episode are not exchangeable, so whole episodes are calibrated and never pooled tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator

from affectlens.config import Config, validate
from affectlens.corpus.texts import read_json
from affectlens.errors import UserError
from affectlens.files import write_json
from affectlens.monitor.config import LONGEST
from affectlens.monitor.statistics import StatisticConfig

EDGES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Upper ends of the length buckets, in tokens of the answer; those with too few episodes are joined."""
MOST_BLOCKS = 2000
"""Benign blocks that a card keeps for an e-detector, drawn at random."""


class BucketConfig(Config):
    """Answers of similar length, and what was calibrated on them."""

    longest: Annotated[int, Field(ge=0)] | None
    """Most tokens of an answer; none where the bucket is open."""
    threshold: float
    """The statistic has to be larger."""
    episodes: int = Field(ge=1)
    """Benign episodes behind it."""
    band: tuple[float, float]
    """Between which ends the realised rate lies with 90% probability, calibrations being random."""


Weight = Annotated[float, Field(ge=-1e20, le=1e20)]
"""Far within what single precision holds, in which states are read."""


class WatchedRowConfig(Config):
    """A row of a monitor, as a card holds it."""

    name: str = Field(min_length=1, max_length=500)
    layer: int = Field(ge=0)
    weights: tuple[Weight, ...] = Field(min_length=1)
    """One a coordinate of the residual stream."""
    offset: float
    """Added to the product."""
    rectified: bool = False
    """Whether negative values count as zero, as those of a feature."""
    mean: float
    """Of benign tokens; the score is (value - mean) / deviation."""
    deviation: float = Field(gt=0)
    buckets: tuple[BucketConfig, ...] = Field(min_length=1)
    """Ascending; the last is open."""
    blocks: tuple[float, ...] = ()
    """Benign means of blocks, ascending, for an e-detector."""
    alarms_per_1000: float | None = None
    """False alarms per 1,000 benign tokens of the calibration."""

    @field_validator("name")
    @classmethod
    def _a_text(cls, name: str) -> str:
        if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
            raise ValueError("a name must be a text of one line")
        return name

    @field_validator("buckets")
    @classmethod
    def _ascending(cls, found: tuple[BucketConfig, ...]) -> tuple[BucketConfig, ...]:
        ends = [math.inf if each.longest is None else each.longest for each in found]
        if ends[-1] < math.inf or any(first >= second for first, second in pairwise(ends)):
            raise ValueError("buckets must ascend, and the last alone is open (`longest: null`)")
        return found

    @field_validator("blocks")
    @classmethod
    def _sorted(cls, blocks: tuple[float, ...]) -> tuple[float, ...]:
        if any(first > second for first, second in pairwise(blocks)):
            raise ValueError("blocks must ascend")
        return blocks


class CardConfig(Config):
    """A calibrated monitor: all that is needed to watch the same model under the same template."""

    version: Literal[1] = 1
    model: str
    """The model's content, as studies know it."""
    model_name: str = ""
    """How the study called it."""
    template: str
    """SHA-256 of the chat template."""
    dtype: str
    layer: int = Field(ge=0)
    """The study's."""
    statistic: StatisticConfig
    refractory: int = Field(ge=0, le=LONGEST)
    """Tokens of quiet between two alarms."""
    target: float = Field(gt=0, lt=1)
    """Share of benign episodes that may raise an alarm."""
    source: str
    """The benign episodes of the calibration."""
    rows: tuple[WatchedRowConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _alike(self) -> CardConfig:
        names = [row.name for row in self.rows]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two rows have the name `{twice}`")
        if len({len(row.weights) for row in self.rows}) > 1:
            raise ValueError("rows have weights of different lengths")
        blocks = {len(row.blocks) for row in self.rows}
        if self.statistic.kind == "edetector" and (len(blocks) > 1 or 0 in blocks):
            raise ValueError("an e-detector needs `blocks` of one length in every row")
        return self

    @property
    def width(self) -> int:
        """Coordinates of the residual stream that its rows read."""
        return len(self.rows[0].weights)


def least_target(episodes: int) -> float:
    """The smallest rate that so many benign episodes can hold."""
    return 1 / (episodes + 1)


def conformal_threshold(maxima: Float[np.ndarray, "episodes *rows"], target: float) -> Float[np.ndarray, "*rows"]:
    """The k-th smallest of n largest values with k = ceil((n + 1)(1 - target)).

    Raises:
        UserError: the target is below 1 / (n + 1): no threshold from so few episodes can promise it.
    """
    count = len(maxima)
    if target < least_target(count) - 1e-12:
        raise UserError(
            f"a target of {target:g} needs at least {math.ceil(1 / target - 1 - 1e-9)} benign episodes, and there are "
            f"{count}; give more, or a target of {least_target(count):.4f} or above"
        )
    return np.sort(maxima, axis=0)[_order(count, target) - 1]


def realised_band(count: int, target: float, level: float = 0.9) -> tuple[float, float]:
    """Where the true rate of a threshold lies: it follows a Beta(n + 1 - k, k) distribution over calibrations."""
    from scipy.stats import beta

    k = _order(count, target)
    low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], count + 1 - k, k)
    return float(low), float(high)


def _order(count: int, target: float) -> int:
    return min(count, max(1, math.ceil((count + 1) * (1 - target) - 1e-9)))


def buckets(lengths: Int[np.ndarray, " episodes"], target: float) -> list[tuple[int | None, Int[np.ndarray, " own"]]]:
    """Episodes by length, each bucket with enough of them for the target; the last one is open.

    A bucket with too few is joined with the next longer one, whose episodes have the larger maxima; the last with the
    one before.

    Args:
        lengths: tokens of each answer.

    Returns:
        The longest answer of each bucket, and its episodes.
    """
    lengths, least = np.asarray(lengths), math.ceil(1 / target - 1 - 1e-9)
    found: list[tuple[int | None, np.ndarray]] = []
    waiting = np.zeros(0, dtype=int)
    for low, edge in zip((-1, *EDGES), (*EDGES, None), strict=True):
        inside = np.flatnonzero((lengths > low) & (lengths <= (np.inf if edge is None else edge)))
        waiting = np.concatenate([waiting, inside])
        if len(waiting) >= least and edge is not None and (lengths > edge).sum() >= least:
            found.append((edge, waiting))
            waiting = np.zeros(0, dtype=int)
    return [*found, (None, waiting)]


def calibrated(
    maxima: Float[np.ndarray, " episodes"], lengths: Int[np.ndarray, " episodes"], target: float
) -> tuple[BucketConfig, ...]:
    """The thresholds of one row by length of the answer.

    Raises:
        UserError: as :func:`conformal_threshold`.
    """
    conformal_threshold(maxima, target)
    return tuple(
        BucketConfig(
            longest=longest,
            threshold=float(conformal_threshold(maxima[own], target)),
            episodes=len(own),
            band=realised_band(len(own), target),
        )
        for longest, own in buckets(lengths, target)
    )


def thresholds(found: Sequence[BucketConfig], lengths: Int[np.ndarray, " episodes"]) -> Float[np.ndarray, " episodes"]:
    """The threshold of each episode, by its length or by how long it may become."""
    ends = np.array([np.inf if each.longest is None else each.longest for each in found])
    return np.array([each.threshold for each in found])[np.searchsorted(ends, np.asarray(lengths, dtype=float))]


def write_card(path: Path, card: CardConfig) -> None:
    """As JSON."""
    write_json(path, card.model_dump(mode="json"))


def read_card(path: Path) -> CardConfig:
    """A card.

    Raises:
        UserError: there is no such file, or it is no card.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; write a card with `affectlens monitor calibrate`")
    values: Any = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: is no card of a monitor; write one with `affectlens monitor calibrate`")
    return validate(CardConfig, values, str(path))


def require_one_layer(card: CardConfig) -> None:
    """Refuse a card whose rows read more than the study's layer, which one stream of residuals cannot serve.

    Raises:
        UserError: names the layers.
    """
    layers = sorted({row.layer for row in card.rows})
    if layers != [card.layer]:
        raise UserError(
            f"the card reads layers {', '.join(map(str, layers))}; only cards that read the study's layer alone "
            f"({card.layer}) can watch live"
        )


def require_same(
    card: CardConfig, *, model: str, template: str, dtype: str, layer: int, width: int | None = None
) -> None:
    """Refuse a card of something else: its thresholds would mean nothing.

    Args:
        card: the card.
        model: the model's content.
        template: digest of its chat template.
        dtype: number type that it computes in.
        layer: the study's.
        width: of its residual stream; None where it is not known before the model is loaded.

    Raises:
        UserError: names what differs.
    """
    asked = {"model": model, "template": template, "dtype": dtype, "layer": layer}
    called = {"model": "model", "template": "chat template", "dtype": "number type", "layer": "layer"}
    for name, value in asked.items():
        if getattr(card, name) != value:
            short = [str(each)[:16] for each in (getattr(card, name), value)]
            raise UserError(
                f"the card was calibrated for another {called[name]} ({short[0]}) than this one ({short[1]}); "
                "calibrate again with `affectlens monitor calibrate`"
            )
    if width is not None and card.width != width:
        raise UserError(
            f"the card's rows have {card.width} weights, and the model's residual stream has {width} coordinates; "
            "calibrate again with `affectlens monitor calibrate`"
        )

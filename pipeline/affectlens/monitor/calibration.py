"""Thresholds from benign episodes, and the card that says what they hold for.

The threshold is the split-conformal quantile of the largest value of an episode (Vovk, Gammerman & Shafer 2005; Lei et
al. 2018): the next benign episode exceeds it with a chance of at most the target, if it is exchangeable with those of
the calibration. Tokens of one episode are not exchangeable, so whole episodes are calibrated and never pooled tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from affectlens.config import Config, validate
from affectlens.corpus.texts import read_json
from affectlens.errors import UserError
from affectlens.files import write_json
from affectlens.monitor.statistics import StatisticConfig

EDGES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Upper ends of the length buckets, in tokens of the answer; those with too few episodes are joined."""
MOST_BLOCKS = 2000
"""Benign blocks that a card keeps for an e-detector, drawn at random."""


class BucketConfig(Config):
    """Answers of similar length, and what was calibrated on them."""

    longest: int | None
    """Most tokens of an answer; none where the bucket is open."""
    threshold: float
    """The statistic has to be larger."""
    episodes: int
    """Benign episodes behind it."""
    band: tuple[float, float]
    """Between which ends the realised rate lies with 90% probability, calibrations being random."""


class WatchedRowConfig(Config):
    """A row of a monitor, as a card holds it."""

    name: str
    layer: int
    weights: tuple[float, ...]
    """One a coordinate of the residual stream."""
    offset: float
    """Added to the product."""
    rectified: bool = False
    """Whether negative values count as zero, as those of a feature."""
    mean: float
    """Of benign tokens; the score is (value - mean) / deviation."""
    deviation: float
    buckets: tuple[BucketConfig, ...]
    """Ascending."""
    blocks: tuple[float, ...] = ()
    """Benign means of blocks, ascending, for an e-detector."""
    alarms_per_1000: float | None = None
    """False alarms per 1,000 benign tokens of the calibration."""


class CardConfig(Config):
    """A calibrated monitor: all that is needed to watch the same model under the same template."""

    version: int = 1
    model: str
    """The model's content, as studies know it."""
    model_name: str = ""
    """How the study called it."""
    template: str
    """SHA-256 of the chat template."""
    dtype: str
    layer: int
    """The study's."""
    statistic: StatisticConfig
    refractory: int = Field(ge=0)
    """Tokens of quiet between two alarms."""
    target: float = Field(gt=0, lt=1)
    """Share of benign episodes that may raise an alarm."""
    source: str
    """The benign episodes of the calibration."""
    rows: tuple[WatchedRowConfig, ...] = Field(min_length=1)


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
    return min(count, math.ceil((count + 1) * (1 - target) - 1e-9))


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


def require_same(card: CardConfig, *, model: str, template: str, dtype: str, layer: int) -> None:
    """Refuse a card of something else: its thresholds would mean nothing.

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

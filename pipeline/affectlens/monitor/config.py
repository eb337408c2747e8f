"""How a monitor is made and measured: the part of the study's section that needs no scenarios."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from affectlens.config import MERGE_ONLY, Config

Kind = Literal["rolling", "own_start", "cusum", "edetector"]
LONGEST = 1_000_000
"""Tokens of a window, of a start and of the quiet between alarms, at most: memory is set aside for them."""


class StatisticConfig(Config):
    """What is followed along an answer."""

    kind: Kind = "rolling"
    """`rolling` is the mean of the last tokens, `own_start` the same less the episode's own first tokens, `cusum` the
    sum above a drift since it last was zero (Page 1954), `edetector` evidence against the benign blocks of tokens."""
    window: int = Field(default=16, ge=1, le=LONGEST)
    """Tokens of the rolling mean and of a block of the e-detector; what lies before the answer counts as zero."""
    start: int = Field(default=24, ge=1, le=LONGEST)
    """Tokens of an episode's own start; `own_start` is zero until they are read."""
    drift: float = Field(default=1.0, gt=0)
    """What the score has to exceed for `cusum` to rise, in standard deviations of benign tokens."""


class ProbeConfig(Config):
    """How probes are trained."""

    l2: tuple[float, ...] = Field(default=(0.001, 0.01, 0.1, 1.0), min_length=1)
    """Penalties that are tried on scenarios left out, for standardised features and a mean loss."""
    stride: int = Field(default=4, ge=1)
    """Every so manieth token of an episode is trained on."""
    window: int = Field(default=1, ge=1)
    """Tokens whose mean state is trained on: 16 with `softmax` is the loss of constitutional classifiers."""
    softmax: bool = False
    """Whether an episode's tokens are weighted by a softmax over their logits (2601.04603)."""
    span: int = Field(default=16, ge=1)
    """Tokens from the act on that a detector learns as the act."""


class MonitorSettings(Config):
    """Rows, statistics, thresholds and figures."""

    statistic: StatisticConfig = Field(default=StatisticConfig(), json_schema_extra=MERGE_ONLY)
    """What is followed along an answer, and what a card is made of."""
    statistics: tuple[Kind, ...] = Field(
        default=("rolling", "own_start", "cusum", "edetector"), min_length=1, json_schema_extra=MERGE_ONLY
    )
    """Statistics that are compared; `statistic.kind` is among them."""
    probe: ProbeConfig = Field(default=ProbeConfig(), json_schema_extra=MERGE_ONLY)
    """How detector and forecaster are trained."""
    claimed: tuple[str, ...] = Field(default=("desperate",), json_schema_extra=MERGE_ONLY)
    """Concepts that are said to rise before the act; concepts that the study lacks are left out."""
    controls: int = Field(default=8, ge=1, json_schema_extra=MERGE_ONLY)
    """Random rows of each of three families."""
    folds: int = Field(default=4, ge=2, json_schema_extra=MERGE_ONLY)
    """Into which the scenarios with risk are split; each is tested by what the others have trained."""
    targets: tuple[float, ...] = Field(default=(0.01, 0.05), min_length=1, json_schema_extra=MERGE_ONLY)
    """Shares of benign episodes that may raise an alarm."""
    calibration_sources: tuple[str, ...] = Field(default=(), json_schema_extra=MERGE_ONLY)
    """Benign traffic that thresholds come from; the first source by default. All other traffic is a test of drift."""
    horizon: int = Field(default=128, ge=1, json_schema_extra=MERGE_ONLY)
    """Tokens before the act within which an alarm counts."""
    refractory: int = Field(default=16, ge=0, le=LONGEST, json_schema_extra=MERGE_ONLY)
    """Tokens of quiet between two alarms."""
    tokens_per_day: float = Field(default=1e6, gt=0, json_schema_extra=MERGE_ONLY)
    """Answer tokens of the traffic to be watched, for alarms a day."""
    permutations: int = Field(default=200, ge=19, json_schema_extra=MERGE_ONLY)
    """Of the labels within each prompt, against which the best of all rows and statistics is held."""
    least_acts: int = Field(default=20, ge=1, json_schema_extra=MERGE_ONLY)
    """Acts below which the word is "could not be tested"."""
    least_benign: int = Field(default=100, ge=1, json_schema_extra=MERGE_ONLY)
    """Benign test episodes below which it is, too."""

"""How well descriptions tell active passages from silent ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from affectlens import stats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from affectlens.explanations.asking import Said

PERMUTATIONS = 1999


@dataclass(frozen=True)
class Score:
    """How a description did on some questions whose answer is known.

    Attributes:
        auroc: of the judge's share of "yes", or of its answer; a question without an answer counts as a half.
        low, high: its 95% interval by resampling texts; NaN where there are too few.
        balanced: mean of the shares of right answers among the true and among the false; no answer is half right.
        items: questions.
        failures: questions without an answer.
    """

    auroc: float
    low: float
    high: float
    balanced: float
    items: int
    failures: int


def beliefs(said: Sequence[Said], yes: str) -> Float[np.ndarray, " items"]:
    """How far each answer says yes, from 0 to 1; a half where there is none."""
    found = []
    for each in said:
        if each.chances is not None:
            found.append(each.chances.get(yes, 0.0))
        else:
            found.append(0.5 if each.label is None else float(each.label == yes))
    return np.array(found, dtype=float)


def score(
    said: Sequence[Said],
    yes: str,
    truth: Bool[np.ndarray, " items"],
    texts: Sequence[int],
    rng: np.random.Generator,
) -> Score:
    """The score of one description.

    Args:
        said: the answers.
        yes: the label that says it fits.
        truth: what the answer should be.
        texts: the text that each question is about; questions about one text are not independent.
        rng: draws the intervals.
    """
    believed, hard = beliefs(said, yes), np.array([0.5 if s.label is None else float(s.label == yes) for s in said])
    found = stats.auroc_interval(believed[:, None], truth[:, None], np.asarray(texts), rng=rng, n_boot=2000).concepts[0]
    balanced = (hard[truth].mean() + (1 - hard[~truth]).mean()) / 2 if truth.any() and not truth.all() else math.nan
    return Score(found.value, found.low, found.high, float(balanced), len(said), sum(s.label is None for s in said))


def beats(
    own: Float[np.ndarray, " items"],
    other: Float[np.ndarray, " items"],
    truth: Bool[np.ndarray, " items"],
    rng: np.random.Generator,
) -> float:
    """p that a description's AUROC is above another's on the same questions, one-sided.

    Under the null the two descriptions can change places in any question (Pesarin & Salmaso 2010, paired permutation).

    Args:
        own, other: what the judge believes of each question under the two.
        truth: what the answer should be.
        rng: draws.
    """
    swapped = np.vstack([np.zeros((1, len(own)), bool), rng.random((PERMUTATIONS, len(own))) < 0.5]).T
    areas = [
        stats.auroc(np.where(swapped, one[:, None], two[:, None]), truth[:, None])[:, 0]
        for one, two in ((other, own), (own, other))
    ]
    gains = areas[0] - areas[1]
    return float((np.count_nonzero(gains[1:] >= gains[0] - 1e-12) + 1) / (PERMUTATIONS + 1))

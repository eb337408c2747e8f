"""How often a readout tells two texts of the same words apart, and how sure that is.

A readout of words scores both texts alike, so what a readout gets right here is not vocabulary. A pair counts as right
when text A beats text B in how much further the readout of A's concept lies above that of B's concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from affectlens import stats
from affectlens.corpus.pairs import Pair

DRAWS = 1000
"""Of signs, for the p-values."""


def margins(
    first: Float[np.ndarray, "pairs concepts"],
    second: Float[np.ndarray, "pairs concepts"],
    pairs: Sequence[Pair],
    concepts: Sequence[str],
    spread: Float[np.ndarray, " concepts"],
) -> Float[np.ndarray, " pairs"]:
    """By how much text A leans further than text B towards A's concept and away from B's.

    Args:
        first: every concept's readout of the texts A.
        second: the same of the texts B.
        pairs: one a row.
        concepts: names of the columns.
        spread: standard deviation of each readout over the training stories, which makes readouts comparable.
    """
    rows = np.arange(len(pairs))
    a = np.array([concepts.index(pair.emotion_a) for pair in pairs], dtype=int)
    b = np.array([concepts.index(pair.emotion_b) for pair in pairs], dtype=int)
    gap = (first - second) / np.where(spread > 0, spread, 1)
    return gap[rows, a] - gap[rows, b]


def judge(
    gaps: Sequence[Float[np.ndarray, " pairs"]],
    searched: Sequence[bool],
    pairs: Sequence[Pair],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Share of pairs that each reading gets right, with its interval and two p-values.

    If a reading does not know which text is which, exchanging the texts of a group of pairs leaves its figures as they
    are in distribution. So signs are drawn, one a group, the same for all readings: ``p`` compares a reading with its
    own null, two-sided, and ``p_max`` with the largest deviation of all searched readings, which allows for having
    looked at all of them.

    Args:
        gaps: a reading each; above 0 is right, 0 a tie that counts one half, NaN a pair that does not count.
        searched: whether the reading belongs to those of which the best is looked for.
        pairs: one an entry of each reading.
        rng: draws signs. The interval (:func:`affectlens.stats.clustered_rate`) takes groups as the sample.
    """
    right = np.stack([np.where(np.isnan(gap), np.nan, (np.sign(gap) + 1) / 2) for gap in gaps], axis=1)
    names, groups = np.unique([pair.group for pair in pairs], return_inverse=True)
    counted = np.isfinite(right).sum(axis=0)
    excess = np.zeros((len(names), len(gaps)))
    np.add.at(excess, groups, np.nan_to_num(right - 0.5))
    excess /= np.maximum(counted, 1)
    null = np.abs(rng.choice([-1.0, 1.0], (DRAWS, len(names))) @ excess)
    largest = null[:, np.asarray(searched)].max(axis=1, initial=0)
    found = []
    for index, gap in enumerate(gaps):
        known = np.isfinite(gap)
        hits, observed = right[known, index], abs(excess[:, index].sum()) - 1e-9
        row = {"pairs": int(counted[index]), "ties": int((gap[known] == 0).sum()), "p_max": None}
        if not len(hits):
            found.append(row | {"accuracy": None, "low": None, "high": None, "p": None, "devices": {}})
            continue
        estimate = stats.clustered_rate(hits, groups[known])
        row |= {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}
        row["p"] = float((1 + (null[:, index] >= observed).sum()) / (DRAWS + 1))
        if searched[index]:
            row["p_max"] = float((1 + (largest >= observed).sum()) / (DRAWS + 1))
        devices: dict[str, list[float]] = {}
        for pair, hit in zip([pair for pair, counts in zip(pairs, known, strict=True) if counts], hits, strict=True):
            devices.setdefault(pair.device, []).append(float(hit))
        found.append(row | {"devices": {name: float(np.mean(each)) for name, each in sorted(devices.items())}})
    return found

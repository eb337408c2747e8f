"""How much of the contrast a circuit carries: ratios, slopes, areas under curves of size, and the chosen size.

f(C) = (m(C) - m(none)) / (m(whole) - m(none)), after Mueller et al. 2025 ("MIB"): CPR is the area under f over the
size, CMD the area of |1 - f|. CPR has no upper limit and can be gained by leaving out what speaks against the words;
CMD cannot. A mean of ratios says little where contexts differ much, so the slope and the correlation over contexts
stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from affectlens import stats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

DRAWS = 2000
"""Bootstrap samples of topics."""


@dataclass(frozen=True)
class Faithfulness:
    """Of one circuit over contexts.

    Attributes:
        ratio: f, of the means over contexts.
        slope: of the circuit's contrast on the whole model's, over contexts.
        correlation: of the two.
    """

    ratio: float
    slope: float
    correlation: float


def faithfulness(circuit: Float[np.ndarray, " contexts"], whole: Float[np.ndarray, " contexts"]) -> Faithfulness:
    """Of contrasts that have the run without heads taken off; contexts that were not run are NaN."""
    known = np.isfinite(circuit) & np.isfinite(whole)
    a, b = circuit[known], whole[known]
    if not len(b) or b.mean() == 0:
        return Faithfulness(math.nan, math.nan, math.nan)
    if len(b) < 3 or b.std() == 0:
        return Faithfulness(float(a.mean() / b.mean()), math.nan, math.nan)
    slope = float(((a - a.mean()) * (b - b.mean())).sum() / ((b - b.mean()) ** 2).sum())
    correlation = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 else 0.0
    return Faithfulness(float(a.mean() / b.mean()), slope, correlation)


def ratio_interval(
    circuit: Float[np.ndarray, " contexts"],
    whole: Float[np.ndarray, " contexts"],
    topics: Sequence[str],
    generator: np.random.Generator,
) -> stats.Estimate:
    """f with its interval over topics, drawn with replacement."""
    known = np.isfinite(circuit) & np.isfinite(whole)
    names = np.asarray(topics)[known]
    kinds = sorted(set(names.tolist()))
    if not kinds:
        return stats.Estimate(math.nan, math.nan, math.nan, 0)
    sums = np.array(
        [[values[known][names == kind].sum() for kind in kinds] for values in (circuit, whole)], dtype=float
    )
    point = sums[0].sum() / sums[1].sum() if sums[1].sum() else math.nan
    drawn = [counts @ sums.T for counts in stats.bootstrap_counts(len(kinds), DRAWS, generator)]
    both = np.concatenate(drawn)
    with np.errstate(divide="ignore", invalid="ignore"):
        return stats.bootstrap_interval(float(point), both[:, 0] / both[:, 1], len(kinds))


def area(shares: Sequence[float], values: Sequence[float], *, logarithmic: bool) -> float:
    """Mean of a curve over the size, by trapezoids: on a linear axis from 0 to 1, or on that of its logarithm.

    Args:
        shares: sizes, ascending; with 0 and 1 on a linear axis.
        values: of the curve.
    """
    x = np.log10(shares) if logarithmic else np.asarray(shares, dtype=float)
    return float(np.trapezoid(values, x) / (x[-1] - x[0]))


def curve_areas(shares: Sequence[float], ratios: Sequence[float]) -> dict[str, float]:
    """CPR and CMD of a curve, on both axes; nothing and everything are its ends."""
    ends, f = [0.0, *shares, 1.0], [0.0, *ratios, 1.0]
    distance = [abs(1 - value) for value in f]
    return {
        "cpr": area(ends, f, logarithmic=False),
        "cpr_log": area(ends[1:], f[1:], logarithmic=True),
        "cmd": area(ends, distance, logarithmic=False),
        "cmd_log": area(ends[1:], distance[1:], logarithmic=True),
    }


def counts(shares: Sequence[float], units: int) -> list[int]:
    """Units of each size, at least one."""
    return [max(1, round(share * units)) for share in shares]


def choose_size(
    kept: Float[np.ndarray, "contexts rankings sizes"],
    whole: Float[np.ndarray, " contexts"],
    generator: np.random.Generator,
) -> tuple[int, int]:
    """The ranking and the size whose circuit is nearest to the whole model: the smallest within a standard error.

    Args:
        kept: contrasts less those without heads, of the contexts on which the size is chosen.
        whole: likewise of the whole model.

    Returns:
        Ranking and size, by their places. Of two rankings at one size the nearer one; the largest size where nothing
        is known.
    """
    draws = np.concatenate(list(stats.bootstrap_counts(len(whole), 500, generator)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = kept.sum(axis=0) / whole.sum()
        drawn = np.einsum("dc,crs->drs", draws, kept) / (draws @ whole)[:, None, None]
    distance = np.abs(1 - ratio)
    if not np.isfinite(distance).all():
        return 0, kept.shape[2] - 1
    ranking, best = np.unravel_index(distance.argmin(), distance.shape)
    error = float(np.nan_to_num(np.abs(1 - drawn[:, ranking, best]).std()))
    for size in range(kept.shape[2]):
        if distance[:, size].min() <= distance[ranking, best] + error:
            return int(distance[:, size].argmin()), size
    return int(ranking), int(best)


def top(values: Float[np.ndarray, " units"], count: int) -> Bool[np.ndarray, " units"]:
    """The units of largest value."""
    mask = np.zeros(len(values), dtype=bool)
    mask[np.argsort(-values, kind="stable")[:count]] = True
    return mask


def matched(
    circuit: Bool[np.ndarray, " units"], per_layer: int, draws: int, generator: np.random.Generator
) -> Bool[np.ndarray, "draws units"]:
    """Random circuits with as many units of each layer, drawn from all of the layer."""
    layers = circuit.reshape(-1, per_layer)
    found = np.zeros((draws, *layers.shape), dtype=bool)
    for layer, members in enumerate(layers.sum(axis=1)):
        for draw in range(draws):
            found[draw, layer, generator.choice(per_layer, size=members, replace=False)] = True
    return found.reshape(draws, -1)


def jaccard(a: Bool[np.ndarray, "... units"], b: Bool[np.ndarray, "... units"]) -> Float[np.ndarray, "..."]:
    """Overlap of sets; 0 of two empty ones."""
    both, either = (a & b).sum(axis=-1), (a | b).sum(axis=-1)
    return both / np.maximum(either, 1)


def jaccard_by_chance(circuit: Bool[np.ndarray, " units"], per_layer: int) -> float:
    """Overlap of a circuit with a random one of as many units in each layer: expected shared units over the rest.

    Whole layers overlap by 1, so a circuit made of them says nothing by overlapping.
    """
    members = circuit.reshape(-1, per_layer).sum(axis=1)
    shared = float((members**2).sum()) / per_layer
    return shared / max(2.0 * members.sum() - shared, 1.0)


def stability(
    effects: Float[np.ndarray, "contexts units"],
    count: int,
    draws: int,
    generator: np.random.Generator,
    *,
    signed: bool,
) -> tuple[float, float]:
    """Mean Jaccard overlap of the circuits of two bootstrap samples of the contexts, and what chance gives.

    Chance is that of two random sets of the size, k / (2 N - k).
    """
    units = effects.shape[1]
    means = np.concatenate(list(stats.bootstrap_counts(len(effects), 2 * draws, generator))) @ effects
    sets = np.stack([top(row if signed else np.abs(row), count) for row in means])
    return float(jaccard(sets[:draws], sets[draws:]).mean()), count / (2 * units - count)


def halves(
    effects: Float[np.ndarray, "contexts units"],
    topics: Sequence[str],
    count: int,
    draws: int,
    generator: np.random.Generator,
    *,
    signed: bool,
) -> float:
    """Mean Jaccard overlap of the circuits that two disjoint halves of the topics choose, over random divisions.

    Bootstrap samples share contexts, so that their circuits overlap without anything that would return in new texts;
    these do not. Of an odd number of topics one half has one more. NaN where there is a single topic.
    """
    names = np.asarray(topics)
    kinds = sorted(set(names.tolist()))
    if len(kinds) < 2:
        return math.nan
    found = []
    for _ in range(draws):
        first = np.isin(names, generator.permutation(kinds)[: len(kinds) // 2])
        means = [effects[half].mean(axis=0) for half in (first, ~first)]
        a, b = (top(row if signed else np.abs(row), count) for row in means)
        found.append(float(jaccard(a, b)))
    return float(np.mean(found))


def label_permutation(
    matrix: Float[np.ndarray, "concepts circuits"], permutations: int, generator: np.random.Generator
) -> tuple[float, float, Int[np.ndarray, " concepts"]]:
    """Is a concept hit more by the removal of its own circuit than by that of the others?

    Args:
        matrix: loss of each concept's contrast when each concept's circuit is taken out.

    Returns:
        The mean of own less others, its p under permuted labels of the circuits, and the rank of each concept's own
        circuit, 1 being the most hurtful.
    """
    concepts = len(matrix)
    others = (matrix.sum(axis=1) - np.diag(matrix)) / max(1, concepts - 1)
    observed = float((np.diag(matrix) - others).mean())
    null = []
    for _ in range(permutations):
        order = generator.permutation(concepts)
        own = matrix[np.arange(concepts), order]
        null.append(float((own - (matrix.sum(axis=1) - own) / max(1, concepts - 1)).mean()))
    p, _ = stats.permutation_p(observed, np.array(null))
    rank = (matrix >= np.diag(matrix)[:, None]).sum(axis=1)
    return observed, float(p), rank

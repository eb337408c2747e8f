"""The estimators of all analyses, over rows that are scenarios, conditions or samples.

``contrast`` (a paired difference over groups), ``rank_trend`` (a slope on ranks), ``association`` (correlations within
strata) and ``Discrimination`` (does a reading tell concepts apart) take an analysis, whose fields say at which level,
over how many draws and with which power. What is drawn, flipped or permuted is always the group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens.experiments.conclude.config import AnalysisConfig
from affectlens.results.figures import Verdict
from affectlens.stats import (
    AurocIntervals,
    Estimate,
    auroc_interval,
    bootstrap_counts,
    bootstrap_interval,
    clustered_rate,
    fisher_interval,
    permutation_p,
    permuted_within,
    t_interval,
)

Figures = dict[str, Estimate | float | None]
"""By the name of a metric."""


def group_means(
    values: Float[np.ndarray, "rows ..."], groups: Shaped[np.ndarray, " rows"]
) -> Float[np.ndarray, "groups ..."]:
    """Mean of each group, in the order of their names, over its values that are not NaN; NaN where it has none."""
    names, codes = np.unique(groups, return_inverse=True)
    measured = np.isfinite(values)
    sums, counts = (np.zeros((len(names), *np.shape(values)[1:])) for _ in range(2))
    np.add.at(sums, codes, np.where(measured, values, 0.0))
    np.add.at(counts, codes, measured.astype(float))
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)


def undefined(units: int = 0) -> Estimate:
    """A figure that the data do not give."""
    return Estimate(math.nan, math.nan, math.nan, units)


def mean(
    values: Float[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"] | None,
    spec: AnalysisConfig,
    *,
    rates: bool = False,
) -> Estimate:
    """Mean over groups of the groups' means, with its t interval over groups; without ``groups`` every row is one.

    Of differences of ``rates`` on which all groups agree, so that they have no spread, the interval is as wide as if
    one of two more groups did not agree.
    """
    means = np.asarray(values, dtype=float)
    if groups is not None and len(means):
        means = group_means(means, groups)
    means = means[np.isfinite(means)]
    if not len(means):
        return undefined()
    figure = t_interval(means, level=spec.coverage)
    if not rates or figure.n < 2 or figure.high > figure.low:
        return figure
    from scipy.special import stdtrit

    half = float(stdtrit(figure.n - 1, 1 - spec.alpha / 2)) * standard_error(means, rates=True)
    return Estimate(figure.value, figure.value - half, figure.value + half, figure.n)


def share(values: Float[np.ndarray, " rows"], groups: Shaped[np.ndarray, " rows"], spec: AnalysisConfig) -> Estimate:
    """A share of rows, groups counting alike, with its score interval over groups (``stats.clustered_rate``)."""
    known = np.isfinite(np.asarray(values, dtype=float))
    if not known.any():
        return undefined()
    return clustered_rate(np.asarray(values)[known], np.asarray(groups)[known], equal=True, level=spec.coverage)


def bootstrap(
    sums: Float[np.ndarray, "groups ..."],
    statistic: Callable[[Float[np.ndarray, "draws groups"]], Float[np.ndarray, "draws ..."]],
    spec: AnalysisConfig,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "draws ..."]]:
    """A statistic of how often each group counts: of the data, and of every bootstrap sample of groups.

    Args:
        sums: what the statistic is made of, a row a group; only their number is looked at.
        statistic: from counts of the groups to the figures.
    """
    groups = len(sums)
    drawn = [statistic(counts) for counts in bootstrap_counts(groups, spec.draws, rng)]
    return statistic(np.ones((1, groups)))[0], np.concatenate(drawn)


def bootstrapped(
    sums: Float[np.ndarray, "groups ..."],
    statistic: Callable[[Float[np.ndarray, "draws groups"]], Float[np.ndarray, " draws"]],
    spec: AnalysisConfig,
    rng: np.random.Generator,
) -> Estimate:
    """A single figure of :func:`bootstrap` with its interval."""
    point, drawn = bootstrap(sums, statistic, spec, rng)
    return interval(float(point), drawn, len(sums), spec)


def interval(point: float, drawn: Float[np.ndarray, " draws"], units: int, spec: AnalysisConfig) -> Estimate:
    """A bootstrapped figure with its interval."""
    return bootstrap_interval(float(point), drawn, units, spec.coverage)


def standard_error(means: Float[np.ndarray, " groups"], *, rates: bool = False) -> float:
    """Of the mean over groups; of ``rates`` on which all groups agree, as if one of two more groups did not."""
    means = means[np.isfinite(means)]
    if len(means) < 2:
        return math.nan
    error = float(means.std(ddof=1) / math.sqrt(len(means)))
    return error or (math.sqrt(1 / (len(means) + 2) / len(means)) if rates else 0.0)


def smallest_effect(error: float, units: int, spec: AnalysisConfig) -> float:
    """The smallest true mean that a two-sided t test over so many groups finds with the power asked for."""
    if units < 2 or not math.isfinite(error):
        return math.nan
    from scipy.special import stdtrit

    return float((stdtrit(units - 1, 1 - spec.alpha / 2) + stdtrit(units - 1, spec.power)) * error)


def smallest_of(figure: Estimate, spec: AnalysisConfig) -> float:
    """The same from the width of an interval."""
    normal = NormalDist()
    error = (figure.high - figure.low) / 2 / normal.inv_cdf(1 - spec.alpha / 2)
    return (normal.inv_cdf(1 - spec.alpha / 2) + normal.inv_cdf(spec.power)) * error


def smallest_correlation(pairs: int, spec: AnalysisConfig) -> float:
    """The smallest true correlation that so many pairs show with the power asked for (Fisher's z)."""
    if pairs < 4:
        return math.nan
    normal = NormalDist()
    return math.tanh((normal.inv_cdf(1 - spec.alpha / 2) + normal.inv_cdf(spec.power)) / math.sqrt(pairs - 3))


@dataclass(frozen=True)
class Contrast:
    """A paired difference over groups.

    Attributes:
        differences: of each group that has both sides.
        estimate: their mean.
        p: two-sided, by sign flips over groups (Fisher 1935); exact where there are few groups.
        floor: the least that p can be.
        smallest: mean difference that would be found with the power asked for.
    """

    differences: Float[np.ndarray, " groups"]
    estimate: Estimate
    p: float
    floor: float
    smallest: float


def paired(
    outcome: Float[np.ndarray, "rows ..."],
    groups: Shaped[np.ndarray, " rows"],
    first: Bool[np.ndarray, " rows"],
    second: Bool[np.ndarray, " rows"],
) -> Float[np.ndarray, "groups ..."]:
    """First less second in each group that was measured on both sides."""
    shared = np.intersect1d(groups[first], groups[second])
    ahead, behind = (
        group_means(outcome[side], groups[side])
        for side in (first & np.isin(groups, shared), second & np.isin(groups, shared))
    )
    whole = np.isfinite(ahead - behind)
    return (ahead - behind)[whole.reshape(len(whole), -1).all(axis=1)]


def contrast(
    differences: Float[np.ndarray, " groups"], spec: AnalysisConfig, rng: np.random.Generator, *, rates: bool = False
) -> Contrast:
    """Test whether the mean of paired differences is 0.

    Args:
        differences: one a group, as of :func:`paired`.
        spec: of the analysis.
        rng: of the bootstrap and of the flips.
        rates: whether the outcome is a rate, on which all groups may agree without an error of 0.
    """
    differences = differences[np.isfinite(differences)]
    count = len(differences)
    if not count:
        return Contrast(differences, undefined(), math.nan, math.nan, math.nan)
    if 2**count <= spec.permutations:
        # All patterns of signs but the one that was seen, which permutation_p adds.
        signs = 1.0 - 2 * ((np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = rng.choice([-1.0, 1.0], size=(spec.permutations, count))
    observed = abs(float(differences.mean()))
    p, floor = permutation_p(observed, np.abs(signs @ differences) / count) if len(signs) else (1.0, 1.0)
    # Turning every sign around gives the same size: the least p is that of two patterns.
    floor = max(floor, 2.0 ** (1 - count))
    error = standard_error(differences, rates=rates)
    smallest = smallest_effect(error, count, spec)
    return Contrast(differences, mean(differences, None, spec, rates=rates), float(p), floor, smallest)


def rank_trend(
    levels: Float[np.ndarray, " rows"], readings: Float[np.ndarray, "rows columns"], fewest: int
) -> Float[np.ndarray, " columns"] | None:
    """Spearman's correlation of each column with the level, readings at one level averaged first.

    A column that never moves has no trend, 0. None where there are fewer than ``fewest`` levels.
    """
    from scipy.stats import rankdata

    values = group_means(readings, levels)
    if len(values) < fewest:
        return None
    steps = np.arange(len(values)) - (len(values) - 1) / 2
    ranks = rankdata(values, axis=0) - (len(values) + 1) / 2
    norms = np.linalg.norm(ranks, axis=0)
    return steps @ ranks / np.linalg.norm(steps) / np.where(norms > 0, norms, 1)


def correlations(
    x: Float[np.ndarray, "... rows"], y: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "... columns"]:
    """Pearson's correlation of every vector with every column; NaN where a side does not vary."""
    if len(y) < 2:
        return np.full((*x.shape[:-1], y.shape[1]), np.nan)
    left, right = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=0)
    scale = np.linalg.norm(left, axis=-1)[..., None] * np.linalg.norm(right, axis=0)
    # What is left of a constant after its mean is taken off is rounding, not variation.
    varies = scale > 1e-10 * np.linalg.norm(x, axis=-1)[..., None] * np.linalg.norm(y, axis=0)
    return np.where(varies, np.clip(left @ right / np.where(scale > 0, scale, 1), -1, 1), np.nan)


def less_strata(values: Float[np.ndarray, "rows ..."], strata: Shaped[np.ndarray, " rows"]) -> np.ndarray:
    """Values less the mean of their stratum."""
    return values - group_means(values, strata)[np.unique(strata, return_inverse=True)[1]]


@dataclass(frozen=True)
class Association:
    """Correlations of an outcome with several columns.

    Attributes:
        estimates: per column, with Fisher's interval: a degree of freedom less for every stratum's mean taken off.
        p: two-sided, rows changing places within their stratum; NaN without permutations.
        floor: the least that p can be.
    """

    estimates: tuple[Estimate, ...]
    p: Float[np.ndarray, " columns"]
    floor: float


def association(
    outcome: Float[np.ndarray, " rows"],
    columns: Float[np.ndarray, "rows columns"],
    strata: Shaped[np.ndarray, " rows"] | None,
    spec: AnalysisConfig,
    rng: np.random.Generator | None,
) -> Association:
    """Correlate an outcome with columns, within strata where there are any.

    Without ``rng`` nothing is permuted, and there are no p-values.
    """
    kinds = np.zeros(len(outcome)) if strata is None else strata
    if strata is not None:
        outcome, columns = less_strata(outcome, kinds), less_strata(columns, kinds)
    values = correlations(outcome, columns)
    covariates = len(np.unique(kinds)) - 1 if strata is not None else 0
    estimates = tuple(
        fisher_interval(float(r), len(outcome), covariates=covariates, level=spec.coverage) for r in values
    )
    if rng is None or len(outcome) < 2:
        return Association(estimates, np.full(len(values), np.nan), math.nan)
    null = correlations(outcome[permuted_within(kinds, spec.permutations, rng)], columns)
    p, floor = permutation_p(np.abs(values), np.abs(null))
    return Association(estimates, np.asarray(p), floor)


@dataclass(frozen=True)
class Discrimination:
    """Whether readings of several concepts tell apart the rows that were written for them.

    Attributes:
        scores: of the candidate concepts.
        target: the column that each row was written for.
        groups: of the rows.
    """

    scores: Float[np.ndarray, "rows candidates"]
    target: Int[np.ndarray, " rows"]
    groups: Shaped[np.ndarray, " rows"]

    @property
    def labels(self) -> Bool[np.ndarray, "rows candidates"]:
        """Which row was written for which candidate."""
        return self.target[:, None] == np.arange(self.scores.shape[1])

    @property
    def shares(self) -> Float[np.ndarray, "rows candidates"]:
        """Per row 1 for the candidate that reads highest; ties share it."""
        best = self.scores == self.scores.max(axis=1, keepdims=True)
        return best / best.sum(axis=1, keepdims=True)

    @property
    def first(self) -> Float[np.ndarray, " rows"]:
        """Whether the target reads highest."""
        return self.shares[np.arange(len(self.target)), self.target]

    def areas(self, spec: AnalysisConfig, rng: np.random.Generator) -> AurocIntervals:
        """AUROC of each candidate against the rest, and their mean."""
        return auroc_interval(self.scores, self.labels, self.groups, rng=rng, n_boot=spec.draws, level=spec.coverage)

    def assignment_p(self, spec: AnalysisConfig, rng: np.random.Generator) -> tuple[float, float]:
        """p of the mean share of first ranks when concepts are assigned to readings at random, and its floor.

        The units are the concepts and not the rows: the rows of one concept share whatever else its texts have in
        common, so that they agree on a wrong reading as well as on the right one.
        """
        count = self.scores.shape[1]
        confusion = group_means(self.shares, self.target)
        weights = np.bincount(self.target, minlength=count) / len(self.target)
        orders = assignments(count, spec.permutations, rng)
        null = (confusion[np.arange(count), orders] * weights).sum(axis=1)
        p, floor = permutation_p(float((np.diag(confusion) * weights).sum()), null)
        return float(p), floor


def assignments(count: int, draws: int, rng: np.random.Generator) -> Int[np.ndarray, "orders concepts"]:
    """Other assignments of so many concepts to their readings: all of them where these are few, else random ones."""
    if math.factorial(count) <= draws:
        return np.array([order for order in permutations(range(count)) if order != tuple(range(count))])
    return permuted_within(np.zeros(count), draws, rng)


def jointly(*p: float) -> float:
    """p of a claim that holds only if each of its parts does: the largest (an intersection-union test, Berger 1982)."""
    return math.nan if any(math.isnan(each) for each in p) else max(p)


def overall(verdicts: Sequence[Verdict], rule: Literal["all", "any"]) -> Verdict:
    """Of several claims together: all of them have to be shown, or any one."""
    if not verdicts:
        return "described"
    order: tuple[Verdict, ...] = ("not shown", "untestable", "planted", "shown")
    return next(each for each in (order if rule == "all" else order[::-1]) if each in verdicts)


def flatten(figures: Mapping[str, Estimate | float | None]) -> dict[str, float]:
    """Figures as flat metrics, an estimate with ``_low`` and ``_high``; what is not defined is left out."""
    values: dict[str, float] = {}
    for name, figure in figures.items():
        if isinstance(figure, Estimate):
            values |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        elif figure is not None:
            values[name] = float(figure)
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}

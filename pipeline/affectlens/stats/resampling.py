"""Intervals by resampling groups, and by Student's t over groups where there are few.

Stories of one topic, scenarios of one setting and texts of one writer are not independent of each other, so the unit
that is resampled is the group. Every bootstrap of the project is :func:`bootstrap_counts` (how often each unit is
drawn) followed by a statistic of the counts and :func:`bootstrap_interval`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens.stats.estimates import Estimate, check_level
from affectlens.stats.ranking import check_labels

DRAWS = 2000
"""Bootstrap draws unless said otherwise."""
DRAW_ELEMENTS = 2**22
"""Counts drawn at once: 32 MiB, however many units there are."""
FEWEST_GROUPS = 8
"""Groups below which AUROC gets no bootstrap, which over three groups covers 52 to 79% instead of 95, and AUROC of one
concept no interval at all."""


class AurocIntervals(NamedTuple):
    """AUROC of each concept's own readout: the mean over concepts, and each of them."""

    mean: Estimate
    concepts: list[Estimate]


def bootstrap_counts(units: int, n_boot: int, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "draws units"]]:
    """How often each unit is drawn in each bootstrap sample, a batch of samples at a time.

    Args:
        units: independent units, drawn with replacement.
        n_boot: samples.
        rng: of the draws.

    Raises:
        ValueError: fewer than one sample.
    """
    if n_boot < 1:
        raise ValueError(f"n_boot is {n_boot}: ask for at least one draw, better 1000 or more")
    step = max(1, DRAW_ELEMENTS // units)
    for start in range(0, n_boot, step):
        batch = min(step, n_boot - start)
        drawn = rng.integers(units, size=(batch, units)) + np.arange(batch)[:, None] * units
        yield np.bincount(drawn.reshape(-1), minlength=batch * units).reshape(batch, units).astype(float)


def bootstrap_interval(point: float, drawn: Float[np.ndarray, " draws"], units: int, level: float = 0.95) -> Estimate:
    """A statistic with the expanded percentile interval of its bootstrap draws.

    The percentiles are those of a t distribution with one degree of freedom less than there are units, widened by
    the root of n / (n - 1) (Hesterberg 2015, "What teachers should know about the bootstrap", sec. 5.3).

    Args:
        point: the statistic of the data.
        drawn: the statistic of each bootstrap sample; NaN is left out.
        units: independent units that were drawn from.
        level: coverage of the interval.

    Returns:
        Without an interval below two units, or where the point is NaN.
    """
    check_level(level)
    drawn = drawn[np.isfinite(drawn)]
    if units < 2 or not len(drawn) or not math.isfinite(point):
        return Estimate(float(point), math.nan, math.nan, units)
    tail = NormalDist().cdf(-_t_quantile(units, level) * math.sqrt(units / (units - 1)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(float(point), float(low), float(high), units)


def cluster_bootstrap(
    values: Float[np.ndarray, " rows"],
    clusters: Shaped[np.ndarray, " rows"],
    *,
    rng: np.random.Generator | int,
    n_boot: int = DRAWS,
    level: float = 0.95,
) -> Estimate:
    """The mean of all rows with its interval, where rows of one cluster are not independent of each other.

    Whole clusters are drawn with replacement (Field & Welsh 2007, "Bootstrapping clustered data"; Cameron,
    Gelbach & Miller 2008, "Bootstrap-based improvements for inference with clustered errors").

    Args:
        values: one per observation.
        clusters: the cluster of each, for example its topic.
        rng: generator or seed.
        n_boot: draws.
        level: coverage of the interval.

    Returns:
        The mean, with n = clusters; without an interval when there are fewer than two clusters. Rows that are all
        alike give an interval without width: for rates near 0 or 1 use ``wilson`` on one outcome per cluster.

    Raises:
        ValueError: no rows, values that are not finite, shapes that do not fit, or a bad level.
    """
    values = np.asarray(values, dtype=float)
    codes = _codes(clusters, values.shape)
    finite = np.isfinite(values)
    if not finite.all():
        raise ValueError(
            f"{values.size - finite.sum()} of {values.size} values are NaN or infinite: drop them first, so "
            "that it is known what the interval is about"
        )
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes).astype(float)
    counts = bootstrap_counts(len(sums), n_boot, np.random.default_rng(rng))
    drawn = np.concatenate([count @ sums / (count @ sizes) for count in counts])
    return bootstrap_interval(float(values.mean()), drawn, len(sums), level)


def bootstrap_mean(
    values: Float[np.ndarray, " rows"],
    *,
    rng: np.random.Generator | int,
    n_boot: int = DRAWS,
    level: float = 0.95,
) -> Estimate:
    """The mean of independent values with its interval (Efron 1979): every value is its own cluster.

    Raises:
        ValueError: as for ``cluster_bootstrap``.
    """
    return cluster_bootstrap(values, np.arange(np.size(values)), rng=rng, n_boot=n_boot, level=level)


def two_way_bootstrap(
    matrix: Float[np.ndarray, "rows columns"],
    *,
    rng: np.random.Generator | int,
    n_boot: int = DRAWS,
    level: float = 0.95,
) -> Estimate:
    """The mean of a crossed design, such as concepts x topics, for a claim about new rows *and* new columns.

    Rows and columns are drawn independently (Owen 2007, "The pigeonhole bootstrap"). The interval is conservative:
    the variance of single cells enters up to three times. It is expanded for the smaller of the two numbers. Where
    the rows are all there are (the studied concepts), use ``t_interval``.

    Args:
        matrix: one cell per combination; NaN is a combination that was not measured.
        rng: generator or seed.
        n_boot: draws.
        level: coverage of the interval.

    Returns:
        The mean of the measured cells, with n = the smaller of rows and columns that hold one; without an interval
        when that is below two. Draws without any measured cell are left out.

    Raises:
        ValueError: not a matrix, no measured cell, an infinite one, or a bad level.
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.ndim != 2 or np.isnan(matrix).all() or np.isinf(matrix).any():
        raise ValueError(f"a matrix of shape {matrix.shape} is not one of finite cells, or NaN where not measured")
    measured = ~np.isnan(matrix)
    matrix = matrix[measured.any(axis=1)][:, measured.any(axis=0)]
    known, filled = (~np.isnan(matrix)).astype(float), np.nan_to_num(matrix)
    rng = np.random.default_rng(rng)
    draws = [bootstrap_counts(side, n_boot, rng) for side in matrix.shape]
    means = []
    for rows, columns in zip(*draws, strict=True):
        weight = ((rows @ known) * columns).sum(axis=1)
        means.append(((rows @ filled) * columns).sum(axis=1) / np.where(weight == 0, np.nan, weight))
    return bootstrap_interval(float(np.nanmean(matrix)), np.concatenate(means), min(matrix.shape), level)


def t_interval(
    values: Float[np.ndarray, " groups"] | Float[np.ndarray, "rows groups"],
    *,
    cross_validated: bool = False,
    random_rows: bool = False,
    level: float = 0.95,
) -> Estimate:
    """A mean with Student's t interval over groups; sound for as few as two (Ibragimov & Mueller 2010).

    Of a matrix the figure is the mean over rows of each row's mean over the groups where it was measured. Rows (the
    studied concepts) are taken as all there are; groups (topics) as a sample. Rows that were measured in other groups
    than the rest differ in level from them, which is no difference between groups: a group's value is therefore the
    figure plus the rows' deviations from their own means in this group. In a full matrix that is its column mean.

    Args:
        values: one per group, or one row per concept; NaN where not measured.
        cross_validated: each group was the test of a fold whose training set were all the others. Folds share
            training groups, so that their figures are correlated; the half-width is that of variance
            (1 / J + 1 / (J - 1)) s^2 (Nadeau & Bengio 2003, Mach. Learn. 52) in place of s^2 / J.
        random_rows: rows are a sample as well: the squared half-width of a t interval over the rows' means is added.
            For a claim about concepts that were not studied, and for figures of a search among thousands of columns:
            which column wins is luck that all folds share, so that groups do not show it, but rows do.
        level: coverage of the interval.

    Returns:
        n = groups with a measured cell; without an interval below two.

    Raises:
        ValueError: no vector or matrix, an infinite value, or a bad level.
    """
    check_level(level)
    cells = np.atleast_2d(np.asarray(values, dtype=float))
    if cells.ndim != 2 or np.isinf(cells).any():
        raise ValueError(f"values of shape {np.shape(values)} are no finite [rows, groups], or NaN where not measured")
    measured = ~np.isnan(cells)
    cells = cells[measured.any(axis=1)][:, measured.any(axis=0)]
    measured, groups = ~np.isnan(cells), cells.shape[1]
    if not groups:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = measured.sum(axis=1, keepdims=True)
    own = np.nansum(cells, axis=1, keepdims=True) / share
    point = float(own.mean())
    if groups < 2:
        return Estimate(point, math.nan, math.nan, groups)
    deviations = groups * (np.where(measured, cells - own, 0.0) / share).mean(axis=0)
    variance = float((deviations**2).sum()) / (groups - 1)
    half = _t_quantile(groups, level) * math.sqrt(variance * (1 / groups + cross_validated / (groups - 1)))
    if random_rows and len(own) > 1:
        over_rows = _t_quantile(len(own), level) * float(own.std(ddof=1)) / math.sqrt(len(own))
        half = math.hypot(half, over_rows)
    return Estimate(point, point - half, point + half, groups)


def t_above(values: Float[np.ndarray, " groups"], null: float, *, cross_validated: bool = False) -> float:
    """One-sided p of the t test over groups that their mean is no larger than ``null``.

    Where each group was the test of a fold, what the folds share counts twice in the variance: with the factor of
    :func:`t_interval` p is right at 0.05, but 0.002, which a correction over 24 concepts asks for, is reached twice as
    often as it should be (docs/statistics.md).

    Returns:
        NaN below two groups; values that are all alike give 0, 0.5 or 1.
    """
    from scipy.special import stdtr

    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    count = len(values)
    if count < 2:
        return math.nan
    error = float(values.std(ddof=1)) * math.sqrt(1 / count + 2 * cross_validated / (count - 1))
    return float(stdtr(count - 1, (null - values.mean()) / max(error, np.finfo(float).tiny)))


def prediction_interval(values: Float[np.ndarray, " groups"], level: float = 0.95) -> Estimate:
    """The mean of some groups' figures, and where the figure of one further group is expected to lie.

    Half-width t(n - 1) s sqrt(1 + 1 / n), for groups that are draws from one normal population.

    Args:
        values: one figure a group, such as a writer, measured as that of the further group will be.
        level: share of further groups within.

    Returns:
        n = groups; without an interval below two.
    """
    check_level(level)
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    count = len(values)
    if count < 2:
        return Estimate(float(values.mean()) if count else math.nan, math.nan, math.nan, count)
    half = _t_quantile(count, level) * float(values.std(ddof=1)) * math.sqrt(1 + 1 / count)
    return Estimate(float(values.mean()), float(values.mean()) - half, float(values.mean()) + half, count)


def auroc_interval(
    scores: Shaped[np.ndarray, "docs concepts"],
    labels: Bool[np.ndarray, "docs concepts"],
    groups: Shaped[np.ndarray, " docs"],
    *,
    rng: np.random.Generator | int,
    n_boot: int = DRAWS,
    level: float = 0.95,
) -> AurocIntervals:
    """AUROC of each concept's own readout over all documents, and their mean, with intervals by resampling groups.

    For designs in which a group holds one concept, so that there is no AUROC within a group. Where there is, use
    ``t_interval`` of it: pairs across groups are blurred by what differs between groups.

    A document of a group drawn k times counts k times. AUROC is a ratio of quadratic forms in these counts: for each
    concept the pairs (positive in group t, negative in group u) are compared once, exactly, ties counting one half,
    and every draw reuses the groups x groups table. All concepts share the draws.

    Below ``FEWEST_GROUPS`` groups the interval of the mean is Student's t of the jackknife's pseudo-values (Tukey
    1958), which takes out the bias of AUROC over few groups as well; docs/statistics.md has its coverage.

    Args:
        scores: column c is the readout of concept c.
        labels: boolean, or numbers that are all 0 or 1.
        groups: the group of each document.
        rng: generator or seed.
        n_boot: draws.
        level: coverage of the intervals.

    Returns:
        The mean over the concepts whose AUROC is defined, with n = groups; and per concept the AUROC, with
        n = groups that hold its positives or, if fewer, its negatives. Below two groups the mean has no interval, below
        ``FEWEST_GROUPS`` in all, or two of its own, a concept has none. Draws that leave a concept without positives or
        negatives are left out for that concept. Perfect separation gives an interval without width: the data hold no
        information on how far from 1 it may be.

    Raises:
        ValueError: shapes do not fit, labels are not 0/1, a score is NaN, or a bad level.
    """
    check_level(level)
    scores = np.asarray(scores)
    labels = check_labels(labels, len(scores))
    if scores.shape != labels.shape:
        raise ValueError(f"scores have shape {scores.shape}, labels {labels.shape}: give one score per label")
    missing = np.flatnonzero(np.isnan(scores).any(axis=0))
    if len(missing):
        raise ValueError(f"the readout of concept {missing[0]} has a NaN score: drop the concept or its documents")
    codes = _codes(groups, (len(scores),))
    count = int(codes.max()) + 1
    few = count < FEWEST_GROUPS
    # Of few groups each is left out in turn.
    draws = [1 - np.eye(count)] if few else list(bootstrap_counts(count, n_boot, np.random.default_rng(rng)))
    concepts, drawn = [], []
    for score, label in zip(scores.T, labels.T, strict=True):
        wins, positives, negatives = _pair_table(score, label, codes, count)
        areas = np.concatenate(
            [_quadratic_auroc(each, wins, positives, negatives) for each in (np.ones((1, count)), *draws)]
        )
        units = int(min(np.count_nonzero(positives), np.count_nonzero(negatives)))
        found = bootstrap_interval(areas[0], areas[1:], units, level)
        concepts.append(found._replace(low=math.nan, high=math.nan) if few else found)
        drawn.append(areas)
    mean = _mean_of_defined(np.array(drawn).T)
    found = (_jackknife_interval if few else bootstrap_interval)(mean[0], mean[1:], count, level)
    return AurocIntervals(found, concepts)


def _jackknife_interval(point: float, without: Float[np.ndarray, "groups"], units: int, level: float) -> Estimate:
    """A share over all groups, with the t interval of its jackknife pseudo-values; it holds the share itself.

    Args:
        point: over all groups.
        without: with each group left out; NaN where it is not defined then.
        units: groups.
        level: of the interval.
    """
    count = len(without)
    if count < 2 or np.isnan(without).any():
        return Estimate(float(point), math.nan, math.nan, units)
    pseudo = count * point - (count - 1) * without
    half = _t_quantile(count, level) * float(pseudo.std(ddof=1)) / math.sqrt(count)
    centre = float(pseudo.mean())
    low, high = max(0.0, min(point, centre - half)), min(1.0, max(point, centre + half))
    return Estimate(float(point), float(low), float(high), units)


def _pair_table(
    score: Shaped[np.ndarray, " docs"],
    label: Bool[np.ndarray, " docs"],
    codes: Int[np.ndarray, " docs"],
    groups: int,
) -> tuple[Float[np.ndarray, "groups groups"], Float[np.ndarray, " groups"], Float[np.ndarray, " groups"]]:
    """Twice the wins of positives of one group over negatives of another, and both counts for each group."""
    order = np.argsort(score[~label])
    negatives, owners = score[~label][order], codes[~label][order]
    below = np.zeros((len(negatives) + 1, groups))
    below[np.arange(1, len(below)), owners] = 1
    below = below.cumsum(axis=0)
    wins = below[np.searchsorted(negatives, score[label], "left")]
    wins += below[np.searchsorted(negatives, score[label], "right")]
    member = np.zeros((len(wins), groups))
    member[np.arange(len(wins)), codes[label]] = 1
    return member.T @ wins, member.sum(axis=0), below[-1]


def _quadratic_auroc(
    counts: Float[np.ndarray, "draws groups"],
    wins: Float[np.ndarray, "groups groups"],
    positives: Float[np.ndarray, " groups"],
    negatives: Float[np.ndarray, " groups"],
) -> Float[np.ndarray, " draws"]:
    pairs = 2 * (counts @ positives) * (counts @ negatives)
    return ((counts @ wins) * counts).sum(axis=1) / np.where(pairs == 0, np.nan, pairs)


def _mean_of_defined(values: Float[np.ndarray, "draws concepts"]) -> Float[np.ndarray, " draws"]:
    """Row means over what is not NaN; NaN for a row without any."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    return np.where(defined, values, 0.0).sum(axis=1) / np.where(count == 0, np.nan, count)


def _t_quantile(units: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(units - 1, (1 + level) / 2))


def _codes(groups: Any, shape: tuple[int, ...]) -> Int[np.ndarray, " rows"]:
    """Groups as numbers from 0."""
    groups = np.asarray(groups)
    if len(shape) != 1 or shape[0] == 0 or groups.shape != shape:
        raise ValueError(
            f"values of shape {shape} and groups of {groups.shape}: give at least one row, a group for each"
        )
    return np.unique(groups, return_inverse=True)[1]

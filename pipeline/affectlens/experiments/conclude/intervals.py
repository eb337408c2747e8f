"""Intervals over groups of scenarios, and the smallest effect that so many groups would have found."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Shaped

from affectlens import stats
from affectlens.stats import Estimate

DRAWS = 2000
"""Bootstrap draws."""
LEVEL = 0.05
"""Error rate after correction, one minus the coverage of all intervals."""
GROUPS = 5
"""Fewest groups over which anything counts as shown: fewer cannot even agree beyond chance."""
POWER = 0.8
"""With which the smallest effect would be found."""


def undefined(units: int = 0) -> Estimate:
    """A figure that the data do not give."""
    return Estimate(math.nan, math.nan, math.nan, units)


def group_means(
    values: Float[np.ndarray, "rows ..."], groups: Shaped[np.ndarray, " rows"]
) -> Float[np.ndarray, "groups ..."]:
    """Mean of each group, in the order of their names, over its values that are not NaN; NaN where it has none."""
    names, codes = np.unique(groups, return_inverse=True)
    known = np.isfinite(values)
    sums, counts = (np.zeros((len(names), *np.shape(values)[1:])) for _ in range(2))
    np.add.at(sums, codes, np.where(known, values, 0.0))
    np.add.at(counts, codes, known.astype(float))
    return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)


def over_groups(
    values: Float[np.ndarray, " rows"], groups: Shaped[np.ndarray, " rows"], generator: np.random.Generator
) -> Estimate:
    """Mean over groups of the groups' means, with its interval: groups are drawn, and weigh alike.

    NaN rows are left out; without any other row the estimate is NaN.
    """
    means = group_means(np.asarray(values, dtype=float), groups) if len(values) else np.empty(0)
    means = means[np.isfinite(means)]
    return stats.bootstrap_mean(means, rng=generator, n_boot=DRAWS) if len(means) else undefined()


def draws(units: int, generator: np.random.Generator, count: int | None = None) -> Float[np.ndarray, "draws units"]:
    """How often each unit is drawn in each bootstrap sample, for statistics that are functions of sums."""
    return generator.multinomial(units, np.full(units, 1 / units), size=count or DRAWS).astype(float)


def from_draws(point: float, drawn: Float[np.ndarray, " draws"], units: int, level: float = 1 - LEVEL) -> Estimate:
    """A statistic with the percentile interval of its bootstrap draws, expanded for few units.

    Percentiles are those of a t distribution with one degree of freedom less than there are units, widened by the
    root of n / (n - 1) (Hesterberg 2015, "What teachers should know about the bootstrap", sec. 5.3).
    """
    drawn = drawn[np.isfinite(drawn)]
    if units < 2 or not len(drawn) or not math.isfinite(point):
        return Estimate(float(point), math.nan, math.nan, units)
    from scipy.special import stdtrit

    quantile = stdtrit(units - 1, (1 + level) / 2) * math.sqrt(units / (units - 1))
    tail = NormalDist().cdf(-quantile)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(float(point), float(low), float(high), units)


def standard_error(values: Float[np.ndarray, " rows"], groups: Shaped[np.ndarray, " rows"]) -> float:
    """Of the mean over groups; NaN with fewer than two groups."""
    means = group_means(np.asarray(values, dtype=float), groups) if len(values) else np.empty(0)
    means = means[np.isfinite(means)]
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan


def change_error(differences: Float[np.ndarray, " groups"]) -> float:
    """Standard error of a mean difference of rates; where all groups agree, as if one of two more groups did not."""
    known = differences[np.isfinite(differences)]
    if len(known) < 2:
        return math.nan
    agreed = math.sqrt(1 / (len(known) + 2) / len(known))
    return float(known.std(ddof=1) / math.sqrt(len(known))) or agreed


def smallest_effect(error: float, units: int) -> float:
    """The smallest true mean that a two-sided 5% test over so many groups would find with 80% power.

    The usual approximation: the sum of both t quantiles times the standard error.
    """
    if units < 2 or not math.isfinite(error):
        return math.nan
    from scipy.special import stdtrit

    return float((stdtrit(units - 1, 1 - LEVEL / 2) + stdtrit(units - 1, POWER)) * error)


def smallest_of(found: Estimate) -> float:
    """The smallest effect found with 80% power, from the width of an interval."""
    normal = NormalDist()
    error = (found.high - found.low) / 2 / normal.inv_cdf(1 - LEVEL / 2)
    return (normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)) * error


def smallest_correlation(pairs: int) -> float:
    """The smallest true correlation that so many pairs would show with 80% power (Fisher's z)."""
    if pairs < 4:
        return math.nan
    normal = NormalDist()
    return math.tanh((normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)) / math.sqrt(pairs - 3))


def rate_difference(
    first: Float[np.ndarray, " rows"],
    second: Float[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    generator: np.random.Generator,
) -> Estimate:
    """First less second rate of the same scenarios, with its interval over groups.

    Where all groups agree the bootstrap has no width, which claims too much: then the interval is Newcombe's hybrid of
    two score intervals (1998, method 10) with one trial a group.
    """
    found = over_groups(first - second, groups, generator)
    if found.n < 2 or found.high > found.low:
        return found
    both = np.isfinite(first - second)
    a, b = (float(np.nanmean(group_means(side[both], groups[both]))) for side in (first, second))
    (a_low, a_high), (b_low, b_high) = _score_interval(a, found.n), _score_interval(b, found.n)
    low = found.value - math.hypot(a - a_low, b_high - b)
    return Estimate(found.value, low, found.value + math.hypot(a_high - a, b - b_low), found.n)


def _score_interval(rate: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a rate over groups, which need not be a whole number of successes."""
    z = NormalDist().inv_cdf(1 - LEVEL / 2)
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def flat(name: str, found: Estimate) -> dict[str, float]:
    """A figure as metrics; what is not defined is left out."""
    ends = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return defined(ends)


def defined(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without those that are not numbers."""
    return {key: float(value) for key, value in metrics.items() if math.isfinite(value)}

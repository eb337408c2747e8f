"""Single figures with intervals in closed form: a rate and a correlation."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from affectlens.stats.permutation import permutation_p

DRAW_ELEMENTS = 2**22
"""Values permuted at once by ``correlation``."""
MIXED = 4
"""Groups not all right (and as many not all wrong) from which their spread alone says how far groups differ."""


class Estimate(NamedTuple):
    """A figure with its interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval; NaN, as ``high``, where the data allow none.
        high: upper end.
        n: independent units behind it: groups for an interval over groups, trials for a rate, pairs for a
            correlation.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"undefined (n={self.n})"
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{self.value:.3f} [no interval, n={self.n}]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Correlation(NamedTuple):
    """A correlation: its estimate, two-sided permutation p (NaN if none was asked for) and the floor of p."""

    estimate: Estimate
    p: float
    floor: float

    def __str__(self) -> str:
        return str(self.estimate) + ("" if math.isnan(self.p) else f", p={self.p:.2g} (floor {self.floor:.2g})")


def check_level(level: float) -> float:
    """The level of an interval.

    Raises:
        ValueError: not strictly between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give the coverage of the interval as a number between 0 and 1")
    return level


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """A rate with its score interval, sound at 0 and 1 and for small n (Wilson 1927).

    Trials must be independent; where they come in groups use :func:`clustered_rate`.

    Args:
        successes: trials that succeeded.
        n: trials. With 0 the rate and its interval are NaN.
        level: coverage of the interval.

    Raises:
        ValueError: ``successes`` is not between 0 and ``n``, or either is not a whole number.
    """
    if not (float(successes).is_integer() and float(n).is_integer() and 0 <= successes <= n):
        raise ValueError(f"{successes} successes in {n} trials: give whole numbers, 0 <= successes <= trials")
    check_level(level)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    from scipy.stats import binomtest

    interval = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), int(n))


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """A rate with its exact interval, which covers at least as often as it says (Clopper & Pearson 1934).

    Trials must be independent; arguments and errors as of :func:`wilson`.
    """
    if not (float(successes).is_integer() and float(n).is_integer() and 0 <= successes <= n):
        raise ValueError(f"{successes} successes in {n} trials: give whole numbers, 0 <= successes <= trials")
    check_level(level)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    from scipy.stats import binomtest

    interval = binomtest(int(successes), int(n)).proportion_ci(level, method="exact")
    return Estimate(successes / n, float(interval.low), float(interval.high), int(n))


def clustered_rate(
    hits: Float[np.ndarray, " trials"],
    groups: Shaped[np.ndarray, " trials"],
    *,
    equal: bool = False,
    level: float = 0.95,
) -> Estimate:
    """The share of trials that succeeded with its interval, where trials of one group are not independent.

    Wilson's score interval with as many trials as the data are worth (the design effect; Dean & Pagano 2015,
    "Evaluating confidence interval methods for binomial proportions in clustered surveys") and Student's quantile over
    groups. The variance is that of the groups' shares around the mean, with each group's weight taken out of its own
    deviation. Where fewer than :data:`MIXED` groups tell how much groups differ (since all others are right
    throughout, or wrong throughout), the variance leans towards that of groups of which every one is all right or all
    wrong: a bootstrap and a t interval fail there, with shares near 1 in 11 groups they cover 0.5 to 0.9 instead of
    0.95.

    Args:
        hits: 1 for a success, 0 for a failure, anything between for a part of one.
        groups: of the trials.
        equal: whether groups count alike, whatever their size; otherwise trials do.
        level: coverage of the interval.

    Returns:
        The share, with n = groups; without an interval below two of them. All trials one half, which is what a readout
        gives that cannot know, have an interval without width.

    Raises:
        ValueError: no trial, a hit outside [0, 1], or shapes that do not fit.
    """
    hits, groups = np.asarray(hits, dtype=float), np.asarray(groups)
    if hits.ndim != 1 or not len(hits) or hits.shape != groups.shape or not ((hits >= 0) & (hits <= 1)).all():
        raise ValueError(f"hits of shape {hits.shape}, groups of {groups.shape}: give shares from 0 to 1, a group each")
    check_level(level)
    codes = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(codes)
    own, count = np.bincount(codes, weights=hits) / sizes, len(sizes)
    weight = np.full(count, 1 / count) if equal else sizes / len(hits)
    rate = float(own.mean() if equal else hits.mean())
    if count < 2 or (hits == 0.5).all():
        end = math.nan if count < 2 else rate
        return Estimate(rate, end, end, count)
    # Worth in independent trials: at least the groups, were each all right or all wrong; at most all trials.
    least, most = 1 / float((weight**2).sum()), 1 / float((weight**2 / sizes).sum())
    variance = float((weight**2 * (own - rate) ** 2 / (1 - weight)).sum())
    low, high = _score_interval(own, rate, variance, least, most, max(least - 1, 1.0), level)
    return Estimate(rate, low, high, count)


def share_over_groups(
    shares: Float[np.ndarray, " groups"], *, trials: int = 1, cross_validated: bool = False, level: float = 0.95
) -> Estimate:
    """The mean of figures between 0 and 1, such as AUROC within each topic, with its score interval over groups.

    That of :func:`clustered_rate`, of groups that count alike and whose own trials are not known. Near 1 a t interval
    over 11 topics covers 0.5 to 0.85 instead of 0.95, since most topics are read without a fault and a few are not.

    Args:
        shares: one a group; NaN is left out.
        trials: that a group is worth at the least. It tells only where nearly all groups are 1, or 0.
        cross_validated: as in :func:`affectlens.stats.t_interval`.
        level: coverage of the interval.

    Returns:
        n = groups; without an interval below two.
    """
    check_level(level)
    own = np.asarray(shares, dtype=float)
    own = own[np.isfinite(own)]
    count = len(own)
    if count < 2:
        return Estimate(float(own.mean()) if count else math.nan, math.nan, math.nan, count)
    factor = 1 / count + cross_validated / (count - 1)
    rate = float(own.mean())
    low, high = _score_interval(own, rate, factor * float(own.var(ddof=1)), trials / factor, math.inf, count - 1, level)
    return Estimate(rate, low, high, count)


def _score_interval(
    own: Float[np.ndarray, " groups"],
    rate: float,
    variance: float,
    least: float,
    most: float,
    freedom: float,
    level: float,
) -> tuple[float, float]:
    """Wilson's interval for a rate that is worth between ``least`` and ``most`` independent trials."""
    from scipy.special import stdtrit

    spread = max(0.0, rate * (1 - rate))  # below 0 by rounding
    trials = min(most, spread / variance) if variance > 0 else most
    known = min(1.0, min(int((own < 1).sum()), int((own > 0).sum())) / MIXED)
    trials = 1 / (known / max(trials, 1e-9) + (1 - known) / least)
    square = float(stdtrit(freedom, (1 + level) / 2)) ** 2
    centre = (rate + square / trials / 2) / (1 + square / trials)
    half = math.sqrt(square * (spread / trials + square / trials**2 / 4)) / (1 + square / trials)
    return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))


def difference(first: Estimate, second: Estimate) -> Estimate:
    """First less second, of figures from independent groups, with the interval that follows from theirs.

    The distances of the figures from the ends of their intervals add in squares (Zou & Donner 2008, "Construction of
    confidence limits about effect measures").

    Returns:
        n = the smaller of both; without an interval where one of them has none.
    """
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, low, high, min(first.n, second.n))


def correlation(
    x: Shaped[np.ndarray, " pairs"],
    y: Shaped[np.ndarray, " pairs"],
    *,
    given: Float[np.ndarray, " pairs"] | None = None,
    level: float = 0.95,
    permutations: int = 0,
    rng: np.random.Generator | int | None = None,
) -> Correlation:
    """A Pearson correlation with its Fisher-z interval and, on request, a two-sided permutation p.

    Args:
        x: finite values.
        y: as many, paired with ``x``.
        given: a covariate; the correlation is the partial one, of what a straight line in it leaves of both sides.
            It costs the interval one degree of freedom (Fisher 1924).
        level: coverage of the interval.
        permutations: random pairings behind p; 0 leaves p NaN. p = (b + 1) / (m + 1) (Phipson & Smyth 2010).
        rng: generator or seed, needed for p.

    Returns:
        The value is NaN when either side is constant or there are fewer than two pairs.

    Raises:
        ValueError: lengths differ, values are not finite, or ``rng`` is missing.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or (given is not None and np.shape(given) != x.shape):
        raise ValueError(f"x has shape {x.shape} and y {y.shape}: give vectors of the same length")
    if not all(np.isfinite(side).all() for side in (x, y, [] if given is None else given)):
        raise ValueError("a correlation needs finite values on all sides: drop the incomplete pairs first")
    if permutations and rng is None:
        raise ValueError("a permutation p needs rng: give a numpy Generator or a seed")
    if given is not None:
        x, y = residuals(x, given), residuals(y, given)
    x, y = _unit(x), _unit(y)
    r = float(np.clip(x @ y, -1, 1)) if len(x) > 1 else math.nan
    p, floor = math.nan, math.nan
    if permutations:
        null = _null_correlations(x, y, permutations, np.random.default_rng(rng))
        p, floor = permutation_p(abs(r), np.abs(null))
    return Correlation(fisher_interval(r, len(x), covariates=int(given is not None), level=level), p, floor)


def fisher_interval(r: float, pairs: int, *, covariates: int = 0, level: float = 0.95) -> Estimate:
    """A correlation with its interval: the standard error of atanh(r) is 1 / sqrt(pairs - covariates - 3).

    Fisher 1921; 1924 for a partial correlation, from both sides of which so many covariates were taken.

    Returns:
        Without an interval where no degree of freedom is left, and for a perfect correlation.
    """
    freedom = pairs - covariates - 3
    check_level(level)
    if freedom < 1 or math.isnan(r) or 1 - abs(r) < 1e-12:
        return Estimate(r, math.nan, math.nan, pairs)
    half = NormalDist().inv_cdf(0.5 + level / 2) / math.sqrt(freedom)
    return Estimate(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half), pairs)


def residuals(values: Float[np.ndarray, " pairs"], given: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """What is left of values after a straight line in the covariate is taken away."""
    centred = np.asarray(given, dtype=float) - np.mean(given)
    scale = float(centred @ centred)
    slope = float(centred @ values) / scale if scale > 0 else 0.0
    return values - values.mean() - slope * centred


def _null_correlations(
    x: Float[np.ndarray, " pairs"],
    y: Float[np.ndarray, " pairs"],
    permutations: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, " permutations"]:
    step = max(1, DRAW_ELEMENTS // max(len(y), 1))
    sizes = [min(step, permutations - start) for start in range(0, permutations, step)]
    return np.concatenate([rng.permuted(np.tile(y, (size, 1)), axis=1) @ x for size in sizes])


def _unit(values: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """Mean 0, length 1; NaN throughout for a constant, which has no direction."""
    if len(values) == 0 or values.min() == values.max():
        return np.full(len(values), np.nan)
    # Halved first: the spread of finite values may exceed the largest float.
    values = (values / 2 - values.min() / 2) / (values.max() / 2 - values.min() / 2)
    values = values - values.mean()
    return values / np.linalg.norm(values)

"""Single figures with intervals in closed form: a rate and a correlation."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from affectlens.errors import UserError
from affectlens.stats.permutation import permutation_p

DRAW_ELEMENTS = 2**22
"""Values permuted at once by ``correlation``."""


class Estimate(NamedTuple):
    """A figure with its interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval; NaN, as ``high``, where the data allow none.
        high: upper end.
        n: independent units behind it: clusters for a cluster bootstrap, trials for a rate, pairs for a
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
        UserError: not strictly between 0 and 1.
    """
    if not 0 < level < 1:
        raise UserError(f"level is {level}: give the coverage of the interval as a number between 0 and 1")
    return level


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """A rate with its score interval, sound at 0 and 1 and for small n (Wilson 1927).

    Trials must be independent; where they come in clusters use ``cluster_bootstrap``.

    Args:
        successes: trials that succeeded.
        n: trials. With 0 the rate and its interval are NaN.
        level: coverage of the interval.

    Raises:
        UserError: ``successes`` is not between 0 and ``n``, or either is not a whole number.
    """
    if not (float(successes).is_integer() and float(n).is_integer() and 0 <= successes <= n):
        raise UserError(f"{successes} successes in {n} trials: give whole numbers, 0 <= successes <= trials")
    z = NormalDist().inv_cdf(0.5 + check_level(level) / 2)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Estimate(rate, low, high, int(n))


def correlation(
    x: Shaped[np.ndarray, " pairs"],
    y: Shaped[np.ndarray, " pairs"],
    method: Literal["pearson", "spearman"] = "pearson",
    level: float = 0.95,
    *,
    permutations: int = 0,
    rng: np.random.Generator | int | None = None,
) -> Correlation:
    """A correlation with its Fisher-z interval and, on request, a two-sided permutation p.

    The standard error of z is 1 / sqrt(n - 3) for Pearson (Fisher 1921) and sqrt((1 + r^2 / 2) / (n - 3)) for
    Spearman (Bonett & Wright 2000). p = (b + 1) / (m + 1) (Phipson & Smyth 2010).

    Args:
        x: finite values.
        y: as many, paired with ``x``.
        method: Spearman is Pearson on midranks.
        level: coverage of the interval.
        permutations: random pairings behind p; 0 leaves p NaN.
        rng: generator or seed, needed for p.

    Returns:
        The value is NaN when either side is constant or there are fewer than two pairs; the interval is NaN
        with fewer than four pairs, and for a perfect correlation, where the formula has no width to give.

    Raises:
        UserError: lengths differ, values are not finite, the method is unknown, or ``rng`` is missing.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise UserError(f"x has shape {x.shape} and y {y.shape}: give two vectors of the same length")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("a correlation needs finite values on both sides: drop the incomplete pairs first")
    if method not in ("pearson", "spearman"):
        raise UserError(f"method is {method!r}: choose 'pearson' or 'spearman'")
    if permutations and rng is None:
        raise UserError("a permutation p needs rng: give a numpy Generator or a seed")
    check_level(level)
    if method == "spearman":
        x, y = _midranks(x), _midranks(y)
    x, y = _unit(x), _unit(y)
    r = float(np.clip(x @ y, -1, 1)) if len(x) > 1 else math.nan
    low, high = _fisher_interval(r, len(x), method, level)
    p, floor = math.nan, math.nan
    if permutations:
        null = _null_correlations(x, y, permutations, np.random.default_rng(rng))
        p, floor = permutation_p(abs(r), np.abs(null))
    return Correlation(Estimate(r, low, high, len(x)), p, floor)


def _fisher_interval(r: float, n: int, method: str, level: float) -> tuple[float, float]:
    if n < 4 or math.isnan(r) or 1 - abs(r) < 1e-12:
        return math.nan, math.nan
    spread = 1 + r * r / 2 if method == "spearman" else 1.0
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt(spread / (n - 3))
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


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


def _midranks(values: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]

"""Means over scenario families and seeds with intervals: what every figure of the shaping study is made of.

A family's prompts share their setting, and an arm's seeds share nothing but the recipe. Both are samples of what the
claim is about: other situations, other trainings. So the variance of a mean is that of the families' means and that of
the seeds' means, less what single cells add to both, and the quantile is Student's with Satterthwaite's degrees of
freedom.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LEVEL = 0.95


class Mean(NamedTuple):
    """A mean with its interval.

    Attributes:
        value: the mean; NaN where nothing was measured.
        low: lower end of the 95% interval; NaN, as ``high``, with fewer than two clusters.
        high: upper end.
        error: standard error.
        freedom: degrees of freedom of the t distribution.
        clusters: families, or items where every item stands for itself.
        seeds: trainings.
    """

    value: float
    low: float
    high: float
    error: float
    freedom: float
    clusters: int
    seeds: int

    def above(self, null: float) -> float:
        """One-sided p that the mean is no larger than ``null``; NaN without an interval."""
        from scipy.special import stdtr

        if math.isnan(self.error):
            return math.nan
        if self.error == 0:
            return 0.0 if self.value > null else 1.0
        return float(stdtr(self.freedom, (null - self.value) / self.error))

    def below(self, null: float) -> float:
        """One-sided p that the mean is no smaller than ``null``."""
        return self._replace(value=-self.value).above(-null)


NOTHING = Mean(math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0)
"""Of what was not measured."""


def over_families(cells: Float[np.ndarray, "seeds families prompts"]) -> Mean:
    """The mean over families of each family's prompts; a NaN cell was not measured."""
    cells = np.asarray(cells, dtype=float)
    known = np.isfinite(cells)
    count = known.sum(axis=2)
    return over_clusters(np.where(known, cells, 0).sum(axis=2) / np.where(count, count, np.nan))


def over_clusters(cells: Float[np.ndarray, "seeds clusters"]) -> Mean:
    """The mean over clusters and seeds, both of them samples.

    Args:
        cells: a figure of each cluster under each seed. A cluster that a seed lacks is left out for all seeds, so that
            seeds are compared on the same ones.

    Returns:
        With one seed the interval is over clusters alone and says nothing of another training. The variance is never
        taken to be smaller than that of one direction alone.

    Raises:
        ValueError: not a matrix.
    """
    from scipy.special import stdtrit

    cells = np.asarray(cells, dtype=float)
    if cells.ndim != 2:
        raise ValueError(f"cells of shape {cells.shape}: give one row a seed and one column a cluster")
    cells = cells[:, np.isfinite(cells).all(axis=0)]
    seeds, clusters = cells.shape
    if not cells.size:
        return NOTHING
    value = float(cells.mean())
    if clusters < 2:
        return NOTHING._replace(value=value, clusters=clusters, seeds=seeds)
    parts = [(float(cells.mean(axis=0).var(ddof=1)) / clusters, clusters - 1)]
    own = 0.0  # of single cells, which stands in both directions
    if seeds > 1:
        parts.append((float(cells.mean(axis=1).var(ddof=1)) / seeds, seeds - 1))
        left = cells - cells.mean(axis=0) - cells.mean(axis=1, keepdims=True) + value
        own = float((left**2).sum()) / ((seeds - 1) * (clusters - 1)) / (seeds * clusters)
    variance = max(sum(part for part, _ in parts) - own, *(part for part, _ in parts), 0.0)
    if variance <= 1e-24 * max(1.0, value**2):  # all cells alike, but for rounding
        return Mean(value, value, value, 0.0, float(clusters - 1), clusters, seeds)
    freedom = variance**2 / sum(part**2 / each for part, each in parts)
    error = math.sqrt(variance)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Mean(value, value - half, value + half, error, freedom, clusters, seeds)


def ratio(
    above: Float[np.ndarray, "seeds families prompts"], below: Float[np.ndarray, "seeds families prompts"]
) -> Mean:
    """The ratio of two means over the same cells, with the interval of its linearisation.

    Returns:
        Nothing where the mean below is 0.
    """
    bottom = over_families(below).value
    if not math.isfinite(bottom) or bottom == 0:
        return NOTHING
    value = over_families(above).value / bottom
    spread = over_families((np.asarray(above) - value * np.asarray(below)) / bottom)
    return spread._replace(value=value, low=value + spread.low, high=value + spread.high)


def difference(
    first: Float[np.ndarray, "seeds clusters *rest"], second: Float[np.ndarray, "others clusters *rest"]
) -> Float[np.ndarray, "most clusters *rest"]:
    """First less second, seed by seed; the fewer seeds, such as those of the base model, are taken in turn."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    seeds = np.arange(max(len(first), len(second)))
    return first[seeds % len(first)] - second[seeds % len(second)]

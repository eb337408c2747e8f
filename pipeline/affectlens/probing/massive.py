"""Massive dimensions: coordinates of the residual stream that dwarf all others, in every text alike or at random.

Many models have a few (Timkey & van Schijndel 2021 on "rogue dimensions"; Sun et al. 2024, arXiv 2402.17762, on massive
activations). They say little of a text, but a norm, a dot product or a covariance is mostly theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

RATIO = 20.0
"""A dimension is massive if the root mean square of its means over texts is so many times the median dimension's."""
SHARE = 0.95
"""Massive dimensions are taken out if they hold so much of the mean squared norm of texts, or of its variance."""


@dataclass(frozen=True)
class Massive:
    """The massive dimensions of a layer, largest first.

    Attributes:
        dimensions: coordinates.
        ratio: of each, its root mean square over that of the median dimension.
        norm, variance: of each, its share of the mean squared norm, and of the variance over texts.
        dominate: whether together they hold at least ``SHARE`` of one of both.
    """

    dimensions: Int[np.ndarray, " massive"]
    ratio: Float[np.ndarray, " massive"]
    norm: Float[np.ndarray, " massive"]
    variance: Float[np.ndarray, " massive"]

    @property
    def dominate(self) -> bool:
        return max(self.norm.sum(), self.variance.sum()) >= SHARE


def find(pooled: Float[np.ndarray, "texts d_model"]) -> Massive:
    """The massive dimensions in mean activations of texts; none of an array of zeros."""
    squares, spread = np.square(pooled, dtype=np.float64).mean(axis=0), pooled.var(axis=0, dtype=np.float64)
    size = np.sqrt(squares)
    found = np.flatnonzero((size > RATIO * np.median(size)) & (size > 0))
    found = found[np.argsort(-size[found], kind="stable")]
    with np.errstate(divide="ignore"):  # where half of all dimensions are 0
        ratio = size[found] / np.median(size)
    return Massive(found, ratio, squares[found] / squares.sum(), spread[found] / (spread.sum() or 1.0))


def balanced(values: Float[np.ndarray, "n d_model"], dimensions: Int[np.ndarray, " out"]) -> np.ndarray:
    """Rows with every dimension in its own standard deviation where some dominate; else the rows themselves."""
    if not len(dimensions):
        return values
    spread = values.std(axis=0)
    return values / np.where(spread > 0, spread, 1)


def removed(values: Float[np.ndarray, "n d_model"], dimensions: Int[np.ndarray, " out"]) -> np.ndarray:
    """Rows with some dimensions set to 0; the rows themselves where there are none."""
    if not len(dimensions):
        return values
    values = np.array(values)
    values[..., dimensions] = 0
    return values

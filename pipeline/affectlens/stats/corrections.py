"""Corrections for many tests: adjusted p-values, to be compared with the error rate that is wanted."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def benjamini_hochberg(p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Adjusted p-values that control the false discovery rate (Benjamini & Hochberg 1995).

    Args:
        p: p-values in any shape, all of them one family. NaN is a test that was not made: it is not counted.

    Returns:
        Adjusted values in the shape of ``p``, NaN where ``p`` is NaN.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    values, made, order = _sorted_tests(p)
    tests = len(order)
    stepped = values[order] * (tests / np.arange(1, tests + 1))
    return _restore(p, made, order, np.minimum.accumulate(stepped[::-1])[::-1])


def holm(p: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Adjusted p-values that control the family-wise error rate under any dependence (Holm 1979).

    Args:
        p: p-values in any shape, all of them one family. NaN is a test that was not made: it is not counted.

    Returns:
        Adjusted values in the shape of ``p``, NaN where ``p`` is NaN.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    values, made, order = _sorted_tests(p)
    stepped = values[order] * np.arange(len(order), 0, -1)
    return _restore(p, made, order, np.maximum.accumulate(stepped))


def _sorted_tests(
    p: Float[np.ndarray, "*shape"],
) -> tuple[Float[np.ndarray, " made"], np.ndarray, np.ndarray]:
    """The p-values that are not NaN, where they stand in the flattened input, and their ascending order."""
    flat = np.asarray(p, dtype=float).reshape(-1)
    outside = flat[(flat < 0) | (flat > 1)]
    if len(outside):
        raise ValueError(f"{outside[0]} is not a p-value: give values between 0 and 1")
    made = np.flatnonzero(~np.isnan(flat))
    return flat[made], made, np.argsort(flat[made], kind="stable")


def _restore(
    p: Float[np.ndarray, "*shape"], made: np.ndarray, order: np.ndarray, adjusted: Float[np.ndarray, " made"]
) -> Float[np.ndarray, "*shape"]:
    flat = np.full(np.size(p), np.nan)
    flat[made[order]] = np.minimum(adjusted, 1.0)
    return flat.reshape(np.shape(p))

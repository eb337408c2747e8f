"""How far a set of features and a set of directions span the same part of the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Overlap:
    """Principal angles between two subspaces.

    Attributes:
        cosines: of the principal angles, descending; 1 is a shared direction.
        share: mean squared cosine: how much of the smaller subspace lies in the larger one.
        null_mean, null_95: the same share for as many random columns.
    """

    cosines: Float[np.ndarray, " angles"]
    share: float
    null_mean: float
    null_95: float


def basis(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "rank d"]:
    """Orthonormal rows that span the same space."""
    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    return right[singular > 1e-6 * singular.max(initial=1e-30)]


def cosines(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " angles"]:
    """Cosines of the principal angles between two row spaces (Bjorck & Golub 1973)."""
    found = np.linalg.svd(basis(a) @ basis(b).T, compute_uv=False)
    return np.clip(found, 0, 1)


def overlap(
    directions: Float[np.ndarray, "concepts d"],
    features: Float[np.ndarray, "chosen d"],
    dictionary: Float[np.ndarray, "features d"],
    *,
    draws: int,
    rng: np.random.Generator,
) -> Overlap:
    """Principal angles between directions and the chosen features, beside as many features drawn at random.

    Args:
        directions: one a row.
        features: rows of the dictionary that were chosen.
        dictionary: what they were chosen from.
        draws: random choices.
        rng: of them.
    """
    found, target = cosines(directions, features), basis(directions)
    null = []
    for _ in range(draws):
        drawn = dictionary[rng.choice(len(dictionary), size=min(len(features), len(dictionary)), replace=False)]
        q = np.linalg.qr(drawn.T)[0]
        null.append(float(((target @ q) ** 2).sum() / min(len(target), q.shape[1])))
    return Overlap(found, float((found**2).mean()), float(np.mean(null)), float(np.quantile(null, 0.95)))

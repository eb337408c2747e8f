"""What is shaped along: calming less distress, and random directions for twins.

They come from the study's own stories. What evaluates an arm comes from another writer's, so that no probe that
evaluates was in a loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from affectlens.probing.control_vectors import isotropic


def contrast(
    units: Float[np.ndarray, "concepts d_model"], concepts: Sequence[str], calming: str, distress: str
) -> Float[np.ndarray, "d_model"]:
    """The axis of set-points: calming less distress, at norm 1."""
    difference = units[list(concepts).index(calming)] - units[list(concepts).index(distress)]
    return (difference / np.linalg.norm(difference)).astype(np.float32)


def random_axis(
    units: Float[np.ndarray, "concepts d_model"], generator: np.random.Generator
) -> Float[np.ndarray, "d_model"]:
    """A unit vector that points anywhere but where concepts do: what a twin is shaped along."""
    basis, sizes, _ = np.linalg.svd(units.T.astype(np.float64), full_matrices=False)
    basis = basis[:, sizes > 1e-6 * sizes[0]]
    drawn = isotropic(1, units.shape[1], generator)[0]
    drawn = drawn - basis @ (basis.T @ drawn)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)

"""Steering conditions: which vector is added to the residual stream, from which family, how strongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Family = Literal[
    "none",
    "concept",
    "direction",
    "feature",
    "features",
    "isotropic",
    "covariance",
    "permuted",
    "random_feature",
    "shuffled_direction",
    "shuffled_feature",
]
"""``none`` is the model as it is; ``concept`` a studied concept's vector of the sort that an experiment steers by."""
STUDIED: tuple[Family, ...] = ("direction", "feature", "features")
"""A concept's direction, its best SAE feature, its set of best features."""
RANDOM: tuple[Family, ...] = ("isotropic", "covariance", "permuted")
"""Random vectors that have nothing to do with features, in the order in which they are taken in turn."""


@dataclass(frozen=True)
class Condition:
    """What is added to the residual stream.

    Attributes:
        vector: the concept, or the number of the control within its family; empty without steering.
        family: what sort of vector it is.
        strength: steering coefficient in units of the mean residual norm; 0 without steering.
    """

    vector: str = ""
    family: Family = "none"
    strength: float = 0.0


def grid(vectors: Sequence[tuple[str, Family]], strengths: Sequence[float]) -> tuple[Condition, ...]:
    """Every vector, given as (vector, family), at every strength; strengths change fastest."""
    return tuple(Condition(vector, family, strength) for vector, family in vectors for strength in strengths)

"""Steering conditions: which vector is added to the residual stream, from which family, how strongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from affectlens.interventions.config import CausalConfig

Family = Literal[
    "none",
    "concept",
    "direction",
    "feature",
    "features",
    "isotropic",
    "covariance",
    "permuted",
    "wrong_emotion",
    "random_feature",
    "shuffled_direction",
    "shuffled_feature",
]
"""``none`` is the model as it is; ``concept`` a studied concept's vector of the sort that an experiment steers by.

``wrong_emotion`` is that of another concept, of which nothing is claimed. ``random_feature`` are decoder rows of
features that fire as often as the studied ones; ``shuffled_direction`` and ``shuffled_feature`` are built as directions
and found as features are, for labels shuffled within topics."""
STUDIED: tuple[Family, ...] = ("direction", "feature", "features")
"""A concept's direction, its best SAE feature, its set of best features."""
RANDOM: tuple[Family, ...] = ("isotropic", "covariance", "permuted")
"""Random vectors that have nothing to do with features, in the order in which they are taken in turn."""
CONTROLS: Mapping[Family, tuple[Family, ...]] = {
    "direction": (*RANDOM, "shuffled_direction"),
    "feature": (*RANDOM, "random_feature", "shuffled_feature"),
    "features": (*RANDOM, "random_feature", "shuffled_feature"),
}
"""What each family of studied vectors is held against, besides the vectors of the wrong emotions."""


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


def studied_families(feature_set: int) -> tuple[Family, ...]:
    """What is studied of each concept; sets of features only when they have a size."""
    return STUDIED if feature_set else STUDIED[:2]


def injected_vectors(config: CausalConfig, concepts: Sequence[str]) -> list[tuple[str, Family]]:
    """Every injected vector as (name, family): each studied family once a concept, then the controls by number.

    Known without the vectors themselves, because the status of a study asks for parts and should answer at once.
    """
    vectors: list[tuple[str, Family]] = []
    for family in studied_families(config.feature_set):
        vectors.extend((concept, family) for concept in concepts)
    sizes: dict[Family, int] = dict.fromkeys((*RANDOM, "random_feature"), config.controls)
    shuffled: tuple[Family, ...] = ("shuffled_direction", "shuffled_feature")
    sizes |= dict.fromkeys(shuffled, config.shuffled_controls)
    for family, size in sizes.items():
        vectors.extend((str(number), family) for number in range(size))
    return vectors

"""The kinds of vectors that a causal study injects, and their order: what is studied, then what it is held against."""

from __future__ import annotations

STUDIED = ("direction", "feature", "features")
"""A concept's direction, its best SAE feature, its set of best features."""
CONTROLS = ("isotropic", "covariance", "permuted", "random_feature")
"""Families of random vectors of the same norm; the last is for features only."""


def studied_kinds(feature_set: int) -> tuple[str, ...]:
    """What is studied of each concept; sets of features only when they have a size."""
    return STUDIED if feature_set else STUDIED[:2]


def injected_kinds(feature_set: int, concepts: int, families: int) -> list[str]:
    """The kind of every injected vector: each studied kind once a concept, then ``families`` of each control."""
    studied = [kind for kind in studied_kinds(feature_set) for _ in range(concepts)]
    return studied + [kind for kind in CONTROLS for _ in range(families)]

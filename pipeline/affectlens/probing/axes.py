"""What is left of a concept's representation beyond valence and arousal.

A single pleasant-unpleasant axis tells happy from sad stories without representing either; figures that say something
about a concept have to hold against its neighbours in affect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

from affectlens.probing import detection, methods
from affectlens.probing.methods import Linear

AXES = ("valence", "arousal")
LEAST_RATED = 4


def rated(concepts: Sequence[str], ratings: Mapping[str, Mapping[str, float]]) -> Float[np.ndarray, "concepts axes"]:
    """Standardised ratings, NaN for a concept without any."""
    values = np.array([[ratings.get(concept, {}).get(axis, np.nan) for axis in AXES] for concept in concepts])
    known = np.isfinite(values).all(axis=1)
    spread = values[known].std(axis=0) if known.any() else np.ones(len(AXES))
    centre = values[known].mean(axis=0) if known.any() else np.zeros(len(AXES))
    return (values - centre) / np.where(spread > 0, spread, 1)


def slopes(
    weights: Float[np.ndarray, "concepts d_model"], ratings: Float[np.ndarray, "concepts axes"]
) -> Float[np.ndarray, "axes d_model"] | None:
    """How directions change with each rating, the others held: least squares over rated concepts.

    None where fewer than four concepts are rated.
    """
    known = np.isfinite(ratings).all(axis=1)
    if known.sum() < LEAST_RATED:
        return None
    weights = weights.astype(np.float64)
    return np.linalg.lstsq(ratings[known], weights[known] - weights[known].mean(axis=0), rcond=None)[0]


def remainder(
    linear: Linear, ratings: Float[np.ndarray, "concepts axes"]
) -> tuple[Linear, Float[np.ndarray, " concepts"]]:
    """Directions without the plane in which they follow valence and arousal.

    The plane is what least squares finds between the ratings and the directions, over rated concepts.

    Returns:
        The readout without the plane, and the share of each direction's squared norm that is left.
    """
    weights = linear.weights.astype(np.float64)
    found = slopes(weights, ratings)
    if found is None:
        return linear, np.ones(len(weights))
    plane = np.linalg.qr(found.T)[0].T
    left = methods.without(weights, plane)
    return Linear(left, linear.centre), (left**2).sum(axis=1) / np.maximum((weights**2).sum(axis=1), 1e-30)


def near_areas(
    scores: Float[np.ndarray, "docs concepts"],
    labels: Bool[np.ndarray, "docs concepts"],
    topics: Shaped[np.ndarray, " docs"],
    ratings: Float[np.ndarray, "concepts axes"],
    neighbours: int,
) -> Float[np.ndarray, " concepts"]:
    """AUROC within topics of each concept's stories against those of the concepts nearest in valence and arousal."""
    areas = np.full(labels.shape[1], np.nan)
    for index, mine in enumerate(ratings):
        distance = np.linalg.norm(ratings - mine, axis=1)
        distance[index] = np.inf
        near = np.argsort(np.where(np.isnan(distance), np.inf, distance), kind="stable")[:neighbours]
        if not np.isfinite(distance[near]).all():
            continue
        rows = labels[:, near].any(axis=1) | labels[:, index]
        cells = detection.within_topics(scores[rows][:, [index]], labels[rows][:, [index]], topics[rows])
        if np.isfinite(cells).any():
            areas[index] = float(np.nanmean(cells))
    return areas

"""Axes on which arms are read, from means of stories by concept: distress less calm, each of both, valence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from affectlens.probing.axes import rated, slopes
from affectlens.probing.control_vectors import unit_rows

DISTRESS, VALENCE = "distress less calm", "valence"


@dataclass(frozen=True)
class Axes:
    """Unit directions at one layer.

    Attributes:
        names: of the rows: distress less calm, distress, calm and, where enough concepts are rated, valence.
        weights: unit vectors.
        centre: what is taken from an activation before it is read: the mean over concepts.
    """

    names: tuple[str, ...]
    weights: Float[np.ndarray, "axes d_model"]
    centre: Float[np.ndarray, " d_model"]

    def read(self, states: Float[np.ndarray, "*rows d_model"], axis: str) -> Float[np.ndarray, "*rows"]:
        """Centred projections; NaN where the state is."""
        return (np.asarray(states, np.float64) - self.centre) @ self.weights[self.names.index(axis)]

    def moved(self, base: Axes) -> Axes:
        """These directions with the base model's centre.

        An arm that shifts all texts alike shifts its own centre with them; held against that, it would seem to have
        shifted nothing.
        """
        return Axes(self.names, self.weights, base.centre)

    def cosines(self, other: Axes) -> dict[str, float]:
        """Between directions of one name."""
        return {name: float(a @ b) for name, a, b in zip(self.names, self.weights, other.weights, strict=True)}


def axes_of(
    means: Float[np.ndarray, "concepts d_model"],
    concepts: Sequence[str],
    distress: str,
    calming: str,
    ratings: Mapping[str, Mapping[str, float]],
) -> Axes:
    """Differences of means at one layer.

    Args:
        means: of each concept's stories.
        concepts: their names.
        distress: the concept that is to become less.
        calming: the one that is to become more.
        ratings: valence and arousal by concept.

    Raises:
        ValueError: there are no stories of one of the two concepts.
    """
    for concept in (distress, calming):
        if concept not in concepts:
            raise ValueError(f"there are no stories of `{concept}` among those that give the axes")
    values = means.astype(np.float64)
    centre = values.mean(axis=0)
    away, towards = (values[concepts.index(each)] for each in (distress, calming))
    names, rows = [DISTRESS, distress, calming], [away - towards, away - centre, towards - centre]
    found = slopes(values - centre, rated(concepts, ratings))
    if found is not None:
        names.append(VALENCE)
        rows.append(found[0])
    return Axes(tuple(names), unit_rows(np.stack(rows)), centre)

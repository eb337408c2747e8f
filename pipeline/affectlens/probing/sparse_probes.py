"""k-sparse probes: how well a concept is read from its k most useful features, and how many it is split over.

With one feature a probe asks for *the* feature of a concept; the step to more says what a single one misses (Gurnee et
al. 2023, "Finding Neurons in a Haystack", on k-sparse probing; features are taken by matching pursuit rather than one
by one, so that the second feature is what adds most to the first and not its copy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from affectlens.probing import decomposition as pursuit
from affectlens.probing import detection

TOLERANCE = 0.01
"""How far below its best a concept's validation AUROC may lie for fewer features to do."""


@dataclass(frozen=True)
class Probes:
    """Least-squares probes of every concept for a rising number of features.

    Attributes:
        sizes: numbers of features.
        chosen: features in the order taken, -1 where there were no more.
        scores: per size the probe's scores of the documents asked for.
    """

    sizes: tuple[int, ...]
    chosen: Int[np.ndarray, "concepts steps"]
    weights: Float[np.ndarray, "sizes concepts steps"]
    centre: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]

    def scores(self, codes: Float[np.ndarray, "docs features"]) -> Float[np.ndarray, "sizes docs concepts"]:
        """Every concept's score of each document, for each size."""
        found = np.zeros((len(self.sizes), len(codes), len(self.chosen)))
        for concept, features in enumerate(self.chosen):
            taken = features >= 0
            columns = (codes[:, features[taken]] - self.centre[features[taken]]) / self.scale[features[taken]]
            found[:, :, concept] = self.weights[:, concept, taken] @ columns.T
        return found

    def split_over(
        self, codes: Float[np.ndarray, "docs features"], labels: Bool[np.ndarray, "docs concepts"]
    ) -> Int[np.ndarray, " concepts"]:
        """The fewest features whose AUROC on these documents is within ``TOLERANCE`` of the best size's.

        0 where no size does better than chance.
        """
        areas = np.stack([detection.own_areas(scores, labels) for scores in self.scores(codes)])
        areas = np.where(np.isnan(areas), 0.5, areas)
        enough = areas >= areas.max(axis=0) - TOLERANCE
        found = np.array(self.sizes)[enough.argmax(axis=0)]
        return np.where(areas.max(axis=0) > 0.5 + TOLERANCE, found, 0)


def fit(
    codes: Float[np.ndarray, "docs features"], labels: Bool[np.ndarray, "docs concepts"], sizes: Sequence[int]
) -> Probes:
    """Probes from training documents.

    Args:
        codes: pooled feature activations.
        labels: which concept each document is of.
        sizes: numbers of features, ascending.
    """
    codes = codes.astype(np.float64)
    centre, scale = codes.mean(axis=0), codes.std(axis=0)
    live = scale > 1e-9 * np.abs(codes).max(initial=1e-30)
    scale = np.where(live, scale, 1.0)
    columns = np.where(live, (codes - centre) / scale, 0) / np.sqrt(len(codes))
    targets = labels - labels.mean(axis=0)
    path = pursuit.pursue(targets, columns, max(sizes))
    weights = np.zeros((len(sizes), *path.chosen.shape))
    for concept, features in enumerate(path.chosen):
        for place, size in enumerate(sizes):
            taken = features[:size][features[:size] >= 0]
            if len(taken):
                fitted = np.linalg.lstsq(columns[:, taken], targets[:, concept], rcond=None)[0]
                weights[place, concept, : len(taken)] = fitted
    return Probes(tuple(sizes), path.chosen, weights, centre, scale)

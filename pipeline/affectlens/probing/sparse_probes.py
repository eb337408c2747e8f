"""k-sparse probes: how well a concept is read from its k most telling features, and how many it is split over.

With one feature a probe asks for *the* feature of a concept; the step to more says what a single one misses (Gurnee et
al. 2023, "Finding Neurons in a Haystack", on k-sparse probing). Features are ordered by their standardised mean
difference and fitted by ridge regression; least squares without a penalty overfits the few stories of a concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens.probing import detection

PENALTIES = (0.003, 0.03, 0.3, 3.0)
"""Ridge penalties tried, in units of the variance of a standardised feature."""
TOLERANCE = 0.01
"""How far below its best a concept's AUROC may lie for fewer features to do."""


@dataclass(frozen=True)
class Probes:
    """Ridge probes of every concept for a rising number of features.

    Attributes:
        sizes: numbers of features.
        chosen: features in the order taken.
        weights: per size, in units of score per unit of activation.
        penalties: chosen for each size.
    """

    sizes: tuple[int, ...]
    chosen: Int[np.ndarray, "concepts steps"]
    weights: Float[np.ndarray, "sizes concepts steps"]
    penalties: tuple[float, ...]

    def scores(self, codes: Float[np.ndarray, "docs features"]) -> Float[np.ndarray, "sizes docs concepts"]:
        """Every concept's score of each document, for each size."""
        return np.einsum("dck,sck->sdc", codes[:, self.chosen], self.weights, optimize=True)


def fit(
    codes: Float[np.ndarray, "docs features"],
    labels: Bool[np.ndarray, "docs concepts"],
    topics: Shaped[np.ndarray, " docs"],
    sizes: Sequence[int],
) -> Probes:
    """Probes from training documents, the penalty of each size chosen by leaving training topics out in turn.

    Args:
        codes: pooled feature activations.
        labels: the concept of each document, exactly one.
        topics: of each document.
        sizes: numbers of features, ascending.
    """
    steps = min(max(sizes), codes.shape[1])
    centre, scale = codes.mean(axis=0, dtype=np.float64), codes.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-9 * np.abs(codes).max(initial=1e-30), scale, np.inf)
    # Features that rise with the concept; those that fall tell other concepts.
    means = labels.T.astype(np.float64) @ codes / np.maximum(labels.sum(axis=0), 1)[:, None]
    chosen = np.argsort(-(means - centre) / scale, axis=1, kind="stable")[:, :steps]
    columns = ((codes - centre) / scale)[:, chosen]
    targets, target = labels - labels.mean(axis=0), labels.argmax(axis=1)
    members = [np.flatnonzero(topics == name) for name in np.unique(topics)]
    # Sums over topics: leaving one out is then a subtraction.
    grams = np.stack([np.einsum("dck,dcl->ckl", columns[rows], columns[rows], optimize=True) for rows in members])
    products = np.stack([np.einsum("dck,dc->ck", columns[rows], targets[rows], optimize=True) for rows in members])
    gram, product = grams.sum(axis=0), products.sum(axis=0)

    def solve(gram: np.ndarray, product: np.ndarray, size: int, penalty: float, docs: int) -> np.ndarray:
        inner = gram[:, :size, :size] + penalty * docs * np.eye(size)
        return np.linalg.solve(inner, product[:, :size, None])[..., 0]

    weights, penalties = np.zeros((len(sizes), *chosen.shape)), []
    for place, size in enumerate(sizes):
        best, size = PENALTIES[0], min(size, steps)
        if len(members) > 1 and size > 1:  # the scale of a single weight changes no ranking
            found = []
            for penalty in PENALTIES:
                read = []
                for index, rows in enumerate(members):
                    rest = len(codes) - len(rows)
                    left = solve(gram - grams[index], product - products[index], size, penalty, rest)
                    scores = np.einsum("dck,ck->dc", columns[rows][:, :, :size], left, optimize=True)
                    read.append(detection.mean_area(scores, target[rows], topics[rows]))
                found.append(float(np.nanmean(read)))
            best = PENALTIES[int(np.argmax(found))]
        penalties.append(best)
        weights[place, :, :size] = solve(gram, product, size, best, len(codes))
    return Probes(tuple(sizes), chosen, weights / scale[chosen], tuple(penalties))


def split_over(areas: Float[np.ndarray, "sizes concepts"], sizes: Sequence[int]) -> Int[np.ndarray, " concepts"]:
    """The fewest features whose AUROC on left-out topics is within ``TOLERANCE`` of the best size's.

    0 where no size does better than chance.
    """
    areas = np.where(np.isnan(areas), 0.5, areas)
    enough = areas >= areas.max(axis=0) - TOLERANCE
    return np.where(areas.max(axis=0) > 0.5 + TOLERANCE, np.array(sizes)[enough.argmax(axis=0)], 0)

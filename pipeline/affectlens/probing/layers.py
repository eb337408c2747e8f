"""Which layer reads best, how good the best of several looks by chance, and how steady directions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from affectlens import stats
from affectlens.probing.control_vectors import unit_rows


@dataclass(frozen=True)
class LayerTest:
    """Mean AUROC of each layer against the best layer under permuted labels.

    Attributes:
        observed: per layer the mean over concepts.
        null: per permutation the largest of the layers' means.
        p: per layer, corrected for having looked at all of them.
        floor: the smallest p there can be.
    """

    observed: Mapping[int, float]
    null: Float[np.ndarray, " permutations"]
    p: Mapping[int, float]
    floor: float

    @property
    def best(self) -> int:
        """The layer with the largest mean; the lowest of equals."""
        return max(self.observed, key=lambda layer: (self.observed[layer], -layer))


def layer_test(
    scores: Mapping[int, Float[np.ndarray, "docs concepts"]],
    labels: Bool[np.ndarray, "docs concepts"],
    topics: Shaped[np.ndarray, " docs"],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> LayerTest:
    """Test every layer's mean AUROC with the largest over layers (Westfall & Young 1993, max-statistic).

    Args:
        scores: per layer, each concept's own readout.
        labels: one concept a document.
        topics: documents change labels within these.
        permutations: how many.
        rng: of the permutations.
    """
    from scipy.stats import rankdata

    positives = labels.sum(axis=0)
    defined = (positives > 0) & (positives < len(labels))
    pairs = np.where(defined, positives * (len(labels) - positives), 1)
    weight = np.where(defined, 1 / pairs, 0.0) / max(1, int(defined.sum()))
    offset = float((weight * positives * (positives + 1) / 2).sum())
    ranks = np.stack([rankdata(values, axis=0) * weight for values in scores.values()])
    mine, rows = labels.argmax(axis=1), np.arange(len(labels))
    observed = ranks[:, rows, mine].sum(axis=1) - offset
    moved = mine[stats.permuted_within(topics, permutations, rng)]
    null = np.array([ranks[:, rows, order].sum(axis=1).max() for order in moved]) - offset
    p, floor = stats.permutation_p(observed, np.repeat(null[:, None], len(observed), axis=1))
    layers = list(scores)
    return LayerTest(
        dict(zip(layers, observed.tolist(), strict=True)),
        null,
        dict(zip(layers, np.asarray(p).tolist(), strict=True)),
        floor,
    )


@dataclass(frozen=True)
class Stability:
    """How much directions depend on the topics they were built from, as cosines.

    Attributes:
        bootstrap: per concept, mean cosine of a direction from topics drawn with replacement with that from all.
        low: per concept, the 5% quantile of the same.
        halves: per concept, mean cosine of the directions from two disjoint halves of the topics: shares no story, so
            it is the stricter figure.
    """

    bootstrap: Float[np.ndarray, " concepts"]
    low: Float[np.ndarray, " concepts"]
    halves: Float[np.ndarray, " concepts"]


def stability(
    pooled: Float[np.ndarray, "docs d_model"],
    labels: Bool[np.ndarray, "docs concepts"],
    topics: Shaped[np.ndarray, " docs"],
    neutral: Float[np.ndarray, "components d_model"],
    *,
    draws: int,
    rng: np.random.Generator,
) -> Stability:
    """Rebuild difference-of-means directions from resampled topics (cluster bootstrap: Field & Welsh 2007).

    Args:
        pooled: training documents.
        labels: which concept each is of.
        topics: the unit that is drawn.
        neutral: components projected out of every direction, the same in all draws.
        draws: resamples, and random halvings.
        rng: of both.

    Returns:
        NaN where there is one topic only, or a draw leaves a concept without a story.
    """
    names = np.unique(topics)
    sums = np.stack([labels[topics == name].T.astype(float) @ pooled[topics == name] for name in names])
    counts = np.stack([labels[topics == name].sum(axis=0) for name in names]).astype(float)

    def directions(weights: Float[np.ndarray, " topics"]) -> Float[np.ndarray, "concepts d_model"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.tensordot(weights, sums, 1) / (weights @ counts)[:, None]
        vectors = means - np.nanmean(means, axis=0)
        return unit_rows(vectors - (vectors @ neutral.T) @ neutral)

    if len(names) < 2:
        return Stability(*np.full((3, labels.shape[1]), np.nan))
    whole, drawn, halved = directions(np.ones(len(names))), [], []
    for _ in range(draws):
        weights = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)).astype(float)
        drawn.append((directions(weights) * whole).sum(axis=1))
        half = np.isin(np.arange(len(names)), rng.permutation(len(names))[: len(names) // 2]).astype(float)
        halved.append((directions(half) * directions(1 - half)).sum(axis=1))
    with np.errstate(all="ignore"):
        cosines = np.array(drawn)
        return Stability(_mean(cosines), np.nanquantile(cosines, 0.05, axis=0), _mean(np.array(halved)))


def _mean(values: Float[np.ndarray, "draws concepts"]) -> Float[np.ndarray, " concepts"]:
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)

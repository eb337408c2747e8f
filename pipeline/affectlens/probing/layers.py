"""Which layer reads best, how good the best of several looks by chance, and how steady directions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import csr_array

from affectlens import stats
from affectlens.corpus.documents import Corpus, Fold
from affectlens.probing import detection
from affectlens.probing.control_vectors import unit_rows


@dataclass(frozen=True)
class Stories:
    """The stories of one layer, in the form in which directions are rebuilt thousands of times.

    Attributes:
        values: activations with the neutral components projected out; scores along a direction are then the same
            whether the components are taken from the direction or from the activation.
        target: the concept of each story.
        topics: the topic of each.
        folds: positions among the stories.
        concepts: how many there are.
        subtract_mean: whether the mean over concepts is taken from each concept's mean.
    """

    values: Float[np.ndarray, "stories d_model"]
    target: Int[np.ndarray, " stories"]
    topics: Shaped[np.ndarray, " stories"]
    folds: Sequence[Fold]
    concepts: int
    subtract_mean: bool = True

    @classmethod
    def of(
        cls,
        pooled: Float[np.ndarray, "docs d_model"],
        corpus: Corpus,
        neutral: Float[np.ndarray, "components d_model"],
        *,
        subtract_mean: bool,
    ) -> Stories:
        """The stories of a corpus; documents of no concept are left out."""
        rows = np.flatnonzero([bool(document.emotion) for document in corpus.documents])
        position = {int(row): index for index, row in enumerate(rows)}
        folds = [
            Fold(tuple(position[row] for row in fold.train), tuple(position[row] for row in fold.test))
            for fold in corpus.folds
        ]
        values = pooled[rows] - (pooled[rows] @ neutral.T) @ neutral
        target = corpus.labels(rows.tolist()).argmax(axis=1)
        topics = corpus.topics(rows.tolist())
        return cls(values.astype(np.float32), target, topics, folds, len(corpus.emotions), subtract_mean)

    def means(self, target: Int[np.ndarray, " train"]) -> csr_array:
        """What takes the mean over each concept's stories: shape ``concepts train``, zero but for one entry a story."""
        counts = np.bincount(target, minlength=self.concepts)
        shares = np.repeat(1 / np.maximum(counts, 1), counts)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return csr_array((shares, np.argsort(target, kind="stable"), starts), shape=(self.concepts, len(target)))

    def directions(self, rows: Int[np.ndarray, " train"]) -> Float[np.ndarray, "concepts d_model"]:
        """Each concept's direction from these stories."""
        found = self.means(self.target[rows]) @ self.values[rows]
        return found - found.mean(axis=0) if self.subtract_mean else found


def rebuilt_null(
    stories: Stories, *, permutations: int, rng: np.random.Generator
) -> Float[np.ndarray, " permutations"]:
    """Mean AUROC within held-out topics when labels are permuted within topics and directions are built anew.

    Scores are means of inner products of stories, which are computed once: a permutation only adds up other ones.

    Args:
        stories: of the layer.
        permutations: how many.
        rng: of the permutations; the same for every layer, so that the maximum over layers can be taken.
    """
    values = stories.values.astype(np.float64)  # so that no rounding turns the order of two scores
    gram = values @ values.T
    # By fold: training stories, tested stories, and their inner products.
    folds = [(np.asarray(fold.train), np.asarray(fold.test)) for fold in stories.folds]
    products = [np.ascontiguousarray(gram[np.ix_(train, test)]) for train, test in folds]
    tested = np.concatenate([test for _, test in folds])
    null = np.empty(permutations)
    scores = np.empty((len(gram), stories.concepts))
    for draw, order in enumerate(stats.permuted_within(stories.topics, permutations, rng)):
        target = stories.target[order]
        for (train, test), inner in zip(folds, products, strict=True):
            found = stories.means(target[train]) @ inner
            scores[test] = (found - found.mean(axis=0) if stories.subtract_mean else found).T
        null[draw] = detection.mean_area(scores[tested], target[tested], stories.topics[tested])
    return null


def read_null(
    stories: Stories, vectors: Float[np.ndarray, "concepts d_model"], *, permutations: int, rng: np.random.Generator
) -> Float[np.ndarray, " permutations"]:
    """The same for directions that no story here built: only the labels of what is read are permuted."""
    tested = np.concatenate([np.asarray(fold.test) for fold in stories.folds])
    scores, topics = (stories.values @ vectors.T)[tested], stories.topics[tested]
    orders = stats.permuted_within(topics, permutations, rng)
    return np.array([detection.mean_area(scores, stories.target[tested][order], topics) for order in orders])


def inner_areas(stories: Stories) -> Float[np.ndarray, " folds"]:
    """What each fold may choose a layer by: AUROC within each training topic, built on the other training topics."""
    names = np.unique(stories.topics)
    rows_of = {name: np.flatnonzero(stories.topics == name) for name in names}

    @cache
    def directions(left_out: frozenset[str]) -> Float[np.ndarray, "concepts d_model"]:
        return stories.directions(np.concatenate([rows for name, rows in rows_of.items() if name not in left_out]))

    areas = np.full(len(stories.folds), np.nan)
    for index, fold in enumerate(stories.folds):
        tested = set(stories.topics[np.asarray(fold.test)])
        training = [name for name in names if name not in tested]
        if len(training) < 2:
            continue
        found = []
        for name in training:
            rows = rows_of[name]
            scores = stories.values[rows] @ directions(frozenset(tested | {name})).T
            found.append(detection.mean_area(scores, stories.target[rows], stories.topics[rows]))
        areas[index] = float(np.nanmean(found))
    return areas


@dataclass(frozen=True)
class LayerTest:
    """Mean AUROC of each layer against the best layer under permuted labels.

    Attributes:
        p: per layer, corrected for having looked at all of them (Westfall & Young 1993, max-statistic).
        null_95: 95% quantile of the best of all layers under permuted labels.
        floor: the smallest p there can be.
    """

    p: Mapping[int, float]
    null_95: float
    floor: float


def layer_test(observed: Mapping[int, float], null: Mapping[int, Float[np.ndarray, " permutations"]]) -> LayerTest:
    """Test every layer's mean AUROC with the largest over layers under the same permutations.

    Args:
        observed: mean AUROC per layer.
        null: the same under each permutation of the labels.
    """
    largest = np.max(list(null.values()), axis=0)
    p, floor = stats.permutation_p(np.array(list(observed.values()))[:, None], largest[:, None])
    by_layer = dict(zip(observed, np.asarray(p)[:, 0].tolist(), strict=True))
    return LayerTest(by_layer, float(np.quantile(largest, 0.95)), floor)


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

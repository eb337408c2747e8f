"""From feature activations to the features of concepts: chosen on some topics, read on others, shared or one to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens import stats
from affectlens.corpus.documents import Corpus
from affectlens.probing import detection


@dataclass(frozen=True)
class Search:
    """The best single column for each concept (a feature, a direction, a coordinate), chosen in every fold.

    Attributes:
        folds: the column chosen on each fold's training topics.
        building: the one chosen on all topics but the ablated ones: what steers.
        scores: every tested document by the column that was chosen without its topic; NaN for the others.
    """

    folds: Int[np.ndarray, "folds concepts"]
    building: Int[np.ndarray, " concepts"]
    scores: Float[np.ndarray, "docs concepts"]


def search(columns: Callable[[Sequence[int]], Any], corpus: Corpus) -> Search:
    """Choose columns by AUROC within topics, and read the topics that had no part in the choice.

    Args:
        columns: from document indices to their matrix ``[docs, columns]``, or what gives its columns.
        corpus: concepts, topics and folds.
    """
    rows = sorted({row for fold in corpus.folds for row in (*fold.train, *fold.test)})
    labels, topics = corpus.labels(rows), corpus.topics(rows)
    names = np.unique(topics)
    building = set(corpus.topics(corpus.indices("train", "validation")))
    kept = [set(corpus.topics(fold.train)) for fold in corpus.folds] + [building]
    mask = np.array([[name in each for name in names] for each in kept])
    chosen = stats.best_features(columns(rows), labels, topics, mask)
    by_fold = dict(zip(corpus.folds, chosen, strict=False))
    scores = detection.held_out(
        corpus.folds,
        len(corpus.documents),
        len(corpus.emotions),
        lambda fold: taken(columns(fold.test), by_fold[fold]),
    )
    return Search(chosen[:-1], chosen[-1], scores)


def taken(columns: Any, chosen: Int[np.ndarray, " concepts"]) -> Float[np.ndarray, "docs concepts"]:
    """Each concept's own column; zeros, which tell nothing, where it has none."""
    return np.where(chosen >= 0, columns[:, np.maximum(chosen, 0)], 0.0)


@dataclass(frozen=True)
class Choice:
    """The best feature of each concept, and how surprising it is that the best is this good.

    Attributes:
        feature: with the largest AUROC within topics.
        area: that AUROC.
        p: against the best feature under labels permuted within topics, so corrected for the search over features; 1
            where it is not defined.
        floor: the smallest p there can be.
    """

    feature: Int[np.ndarray, " concepts"]
    area: Float[np.ndarray, " concepts"]
    p: Float[np.ndarray, " concepts"]
    floor: float

    @property
    def adjusted(self) -> Float[np.ndarray, " concepts"]:
        """p corrected for the number of concepts (Benjamini & Hochberg 1995)."""
        return stats.benjamini_hochberg(self.p)


def choose(
    codes: Any,
    labels: Bool[np.ndarray, "docs concepts"],
    topics: Shaped[np.ndarray, " docs"],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> Choice:
    """Match every concept with a feature and test the match.

    Args:
        codes: pooled feature activations ``[docs, features]``, or what gives their columns.
        labels: which concept each document is of.
        topics: documents are compared, and labels permuted, within these.
        permutations: how many.
        rng: of the permutations.
    """
    ranked = stats.rank_features(codes, topics)
    test = stats.max_permutation_test(ranked, labels, topics, permutations=permutations, rng=rng)
    p = np.where(np.isfinite(test.p), test.p, 1.0)
    return Choice(test.feature, test.observed, p, test.floor)


def assign(areas: Float[np.ndarray, "features concepts"]) -> Int[np.ndarray, " concepts"]:
    """One feature for each concept and no feature twice, so that the sum of AUROCs is largest (Kuhn 1955).

    -1 where there are fewer features than concepts.
    """
    from scipy.optimize import linear_sum_assignment

    features, concepts = linear_sum_assignment(np.where(np.isnan(areas), 0.5, areas), maximize=True)
    assigned = np.full(areas.shape[1], -1)
    assigned[concepts] = features
    return assigned


def topic_alone(
    labels: Bool[np.ndarray, "docs concepts"], topics: Shaped[np.ndarray, " docs"]
) -> Float[np.ndarray, " concepts"]:
    """How well a concept is told by knowing the topic and nothing of the text: AUROC of its share in the topic.

    0.5 where concepts and topics are crossed. Far above it, whatever tells the topics apart also tells the concept.
    """
    names, code = np.unique(topics, return_inverse=True)
    counts = np.zeros((len(names), labels.shape[1]))
    np.add.at(counts, code, labels)
    share = counts / np.bincount(code)[:, None]
    return detection.own_areas(share[code], labels)


def own(areas: Float[np.ndarray, "features concepts"], chosen: Int[np.ndarray, " concepts"]) -> list[float]:
    """The figure of each concept's own feature; NaN where it has none."""
    return [float(areas[feature, index]) if feature >= 0 else float("nan") for index, feature in enumerate(chosen)]

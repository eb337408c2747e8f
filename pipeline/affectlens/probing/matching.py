"""From feature activations to the features of concepts: chosen on some topics, tested, shared or one to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens import stats
from affectlens.probing import detection

CANDIDATES = 64
"""Features per concept that a k-sparse probe may choose from: those that tell it best on the training topics."""


@dataclass(frozen=True)
class Choice:
    """The best feature of each concept, and how surprising it is that the best is this good.

    Attributes:
        feature: with the largest AUROC.
        area: that AUROC.
        p: against the best feature under labels permuted within topics, so corrected for the search over features; 1
            where it is not defined.
        floor: the smallest p there can be.
    """

    feature: Int[np.ndarray, " concepts"]
    area: Float[np.ndarray, " concepts"]
    p: Float[np.ndarray, " concepts"]
    floor: float


@dataclass(frozen=True)
class Finding:
    """Which matches hold: found on the topics of the choice, and found again on topics never seen.

    Attributes:
        p_test: of the chosen feature on test topics; there was no search there.
        p: the larger of the p of the choice and ``p_test``: that *either* is chance (Berger 1982, intersection-union).
        adjusted: the same with the p of the choice corrected for the number of concepts (Benjamini & Hochberg 1995).
            ``p_test`` stays as it is: it can only take away from what was found.
    """

    p_test: Float[np.ndarray, " concepts"]
    p: Float[np.ndarray, " concepts"]
    adjusted: Float[np.ndarray, " concepts"]


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
        topics: labels are permuted within these.
        permutations: how many.
        rng: of the permutations.
    """
    test = stats.max_permutation_test(stats.rank_features(codes), labels, topics, permutations=permutations, rng=rng)
    p = np.where(np.isfinite(test.p), test.p, 1.0)
    return Choice(test.feature, test.observed, p, test.floor)


def confirm(
    choice: Choice,
    scores: Float[np.ndarray, "docs concepts"],
    labels: Bool[np.ndarray, "docs concepts"],
    topics: Shaped[np.ndarray, " docs"],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> Finding:
    """Look at the chosen features again, on topics that had no part in the choice.

    Args:
        choice: what was chosen elsewhere.
        scores: each concept's feature on the test documents.
        labels: which concept each of them is of.
        topics: labels are permuted within these.
        permutations: how many.
        rng: of the permutations.
    """
    again = detection.own_p(scores, labels, topics, permutations=permutations, rng=rng)
    corrected = stats.benjamini_hochberg(choice.p)
    return Finding(again, np.maximum(choice.p, again), np.maximum(corrected, again))


def assign(areas: Float[np.ndarray, "features concepts"]) -> Int[np.ndarray, " concepts"]:
    """One feature for each concept and no feature twice, so that the sum of AUROCs is largest (Kuhn 1955).

    -1 where there are fewer features than concepts.
    """
    from scipy.optimize import linear_sum_assignment

    features, concepts = linear_sum_assignment(np.where(np.isnan(areas), 0.5, areas), maximize=True)
    found = np.full(areas.shape[1], -1)
    found[concepts] = features
    return found


def candidates(areas: Float[np.ndarray, "features concepts"]) -> Int[np.ndarray, " chosen"]:
    """The features that tell some concept best, in either direction, ascending."""
    far = np.abs(np.where(np.isnan(areas), 0.5, areas) - 0.5)
    count = min(CANDIDATES, len(far))
    return np.unique(np.argpartition(-far, count - 1, axis=0)[:count])


def topic_alone(
    labels: Bool[np.ndarray, "docs concepts"], topics: Shaped[np.ndarray, " docs"]
) -> Float[np.ndarray, " concepts"]:
    """How well a concept is told by knowing the topic and nothing of the text: AUROC of its share in the topic.

    0.5 where concepts and topics are crossed. Far above it, whatever tells the topics apart also tells the concept,
    and figures from the same topics are worth nothing.
    """
    names, code = np.unique(topics, return_inverse=True)
    counts = np.zeros((len(names), labels.shape[1]))
    np.add.at(counts, code, labels)
    share = counts / np.bincount(code)[:, None]
    return detection.own_areas(share[code], labels)


def own(areas: Float[np.ndarray, "features concepts"], chosen: Int[np.ndarray, " concepts"]) -> list[float]:
    """The figure of each concept's own feature; NaN where it has none."""
    return [float(areas[feature, index]) if feature >= 0 else float("nan") for index, feature in enumerate(chosen)]

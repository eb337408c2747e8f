"""How well readouts tell concepts apart on topics that built nothing, and by how much one readout beats another.

The figure is AUROC *within a topic*: of the stories of one topic, the share of pairs of a story of the concept and a
story of another one that the readout ranks rightly. What differs between topics can neither help nor blur it. Every
topic gives one number a concept. Intervals of means over concepts are Student's t over topics
(:func:`affectlens.stats.t_interval`), those of a single concept, which is often read almost without a fault, score
intervals over topics (:func:`affectlens.stats.share_over_groups`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens import stats
from affectlens.corpus.documents import Fold
from affectlens.stats import Estimate

ESTIMAND = "AUROC within a topic that had no part in building or choosing, mean over topics and concepts"
"""What every detection figure is."""
COMPARISONS = 15
"""Comparisons that the AUROC of one concept in one topic is worth at the least, fewer where there are fewer concepts:
calibrated in simulation (docs/statistics.md), where one comparison makes intervals near 1 needlessly wide."""


def held_out(
    folds: Sequence[Fold],
    documents: int,
    concepts: int,
    read: Callable[[Fold], Float[np.ndarray, "test concepts"]],
) -> Float[np.ndarray, "docs concepts"]:
    """Scores of every tested document by a readout that did not see its topic; NaN for the other documents.

    Args:
        folds: divisions of the documents.
        documents: of the corpus.
        concepts: columns.
        read: builds and chooses on a fold's training documents and scores its test documents, in their order.
    """
    scores = np.full((documents, concepts), np.nan)
    for fold in folds:
        scores[np.asarray(fold.test)] = read(fold)
    return scores


def own_areas(
    scores: Float[np.ndarray, "docs concepts"], labels: Bool[np.ndarray, "docs concepts"]
) -> Float[np.ndarray, " concepts"]:
    """AUROC of each concept's own readout; NaN for a concept without a positive or without a negative."""
    from scipy.stats import rankdata

    positives = labels.sum(axis=0)
    pairs = positives * (len(labels) - positives)
    sums = (rankdata(scores, axis=0) * labels).sum(axis=0) - positives * (positives + 1) / 2
    return np.where(pairs > 0, sums / np.where(pairs > 0, pairs, 1), np.nan)


def within_topics(
    scores: Float[np.ndarray, "docs concepts"],
    labels: Bool[np.ndarray, "docs concepts"],
    topics: Shaped[np.ndarray, " docs"],
) -> Float[np.ndarray, "concepts topics"]:
    """AUROC of each concept's own readout within each topic, topics in the order of their names."""
    return np.stack([own_areas(scores[topics == name], labels[topics == name]) for name in np.unique(topics)], axis=1)


def mean_area(
    scores: Float[np.ndarray, "docs concepts"], target: Int[np.ndarray, " docs"], topics: Shaped[np.ndarray, " docs"]
) -> float:
    """Mean over concepts and topics of AUROC within topics, fast: for documents of exactly one concept each.

    Args:
        scores: of the documents.
        target: the concept that each is of.
        topics: of each.

    Returns:
        NaN where no topic holds two concepts.
    """
    sums, counts = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for name in np.unique(topics):
        rows = topics == name
        mine, values = target[rows], scores[rows]
        other = mine[:, None] != mine
        beaten, own = values[:, mine], values[np.arange(len(mine)), mine]
        won = ((beaten < own) + 0.5 * (beaten == own)) * other
        share = won.sum(axis=0) / np.maximum(other.sum(axis=0), 1)
        stories = np.bincount(mine, minlength=len(sums))
        known = (stories > 0) & (stories < len(mine))
        sums += np.where(known, np.bincount(mine, weights=share, minlength=len(sums)) / np.maximum(stories, 1), 0)
        counts += known
    return float((sums[counts > 0] / counts[counts > 0]).mean()) if counts.any() else float("nan")


@dataclass(frozen=True)
class Detection:
    """How one method reads all concepts.

    Attributes:
        method: its name.
        cells: AUROC within each topic.
        mean: over concepts, with its interval over topics.
        concepts: each concept's mean over topics, with its interval.
        p: that each concept is read no better than one half; one-sided, not corrected.
        difference: of the mean from that of the first method, paired within concepts and topics; None for the first.
        better, worse: concepts that this method reads better, or worse, than the first.
    """

    method: str
    cells: Float[np.ndarray, "concepts topics"]
    mean: Estimate
    concepts: tuple[Estimate, ...]
    p: tuple[float, ...]
    difference: Estimate | None = None
    better: int = 0
    worse: int = 0


def describe(
    cells: Mapping[str, Float[np.ndarray, "concepts topics"]],
    *,
    cross_validated: bool,
    searched: Collection[str] = (),
) -> list[Detection]:
    """Every method with its difference from the first.

    Args:
        cells: under each method's name its AUROC within topics.
        cross_validated: whether every topic was the test once while the others built.
        searched: methods that search single columns for each concept; their intervals, and those of differences from
            them, take concepts as a sample as well (see :func:`affectlens.stats.t_interval`).
    """
    first, rows = next(iter(cells)), []
    for name, values in cells.items():
        mean = stats.t_interval(values, cross_validated=cross_validated, random_rows=name in searched)
        worth = max(1, min(COMPARISONS, len(values) - 1))
        concepts = tuple(stats.share_over_groups(row, trials=worth, cross_validated=cross_validated) for row in values)
        p = tuple(stats.t_above(row, 0.5, cross_validated=cross_validated) for row in values)
        if name == first:
            rows.append(Detection(name, values, mean, concepts, p))
            continue
        gaps = values - cells[first]
        random = name in searched or first in searched
        difference = stats.t_interval(gaps, cross_validated=cross_validated, random_rows=random)
        per_concept = np.nansum(gaps, axis=1)
        better, worse = int((per_concept > 1e-12).sum()), int((per_concept < -1e-12).sum())
        rows.append(Detection(name, values, mean, concepts, p, difference, better, worse))
    return rows

"""How well readouts tell concepts apart on documents never seen, and by how much one readout beats another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from affectlens import stats


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
    """AUROC of each concept's own readout within each topic: the cells that two readouts are compared in."""
    return np.stack([own_areas(scores[topics == name], labels[topics == name]) for name in np.unique(topics)], axis=1)


def own_p(
    scores: Float[np.ndarray, "docs concepts"],
    labels: Bool[np.ndarray, "docs concepts"],
    topics: Shaped[np.ndarray, " docs"],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, " concepts"]:
    """One-sided p of each concept's own readout, with labels permuted within topics; 1 where it is not defined.

    Args:
        scores: column c is the readout of concept c, chosen without these documents.
        labels: which concept each document is of.
        topics: documents change labels within these.
        permutations: how many; p is at least 1 / (permutations + 1).
        rng: of the permutations.
    """
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=0)
    null = np.array([(ranks * labels[order]).sum(axis=0) for order in stats.permuted_within(topics, permutations, rng)])
    p, _ = stats.permutation_p((ranks * labels).sum(axis=0), null)
    defined = labels.any(axis=0) & ~labels.all(axis=0)
    return np.where(defined, p, 1.0)


def describe(
    methods: Mapping[str, Float[np.ndarray, "docs concepts"]],
    labels: Bool[np.ndarray, "docs concepts"],
    topics: Shaped[np.ndarray, " docs"],
    concepts: Sequence[str],
    generator: Any,
) -> list[dict[str, Any]]:
    """One row a method: its AUROC, per concept and in the mean, and its difference from the first method.

    The difference is taken within each concept and topic, where both methods rank the same texts, and its interval
    draws concepts and topics anew (Owen 2007, "The pigeonhole bootstrap").

    Args:
        methods: under its name, each method's readout.
        labels: which concept each document is of.
        topics: the topic of each document.
        concepts: names of the columns.
        generator: from a name to a random generator.
    """
    cells = {name: within_topics(scores, labels, topics) for name, scores in methods.items()}
    first, rows = next(iter(methods)), []
    for name, scores in methods.items():
        found = stats.auroc_interval(scores, labels, topics, rng=generator(f"detection-{name}"))
        row: dict[str, Any] = {
            "method": name,
            "mean": found.mean.value,
            "low": found.mean.low,
            "high": found.mean.high,
            "per_concept": {concept: each.value for concept, each in zip(concepts, found.concepts, strict=True)},
        }
        if name != first and not np.isnan(cells[name] - cells[first]).all():
            difference = stats.two_way_bootstrap(cells[name] - cells[first], rng=generator(f"difference-{name}"))
            row |= {
                "against": first,
                "difference": difference.value,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "concepts_better": int(np.nansum(_concept_gap(cells[name], cells[first]) > 0)),
                "concepts_worse": int(np.nansum(_concept_gap(cells[name], cells[first]) < 0)),
            }
        rows.append(row)
    return rows


def _concept_gap(
    a: Float[np.ndarray, "concepts topics"], b: Float[np.ndarray, "concepts topics"]
) -> Float[np.ndarray, " concepts"]:
    known = np.isfinite(a - b)
    return np.where(known, a - b, 0).sum(axis=1)

"""Permutation tests: is the best of thousands of features better than the best would be by chance?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens.stats.ranking import (
    RankedFeatures,
    centred_rank_blocks,
    check_labels,
    compared_pairs,
    exact_dtype,
    label_operator,
    ranked_within,
    strata_members,
)

BATCH_ROWS = 2048
"""Permuted concepts that go through one label product together; their sums stay in a cache."""
DRAW_BYTES = 128 * 2**20
"""Memory for permutations drawn at once; more of them mean another pass over the features."""
ROUNDING = 1e-12
"""Statistics closer than this, relative to the observed one, count as tied."""

Blocks = Callable[[], Iterator[tuple[slice, Float[np.ndarray, "docs block"]]]]


@dataclass(frozen=True)
class MaxPermutation:
    """What ``max_permutation_test`` found, one entry per concept.

    Attributes:
        observed: largest statistic over the features; NaN for a concept without a positive or a negative.
        feature: the feature that reaches it (the first of several); -1 where ``observed`` is NaN.
        null: the same maximum under each permutation of the labels.
        p: family-wise p-value of ``observed`` over all features, (b + 1) / (m + 1).
        floor: the least p that this number of permutations can give.
    """

    observed: Float[np.ndarray, " concepts"]
    feature: Int[np.ndarray, " concepts"]
    null: Float[np.ndarray, "permutations concepts"]
    p: Float[np.ndarray, " concepts"]
    floor: float


def permutation_p(
    observed: Float[np.ndarray, "... tests"] | float, null: Float[np.ndarray, "permutations tests"]
) -> tuple[Any, float]:
    """Permutation p-values (b + 1) / (m + 1), where b of m permutations reach the observed statistic.

    Never 0, and valid for any m (Phipson & Smyth 2010, "Permutation p-values should never be zero"). A
    permutation counts as reaching ``observed`` when it ties with it within rounding, or is NaN.

    Args:
        observed: one statistic per test, larger being more extreme; its last axes are those of ``null`` after
            the first, axes before them are broadcast.
        null: the statistic under each permutation.

    Returns:
        p in the shape of ``observed`` (a float for a single test), NaN where ``observed`` is NaN; and the
        floor 1 / (m + 1).

    Raises:
        ValueError: no permutations, or shapes do not fit.
    """
    observed, null = np.asarray(observed, dtype=float), np.asarray(null, dtype=float)
    tests = null.shape[1:]
    if null.ndim == 0 or len(null) == 0:
        raise ValueError("the null distribution is empty: a permutation p-value needs at least one permutation")
    if observed.shape[observed.ndim - len(tests) :] != tests:
        raise ValueError(
            f"observed statistics {observed.shape} do not end in the tests of the null {tests}: give one "
            "observed statistic for each column of the null"
        )
    floor = 1 / (len(null) + 1)
    with np.errstate(invalid="ignore"):
        reached = np.where(np.isinf(observed), observed, observed - ROUNDING * np.abs(observed))
    columns = np.sort(null.reshape(len(null), -1), axis=0)  # NaN sorts last: as large as anything
    flat = reached.reshape(-1, columns.shape[1])
    below = np.stack([np.searchsorted(column, value) for column, value in zip(columns.T, flat.T, strict=True)], axis=1)
    p = (len(null) - below + 1).reshape(observed.shape) / (len(null) + 1)
    p = np.where(np.isnan(observed), np.nan, p)
    return (p if p.ndim else float(p)), floor


def max_permutation_test(
    scores: Shaped[np.ndarray, "docs features"] | RankedFeatures,
    labels: Bool[np.ndarray, "docs concepts"],
    strata: Shaped[np.ndarray, " docs"] | None,
    *,
    permutations: int,
    rng: np.random.Generator | int,
    block: int | None = None,
) -> MaxPermutation:
    """Test each concept's best feature against the best feature under permuted labels.

    The statistic is AUROC within strata (see ``auroc``). Rows of ``labels`` change places within their stratum, so
    that topics keep their mix of concepts and documents with several labels keep them together. The maximum over
    features of each permutation makes p hold for the search over all of them (Westfall & Young 1993,
    "Resampling-based multiple testing"). For a claim over all concepts as well, compare with ``null.max(axis=1)``.
    Features are ranked, not re-ranked: each permutation costs one label product.

    Args:
        scores: one column per feature, or features ranked before within the same strata.
        labels: boolean, or numbers that are all 0 or 1.
        strata: one value per document, usually its topic; None permutes freely.
        permutations: how many; p is at least 1 / (permutations + 1).
        rng: generator or seed.
        block: features handled at once. Changes no result.

    Raises:
        ValueError: as for ``auroc``; or fewer than one permutation; or strata that do not fit the documents or
            leave nothing to permute.
    """
    docs = scores.shape[0]
    labels = check_labels(labels, docs)
    if 0 in scores.shape or 0 in labels.shape:
        raise ValueError(f"nothing to test: scores have shape {scores.shape}, labels have shape {labels.shape}")
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}: ask for at least one, better 1000")
    strata = ranked_within(scores, strata)
    strata = np.zeros(docs, dtype=int) if strata is None else np.asarray(strata)
    if len(strata_members(strata, docs)) == docs:
        raise ValueError("every stratum holds a single document, so no labels can change places: use coarser strata")
    positives = labels.sum(axis=0)
    dtype = exact_dtype(positives, docs)
    blocks: Blocks = partial(centred_rank_blocks, scores, dtype, block, strata)
    operator = label_operator(labels, dtype)
    largest, feature = _observed_max(blocks, operator)
    # As many permutations at a time as memory allows; every batch is another pass over the features.
    rng, batch = np.random.default_rng(rng), max(1, DRAW_BYTES // (4 * docs))
    batches = (min(batch, permutations - start) for start in range(0, permutations, batch))
    null = np.concatenate([_null_max(blocks, operator, permuted_within(strata, draws, rng)) for draws in batches])
    # AUROC - 1/2 is the sum of centred doubled midranks over twice the pairs: monotone, so the maximum comes first.
    pairs = 2.0 * compared_pairs(labels, strata)
    observed, null = (sums / np.where(pairs == 0, np.nan, pairs) + 0.5 for sums in (largest, null))
    p, floor = permutation_p(observed, null)
    return MaxPermutation(observed, np.where(np.isnan(observed), -1, feature), null, p, floor)


def permuted_within(
    strata: Shaped[np.ndarray, " rows"], draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "draws rows"]:
    """Orders of the rows in which each changes places only with rows of its stratum.

    Args:
        strata: one value per row; all alike permutes freely.
        draws: orders wanted.
        rng: of the orders.

    Returns:
        int32; ``labels[orders[i]]`` are the labels of the i-th draw.

    Raises:
        ValueError: strata are no vector, or fewer than one draw.
    """
    strata = np.asarray(strata)
    if strata.ndim != 1 or draws < 1:
        raise ValueError(f"strata have shape {strata.shape}, draws is {draws}: give one per row, and at least one draw")
    orders = np.tile(np.arange(len(strata), dtype=np.int32), (draws, 1))
    codes = np.unique(strata, return_inverse=True)[1]
    for members in np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]):
        if len(members) > 1:
            orders[:, members] = rng.permuted(orders[:, members], axis=1)
    return orders


def permuted_labels(
    labels: Int[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    draws: int,
    rng: np.random.Generator,
    *,
    together: bool = False,
) -> Int[np.ndarray, "draws rows"]:
    """Labels permuted as the design allows: rows of a group are not independent of each other.

    Where every group holds one label, its rows are variants of one thing: groups exchange labels as wholes. Otherwise
    rows exchange labels within their group.

    Args:
        labels: one per row.
        groups: one per row.
        draws: permutations wanted.
        rng: of the permutations.
        together: rows of one group with one label are one draw and exchange their label together, with the other
            labels of the group.
    """
    labels = np.asarray(labels)
    _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    if (labels == labels[first][codes]).all():
        return labels[first][permuted_within(np.zeros(len(first)), draws, rng)][:, codes]
    if not together:
        return labels[permuted_within(codes, draws, rng)]
    cells, members = np.unique(np.stack([codes, labels]), axis=1, return_inverse=True)
    return cells[1][permuted_within(cells[0], draws, rng)][:, members.reshape(-1)]


def _observed_max(blocks: Blocks, operator: Any) -> tuple[Float[np.ndarray, " concepts"], Int[np.ndarray, " concepts"]]:
    largest = np.full(operator.shape[0], -np.inf)
    feature = np.full(operator.shape[0], -1)
    for columns, values in blocks():
        sums = operator @ values
        best = sums.argmax(axis=1)
        top = np.take_along_axis(sums, best[:, None], axis=1)[:, 0]
        better = top > largest
        largest[better], feature[better] = top[better], columns.start + best[better]
    return largest, feature


def _null_max(
    blocks: Blocks, operator: Any, order: Int[np.ndarray, "batch docs"]
) -> Float[np.ndarray, "batch concepts"]:
    """Largest sum over features for each permutation and concept."""
    concepts = operator.shape[0]
    step = max(1, BATCH_ROWS // concepts)
    largest = np.full((len(order), concepts), -np.inf)
    for _, values in blocks():
        for start in range(0, len(order), step):
            rows = largest[start : start + step]
            np.maximum(rows, _permuted_sums(operator, order[start : start + step], values).max(axis=2), out=rows)
    return largest


def _permuted_sums(
    operator: Any, order: Int[np.ndarray, "batch docs"], values: Float[np.ndarray, "docs block"]
) -> Float[np.ndarray, "batch concepts block"]:
    """Label sums under several permutations: document ``order[i]`` gets the labels of document i."""
    batch, (concepts, docs) = len(order), operator.shape
    if isinstance(operator, np.ndarray):
        return np.stack([operator @ values[where] for where in order])
    from scipy.sparse import csr_array

    where = order[:, operator.indices].reshape(-1)
    ends = operator.indptr[1:] + operator.nnz * np.arange(batch)[:, None]
    ends = np.concatenate([[0], ends.reshape(-1)]).astype(where.dtype)
    ones = np.ones(len(where), operator.dtype)
    stacked = csr_array((ones, where, ends), shape=(batch * concepts, docs))
    return (stacked @ values).reshape(batch, concepts, -1)

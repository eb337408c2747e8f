"""Permutation tests: is the best of thousands of features better than the best would be by chance?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens.errors import UserError
from affectlens.stats.ranking import (
    RankedFeatures,
    centred_rank_blocks,
    check_labels,
    exact_dtype,
    label_operator,
    smd_of_sums,
    unit_blocks,
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

    def adjusted_p(self, statistics: Float[np.ndarray, "features concepts"]) -> Float[np.ndarray, "features concepts"]:
        """Single-step max-T adjusted p of every feature (Westfall & Young 1993, sec. 2.5).

        Args:
            statistics: on the scale of ``observed`` (for a two-sided test the distance from no effect).
        """
        return permutation_p(statistics, self.null)[0]


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
        UserError: no permutations, or shapes do not fit.
    """
    observed, null = np.asarray(observed, dtype=float), np.asarray(null, dtype=float)
    tests = null.shape[1:]
    if null.ndim == 0 or len(null) == 0:
        raise UserError("the null distribution is empty: a permutation p-value needs at least one permutation")
    if observed.shape[observed.ndim - len(tests) :] != tests:
        raise UserError(
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
    statistic: Literal["auroc", "smd"] = "auroc",
    two_sided: bool = False,
    block: int | None = None,
) -> MaxPermutation:
    """Test each concept's best feature against the best feature under permuted labels.

    Rows of ``labels`` change places within their stratum, so that topics keep their mix of concepts and
    documents with several labels keep them together. The maximum over features of each permutation makes p
    hold for the search over all of them (Westfall & Young 1993, "Resampling-based multiple testing"). For a
    claim over all concepts as well, compare with ``null.max(axis=1)``. Features are ranked, not re-ranked:
    each permutation costs one label product.

    Args:
        scores: one column per feature, or features ranked before (AUROC only).
        labels: boolean, or numbers that are all 0 or 1.
        strata: one value per document, usually its topic; None permutes freely.
        permutations: how many; p is at least 1 / (permutations + 1).
        rng: generator or seed.
        statistic: AUROC, or the standardised mean difference.
        two_sided: test |AUROC - 1/2|, or |standardised mean difference|, in place of the statistic itself.
        block: features handled at once. Changes no result.

    Raises:
        UserError: as for ``auroc``; or fewer than one permutation; or strata that do not fit the documents or
            leave nothing to permute.
    """
    docs = scores.shape[0]
    labels = check_labels(labels, docs)
    if 0 in scores.shape or 0 in labels.shape:
        raise UserError(f"nothing to test: scores have shape {scores.shape}, labels have shape {labels.shape}")
    if statistic not in ("auroc", "smd"):
        raise UserError(f"statistic is {statistic!r}: choose 'auroc' or 'smd'")
    if permutations < 1:
        raise UserError(f"permutations is {permutations}: ask for at least one, better 1000")
    members = _strata_members(strata, docs)
    positives = labels.sum(axis=0)
    ranked = statistic == "auroc"
    dtype = exact_dtype(positives, docs) if ranked else np.dtype(np.float64)
    blocks: Blocks = (
        partial(centred_rank_blocks, scores, dtype, block) if ranked else partial(unit_blocks, scores, block)
    )
    operator = label_operator(labels, dtype)
    largest, feature = _observed_max(blocks, operator, two_sided)
    orders = _permutations(members, docs, permutations, np.random.default_rng(rng))
    null = np.concatenate([_null_max(blocks, operator, order, two_sided) for order in orders])
    to_statistic = partial(_auroc_of_sums if ranked else smd_of_sums, positives=positives, docs=docs)
    observed, null = to_statistic(largest), to_statistic(null)
    if ranked and not two_sided:
        observed, null = observed + 0.5, null + 0.5
    p, floor = permutation_p(observed, null)
    return MaxPermutation(observed, np.where(np.isnan(observed), -1, feature), null, p, floor)


def _auroc_of_sums(
    sums: Float[np.ndarray, "... concepts"], positives: Int[np.ndarray, " concepts"], docs: int
) -> Float[np.ndarray, "... concepts"]:
    """AUROC - 1/2 from sums of centred doubled midranks. Monotone, so the maximum may be taken before it."""
    pairs = 2.0 * positives * (docs - positives)
    return sums / np.where(pairs == 0, np.nan, pairs)


def _strata_members(strata: Shaped[np.ndarray, " docs"] | None, docs: int) -> list[Int[np.ndarray, " members"]]:
    """The documents of each stratum that has more than one."""
    strata = np.zeros(docs, dtype=int) if strata is None else np.asarray(strata)
    if strata.shape != (docs,):
        raise UserError(f"strata have shape {strata.shape}, there are {docs} documents: give one per document")
    codes = np.unique(strata, return_inverse=True)[1]
    groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        raise UserError("every stratum holds a single document, so no labels can change places: use coarser strata")
    return groups


def _permutations(
    members: list[Int[np.ndarray, " members"]], docs: int, permutations: int, rng: np.random.Generator
) -> Iterator[Int[np.ndarray, "batch docs"]]:
    """Permutations of the documents within strata, as many at a time as memory allows."""
    most = max(1, DRAW_BYTES // (4 * docs))
    for start in range(0, permutations, most):
        batch = min(most, permutations - start)
        order = np.tile(np.arange(docs, dtype=np.int32), (batch, 1))
        for group in members:
            order[:, group] = rng.permuted(order[:, group], axis=1)
        yield order


def _observed_max(
    blocks: Blocks, operator: Any, two_sided: bool
) -> tuple[Float[np.ndarray, " concepts"], Int[np.ndarray, " concepts"]]:
    largest = np.full(operator.shape[0], -np.inf)
    feature = np.full(operator.shape[0], -1)
    for columns, values in blocks():
        sums = operator @ values
        sums = np.abs(sums) if two_sided else sums
        best = sums.argmax(axis=1)
        top = np.take_along_axis(sums, best[:, None], axis=1)[:, 0]
        better = top > largest
        largest[better], feature[better] = top[better], columns.start + best[better]
    return largest, feature


def _null_max(
    blocks: Blocks, operator: Any, order: Int[np.ndarray, "batch docs"], two_sided: bool
) -> Float[np.ndarray, "batch concepts"]:
    """Largest sum over features for each permutation and concept."""
    concepts = operator.shape[0]
    step = max(1, BATCH_ROWS // concepts)
    largest = np.full((len(order), concepts), -np.inf)
    for _, values in blocks():
        for start in range(0, len(order), step):
            rows = largest[start : start + step]
            sums = _permuted_sums(operator, order[start : start + step], values)
            top = sums.max(axis=2)
            if two_sided:
                np.maximum(top, -sums.min(axis=2), out=top)
            np.maximum(rows, top, out=rows)
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

"""Every feature against every concept: AUROC, average precision and standardised mean difference, exactly.

A feature is ranked once, over all documents, and then meets all concepts in one product of a label matrix
with the ranks. Most SAE features are zero on most documents, so only the other values are sorted: the zeros
of a feature are a single group of ties whose rank follows from counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

BLOCK_FEATURES = 128
"""Most features handled at once: the label product is fastest with operands that fit a cache."""
BLOCK_SCORES = 2**19
"""Scores handled at once, if that is not less than ``STRIP_FEATURES`` * 2 features."""
BLOCK_BYTES = 256 * 2**20
"""What the scores and the ranks of one block may take, at 16 bytes for each score."""
STRIP_FEATURES = 16
"""Features ranked by one sort, so that whole cache lines of scores are read."""
STRIP_SCORES = (2**16, 2**20)
"""Scores ranked by one sort: more features are taken below the first number, fewer above the second, which
keeps scratch memory near 100 MiB."""
SPARSE_LABELS = 1 / 8
"""Share of positive labels below which adding up the positives' ranks beats a dense product."""
FLOAT32_INTEGERS = 2**24
"""Integers below this are exact in float32, and so are their sums while these stay below it."""


@dataclass(frozen=True)
class RankedFeatures:
    """Features ranked once, for many label sets. Takes the place of ``scores`` wherever AUROC is computed.

    Attributes:
        ranks: twice each document's midrank, minus (documents + 1): integers that add up to 0 in each column.
        strata: within which documents were ranked; None for all together.
    """

    ranks: Int[np.ndarray, "docs features"]
    strata: Shaped[np.ndarray, " docs"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Documents, features."""
        return self.ranks.shape[0], self.ranks.shape[1]


def rank_features(
    scores: Shaped[np.ndarray, "docs features"],
    strata: Shaped[np.ndarray, " docs"] | None = None,
    *,
    block: int | None = None,
) -> RankedFeatures:
    """Rank every feature over the documents, ties sharing the mean of their ranks.

    Args:
        scores: real numbers; also whatever gives an array of them for ``[:, a:b]`` (memmap, HDF5, CSC).
        strata: one value per document; documents are ranked among those of their stratum.
        block: features ranked at once; by default as many as fit ``BLOCK_BYTES``. Changes no result.

    Returns:
        2 bytes per score up to 32,768 documents, 4 beyond.

    Raises:
        ValueError: ``scores`` is not a matrix of real numbers, or has a NaN (the message names its column).
    """
    docs, features = _check_scores(scores)
    ranks = np.empty((docs, features), dtype=np.int16 if docs <= 2**15 else np.int32)
    for columns, values in _score_blocks(scores, block):
        ranks[:, columns] = _centred_ranks(values, strata_members(strata, docs), ranks.dtype)
    return RankedFeatures(ranks, strata)


def auroc(
    scores: Shaped[np.ndarray, "docs features"] | RankedFeatures,
    labels: Bool[np.ndarray, "docs concepts"],
    strata: Shaped[np.ndarray, " docs"] | None = None,
    *,
    block: int | None = None,
) -> Float[np.ndarray, "features concepts"]:
    """Exact area under the ROC curve of every feature for every concept, ties counting one half.

    AUROC = 1/2 + sum of the positives' centred midranks / (positives * negatives): the Mann-Whitney
    statistic (Mann & Whitney 1947; Hanley & McNeil 1982, "The meaning and use of the area under a ROC
    curve"). Doubled midranks are integers, so their sums carry no rounding error, only the quotient does.

    Args:
        scores: one column per feature, as ``rank_features`` takes them, or features ranked before.
        labels: boolean, or numbers that are all 0 or 1.
        strata: one value per document, usually its topic: only pairs of documents of one stratum are compared, so
            that what differs between strata neither helps nor blurs. Ranked features bring their own.
        block: features handled at once. Changes no result.

    Returns:
        float64 in [0, 1]; NaN for a concept without a pair of a positive and a negative document.

    Raises:
        ValueError: shapes do not fit, labels are not 0/1, or a score is NaN (the message names its column).
    """
    docs, features = _check_scores(scores)
    labels = check_labels(labels, docs)
    positives = labels.sum(axis=0)
    dtype = exact_dtype(positives, docs)
    operator = label_operator(labels, dtype)
    area = np.empty((features, labels.shape[1]))
    for columns, ranks in centred_rank_blocks(scores, dtype, block, strata):
        area[columns] = (operator @ ranks).T
    strata = ranked_within(scores, strata)
    area /= _nan_where_zero(2.0 * compared_pairs(labels, strata))
    area += 0.5
    return area


def ranked_within(scores: Any, strata: Shaped[np.ndarray, " docs"] | None) -> Shaped[np.ndarray, " docs"] | None:
    """The strata within which documents are compared: those given, or those of features ranked before.

    Raises:
        ValueError: features were ranked within other strata.
    """
    if not isinstance(scores, RankedFeatures):
        return strata
    if strata is not None and not np.array_equal(strata, scores.strata if scores.strata is not None else []):
        raise ValueError("the features were ranked within other strata: rank them within these")
    return scores.strata


def strata_members(strata: Shaped[np.ndarray, " docs"] | None, docs: int) -> list[Int[np.ndarray, " members"]]:
    """The documents of each stratum, in the order of its values.

    Raises:
        ValueError: not one value per document.
    """
    strata = np.zeros(docs, dtype=int) if strata is None else np.asarray(strata)
    if strata.shape != (docs,):
        raise ValueError(f"strata have shape {strata.shape}, there are {docs} documents: give one per document")
    codes = np.unique(strata, return_inverse=True)[1]
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def compared_pairs(
    labels: Bool[np.ndarray, "docs concepts"], strata: Shaped[np.ndarray, " docs"] | None
) -> Int[np.ndarray, " concepts"]:
    """Pairs of a positive and a negative document of one stratum."""
    counts = [(labels[members].sum(axis=0), len(members)) for members in strata_members(strata, len(labels))]
    return np.sum([positives * (docs - positives) for positives, docs in counts], axis=0)


def best_features(
    scores: Shaped[np.ndarray, "docs features"],
    labels: Bool[np.ndarray, "docs concepts"],
    strata: Shaped[np.ndarray, " docs"],
    kept: Bool[np.ndarray, "choices strata"],
) -> Int[np.ndarray, "choices concepts"]:
    """The feature with the largest AUROC within strata for each concept, chosen on several sets of strata at once.

    Every stratum is ranked once; each set of strata then costs one sum.

    Args:
        scores: one column per feature, as ``rank_features`` takes them.
        labels: boolean, or numbers that are all 0 or 1.
        strata: one value per document.
        kept: the strata, in the order of their values, that each choice is made on.

    Returns:
        The first of equally good features; -1 for a concept that no kept stratum compares.
    """
    docs, _ = _check_scores(scores)
    labels, members = check_labels(labels, docs), strata_members(strata, docs)
    operators = [label_operator(labels[rows], np.dtype(np.float64)) for rows in members]
    pairs = kept @ np.stack([compared_pairs(labels[rows], None) for rows in members])
    best = np.full((len(kept), labels.shape[1]), -1)
    largest = np.full(best.shape, -np.inf)
    for columns, values in _score_blocks(scores, None):
        sums = np.stack(
            [
                operator @ _centred_ranks(values[rows], None, np.dtype(np.float64))
                for operator, rows in zip(operators, members, strict=True)
            ]
        )
        for choice, strata_kept in enumerate(kept):
            total = sums[strata_kept].sum(axis=0)
            feature = total.argmax(axis=1)
            top = total[np.arange(len(total)), feature]
            better = (top > largest[choice]) & (pairs[choice] > 0)
            largest[choice, better], best[choice, better] = top[better], columns.start + feature[better]
    return best


def average_precision(
    scores: Shaped[np.ndarray, "docs features"],
    labels: Bool[np.ndarray, "docs concepts"],
    *,
    block: int | None = None,
) -> Float[np.ndarray, "features concepts"]:
    """Average precision of every feature for every concept: precision at each positive's threshold, averaged.

    Documents with equal scores pass a threshold together, without interpolation between thresholds (Davis &
    Goadrich 2006 on why not; the same definition as scikit-learn's ``average_precision_score``). Chance level
    is the share of positives. Time grows with the number of positive labels, not with documents x concepts.

    Args:
        scores: one column per feature; higher means more likely positive.
        labels: boolean, or numbers that are all 0 or 1.
        block: features handled at once. Changes no result.

    Returns:
        float64 in (0, 1]; NaN for a concept without a positive document.

    Raises:
        ValueError: as for ``auroc``.
    """
    docs, features = _check_scores(scores)
    labels = check_labels(labels, docs)
    members = [np.flatnonzero(column) for column in labels.T]
    precision = np.full((features, labels.shape[1]), np.nan)
    for columns, values in _score_blocks(scores, block):
        above = _ranks(values, lambda first, last: docs - first, np.dtype(np.int64))
        for concept, positives in enumerate(members):
            if len(positives):
                precision[columns, concept] = _precision_at_positives(above[positives])
    return precision


def _precision_at_positives(above: Int[np.ndarray, "positives features"]) -> Float[np.ndarray, " features"]:
    """Mean over positives of (positives at or above its score) / (documents at or above its score)."""
    above = np.sort(above, axis=0)
    hits = np.broadcast_to(np.arange(1, len(above) + 1)[:, None], above.shape).copy()
    # Of tied positives all count for each: the last one's count, carried backwards through the group.
    hits[:-1][above[:-1] == above[1:]] = len(above)
    hits = np.minimum.accumulate(hits[::-1], axis=0)[::-1]
    return (hits / above).mean(axis=0)


def standardized_mean_difference(
    scores: Shaped[np.ndarray, "docs features"],
    labels: Bool[np.ndarray, "docs concepts"],
    *,
    block: int | None = None,
) -> Float[np.ndarray, "features concepts"]:
    """Mean of the positives minus mean of the negatives, in pooled standard deviations (Cohen 1988, ch. 2).

    Args:
        scores: one column per feature, finite.
        labels: boolean, or numbers that are all 0 or 1.
        block: features handled at once. Changes no result beyond rounding.

    Returns:
        float64; 0 for a constant feature, +-inf where both groups are constant but differ, NaN for a concept
        without a positive or without a negative document, or with fewer than three documents in all.

    Raises:
        ValueError: as for ``auroc``, or a score is infinite.
    """
    docs, features = _check_scores(scores)
    labels = check_labels(labels, docs)
    positives = labels.sum(axis=0)
    operator = label_operator(labels, np.dtype(np.float64))
    gap = np.empty((features, labels.shape[1]))
    for columns, unit in unit_blocks(scores, block):
        gap[columns] = (operator @ unit).T
    # With mean 0 and total sum of squares 1, a sum s over k of n documents makes the sum of squares between the
    # groups s^2 n / (k (n - k)); what is left of 1 lies within them.
    ratio = (docs if docs > 2 else np.nan) / _nan_where_zero(1.0 * positives * (docs - positives))
    within = 1.0 - gap**2 * ratio
    # Perfectly separated constants leave only rounding error here.
    within[within <= 8 * docs * np.finfo(float).eps] = 0.0
    with np.errstate(divide="ignore"):
        return np.where(gap == 0, 0.0, 1 / np.sqrt(within / max(docs - 2, 1))) * gap * ratio


def check_labels(labels: Any, docs: int) -> Bool[np.ndarray, "docs concepts"]:
    """Labels as booleans.

    Raises:
        ValueError: not a matrix with one row per document, or values other than 0 and 1.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[0] != docs:
        raise ValueError(
            f"labels have shape {labels.shape}, scores have {docs} documents: give labels as a matrix "
            "[documents, concepts]"
        )
    if labels.dtype != bool:
        if labels.dtype.kind not in "iuf" or not ((labels == 0) | (labels == 1)).all():
            raise ValueError(f"labels of type {labels.dtype} hold values other than 0 and 1: make them boolean")
        labels = labels.astype(bool)
    return labels


def exact_dtype(positives: Int[np.ndarray, " concepts"], docs: int) -> np.dtype:
    """The narrowest float in which every partial sum of centred doubled midranks over positives is exact.

    Any k of n documents have centred doubled midranks that add up to at most k (n - k) in size, and every
    partial sum of a product runs over some subset of a concept's positives.
    """
    most = np.minimum(positives, docs // 2)
    bound = int((most * (docs - most)).max(initial=0))
    return np.dtype(np.float32 if max(bound, docs) < FLOAT32_INTEGERS else np.float64)


def label_operator(labels: Bool[np.ndarray, "docs concepts"], dtype: np.dtype) -> Any:
    """A [concepts, docs] matrix of 0 and 1 for use as ``operator @ columns``: sparse where that is faster."""
    if np.count_nonzero(labels) > SPARSE_LABELS * labels.size:
        return np.ascontiguousarray(labels.T, dtype=dtype)
    from scipy.sparse import csr_array

    return csr_array(labels.T, dtype=dtype)


def centred_rank_blocks(
    scores: Any, dtype: np.dtype, block: int | None = None, strata: Shaped[np.ndarray, " docs"] | None = None
) -> Iterator[tuple[slice, Float[np.ndarray, "docs block"]]]:
    """Blocks of features as centred doubled midranks within strata, ranked on the fly unless they have been before."""
    if isinstance(scores, RankedFeatures):
        for columns in _column_blocks(*scores.shape, block):
            yield columns, scores.ranks[:, columns].astype(dtype, order="C")
        return
    members = strata_members(strata, scores.shape[0])
    for columns, values in _score_blocks(scores, block):
        yield columns, _centred_ranks(values, members, dtype)


def unit_blocks(scores: Any, block: int | None = None) -> Iterator[tuple[slice, Float[np.ndarray, "docs block"]]]:
    """Blocks of features with mean 0 and sum of squares 1, in float64; all 0 for a constant feature.

    Raises:
        ValueError: a score is infinite.
    """
    for columns, values in _score_blocks(scores, block):
        low, high = values.min(axis=0).astype(float), values.max(axis=0).astype(float)
        infinite = np.flatnonzero(~np.isfinite(low) | ~np.isfinite(high))
        if len(infinite):
            raise ValueError(
                f"feature {columns.start + infinite[0]} has an infinite score: means need finite scores; "
                "use AUROC or drop the feature"
            )
        # To [0, 1] first: a large offset costs no digits, and no square leaves the range of floats.
        unit = (values.astype(float) / 2 - low / 2) / np.where(high > low, high / 2 - low / 2, 1.0)
        unit -= unit.mean(axis=0)
        unit /= np.where(high > low, np.linalg.norm(unit, axis=0), 1.0)
        yield columns, unit


def _check_scores(scores: Any) -> tuple[int, int]:
    shape = tuple(scores.shape)
    if len(shape) != 2:
        raise ValueError(f"scores have shape {shape}: give a matrix [documents, features]")
    return shape[0], shape[1]


def _column_blocks(docs: int, features: int, block: int | None) -> Iterator[slice]:
    if block is None:
        wanted = min(BLOCK_FEATURES, max(2 * STRIP_FEATURES, BLOCK_SCORES // max(docs, 1)))
        block = max(1, min(wanted, BLOCK_BYTES // (16 * max(docs, 1))))
    if block < 1:
        raise ValueError(f"block is {block}: give the number of features to handle at once, 1 or more")
    for start in range(0, features, block):
        yield slice(start, min(start + block, features))


def _score_blocks(scores: Any, block: int | None) -> Iterator[tuple[slice, Shaped[np.ndarray, "docs block"]]]:
    """Blocks of columns as contiguous arrays of real numbers without NaN."""
    if isinstance(scores, RankedFeatures):
        raise ValueError("ranked features keep no scores: give the scores themselves for this statistic")
    for columns in _column_blocks(*_check_scores(scores), block):
        values = scores[:, columns]
        values = np.ascontiguousarray(values.toarray() if hasattr(values, "toarray") else values)
        if values.dtype.kind not in "fiub":
            raise ValueError(f"scores have type {values.dtype}: give real numbers")
        if values.dtype == np.float16:
            values = values.astype(np.float32)  # numpy compares half precision slowly
        if values.dtype.kind == "f":
            bad = np.isnan(values)
            if bad.any():
                doc, column = np.argwhere(bad)[bad.nonzero()[1].argmin()]
                raise ValueError(
                    f"feature {columns.start + column} has a NaN score (document {doc}): drop the feature or "
                    "the document, or find out where the NaN comes from"
                )
        yield columns, values


def _centred_ranks(
    values: Shaped[np.ndarray, "docs block"], members: list[Int[np.ndarray, " members"]] | None, dtype: np.dtype
) -> Shaped[np.ndarray, "docs block"]:
    """Centred doubled midranks, each document among the members of its stratum; None takes all together."""
    if members is None or len(members) == 1:
        return _ranks(values, _centred_midrank(len(values)), dtype)
    ranks = np.empty(values.shape, dtype=dtype)
    for rows in members:
        ranks[rows] = _ranks(values[rows], _centred_midrank(len(rows)), dtype)
    return ranks


def _centred_midrank(docs: int) -> Callable[[Any, Any], Any]:
    """From a tie group's first and last position, counted from 0, to 2 * midrank - (docs + 1)."""
    return lambda first, last: first + last + (1 - docs)


def _ranks(
    values: Shaped[np.ndarray, "docs block"], rank_of: Callable[[Any, Any], Any], dtype: np.dtype
) -> Shaped[np.ndarray, "docs block"]:
    """A rank for every value within its column, from the first and last position of its group of ties."""
    ranks = np.empty(values.shape, dtype=dtype)
    fewest, most = (scores // max(len(values), 1) for scores in STRIP_SCORES)
    width = max(1, min(max(fewest, STRIP_FEATURES), most))
    for start in range(0, values.shape[1], width):
        zeros, where, filled = _rank_strip(values[:, start : start + width], rank_of, values.shape[1])
        ranks[:, start : start + width] = zeros
        ranks.reshape(-1)[where + start] = filled
    return ranks


def _rank_strip(
    values: Shaped[np.ndarray, "docs strip"], rank_of: Callable[[Any, Any], Any], row: int
) -> tuple[Int[np.ndarray, " strip"], Int[np.ndarray, " filled"], Int[np.ndarray, " filled"]]:
    """The rank of each column's zeros; where the other values stand if rows hold ``row`` values; their ranks.

    Only values other than 0 are sorted, by one integer that holds column, value and document: sorting plain
    integers is several times faster than an argsort of floats.
    """
    docs, strip = values.shape
    flat = values.reshape(-1)
    filled = np.flatnonzero(flat != 0)
    doc, column = np.divmod(filled.astype(np.uint64), np.uint64(strip))
    doc_bits = np.uint64(max(docs - 1, 0).bit_length())
    keys = (column << np.uint64(32)) | _order_code(flat[filled])
    keys = (keys << doc_bits) | doc
    keys.sort()
    doc = keys & ((np.uint64(1) << doc_bits) - np.uint64(1))
    keys >>= doc_bits

    opens = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=opens[1:])
    starts = np.flatnonzero(opens)
    sizes = np.diff(starts, append=len(keys))
    keys >>= np.uint64(32)
    column = keys.astype(np.int64)
    per_column = np.bincount(column, minlength=strip)
    negative = np.count_nonzero(values < 0, axis=0)
    zeros = docs - per_column

    owner = column[starts]
    first = starts - (np.cumsum(per_column) - per_column)[owner]
    first += np.where(first >= negative[owner], zeros[owner], 0)
    where = doc.astype(np.int64) * row + column
    ranks = np.repeat(rank_of(first, first + sizes - 1), sizes)
    return rank_of(negative, negative + zeros - 1), where, ranks


def _order_code(values: Shaped[np.ndarray, " values"]) -> Int[np.ndarray, " values"]:
    """Integers below 2^32 with the order and ties of ``values``: their float32 bits where these are exact."""
    if values.dtype.kind == "f" or values.dtype.itemsize <= 2:
        exact = True
    else:
        exact = values.min(initial=0) >= -FLOAT32_INTEGERS and values.max(initial=0) <= FLOAT32_INTEGERS
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not exact or (values.dtype.itemsize > 4 and (single != values).any()):
        return np.unique(values, return_inverse=True)[1].astype(np.uint64)
    bits = single.view(np.uint32)
    return np.where(single < 0, ~bits, bits | np.uint32(2**31)).astype(np.uint64)


def _nan_where_zero(values: Float[np.ndarray, " concepts"]) -> Float[np.ndarray, " concepts"]:
    return np.where(values == 0, np.nan, values)

"""The statistics against reference implementations, planted truths, and input on which nothing is defined."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from affectlens import stats
from affectlens.stats import permutation, ranking
from sklearn.metrics import average_precision_score, roc_auc_score


def sparse_scores(rng: np.random.Generator, docs: int, features: int, zeros: float = 0.85) -> np.ndarray:
    """Like pooled SAE features: mostly 0, otherwise positive, one column dense."""
    scores = rng.lognormal(size=(docs, features)) * (rng.random((docs, features)) > zeros)
    scores[:, 0] = rng.lognormal(size=docs)
    return scores.astype(np.float32)


def by_sklearn(metric, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.array([[metric(label, score) for label in labels.T] for score in scores.T])


SCORES = {
    "sparse": lambda rng: sparse_scores(rng, 90, 8),
    "negative_sparse": lambda rng: -sparse_scores(rng, 90, 8),
    "both_signs": lambda rng: rng.normal(size=(90, 8)).astype(np.float32) * (rng.random((90, 8)) > 0.5),
    "dense64": lambda rng: rng.normal(size=(90, 8)),
    "half": lambda rng: rng.normal(size=(90, 8)).astype(np.float16),
    "longdouble": lambda rng: rng.normal(size=(90, 8)).astype(np.longdouble),
    "few_levels": lambda rng: rng.integers(-2, 3, (90, 8)),
    "bytes": lambda rng: rng.integers(0, 4, (90, 8)).astype(np.uint8),
    "booleans": lambda rng: rng.random((90, 8)) > 0.5,
    "beyond_float32": lambda rng: 1 + rng.integers(0, 50, (90, 8)) * 1e-12,
    "huge_and_tiny": lambda rng: rng.choice([-1e300, -1e-300, 0, 1e-310, 1e-300, 1e300, 1e301], (90, 8)),
    "fortran": lambda rng: np.asfortranarray(sparse_scores(rng, 90, 8)),
    "strided": lambda rng: rng.normal(size=(180, 24))[::-2, ::3],
}


@pytest.fixture(params=SCORES)
def scores(request) -> np.ndarray:
    return SCORES[request.param](np.random.default_rng(0))


@pytest.fixture(params=[0.05, 0.4], ids=["rare_labels", "common_labels"])
def labels(request) -> np.ndarray:
    labels = np.random.default_rng(1).random((90, 5)) < request.param
    labels[0], labels[1] = True, False
    labels[:, 4] = np.arange(90) == 17  # one positive
    return labels


class TestAuroc:
    def test_equals_sklearn(self, scores, labels):
        expected = by_sklearn(roc_auc_score, scores, labels)
        np.testing.assert_allclose(stats.auroc(scores, labels), expected, rtol=0, atol=1e-14)

    def test_integers_that_float64_cannot_tell_apart(self):
        scores = (2**53 + np.arange(4, dtype=np.int64))[:, None]
        labels = np.array([[False], [False], [True], [True]])
        assert stats.auroc(scores, labels) == 1.0

    def test_infinite_scores_and_signed_zeros_are_ranked(self):
        scores = np.array([[-np.inf, 0.0], [np.inf, -0.0], [0.0, 0.0], [np.inf, -0.0]])
        labels = np.array([[False], [True], [False], [True]])
        np.testing.assert_array_equal(stats.auroc(scores, labels), [[1.0], [0.5]])

    def test_perfect_and_constant_features_are_exact(self):
        labels = np.arange(300)[:, None] % 3 == 0
        scores = np.concatenate([labels, ~labels, np.zeros((300, 1)), np.full((300, 1), 7)], axis=1)
        np.testing.assert_array_equal(stats.auroc(scores, labels)[:, 0], [1.0, 0.0, 0.5, 0.5])

    def test_concepts_without_positives_or_negatives_are_nan(self):
        labels = np.zeros((20, 3), dtype=bool)
        labels[:, 1], labels[3, 2] = True, True
        area = stats.auroc(np.random.default_rng(0).normal(size=(20, 4)), labels)
        np.testing.assert_array_equal(np.isnan(area), [[True, True, False]] * 4)

    @pytest.mark.parametrize("block", [1, 3, 7, 64, 1000])
    def test_block_size_changes_nothing(self, block):
        rng = np.random.default_rng(0)
        scores, labels = sparse_scores(rng, 300, 64), rng.random((300, 9)) < 0.1
        np.testing.assert_array_equal(stats.auroc(scores, labels, block=block), stats.auroc(scores, labels))

    def test_order_of_documents_and_monotone_transforms_change_nothing(self, labels):
        scores = sparse_scores(np.random.default_rng(0), 90, 8)
        order = np.random.default_rng(3).permutation(90)
        area = stats.auroc(scores, labels)
        np.testing.assert_array_equal(stats.auroc(scores[order], labels[order]), area)
        np.testing.assert_array_equal(stats.auroc(np.log1p(scores.astype(float)), labels), area)
        np.testing.assert_array_equal(stats.auroc(scores.astype(float) ** 3 - 5, labels), area)
        np.testing.assert_allclose(stats.auroc(-scores, labels), 1 - area, rtol=0, atol=1e-15)
        np.testing.assert_allclose(stats.auroc(scores, ~labels), 1 - area, rtol=0, atol=1e-15)

    @pytest.mark.parametrize("positives", [10, 10_000])
    def test_sums_beyond_float32_stay_exact(self, positives):
        rng = np.random.default_rng(0)
        scores, labels = rng.integers(0, 9_999, (20_001, 2)), np.zeros((20_001, 1), dtype=bool)
        labels[rng.choice(20_001, positives, replace=False)] = True
        scores += 6_000 * labels
        wins = [scipy.stats.mannwhitneyu(column[labels[:, 0]], column[~labels[:, 0]])[0] for column in scores.T]
        expected = np.array(wins) / (positives * (20_001 - positives))
        np.testing.assert_allclose(stats.auroc(scores, labels)[:, 0], expected, rtol=0, atol=2e-16)

    def test_partial_sums_stay_below_the_bound_that_picks_the_type(self):
        # The worst case: the positives hold the top ranks, without ties.
        docs, positives = 8_190, 4_095
        sums = np.cumsum(np.arange(docs - 1, -docs, -2)[:positives])
        assert sums.max() < ranking.FLOAT32_INTEGERS
        assert ranking.exact_dtype(np.array([positives]), docs) == np.float32
        assert ranking.exact_dtype(np.array([positives]), docs + 10) == np.float64

    def test_sparse_and_dense_label_products_agree(self, monkeypatch, labels):
        scores = np.random.default_rng(0).normal(size=(90, 7))
        monkeypatch.setattr(ranking, "SPARSE_LABELS", 0.0)
        dense = stats.auroc(scores, labels)
        monkeypatch.setattr(ranking, "SPARSE_LABELS", 1.0)
        np.testing.assert_array_equal(stats.auroc(scores, labels), dense)

    def test_ranked_features_give_the_same_and_keep_no_scores(self, labels):
        scores = sparse_scores(np.random.default_rng(0), 90, 8)
        ranked: Any = stats.rank_features(scores, block=5)
        np.testing.assert_array_equal(stats.auroc(ranked, labels), stats.auroc(scores, labels))
        np.testing.assert_array_equal(ranked.ranks, 2 * scipy.stats.rankdata(scores, axis=0) - (len(scores) + 1))
        with pytest.raises(ValueError, match="keep no scores"):
            stats.average_precision(ranked, labels)

    def test_a_sparse_matrix_and_number_labels_are_accepted(self, labels):
        scores = sparse_scores(np.random.default_rng(0), 90, 8)
        as_sparse: Any = scipy.sparse.csc_array(scores)
        sparse = stats.auroc(as_sparse, labels.astype(np.float32), block=5)
        np.testing.assert_array_equal(sparse, stats.auroc(scores, labels))

    def test_memory_does_not_grow_with_the_number_of_features(self):
        rng = np.random.default_rng(0)
        scores, labels = sparse_scores(rng, 1_000, 12_000), rng.random((1_000, 4)) < 0.02
        stats.auroc(scores[:, :10], labels)  # imports are not counted
        tracemalloc.start()
        area = stats.auroc(scores, labels)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < area.nbytes + scores.nbytes / 6

    def test_the_first_feature_with_a_nan_is_named(self):
        scores = np.zeros((6, 9), dtype=np.float32)
        scores[1, 7], scores[5, 4] = np.nan, np.nan
        with pytest.raises(ValueError, match=r"feature 4 has a NaN score \(document 5\)"):
            stats.auroc(scores, np.eye(6, dtype=bool), block=2)

    @pytest.mark.parametrize(
        ("scores", "labels", "message"),
        [
            (np.zeros(5), np.ones((5, 1), bool), r"scores have shape \(5,\)"),
            (np.zeros((5, 2)), np.ones(5, bool), r"labels have shape \(5,\)"),
            (np.zeros((5, 2)), np.ones((4, 1), bool), "5 documents"),
            (np.zeros((5, 2)), np.full((5, 1), 2), "other than 0 and 1"),
            (np.zeros((5, 2)), np.full((5, 1), "yes"), "other than 0 and 1"),
            (np.zeros((5, 2), complex), np.ones((5, 1), bool), "complex128"),
        ],
    )
    def test_bad_input_is_refused(self, scores, labels, message):
        with pytest.raises(ValueError, match=message):
            stats.auroc(scores, labels)

    def test_an_impossible_block_is_refused(self):
        with pytest.raises(ValueError, match="block is 0"):
            stats.auroc(np.zeros((3, 3)), np.eye(3, dtype=bool), block=0)


class TestWithinStrata:
    @pytest.fixture
    def data(self):
        rng = np.random.default_rng(0)
        strata, labels = rng.integers(4, size=80), rng.random((80, 5)) < 0.3
        labels[:, 4] = strata == 2  # compared within no stratum
        return sparse_scores(rng, 80, 30) + 5 * strata[:, None], labels, strata

    def test_only_pairs_of_one_stratum_are_compared(self, data):
        scores, labels, strata = data
        wins, pairs = np.zeros((30, 5)), np.zeros(5)
        for concept, stratum in itertools.product(range(5), range(4)):
            mine = strata == stratum
            high, low = scores[mine & labels[:, concept]], scores[mine & ~labels[:, concept]]
            gaps = high[:, None] - low
            wins[:, concept] += (gaps > 0).sum(axis=(0, 1)) + 0.5 * (gaps == 0).sum(axis=(0, 1))
            pairs[concept] += len(high) * len(low)
        with np.errstate(invalid="ignore"):
            expected = wins / pairs
        np.testing.assert_allclose(stats.auroc(scores, labels, strata, block=7), expected, atol=1e-14)
        np.testing.assert_array_equal(
            stats.auroc(stats.rank_features(scores, strata), labels), stats.auroc(scores, labels, strata)
        )

    def test_the_best_feature_of_some_strata_is_that_of_their_documents(self, data):
        scores, labels, strata = data
        kept = np.array([[True] * 4, [True, False, True, True], [False, True, False, False]])
        found = stats.best_features(scores, labels, strata, kept)
        for row, choice in zip(kept, found, strict=True):
            mine = row[strata]
            areas = stats.auroc(scores[mine], labels[mine], strata[mine])[:, :4]
            np.testing.assert_array_equal(choice[:4], areas.argmax(axis=0))
        assert (found[:, 4] == -1).all()


class TestAveragePrecision:
    def test_equals_sklearn(self, scores, labels):
        expected = by_sklearn(average_precision_score, scores, labels)
        np.testing.assert_allclose(stats.average_precision(scores, labels, block=5), expected, rtol=1e-12)

    def test_degenerate_concepts(self):
        labels = np.zeros((20, 2), dtype=bool)
        labels[:, 1] = True
        precision = stats.average_precision(np.arange(40.0).reshape(20, 2), labels)
        np.testing.assert_array_equal(precision, [[np.nan, 1.0]] * 2)

    def test_a_constant_feature_scores_the_share_of_positives(self):
        labels = np.arange(20)[:, None] < 3
        assert stats.average_precision(np.zeros((20, 1)), labels)[0, 0] == pytest.approx(3 / 20)


class TestStandardizedMeanDifference:
    @pytest.mark.parametrize("offset", [0.0, 1e8])
    def test_equals_its_definition(self, labels, offset):
        scores = np.random.default_rng(0).normal(size=(90, 6)) + offset
        expected = np.empty((6, 5))
        for feature, concept in np.ndindex(6, 5):
            inside, outside = scores[labels[:, concept], feature], scores[~labels[:, concept], feature]
            squares = ((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()
            expected[feature, concept] = (inside.mean() - outside.mean()) / math.sqrt(squares / 88)
        tolerance = 1e-12 if offset == 0 else 1e-6
        np.testing.assert_allclose(
            stats.standardized_mean_difference(scores, labels, block=4),
            expected,
            rtol=tolerance,
            atol=tolerance,
        )

    def test_scale_and_shift_change_nothing(self, labels):
        scores = np.random.default_rng(0).normal(size=(90, 6))
        plain = stats.standardized_mean_difference(scores, labels)
        for moved in (scores * 1e-200, scores * 1e200, scores * 3 + 7):
            np.testing.assert_allclose(stats.standardized_mean_difference(moved, labels), plain, rtol=1e-10)

    def test_features_without_spread(self):
        labels = np.arange(30)[:, None] % 3 == 0
        scores = np.concatenate([np.full((30, 1), 0.1), 0.1 + 0.2 * labels, 0.1 - 0.2 * labels], axis=1)
        np.testing.assert_array_equal(stats.standardized_mean_difference(scores, labels)[:, 0], [0, np.inf, -np.inf])

    def test_undefined_and_refused(self):
        scores = np.arange(6.0)[:, None]
        labels = np.zeros((6, 2), dtype=bool)
        labels[:, 1] = True
        assert np.isnan(stats.standardized_mean_difference(scores, labels)).all()
        assert np.isnan(stats.standardized_mean_difference(scores[:2], np.eye(2, dtype=bool))).all()
        with pytest.raises(ValueError, match="feature 0 has an infinite score"):
            stats.standardized_mean_difference(np.full((6, 1), np.inf), labels[:, :1])


class TestPermutationP:
    def test_counts_ties_and_never_reaches_zero(self):
        null = np.array([0.1, 0.2, 0.3, 0.4])
        assert stats.permutation_p(0.3, null) == (3 / 5, 1 / 5)
        assert stats.permutation_p(9.0, null) == (1 / 5, 1 / 5)
        assert stats.permutation_p(-np.inf, null)[0] == 1.0
        assert stats.permutation_p(np.inf, np.array([np.inf, 0.0]))[0] == 2 / 3

    def test_rounding_error_does_not_break_a_tie(self):
        assert stats.permutation_p(0.1 + 0.2, np.array([0.3, 0.0]))[0] == 2 / 3

    def test_nan_is_undefined_when_observed_and_counts_against_when_permuted(self):
        p, _ = stats.permutation_p(np.array([np.nan, 5.0]), np.array([[1.0, np.nan], [1.0, 1.0]]))
        np.testing.assert_array_equal(p, [np.nan, 2 / 3])

    def test_each_test_meets_its_own_null(self):
        rng = np.random.default_rng(0)
        observed, null = rng.normal(size=(4, 3)), rng.normal(size=(50, 3))
        expected = ((null >= observed[:, None]).sum(axis=1) + 1) / 51
        np.testing.assert_allclose(stats.permutation_p(observed, null)[0], expected)

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="empty"):
            stats.permutation_p(1.0, np.empty(0))
        with pytest.raises(ValueError, match="one observed statistic for each column"):
            stats.permutation_p(np.zeros(2), np.zeros((5, 3)))


def every_within_stratum_maximum(scores, labels, strata) -> list[float]:
    """Maxima of AUROC over features for all orders of the labels that keep every stratum's own."""
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    maxima = []
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        permuted = labels.copy()
        for group, order in zip(groups, orders, strict=True):
            permuted[group] = labels[list(order)]
        maxima.append(stats.auroc(scores, permuted, strata).max())
    return maxima


class TestMaxPermutation:
    def test_null_has_the_exact_distribution_of_all_permutations(self):
        rng = np.random.default_rng(0)
        scores, strata = rng.normal(size=(7, 3)), np.array(list("abababa"))
        labels = np.array([1, 0, 1, 1, 0, 0, 0], dtype=bool)[:, None]
        exact = every_within_stratum_maximum(scores, labels, strata)
        found = stats.max_permutation_test(scores, labels, strata, permutations=4_000, rng=0)
        levels, counts = np.unique(np.round(exact, 9), return_counts=True)
        share = [(np.round(found.null, 9) == level).mean() for level in levels]
        np.testing.assert_allclose(share, counts / counts.sum(), atol=0.03)
        assert sum(share) == pytest.approx(1)

    def test_observed_is_the_best_feature(self):
        rng = np.random.default_rng(0)
        scores, labels = sparse_scores(rng, 120, 300), rng.random((120, 6)) < 0.1
        labels[:, 5] = False
        area = stats.auroc(scores, labels)[:, :5]
        one = stats.max_permutation_test(scores, labels, None, permutations=9, rng=0)
        np.testing.assert_array_equal(one.observed, [*area.max(axis=0), np.nan])
        np.testing.assert_array_equal(one.feature, [*area.argmax(axis=0), -1])
        assert np.isnan(one.p[5])
        assert np.isnan(one.null[:, 5]).all()
        assert one.floor == 0.1

    def test_of_equally_good_features_the_first_is_named(self):
        labels = np.arange(12)[:, None] < 4
        scores = np.tile(labels, (1, 9)) * np.repeat([-1, 1], [4, 5])
        found = stats.max_permutation_test(scores, labels, None, permutations=9, rng=0, block=2)
        assert found.feature[0] == 4

    @pytest.mark.parametrize("share", [0.03, 0.3])
    def test_blocks_batches_ranks_and_products_change_nothing(self, monkeypatch, share):
        rng = np.random.default_rng(0)
        scores, labels = sparse_scores(rng, 80, 40), rng.random((80, 6)) < share
        strata = np.arange(80) % 5

        def null(scores, block=None):
            return stats.max_permutation_test(scores, labels, strata, permutations=30, rng=1, block=block).null

        plain = null(scores)
        np.testing.assert_array_equal(null(scores, block=7), plain)
        np.testing.assert_array_equal(null(stats.rank_features(scores, strata)), plain)
        monkeypatch.setattr(permutation, "BATCH_ROWS", 50)
        np.testing.assert_array_equal(null(scores), plain)
        monkeypatch.setattr(ranking, "SPARSE_LABELS", 0.0 if share < 0.1 else 1.0)
        np.testing.assert_array_equal(null(scores), plain)

    def test_many_draws_go_through_in_several_passes(self, monkeypatch):
        rng = np.random.default_rng(0)
        scores, labels = rng.normal(size=(50, 10)), np.arange(50)[:, None] < 8
        scores[:8, 4] += 9
        monkeypatch.setattr(permutation, "DRAW_BYTES", 4 * 50 * 16)
        found = stats.max_permutation_test(scores, labels, None, permutations=99, rng=0)
        assert found.null.shape == (99, 1)
        assert found.p[0] == 0.01
        assert len(np.unique(found.null)) > 20

    def test_calibrated_on_null_data(self):
        rng, p = np.random.default_rng(0), []
        for _ in range(60):
            scores, labels = sparse_scores(rng, 60, 25, zeros=0.5), rng.random((60, 20)) < 0.2
            found = stats.max_permutation_test(scores, labels, np.arange(60) // 15, permutations=99, rng=rng)
            p.extend(found.p)
        low, high = scipy.stats.binom.ppf([0.0005, 0.9995], len(p), 0.05) / len(p)
        assert low <= np.mean(np.array(p) <= 0.05) <= high
        assert scipy.stats.kstest(p, "uniform").statistic < 0.06  # 0.01 of it are the steps of p

    def test_topics_that_carry_the_labels_deceive_only_the_unstratified_test(self):
        rng = np.random.default_rng(0)
        topics = np.repeat(np.arange(4), 30)
        labels = rng.random((120, 20)) < np.where(topics[:, None] == 2, 0.6, 0.05)
        scores = rng.normal(size=(120, 15)) + 2.0 * (topics[:, None] == 2)
        free = stats.max_permutation_test(scores, labels, None, permutations=199, rng=0).p
        within = stats.max_permutation_test(scores, labels, topics, permutations=199, rng=0).p
        assert (free <= 0.05).all()
        assert (within <= 0.05).mean() <= 0.25
        assert 0.3 < within.mean() < 0.7

    def test_labels_fixed_by_the_strata_are_not_tested(self):
        topics = np.repeat([0, 1], 10)
        labels = topics[:, None] == 1
        found = stats.max_permutation_test(topics[:, None] * 1.0, labels, topics, permutations=20, rng=0)
        assert math.isnan(found.p[0]), "no topic holds both a positive and a negative"

    def test_features_ranked_within_other_strata_are_refused(self):
        ranked, labels = stats.rank_features(np.eye(6)), np.eye(6, dtype=bool)
        with pytest.raises(ValueError, match="within other strata"):
            stats.max_permutation_test(ranked, labels, np.arange(6) % 2, permutations=9, rng=0)

    def test_finds_planted_features(self):
        rng = np.random.default_rng(0)
        scores, labels = rng.normal(size=(120, 200)), np.arange(120)[:, None] % 10 == np.arange(10)
        scores[:, 50:60] += 3 * labels
        found = stats.max_permutation_test(scores, labels, np.arange(120) // 40, permutations=199, rng=0)
        np.testing.assert_array_equal(found.feature, np.arange(50, 60))
        assert (found.p == found.floor).all()

    def test_the_seed_decides(self):
        rng = np.random.default_rng(0)
        data = rng.normal(size=(30, 5)), rng.random((30, 3)) < 0.3, None
        first, second, third = (stats.max_permutation_test(*data, permutations=9, rng=s).null for s in (1, 1, 2))
        np.testing.assert_array_equal(first, second)
        assert (first != third).any()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"strata": np.arange(6)}, "every stratum holds a single document"),
            ({"strata": np.zeros(5)}, "give one per document"),
            ({"permutations": 0}, "permutations is 0"),
            ({"scores": np.zeros((6, 0))}, "nothing to test"),
        ],
    )
    def test_bad_input_is_refused(self, change, message):
        call = {
            "scores": np.zeros((6, 2)),
            "labels": np.eye(6, dtype=bool),
            "strata": None,
            "permutations": 9,
        }
        with pytest.raises(ValueError, match=message):
            stats.max_permutation_test(**(call | change), rng=0)


def clustered_sample(rng: np.random.Generator, clusters: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Values with mean 0, half of whose variance lies between clusters."""
    codes = np.repeat(np.arange(clusters), size)
    return rng.normal(size=clusters)[codes] + rng.normal(size=clusters * size), codes


def covers(estimates: list[stats.Estimate], truth: float = 0.0) -> float:
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]))


class TestClusterBootstrap:
    @pytest.mark.parametrize("clusters", [5, 20])
    def test_covers_the_mean_where_rows_as_units_do_not(self, clusters):
        rng = np.random.default_rng(0)
        samples = [clustered_sample(rng, clusters, 10) for _ in range(300)]
        right = [stats.cluster_bootstrap(*sample, rng=rng, n_boot=400) for sample in samples]
        naive = [stats.bootstrap_mean(values, rng=rng, n_boot=400) for values, _ in samples]
        assert 0.9 <= covers(right) <= 0.985
        assert covers(naive) < 0.75

    def test_many_units_need_no_more_memory(self):
        tracemalloc.start()
        stats.bootstrap_mean(np.random.default_rng(0).normal(size=200_000), rng=0, n_boot=60)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 160e6  # at once, drawing and counting 60 x 200,000 units would take three times 96 MB

    def test_large_samples_agree_with_scipy(self):
        values = np.random.default_rng(0).exponential(size=400)
        ours = stats.bootstrap_mean(values, rng=0, n_boot=4_000)
        theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4_000, rng=1)
        assert ours[1:3] == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)

    @pytest.mark.parametrize("values", [np.arange(9.0), np.ones(9)])
    def test_one_cluster_gives_no_interval(self, values):
        found = stats.cluster_bootstrap(values, np.zeros(9), rng=0)
        assert found.value == values.mean()
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.n == 1
        assert math.isnan(stats.bootstrap_mean(values[:1], rng=0).low)

    def test_higher_levels_and_fewer_clusters_are_wider(self):
        values = np.random.default_rng(0).normal(size=60)
        half, most = (stats.bootstrap_mean(values, rng=0, level=level) for level in (0.5, 0.99))
        assert most.low < half.low < half.value < half.high < most.high

    def test_bad_input_is_refused(self):
        for arguments, message in [
            (([1.0, np.nan], [0, 1]), "1 of 2 values are NaN or infinite"),
            (([1.0, np.inf], [0, 1]), "1 of 2 values are NaN or infinite"),
            (([1.0, 2.0], [0]), "a group for each"),
            (([], []), "at least one row"),
            ((np.ones((4, 2)), np.arange(4)), "a group for each"),
        ]:
            with pytest.raises(ValueError, match=message):
                stats.cluster_bootstrap(*arguments, rng=0)
        with pytest.raises(ValueError, match="level is 95"):
            stats.bootstrap_mean(np.ones(3), rng=0, level=95)
        with pytest.raises(ValueError, match="n_boot is 0"):
            stats.bootstrap_mean(np.ones(3), rng=0, n_boot=0)


class TestClusteredRate:
    def test_all_right_or_wrong_groups_are_worth_one_trial_each(self):
        # Wilson's interval of 11 trials, at a t quantile in place of the normal one.
        level = 2 * scipy.stats.norm.cdf(scipy.stats.t.ppf(0.975, 10)) - 1
        for rights in (0, 11):
            hits = np.repeat(float(rights > 0), 220)
            found = stats.clustered_rate(hits, np.repeat(np.arange(11), 20))
            assert found == pytest.approx(stats.wilson(rights, 11, float(level)), abs=1e-9)
        mixed = stats.clustered_rate(np.repeat(np.arange(11) < 3, 20), np.repeat(np.arange(11), 20))
        assert mixed.high - mixed.low == pytest.approx(np.ptp(stats.wilson(3, 11, float(level))[1:3]), rel=0.05)

    def test_right_and_wrong_may_change_places(self):
        rng = np.random.default_rng(0)
        groups = rng.integers(9, size=80)
        hits = (rng.random(80) < np.repeat(0.8, 80)).astype(float)
        hits[::7] = 0.5
        found, turned = stats.clustered_rate(hits, groups), stats.clustered_rate(1 - hits, groups)
        assert (1 - found.high, 1 - found.low) == pytest.approx((turned.low, turned.high))

    def test_trials_of_one_group_that_agree_add_nothing(self):
        rng = np.random.default_rng(1)
        hits = (rng.random(30) < 0.7).astype(float)
        once, often = (stats.clustered_rate(np.repeat(hits, n), np.repeat(np.arange(30), n)) for n in (1, 10))
        assert once.high - once.low == pytest.approx(often.high - often.low, rel=0.05)

    def test_what_gives_no_interval(self):
        assert math.isnan(stats.clustered_rate(np.ones(5), np.zeros(5)).low)
        assert stats.clustered_rate(np.full(6, 0.5), np.arange(6))[:3] == (0.5, 0.5, 0.5)
        for hits, groups in ((np.ones(0), np.ones(0)), (np.full(3, 2.0), np.arange(3)), (np.ones(3), np.arange(2))):
            with pytest.raises(ValueError, match="give shares from 0 to 1"):
                stats.clustered_rate(hits, groups)


class TestShareOverGroups:
    def test_figures_without_a_fault_are_not_certain(self):
        found = stats.share_over_groups(np.full(11, 1 + 1e-16))
        assert found.value == found.high == 1.0
        assert found.low == pytest.approx(stats.clustered_rate(np.ones(11), np.arange(11)).low)
        more = stats.share_over_groups(np.ones(11), trials=15)
        assert found.low < more.low < 1

    def test_in_the_middle_it_is_about_the_t_interval(self):
        values = np.random.default_rng(0).uniform(0.4, 0.6, size=24)
        ours, theirs = (
            stats.share_over_groups(values, cross_validated=True),
            stats.t_interval(values, cross_validated=True),
        )
        assert ours[:3] == pytest.approx(theirs[:3], abs=0.003)
        assert math.isnan(stats.share_over_groups(values[:1]).low)

    def test_the_t_test_is_that_of_scipy(self):
        values = np.random.default_rng(1).normal(0.6, 0.1, size=11)
        tested: Any = scipy.stats.ttest_1samp(values, 0.5, alternative="greater")
        expected = float(tested.pvalue)
        assert stats.t_above(values, 0.5) == pytest.approx(expected)
        assert stats.t_above(values, 0.5, cross_validated=True) > expected
        assert math.isnan(stats.t_above(values[:1], 0.5))


class TestTwoWayBootstrap:
    def test_covers_the_mean_of_a_crossed_design(self):
        rng, both, rows_only = np.random.default_rng(0), [], []
        for _ in range(200):
            matrix = rng.normal(size=(30, 1)) * 0.3 + rng.normal(size=(1, 8)) + rng.normal(size=(30, 8))
            both.append(stats.two_way_bootstrap(matrix, rng=rng, n_boot=300))
            rows_only.append(stats.cluster_bootstrap(matrix.mean(axis=1), np.arange(30), rng=rng, n_boot=300))
        assert covers(both) >= 0.93
        assert covers(rows_only) < 0.7

    def test_missing_cells_are_left_out(self):
        matrix = np.random.default_rng(0).normal(size=(9, 6))
        matrix[2, 3], matrix[4], matrix[:, 5] = np.nan, np.nan, np.nan
        plain = stats.two_way_bootstrap(matrix, rng=0, n_boot=100)
        assert plain.value == pytest.approx(np.nanmean(matrix))
        assert plain.n == 5

    def test_rows_and_columns_may_change_places(self):
        matrix = np.random.default_rng(0).normal(size=(7, 40)) + np.arange(7)[:, None]
        upright, lying = (stats.two_way_bootstrap(m, rng=0, n_boot=4_000) for m in (matrix, matrix.T))
        assert upright == pytest.approx(lying, abs=0.25)

    @pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
    def test_a_single_row_or_column_gives_no_interval(self, shape):
        found = stats.two_way_bootstrap(np.ones(shape), rng=0, n_boot=20)
        assert found.value == 1
        assert found.n == 1
        assert math.isnan(found.low)

    def test_bad_input_is_refused(self):
        for matrix in (np.ones(4), np.full((2, 2), np.nan), np.array([[1.0, np.inf], [0.0, 1.0]])):
            with pytest.raises(ValueError, match="finite cells"):
                stats.two_way_bootstrap(matrix, rng=0)


class TestTInterval:
    @pytest.mark.parametrize("groups", [3, 11])
    def test_of_a_vector_is_the_one_of_the_textbook(self, groups):
        values = np.random.default_rng(0).normal(size=groups)
        theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval()
        assert stats.t_interval(values) == pytest.approx((values.mean(), theirs.low, theirs.high, groups))

    def test_of_a_full_matrix_is_that_of_its_column_means(self):
        cells = np.random.default_rng(0).normal(size=(24, 11)) + np.arange(24)[:, None]
        assert stats.t_interval(cells) == pytest.approx(stats.t_interval(cells.mean(axis=0)))

    def test_missing_cells_do_not_make_levels_of_rows_into_spread_of_groups(self):
        # No group differs from another; rows do, and are missing in different groups.
        cells = np.repeat(np.array([[0.5], [0.9]]), 6, axis=1)
        cells[0, :3] = np.nan
        found = stats.t_interval(cells)
        assert found == pytest.approx((0.7, 0.7, 0.7, 6))

    def test_covers_where_groups_are_few_and_rows_are_missing(self):
        rng, found = np.random.default_rng(0), []
        for _ in range(400):
            rows = rng.normal(size=(30, 1))
            cells = rows - rows.mean() + 0.5 * rng.normal(size=(1, 4)) + rng.normal(size=(30, 4))
            cells[rng.random(cells.shape) < 0.1] = np.nan
            found.append(stats.t_interval(cells))
        assert 0.92 <= covers(found) <= 0.98

    def test_folds_that_share_training_groups_get_the_factor_of_nadeau_and_bengio(self):
        values = np.random.default_rng(0).normal(size=11)
        plain, crossed = stats.t_interval(values), stats.t_interval(values, cross_validated=True)
        ratio = (crossed.high - crossed.low) / (plain.high - plain.low)
        assert ratio == pytest.approx(math.sqrt(1 + 11 / 10))
        assert crossed.value == plain.value

    def test_random_rows_add_the_interval_over_rows(self):
        cells = np.random.default_rng(0).normal(size=(8, 5))
        both = stats.t_interval(cells, random_rows=True)
        sides = [stats.t_interval(cells), stats.t_interval(cells.mean(axis=1))]
        half = [(each.high - each.low) / 2 for each in (both, *sides)]
        assert half[0] == pytest.approx(math.hypot(*half[1:]))
        assert both.n == 5

    def test_undefined_and_refused(self):
        assert math.isnan(stats.t_interval(np.full((2, 3), np.nan)).value)
        one = stats.t_interval(np.array([0.4]))
        assert one.value == 0.4
        assert math.isnan(one.low)
        with pytest.raises(ValueError, match="no finite"):
            stats.t_interval(np.array([1.0, np.inf]))
        with pytest.raises(ValueError, match="level"):
            stats.t_interval(np.array([1.0, 2.0]), level=2)


class TestPermutedWithin:
    def test_rows_stay_within_their_stratum_and_every_order_is_as_likely(self):
        strata = np.array(list("abababa"))
        orders = stats.permuted_within(strata, 5_000, np.random.default_rng(0))
        assert (strata[orders] == strata).all()
        assert (np.sort(orders, axis=1) == np.arange(7)).all()
        counts = np.unique(orders, axis=0, return_counts=True)[1]
        assert len(counts) == math.factorial(4) * math.factorial(3)
        assert scipy.stats.chisquare(counts).pvalue > 0.001

    def test_groups_of_one_label_exchange_it_as_wholes(self):
        groups, labels = np.repeat(np.arange(6), 3), np.repeat([0, 1, 2, 0, 1, 2], 3)
        drawn = stats.permuted_labels(labels, groups, 50, np.random.default_rng(0))
        assert all(len(set(row[groups == group])) == 1 for row in drawn for group in range(6))
        assert (np.sort(drawn, axis=1) == np.sort(labels)).all()
        assert len(np.unique(drawn, axis=0)) > 10

    @pytest.mark.parametrize("together", [False, True])
    def test_mixed_groups_exchange_labels_within(self, together):
        groups, labels = np.repeat([5, 9], 6), np.array([0, 0, 1, 1, 2, 2] * 2)
        drawn = stats.permuted_labels(labels, groups, 200, np.random.default_rng(0), together=together)
        for group in (5, 9):
            assert (np.sort(drawn[:, groups == group], axis=1) == [0, 0, 1, 1, 2, 2]).all()
        pairs = drawn.reshape(200, 6, 2)
        assert (pairs[..., 0] == pairs[..., 1]).all() == together

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="at least one draw"):
            stats.permuted_within(np.zeros(3), 0, np.random.default_rng(0))


class TestAurocInterval:
    @pytest.fixture
    def data(self):
        rng = np.random.default_rng(0)
        topics = rng.integers(9, size=160)
        labels = rng.random((160, 4)) < 0.25
        scores = np.round(rng.normal(size=(160, 4)) + labels, 1)  # ties
        return scores, labels, topics

    def test_equals_resampling_the_documents(self, data):
        scores, labels, topics = data
        found = stats.auroc_interval(scores, labels, topics, rng=3, n_boot=60)
        (counts,) = stats.bootstrap_counts(9, 60, np.random.default_rng(3))
        drawn = [np.repeat(np.arange(160), count.astype(int)[topics]) for count in counts]
        slow = np.array([[roc_auc_score(labels[rows, c], scores[rows, c]) for c in range(4)] for rows in drawn])
        point = np.array([roc_auc_score(labels[:, c], scores[:, c]) for c in range(4)])
        for concept in range(4):
            expected = stats.bootstrap_interval(point[concept], slow[:, concept], found.concepts[concept].n)
            assert found.concepts[concept] == pytest.approx(expected, abs=1e-12)
        assert found.mean == pytest.approx(stats.bootstrap_interval(point.mean(), slow.mean(axis=1), 9), abs=1e-12)

    def test_one_group_gives_no_interval(self, data):
        scores, labels, _ = data
        found = stats.auroc_interval(scores, labels, np.zeros(160), rng=0, n_boot=20)
        for estimate in (found.mean, *found.concepts):
            assert math.isfinite(estimate.value)
            assert math.isnan(estimate.low)
            assert math.isnan(estimate.high)

    @pytest.mark.parametrize("topics", [2, 3, 7])
    def test_few_groups_give_the_t_interval_of_the_jackknife(self, data, topics):
        scores, labels, _ = data
        topic = np.arange(160) % topics
        found = stats.auroc_interval(scores, labels, topic, rng=0, n_boot=20)
        rows = [np.arange(160), *(np.flatnonzero(topic != left) for left in range(topics))]
        slow = np.array([[roc_auc_score(labels[own, c], scores[own, c]) for c in range(4)] for own in rows])
        areas = slow.mean(axis=1)
        pseudo = topics * areas[0] - (topics - 1) * areas[1:]
        half = scipy.stats.t.ppf(0.975, topics - 1) * pseudo.std(ddof=1) / math.sqrt(topics)
        low, high = max(0, min(areas[0], pseudo.mean() - half)), min(1, max(areas[0], pseudo.mean() + half))
        assert found.mean == pytest.approx((areas[0], low, high, topics), abs=1e-12)
        for concept in range(4):  # three positives tell too little
            assert found.concepts[concept].value == pytest.approx(slow[0, concept], abs=1e-12)
            assert math.isnan(found.concepts[concept].low) and math.isnan(found.concepts[concept].high)

    def test_over_three_groups_the_figure_of_many_is_held(self):
        """Every text of a group shares a shift of its concept's readout, so that a bootstrap would hold 0.6 of them."""
        concepts, draws, rng = 12, 120, np.random.default_rng(0)

        def drawn(groups: int, seed: int) -> stats.Estimate:
            group = np.repeat(np.arange(groups), concepts)
            labels = np.tile(np.eye(concepts, dtype=bool), (groups, 1))
            shift, quality = rng.normal(0, 0.8, (groups, concepts)), 1.8 + rng.normal(0, 0.5, (groups, 1))
            scores = (shift[group] + quality[group] * labels) + rng.normal(size=labels.shape)
            return stats.auroc_interval(scores, labels, group, rng=seed, n_boot=2).mean

        many = drawn(300, 0).value
        held = np.mean([each.low <= many <= each.high for each in (drawn(3, seed) for seed in range(draws))])
        assert 0.88 <= held <= 0.995

    def test_of_few_groups_one_may_hold_all_positives_of_a_concept_but_not_of_all(self, data):
        scores, labels, _ = data
        topic = np.arange(160) % 3
        labels[:, 1] &= topic == 2
        found = stats.auroc_interval(scores, labels, topic, rng=0).mean
        assert found.low < found.value < found.high
        found = stats.auroc_interval(scores, labels & (topic == 2)[:, None], topic, rng=0).mean
        assert math.isfinite(found.value) and math.isnan(found.low) and math.isnan(found.high)

    def test_document_order_changes_nothing(self, data):
        order = np.random.default_rng(1).permutation(160)
        shuffled = stats.auroc_interval(*(part[order] for part in data), rng=0, n_boot=50)
        assert shuffled == stats.auroc_interval(*data, rng=0, n_boot=50)

    def test_undefined_concepts_are_left_out_of_the_mean(self, data):
        scores, labels, topics = data
        labels[:, 1], labels[:, 2], labels[:, 3] = False, True, (topics == 4)
        found = stats.auroc_interval(scores, labels, topics, rng=0, n_boot=100)
        first, none, every, single = found.concepts
        assert math.isnan(none.value)
        assert math.isnan(every.value)
        assert none.n == every.n == 0
        assert single.n == 1
        assert 0 <= single.value <= 1
        assert math.isnan(single.low)
        assert found.mean.value == pytest.approx((first.value + single.value) / 2)
        assert found.mean.n == 9
        assert found.mean.low < found.mean.high

    def test_bad_input_is_refused(self, data):
        scores, labels, topics = data
        with pytest.raises(ValueError, match="one score per label"):
            stats.auroc_interval(scores[:, :3], labels, topics, rng=0)
        with pytest.raises(ValueError, match="a group for each"):
            stats.auroc_interval(scores, labels, topics[1:], rng=0)
        scores[9, 2] = np.nan
        with pytest.raises(ValueError, match="concept 2 has a NaN"):
            stats.auroc_interval(scores, labels, topics, rng=0)


class TestWilson:
    @pytest.mark.parametrize(("successes", "n"), [(0, 9), (9, 9), (1, 2), (37, 120), (0, 1)])
    @pytest.mark.parametrize("level", [0.8, 0.95])
    def test_equals_scipy(self, successes, n, level):
        theirs = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
        found = stats.wilson(successes, n, level)
        assert found == pytest.approx((successes / n, theirs.low, theirs.high, n), abs=1e-12)
        assert 0 <= found.low < found.high <= 1

    def test_no_trials_is_undefined(self):
        assert all(math.isnan(value) for value in stats.wilson(0, 0)[:3])

    @pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (0.5, 2), (0, -1), (math.nan, 2)])
    def test_bad_input_is_refused(self, successes, n):
        with pytest.raises(ValueError, match="whole numbers"):
            stats.wilson(successes, n)


@pytest.mark.parametrize(("successes", "n"), [(0, 12), (3, 48), (12, 12), (0, 0)])
def test_an_exact_rate_is_the_one_of_its_tails(successes, n):
    """Half the remaining chance lies beyond each end (Clopper & Pearson 1934)."""
    found = stats.clopper_pearson(successes, n)
    if not n:
        assert all(math.isnan(value) for value in found[:3])
        return
    if successes:
        assert scipy.stats.binom.sf(successes - 1, n, found.low) == pytest.approx(0.025)
    if successes < n:
        assert scipy.stats.binom.cdf(successes, n, found.high) == pytest.approx(0.025)
    assert found.low <= successes / n <= found.high
    with pytest.raises(ValueError, match="0 <= successes"):
        stats.clopper_pearson(n + 1, n)


class TestCorrections:
    @pytest.mark.parametrize("tests", [1, 2, 50])
    def test_equal_reference_implementations(self, tests):
        p = np.round(np.random.default_rng(tests).random(tests) ** 3, 2)  # with ties
        np.testing.assert_allclose(stats.benjamini_hochberg(p), scipy.stats.false_discovery_control(p))
        multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
        np.testing.assert_allclose(stats.benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])
        np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1])

    def test_worked_example(self):
        p = np.array([[0.01, 0.04], [0.03, 0.005]])
        np.testing.assert_allclose(stats.holm(p), [[0.03, 0.06], [0.06, 0.02]])
        np.testing.assert_allclose(stats.benjamini_hochberg(p), [[0.02, 0.04], [0.04, 0.02]])

    @pytest.mark.parametrize("correct", [stats.benjamini_hochberg, stats.holm])
    def test_nan_passes_through_uncounted(self, correct):
        np.testing.assert_array_equal(
            correct(np.array([0.02, np.nan, 0.5, np.nan])),
            [*correct(np.array([0.02])) * 2, np.nan, 0.5, np.nan],
        )
        np.testing.assert_array_equal(correct(np.full(3, np.nan)), np.full(3, np.nan))
        assert correct(np.empty(0)).shape == (0,)

    @pytest.mark.parametrize("correct", [stats.benjamini_hochberg, stats.holm])
    @pytest.mark.parametrize("bad", [-0.1, 1.1, np.inf])
    def test_what_is_no_p_value_is_refused(self, correct, bad):
        with pytest.raises(ValueError, match="is not a p-value"):
            correct(np.array([0.5, bad]))


class TestCorrelation:
    @pytest.fixture
    def pairs(self):
        x = np.random.default_rng(0).normal(size=45)
        return x, x + np.random.default_rng(1).normal(size=45)

    @pytest.mark.parametrize("level", [0.9, 0.95])
    def test_pearson_equals_scipy(self, pairs, level):
        theirs = scipy.stats.pearsonr(*pairs)
        found = stats.correlation(*pairs, level=level).estimate
        assert found[:3] == pytest.approx((theirs[0], *theirs.confidence_interval(level)))
        assert found.n == 45

    def test_permutation_p_is_two_sided_and_has_a_floor(self, pairs):
        x, y = pairs[0], np.random.default_rng(5).normal(size=45)
        weak = stats.correlation(x, y, permutations=4_000, rng=0)
        assert weak.p == pytest.approx(scipy.stats.pearsonr(x, y)[1], abs=0.03)
        assert stats.correlation(x, -y, permutations=4_000, rng=0).p == pytest.approx(weak.p)
        strong = stats.correlation(x, -x, permutations=99, rng=0)
        assert strong.p == strong.floor == 0.01
        assert math.isnan(stats.correlation(x, y).p)

    def test_a_perfect_correlation_of_few_pairs_has_no_interval_and_proves_little(self):
        found = stats.correlation(np.arange(4), 2 * np.arange(4), permutations=2_000, rng=0)
        assert found.estimate.value == pytest.approx(1)
        assert math.isnan(found.estimate.low)
        assert found.p == pytest.approx(2 / 24, abs=0.02)

    def test_constants_and_too_few_pairs(self):
        constant = stats.correlation(np.full(9, 0.1), np.arange(9), permutations=9, rng=0)
        assert math.isnan(constant.estimate.value)
        assert math.isnan(constant.p)
        assert math.isnan(stats.correlation(np.array([1.0]), np.array([2.0])).estimate.value)
        assert math.isnan(stats.correlation(np.array([]), np.array([])).estimate.value)
        three = stats.correlation(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])).estimate
        assert not math.isnan(three.value)
        assert math.isnan(three.low)

    def test_a_partial_correlation_is_that_of_the_closed_form_and_costs_one_degree_of_freedom(self, pairs):
        x, y = pairs
        given = 0.5 * x + np.random.default_rng(2).normal(size=45)
        xy, xz, yz = (np.corrcoef(a, b)[0, 1] for a, b in ((x, y), (x, given), (y, given)))
        expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
        found = stats.correlation(x, y, given=given).estimate
        assert found.value == pytest.approx(expected)
        half = scipy.stats.norm.ppf(0.975) / math.sqrt(45 - 1 - 3)
        assert found[1:3] == pytest.approx(np.tanh(np.arctanh(expected) + np.array([-half, half])))

    def test_a_constant_covariate_takes_nothing_away(self, pairs):
        found = stats.correlation(*pairs, given=np.full(45, 3.0)).estimate
        assert found.value == pytest.approx(stats.correlation(*pairs).estimate.value)

    def test_scale_changes_nothing(self, pairs):
        found = stats.correlation(*pairs).estimate
        for factor in (1e-200, 1e300):
            assert stats.correlation(pairs[0] * factor, pairs[1] + 5).estimate == pytest.approx(found)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([1.0, 2.0], [1.0]), "same length"),
            (([1.0, np.nan], [1.0, 2.0]), "finite values"),
        ],
    )
    def test_bad_input_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            stats.correlation(*arguments)
        with pytest.raises(ValueError, match="needs rng"):
            stats.correlation(np.arange(2.0), np.arange(2.0), permutations=5)
        with pytest.raises(ValueError, match=r"level is 1\.0"):
            stats.correlation(np.arange(2.0), np.arange(2.0), level=1.0)


def test_estimates_read_as_text():
    assert str(stats.Estimate(0.9123, 0.88, 0.94, 11)) == "0.912 [0.880, 0.940]"
    assert str(stats.Estimate(0.9123, math.nan, math.nan, 1)) == "0.912 [no interval, n=1]"
    assert str(stats.Estimate(math.nan, math.nan, math.nan, 0)) == "undefined (n=0)"
    assert str(stats.Correlation(stats.Estimate(0.5, 0.1, 0.8, 20), 0.02, 0.01)).endswith("p=0.02 (floor 0.01)")

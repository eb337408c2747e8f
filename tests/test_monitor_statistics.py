"""Statistics over streams and their thresholds: batch and stream agree, rates are kept, shifts are found in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from affectlens.errors import UserError
from affectlens.monitor.calibration import (
    buckets,
    calibrated,
    conformal_threshold,
    realised_band,
    thresholds,
)
from affectlens.monitor.statistics import StatisticConfig, Stream, alarms, block_means, follow, log_mixture

KINDS = ("rolling", "own_start", "cusum", "edetector")


def traffic(generator: np.random.Generator, episodes: int, tokens: int, rows: int = 1) -> np.ndarray:
    """Correlated scores with an offset of each episode, as texts have."""
    noise = generator.normal(size=(episodes, tokens, rows))
    scores = np.zeros_like(noise)
    for token in range(tokens):
        scores[:, token] = 0.7 * scores[:, token - 1] + np.sqrt(1 - 0.49) * noise[:, token] if token else noise[:, 0]
    return scores + 0.6 * generator.normal(size=(episodes, 1, rows))


@pytest.mark.parametrize("kind", KINDS)
def test_stream_and_batch_agree_to_the_last_bit_whatever_the_padding(kind: Any):
    generator = np.random.default_rng(0)
    scores = traffic(generator, 6, 90, 5)
    lengths = np.array([90, 71, 33, 16, 1, 90])
    config, blocks = StatisticConfig(kind=kind), block_means(traffic(generator, 20, 90, 5), np.full(20, 90), 16)
    batch = follow(config, scores, lengths, blocks)
    spoiled = np.concatenate([scores, np.full((6, 40, 5), 1e6)], axis=1)
    for row, length in enumerate(lengths):
        spoiled[row, length:] = np.nan if row % 2 else 1e6
    padded = follow(config, spoiled, lengths, blocks)
    for row, length in enumerate(lengths):
        stream = Stream(config, (1, 5), blocks)
        alone = np.stack([stream.step(scores[row : row + 1, token])[0] for token in range(length)])
        assert np.array_equal(batch[row, :length], alone.astype(np.float32))
        assert np.array_equal(padded[row, :length], batch[row, :length])
        assert np.isnan(padded[row, length:]).all()


def test_a_burst_late_in_a_long_answer_is_seen_as_well_as_an_early_one():
    scores = np.zeros((2, 2000, 1))
    scores[0, 100:116], scores[1, 1900:1916] = 3, 3
    values = follow(StatisticConfig(), scores, np.array([2000, 2000]))
    assert values[0].max() == pytest.approx(3)
    assert values[1].max() == pytest.approx(3)


def test_own_start_takes_off_the_style_of_the_episode():
    scores = np.full((1, 200, 1), 5.0)
    scores[0, 150:] += 2
    values = follow(StatisticConfig(kind="own_start"), scores, np.array([200]))[0, :, 0]
    assert (values[:24] == 0).all()
    assert values[24:150] == pytest.approx(0, abs=1e-6)
    assert values[-1] == pytest.approx(2)


def test_a_burst_is_one_alarm():
    values = np.zeros((1, 100))
    values[0, 10:60], values[0, 70:75], values[0, 95] = 2, 2, 2
    assert np.flatnonzero(alarms(values, 1.0, 16)[0]).tolist() == [10, 95]
    assert np.flatnonzero(alarms(values, 1.0, 4)[0]).tolist() == [10, 70, 95]


def test_100_null_sets_keep_the_rate_within_its_band():
    generator, target, count = np.random.default_rng(1), 0.05, 60
    rates = []
    for _ in range(100):
        values = follow(StatisticConfig(), traffic(generator, count + 200, 128), np.full(count + 200, 128))[..., 0]
        maxima = values.max(axis=1)
        rates.append((maxima[count:] > conformal_threshold(maxima[:count], target)).mean())
    low, high = realised_band(count, target)
    assert np.mean(rates) < target + 2 * np.std(rates) / 10
    # The band is of the true rate; 200 episodes blur it a little.
    inside = np.mean([low - 0.02 <= rate <= high + 0.02 for rate in rates])
    assert inside >= 0.85


def test_the_conformal_promise_holds_exactly_in_the_mean():
    generator = np.random.default_rng(2)
    draws = generator.normal(size=(20000, 40))
    flagged = draws[:, -1] > conformal_threshold(draws[:, :-1].T, 0.05)
    k = np.ceil(40 * 0.95)
    assert flagged.mean() == pytest.approx(1 - k / 40, abs=0.005)
    assert flagged.mean() <= 0.05 + 0.005


def test_a_planted_shift_is_found_at_the_expected_delay():
    generator = np.random.default_rng(3)
    lengths = np.full(200, 256)
    threshold = conformal_threshold(
        follow(StatisticConfig(), traffic(generator, 200, 256), lengths)[..., 0].max(1), 0.05
    )
    scores = traffic(generator, 300, 256)
    scores[:, 128:192] += 2
    values = follow(StatisticConfig(), scores, np.full(300, 256))[..., 0]
    begun = alarms(values, threshold, 16)
    caught = begun[:, 128:192].any(axis=1)
    delays = begun[caught, 128:192].argmax(axis=1)
    assert caught.mean() > 0.5
    assert 8 <= np.median(delays) <= 28
    own = StatisticConfig(kind="own_start")
    calm = follow(own, traffic(generator, 200, 256), lengths)[..., 0].max(axis=1)
    better = alarms(follow(own, scores, np.full(300, 256))[..., 0], conformal_threshold(calm, 0.05), 16)
    assert better[:, 128:192].any(axis=1).mean() > caught.mean(), "the episode's own style costs the plain mean power"


def test_the_e_detector_keeps_its_own_promise():
    generator = np.random.default_rng(4)
    benign = generator.normal(size=(60, 256, 1))
    blocks = block_means(benign, np.full(60, 256), 16)
    values = follow(StatisticConfig(kind="edetector"), generator.normal(size=(400, 256, 1)), np.full(400, 256), blocks)
    # At 1 / a = 100 an alarm may come once in 100 blocks: 400 x 16 blocks may give 64.
    assert alarms(values[..., 0], np.log(100), 16).sum() <= 64
    shifted = generator.normal(size=(100, 256, 1))
    shifted[:, 128:] += 1
    found = follow(StatisticConfig(kind="edetector"), shifted, np.full(100, 256), blocks)[:, :, 0]
    assert (found.max(axis=1) > np.log(100)).mean() > 0.9


def test_e_values_have_mean_one_under_the_null():
    p = (np.arange(2_000_000) + 0.5) / 2_000_000
    assert np.exp(log_mixture(p)).mean() == pytest.approx(1, abs=0.1)
    assert np.exp(log_mixture(np.array([1 - 1e-9, 1 - 2e-4, 1 - 5e-5]))) == pytest.approx(0.5, abs=1e-3)


def test_a_target_below_what_the_episodes_can_hold_is_refused():
    with pytest.raises(UserError, match=r"needs at least 99 benign episodes, and there are 50"):
        conformal_threshold(np.zeros(50), 0.01)
    conformal_threshold(np.zeros(99), 0.01)
    with pytest.raises(UserError, match="benign episodes"):
        calibrated(np.zeros(10), np.full(10, 40), 0.05)


def test_each_length_has_its_own_threshold_where_there_are_enough_episodes():
    generator = np.random.default_rng(5)
    lengths = np.concatenate([np.full(40, 20), np.full(40, 100), np.full(5, 600)])
    maxima = lengths / 100 + generator.random(85)
    found = calibrated(maxima, lengths, 0.05)
    assert [each.longest for each in found] == [32, None]
    assert [each.episodes for each in found] == [40, 45]
    assert found[0].threshold < found[1].threshold
    assert (
        thresholds(found, np.array([0, 32, 33, 9000])).tolist() == [found[0].threshold] * 2 + [found[1].threshold] * 2
    )
    assert sum(len(own) for _, own in buckets(lengths, 0.5)) == 85


@pytest.mark.parametrize(("count", "target", "high"), [(50, 0.05, 0.09), (200, 0.05, 0.077), (200, 0.01, 0.024)])
def test_the_band_is_that_of_simulations(count: int, target: float, high: float):
    assert realised_band(count, target)[1] == pytest.approx(high, abs=0.006)

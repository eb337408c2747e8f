"""Every kind of interval that is printed holds as often as it says, in simulated studies (:mod:`simulated`)."""

from __future__ import annotations

import numpy as np
import pytest
import simulated
from affectlens import stats

CAUTIOUS = {
    "AUROC of the best feature", "Difference of two methods", "Best feature of one concept",
    "Halves of the prompts agree (r)", "AUROC of one concept", "Rate of a label or of right answers",
    "Same-words pairs told apart", "Change of a rate",
}  # fmt: skip
"""What may hold more often than it says: searched features, rates that only a few groups can tell, and what is read
almost without a fault."""


@pytest.mark.slow
@pytest.mark.parametrize("name", list(simulated.INTERVALS))
def test_intervals_hold(name: str) -> None:
    """Coverage of 0.95 is seen in at least 0.93 of the intervals, less three Monte-Carlo errors; in at most 0.97, more
    three of them, unless the interval is known to be cautious."""
    for row in simulated.INTERVALS[name]():
        print(row)
        assert row.covered >= 0.93 - 3 * row.error, row
        assert row.covered <= 0.97 + 3 * row.error or row.figure in CAUTIOUS, row


@pytest.mark.slow
def test_an_interval_over_few_topics_holds_where_a_bootstrap_does_not() -> None:
    rng, held, studies = np.random.default_rng(0), {"t": 0, "bootstrap": 0}, 200
    for _ in range(studies):
        cells = 0.1 * rng.normal(size=(1, 3)) + 0.1 * rng.normal(size=(simulated.CONCEPTS, 3))
        held["t"] += (found := stats.t_interval(cells)).low <= 0 <= found.high
        topic = np.tile(np.arange(3), simulated.CONCEPTS)
        boot = stats.cluster_bootstrap(cells.reshape(-1), topic, rng=rng, n_boot=300)
        held["bootstrap"] += boot.low <= 0 <= boot.high
    assert 0.9 <= held["t"] / studies <= 0.99
    assert held["bootstrap"] / studies < 0.85


@pytest.mark.slow
def test_a_share_near_one_holds_where_a_bootstrap_does_not() -> None:
    rng, held, studies = np.random.default_rng(1), {"score": 0, "bootstrap": 0}, 200
    groups = np.repeat(np.arange(11), 20)
    for _ in range(studies):
        right = (rng.random(220) < simulated.rates_of(rng, 11, 0.96, 0.3)[groups]).astype(float)
        found = stats.clustered_rate(right, groups)
        boot = stats.cluster_bootstrap(right, groups, rng=rng, n_boot=300)
        held["score"] += found.low <= 0.96 <= found.high
        held["bootstrap"] += boot.low <= 0.96 <= boot.high
    assert held["score"] / studies > 0.93
    assert held["bootstrap"] / studies < 0.9

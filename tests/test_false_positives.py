"""No verdict is "shown" in more than 5% of studies without an effect, and plausible effects are shown."""

from __future__ import annotations

import pytest
from scipy.stats import binom
from simulated_verdicts import TRIALS, Trial


@pytest.mark.slow
@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_verdicts_keep_their_level_and_find_what_is_there(trial: Trial) -> None:
    """More false ones than 5% give with probability 0.01 are too many; of true effects at least half are shown."""
    rate = trial.rate()
    print(f"{trial.name}: {rate:.3f} of {trial.studies}")
    if trial.power:
        assert rate >= 0.5
    else:
        assert rate * trial.studies <= binom.ppf(0.99, trial.studies, 0.05)

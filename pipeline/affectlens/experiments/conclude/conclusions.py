"""All findings of an experiment, in the order in which it asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from affectlens.experiments.conclude import (
    accuracy,
    arc,
    course,
    diagonal,
    dose,
    masking,
    parting,
    preference,
    rate,
    shift,
    trend,
)
from affectlens.experiments.results import Finding, Measured

ANALYSES: dict[str, Callable[[Measured, Any, np.random.Generator], Finding]] = {
    "diagonal": diagonal.analyse,
    "trend": trend.analyse,
    "preference": preference.analyse,
    "dose": dose.analyse,
    "rate": rate.analyse,
    "arc": arc.analyse,
    "parting": parting.analyse,
    "course": course.analyse,
    "masking": masking.analyse,
    "shift": shift.analyse,
    "accuracy": accuracy.analyse,
}
"""By the kind that configs name."""


def conclude(measured: Measured, generator: np.random.Generator) -> list[Finding]:
    """One finding for each of the experiment's analyses.

    Every analysis has a generator of its own, so that adding one leaves the figures of those before it as they were.
    """
    asked = measured.experiment.config.analyses
    return [
        ANALYSES[config.kind](measured, config, each)
        for config, each in zip(asked, generator.spawn(len(asked)), strict=True)
    ]

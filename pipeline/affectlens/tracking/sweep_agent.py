"""What a Weights & Biases sweep agent gets to know: the main figures of the study that it started.

The agent starts ``affectlens run`` with the values it chose, and variables that name the run in which it expects a
figure. Stages have runs of their own, grouped by study, so that one gets the metrics of all stages when they are done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from affectlens.run.observer import Outcome
from affectlens.study import Study
from affectlens.tracking.process import Process

AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_PROJECT", "WANDB_ENTITY")
_log = logging.getLogger("affectlens.tracking")


def report(study: Study, outcomes: Sequence[Outcome]) -> None:
    """Send the metrics to the sweep that started this process, if one did; a failure is a warning."""
    config = study.config.tracking
    variables = {name: os.environ[name] for name in AGENTS if name in os.environ}
    if "WANDB_SWEEP_ID" not in variables or config.mode != "online":
        return
    reports: list[dict[str, Any]] = []
    process = Process("online", (study.config.cache / "wandb").resolve(), config.timeout, reports.append, variables)
    process.send("open", "sweep", arguments={})
    metrics = {f"{outcome.stage}/{name}": value for outcome in outcomes for name, value in outcome.metrics.items()}
    process.send("log", "sweep", values=metrics)
    process.send("finish", "sweep", exit_code=0)
    process.close()
    if not any(each["state"] == "finished" for each in reports):
        reason = next((each["reason"] for each in reports if each["state"] == "failed"), process.lost)
        _log.warning("The W&B sweep %s has no figures of this study (%s).", variables["WANDB_SWEEP_ID"], reason)

"""What a Weights & Biases sweep agent gets to know: the main figures of the study that it started.

The agent starts ``affectlens run`` with the values it chose, and variables that name the run in which it expects a
figure. Stages have runs of their own, grouped by study, so that one gets the metrics of all stages when they are done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from affectlens.run.runner import Outcome
from affectlens.study import Study
from affectlens.tracking.session import SILENT, Session, within

AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_PROJECT", "WANDB_ENTITY")
_log = logging.getLogger("affectlens.tracking")


def report(study: Study, outcomes: Sequence[Outcome]) -> None:
    """Send the metrics to the sweep that started this process, if one did; a failure is a warning."""
    config = study.config.tracking
    wanted = {name: os.environ[name] for name in AGENTS if name in os.environ}
    if "WANDB_SWEEP_ID" not in wanted or config.mode != "online":
        return
    metrics = {f"{each.stage}/{name}": value for each in outcomes for name, value in each.metrics.items()}
    session = Session((study.config.cache / "wandb").resolve(), "online", config.timeout, {})
    session.directory.mkdir(parents=True, exist_ok=True)
    try:
        with session.environment():
            os.environ.update(wanted)
            within(3 * config.timeout, lambda: _send(session, metrics))
    except Exception as error:
        _log.warning("The W&B sweep %s was not told of this study (%s).", wanted["WANDB_SWEEP_ID"], error)


def _send(session: Session, metrics: dict[str, Any]) -> None:
    import wandb

    settings = wandb.Settings(
        **SILENT, root_dir=str(session.directory), init_timeout=session.timeout, finish_timeout=session.timeout
    )
    run = wandb.init(mode="online", reinit="create_new", settings=settings)
    run.log(metrics)
    run.finish()

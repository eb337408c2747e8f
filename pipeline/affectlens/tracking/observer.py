"""Sends the finished stages of a study to Weights & Biases: one run a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectlens.run.observer import Observer
from affectlens.stage import Metrics, Stage
from affectlens.study import Study
from affectlens.tracking import interface, lineage

RECORDED = ("versions", "git", "version", "needs", "data", "model", "model_identity")
"""Keys of the manifest that go into a run's config, beside the stage's own settings."""


class WandbObserver(Observer):
    """Opens a run when a result has been computed, sends its metrics, tables and files, and closes it."""

    def stage_finished(
        self,
        study: Study,
        stage: type[Stage[Any, Any]],
        record: Mapping[str, Any],
        metrics: Metrics,
        folder: Path,
        *,
        computed: bool,
    ) -> None:
        if not computed:
            return
        facts = {key: record[key] for key in RECORDED if key in record}
        with interface.start(
            study.config.tracking,
            study=study.config.name,
            stage=stage.name,
            fingerprint=record["fingerprint"],
            settings={**record["config"], "seed": study.config.seed} | facts,
            directory=study.config.cache / "wandb",
        ) as run:
            run.summary({f"{stage.name}/{name}": value for name, value in metrics.items()})
            if run.active:
                stage.track(stage.open(folder), run)
                run.artifact(lineage.artifact(study, stage, record), uses=lineage.inputs(study, record))

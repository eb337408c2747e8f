"""Sends the stages of a study to Weights & Biases while they run: one run a result, and one that sums up the study.

Every run is written offline, into the cache, by a process of its own. With ``tracking.mode: online`` a second process
sends the same to the server as it comes; where that succeeds, the offline copy is deleted, and where it fails, the
copy is there for ``wandb sync``. So neither a slow nor a lost server costs a study time or data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from affectlens.errors import MissingResult
from affectlens.files import write_json
from affectlens.run import manifest
from affectlens.run.observer import Observer, Outcome
from affectlens.run.workspace import Workspace
from affectlens.settings import TrackingConfig
from affectlens.stage import LIVE, Metrics, Stage
from affectlens.study import Study
from affectlens.tracking import lineage
from affectlens.tracking.process import Process

Mode = Literal["online", "offline", "disabled"]
RECORDED = ("versions", "git", "version", "needs", "data", "model", "model_identity")
"""Keys of the manifest that go into a run's config, beside the settings of its stage."""
SUMMARY = "summary"
"""Job type of the run that sums up a study."""
PAGE = "report"
"""The stage whose page the summary shows."""
SAMPLED, TEXTS = "sampled/texts", 2000
"""Table of sampled texts in the summary, and how many it holds at most."""
NAME_LENGTH = 128
RUNS = "runs"
"""Folder of the records of what was tracked, below the one that W&B writes into."""

_log = logging.getLogger("affectlens.tracking")


def mode(config: TrackingConfig) -> Mode:
    """The configured mode, or what the environment asks for if that is less."""
    asked = os.environ.get("WANDB_MODE", "").strip().lower()
    asked = {"dryrun": "offline"}.get(asked, asked)  # the name that W&B once had for it, and still takes
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in {"true", "1", "yes", "on"}:
        asked = "disabled"
    if "disabled" in (config.mode, asked):
        return "disabled"
    return "offline" if "offline" in (config.mode, asked) else "online"


def run_id(study: str, stage: str, fingerprint: str) -> str:
    """The W&B id of a stage's run: readable, and a function of these three alone."""
    digest = hashlib.sha256("\0".join((study, stage, fingerprint)).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', stage)[:24]}-{digest[:16]}"


@dataclass
class Tracked:
    """One run of this observer.

    Attributes:
        study: its group.
        stage: its job type.
        fingerprint: of the result.
        folder: of the offline copy, once it is open.
        states: ``opened``, ``finished`` or ``failed``, by mode.
        reason: of a failure.
    """

    study: str
    stage: str
    fingerprint: str
    folder: str = ""
    states: dict[str, str] = field(default_factory=dict)
    reason: str = ""


class WandbObserver(Observer):
    """Follows one study.

    It pickles before its first call, and nothing is started before that.
    """

    def __init__(self, every_s: float = 15.0) -> None:
        """Track a study, with a row of progress at most every ``every_s`` seconds."""
        self._every_s = every_s
        self._processes: dict[str, Process] = {}
        self._runs: dict[str, Tracked] = {}
        self._directory = Path()
        self._live = Live()

    def stage_started(self, study: Study, stage: type[Stage[Any, Any]], total: float) -> None:
        if mode(study.config.tracking) == "disabled":
            return
        run = self._open(study, stage.name, study.fingerprint(stage), study.provenance(stage))
        self._live = Live(run, Workspace(study, stage).parts, total)

    def advanced(self, units: float) -> None:
        live = self._live
        live.done += units
        if live.run and time.monotonic() - live.sent >= self._every_s:
            for row in live.rows():
                self._send("log", live.run, values=row)

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
        wanted = mode(study.config.tracking)
        run = run_id(study.config.name, stage.name, record["fingerprint"])
        if wanted == "disabled" or (not computed and _recorded(study, run, wanted)):
            return
        if self._live.run == run:
            for row in self._live.rows():
                self._send("log", run, values=row)
            self._live = Live()
        else:
            self._open(study, stage.name, record["fingerprint"], record)
        self._send("config", run, values=_settings(study, record))
        self._send("summary", run, values=_named(stage.name, metrics))
        self._send("tables", run, stage=stage.name, folder=str(folder))
        made = lineage.artifact(study, stage, record).to_json()
        uses = [artifact.to_json() for artifact in lineage.inputs(study, record)]
        self._send("artifact", run, made=made, uses=uses)
        self._send("finish", run, exit_code=0)

    def stage_failed(self, study: Study, stage: type[Stage[Any, Any]], error: BaseException) -> None:
        if self._live.run:
            self._send("finish", self._live.run, exit_code=1)
            self._live = Live()

    def study_finished(self, study: Study, outcomes: Sequence[Outcome]) -> None:
        """One run with the headline figures of all stages, and the page as a panel."""
        wanted = mode(study.config.tracking)
        if wanted == "disabled":
            return
        records = {outcome.stage: manifest.read(outcome.folder) or {} for outcome in outcomes}
        prints = {stage: record["fingerprint"] for stage, record in records.items()}
        fingerprint = hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()
        run = run_id(study.config.name, SUMMARY, fingerprint)
        if _recorded(study, run, wanted):
            return
        facts = {"seed": study.config.seed, "stages": prints, "model": study.config.model.model_dump(mode="json")}
        self._open(study, SUMMARY, fingerprint, {"config": facts, "fingerprint": fingerprint})
        for outcome in outcomes:
            names = [name for name, _ in study.stage_named(outcome.stage).headline]
            shown = [name + end for name in names for end in ("", "_low", "_high")]
            figures = {name: outcome.metrics[name] for name in shown if name in outcome.metrics}
            self._send("summary", run, values=_named(outcome.stage, figures))
            if outcome.stage == PAGE:
                for page in sorted(outcome.folder.glob("*.html")):
                    self._send("html", run, name=f"{PAGE}/{page.stem}", path=str(page.resolve()))
        if texts := _sampled(study, outcomes):
            self._send("texts", run, name=SAMPLED, rows=texts)
        stages = [study.stage_named(outcome.stage) for outcome in outcomes]
        uses = [lineage.artifact(study, stage, records[stage.name]).to_json() for stage in stages]
        self._send("artifact", run, made=None, uses=uses)
        self._send("finish", run, exit_code=0)

    def close(self) -> None:
        """Wait for the processes, within their limits; one warning for what did not arrive where it should."""
        for process in self._processes.values():
            process.close()
        kept, lost = [], []
        for name, run in self._runs.items():
            online = self._processes.get("online")
            if run.states.get("online") == "finished":
                self._record(name, run, online=True)
                shutil.rmtree(run.folder, ignore_errors=True)
            elif run.states.get("offline") != "finished":
                lost.append(f"{run.study}/{run.stage}")
            elif online is not None:
                kept.append(run.folder)
                run.reason = run.reason or online.lost
        reasons = [run.reason for run in self._runs.values() if run.reason]
        reasons += [process.lost for process in self._processes.values() if process.lost]
        reason = reasons[0] if reasons else "no reason was given"
        if kept:
            _log.warning("W&B runs are kept offline (%s); send them with `wandb sync %s`.", reason, " ".join(kept))
        if lost:
            _log.warning("W&B runs %s are not tracked (%s); the results lie on disk.", ", ".join(lost), reason)
        self._processes.clear()
        self._runs.clear()

    def _open(self, study: Study, stage: str, fingerprint: str, record: Mapping[str, Any]) -> str:
        """Open the run of a result; the same result of the same study always has the same run."""
        config, name = study.config.tracking, study.config.name
        self._directory = (study.config.cache / "wandb").resolve()
        for wanted in ("offline", "online") if mode(config) == "online" else ("offline",):
            if wanted not in self._processes:
                heard = _Listener(self, wanted)
                self._processes[wanted] = Process(wanted, self._directory, config.timeout, heard)
        run = run_id(name, stage, fingerprint)
        self._runs[run] = Tracked(name, stage, fingerprint)
        arguments = {
            "project": config.project,
            "entity": config.entity,
            "tags": list(config.tags),
            "group": name[:NAME_LENGTH],
            "job_type": stage,
            "name": f"{name}/{stage}"[:NAME_LENGTH],
            "id": run,
            "resume": "allow",
            "config": _settings(study, record) | {"fingerprint": fingerprint},
        }
        self._send("open", run, arguments=arguments)
        return run

    def _send(self, action: str, run: str, **values: Any) -> None:
        for process in self._processes.values():
            process.send(action, run, **values)

    def heard(self, wanted: str, report: Mapping[str, Any]) -> None:
        """Take a report of a process, on its thread."""
        run = self._runs.get(report["run"])
        if run is None or report["state"] == "sent":
            return
        run.states[wanted] = report["state"]
        run.reason = report.get("reason", "") or run.reason
        if wanted == "offline" and report["state"] == "opened":
            run.folder = report["folder"]
        if wanted == "offline" and report["state"] == "finished":
            self._record(report["run"], run, online=False)

    def _record(self, name: str, run: Tracked, *, online: bool) -> None:
        """Remember that a result was tracked, for later runs of the study and for ``affectlens compare``."""
        (self._directory / RUNS).mkdir(parents=True, exist_ok=True)
        values = {"group": run.study, "stage": run.stage, "fingerprint": run.fingerprint}
        values |= {"online": online, "time": time.time()}
        write_json(self._directory / RUNS / f"{name}.json", values)


class _Listener:
    """Hands the reports of one process to the observer."""

    def __init__(self, observer: WandbObserver, wanted: str) -> None:
        self._observer, self._wanted = observer, wanted

    def __call__(self, report: dict[str, Any]) -> None:
        self._observer.heard(self._wanted, report)


class Live:
    """What can be seen of a stage while it runs.

    Attributes:
        run: its W&B run; empty when no stage is running.
        done: units of work so far.
        sent: when rows were last taken, in seconds of the monotonic clock.
    """

    def __init__(self, run: str = "", parts: Path | None = None, total: float = 0.0) -> None:
        """Follow a run whose parts are built below ``parts``, of ``total`` units of work."""
        self.run = run
        self.done = 0.0
        self.sent = self._began = time.monotonic()
        self._parts, self._total = parts, total
        self._read: dict[str, int] = {}

    def rows(self) -> list[dict[str, Any]]:
        """Rows for the history: what parts wrote into :data:`affectlens.stage.LIVE` since, and the progress."""
        self.sent = time.monotonic()
        rows = []
        for path in sorted(self._parts.glob(f"*/{LIVE}")) if self._parts else ():
            part = path.parent.name.removesuffix(".building")
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            lines = [line for line in lines if line.endswith("\n")]
            rows += [
                {f"live/{part}/{name}" if name != "step" else name: value for name, value in json.loads(line).items()}
                for line in lines[self._read.get(part, 0) :]
            ]
            self._read[part] = len(lines)
        seconds = max(self.sent - self._began, 1e-9)
        progress = {"step": self.done, "progress/units": self.done, "progress/units_per_s": self.done / seconds}
        if self._total:
            progress["progress/share"] = self.done / self._total
        return [*rows, progress]


def _sampled(study: Study, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Texts sampled under the study's interventions; every so-manieth where there are more than :data:`TEXTS`."""
    from affectlens.use.opened import Opened
    from affectlens.use.samples import sampled

    try:
        rows = sampled(Opened(study, {outcome.stage: outcome.folder for outcome in outcomes}))
    except MissingResult:
        return []
    return [dict(row) for row in rows[:: -(-len(rows) // TEXTS)]]


def _settings(study: Study, record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run: the settings of its stage, and how its result came about."""
    about = {key: record[key] for key in RECORDED if key in record}
    if "run" in record:
        about["device"] = record["run"]["device"]
    return {**record["config"], "seed": study.config.seed} | about


def _named(stage: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{stage}/{name}": value for name, value in metrics.items()}


def _recorded(study: Study, run: str, wanted: Mode) -> bool:
    """Whether a run was tracked before, and online if that is wanted now."""
    try:
        values = json.loads((study.config.cache / "wandb" / RUNS / f"{run}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(values["online"]) or wanted == "offline"

"""Offline Weights & Biases runs as tests look at them: everything that a run holds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affectlens.compare import offline
from affectlens.compare.offline import assign


@dataclass
class OfflineArtifact:
    """An artifact as it waits for its upload. ``entries`` maps a path inside it to a reference or a local file;
    ``input`` says whether the run read it or made it."""

    name: str
    type: str
    aliases: list[str]
    metadata: dict[str, Any]
    entries: dict[str, str]
    input: bool


@dataclass
class OfflineRun:
    """All that an offline run holds. ``x_axes`` maps metrics, or a pattern of them, to the metric they go by."""

    folder: Path
    id: str = ""
    name: str = ""
    project: str = ""
    entity: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, OfflineArtifact] = field(default_factory=dict)
    x_axes: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    started: float = 0.0

    def values(self, key: str) -> list[Any]:
        """The logged values of one metric, in order."""
        return [row[key] for row in self.history if key in row]

    def media(self, key: str) -> dict[str, Any]:
        """The JSON document of the last table or figure logged under ``key``."""
        return json.loads(self.files[self.values(key)[-1]["path"]])


def read_runs(directory: Path) -> list[OfflineRun]:
    """Every offline run below ``directory``, oldest first."""
    runs = [read_run(path.parent) for path in directory.rglob("offline-run-*/run-*.wandb")]
    return sorted(runs, key=lambda run: run.started)


def read_run(folder: Path) -> OfflineRun:
    """The offline run in ``folder``.

    Raises:
        ValueError: the log is not one, or a checksum in it is wrong.
    """
    run = OfflineRun(folder)
    (log,) = folder.glob("run-*.wandb")
    for record in offline.read(log):
        kind = record.WhichOneof("record_type")
        reader = _READERS.get(kind or "")
        if reader is not None:
            reader(run, getattr(record, kind))
    return run


def _read_head(run: OfflineRun, record: Any) -> None:
    run.id, run.name, run.project, run.entity = record.run_id, record.display_name, record.project, record.entity
    run.group, run.job_type, run.tags = record.run_group, record.job_type, list(record.tags)
    run.started = record.start_time.seconds + record.start_time.nanos / 1e9
    assign(run.config, record.config.update)


def _read_config(run: OfflineRun, record: Any) -> None:
    assign(run.config, record.update)


def _read_summary(run: OfflineRun, record: Any) -> None:
    assign(run.summary, record.update)


def _read_history(run: OfflineRun, record: Any) -> None:
    row: dict[str, Any] = {}
    assign(row, record.item)
    run.history.append(row)


def _read_files(run: OfflineRun, record: Any) -> None:
    for item in record.files:
        run.files[item.path] = (run.folder / "files" / item.path).read_bytes()


def _read_artifact(run: OfflineRun, record: Any) -> None:
    entries = {entry.path: entry.ref or entry.local_path for entry in record.manifest.contents}
    metadata = json.loads(record.metadata or "{}")
    run.artifacts[record.name] = OfflineArtifact(
        record.name, record.type, list(record.aliases), metadata, entries, record.use_after_commit
    )


def _read_metric(run: OfflineRun, record: Any) -> None:
    if record.step_metric:
        run.x_axes[record.glob_name or record.name] = record.step_metric


def _read_exit(run: OfflineRun, record: Any) -> None:
    run.exit_code = record.exit_code


_READERS = {
    "run": _read_head,
    "config": _read_config,
    "summary": _read_summary,
    "history": _read_history,
    "files": _read_files,
    "artifact": _read_artifact,
    "metric": _read_metric,
    "exit": _read_exit,
}

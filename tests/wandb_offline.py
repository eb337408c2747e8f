"""Reads an offline Weights & Biases run back from its folder, for tests: no network, no helper process.

The ``run-<id>.wandb`` file is a seven-byte header and then a log in blocks of 32 KiB. A block holds chunks of
(checksum u32, length u16, kind u8, data); a record is one FULL chunk, or a FIRST, any MIDDLE and a LAST one. Each
record is a protocol buffer.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER_BYTES = 7
BLOCK_BYTES = 32 * 1024
CHUNK_HEAD = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineArtifact:
    """An artifact as it waits for its upload. ``entries`` maps a path inside it to a reference or a local file."""

    name: str
    type: str
    aliases: list[str]
    metadata: dict[str, Any]
    entries: dict[str, str]


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
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun(folder)
    (log,) = folder.glob("run-*.wandb")
    for data in _records(log.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        reader = _READERS.get(kind or "")
        if reader is not None:
            reader(run, getattr(record, kind))
    return run


def _records(log: bytes) -> Iterator[bytes]:
    """The records of a log; a record that was cut short at the end is left out, as after a crash."""
    if log[:4] != b":W&B":
        raise ValueError("not a W&B log")
    position, parts = HEADER_BYTES, b""
    while position + CHUNK_HEAD.size <= len(log):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < CHUNK_HEAD.size:
            position += left
            continue
        checksum, length, kind = CHUNK_HEAD.unpack_from(log, position)
        data = log[position + CHUNK_HEAD.size : position + CHUNK_HEAD.size + length]
        if len(data) < length:
            return
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"wrong checksum at byte {position}")
        position += CHUNK_HEAD.size + length
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            yield parts


def _assign(target: dict[str, Any], items: Any) -> None:
    """Writes config, summary or history items into a mapping; a nested key makes nested mappings."""
    for item in items:
        *parents, leaf = [item.key] if item.key else list(item.nested_key)
        inner = target
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = json.loads(item.value_json)


def _read_head(run: OfflineRun, record: Any) -> None:
    run.id, run.name, run.project, run.entity = record.run_id, record.display_name, record.project, record.entity
    run.group, run.job_type, run.tags = record.run_group, record.job_type, list(record.tags)
    run.started = record.start_time.seconds + record.start_time.nanos / 1e9
    _assign(run.config, record.config.update)


def _read_config(run: OfflineRun, record: Any) -> None:
    _assign(run.config, record.update)


def _read_summary(run: OfflineRun, record: Any) -> None:
    _assign(run.summary, record.update)


def _read_history(run: OfflineRun, record: Any) -> None:
    row: dict[str, Any] = {}
    _assign(row, record.item)
    run.history.append(row)


def _read_files(run: OfflineRun, record: Any) -> None:
    for item in record.files:
        run.files[item.path] = (run.folder / "files" / item.path).read_bytes()


def _read_artifact(run: OfflineRun, record: Any) -> None:
    entries = {entry.path: entry.ref or entry.local_path for entry in record.manifest.contents}
    metadata = json.loads(record.metadata or "{}")
    run.artifacts[record.name] = OfflineArtifact(record.name, record.type, list(record.aliases), metadata, entries)


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

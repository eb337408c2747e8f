"""The folders of one stage's result, finished and unfinished, and what they tell about it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from affectlens.plan import Standing
from affectlens.run import manifest
from affectlens.stage import Metrics, Part, Stage
from affectlens.study import Study

AnyStage = type[Stage[Any, Any]]


@dataclass(frozen=True)
class State:
    """What the cache holds of one stage."""

    stage: str
    state: Literal["done", "failed", "partial", "missing"]
    folder: Path
    parts_done: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    record: dict[str, Any] | None = None
    metrics: Metrics = field(default_factory=dict)


class Workspace:
    """The folders of one stage's result, finished and unfinished."""

    def __init__(self, study: Study, stage: AnyStage) -> None:
        self.final = study.folder(stage)
        self.partial = self.final.with_name(self.final.name + ".partial")
        self.parts = self.partial / "parts"
        self.failed = self.partial / "failed"
        self.locks = self.final.with_name(self.final.name + ".locks")

    @property
    def complete(self) -> bool:
        return (self.final / manifest.NAME).is_file()

    def done(self, part: Part) -> bool:
        return (self.parts / part.name / "part.json").is_file()

    def finished(self) -> list[str]:
        """Names of the finished parts. One killed just before its rename has a record, but not its name yet."""
        return sorted(path.parent.name for path in self.parts.glob("*/part.json") if path.parent.suffix != ".building")

    def failure(self, part: Part) -> str | None:
        path = self.failed / f"{part.name}.json"
        if not path.is_file():
            return None
        return json.loads(path.read_text(encoding="utf-8"))["error"]

    def discard(self) -> None:
        """Forget everything about this result. The folder leaves its name first, so no reader sees half of it."""
        for folder in (self.final, self.partial):
            if folder.exists():
                doomed = folder.with_name(f"{folder.name}.discarded-{os.getpid()}")
                os.replace(folder, doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold one named lock; yields False when someone else holds it and ``wait`` is off."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.locks / f"{name}.lock")
        while not lock.is_locked:
            self.locks.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except FileNotFoundError:
                continue  # another run has just finished the stage and cleared its locks away
            except Timeout:
                yield False
                return
        try:
            yield True
        finally:
            lock.release()


def standing(study: Study, stage: AnyStage) -> Standing:
    """What is there of a stage, as plans want it."""
    space = Workspace(study, stage)
    return Standing(space.complete, frozenset(space.finished()))


def inspect(study: Study, stage: AnyStage) -> State:
    """The state of one stage, from the cache alone."""
    space = Workspace(study, stage)
    record = manifest.read(space.final)
    if record is not None:
        metrics = json.loads((space.final / manifest.METRICS).read_text(encoding="utf-8"))
        return State(stage.name, "done", space.final, len(record["parts"]), {}, record, metrics)
    if not space.partial.is_dir():
        return State(stage.name, "missing", space.final)
    done = len(space.finished())
    failures = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["error"] for path in space.failed.glob("*.json")
    }
    return State(stage.name, "failed" if failures else "partial", space.partial, done, failures)

"""The folders of one stage's result, finished and unfinished, and what they tell about it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from affectlens.errors import DamagedResult, UnreadableResult
from affectlens.plan import Standing
from affectlens.run import manifest
from affectlens.stage import Metrics, Part, Stage
from affectlens.study import Study

AnyStage = type[Stage[Any, Any]]
PARTS = "parts"
BUILDING = ".building"
"""Suffix of a part's folder while the part is computed."""


@dataclass(frozen=True)
class State:
    """What the cache holds of one stage.

    Attributes:
        state: ``damaged`` is a result whose records are not what was written; the next run repairs it.
        failures: by part, what it said; of a damaged result, what is wrong, under the name of its stage.
    """

    stage: str
    state: Literal["done", "failed", "partial", "missing", "damaged"]
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
        self.parts = self.partial / PARTS
        self.failed = self.partial / "failed"
        self.locks = self.final.with_name(self.final.name + ".locks")
        self.needs = {name: study.folder(study.stage_named(name)) for name in stage.needs}

    @property
    def complete(self) -> bool:
        return (self.final / manifest.NAME).is_file()

    def done(self, part: Part) -> bool:
        return (self.parts / part.name / manifest.PART).is_file()

    def finished(self) -> list[str]:
        """Names of the finished parts. One killed just before its rename has a record, but not its name yet."""
        records = self.parts.glob(f"*/{manifest.PART}")
        return sorted(path.parent.name for path in records if path.parent.suffix != BUILDING)

    def failures(self) -> dict[str, str]:
        """What failed parts said, by their names."""
        said = {}
        for path in sorted(self.failed.glob("*.json")):
            try:
                said[path.stem] = manifest.read_record(path, {"error": str})["error"]
            except FileNotFoundError:  # another run has just taken it up again
                continue
            except DamagedResult:
                said[path.stem] = "its record was cut short"
        return said

    def failure(self, part: Part) -> str | None:
        return self.failures().get(part.name) if (self.failed / f"{part.name}.json").exists() else None

    def need_digests(self) -> dict[str, str]:
        """For each stage that this one reads, one digest of the bytes that lie there now.

        Raises:
            DamagedResult: a manifest is not what was written.
        """
        records = {name: manifest.read(folder) for name, folder in self.needs.items()}
        return {name: manifest.content_digest(record) for name, record in records.items() if record is not None}

    def has_siblings(self) -> bool:
        """Whether there are parts of other results of this stage."""
        return any(folder.parent != self.partial for folder in self.final.parent.glob(f"*/{PARTS}"))

    def adopt(self, name: str, key: str) -> bool:
        """Take over a finished part that read the same, from another result of this stage; whether there is one.

        Args:
            name: of the part.
            key: digest of all that it reads.
        """
        building = self.parts / f"{name}{BUILDING}"
        for folder in sorted(self.final.parent.glob(f"*/{PARTS}/{name}")):
            try:
                record = manifest.read_part(folder)
                if record.get("key") != key:
                    continue
                shutil.rmtree(building, ignore_errors=True)
                shutil.copytree(folder, building, copy_function=_link, ignore=shutil.ignore_patterns(manifest.PART))
                if manifest.seal_files(building) != record["files"]:
                    continue  # damaged there, so the part is computed
                manifest.write_part(building, {**record, "adopted": folder.parent.parent.name})
                os.replace(building, self.parts / name)
            except (OSError, shutil.Error, DamagedResult, UnreadableResult):
                continue  # gone in the meantime, so the part is computed
            return True
        return False

    def discard(self) -> None:
        """Forget everything about this result. The folder leaves its name first, so no reader sees half of it."""
        remove(self.final)
        remove(self.partial)

    def busy(self) -> list[str]:
        """Parts whose lock is held, that is, on which a living process is working."""
        held = []
        for path in sorted(self.locks.glob("part-*.lock")):
            with self.lock(path.stem, wait=False) as free:
                if not free:
                    held.append(path.stem.removeprefix("part-"))
        return held

    def clear_locks(self) -> None:
        """Remove the lock files of a finished result, unless somebody is at it."""
        if self.locks.is_dir():
            with self.lock("finish", wait=False) as mine:
                if mine:
                    shutil.rmtree(self.locks, ignore_errors=True)

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold one named lock; yields False when someone else holds it and ``wait`` is off."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.locks / f"{name}.lock")
        while not lock.is_locked:
            try:
                self.locks.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=-1 if wait else 0)
            except (FileNotFoundError, FileExistsError):
                if self.locks.is_file():
                    raise
                continue  # another run has just finished the stage and cleared its locks away
            except Timeout:
                yield False
                return
        try:
            yield True
        finally:
            lock.release()


def remove(folder: Path) -> None:
    """Delete a folder. It leaves its name first: nobody takes what is left of it for whole."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.discarded-{os.getpid()}{BUILDING}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def standing(study: Study, stage: AnyStage) -> Standing:
    """What is there of a stage, as plans want it."""
    space = Workspace(study, stage)
    return Standing(space.complete, frozenset(space.finished()))


def _link(source: str, target: str) -> None:
    """The same bytes twice take their space once, where the file system can do that; nothing ever writes into them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def inspect(study: Study, stage: AnyStage) -> State:
    """The state of one stage, from the cache alone.

    Raises:
        UnreadableResult: a record cannot be read.
    """
    space = Workspace(study, stage)
    if space.final.is_dir():
        try:
            record = manifest.read(space.final)
            if record is None:
                raise DamagedResult(f"{space.final / manifest.NAME} is gone")
            metrics = manifest.read_metrics(space.final)
        except DamagedResult as error:
            return State(stage.name, "damaged", space.final, 0, {stage.name: str(error)})
        return State(stage.name, "done", space.final, len(record["parts"]), {}, record, metrics)
    if not space.partial.is_dir():
        return State(stage.name, "missing", space.final)
    failures = space.failures()
    return State(stage.name, "failed" if failures else "partial", space.partial, len(space.finished()), failures)

"""Which jobs were handed over for which result: one JSON file a result, beside the files of its jobs.

``cache/jobs/<stage>-<fingerprint>/submitted.json``, so that a second submission finds the first, from any login node.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from affectlens import plan
from affectlens.files import write_text
from affectlens.stage import Outlook, Part, Stage
from affectlens.study import Study

RECORD = "submitted.json"
PARTS = "parts.json"
PROGRESS = "progress"


@dataclass(frozen=True)
class Entry:
    """The jobs that were handed over for one result, and are needed for it.

    Attributes:
        stage: name of the stage.
        fingerprint: of the result.
        study: name of the study that asked first.
        submitted: when, as ``YYYY-MM-DDTHH:MM:SSZ``.
        tasks: id of each job that does parts, with their names; None where they were not known yet.
        merge: id of the job that merges; the only task's own id where that merges too.
        needs: ids of jobs of earlier stages that these wait for.
        size: units of work of all parts, None where not known yet.
    """

    stage: str
    fingerprint: str
    study: str
    submitted: str
    tasks: dict[str, list[str] | None] = field(default_factory=dict)
    merge: str | None = None
    needs: list[str] = field(default_factory=list)
    size: float | None = None

    @property
    def ids(self) -> list[str]:
        """Every job of the entry, once."""
        return list(dict.fromkeys([*self.tasks, *([self.merge] if self.merge else [])]))


def folder(study: Study, stage: type[Stage[Any, Any]]) -> Path:
    """Where the files of the jobs of one result lie: scripts, pickled jobs, logs, progress."""
    return jobs_folder(study) / f"{stage.name}-{study.fingerprint(stage)[:16]}"


def jobs_folder(study: Study) -> Path:
    """Above the folders of all results' jobs."""
    return study.config.cache / "jobs"


def read(study: Study, stage: type[Stage[Any, Any]]) -> Entry | None:
    """What was handed over for a result; None if nothing ever was."""
    return _read(folder(study, stage) / RECORD)


def _read(path: Path) -> Entry | None:
    try:
        return Entry(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        # A file of another format is as good as none: locks still keep work from being done twice.
        return None


def read_all(study: Study) -> list[Entry]:
    """Every entry in the study's cache, other studies' too."""
    found = (_read(path) for path in sorted(jobs_folder(study).glob(f"*/{RECORD}")))
    return [entry for entry in found if entry is not None]


def write(study: Study, stage: type[Stage[Any, Any]], entry: Entry) -> None:
    """Remember an entry, in the place of an earlier one."""
    _replace(folder(study, stage) / RECORD, json.dumps(asdict(entry), indent=1))


def read_parts(study: Study, stage: type[Stage[Any, Any]]) -> list[Part] | None:
    """The parts of a result as its first job found them; None if none has looked yet."""
    try:
        rows = json.loads((folder(study, stage) / PARTS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return [Part(name, size) for name, size in rows]


def parts_of(study: Study, stage: type[Stage[Any, Any]], known: Outlook) -> list[Part] | None:
    """The parts of a result as they can be planned, else as its first job found them; None if none has looked yet."""
    planned = plan.parts(study, stage, known)
    return read_parts(study, stage) if planned is None else planned


def write_parts(study: Study, stage: type[Stage[Any, Any]], parts: Sequence[Part]) -> None:
    """Keep the list for whoever plans or watches: names and sizes are a function of the fingerprint."""
    _replace(folder(study, stage) / PARTS, json.dumps([[part.name, part.size] for part in parts]))


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


@contextmanager
def lock(studies: Sequence[Study]) -> Iterator[None]:
    """Hold the right to hand over jobs for these studies' cache; waits for whoever has it."""
    from filelock import FileLock

    place = jobs_folder(studies[0])
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "submission.lock"):
        yield

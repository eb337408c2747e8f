"""How far the jobs of a stage are: parts, states, rate, time left, and why what failed has failed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affectlens import plan
from affectlens.cluster import job_registry, slurm
from affectlens.cluster.job_registry import Entry
from affectlens.cluster.slurm import FAILED, JobState
from affectlens.run.workspace import Workspace
from affectlens.stage import Part
from affectlens.study import Study

TAIL = 20_000
"""Bytes of a log that are looked at."""
FRAME = re.compile(
    r"^(srun: error: .*Exited with exit code|srun: (launch|Terminating|Force Terminated|Job step|got SIG|forcing)"
    r"|submitit (INFO|ERROR|WARNING .*Bypassing))"
)
"""Lines of a log that say that something ended, not why."""


@dataclass(frozen=True)
class Progress:
    """What ``affectlens status`` shows of a stage that is not finished.

    Attributes:
        total: number of parts, None if not known yet.
        done: finished parts.
        running: parts that a living process is working on.
        failed: parts that raised.
        jobs: number of jobs in each of Slurm's states.
        rate: units of work a second of all running jobs together; 0 if nothing runs.
        unit: what is counted.
        left: seconds until the parts are done at this rate, None if not known.
        notes: one line for each part and job that failed: which, and the last thing it said.
    """

    total: int | None
    done: int
    running: int
    failed: int
    jobs: Mapping[str, int] = field(default_factory=dict)
    rate: float = 0.0
    unit: str = "parts"
    left: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def pending(self) -> int | None:
        """Parts that nobody has begun."""
        return None if self.total is None else max(0, self.total - self.done - self.running - self.failed)

    def state(self, cached: str) -> str:
        """One word: what the jobs are doing, or else what the cache says."""
        if self.running or self.jobs.get("RUNNING"):
            return "running"
        if self.jobs.get("PENDING"):
            return "queued"
        if self.jobs and not self.failed and {state for state in self.jobs if state in FAILED} == {"CANCELLED"}:
            return "cancelled"
        return "failed" if self.notes else cached


def of_study(study: Study) -> dict[str, Progress]:
    """The progress of every stage of a study that is not finished, by name."""
    open_stages = [stage for stage in study.stages if not Workspace(study, stage).complete]
    known = plan.outlook(study)
    entries = {stage.name: job_registry.read(study, stage) for stage in open_stages}
    states = slurm.states([job for entry in entries.values() for job in _ids(entry)])
    return {
        stage.name: of_stage(
            Workspace(study, stage),
            job_registry.folder(study, stage),
            job_registry.parts_of(study, stage, known),
            {job: states[job] for job in _ids(entries[stage.name]) if job in states},
            Workspace(study, stage).failures(),
            stage.unit,
        )
        for stage in open_stages
    }


def _ids(entry: Entry | None) -> list[str]:
    return entry.ids if entry else []


def of_stage(
    space: Workspace,
    folder: Path,
    parts: Sequence[Part] | None,
    states: Mapping[str, JobState],
    failures: Mapping[str, str],
    unit: str,
) -> Progress:
    """The progress of one stage.

    Args:
        space: its folders.
        folder: of its jobs.
        parts: all of them, None if not known yet.
        states: of the jobs that were handed over, by id.
        failures: what failed parts said.
        unit: of the parts' sizes.
    """
    done = set(space.finished())
    running = [name for name in space.busy() if name not in done]
    beats = {job: beat for job in states if states[job].state == "RUNNING" and (beat := heartbeat(folder, job))}
    rate = sum(beat["rate"] for beat in beats.values())
    notes = [f"part {name}: {error}" for name, error in failures.items()]
    notes += [note(job, state, folder) for job, state in states.items() if state.failed]
    return Progress(
        total=None if parts is None else len(parts),
        done=len(done),
        running=len(running),
        failed=len(failures),
        jobs=dict(Counter(state.state for state in states.values())),
        rate=rate,
        unit=unit,
        left=time_left(parts, done, beats.values(), rate),
        notes=tuple(notes),
    )


def time_left(
    parts: Sequence[Part] | None,
    done: Iterable[str],
    beats: Iterable[Mapping[str, Any]],
    rate: float,
) -> float | None:
    """Seconds until all parts are done, if as many jobs go on as fast as those that run now."""
    if parts is None or rate <= 0:
        return None
    sizes, over = {part.name: part.size for part in parts}, set(done)
    finished = sum(sizes.get(name, 0.0) for name in over)
    # What a job has done of the parts that it has not finished yet.
    begun = sum(
        max(0.0, beat["done"] - sum(sizes.get(name, 0.0) for name in beat["parts"] if name in over)) for beat in beats
    )
    return max(0.0, sum(sizes.values()) - finished - begun) / rate


def heartbeat(folder: Path, job: str) -> dict[str, Any] | None:
    """What a job last said about itself."""
    try:
        return json.loads((folder / job_registry.PROGRESS / f"{job}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def note(job: str, state: JobState, folder: Path) -> str:
    """One line about a job that failed."""
    if state.reason in ("Dependency", "DependencyNeverSatisfied"):
        return f"job {job} {state.state}: a job it waits for did not succeed"
    path = folder / f"{job}_0_log.err"
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL))
            said = last_words(stream.read().decode("utf-8", errors="replace"))
    except OSError:
        return f"job {job} {state.state} before it wrote a log"
    return f"job {job} {state.state}: {said or 'nothing was said'} (log: {path})"


def last_words(log: str) -> str:
    """The line of a log that says why the job ended: the last that is not merely about its end."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if not FRAME.match(line)]
    line = (telling or lines or [""])[-1]
    return re.sub(r"^affectlens\.errors\.\w+: ", "", line)

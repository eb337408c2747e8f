"""What runs on a node: some parts of one stage, or their merge, by the code that a local worker runs.

A job is idempotent. It goes on from whatever is finished, wherever the last one stopped, and has nothing to do when
another was faster; so it can be queued again after a time limit, a preemption or a crash without further thought.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from affectlens.cluster import compat, job_registry
from affectlens.cluster.graph import Task
from affectlens.errors import Unavailable
from affectlens.files import write_text
from affectlens.run import runner
from affectlens.run.observer import Observer
from affectlens.run.workspace import Workspace
from affectlens.study import Study

WRITE_EVERY_S = 2.0
WINDOW_S = 120.0
"""The rate is that of the last so many seconds: a training that goes on from a checkpoint starts with a leap."""


@dataclass(frozen=True)
class Job:
    """One job; called on the node, by submitit.

    Attributes:
        values: the study's config as JSON holds it, so that later changes to the study file do not reach the job.
        source: the study file, for messages.
        overrides: the ``key=value`` arguments, for messages.
        directory: where it was submitted; relative paths in the study start there.
        stage: name of the stage.
        fingerprint: of the stage when it was submitted.
        does: parts, the merge, or both.
        task: which parts.
        workers: processes to share them among, one device each.
        width: how many jobs share the stage; the manifest records it.
        observer: told of the result by the job that merges.
    """

    values: Mapping[str, Any]
    source: str
    overrides: tuple[str, ...]
    directory: str
    stage: str
    fingerprint: str
    does: Literal["parts", "merge", "both"]
    task: Task
    workers: int
    width: int
    observer: Observer = field(default_factory=Observer)

    def __call__(self) -> None:
        os.chdir(self.directory)
        requeue = compat.requeue_handler()
        if requeue is None:  # nobody would queue it again
            return self.work()
        received: list[int] = []
        _listen(received)
        try:
            self.work()
        except SystemExit:
            if signal.SIGUSR2 in received or (received and _preempted()):
                requeue(signal.SIGUSR2, None)
            raise

    def checkpoint(self) -> Any:
        """What submitit queues in this job's place: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def work(self) -> None:
        """Do what the job is for.

        Raises:
            UserError: the inputs changed since the submission, parts failed, or parts are missing for the merge.
        """
        study = Study.of(self.values, self.source, self.overrides)
        stage = study.stage_named(self.stage)
        if study.fingerprint(stage) != self.fingerprint:
            raise Unavailable(
                f"stage `{self.stage}`: its inputs are not those of the submission; the texts, the model or the "
                "program changed, or this node sees other files; submit again"
            )
        if Workspace(study, stage).complete:
            return
        every = runner.parts_of(study, stage)
        if self.task.parts is None:
            job_registry.write_parts(study, stage, every)
        parts = [] if self.does == "merge" else self.task.choose(every)
        reporter = Heartbeat(progress_file(job_registry.folder(study, stage)), [part.name for part in parts])
        if self.does != "merge":
            runner.run_parts(study, stage, parts, workers=self.workers, reporter=reporter)
        if self.does != "parts":
            runner.merge_parts(study, stage, workers=self.width, reporter=reporter, observer=self.observer)


def progress_file(folder: Path, job: str | None = None) -> Path:
    """Where a job says how far it is; this process's own job when none is named."""
    if job is None:
        from submitit import JobEnvironment

        try:
            job = JobEnvironment().job_id
        except RuntimeError:  # not inside a job of submitit's
            job = f"process-{os.getpid()}"
    return folder / job_registry.PROGRESS / f"{job}.json"


class Heartbeat(runner.Reporter):
    """Writes how far the job is into a file, every few seconds, and what it waits for into its log."""

    def __init__(self, path: Path, parts: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._facts: dict[str, Any] = {"parts": list(parts), "done": 0.0, "total": 0.0, "rate": 0.0}
        self._recent: deque[tuple[float, float]] = deque()

    def stage_started(self, stage: str, total: float, done: float, unit: str) -> None:
        self._facts |= {"total": total, "done": done}
        self._recent = deque([(self._clock(), done)])
        self._write()
        print(f"{stage}: {total - done:,.0f} of {total:,.0f} {unit} to do", flush=True)

    def advanced(self, units: float) -> None:
        self._facts["done"] += units
        now = self._clock()
        if now - self._recent[-1][0] < WRITE_EVERY_S:
            return
        self._recent.append((now, self._facts["done"]))
        while now - self._recent[0][0] > WINDOW_S and len(self._recent) > 2:
            self._recent.popleft()
        (begin, before), (end, after) = self._recent[0], self._recent[-1]
        self._facts["rate"] = (after - before) / (end - begin)
        self._write()

    def waiting(self, message: str) -> None:
        print(message, flush=True)

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, json.dumps(self._facts))


def _listen(received: list[int]) -> None:
    """Turn the signals before a job's end into SystemExit, and note which came.

    SIGUSR2 comes before a time limit, SIGTERM before everything else that ends a job. What holds SIGTERM back until its
    checkpoint is written (the training of an SAE) is thereby given the time to write it.
    """

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the way out is not interrupted
        raise SystemExit(128 + number)

    def warn(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR2, warn)


def _preempted() -> bool:
    """Whether Slurm is about to give this job's node to another; then it is queued again, where a cancelled one is not.

    A preempted job that ends by itself within its time of grace counts as failed, so it has to say that it comes back.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=False).stdout
    facts = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    return facts.get("JobState") == "RUNNING" and facts.get("PreemptTime", "None") != "None"

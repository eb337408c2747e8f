"""Slurm, through submitit: the script of an array, its submission, and what became of it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectlens.cluster import compat
from affectlens.cluster.job import Job
from affectlens.errors import Unavailable, UserError
from affectlens.settings import ClusterConfig, Resources, minutes

QUEUED = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
RUNNING = frozenset({"RUNNING", "CONFIGURING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"})
FAILED = frozenset(
    {"FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED", "CANCELLED"}
)
INVALID = "DependencyNeverSatisfied"
QUEUE = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r")
FORGOTTEN = "Invalid job id"
"""What squeue says when it knows none of the jobs; it then fails, too."""
REACHING = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})
"""Variables of Slurm's that say where it is, not which allocation this is."""
ANSWER_S = 60
HISTORY = ("sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State,Reason")


@dataclass(frozen=True)
class JobState:
    """What Slurm says of one job.

    Attributes:
        state: Slurm's word, for example ``RUNNING``; ``UNKNOWN`` when it has forgotten the job.
        reason: why it is not running, or why it ended.
    """

    state: str
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether it runs or is going to."""
        return self.state in RUNNING or (self.state in QUEUED and self.reason != INVALID)

    @property
    def failed(self) -> bool:
        return self.state in FAILED or (self.state in QUEUED and self.reason == INVALID)


def parameters(
    config: ClusterConfig, wants: Resources, *, name: str, threads: int, after: Sequence[str]
) -> dict[str, Any]:
    """What submitit is told about one job or array.

    Args:
        config: settled; for what is the same for all jobs.
        wants: of the stage.
        name: of the job.
        threads: of one worker.
        after: ids of jobs that have to succeed first.
    """
    assert wants.time is not None  # there is one built in
    options: dict[str, Any] = {
        # Without it, jobs whose need has failed stay in the queue for ever.
        "kill-on-invalid-dep": "yes",
        # A job whose node dies is queued again.
        "requeue": True,
        **wants.options,
    }
    found: dict[str, Any] = {
        "job_name": name,
        "time": minutes(wants.time),
        "cpus_per_task": wants.cpus or threads * max(1, wants.gpus),
        "ntasks_per_node": 1,
        "signal_delay_s": config.warning_seconds,
        "array_parallelism": wants.max_parallel,
        "additional_parameters": options,
    }
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(wants, key) is not None:
            found[key] = getattr(wants, key)
    if wants.gpus:
        found["gpus_per_node"] = wants.gpus
    if wants.mem_gb is not None:
        found["mem"] = f"{round(wants.mem_gb * 1024)}MB"
    if config.setup:
        found["setup"] = list(config.setup)
    if after:
        # Each job of an array by its own id: the failure of one is then seen at once and not when all have ended.
        found["dependency"] = "afterok:" + ":".join(after)
    return found


def interpreter(config: ClusterConfig) -> str:
    """What starts Python on a node, deaf to warnings until it can heed them: by itself a signal would end it."""
    return f'bash -c \'trap "" TERM USR2; exec "$@"\' job {config.python or shlex.quote(sys.executable)}'


def script(parameters: Mapping[str, Any], folder: Path, config: ClusterConfig, count: int) -> str:
    """The batch script that :func:`submit` hands over for ``count`` jobs."""
    command = f"{interpreter(config)} -u -m {compat.LOADER} {shlex.quote(str(folder.absolute()))}"
    return compat.batch_script(command, folder, count, parameters)


def submit(jobs: Sequence[Job], parameters: Mapping[str, Any], folder: Path, config: ClusterConfig) -> list[str]:
    """Hand over jobs as one array, a single one by itself; returns the id of each.

    Raises:
        UserError: there is no Slurm here, or it refuses.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None:
        raise Unavailable(
            "submit: this machine has no sbatch; log in where Slurm is, or use --cluster local (processes of this "
            "machine)"
        )
    if "%" in str(folder.absolute()):
        raise UserError(
            f"submit: Slurm would read the `%` in {folder.absolute()} as a pattern; set `cache:` without one"
        )
    executor = SlurmExecutor(folder.absolute(), max_num_timeout=config.requeues, python=interpreter(config))
    executor.update_parameters(**parameters)
    try:
        # What sbatch complains of is said once, by the error below.
        with contextlib.redirect_stderr(io.StringIO()), outside_allocation(), executor.batch():
            handed = [executor.submit(job) for job in jobs]
        return [each.job_id for each in handed]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        complaint, name = _complaint(str(error)), parameters["job_name"]
        remedy = ""
        if "array" in complaint:
            remedy = (
                f"; this site's MaxArraySize (`scontrol show config`) is too small for an array of {len(jobs)} jobs: "
                "raise `parts_per_job` (or lower `jobs`) of the stage in `cluster`"
            )
        raise Unavailable(f"submit: Slurm refuses {name} ({complaint}){remedy}") from None


@contextlib.contextmanager
def outside_allocation() -> Iterator[None]:
    """Without the variables that describe the allocation around this process: jobs would take them for their own.

    Those that say how Slurm is reached stay.
    """
    described = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "SLURMD_", "SRUN_")) and name not in REACHING
    }
    for name in described:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(described)


def _complaint(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("sbatch: error:")]
    return "; ".join(line.removeprefix("sbatch: error: ") for line in lines) or " ".join(text.split())[-200:]


def cancel(ids: Sequence[str]) -> None:
    """End jobs, waiting and running ones. Those that have ended already are passed over."""
    if ids:
        _ask("scancel", *ids)


def states(ids: Sequence[str], *, required: bool = False) -> dict[str, JobState]:
    """What became of jobs, by id; nothing of those that Slurm has forgotten, or when it cannot be asked here.

    Args:
        ids: of the jobs.
        required: whether no answer is an error. To whoever submits, silence must not look like the absence of jobs.

    Raises:
        UserError: Slurm does not answer, and ``required`` is on.
    """
    if not ids:
        return {}
    numbers = ",".join(sorted({job.split("_")[0] for job in ids}))
    queue = _ask(*QUEUE, f"--jobs={numbers}", required=required)
    known = parse(_ask(*HISTORY, f"--jobs={numbers}")) | parse(queue)
    return {job: known[job] for job in ids if job in known}


def _ask(*command: str, required: bool = False) -> str:
    """What a command of Slurm's prints; nothing where there is none, or where it fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)
        said, complaint = done.stdout, done.stderr.strip() if done.returncode else ""
    except subprocess.TimeoutExpired:
        said, complaint = "", f"nothing within {ANSWER_S} s"
    if required and complaint and FORGOTTEN not in complaint:
        raise Unavailable(f"Slurm does not answer ({command[0]}: {complaint.splitlines()[-1]}); try again when it does")
    return said


def parse(listing: str) -> dict[str, JobState]:
    """Lines ``id|state|reason`` of squeue or sacct, by id; ranges of waiting jobs (``7_[2-4,6%2]``) one by one."""
    found = {}
    for line in listing.splitlines():
        job, state, *rest = line.split("|")
        word = state.split(" ")[0].rstrip("+")  # "CANCELLED by 1000"
        for each in _ids(job):
            found[each] = JobState(word, "" if not rest or rest[0] == "None" else rest[0])
    return found


def _ids(job: str) -> list[str]:
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job)
    if match is None:
        return [job]
    found = []
    for piece in match[2].split(","):
        low, _, high = piece.partition("-")
        end, _, step = high.partition(":")
        found += [f"{match[1]}_{index}" for index in range(int(low), int(end or low) + 1, int(step or 1))]
    return found

"""The same graph of jobs without a batch system: as processes of this machine, or in this very process.

Slurm waits for needs and limits how many run at a time; without it this module does, and returns when the last job has
ended.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectlens.cluster.job import Job
from affectlens.cluster.progress import last_words
from affectlens.errors import Unavailable
from affectlens.settings import ClusterConfig, Resources, minutes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """One job, and where it stands in the graph.

    Attributes:
        name: for messages; also what others call it in ``needs``.
        needs: names of all jobs that have to succeed first.
        job: what it does.
        group: jobs of one array share it, and its limit.
        folder: takes the log.
        wants: what it asks for.
    """

    name: str
    needs: tuple[str, ...]
    job: Job
    group: str
    folder: Path
    wants: Resources


def run_debug(planned: Sequence[Planned], say: Say) -> None:
    """One job after the other in this process, where a debugger reaches them.

    Raises:
        UserError: jobs failed; those that do not need them were done.
    """
    from submitit import DebugExecutor

    lost: dict[str, str] = {}
    for each in planned:
        if _skipped(each, lost, say):
            continue
        say(f"{each.name}: started")
        error = DebugExecutor(each.folder).submit(each.job).exception()
        if error is not None:
            lost[each.name] = str(error)
            say(f"{each.name}: failed ({type(error).__name__}: {error})")
    _report(lost, planned)


def run_local(planned: Sequence[Planned], config: ClusterConfig, say: Say, cores: int | None = None) -> None:
    """Each job in a process of its own, as many at a time as there are cores for.

    Raises:
        UserError: jobs failed; those that do not need them were done.
    """
    from submitit import LocalExecutor

    room = cores or available_cores()
    waiting, running = list(planned), dict[str, tuple[Planned, Any]]()
    done, lost = set[str](), dict[str, str]()
    try:
        while waiting or running:
            for name, (_, job) in list(running.items()):
                if job.done():
                    del running[name]
                    reason = _outcome(job)
                    if reason is None:
                        done.add(name)
                        say(f"{name}: done")
                    else:
                        lost[name] = reason
                        say(f"{name}: failed ({reason}); log: {job.paths.stderr}")
            waiting = [each for each in waiting if not _skipped(each, lost, say)]
            for each in [each for each in waiting if set(each.needs) <= done]:
                if _fits(each, [other for other, _ in running.values()], room):
                    waiting.remove(each)
                    executor = LocalExecutor(each.folder, max_num_timeout=config.requeues, python=config.python)
                    executor.update_parameters(**_limits(each.wants, config))
                    running[each.name] = (each, executor.submit(each.job))
                    say(f"{each.name}: started")
            time.sleep(0.05)
    finally:
        for _, job in running.values():
            with contextlib.suppress(OSError):
                job.cancel()
    _report(lost, planned)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limits(wants: Resources, config: ClusterConfig) -> dict[str, Any]:
    assert wants.time is not None  # there is one built in
    return {
        "timeout_min": minutes(wants.time),
        "signal_delay_s": config.warning_seconds,
        "gpus_per_node": wants.gpus,
        "setup": list(config.setup),
    }


def _fits(each: Planned, running: Sequence[Planned], room: int) -> bool:
    """Whether a job may start beside those that run: one alone always may."""
    if not running:
        return True
    if each.wants.gpus and any(other.wants.gpus for other in running):
        return False  # every job sees the same accelerators
    used = sum(_cores(other) for other in running)
    return used + _cores(each) <= room and Counter(o.group for o in running)[each.group] < each.wants.max_parallel


def _cores(each: Planned) -> int:
    return each.wants.cpus or each.job.values["compute"]["threads"] * each.job.workers


def _outcome(job: Any) -> str | None:
    """Why a job of submitit's failed; None if it did not."""
    if job.exception() is None:
        return None
    with contextlib.suppress(OSError):
        return last_words(job.paths.stderr.read_text(encoding="utf-8", errors="replace")) or "died without a word"
    return "died without a word"


def _skipped(each: Planned, lost: dict[str, str], say: Say) -> bool:
    """Whether a job it needs was lost; then it is, too."""
    missing = next((need for need in each.needs if need in lost), None)
    if missing is not None and each.name not in lost:
        lost[each.name] = f"needs {missing}"
        say(f"{each.name}: left out, because {missing} failed")
    return each.name in lost


def _report(lost: dict[str, str], planned: Sequence[Planned]) -> None:
    if lost:
        name, reason = next(iter(lost.items()))
        raise Unavailable(
            f"{len(lost)} of {len(planned)} jobs did not succeed, first {name} ({reason}); finished parts are kept; "
            "remove the cause and submit with --mode retry"
        )

"""What this package uses of submitit beyond its documented interface, in one place and under test."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

LOADER = "submitit.core._submit"
"""Module that a job's script runs: it loads the pickled job from the folder named after it, and calls it."""
Requeue = Callable[[int, FrameType | None], Any]


def batch_script(command: str, folder: Path, count: int, parameters: Mapping[str, Any]) -> str:
    """The script that submitit hands to sbatch for an array of ``count`` jobs, or for a single one.

    Args:
        command: that each job runs.
        folder: takes logs.
        count: jobs.
        parameters: of :meth:`submitit.SlurmExecutor.update_parameters`.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(command, folder, map_count=count if count > 1 else None, **parameters)


def requeue_handler() -> Requeue | None:
    """In a job that submitit started: its handler of the warning before a time limit, which queues the job again."""
    handler = signal.getsignal(signal.SIGUSR2)
    return handler if callable(handler) else None

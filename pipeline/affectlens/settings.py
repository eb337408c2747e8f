"""Sections of the study file that never decide a result: tracking, where the work runs, what jobs ask a cluster for."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from affectlens.config import Config

DAYS = re.compile(r"(?P<d>\d+)-(?P<h>\d{1,2})(?::(?P<m>\d{1,2}))?(?::(?P<s>\d{1,2}))?")
HOURS = re.compile(r"(?P<h>\d+):(?P<m>\d{2}):(?P<s>\d{2})")
UNITS = {"m": 1, "h": 60, "d": 1440}


def minutes(time: str) -> int:
    """A time limit in whole minutes, rounded up.

    Args:
        time: ``H:MM:SS``, Slurm's ``D-HH[:MM[:SS]]``, or a number with a unit: ``90m``, ``2h``, ``1d``.

    Raises:
        ValueError: anything else.
    """
    text = time.strip()
    if text[:-1].isdigit() and text[-1:] in UNITS:
        found = int(text[:-1]) * UNITS[text[-1]]
    else:
        match = DAYS.fullmatch(text) or HOURS.fullmatch(text)
        if match is None:
            raise ValueError(f'`{time}` is not a time limit; write "2:00:00", "1-12:00:00", 90m, 2h or 1d')
        given = {key: int(value or 0) for key, value in match.groupdict().items()}
        found = given.get("d", 0) * 1440 + given["h"] * 60 + given["m"] + (given["s"] > 0)
    if found < 1:
        raise ValueError(f"`{time}`: a job needs at least a minute")
    return found


def _time(value: Any) -> Any:
    if isinstance(value, int):
        # YAML reads an unquoted 2:00:00 as a number to the base of 60, and Slurm a bare number as minutes.
        raise ValueError(f'`{value}` could mean seconds or minutes; write a quoted "2:00:00", or 90m, 2h, 1d')
    if isinstance(value, str):
        minutes(value)
    return value


class Resources(Config):
    """What the jobs of one stage ask for; a key that is left out comes from `default`, then from the site's Slurm."""

    partition: str | None = None
    """Or several, separated by commas."""
    account: str | None = None
    """Who pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features a node must have, for example `a100|h100`."""
    gpus: int = Field(default=0, ge=0)
    """Accelerators of one job. With more than one, the job's parts are shared among as many workers, one each."""
    cpus: int | None = Field(default=None, ge=1)
    """Cores of one job. Left out: `compute.threads` for each worker."""
    mem_gb: float | None = Field(default=None, gt=0)
    """Memory of one job."""
    time: Annotated[str | None, BeforeValidator(_time)] = None
    """Limit of one job: `"2:00:00"` (quoted), `"1-12:00:00"`, `90m`, `2h`, `1d`. A job that reaches it is queued again
    and goes on. Left out: an hour."""
    parts_per_job: int = Field(default=8, ge=1)
    """Parts that one job of the array does, one after the other."""
    jobs: int = Field(default=8, ge=1)
    """Jobs of the array where the number of parts shows only when it starts, as in `causal`."""
    max_parallel: int = Field(default=64, ge=1)
    """Jobs of the array that run at the same time."""
    options: dict[str, str | int | float | bool] = Field(default={})
    """Further options of sbatch, for example `{mail-type: FAIL, nice: 100}`."""


class ClusterConfig(Config):
    """Where the stages run as batch jobs. Never part of a fingerprint: the same study gives the same bytes.

    A study's own class has a section of `Resources` for each of its stages.
    """

    default: Resources = Resources()
    """For every stage, as far as its own section does not say otherwise."""
    merge: Resources = Resources()
    """For the jobs that merge a stage's parts."""
    setup: tuple[str, ...] = ()
    """Shell lines that every job begins with, for example `module load cuda`."""
    python: str | None = None
    """Command that starts Python on a node. Left out: the interpreter that submits."""
    warning_seconds: int = Field(default=120, ge=1)
    """How long before its time limit a job is told to save what it has; it is then queued again."""
    requeues: int = Field(default=20, ge=0)
    """How often a job that reached its time limit is queued again before it counts as failed."""

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "experiments" not in values or "measure" in values:
            return values
        message = "the cluster section `experiments` is called `measure` now; the old name goes with the next release"
        warnings.warn(message, FutureWarning, stacklevel=2)
        return {"measure" if name == "experiments" else name: value for name, value in values.items()}


class TrackingConfig(Config):
    """What is sent to Weights & Biases. Never part of a fingerprint."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    """`offline` keeps runs in the cache for `wandb sync`; `online` needs an API key. WANDB_MODE can lower it."""
    project: str = Field(default="affectlens", pattern=r"^[^/\\#?%:]+$", max_length=128)
    """Where the runs appear."""
    entity: str | None = None
    """User or team that owns the project; the account's own when left out."""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()
    """Labels on every run of the study."""
    upload_mb: float = Field(default=100.0, ge=0)
    """Results up to this size (megabytes) are uploaded as artifacts; larger ones, and activations always, are recorded
    by reference: where they lie, how large they are, and their sha256."""
    timeout: float = Field(default=20.0, gt=0)
    """Seconds to wait for the server when a run is opened, and again for its uploads when the study has ended."""


class ComputeConfig(Config):
    """Where and how wide the work runs. Never part of a fingerprint: the same study gives the same bytes."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`cpu`, `mps`, `cuda`, `cuda:0`, or `auto`: every accelerator there is, else the processor."""
    workers: int | Literal["auto"] = 1
    """Processes that share the parts of a stage. `auto`: one per accelerator, or cores / threads."""
    threads: int = Field(default=2, ge=1)
    """Of each worker. Fixed, because a different number of threads may round differently."""

    @field_validator("workers")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{value} workers cannot do anything; give 1 or more, or `auto`")
        return value

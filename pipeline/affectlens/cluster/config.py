"""What jobs ask a cluster for: the study's section ``cluster``, and site profiles of the same form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from affectlens.config import Config, read_yaml, validate

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
    """Where the stages run as batch jobs. Never part of a fingerprint: the same study gives the same bytes."""

    default: Resources = Resources()
    """For every stage, as far as its own section does not say otherwise."""
    merge: Resources = Resources()
    """For the jobs that merge a stage's parts."""
    corpus: Resources = Resources()
    activations: Resources = Resources()
    sae: Resources = Resources()
    directions: Resources = Resources()
    match: Resources = Resources()
    compare: Resources = Resources()
    geometry: Resources = Resources()
    causal: Resources = Resources()
    experiments: Resources = Resources()
    report: Resources = Resources()
    setup: tuple[str, ...] = ()
    """Shell lines that every job begins with, for example `module load cuda`."""
    python: str | None = None
    """Command that starts Python on a node. Left out: the interpreter that submits."""
    warning_seconds: int = Field(default=120, ge=1)
    """How long before its time limit a job is told to save what it has; it is then queued again."""
    requeues: int = Field(default=20, ge=0)
    """How often a job that reached its time limit is queued again before it counts as failed."""


BUILT_IN = ClusterConfig.model_validate(
    {
        "default": {"time": "1:00:00"},
        "merge": {"gpus": 0},
        "sae": {"parts_per_job": 1},
        "causal": {"parts_per_job": 2},
    }
)
"""Below every profile: a part of `sae` is a whole training, one of `causal` is minutes, the others are short."""


def read_profile(path: Path) -> ClusterConfig:
    """A site profile: the keys of the study's section ``cluster``, at the top of a file of their own.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    return validate(ClusterConfig, read_yaml(path), str(path))


def settle(study: ClusterConfig, profile: ClusterConfig | None = None) -> ClusterConfig:
    """The study's section over the profile over what is built in, key by key."""
    layers = [BUILT_IN, *([profile] if profile else []), study]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _over(merged, layer.model_dump(exclude_unset=True))
    return ClusterConfig.model_validate(merged)


def resources(settled: ClusterConfig, section: str) -> Resources:
    """What the jobs of a stage (or ``merge``) ask for: its own section over ``default``."""
    own, common = getattr(settled, section), settled.default
    return Resources.model_validate(_over(common.model_dump(exclude_unset=True), own.model_dump(exclude_unset=True)))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _over(result[key], value) if nested else value
    return result

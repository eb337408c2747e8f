"""The record of one finished stage: what went in, what came out, where and how it ran."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from affectlens.errors import DamagedResult, UnreadableResult
from affectlens.files import file_digest, sync_file, write_json
from affectlens.stage import MANIFEST, METRICS, Metrics

NAME = MANIFEST
PART = "part.json"
STAMP = "%Y-%m-%dT%H:%M:%SZ"
RECORDED = ("torch", "transformers", "transformer-lens", "sae-lens", "numpy", "h5py", "scipy", "wandb")
CHECKSUM = "sha256"
"""Key of a record that holds the checksum of all its other keys."""
RESULT_SHAPE: Mapping[str, type] = {"stage": str, "fingerprint": str, "config": dict, "needs": dict, "parts": dict}
COMMON_SHAPE: Mapping[str, type] = {"files": dict, "sizes": dict, "run": dict}
"""Keys that a record must have, with their types."""


def read_record(path: Path, shape: Mapping[str, type]) -> dict[str, Any]:
    """A JSON record of the product's own, checked.

    Args:
        path: of the file.
        shape: keys that it must have, with their types.

    Raises:
        FileNotFoundError: it is not there.
        DamagedResult: it is there, but is not what was written.
        UnreadableResult: it cannot be read, whatever it holds.
    """
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableResult(f"{path} cannot be read ({error.strerror or error}); put that right") from None
    except (ValueError, RecursionError) as error:
        raise DamagedResult(f"{path} is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise DamagedResult(f"{path} holds a {type(record).__name__} instead of a record")
    for key, kind in shape.items():
        if not isinstance(record.get(key), kind):
            raise DamagedResult(f"{path} has no `{key}`")
    if record.get(CHECKSUM, checksum(record)) != checksum(record):
        raise DamagedResult(f"{path} has other bytes than were written")
    return record


def checksum(record: Mapping[str, Any]) -> str:
    """sha256 of a record without its own checksum, whatever the order of its keys."""
    rest = {key: value for key, value in record.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished result, or None where there is none.

    Raises:
        DamagedResult: the manifest is there and is not what was written.
        UnreadableResult: it cannot be read.
    """
    try:
        return read_record(folder / NAME, {**RESULT_SHAPE, **COMMON_SHAPE})
    except FileNotFoundError:
        return None


def read_part(folder: Path) -> dict[str, Any]:
    """The record that was written with a finished part.

    Raises:
        DamagedResult: it is gone, or is not what was written.
        UnreadableResult: it cannot be read.
    """
    try:
        return read_record(folder / PART, COMMON_SHAPE)
    except FileNotFoundError:
        raise DamagedResult(f"{folder / PART} is gone") from None


def read_metrics(folder: Path) -> Metrics:
    """The metrics of a finished result.

    Raises:
        DamagedResult: they are gone, or are not what was written.
        UnreadableResult: they cannot be read.
    """
    try:
        metrics = read_record(folder / METRICS, {})
    except FileNotFoundError:
        raise DamagedResult(f"{folder / METRICS} is gone") from None
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise DamagedResult(f"{folder / METRICS} holds other things than numbers")
    return metrics


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """The manifest of a result."""
    write_json(folder / NAME, {**record, CHECKSUM: checksum(record)})


def write_part(folder: Path, record: Mapping[str, Any]) -> None:
    """The record of a part."""
    write_json(folder / PART, {**record, CHECKSUM: checksum(record)})


def content_digest(record: Mapping[str, Any]) -> str:
    """One sha256 for all files of a result."""
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(record["files"].items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def seal_files(folder: Path, skip: str = "") -> dict[str, str]:
    """sha256 of every file below a folder, by relative path, once it is on the disk; not of records.

    Args:
        folder: which nobody writes into any more.
        skip: name of a folder in it that is left out.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in {NAME, PART})
    digests = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        if not skip or not name.startswith(f"{skip}/"):
            sync_file(path)
            digests[name] = file_digest(path)
    return digests


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that can change a number."""
    installed = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


@cache
def git_revision() -> str | None:
    """Of this source tree, with ``+`` when it has uncommitted changes; None outside a checkout."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class Began:
    """When some work began: the time of day for the record, and a clock that nobody sets for its duration.

    Attributes:
        wall: seconds since the epoch.
        tick: of the monotonic clock.
    """

    wall: float
    tick: float

    @classmethod
    def now(cls) -> Began:
        return cls(time.time(), time.monotonic())

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> Began:
        """When work described by :func:`circumstances` began, on whichever machine."""
        wall = datetime.strptime(run["started"], STAMP).replace(tzinfo=UTC).timestamp()
        return cls(wall, time.monotonic() - max(0.0, time.time() - wall))


def circumstances(began: Began, device: str, threads: int) -> dict[str, Any]:
    """Host, times and peak memory of the work that began then and ends now."""
    return {
        "host": platform.node(),
        "device": device,
        "threads": threads,
        "started": time.strftime(STAMP, time.gmtime(began.wall)),
        "seconds": round(time.monotonic() - began.tick, 3),
        "peak_memory_mb": peak_memory_mb(),
    }


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far, in megabytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)

"""The record of one finished stage: what went in, what came out, where and how it ran."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from affectlens.errors import DamagedResult
from affectlens.files import file_digest
from affectlens.stage import RECORD

NAME = "manifest.json"
METRICS = "metrics.json"
PART = RECORD
STAMP = "%Y-%m-%dT%H:%M:%SZ"
RECORDED = ("torch", "transformers", "transformer-lens", "sae-lens", "numpy", "h5py", "scipy", "wandb")


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished result, or None where there is none.

    Raises:
        DamagedResult: the manifest is there and cannot be read.
    """
    try:
        return json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise DamagedResult(
            f"{folder / NAME}: the manifest cannot be read ({error}); run again with --mode force for this stage"
        ) from None


def read_part(folder: Path) -> dict[str, Any]:
    """The record that was written with a finished part."""
    return json.loads((folder / PART).read_text(encoding="utf-8"))


def hash_files(folder: Path, skip: str = "") -> dict[str, str]:
    """sha256 of every file below a folder, by relative path, except records and what lies below ``skip``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in {NAME, PART})
    names = [path.relative_to(folder).as_posix() for path in files]
    return {name: file_digest(folder / name) for name in names if not skip or not name.startswith(f"{skip}/")}


def check_files(folder: Path, recorded: dict[str, str], *, contents: bool) -> list[str]:
    """The recorded files that are missing, or (with ``contents``) whose bytes have changed."""
    bad = [name for name in recorded if not (folder / name).is_file()]
    if contents:
        bad += [name for name, sha in recorded.items() if name not in bad and file_digest(folder / name) != sha]
    return sorted(bad)


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_revision() -> str | None:
    """Of this source tree, with ``+`` when it has uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")


def circumstances(began: float, device: str, threads: int) -> dict[str, Any]:
    """Host, times and peak memory of the work that began at ``began`` (seconds since the epoch)."""
    return {
        "host": platform.node(),
        "device": device,
        "threads": threads,
        "started": time.strftime(STAMP, time.gmtime(began)),
        "seconds": round(time.time() - began, 3),
        "peak_memory_mb": peak_memory_mb(),
    }


def started(run: dict[str, Any]) -> float:
    """When the work described by :func:`circumstances` began, in seconds since the epoch."""
    return datetime.strptime(run["started"], STAMP).replace(tzinfo=UTC).timestamp()


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far, in megabytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)

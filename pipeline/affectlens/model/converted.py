"""Models that the product makes itself (converted, tuned): built once, with checksums, and built again when damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from affectlens.files import DigestMemory, file_digest, sync_file, write_json

RECORD = "record.json"
"""In each folder: bytes and sha256 of its other files."""


def converted_folder(models: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder ``models/name``, sound: built if it is not there, and again if its bytes are not those recorded.

    Contents are compared at every call; those of a large file that kept size, times and inode as last time.

    Args:
        models: folder that holds converted models, shared by all studies.
        name: says what went in by content, so that another input means another folder.
        build: writes the model into an empty folder.
    """
    from filelock import FileLock

    folder, digests = models / name, memory(models)
    if not damage(folder, digests.file):
        digests.flush()
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f"{name}.lock"):
        if damage(folder, file_digest):
            building = models / f"{name}.partial"
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            build(building)
            _write_record(building)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(building, folder)
    return folder


def memory(models: Path) -> DigestMemory:
    """Checksums of large model files, kept beside the converted models: each process would take half a second anew."""
    return DigestMemory(models / "digests.json")


def verify(folder: Path) -> list[str]:
    """What is wrong with a converted model, all its bytes read now; what is damaged is built again at its next use."""
    faults = damage(folder, file_digest)
    if faults:
        (folder / RECORD).unlink(missing_ok=True)
    return faults


def complete(folder: Path) -> bool:
    """Whether the folder was built to its end; its bytes are not looked at."""
    return (folder / RECORD).is_file()


def damage(folder: Path, digest: Callable[[Path], str]) -> list[str]:
    """What is wrong with a converted model, one sentence a file; empty if it is sound.

    Args:
        digest: sha256 of a file, as hex.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        expected = {name: (int(row["bytes"]), str(row["sha256"])) for name, row in record["files"].items()}
    except OSError:
        return [f"{folder}: the record of the converted model is gone"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{folder / RECORD}: the record cannot be read"]
    faults = []
    for name, (size, recorded) in expected.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            faults.append(f"{path}: the file is gone or cut short")
        elif digest(path) != recorded:
            faults.append(f"{path}: the bytes are not those that were written")
    return faults


def _write_record(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        sync_file(path)
    rows = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in files
    }
    write_json(folder / RECORD, {"files": rows})

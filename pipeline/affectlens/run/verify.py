"""Whether results still are what was written, and how little has to be computed again where they are not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from affectlens.disk import size
from affectlens.errors import DamagedResult, UnreadableResult
from affectlens.files import file_digest
from affectlens.run import manifest
from affectlens.run.workspace import BUILDING, PARTS, AnyStage, Workspace, remove


@dataclass(frozen=True)
class Damage:
    """One file that is not what was written.

    Attributes:
        file: where it lies, or lay.
        fault: what is wrong with it, as the end of a sentence about it.
        part: the part it belongs to; None for a file of the merged result.
        certain: False where the file cannot be read now (rights, a network disk), which says nothing of its bytes.
    """

    file: Path
    fault: str
    part: str | None = None
    certain: bool = True

    def __str__(self) -> str:
        return f"{self.file} {self.fault}"


def sizes(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Bytes of each of these files."""
    return {name: (folder / name).stat().st_size for name in names}


def damages(
    space: Workspace, stage: AnyStage, *, contents: bool, digest: Callable[[Path], str] = file_digest
) -> list[Damage]:
    """What is wrong with a result, finished or not.

    Args:
        space: its folders.
        stage: whose result.
        contents: compare checksums, of what the result was computed from too; otherwise only look whether files are
            there in full length and whether the records of the result are sound.
        digest: how a checksum is taken.
    """
    needs = _need_digests(space)
    if not space.final.is_dir():
        return _of_parts(space.parts, needs, contents, digest)
    kept = space.final / PARTS
    try:
        record = manifest.read(space.final)
        if record is None:
            raise DamagedResult("is gone")
    except (DamagedResult, UnreadableResult) as error:
        certain = isinstance(error, DamagedResult)
        path = space.final / manifest.NAME
        faults = [Damage(path, _fault_of_record(path, error), certain=certain)]
        return faults + (_of_parts(kept, needs, contents, digest) if stage.keeps_parts and certain else [])
    faults = _of_files(space.final, record, contents, digest)
    if not contents:
        # Small, and read by every run and by `status`.
        faults += _of_files(space.final, _only(record, manifest.METRICS), True, digest)
    if stage.keeps_parts:
        if contents:
            faults += [each for each in _of_parts(kept, needs, False, digest) if each.file.name == manifest.PART]
        lost = [name for name in record["parts"] if not (kept / name / manifest.PART).is_file()]
        faults += [Damage(kept / name / manifest.PART, "is gone", name) for name in lost]
    if contents:
        faults += _of_needs(needs, space.final / manifest.NAME, record)
    return list(dict.fromkeys(faults))


def _only(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**record, "files": {name: record["files"][name]} if name in record["files"] else {}}


def _of_parts(parts: Path, needs: Mapping[str, str], contents: bool, digest: Callable[[Path], str]) -> list[Damage]:
    faults: list[Damage] = []
    for path in sorted(parts.glob(f"*/{manifest.PART}")):
        folder = path.parent
        if folder.suffix == BUILDING:
            continue
        try:
            record = manifest.read_part(folder)
        except (DamagedResult, UnreadableResult) as error:
            certain = isinstance(error, DamagedResult)
            faults.append(Damage(path, _fault_of_record(path, error), folder.name, certain))
            continue
        of_part = _of_files(folder, record, contents, digest) + _of_needs(needs, path, record)
        faults += [replace(damage, part=folder.name) for damage in of_part]
    return faults


def _fault_of_record(path: Path, error: Exception) -> str:
    return str(error).removeprefix(f"{path} ")


def _need_digests(space: Workspace) -> dict[str, str]:
    try:
        return space.need_digests()
    except (DamagedResult, UnreadableResult):
        return {}  # a fault of the stage whose record that is


def _of_needs(needs: Mapping[str, str], path: Path, record: Mapping[str, Any]) -> list[Damage]:
    """Whether the bytes that a record's files were computed from are those that lie there now, if any do."""
    other = [name for name, digest in record.get("inputs", {}).items() if needs.get(name, digest) != digest]
    return [Damage(path, f"was computed from other bytes of `{name}` than are there now") for name in other]


def _of_files(folder: Path, record: Mapping[str, Any], contents: bool, digest: Callable[[Path], str]) -> list[Damage]:
    faults = []
    for name, sha in record["files"].items():
        pieces = Path(name).parts
        part = pieces[1] if pieces[0] == PARTS and len(pieces) > 1 else None
        path, length = folder / name, record["sizes"].get(name)
        try:
            bytes_there = path.stat().st_size
            if length is not None and bytes_there != length:
                faults.append(Damage(path, f"has {bytes_there} bytes instead of {length}", part))
            elif contents and digest(path) != sha:
                faults.append(Damage(path, "has other bytes than were written", part))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            faults.append(Damage(path, "is gone", part))
        except OSError as error:
            faults.append(Damage(path, f"cannot be read ({error.strerror or error})", part, certain=False))
    return faults


def strays(space: Workspace) -> list[Path]:
    """Files in a finished result that its manifest does not list; nothing reads them."""
    try:
        record = manifest.read(space.final)
    except (DamagedResult, UnreadableResult):
        return []
    if record is None:
        return []
    listed = {space.final / name for name in record["files"]} | {space.final / manifest.NAME}
    listed |= {space.final / PARTS / name / manifest.PART for name in record["parts"]}
    return sorted(path for path in space.final.rglob("*") if path.is_file() and path not in listed)


def set_aside(space: Workspace, stage: AnyStage, *, contents: bool) -> None:
    """Take damaged parts out of a result, so that the next run computes just these; the others stay finished.

    A result whose parts are not kept is forgotten as a whole. What cannot be read stays. Interrupted anywhere, it can
    simply be done again.
    """
    with space.lock("finish", wait=True):
        # Looked for again: another run may have merged the parts, or repaired them, in the meantime.
        faults = [damage for damage in damages(space, stage, contents=contents) if damage.certain]
        if not faults:
            return
        merged = space.final.is_dir()
        if merged and not stage.keeps_parts:
            space.discard()
            return
        parts = space.final / PARTS if merged else space.parts
        if merged:  # without their merge, the parts are the result, and their records count
            faults += [
                damage for damage in _of_parts(parts, _need_digests(space), False, file_digest) if damage.certain
            ]
        for name in sorted({damage.part for damage in faults if damage.part is not None}):
            remove(parts / name)
        if merged:
            # Only now: as long as it has its name, the parts that are gone tell that it is damaged.
            remove(space.partial)
            os.replace(space.final, space.partial)


def summary(space: Workspace, faults: Sequence[Damage]) -> str:
    """The state of a result in a few words."""
    if faults:
        return f"{len(faults)} damaged file{'s' * (len(faults) > 1)}"
    record = manifest.read(space.final)
    if record is None:
        finished = len(space.finished())
        return f"unfinished, {finished} parts sound" if finished else "nothing there"
    return f"sound: {len(record['files'])} files, {size(sum(record['sizes'].values()))}"

"""Whether results still are what was written, and how little has to be computed again where they are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affectlens.disk import size
from affectlens.errors import DamagedResult
from affectlens.files import file_digest
from affectlens.run import manifest
from affectlens.run.workspace import AnyStage, Workspace

PARTS = "parts"


@dataclass(frozen=True)
class Damage:
    """One file that is not what was written.

    Attributes:
        file: where it lies, or lay.
        fault: what is wrong with it, as the end of a sentence about it.
        part: the part it belongs to; None for a file of the merged result.
    """

    file: Path
    fault: str
    part: str | None = None

    def __str__(self) -> str:
        return f"{self.file} {self.fault}"


def sizes(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Bytes of each of these files."""
    return {name: (folder / name).stat().st_size for name in names}


def damages(space: Workspace, stage: AnyStage, *, contents: bool) -> list[Damage]:
    """What is wrong with a result, finished or not.

    Args:
        space: its folders.
        stage: whose result.
        contents: read every byte and compare checksums; otherwise only look whether files are there in full length.
    """
    if not space.complete:
        return _of_parts(space.parts, contents=contents)
    try:
        record = manifest.read(space.final) or {}
    except DamagedResult:
        found = [Damage(space.final / manifest.NAME, "cannot be read")]
        return found + (_of_parts(space.final / PARTS, contents=contents) if stage.keeps_parts else [])
    found = _of_files(space.final, record["files"], record.get("sizes", {}), contents=contents)
    lost = [name for name in record["parts"] if stage.keeps_parts and not _recorded(space.final / PARTS / name)]
    return found + [Damage(space.final / PARTS / name / manifest.PART, "is gone", name) for name in lost]


def _of_parts(parts: Path, *, contents: bool) -> list[Damage]:
    found: list[Damage] = []
    for path in sorted(parts.glob(f"*/{manifest.PART}")):
        folder = path.parent
        if folder.suffix == ".building":
            continue
        try:
            record = manifest.read_part(folder)
        except (ValueError, OSError):
            found.append(Damage(path, "cannot be read", folder.name))
            continue
        files = _of_files(folder, record["files"], record.get("sizes", {}), contents=contents)
        found += [Damage(each.file, each.fault, folder.name) for each in files]
    return found


def _recorded(part: Path) -> bool:
    return (part / manifest.PART).is_file()


def _of_files(folder: Path, files: Mapping[str, str], lengths: Mapping[str, int], *, contents: bool) -> list[Damage]:
    found = []
    for name, sha in files.items():
        fault = _fault(folder / name, sha, lengths.get(name), contents=contents)
        if fault:
            pieces = Path(name).parts
            found.append(Damage(folder / name, fault, pieces[1] if pieces[0] == PARTS else None))
    return found


def _fault(path: Path, sha: str, length: int | None, *, contents: bool) -> str | None:
    try:
        size = path.stat().st_size
        if length is not None and size != length:
            return f"has {size} bytes instead of {length}"
        if contents and file_digest(path) != sha:
            return "has other bytes than were written"
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def set_aside(space: Workspace, stage: AnyStage, *, contents: bool) -> None:
    """Take damaged parts out of a result, so that the next run computes just these; the others stay finished.

    A result whose parts are not kept is forgotten as a whole. Interrupted anywhere, it can simply be done again.
    """
    with space.lock("finish", wait=True):
        # Looked for again: another run may have merged the parts, or repaired them, in the meantime.
        found = damages(space, stage, contents=contents)
        if not found:
            return
        if not stage.keeps_parts and space.complete:
            space.discard()
            return
        parts = (space.final if space.complete else space.partial) / PARTS
        for name in sorted({each.part for each in found if each.part is not None}):
            _remove(parts / name)
        if space.complete:
            # Only now: as long as it has its name, the parts that are gone tell that it is damaged.
            _remove(space.partial)
            os.replace(space.final, space.partial)


def _remove(folder: Path) -> None:
    """The folder leaves its name first: nobody takes what is left of it for whole."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.discarded-{os.getpid()}.building")
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def summary(space: Workspace, found: Sequence[Damage]) -> str:
    """The state of a result in a few words."""
    if found:
        return f"{len(found)} damaged file{'s' * (len(found) > 1)}"
    record = manifest.read(space.final)
    if record is None:
        finished = len(space.finished())
        return f"unfinished, {finished} parts sound" if finished else "nothing there"
    return f"sound: {len(record['files'])} files, {size(sum(record.get('sizes', {}).values()))}"

"""Files: checksums, and the one door through which results are written.

A writer fills a temporary name beside its destination, forces it to the disk and renames it, so that a reader sees the
old bytes or the new ones and never a part of them, and a machine that loses power keeps what was reported as written.
What goes wrong is an OSError, whichever library wrote; files get the mode that the umask allows. A killed writer leaves
a name that ends in ``.writing``, which belongs to nobody.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.errors import as_os_error, of_the_world

if TYPE_CHECKING:
    import h5py

WRITING = ".writing"
"""Suffix of whatever is being written."""
LARGE = 1 << 20
"""Bytes from which a file's checksum is worth remembering."""


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def file_mode() -> int:
    """The mode of a new file under this process's umask."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def sync_file(path: Path) -> None:
    """Force a file to the disk, and give it the mode that the umask allows: some libraries write 0600 always."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if os.fstat(descriptor).st_mode & 0o777 != file_mode():
            os.fchmod(descriptor, file_mode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the file system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder; the file there takes the place of ``path`` when the block ends.

    Raises:
        OSError: the disk refuses. What lay at ``path`` is still there.
    """
    holder = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{WRITING}")
    try:
        holder.mkdir()
        yield holder / path.name
        sync_file(holder / path.name)
        os.replace(holder / path.name, path)
        sync_folder(path.parent)
    except Exception as error:
        fault = as_os_error(error, str(path)) if of_the_world(error) else None
        if fault is None or fault is error:
            raise
        raise fault from error
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left below a folder in which nobody writes."""
    for path in folder.rglob(f"*{WRITING}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace a file by these bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace a file by this text, as UTF-8 with the line ends that it has."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Sorted, indented, newline-ended JSON."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_safetensors(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Named arrays, all of numpy or all of torch, with searchable facts in the file's header."""
    if any(type(values).__module__.startswith("torch") for values in arrays.values()):
        from safetensors.torch import save_file
    else:
        from safetensors.numpy import save_file
    with replacing(path) as temporary:
        save_file(dict(arrays), temporary, metadata=None if metadata is None else dict(metadata))


def write_hdf5(path: Path, build: Callable[[h5py.File], None], **options: Any) -> None:
    """An HDF5 file that fits into memory.

    HDF5 writes late, and drops the error where an object is released; so the file is built in memory and its bytes are
    written by one call that is checked.

    Args:
        path: where to write.
        build: fills the open file.
        options: of :class:`h5py.File`.
    """
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w", **options) as file:
        build(file)
    write_bytes(path, image.getbuffer())


class DigestMemory:
    """Checksums of large files, remembered while size, times and inode stay the same.

    Args:
        path: JSON file that keeps them from run to run. It is a convenience: whatever stands in it, and whether or not
            it can be written, digests are right.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: dict[str, tuple[list[int], str]] | None = None

    def file(self, path: Path) -> str:
        """sha256 of a file, as hex."""
        stat = path.stat()
        if stat.st_size < LARGE:
            return file_digest(path)
        stamp = _stamp(stat)
        if self._stamps is None:
            self._stamps = self._read()
        key = str(path.resolve())
        remembered = self._stamps.get(key)
        if remembered is not None and remembered[0] == stamp:
            return remembered[1]
        digest = file_digest(path)
        self.remember({path: digest})
        return digest

    def remember(self, digests: Mapping[Path, str]) -> None:
        """Keep digests that were just taken, of whichever of these files are large."""
        stamps = {}
        for path, digest in digests.items():
            stat = path.stat()
            if stat.st_size >= LARGE:
                stamps[str(path.resolve())] = (_stamp(stat), digest)
        if not stamps:
            return
        self._stamps = self._read() | stamps
        # A cache that cannot be written is reported by what needs it; hashing again only costs time.
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(self._stamps))

    def folder(self, path: Path) -> str:
        """sha256 over the names and digests of a folder's files."""
        files = sorted(item for item in path.rglob("*") if item.is_file())
        lines = [f"{item.relative_to(path)} {self.file(item)}" for item in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _read(self) -> dict[str, tuple[list[int], str]]:
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        stamps = {}
        for name, row in rows.items() if isinstance(rows, dict) else ():
            match row:
                case [[*stamp], str(digest)] if all(isinstance(number, int) for number in stamp):
                    stamps[name] = (stamp, digest)
        return stamps


def _stamp(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]

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
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from affectlens.errors import UserError, as_os_error, of_the_world

if TYPE_CHECKING:
    import h5py

WRITING = ".writing"
"""Suffix of whatever is being written."""
WRITE_EVERY_S = 1.0
"""Seconds between two writes of a growing memory of checksums."""
STALE_S = 3600.0
"""Age from which an unfinished writing of that memory is a killed run's."""
LARGE = 1 << 20
"""Bytes from which a file's checksum is worth remembering."""


ENDLESS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
"""What has a path and is no file: reading it may never begin, or never end."""


def require_file(path: Path) -> None:
    """Refuse a pipe, a socket or a device under the name of a file that is read or replaced.

    Raises:
        UserError: it is one.
        OSError: there is nothing, or it cannot be looked at.
    """
    kind = ENDLESS.get(stat.S_IFMT(path.stat().st_mode))
    if kind is not None:
        raise UserError(f"{path}: is {kind}, not a file; give a file")


def require_place(path: Path) -> None:
    """Refuse a path at which no file can be written, before what is to be written is computed.

    Raises:
        UserError: it is a folder, or its folder is not there.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the path of a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder is not there; make it, or give another path")


def open_file(path: Path) -> BinaryIO:
    """A file of a user's, opened to be read.

    Raises:
        UserError: as :func:`require_file`.
        OSError: it cannot be opened.
    """
    require_file(path)
    return path.open("rb")


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
        UserError: a pipe, a socket or a device lies there, whose place no file may take.
        OSError: the disk refuses. What lay at ``path`` is still there.
    """
    with suppress(FileNotFoundError):
        require_file(path)
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


@dataclass(frozen=True)
class TensorHead:
    """What the header of a safetensors file says of a tensor: its number type, as written there, and its shape."""

    kind: str
    shape: tuple[int, ...]


FLOATING = frozenset(("F64", "F32", "F16", "BF16"))
"""Number types whose values are what they say; all others are codes that need a scale or a table."""


def tensor_heads(path: Path) -> dict[str, TensorHead]:
    """The tensors of a safetensors file, from its header alone.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or its length is not what the header says.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("no safetensors file, or cut short in its header")
        table = json.loads(stream.read(length))
    try:
        table.pop("__metadata__", None)
        whole = 8 + length + max((row["data_offsets"][1] for row in table.values()), default=0)
        heads = {name: TensorHead(str(row["dtype"]), tuple(map(int, row["shape"]))) for name, row in table.items()}
    except (AttributeError, KeyError, IndexError, TypeError):
        raise ValueError("a header of another form than safetensors has") from None
    if whole != size:
        raise ValueError(f"{size:,} bytes long, but its header says {whole:,}")
    return heads


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


class CheckedFile:
    """A file under HDF5 that remembers the first write that the disk refused.

    HDF5 writes late, and drops the error, or crashes over it, where an object is released. So it is told that every
    write succeeded, and whoever seals the file asks :meth:`require_written`.

    Args:
        stream: unbuffered, open for reading and writing.
    """

    def __init__(self, stream: io.FileIO) -> None:
        self._stream = stream
        self._refused: OSError | None = None
        self.seek = stream.seek
        self.tell = stream.tell
        self.readinto = stream.readinto
        self.read = stream.read

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[self._stream.write(view) :]
        except OSError as error:
            self._refused = self._refused or error
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._stream.truncate(size)
        except OSError as error:
            self._refused = self._refused or error
            return size or 0

    def flush(self) -> None:
        """Nothing is held back."""

    def require_written(self) -> None:
        """Raise the OSError of the first write that was refused."""
        if self._refused is not None:
            raise self._refused


@contextmanager
def open_hdf5(path: Path, mode: Literal["w", "r+"], **options: Any) -> Iterator[h5py.File]:
    """An HDF5 file in which no write can fail unnoticed.

    Args:
        path: the file; the caller sees to it that nobody reads it before it is sealed.
        mode: ``w`` replaces it, ``r+`` adds to it.
        options: of :class:`h5py.File`.

    Raises:
        OSError: the disk refused a write.
    """
    import h5py

    with path.open("wb+" if mode == "w" else "rb+", buffering=0) as stream:
        checked = CheckedFile(stream)
        try:
            with h5py.File(checked, mode, **options) as file:
                yield file
        finally:
            checked.require_written()


def write_hdf5(path: Path, build: Callable[[h5py.File], object], **options: Any) -> None:
    """Replace a file by the HDF5 file that ``build`` fills.

    Args:
        path: where to write.
        build: fills the open file.
        options: of :class:`h5py.File`.
    """
    with replacing(path) as temporary, open_hdf5(temporary, "w", **options) as file:
        build(file)


class DigestMemory:
    """Checksums of large files, remembered while size, times and inode stay the same.

    Args:
        path: JSON file that keeps them from run to run. It is a convenience: whatever stands in it, and whether or not
            it can be written, digests are right.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: dict[str, tuple[list[int], str]] | None = None
        self._new: dict[str, tuple[list[int], str]] = {}
        self._written = -math.inf

    def file(self, path: Path) -> str:
        """sha256 of a file, as hex."""
        known = path.stat()
        if known.st_size < LARGE:
            return file_digest(path)
        stamp = _stamp(known)
        if self._stamps is None:
            self._stamps = self._read()
        key = str(path.resolve())
        remembered = self._stamps.get(key)
        if remembered is not None and remembered[0] == stamp:
            return remembered[1]
        digest = file_digest(path)
        self._new[key] = self._stamps[key] = (stamp, digest)
        # Not for each of many files, and looking at a file makes no folder: a dry run leaves none behind.
        if time.monotonic() - self._written >= WRITE_EVERY_S and self._path.parent.is_dir():
            self.flush()
        return digest

    def remember(self, digests: Mapping[Path, str]) -> None:
        """Keep digests that were just taken, of whichever of these files are large."""
        for path, digest in digests.items():
            known = path.stat()
            if known.st_size >= LARGE:
                self._new[str(path.resolve())] = (_stamp(known), digest)
        self.flush()

    def flush(self) -> None:
        """Write what is new."""
        if not self._new:
            return
        self._stamps, self._new, self._written = self._read() | self._new, {}, time.monotonic()
        # A cache that cannot be written is reported by what needs it; hashing again only costs time.
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(self._stamps))
            for left in self._path.parent.glob(f"{self._path.name}.*{WRITING}"):
                if time.time() - left.stat().st_mtime > STALE_S:  # younger ones are another run's, which is writing
                    shutil.rmtree(left)

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


def stamps(paths: Iterable[Path]) -> tuple[tuple[int, ...], ...]:
    """What tells whether files are still those that were read: their sizes, times and inodes; all must be there."""
    return tuple(tuple(_stamp(path.stat())) for path in paths)


def _stamp(known: os.stat_result) -> list[int]:
    return [known.st_size, known.st_mtime_ns, known.st_ctime_ns, known.st_ino]

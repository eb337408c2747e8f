"""What a user can get wrong, as exceptions whose message is one sentence that says what to do; faults of the world."""

from __future__ import annotations

import os
import re
from typing import ClassVar


class UserError(Exception):
    """Something the user can put right; shown as one line, never as a traceback.

    Attributes:
        status: exit status of a command: 2 where what the user gave is wrong (a study file, an argument, a text, a
            model), 1 where it may be right and the world is in the way (a disk, the network, a result not there yet).
    """

    status: ClassVar[int] = 2


class ConfigError(UserError):
    """The study file is wrong: names the file, the key, the value and the remedy."""


class Unavailable(UserError):
    """The machine, the network or another run is in the way of what may be right."""

    status = 1


class MissingResult(Unavailable):
    """A result was asked for (``--mode read-only``, ``report``) that the cache does not hold."""


class PartFailed(Unavailable):
    """One or more parts of a stage raised; their tracebacks lie beside the unfinished result."""


class DamagedResult(Unavailable):
    """A file in the cache is missing or no longer has the bytes that were written."""


class UnreadableResult(Unavailable):
    """A file in the cache cannot be read now (rights, a network disk), which says nothing about its bytes."""


OUT_OF_MEMORY = re.compile(
    r"out of memory|can(?:'|no)t allocate memory|not enough memory|cannot allocate|bad_alloc|ALLOC_FAILED"
    r"|failed to map segment|enforce fail at alloc_cpu|Storage size calculation overflowed",
    re.IGNORECASE,
)
NATIVE_ERRNO = re.compile(r"errno = (\d+)|os error (\d+)|\[Errno (\d+)\]")
"""How HDF5, Rust and Python write the system's error number into a message."""


def of_the_world(error: BaseException) -> bool:
    """Whether the surroundings failed (disk, quota, memory), so that the same work may succeed another time.

    Native libraries raise classes of their own for this: safetensors ``SafetensorError``, h5py ``RuntimeError``, torch
    ``RuntimeError`` and ``OutOfMemoryError``, the loader of shared objects ``ImportError``, an extension module that
    could not allocate ``SystemError``. They are told by what they say.
    """
    if isinstance(error, OSError | MemoryError):
        return True
    name, text = type(error).__name__, str(error)
    if isinstance(error, RuntimeError | ImportError) or name == "SafetensorError":
        return bool(OUT_OF_MEMORY.search(text) or NATIVE_ERRNO.search(text)) or name == "OutOfMemoryError"
    return isinstance(error, SystemError) and "exception set" in text


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of an accelerator."""
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return memory or (of_the_world(error) and bool(OUT_OF_MEMORY.search(str(error))))


def as_os_error(error: BaseException, filename: str) -> OSError | None:
    """The same fault as Python itself would raise it, where a native library wrote or read a file; None for others."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return error
    match = NATIVE_ERRNO.search(str(error))
    number = error.errno if isinstance(error, OSError) else None
    if number is None and match is not None:
        number = int(next(group for group in match.groups() if group))
    if number is not None:
        return OSError(number, os.strerror(number), filename)
    return OSError(*error.args) if isinstance(error, OSError) else None


def reason(error: BaseException) -> str:
    """A fault of the world as a clause: the system's word for it and the file, or the first line of what was said."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return said if said.startswith("memory ran out") else f"memory ran out ({said[:200]})"
    fault = as_os_error(error, "")
    if fault is not None and fault.strerror:
        return fault.strerror + (f" ({str(fault.filename)[:300]})" if fault.filename else "")
    return (str(error).strip() or type(error).__name__).splitlines()[0]

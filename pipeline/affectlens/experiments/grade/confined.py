"""The inside of the sandbox: a script that shuts every door behind itself and then runs code it does not trust.

It is started by :mod:`affectlens.experiments.grade.sandbox` without site packages and imports the standard library
alone. One JSON job comes on standard input; one JSON line on standard output says that the doors are shut. Then the
arguments of one call after the other come as lines, each when the one before is answered by a line. Doors, each of
which is the process's own doing and cannot be opened again: resource limits, no new privileges, no capabilities,
Landlock (files; landlock(7)), and a seccomp filter that lists what the kernel may still be asked for (seccomp(2)). The
list holds no call that starts a process or a program, makes a socket, signals another process, changes a file or lifts
a limit, so one line of defence does not rest on another.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

PRELOADED = (
    *("abc", "array", "base64", "bisect", "calendar", "collections", "contextlib", "copy", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "keyword", "logging"),
    *("math", "numbers", "operator", "pprint", "queue", "random", "re", "resource", "socket", "statistics", "string"),
    *("textwrap", "threading", "time", "traceback", "types", "typing", "unicodedata", "unittest", "uuid"),
)
"""Loaded before the doors shut if the code names them; harmless to load, and all there is where files stay shut."""
BEHIND = {"datetime": "_strptime", "time": "_strptime"}
"""What a module loads only when it is used."""

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The kernel's name of the instruction set (linux/audit.h), and the column of its numbers in ``CALLS``."""
CALLS: dict[str, tuple[int | None, int | None]] = {
    **{"read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62), "pread64": (17, 67)},
    **{"readv": (19, 65), "writev": (20, 66), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24)},
    **{"mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216)},
    **{"madvise": (28, 233), "membarrier": (324, 283), "futex": (202, 98), "rseq": (334, 293)},
    **{"set_robust_list": (273, 99), "sigaltstack": (131, 132), "arch_prctl": (158, None)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "restart": (219, 128)},
    **{"clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101)},
    **{"gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165)},
    **{"getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175)},
    **{"getgid": (104, 176), "getegid": (108, 177), "getrandom": (318, 278), "getrlimit": (97, 163)},
    **{"sched_yield": (24, 124), "sched_getaffinity": (204, 123), "sysinfo": (99, 179), "uname": (63, 160)},
    **{"poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72)},
    **{"exit": (60, 93), "exit_group": (231, 94)},
}
"""What may be asked for whatever the arguments: name -> number (x86-64, AArch64)."""
LOOKS: dict[str, tuple[int | None, int | None]] = {
    **{"stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "getcwd": (79, 17)},
    **{"access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "getdents64": (217, 61)},
    **{"readlink": (89, None), "readlinkat": (267, 78)},
}
"""What looks at files, for the import of modules: allowed where Landlock shuts away everything else."""
OPENAT, FCNTL, PRLIMIT, IOCTL, CLONE3 = (257, 56), (72, 25), (302, 261), (16, 29), (435, 435)

ALLOW, REFUSE = 0x7FFF0000, 0x00050000
"""SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO."""
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
"""Classic BPF: ld abs, jeq, jset, ret."""
EPERM, ENOTTY, ENOSYS = 1, 25, 38

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Landlock's system calls, the same on every machine."""
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights over files each version of Landlock knows."""
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3


class Refused(Exception):
    """A door that must be shut could not be."""


def filter_program(machine: str, *, may_open: bool) -> list[tuple[int, int, int, int]]:
    """The seccomp filter as BPF instructions (code, jump if true, jump if false, operand).

    Args:
        machine: as ``platform.machine()`` says.
        may_open: whether files may be opened for reading at all (Landlock then says which).
    """
    architecture, column = MACHINES[machine]
    number = LOAD, 0, 0, 0
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, REFUSE | EPERM), number]
    for calls in (CALLS, LOOKS) if may_open else (CALLS,):
        for numbers in calls.values():
            if numbers[column] is not None:
                program += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    if may_open:
        changing = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_TMPFILE & ~os.O_DIRECTORY
        program += [(EQUAL, 0, 4, OPENAT[column]), *_argument(2), (ANY_BIT, 1, 0, changing)]
        program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | EPERM)]
    # Copying a descriptor and asking for its flags: fcntl can also have a signal sent to any process.
    commands = (0, 1, 2, 3, 1030)
    program += [(EQUAL, 0, 3 + len(commands), FCNTL[column]), *_argument(1)]
    program += [(EQUAL, len(commands) - place, 0, command) for place, command in enumerate(commands)]
    program += [(RETURN, 0, 0, REFUSE | EPERM), (RETURN, 0, 0, ALLOW)]
    # Limits may be read: the address of new ones must be null, in both halves.
    program += [(EQUAL, 0, 6, PRLIMIT[column]), *_argument(2), (EQUAL, 0, 3, 0), *_argument(2, half=1)]
    program += [(EQUAL, 0, 1, 0), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | EPERM)]
    program += [(EQUAL, 0, 1, IOCTL[column]), (RETURN, 0, 0, REFUSE | ENOTTY)]
    program += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, REFUSE | ENOSYS)]
    return [*program, (RETURN, 0, 0, REFUSE | EPERM)]


def _argument(index: int, half: int = 0) -> list[tuple[int, int, int, int]]:
    """Load the lower (0) or upper (1) 32 bits of an argument; both machines are little-endian."""
    return [(LOAD, 0, 0, 16 + 8 * index + 4 * half)]


def shut(job: Mapping[str, Any]) -> list[str]:
    """Shut every door; what is left of the process can compute, read the library, and write to its two pipes.

    Returns:
        The layers that hold.

    Raises:
        Refused: the kernel would not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if platform.machine() not in MACHINES:
        raise Refused(f"the processor is a {platform.machine()}, and the filter knows {' and '.join(MACHINES)}")
    zero = ctypes.c_ulong(0)

    def control(option: int, value: int, more: Any, complaint: str) -> None:
        _ask(libc.prctl(option, ctypes.c_ulong(value), more, zero, zero), complaint)

    control(PR_SET_PDEATHSIG, signal.SIGKILL, zero, "the process cannot be made to end with its parent")
    if os.getppid() != job["parent"]:
        raise Refused("the parent has ended")
    control(PR_SET_NO_NEW_PRIVS, 1, zero, "new privileges cannot be ruled out")
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _ask(libc.capset(header, nothing), "capabilities cannot be dropped")
    files = _landlock(libc) if job["library"] else 0
    _limit(job)
    program = filter_program(platform.machine(), may_open=bool(files))
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    packed = struct.pack("HxxxxxxP", len(program), ctypes.addressof(instructions))
    control(PR_SET_SECCOMP, 2, packed, "the kernel takes no seccomp filter")
    return ["resource limits", "no capabilities", *([f"Landlock {files}"] if files else []), "seccomp filter"]


def _ask(answer: int, complaint: str) -> int:
    if answer < 0:
        raise Refused(f"{complaint} ({os.strerror(ctypes.get_errno())})")
    return answer


def _landlock(libc: Any) -> int:
    """Leave the standard library readable and nothing else; the version of Landlock, 0 where the kernel has none."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version <= 0:
        return 0
    files = (1 << FILE_RIGHTS.get(version, 16)) - 1
    values = [files, *([3] if version >= 4 else []), *([3] if version >= 6 else [])]
    rules = struct.pack(f"{len(values)}Q", *values)
    ruleset = _ask(libc.syscall(CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0), "Landlock takes no rules")
    for folder in library_folders():
        try:
            handle = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = struct.pack("=Qi", READ_FILE | READ_FOLDER, handle)
        _ask(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), "Landlock takes no rule")
        os.close(handle)
    _ask(libc.syscall(RESTRICT_SELF, ruleset, 0), "Landlock does not hold")
    os.close(ruleset)
    return version


def library_folders() -> list[str]:
    """Folders of Python's own modules and of the shared objects that these need; some systems lack some."""
    own = [os.__file__.rpartition("/")[0], f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/lib"]
    return [*own, "/lib", "/lib64", "/usr/lib", "/usr/lib64"]


def _limit(job: Mapping[str, Any]) -> None:
    limits = {
        resource.RLIMIT_CPU: job["processor_seconds"],
        resource.RLIMIT_AS: job["memory"],
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def preload(source: str) -> None:
    """Load the modules that the code names, while files can still be read, and give chance a fixed start."""
    named = set(re.findall(r"\w+", source))
    for name in PRELOADED:
        if name in named:
            __import__(name)
            __import__(BEHIND.get(name, name))
    if "random" in sys.modules:
        sys.modules["random"].seed(0)  # pyright: ignore[reportAttributeAccessIssue]


def answers(source: str, entry: str, calls: Iterable[Sequence[Any]], encode: Any = json.dumps) -> Iterator[str]:
    """Run the code, then call its function; a line of JSON a call, or a single ``fault`` of the code itself."""
    space: dict[str, Any] = {"__name__": "answer", "__builtins__": __builtins__}
    try:
        exec(compile(source, "<answer>", "exec"), space)
        function = space[entry]
    except BaseException as error:
        missing = isinstance(error, KeyError) and entry not in space
        yield encode({"fault": f"it defines no `{entry}`" if missing else _told(error)})
        return
    for arguments in calls:
        try:
            line = encode({"value": function(*arguments)}, default=_plain)
        except BaseException as error:
            line = encode({"error": _told(error)})
        yield line


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"it returned a {type(value).__name__}, which is no plain value")


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        return type(error).__name__[:200]


def main() -> None:
    """Read the job, shut the doors, run it, and leave without a look back."""
    job = json.loads(sys.stdin.buffer.readline())
    asked, results = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)

    def tell(line: str, write: Any = os.write) -> None:
        data = line.encode() + b"\n"
        while data:
            data = data[write(results, data) :]

    def calls(read: Any = os.read, decode: Any = json.loads) -> Iterator[Sequence[Any]]:
        data = b""
        for _ in range(job["calls"]):
            while b"\n" not in data:
                data += read(asked, 1 << 16)
            line, _, data = data.partition(b"\n")
            yield decode(line)

    try:
        preload(job["source"])
        layers = shut(job)
    except Exception as error:
        tell(json.dumps({"refused": str(error) if isinstance(error, Refused) else _told(error)}))
        return
    tell(json.dumps({"layers": layers}))
    for line in answers(job["source"], job["entry"], calls()):
        tell(line)
    os._exit(0)


if __name__ == "__main__":
    main()

"""Every way out of the sandbox that was thought of, each tried by code inside it: none gets anything done.

An attempt is the smallest harmless probe of one property. The code reports the names of what succeeded, so an empty
list is what must be seen; what could be left behind is looked for from outside. All are tried with bubblewrap around
the process and without it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from affectlens.experiments.grade import sandbox
from affectlens.experiments.grade.sandbox import Limits, Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="code is only run on Linux")

PRELUDE = '''
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
COLUMN = {"x86_64": 0, "aarch64": 1}[platform.machine()]
NUMBERS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "execve": (59, 221), "execveat": (322, 281),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "fsopen": (430, 430), "open_tree": (428, 428), "move_mount": (429, 429),
    "socket": (41, 198), "socketpair": (53, 199), "bind": (49, 200), "connect": (42, 203), "sendto": (44, 206),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "sched_setaffinity": (203, 122), "setsid": (112, 157),
    "setpgid": (109, 154), "prctl": (157, 167), "setrlimit": (160, 164), "prlimit64": (302, 261), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "openat2": (437, 437), "init_module": (175, 105),
    "inotify_init1": (294, 26), "fanotify_init": (300, 262), "linkat": (265, 37), "symlinkat": (266, 36),
    "setuid": (105, 146), "capset": (126, 91), "personality": (135, 92), "flock": (73, 32), "seccomp": (317, 277),
}

def raw(name, *arguments):
    """One system call, past all of Python; OSError where the kernel refuses."""
    number = NUMBERS[name][COLUMN]
    answer = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if answer < 0:
        raise OSError(ctypes.get_errno(), name)
    return answer

def done(**attempts):
    """The names of those attempts that did not end in an error."""
    names = []
    for name, act in attempts.items():
        try: act()
        except (OSError, ValueError, ImportError, MemoryError): continue
        names.append(name)
    return names
'''

ATTEMPTS = {
    "ptrace": """
def solve(parent, folder):
    return done(traceme=lambda: raw("ptrace", 0, 0, 0, 0), attach=lambda: raw("ptrace", 16, parent, 0, 0),
                seize=lambda: raw("ptrace", 0x4206, parent, 0, 0))
""",
    "memory of other processes": """
def solve(parent, folder):
    held = ctypes.create_string_buffer(64)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(held), 64)
    return done(read=lambda: raw("process_vm_readv", parent, vector, 1, vector, 1, 0),
                write=lambda: raw("process_vm_writev", parent, vector, 1, vector, 1, 0),
                compare=lambda: raw("kcmp", parent, parent, 0, 0, 0),
                open=lambda: raw("pidfd_open", parent, 0), take=lambda: raw("pidfd_getfd", 0, 0, 0))
""",
    "/proc": """
def solve(parent, folder):
    names = [f"/proc/{who}/{what}" for who in ("self", "thread-self", parent, 1)
             for what in ("mem", "maps", "environ", "cmdline", "fd", "fd/0", "fd/1", "root/etc/passwd", "cwd", "stat")]
    names += ["/proc", "/proc/sys/kernel/core_pattern", "/proc/kallsyms", "/proc/mounts", "/proc/net/tcp", "/sys"]
    return done(**{name: lambda name=name: os.open(name, os.O_RDONLY) for name in names})
""",
    "writing /proc": """
def solve(parent, folder):
    names = ["/proc/self/mem", "/proc/self/oom_score_adj", "/proc/self/coredump_filter", "/proc/sys/kernel/hostname"]
    return done(**{name: lambda name=name: os.open(name, os.O_WRONLY) for name in names})
""",
    "memfd and exec": """
def solve(parent, folder):
    path, arguments = b"/bin/true", (ctypes.c_char_p * 2)(b"true", None)
    return done(memfd=lambda: os.memfd_create("x"), raw=lambda: raw("memfd_create", b"x", 0),
                secret=lambda: raw("memfd_secret", 0), execve=lambda: raw("execve", path, arguments, None),
                execveat=lambda: raw("execveat", -100, path, arguments, None, 0),
                empty=lambda: raw("execveat", 0, b"", arguments, None, 0x1000))
""",
    "io_uring": """
def solve(parent, folder):
    space = ctypes.create_string_buffer(256)
    return done(setup=lambda: raw("io_uring_setup", 1, space), enter=lambda: raw("io_uring_enter", 0, 0, 0, 0, 0, 0),
                register=lambda: raw("io_uring_register", 0, 0, 0, 0),
                aio=lambda: COLUMN and ctypes.c_int() or raw("io_setup", 1, space))
""",
    "namespaces and mounts": """
def solve(parent, folder):
    flags = dict(user=0x10000000, mount=0x20000, pid=0x20000000, net=0x40000000, ipc=0x8000000, uts=0x4000000)
    attempts = {name: lambda flag=flag: raw("unshare", flag) for name, flag in flags.items()}
    attempts |= dict(setns=lambda: raw("setns", 0, 0), mount=lambda: raw("mount", b"none", b"/", b"tmpfs", 0, None),
                     umount=lambda: raw("umount2", b"/", 2), pivot=lambda: raw("pivot_root", b"/", b"/"),
                     chroot=lambda: raw("chroot", b"/"), fsopen=lambda: raw("fsopen", b"tmpfs", 0),
                     tree=lambda: raw("open_tree", -100, b"/", 1), move=lambda: raw("move_mount", -1, b"", -1, b"", 0))
    return done(**attempts)
""",
    "sockets of every family": """
import socket
def solve(parent, folder):
    return done(**{f"{family}/{kind}": lambda family=family, kind=kind: raw("socket", family, kind, 0)
                   for family in range(0, 48) for kind in (1, 2, 3, 5)},
                pair=socket.socketpair, rawpair=lambda: raw("socketpair", 1, 1, 0, ctypes.create_string_buffer(8)),
                inherited=lambda: [raw("connect", fd, b"", 0) for fd in range(8)])
""",
    "shared memory and queues": """
def solve(parent, folder):
    return done(segment=lambda: raw("shmget", 0x5EED, 4096, 0o1600), semaphore=lambda: raw("semget", 0x5EED, 1, 0o1600),
                queue=lambda: raw("msgget", 0x5EED, 0o1600), posix=lambda: raw("mq_open", b"x", 0o102, 0o600, None),
                dev=lambda: os.open("/dev/shm/affectlens-attempt", os.O_CREAT | os.O_RDWR),
                temporary=lambda: os.open("/tmp/affectlens-attempt", os.O_CREAT | os.O_RDWR),
                named=lambda: libc.shm_open(b"/affectlens-attempt", 0o102, 0o600) < 0 and os.stat(chr(0)))
""",
    "signals to the parent": """
import fcntl, signal
def solve(parent, folder):
    info = ctypes.create_string_buffer(128)
    return done(kill=lambda: os.kill(parent, 0), group=lambda: os.killpg(parent, 0), all=lambda: os.kill(-1, 0),
                tkill=lambda: raw("tkill", parent, 0), tgkill=lambda: raw("tgkill", parent, parent, 0),
                queue=lambda: raw("rt_sigqueueinfo", parent, 0, info),
                thread=lambda: raw("rt_tgsigqueueinfo", parent, parent, 0, info),
                handle=lambda: raw("pidfd_send_signal", 0, 0, None, 0),
                owner=lambda: fcntl.fcntl(0, fcntl.F_SETOWN, parent), signal=lambda: fcntl.fcntl(0, 10, 9),
                priority=lambda: raw("setpriority", 0, parent, 19),
                affinity=lambda: raw("sched_setaffinity", parent, 8, b"\\\\1" + bytes(7)))
""",
    "daemons": """
import subprocess
def solve(parent, folder):
    def child():
        if os.fork() == 0:
            while True: pass
    return done(session=lambda: raw("setsid"), group=lambda: raw("setpgid", 0, 0), fork=child,
                vfork=lambda: raw("ptrace", 0) if COLUMN else libc.syscall(58) < 0 and os.stat(chr(0)),
                program=lambda: subprocess.Popen(["/bin/sleep", "600"], start_new_session=True),
                shell=lambda: os.popen("sleep 600 &").close())
""",
    "threads": """
import _thread
def solve(parent, folder):
    try: _thread.start_new_thread(int, ())
    except RuntimeError: return []
    return ["thread"]
""",
    "limits": """
import resource
def solve(parent, folder):
    more = (resource.RLIM_INFINITY,) * 2
    wide = (ctypes.c_ulong * 2)(*[2**64 - 1] * 2)
    kinds = [getattr(resource, f"RLIMIT_{name}") for name in ("AS", "CPU", "CORE", "FSIZE", "NPROC", "NOFILE")]
    return done(**{str(kind): lambda kind=kind: resource.setrlimit(kind, more) for kind in kinds},
                raw=lambda: raw("setrlimit", 9, wide), other=lambda: raw("prlimit64", parent, 9, wide, None),
                own=lambda: raw("prlimit64", 0, 9, wide, None))
""",
    "links": """
def solve(parent, folder):
    space = ctypes.create_string_buffer(256)
    return done(hard=lambda: os.link("/etc/passwd", folder + "/link"), soft=lambda: os.symlink("/", folder + "/root"),
                raw=lambda: raw("linkat", -100, b"/etc/passwd", -100, folder.encode() + b"/link", 0),
                through=lambda: os.open(folder + "/out/passwd", os.O_RDONLY),
                dots=lambda: os.open(os.path.dirname(os.__file__) + "/" + "../" * 20 + "etc/passwd", os.O_RDONLY),
                handle=lambda: raw("name_to_handle_at", -100, b"/etc/passwd", space, space, 0),
                by_handle=lambda: raw("open_by_handle_at", -100, space, 0),
                openat2=lambda: raw("openat2", -100, b"/etc/passwd", bytes(24), 24))
""",
    "core dumps": """
import resource
def solve(parent, folder):
    limit = [] if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) else ["limit"]
    return limit + done(dumpable=lambda: raw("prctl", 4, 1, 0, 0, 0))
""",
    "privileges": """
def solve(parent, folder):
    return done(setuid=lambda: raw("setuid", 0), capset=lambda: raw("capset", bytes(8), bytes(24)),
                prctl=lambda: raw("prctl", 1, 0, 0, 0, 0), seccomp=lambda: raw("seccomp", 2, 0, None),
                personality=lambda: raw("personality", 0x40000), module=lambda: raw("init_module", 0, 0, 0))
""",
    "the kernel's other doors": """
def solve(parent, folder):
    space = ctypes.create_string_buffer(128)
    return done(bpf=lambda: raw("bpf", 0, space, 128), perf=lambda: raw("perf_event_open", space, 0, -1, -1, 0),
                faults=lambda: raw("userfaultfd", 1), keys=lambda: raw("keyctl", 0, -3, 0),
                key=lambda: raw("add_key", b"user", b"x", b"x", 1, -3), watch=lambda: raw("inotify_init1", 0),
                watchall=lambda: raw("fanotify_init", 0, 0), lock=lambda: raw("flock", 0, 2))
""",
    "the environment": """
import sys
def solve(parent, folder):
    kept = set(os.environ) - {"PYTHONHASHSEED", "LC_CTYPE", "PWD"}
    return sorted(kept) + [each for each in sys.argv if folder in each]
""",
    "results not asked for": """
import os
def solve(parent, folder):
    later = []
    for number in range(32):
        try:
            os.set_blocking(number, False)
            later += [number] if os.read(number, 1 << 16) else []
        except (OSError, ValueError): pass
    return later
""",
    "what runs at the end": """
import atexit, sys
atexit.register(lambda: os.write(1, b"after"))
sys.exitfunc = sys.excepthook = lambda *_: os.write(1, b"after")
def solve(parent, folder): return []
""",
}  # fmt: skip


@pytest.fixture(params=["alone", "bubblewrap"])
def walls(request: pytest.FixtureRequest) -> bool:
    """Whether bubblewrap is put around the process."""
    if request.param == "bubblewrap" and not sandbox.walls_hold():
        pytest.skip("bubblewrap is not here, or may not make namespaces")
    return request.param == "bubblewrap"


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a link out of it, and a secret in the environment; afterwards nothing may have been left."""
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    tmp_path.chmod(0o777)
    (tmp_path / "out").symlink_to("/etc")
    before = left_behind(tmp_path)
    yield tmp_path
    assert left_behind(tmp_path) == before


def left_behind(folder: Path) -> set[str]:
    """What outlives a process: files and System V objects."""
    names = {path.name for path in folder.iterdir()} | {path.name for path in Path("/").glob("core*")}
    for place in ("/dev/shm", "/tmp"):
        names |= {str(path) for path in Path(place).glob("*affectlens-attempt*")}
    rows = [row for name in ("shm", "sem", "msg") for row in Path("/proc/sysvipc", name).read_text().splitlines()]
    return names | {row for row in rows if row.split()[0] == str(0x5EED)}


def still_running(script: Path) -> list[str]:
    """Processes of a sandbox, by the script in their command lines."""
    running = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(script) in words:
            running.append(path.parent.name)
    return running


def run(source: str, *calls: list, walls: bool, seconds: float = 2.0) -> Run:
    return sandbox._run(source, "solve", list(calls), Limits(seconds), walls=walls)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_attempt_gets_anything_done(name: str, walls: bool, outside: Path):
    got = run(PRELUDE + ATTEMPTS[name], [os.getpid(), str(outside)], [os.getpid(), str(outside)], walls=walls)
    assert [(result.error, result.value) for result in got.results] == [(None, [])] * 2


def test_each_attempt_gets_something_done_where_nothing_holds_it():
    """The probes are no shots into the air: outside of the sandbox, nearly all of them report something."""
    space: dict = {}
    exec(PRELUDE + ATTEMPTS["/proc"], space)
    assert {"/proc/self/maps", "/proc"} <= set(space["solve"](os.getpid(), "/tmp"))
    exec(PRELUDE + ATTEMPTS["memory of other processes"], space)
    assert "open" in space["solve"](os.getpid(), "/tmp")
    exec(PRELUDE + ATTEMPTS["sockets of every family"], space)
    assert {"1/1", "pair"} <= set(space["solve"](os.getpid(), "/tmp"))
    exec(PRELUDE + ATTEMPTS["signals to the parent"], space)
    assert "kill" in space["solve"](os.getpid(), "/tmp")
    exec(PRELUDE + ATTEMPTS["the environment"], space)
    assert "PATH" in space["solve"](os.getpid(), "/tmp")


ENDS = {
    "fork bomb": ("def solve(*_):\n while True:\n  try: os.fork()\n  except OSError: pass", "processor time"),
    "flood of output": ("def solve(*_):\n while True: print('x' * 10**6, flush=True)", "processor time"),
    "flood of results": ("def solve(*_):\n while True: [wr(fd, b'x' * 10**5) for fd in range(3, 9)]", "grew too large"),
    "flood of lines": ("def solve(*_):\n while True: [wr(fd, b'\\n' * 10**5) for fd in range(3, 9)]", "nonsense"),
    "memory": ("def solve(*_):\n held = []\n while True: held.append(bytearray(1 << 24))", ""),
    "crash": ("def solve(*_): ctypes.string_at(0)", "SIGSEGV"),
    "abort": ("def solve(*_): libc.abort()", "SIG"),
    "own signal": ("def solve(*_): libc.raise_(9)", ""),
    "silence": ("def solve(*_): os.closerange(0, 64)\nimport time\ndef solve(*_): time.sleep(600)", "clock"),
    "success": ("def solve(*_): os._exit(0)", "left before"),
}  # fmt: skip
WRITES = """
import ctypes, os
libc = ctypes.CDLL(None)
def wr(fd, data):
    try: os.write(fd, data)
    except OSError: pass
"""


@pytest.mark.parametrize("name", ENDS)
def test_code_that_never_ends_well_is_ended_and_leaves_nothing(
    name: str, walls: bool, outside: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    source, why = ENDS[name]
    own = tmp_path_factory.mktemp("grade")  # so that other tests' processes are not taken for this one's
    shutil.copy(sandbox.FOLDER / "confined.py", own)
    monkeypatch.setattr(sandbox, "FOLDER", own)
    began = time.monotonic()
    got = run(WRITES + source, [1, 2], walls=walls, seconds=0.3)
    assert got.results[0].value is None
    assert why in (got.results[0].error or "")
    assert time.monotonic() - began < 30
    deadline = time.monotonic() + 5
    while (
        still_running(own / "confined.py") and time.monotonic() < deadline
    ):  # the kernel ends what bubblewrap held, a moment later
        time.sleep(0.02)
    assert still_running(own / "confined.py") == []


def test_with_bubblewrap_the_code_does_not_even_see_that_there_is_more(walls: bool, outside: Path):
    source = "import os\ndef solve(*paths): return [path for path in paths if os.path.lexists(path)]"
    seen = run(source, ["/etc/passwd", "/var", "/proc/1", "/sys", str(outside), __file__], walls=walls).results[0].value
    assert not walls or seen == []


def test_where_bubblewrap_cannot_start_the_process_shuts_itself_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a container that forbids namespaces: the command is there and fails."""
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sandbox.protections.cache_clear()
    try:
        assert not sandbox.walls_hold()
        got = sandbox.run_calls("def solve(): return 1", "solve", [[]], Limits())
        assert got.results[0].value == 1
        assert "bubblewrap" not in got.layers
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        assert not sandbox.walls_hold()
    finally:
        sandbox.protections.cache_clear()


def test_bubblewrap_is_used_where_it_holds():
    if shutil.which("bwrap") is None or not sandbox.walls_hold():
        pytest.skip("bubblewrap is not here, or may not make namespaces")
    assert "bubblewrap" in sandbox.run_calls("def solve(): return 1", "solve", [[]], Limits()).layers

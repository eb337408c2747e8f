"""What graded code cannot do, tried by code that wants to, and that the run goes on afterwards."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from affectlens.experiments.grade import confined, sandbox
from affectlens.experiments.grade.sandbox import Limits, Run, run_calls

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="code is only run on Linux")
QUICK = Limits(seconds=0.5)


def run(source: str, *calls: list, limits: Limits = QUICK) -> Run:
    return run_calls(source, "solve", list(calls) or [[]], limits)


@pytest.fixture(autouse=True)
def _nothing_is_left_and_the_run_goes_on():
    before = _children()
    yield
    assert _children() == before, "a process was left behind"
    assert run("def solve(a): return a + 1", [1]).results[0].value == 2


def _children() -> set[int]:
    """Processes whose parent is this one: nothing the sandbox starts may outlive its call, as a zombie or otherwise."""
    mine = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                mine.add(int(folder.name))
    return mine


def test_everything_forbidden_is_refused_on_this_machine():
    found = sandbox.protections()
    assert found.faults == {} and found.refusal == ""
    assert {"resource limits", "no capabilities", "seccomp filter"} <= set(found.layers)


def test_results_are_plain_values_in_the_order_of_the_calls():
    source = "def solve(a, b):\n    return {'sum': a + b, 'set': {b, a}, 'pair': (a, b)}"
    got = run(source, [2, 1], [3, 4])
    assert [result.value["sum"] for result in got.results] == [3, 7]
    assert got.results[0].value == {"sum": 3, "set": [1, 2], "pair": [2, 1]}
    assert got.ended == ""


def test_one_failing_call_does_not_spoil_the_others():
    got = run("def solve(a): return 10 // a", [0], [5])
    assert got.results[0].error == "ZeroDivisionError: integer division or modulo by zero"
    assert got.results[1].value == 2


def test_the_library_works_and_chance_has_a_fixed_start():
    source = """
import datetime, decimal, heapq, random, re, statistics, string, zlib
def solve():
    day = datetime.datetime.strptime("2020-02-29", "%Y-%m-%d")
    return [day.year, random.random(), list({"a", "b", "c", "d"}), zlib.crc32(b"x"), "é".encode("latin-1")[0]]
"""
    first, second = run(source).results[0], run(source).results[0]
    assert first.error is None and first == second


def test_a_trivial_answer_is_quick():
    run("def solve(): return 1")
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        run("def solve(): return 1")
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.3


def test_an_endless_loop_ends_at_its_processor_time_even_if_it_catches_everything():
    source = """
import signal
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
def solve():
    while True:
        try:
            while True: pass
        except BaseException: pass
"""
    got = run(source, [])
    assert got.results[0].error == got.ended == "it used more than 0.5 s of processor time"


def test_an_endless_sleep_ends_by_the_clock():
    start = time.monotonic()
    got = run("import time\ndef solve(): time.sleep(600)", limits=Limits(seconds=0.2))
    assert got.ended == "it took too long by the clock"
    assert time.monotonic() - start < 20


def test_an_endless_loop_while_loading_ends_too():
    assert "processor time" in run("while True: pass\ndef solve(): return 1").ended


def test_a_bounded_fork_bomb_starts_not_one_process():
    source = """
import os, subprocess, threading, _thread, multiprocessing
def solve():
    started = 0
    for _ in range(3):
        for start in (
            os.fork,
            os.forkpty,
            lambda: subprocess.Popen(["/bin/true"]),
            lambda: os.posix_spawn("/bin/true", ["true"], {}),
            lambda: multiprocessing.Process(target=int).start(),
            lambda: _thread.start_new_thread(int, ()),
            lambda: os.system("true") and 1 / 0,
        ):
            try:
                if start() == 0: os._exit(0)
                started += 1
            except Exception: pass
    return started
"""
    assert run(source).results[0].value == 0


@pytest.mark.skipif(confined.platform.machine() != "x86_64", reason="only there a second numbering exists")
def test_the_second_numbering_of_system_calls_is_refused():
    source = """
import ctypes, os
def solve():
    here = ctypes.CDLL(None).syscall(0x40000000 + 57)
    if here == 0: os._exit(0)
    return here
"""
    assert run(source).results[0].value == -1


def test_a_memory_hog_runs_out_and_the_rest_is_graded():
    source = "def solve(size):\n    return len(bytearray(size))"
    got = run(source, [300 << 20], [1000], limits=Limits(seconds=2.0, memory=256 << 20))
    assert got.results[0].error is not None and got.results[0].error.startswith("MemoryError")
    assert got.results[1].value == 1000


def test_files_outside_are_neither_written_nor_changed(tmp_path: Path):
    tmp_path.chmod(0o777)
    target = tmp_path / "target"
    target.write_text("whole")
    target.chmod(0o666)
    source = """
import os, pathlib, shutil, tempfile
def solve(target):
    new = target + ".new"
    done = []
    for name, act in {
        "write": lambda: open(target, "w"),
        "append": lambda: open(target, "a"),
        "update": lambda: os.open(target, os.O_RDWR),
        "create": lambda: os.open(new, os.O_CREAT | os.O_RDONLY),
        "truncate": lambda: os.truncate(target, 0),
        "cut": lambda: os.open(target, os.O_RDONLY | os.O_TRUNC),
        "unlink": lambda: os.unlink(target),
        "rename": lambda: os.rename(target, new),
        "link": lambda: os.link(target, new),
        "symlink": lambda: os.symlink(target, new),
        "mkdir": lambda: os.mkdir(new),
        "chmod": lambda: os.chmod(target, 0),
        "touch": lambda: os.utime(target),
        "fifo": lambda: os.mkfifo(new),
        "temporary": tempfile.TemporaryFile,
        "memory": lambda: os.memfd_create("x"),
        "shared": lambda: open("/dev/shm/affectlens-test", "w"),
        "xattr": lambda: os.setxattr(target, "user.x", b"1"),
    }.items():
        try: act()
        except (OSError, ValueError): continue
        done.append(name)
    return done
"""
    assert run(source, [str(target)]).results[0].value == []
    assert target.read_text() == "whole" and [path.name for path in tmp_path.iterdir()] == ["target"]


def test_secrets_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    tmp_path.chmod(0o755)
    secret = tmp_path / "scenarios.jsonl"
    secret.write_text("sesame")
    secret.chmod(0o644)
    source = """
import os, sys
def solve(path, parent):
    found = [repr(dict(os.environ)), repr(sys.argv)]
    places = [path, "/etc/passwd", "/proc/self/environ", "/proc/self/fd/0", f"/proc/{parent}/environ"]
    places += [f"/proc/{parent}/{name}" for name in ("cmdline", "mem", "fd/0", "cwd/README.md")]
    for place in places:
        try: found.append(place + " " + open(place, "rb").read(100).decode(errors="replace"))
        except OSError: pass
    for folder in ("/", "/tmp", os.path.dirname(path)):
        try: found.append(repr(os.listdir(folder)))
        except OSError: pass
    return found
"""
    found = run(source, [str(secret), os.getpid()]).results[0].value
    assert len(found) == 2 and "sesame" not in repr(found)


def test_what_is_expected_is_nowhere_in_the_process():
    """All the code can find are its own arguments: the expected value of a test stays outside."""
    source = """
import gc, sys
def solve(a):
    frames, frame = [], sys._getframe()
    while frame:
        frames.append(repr(frame.f_locals) + repr(list(frame.f_globals)))
        frame = frame.f_back
    held = [each for each in gc.get_objects() if isinstance(each, (list, dict))]
    return "needle-" + str(a - a + 4711) in repr(frames) + repr(held)
"""
    from affectlens.experiments.grade.graders import Answer, CodeConfig, CodeGrader
    from affectlens.experiments.scenario import Scenario

    check = {"visible": [[[1], False]], "hidden": [[[2], False], [[3], "needle-4711"]]}
    scenario = Scenario("s", "s", "main", {}, (), "Write it.", {}, "", {}, check)
    grade = CodeGrader(CodeConfig()).grade([Answer(scenario, f"```python\n{source}```")])[0]
    assert (grade.get("visible"), grade["score"]) == (1.0, 0.5)


def test_a_network_call_does_not_arrive():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        source = """
import socket, urllib.request
def solve(port):
    reached = []
    for name, act in {
        "tcp": lambda: socket.create_connection(("127.0.0.1", port), 1),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "raw": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "kernel": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "url": lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=1),
    }.items():
        try: act()
        except OSError: continue
        reached.append(name)
    return reached
"""
        assert run(source, [listener.getsockname()[1]]).results[0].value == []
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_descriptor_of_ours_is_not_inherited(tmp_path: Path):
    with (tmp_path / "open").open("w") as stream:
        os.set_inheritable(stream.fileno(), True)
        source = """
import os
def solve():
    held = []
    for number in range(3, 64):
        try: os.fstat(number)
        except OSError: continue
        held.append(number)
    return held
"""
        held = run(source).results[0].value
    assert len(held) == 2, "the pipes of the calls and of the results, and nothing else"


def test_huge_output_is_dropped_and_huge_results_are_cut():
    printed = run('def solve():\n    for _ in range(200): print("x" * 100000)\n    return 1', limits=Limits(2.0))
    assert printed.results[0].value == 1
    returned = run('def solve(): return "x" * 50_000_000', limits=Limits(5.0))
    assert returned.ended == "its results grew too large" and returned.results[0].value is None


@pytest.mark.parametrize(
    ("leave", "how"),
    [
        ("import os; os._exit(0)", "it left before it was through"),
        ("import os; os._exit(3)", "it left before it was through"),
        ("import ctypes; ctypes.string_at(0)", "it was ended by SIGSEGV"),
        (
            "import os; os.closerange(0, 64); any(iter(int, 1))",
            "it (closed its results|used more than 3 s of processor time)",
        ),
    ],
)
def test_leaving_early_fails_the_calls_that_were_not_made(leave: str, how: str):
    got = run(f"def solve(a):\n    if a: return a\n    {leave}", [1], [0], [2], limits=Limits(seconds=3.0))
    assert [result.value for result in got.results] == [1, None, None]
    assert re.fullmatch(how, got.ended) and got.ended == got.results[2].error


def test_exiting_politely_is_an_error_of_one_call():
    got = run("import sys\ndef solve(a): sys.exit() if a else None\n", [1], [0])
    assert got.results[0].error == "SystemExit: " and got.results[1].error is None


def test_the_parent_cannot_be_killed():
    """Directly, by group, by a raw call, and by having a pipe's owner signalled (fcntl's F_SETOWN and F_SETSIG)."""
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    source = """
import ctypes, fcntl, os, platform, signal
def solve(parent):
    done = []
    def raw(parent):
        tgkill = {"x86_64": 234, "aarch64": 131}[platform.machine()]
        if ctypes.CDLL(None).syscall(tgkill, parent, parent, 9) < 0: raise OSError
    def owned():
        reader, writer = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETOWN, parent)
        fcntl.fcntl(reader, 10, signal.SIGKILL)
        fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.write(writer, b"x")
    for name, act in {
        "kill": lambda: os.kill(parent, 9),
        "group": lambda: os.killpg(parent, 9),
        "all": lambda: os.kill(-1, 0),
        "thread": lambda: raw(parent),
        "descriptor": lambda: os.pidfd_open(parent),
        "owner": owned,
        "priority": lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
    }.items():
        try: act()
        except OSError: continue
        done.append(name)
    return done
"""
    try:
        assert run(source, [victim.pid]).results[0].value == []
        assert run(source, [os.getpid()]).results[0].value == []
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_deep_recursion_ends_in_an_error_or_a_signal():
    plain = run("def solve(n): return solve(n + 1)", [0])
    assert plain.results[0].error is not None and plain.results[0].error.startswith("RecursionError")
    source = """
import sys
sys.setrecursionlimit(10**9)
class Deep:
    def __repr__(self): return repr([self])
def solve(a): return repr(Deep())
"""
    assert run(source, [0], limits=Limits(2.0)).results[0].error
    assert run("x = " + "-" * 5000 + "1\ndef solve(): return 1").results[0].value in (1, None)
    assert run("def solve():\n    x = []\n    for _ in range(90000): x = [x]\n    return x").results[0].error


def test_tampering_with_modules_spoils_nothing_but_the_own_results():
    source = """
import builtins, json, os, sys
def liar(*_, **__): raise RuntimeError("no")
json.dumps = json.loads = os.write = os._exit = builtins.print = liar
json.JSONEncoder.default = liar
for name in list(sys.modules):
    if name not in ("builtins", "sys"): sys.modules[name] = None
class Same:
    def __eq__(self, other): return True
def solve(a): return Same() if a else 7
"""
    got = run(source, [1], [0])
    assert got.results[0].error and got.results[0].value is None
    assert got.results[1].value in (7, None)


def test_forged_lines_are_read_as_results_at_most():
    nonsense = (
        'import os\nfor fd in range(3, 9):\n    try: os.write(fd, b"%s\\n")\n    except OSError: pass\n'
        "def solve(): return 1"
    )
    for line in ("not json", "[1]", "[" * 3000, '{"layers": []}', '{"error": 5}', "1" * 9000, "\\\\xff"):
        got = run(nonsense % line)
        assert len(got.results) == 1 and got.layers
        assert got.results[0].value is None


def test_the_entry_must_be_there_and_the_code_must_load():
    assert run("def other(): pass").results[0].error == "it defines no `solve`"
    assert "SyntaxError" in (run("def solve(:").results[0].error or "")
    assert "no plain value" in (run("def solve(): return object()").results[0].error or "")


def test_an_ordinary_user_is_as_safe_as_root(tmp_path: Path):
    """The layers need no privilege: everything forbidden is refused without any as well."""
    tmp_path.chmod(0o755)
    for part in Path(sandbox.__file__).parent.glob("*.py"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    script = tmp_path / "as_nobody.py"
    script.write_text(AS_NOBODY)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd="/", check=False)
    assert done.stdout == "contained\n", done.stderr


AS_NOBODY = """
import os, pathlib, runpy
folder = pathlib.Path(__file__).parent
space = runpy.run_path(str(folder / "confined.py"))
escapes = (folder / "escapes.py").read_text()
parent = os.getpid()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    space["preload"](escapes)  # while the library, which may be root's own, can be read
    if os.getuid() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
    job = {"parent": parent, "library": True, "processor_seconds": 5, "memory": 256 << 20}
    space["shut"](job)
    calls = [["processes"], ["signals", parent], ["writing", "/tmp/written-by-nobody"], ["reading", "/etc/passwd"],
             ["network", 9], ["memory", 256 << 20], ["time"], ["programs"]]
    for line in space["answers"](escapes, "attempt", calls):
        os.write(writer, line.encode() + b"\\n")
    os._exit(0)
os.close(writer)
os.waitpid(child, 0)
lines = os.read(reader, 10000).decode().splitlines()
print("contained" if lines == ['{"value": ""}'] * 8 else lines)
"""


def test_without_landlock_no_file_is_opened_at_all():
    found = sandbox.protections(library=False)
    assert found.faults == {} and not any("Landlock" in layer for layer in found.layers)
    source = """
import datetime, math, random
def solve():
    try: open(math.__file__ if hasattr(math, "__file__") else random.__file__)
    except OSError: return datetime.datetime.strptime("2020-02-29", "%Y-%m-%d").year
"""
    got = sandbox._run(source, "solve", [[]], QUICK, library=False)
    assert got.results[0].value == 2020


@pytest.mark.parametrize("machine", sorted(confined.MACHINES))
def test_the_filter_says_no_unless_it_says_yes(machine: str):
    """The filter, run by a small interpreter of its own language, for every machine it knows."""
    architecture, column = confined.MACHINES[machine]
    fork = {"x86_64": 57, "aarch64": 220}[machine]
    openat, fcntl, prlimit = (numbers[column] for numbers in (confined.OPENAT, confined.FCNTL, confined.PRLIMIT))
    allowed, refused = confined.ALLOW, confined.REFUSE | confined.EPERM
    for library in (False, True):
        program = confined.filter_program(machine, may_open=library)

        def says(number: Any, *arguments: int, arch: int = architecture, program: list = program) -> int:
            return _interpreted(program, arch, number, arguments)

        assert says(confined.CALLS["read"][column]) == allowed
        assert says(fork) == says(fork | 0x40000000) == refused
        assert says(confined.CALLS["read"][column], arch=0x40000003) == refused
        assert says(openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == (allowed if library else refused)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE | os.O_RDWR):
            assert says(openat, 0, 0, flags) == refused
        assert says(fcntl, 3, 1) == says(fcntl, 3, 1030) == allowed
        assert [says(fcntl, 3, command) for command in (4, 8, 10, 1033)] == [refused] * 4
        assert says(prlimit, 0, 7, 0) == allowed
        assert says(prlimit, 0, 7, 1) == says(prlimit, 0, 7, 1 << 40) == refused
        assert says(confined.IOCTL[column]) == confined.REFUSE | confined.ENOTTY
        assert says(confined.CLONE3[column]) == confined.REFUSE | confined.ENOSYS


def _interpreted(program: list, architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    data = struct.pack("<iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    held, place = 0, 0
    while True:
        code, yes, no, operand = program[place]
        place += 1
        if code == confined.LOAD:
            held = struct.unpack_from("<I", data, operand)[0]
        elif code == confined.EQUAL:
            place += yes if held == operand else no
        elif code == confined.ANY_BIT:
            place += yes if held & operand else no
        else:
            assert code == confined.RETURN
            return operand


def test_no_code_is_run_where_it_cannot_be_contained(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        sandbox.protections.cache_clear()
        patch.setattr(sandbox.sys, "platform", "darwin")
        patch.setattr(sandbox.subprocess, "Popen", lambda *_, **__: pytest.fail("something was run"))
        with pytest.raises(sandbox.Unprotected, match="darwin is not Linux"):
            run("def solve(): return 1")
    sandbox.protections.cache_clear()


def test_a_containment_that_does_not_hold_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A worker that claims to be shut in, and is not, is found out by what it can do."""
    sandbox.protections.cache_clear()
    for part in sandbox.FOLDER.glob("*.py"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    honest = (tmp_path / "confined.py").read_text()
    leaky = honest.replace('    control(PR_SET_SECCOMP, 2, packed, "the kernel takes no seccomp filter")\n', "")
    assert leaky != honest
    (tmp_path / "confined.py").write_text(leaky)
    monkeypatch.setattr(sandbox, "FOLDER", tmp_path)
    try:
        found = sandbox.protections()
        assert "network" in found.faults and "could not be contained" in found.refusal
        with pytest.raises(sandbox.Unprotected):
            run("def solve(): return 1")
    finally:
        sandbox.protections.cache_clear()
        monkeypatch.undo()

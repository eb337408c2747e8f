"""Runs code that nobody has read: in a process of its own that can compute, and do nothing else.

The process is given the arguments of one call after the other and hands back values; what values are expected never
enters it. It may read Python's
standard library; it may start no process, open no connection, write no file, signal nobody, and has bounded memory,
processor time and output. What shuts it in is in :mod:`affectlens.experiments.grade.confined`; whether that holds on
this machine is tried once before any code is run, by doing everything that is forbidden. Where it does not hold, or the
system is not Linux, no code is run at all.

Where bubblewrap (bwrap(1)) is installed and may make namespaces, it is put around the process: a root that holds the
standard library and nothing else, no network, no other process. It adds to what the process does to itself and
replaces none of it: clusters and containers often forbid namespaces, so containment may not depend on them. What it
alone hides is that a path outside exists, which Landlock lets a process ask. ``tests/test_sandbox_attempts.py`` tries
the same attempts with and without it.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from affectlens.errors import UserError
from affectlens.experiments.grade import confined

FOLDER = Path(__file__).parent
OUTPUT = 1 << 20
"""Bytes of results that are read before the process is ended."""
PATIENCE = 10.0
"""Seconds by the clock for each second of processor time, so that a busy machine does not change a grade..."""
START = 20.0
"""...and seconds by the clock for the process to start."""
TICK = 0.02


class Unprotected(UserError):
    """Code cannot be contained on this machine, so none is run."""


@dataclass(frozen=True)
class Limits:
    """What one run may use up: processor seconds, and bytes of address space."""

    seconds: float = 2.0
    memory: int = 256 << 20


@dataclass(frozen=True)
class Result:
    """What one call came to: a plain value, or an error in words."""

    value: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Run:
    """What one run came to.

    Attributes:
        results: one for each call.
        ended: why the process ended before it was through, in words; empty if it was not.
        layers: what shut it in.
    """

    results: tuple[Result, ...]
    ended: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Protections:
    """What was found when everything forbidden was tried.

    Attributes:
        layers: what shuts code in on this machine.
        faults: what is not contained, and how that showed; empty if all holds.
    """

    layers: tuple[str, ...]
    faults: dict[str, str]

    @property
    def refusal(self) -> str:
        """Why no code is run here, as one sentence; empty if it is."""
        if not self.faults:
            return ""
        what = "; ".join(f"{name}: {how}" for name, how in self.faults.items())
        return f"graded code is not run here because it could not be contained ({what}); run the experiment on Linux"


def run_calls(source: str, entry: str, calls: Sequence[Sequence[Any]], limits: Limits) -> Run:
    """Run code and call one of its functions, once for each list of arguments, in one fresh process.

    Args:
        source: Python code from anywhere.
        entry: the function that is called.
        calls: lists of plain (JSON) arguments.
        limits: what the run may use up.

    Raises:
        Unprotected: this machine cannot contain it; nothing was run.
    """
    refusal = protections().refusal
    if refusal:
        raise Unprotected(refusal)
    return _run(source, entry, calls, limits, walls=walls_hold())


def walls_hold() -> bool:
    """Whether bubblewrap is here, starts, and lets nothing through that is forbidden."""
    return sys.platform == "linux" and shutil.which("bwrap") is not None and not protections(walls=True).faults


@cache
def protections(*, library: bool = True, walls: bool = False) -> Protections:
    """Try everything forbidden from inside, once, and say what shuts code in here.

    Args:
        library: whether code may load modules of the standard library that were not loaded for it before; needs
            Landlock, and is quietly forgone without.
        walls: whether bubblewrap is put around the process.
    """
    if sys.platform != "linux":
        return Protections((), {"system": f"{sys.platform} is not Linux"})
    secret, limits = "open sesame", Limits(seconds=5.0)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        Path(folder).chmod(0o755)
        readable = Path(folder, "secret")
        readable.write_text(secret)
        attempts = {
            "processes": [],
            "programs": [],
            "signals": [os.getpid()],
            "writing": [str(Path(folder, "written"))],
            "reading": [str(readable)],
            "network": [listener.getsockname()[1]],
            "memory": [limits.memory],
            "time": [],
        }
        source = (FOLDER / "escapes.py").read_text(encoding="utf-8")
        run = _run(source, "attempt", [[name, *rest] for name, rest in attempts.items()], limits, library, walls)
    if not run.layers:
        return Protections((), {"sandbox": run.ended})
    faults = {}
    for name, result in zip(attempts, run.results, strict=True):
        if result.error is not None or result.value:
            faults[name] = run.ended or result.error or str(result.value)
    return Protections(run.layers, faults)


def _run(
    source: str, entry: str, calls: Sequence[Sequence[Any]], limits: Limits, library: bool = True, walls: bool = False
) -> Run:
    job = {
        "source": source,
        "entry": entry,
        "calls": len(calls),
        "library": library,
        "parent": 0 if walls else os.getpid(),  # what is outside of its namespace has no number in it
        "processor_seconds": math.ceil(limits.seconds) + 1,
        "memory": limits.memory,
    }
    lines = [json.dumps(value).encode() + b"\n" for value in (job, *map(list, calls))]
    told, telling = os.pipe()
    # The order of sets depends on the hash seed, and a grade must not.
    process = subprocess.Popen(
        [
            *(_walls(telling) if walls else ()),
            *(os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", str(FOLDER / "confined.py")),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PYTHONHASHSEED": "0"},
        start_new_session=True,
        bufsize=0,
        pass_fds=[telling] if walls else (),
    )
    os.close(telling)
    try:
        with os.fdopen(told, "rb") as stream:
            pid = _object(stream.read()).get("child-pid", process.pid)
        data, ended = _converse(process, pid, lines, limits)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    run = _understood(data, ended, len(calls))
    return replace(run, layers=(*run.layers, "bubblewrap")) if walls and run.layers else run


def _walls(telling: int) -> list[str]:
    """The command that runs a command in a root of its own: the standard library, this script, and a null device.

    Args:
        telling: the descriptor on which it tells the process's number.
    """
    seen = [
        *confined.library_folders(),
        "/etc/ld.so.cache",
        os.path.realpath(sys.executable),
        f"{FOLDER / 'confined.py'}",
    ]
    bound = [word for path in seen for word in ("--ro-bind-try", path, path)]
    return [
        *(
            shutil.which("bwrap") or "bwrap",
            "--unshare-all",
            "--die-with-parent",
            "--as-pid-1",
            "--cap-drop",
            "ALL",
            "--info-fd",
            str(telling),
        ),
        *(*bound, "--dev-bind", os.devnull, os.devnull, "--chdir", "/", "--"),
    ]


def _converse(process: subprocess.Popen[bytes], pid: int, lines: Sequence[bytes], limits: Limits) -> tuple[bytes, str]:
    """Hand over the job, then one call after each line that comes back, until the process is through or out of bounds.

    The arguments of a call are not in the process before all earlier calls are answered.

    Args:
        process: what was started: the process that runs the code, or bubblewrap around it.
        pid: the process that runs the code.
        lines: the job, then the arguments of each call.
        limits: what it may use up.

    Returns:
        What the process wrote, and why it was ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)  # the process may not read; nobody waits for it to
    data, begun, deadline = bytearray(), None, time.monotonic() + START
    unsent, waiting = bytearray(lines[0]), list(lines[1:])
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while True:
            for key, _ in selector.select(TICK):
                if key.fileobj is process.stdin:
                    try:
                        del unsent[: os.write(process.stdin.fileno(), unsent)]
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        unsent.clear()
                        waiting.clear()
                    if not unsent:
                        selector.unregister(process.stdin)
                    continue
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    return bytes(data), _how_it_ended(process)
                data += chunk
                for _ in range(min(chunk.count(b"\n"), len(waiting))):
                    if not unsent:
                        selector.register(process.stdin, selectors.EVENT_WRITE)
                    unsent += waiting.pop(0)
            if len(data) > OUTPUT:
                return bytes(data[:OUTPUT]), "its results grew too large"
            if begun is None and b"\n" in data:
                begun, deadline = _processor_seconds(pid), time.monotonic() + PATIENCE * limits.seconds
            if begun is not None and _processor_seconds(pid) - begun > limits.seconds:
                return bytes(data), f"it used more than {limits.seconds:g} s of processor time"
            if time.monotonic() > deadline:
                return bytes(data), "it did not start" if begun is None else "it took too long by the clock"


def _processor_seconds(pid: int) -> float:
    """What the process has used so far: its processor clock, named by clock_getcpuclockid(3)'s rule."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # It has just ended.
        return 0.0


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        status = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "it closed its results"
    number = -status if status < 0 else status - 128  # as bubblewrap, and every shell, reports a signal
    return f"it was ended by {signal.Signals(number).name}" if number in set(signal.Signals) else ""


def _understood(data: bytes, ended: str, count: int) -> Run:
    """What the lines of a process say; none of them is trusted to be what it should be."""
    lines = [_object(line) for line in data.split(b"\n", count + 1)[:-1]]
    first, told = (lines[0], lines[1:]) if lines else ({}, [])
    layers = tuple(map(str, first.get("layers", ())))
    if not layers:
        return Run((Result(error="the code was not run"),) * count, str(first.get("refused", ended)), ())
    if told and "fault" in told[0]:
        return Run((Result(error=str(told[0]["fault"])),) * count, ended, layers)
    results = [
        Result(value=line["value"]) if "value" in line else Result(error=str(line.get("error", "it wrote nonsense")))
        for line in told[:count]
    ]
    ended = ended or ("it left before it was through" if len(results) < count else "")
    return Run((*results, *[Result(error=ended)] * (count - len(results))), ended, layers)


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

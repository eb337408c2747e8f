"""Runs of the command line on a disk that fails once, or in a process that is killed, at the n-th request.

A process that has everything imported forks a child for each run. What is asked of the disk is counted, and refused,
by the preloaded library ``faults.c``, so no library's writes escape it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: as a shell has it, negative for a signal.
        requests: what it asked of the disk below its cache.
        said: on standard error.
    """

    status: int
    requests: int
    said: str


class Faulty:
    """The process that forks the runs.

    Args:
        folder: for the library and what runs say.

    Raises:
        FileNotFoundError: there is no C compiler.
    """

    def __init__(self, folder: Path) -> None:
        library = folder / "faults.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", library, HERE / "faults.c", "-ldl"], check=True)
        self._said = folder / "said"
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "faulty.py"), str(library)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "LD_PRELOAD": str(library)},
        )  # fmt: skip

    def run(self, cache: Path, *arguments: str, nth: int = 0, fault: int = 0) -> Ended:
        """Run ``affectlens``.

        Args:
            cache: below which requests count.
            arguments: of the command.
            nth: the request that fails, from 1; 0 for none.
            fault: the error's number; 0 to be killed instead.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        job = {"root": str(cache), "nth": nth, "fault": fault, "arguments": arguments, "said": str(self._said)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(answer["status"], answer["requests"], self._said.read_text(encoding="utf-8"))

    def close(self) -> None:
        self._process.communicate()


def _child(job: dict[str, Any], arm: Any, counter: Any, answers: int) -> None:
    from affectlens import cli

    os.close(answers)
    said = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    arm(job["root"].encode(), job["nth"], job["fault"], ctypes.byref(counter))
    sys.argv = ["affectlens", *job["arguments"]]
    status = 0
    try:
        cli.main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
    Path(job["said"] + ".modules").write_text("\n".join(sys.modules), encoding="utf-8")
    os._exit(status)


def _serve(library: str) -> None:
    arm = ctypes.CDLL(library).faults_arm
    counter = ctypes.c_long.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
    answers = os.dup(1)
    os.dup2(2, 1)
    known: set[str] = set()
    for line in sys.stdin:
        job = json.loads(line)
        counter.value = 0
        child = os.fork()
        if child == 0:
            try:
                _child(job, arm, counter, answers)
            finally:
                os._exit(99)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, json.dumps({"status": status, "requests": counter.value}).encode() + b"\n")
        # What a run imports the next one need not: only imports, so that no thread of a library is forked.
        with suppress(OSError):
            found = set(Path(job["said"] + ".modules").read_text(encoding="utf-8").split())
            for name in sorted(found - known):
                with suppress(Exception):
                    importlib.import_module(name)
            known |= found


if __name__ == "__main__":
    _serve(sys.argv[1])

"""The study's side of the process that talks to Weights & Biases: start it, hand it events, end it in time."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import affectlens

PLAIN = frozenset(
    f"WANDB_{name}"
    for name in (
        *("API_KEY", "IDENTITY_TOKEN_FILE", "CREDENTIALS_FILE", "BASE_URL", "APP_URL", "ENTITY"),
        *("INSECURE_DISABLE_SSL", "HTTP_TIMEOUT", "CONFIG_DIR"),
    )
)
"""Variables that say which server and whose account. The others could rename or redirect a run, and are hidden."""
MARGIN_S = 10.0
MEMORY = 2 << 30
"""Bytes that a process that talks to W&B may take, and so its helper: a server can answer without end."""
SHOWN = 200
"""Letters of what W&B says that are handed on."""


class Process:
    """A recorder in a process of its own. No method waits for it but :meth:`close`.

    Attributes:
        mode: whether a server is involved.
        lost: why the process ended before it was asked to; empty while all is well.
    """

    def __init__(
        self,
        mode: Literal["online", "offline"],
        directory: Path,
        timeout_s: float,
        heard: Callable[[dict[str, Any]], None],
        variables: Mapping[str, str] | None = None,
        margin_s: float = MARGIN_S,
    ) -> None:
        """Start it.

        Args:
            mode: whether a server is involved.
            directory: takes all that W&B writes.
            timeout_s: limit of opening a run, and of closing it.
            heard: called with each report, on a thread of its own.
            variables: of the environment, beside those that are kept.
            margin_s: beyond the limit, how long an event may take on a busy machine.
        """
        self.mode = mode
        self.lost = ""
        self._limit_s = timeout_s + margin_s
        self._heard = heard
        self._events: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._sent = self._answered = 0
        self._answer_time = time.monotonic()
        directory.mkdir(parents=True, exist_ok=True)
        # Names of arguments can be seen by all users of a machine, variables cannot: no key is an argument.
        command = [sys.executable, "-m", "affectlens.tracking.recorder", mode, str(directory), str(timeout_s)]
        with (directory / f"recorder-{mode}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(mode, directory) | dict(variables or {}),
                start_new_session=True,  # an interrupt at the terminal is for the study, which ends this in order
                text=True,
                encoding="utf-8",
            )
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, action: str, run: str, **values: Any) -> None:
        """Hand over an event (see :mod:`.recorder`)."""
        self._sent += 1
        self._events.put(json.dumps({"do": action, "run": run, **values}) + "\n")

    def close(self) -> None:
        """Wait until all events are answered, as long as each is answered in time; else end the process."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        self._answer_time = time.monotonic()
        self._events.put(None)
        while self._process.poll() is None and time.monotonic() - self._answer_time < self._limit_s:
            time.sleep(0.02)
        if self._process.poll() is None:
            self._process.kill()
            self.lost = self.lost or f"no answer within {self._limit_s:g} s"
        elif self._answered < self._sent:
            self.lost = self.lost or f"the process ended early with status {self._process.returncode}"
        for thread in self._threads:
            thread.join(1)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _write(self) -> None:
        assert self._process.stdin is not None
        try:
            while (line := self._events.get()) is not None:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            self._process.stdin.close()
        except (OSError, ValueError):
            self.lost = self.lost or "the process ended early"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answered += 1
            self._answer_time = time.monotonic()
            self._heard(json.loads(line))


def bound_memory() -> None:
    """Let this process and those that it starts take no more than :data:`MEMORY`, where the system can."""
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def one_line(error: BaseException) -> str:
    """What W&B says, which may be what a server says: one line that can be printed."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return " ".join(text.split())[:SHOWN]


def environment(mode: str, directory: Path) -> dict[str, str]:
    """The variables of a process that talks to W&B: silent, inside a folder, and seeing none that it should not see.

    Args:
        mode: ``online`` or ``offline``; the latter sees no key.
        directory: takes all that W&B writes.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") or name in PLAIN}
    folders = {"DIR": "", "DATA_DIR": "data", "CACHE_DIR": "cache", "ARTIFACT_DIR": "artifacts"}
    if mode == "offline":
        folders["CONFIG_DIR"] = "config"  # online, the user's own says which server `wandb login` chose
        kept.pop("WANDB_API_KEY", None)
    variables = {f"WANDB_{name}": str(directory / folder) for name, folder in folders.items()}
    variables |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    root = str(Path(affectlens.__file__).parents[1])
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")]))
    return {"WANDB_HTTP_TIMEOUT": "5"} | kept | variables

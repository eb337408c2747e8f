"""A server in Weights & Biases' place that means harm, or is somebody else: the study goes on, and the key stays.

What is sent is W&B's own client's affair; what is ours is that it happens in a process that ends in time, uses bounded
memory, and leaves the runs offline.
"""

# ruff: noqa: F811  (fixtures of another module are named twice)
from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from affectlens.compare import remote
from affectlens.run import runner
from affectlens.study import Study
from affectlens.tracking.observer import WandbObserver
from affectlens.tracking.process import MEMORY
from test_tracking import folders, study, untouched, warnings  # noqa: F401  (fixtures)
from wandb_server import API_KEY

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
TIMEOUT = 2


def moved(code: int, where: str) -> bytes:
    return f"HTTP/1.1 {code} Moved\r\nLocation: {where}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def endless(first: bytes, piece: bytes, pause: float = 0) -> Iterator[bytes]:
    yield first
    while True:
        yield piece
        time.sleep(pause)


ANSWERS: dict[str, Callable[[], Any]] = {
    "without end": lambda: endless(HEAD + b'\r\n{"data": "', b"x" * (1 << 20)),
    "a byte at a time": lambda: endless(HEAD + b"Content-Length: 100000\r\n\r\n", b"x", 0.2),
    "headers without end": lambda: endless(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"y" * 4096 + b"\r\n"),
    "longer than it says": lambda: [HEAD + b"Content-Length: 2\r\n\r\n{}" + b"z" * (1 << 20)],
    "a huge promise": lambda: [HEAD + b"Content-Length: 9000000000000000000\r\n\r\n{"],
    "moved in a circle": lambda: [moved(307, "/graphql")],
    "moved to a file": lambda: [moved(302, "file:///etc/passwd")],
    "deep": lambda: [HEAD + b"\r\n" + b"[" * 1_000_000],
    "of another shape": lambda: [HEAD + b'\r\n{"data": [{"viewer": [null, 1e999]}], "errors": 5}'],
    "mark-up and control characters": lambda: [
        HEAD + b'\r\n{"errors": [{"message": "\\u001b[31m[/red]<script>\\u0000\\n\\n"}]}'
    ],
    "no HTTP": lambda: [b"SSH-2.0-OpenSSH_9\r\n"],
}


class Hostile:
    """Answers every request alike; keeps the heads of the requests."""

    def __init__(self, answer: Callable[[], Any], host: str = "127.0.0.1") -> None:
        self.heads: list[bytes] = []
        self._answer = answer
        self._listening = socket.create_server((host, 0))
        self.url = f"http://{host}:{self._listening.getsockname()[1]}"
        self._open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while self._open:
            with contextlib.suppress(OSError):
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(5)
            self.heads.append(connection.recv(65536))
            for piece in self._answer():
                if not self._open:
                    return
                connection.sendall(piece)

    def close(self) -> None:
        self._open = False
        self._listening.close()


class Weighed:
    """The most memory that the processes below this one took together."""

    def __init__(self) -> None:
        self.most, self._on = 0, True
        self._thread = threading.Thread(target=self._weigh, daemon=True)
        self._thread.start()

    def _weigh(self) -> None:
        while self._on:
            sizes = []
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    sizes.append(child.memory_info().rss)
            self.most = max(self.most, sum(sizes))
            time.sleep(0.05)

    def close(self) -> int:
        self._on = False
        self._thread.join()
        return self.most


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_means_harm_costs_little_and_no_data(
    name: str,
    study: Study,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Hostile(ANSWERS[name])
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    study = Study.load(Path(study.source), ["tracking.mode=online", f"tracking.timeout={TIMEOUT}"])
    weighed, began = Weighed(), time.monotonic()
    (outcome,) = runner.run(study, only=["corpus"], observer=WandbObserver())
    took, most = time.monotonic() - began, weighed.close()
    server.close()
    print(f"{name}: {took:.1f} s, {most >> 20} MB, {len(server.heads)} requests: {warnings}")
    assert outcome.metrics and server.heads
    assert took < 60 and most < MEMORY + (1 << 29)
    assert len(folders(study.config.cache / "wandb")) == 2
    (warning,) = warnings
    assert warning.isprintable() and len(warning) < 1000
    assert API_KEY not in warning
    for path in study.config.cache.rglob("*"):
        assert not path.is_file() or API_KEY.encode() not in path.read_bytes()


@pytest.mark.slow
def test_an_answer_without_end_that_nobody_breaks_off_takes_bounded_memory(
    study: Study,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Hostile(ANSWERS["without end"])
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "60")
    study = Study.load(Path(study.source), ["tracking.mode=online", "tracking.timeout=40"])
    weighed = Weighed()
    runner.run(study, only=["corpus"], observer=WandbObserver())
    most = weighed.close()
    server.close()
    print(f"{most >> 20} MB: {warnings}")
    assert MEMORY // 4 < most < MEMORY + (1 << 29)
    assert len(folders(study.config.cache / "wandb")) == 2 and len(warnings) == 1


@pytest.mark.parametrize(
    "name", ["without end", "moved in a circle", "of another shape", "mark-up and control characters"]
)
def test_a_comparison_with_such_a_server_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Hostile(ANSWERS[name])
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    began = time.monotonic()
    with pytest.raises(OSError, match=r"\w") as said:
        remote.runs("somebody/project/group", "project", 1)
    server.close()
    print(f"{name}: {time.monotonic() - began:.1f} s: {said.value}")
    assert str(said.value).isprintable() and len(str(said.value)) < 300


def test_the_key_does_not_follow_to_another_host(
    study: Study,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Hostile(lambda: [HEAD + b"\r\n{}"], "127.0.0.2")
    server = Hostile(lambda: [moved(307, f"{other.url}/graphql")])
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    study = Study.load(Path(study.source), ["tracking.mode=online", f"tracking.timeout={TIMEOUT}"])
    runner.run(study, only=["corpus"], observer=WandbObserver())
    for each in (server, other):
        each.close()
    print(len(server.heads), len(other.heads), warnings)
    assert server.heads and len(folders(study.config.cache / "wandb")) == 2
    assert not any(b"authorization" in head.lower() for head in other.heads)

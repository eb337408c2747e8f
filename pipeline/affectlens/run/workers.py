"""Local worker processes that live as long as a study runs, so that importing torch is paid once and not per stage.

Why not ``concurrent.futures.ProcessPoolExecutor``: before Python 3.14 it cannot end a task that has begun, so Ctrl-C
would wait for the parts in progress; its workers outlive a killed parent; it does not say which signal ended a worker.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from affectlens.errors import Unavailable, UserError, as_os_error, is_out_of_memory, of_the_world, reason

Send = Callable[[str, Any], None]
"""``send(kind, value)``: how a task talks to the parent while it runs."""
PATIENCE = 10.0
"""Seconds in which an idle worker has to end by itself."""


class WorkersDied(Unavailable):
    """Workers ended without saying why; nearly always the system took their memory back."""


class Workers:
    """A pool of spawned processes; each task of a round goes to a process of its own.

    Args:
        body: importable function ``(*task, send)``. What it raises reaches the caller of :meth:`run`.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self._body = body
        self._context = multiprocessing.get_context("spawn")
        self._messages: Any = None
        self._tasks: list[Any] = []
        self._processes: list[Any] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if kind is None:
            # All of them are idle. Those that end by themselves release what they hold; a signal would leave it to a
            # warning when the interpreter ends.
            for inbox in self._tasks:
                inbox.put(None)
            for process in self._processes:
                process.join(PATIENCE)
        self._stop()

    def _stop(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.terminate()
            process.join()
        self._processes.clear()
        self._tasks.clear()

    def run(self, tasks: Sequence[tuple[Any, ...]], receive: Send) -> None:
        """Run one round and return when every task has ended.

        Args:
            tasks: arguments of ``body``, without ``send``.
            receive: called in this process with everything the tasks send.

        Raises:
            Exception: the first that a task raised, after all have ended; its traceback in the worker is a note.
            WorkersDied: processes were killed.
        """
        if self._messages is None:  # a queue brings a helper process along, which a single worker does not need
            self._messages = self._context.Queue()
        while len(self._processes) < len(tasks):
            self._start()
        for inbox, task in zip(self._tasks, tasks, strict=False):
            inbox.put(task)
        running, errors, died = set(range(len(tasks))), [], []
        while running:
            try:
                worker, kind, value = self._messages.get(timeout=0.1)
            except queue.Empty:
                died += [worker for worker in running if not self._processes[worker].is_alive()]
                running -= set(died)
                continue
            if kind == "ended":
                running.discard(worker)
                errors += [value] if value is not None else []
            else:
                receive(kind, value)
        if errors:
            raise errors[0]
        if died:
            code = self._processes[died[0]].exitcode
            self._stop()
            cause = f"signal {-code}" if code and code < 0 else f"exit status {code}"
            raise WorkersDied(f"{len(died)} of {len(tasks)} workers died ({cause})")

    def _start(self) -> None:
        inbox = self._context.Queue()
        index = len(self._processes)
        process = self._context.Process(target=_serve, args=(index, self._body, inbox, self._messages), daemon=True)
        process.start()
        self._tasks.append(inbox)
        self._processes.append(process)


def _serve(index: int, body: Callable[..., None], inbox: Any, messages: Any) -> None:
    """The life of a worker process."""
    # An interrupt at the keyboard reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # So does the warning that a batch job's time is nearly up; the parent then asks for an end in order, by SIGTERM.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(kind: str, value: Any) -> None:
        messages.put((index, kind, value))

    while True:
        task = inbox.get()
        if task is None:
            return
        try:
            body(*task, send)
        except Exception as error:
            send("ended", _portable(error))
        else:
            send("ended", None)


def _portable(error: Exception) -> Exception:
    """The same error as the parent can receive it, whatever libraries it has imported."""
    if isinstance(error, UserError):
        return error
    if of_the_world(error):
        return (
            MemoryError(reason(error)) if is_out_of_memory(error) else as_os_error(error, "") or OSError(reason(error))
        )
    error.add_note(f"In a worker process:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        portable = RuntimeError(f"{type(error).__name__}: {error}")
        portable.add_note(error.__notes__[-1])
        return portable
    return error


def _end_with_parent() -> None:
    """A killed parent must not leave workers behind that go on with its study."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

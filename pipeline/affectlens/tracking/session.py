"""The way to Weights & Biases and back: its variables, its helper process, and a limit to every wait.

W&B is configured through process-wide variables, runs a helper process that outlives its runs, and waits for its
server as long as it likes. Here each of these is fenced in, so that ``tracking.py`` can be about what is sent.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

CLOSE_LIMIT_S = 2.0
"""How long the helper process may take to end once its runs are closed."""
KEPT = frozenset(
    f"WANDB_{name}"
    for name in (
        *("API_KEY", "IDENTITY_TOKEN_FILE", "CREDENTIALS_FILE", "BASE_URL", "APP_URL", "ENTITY"),
        *("INSECURE_DISABLE_SSL", "HTTP_TIMEOUT", "CONFIG_DIR"),
    )
)
"""Variables that say which server and whose account. The others could rename or redirect a run, and are hidden."""
SILENT = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "label_disable": True,
    "symlink": False,
    "program": "affectlens",
    "finish_timeout_raises": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "stop_fn": lambda: None,
}
"""Settings of a run that holds what was sent to it, nothing of the machine, prints nothing and stops nothing."""

T = TypeVar("T")
_lock = threading.RLock()
_open: set[tuple[int, int]] = set()
"""Runs in progress, as (process, identity of the W&B run): a forked process does not own its parent's."""


@dataclass(frozen=True)
class Session:
    """How one run reaches W&B. All methods but :meth:`environment` expect to be called inside it.

    Attributes:
        directory: takes all that W&B writes.
        mode: whether a server is involved.
        timeout: seconds to wait for the server when a run is opened, and again when it is closed.
        arguments: of ``wandb.init``; which run it is.
    """

    directory: Path
    mode: Literal["online", "offline"]
    timeout: float
    arguments: Mapping[str, Any]

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """While this is open, W&B is silent, writes into the directory and sees no variable it should not see.

        Variables belong to the whole process, so other threads that want to do the same wait. The hooks by which W&B
        learns of the end of the process are taken out again: with one more for each helper process, an uncaught error
        would be printed once for every stage that ran. Nothing is lost, since runs are always closed.
        """
        with _lock:
            hooks = sys.exit, sys.excepthook
            before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
            kept = {name: value for name, value in before.items() if name in KEPT}
            try:
                _replace_variables({"WANDB_HTTP_TIMEOUT": "5"} | kept | self._variables())
                yield
            finally:
                sys.exit, sys.excepthook = hooks
                _replace_variables(before)

    def _variables(self) -> dict[str, str]:
        folders = {"DIR": "", "DATA_DIR": "data", "CACHE_DIR": "cache", "ARTIFACT_DIR": "artifacts"}
        if self.mode == "offline":
            folders["CONFIG_DIR"] = "config"  # online, the user's own says which server `wandb login` chose
        variables = {f"WANDB_{name}": str(self.directory / folder) for name, folder in folders.items()}
        return variables | {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}

    def has_key(self) -> bool:
        """Whether a key is set for the server, by variable, `wandb login` or netrc. Asks neither user nor server."""
        import wandb

        return wandb.login(prompt=False, verify=False)

    def offline(self) -> Session:
        """The same without a server."""
        return replace(self, mode="offline")

    def open(self) -> Any:
        """The W&B run.

        Raises:
            TimeoutError: W&B neither answered nor gave up by itself.
            Exception: whatever W&B raises.
        """
        import wandb

        settings = wandb.Settings(
            **SILENT, root_dir=str(self.directory), init_timeout=self.timeout, finish_timeout=self.timeout
        )

        def init() -> Any:
            run = wandb.init(**self.arguments, mode=self.mode, resume="allow", reinit="create_new", settings=settings)
            # W&B's own step only grows and drops rows behind it; ours is a metric like others, used as the x axis.
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            # Before each table and artifact W&B asks the server for its type, and waits long for one that is gone.
            run._assert_can_log_artifact = lambda artifact: None
            return run

        try:
            run = within(self.timeout + 10, init)
        except Exception:
            release()
            raise
        _open.add((os.getpid(), id(run)))
        return run

    def close(self, run: Any, exit_code: int) -> None:
        """Finish a run.

        Raises:
            TimeoutError: the server did not take everything in time.
            Exception: whatever W&B raises.
        """
        try:
            # W&B keeps to its own limit nearly always; the margin lets it say so itself.
            within(self.timeout + 1, lambda: _finish(run, exit_code))
        finally:
            _open.discard((os.getpid(), id(run)))
            release()

    def abandon(self, run: Any) -> None:
        """Let go of a run whose server is lost, without waiting for it."""
        _open.discard((os.getpid(), id(run)))
        helper = _helper()
        if helper is not None and not _needed():
            helper.kill()
        with contextlib.suppress(Exception):  # it cannot succeed, but it lets go of what W&B holds in this process
            within(CLOSE_LIMIT_S, lambda: _finish(run, 1))
        release()


def release() -> None:
    """Ends W&B's helper process, unless another run of this process needs it.

    It holds on to the id of a run that failed, and writes into the folder of the run that started it; so each run gets
    its own, and none outlives its run.
    """
    import wandb

    if _needed():
        return
    helper = _helper()
    try:
        within(CLOSE_LIMIT_S, wandb.teardown)
    except Exception:
        if helper is not None:
            helper.kill()


def _finish(run: Any, exit_code: int) -> None:
    # The thread that watches the network prints a traceback if it finds the helper process gone.
    with contextlib.suppress(Exception):
        run._run_status_checker.stop()
    run.finish(exit_code=exit_code)


def _needed() -> bool:
    """Whether a run is open in this process, be it the user's own."""
    import wandb

    return wandb.run is not None or any(process == os.getpid() for process, _ in _open)


def _helper() -> subprocess.Popen[bytes] | None:
    """The helper process, which W&B gives no public way to reach."""
    from wandb.sdk import wandb_setup

    connection = getattr(wandb_setup.singleton(), "_connection", None)
    return getattr(getattr(connection, "_proc", None), "_process", None)


def _replace_variables(variables: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update(variables)


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of ``call``, which goes on in the background when it takes too long.

    Raises:
        TimeoutError: it took longer than ``seconds``.
        Exception: what ``call`` raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # W&B may raise SystemExit, which would end this thread without a word
            errors.append(error)

    thread = threading.Thread(target=work, name="affectlens-tracking", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0] if isinstance(errors[0], Exception) else RuntimeError(repr(errors[0]))
    return results[0]

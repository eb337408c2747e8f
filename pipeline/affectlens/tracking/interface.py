"""Experiment tracking with Weights & Biases, as a bonus that can fail without anyone losing a result.

A stage opens one run, sends what it wants to show, and closes it. With tracking off, or when W&B fails, the run is an
object of the same shape that does nothing, so that no caller ever asks which it has. Results lie on disk before a run
is opened; nothing here may stop a study, ask a question, or write outside the folder it was given.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec

from affectlens.settings import TrackingConfig
from affectlens.tracking.session import Session

Mode = Literal["online", "offline", "disabled"]
Status = Literal["finished", "failed"]
Rows = Sequence[Sequence[Any]]
P = ParamSpec("P")

TABLE_ROWS = 200_000
"""W&B keeps no more rows than this of one table."""
NAME_LENGTH = 128

_log = logging.getLogger("affectlens.tracking")


@dataclass(frozen=True)
class Artifact:
    """Files as Weights & Biases keeps them: a named thing with versions.

    Attributes:
        name: letters, digits, ``.``, ``_`` and ``-``; others become ``-``.
        type: what it is, for example ``activations``.
        files: by the path that they have inside the artifact.
        reference: record where the files lie and how large they are, without reading or sending them.
        digests: known hashes of files by their path inside; they stand for the contents of references.
        metadata: searchable facts.
    """

    name: str
    type: str
    files: Mapping[str, Path]
    reference: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Run:
    """What a stage may send. This one does nothing; see :class:`WandbRun`.

    Attributes:
        active: whether anything sent arrives anywhere; lets a caller skip costly preparation.
    """

    active: bool = False

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add one row to the history.

        Args:
            metrics: ``stage/name`` to number; numpy and torch scalars too, and NaN and infinity. Nested mappings are
                flattened with ``/``.
            step: the x axis of these metrics. Steps may repeat and run backwards, no row is dropped.
        """

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Set the numbers by which runs are compared; accepts what :meth:`log` does."""

    def table(self, name: str, columns: Sequence[str], rows: Rows) -> None:
        """Send a table. Cells that are not finite become empty; a column of mixed kinds becomes text."""

    def line(self, name: str, columns: Sequence[str], rows: Rows, *, x: str, y: str, series: str | None = None) -> None:
        """Send a table and a line chart over it.

        Args:
            name: of the chart.
            columns: of the table.
            rows: of the table.
            x: the column along the x axis.
            y: the column of heights.
            series: the column that tells lines apart; one line when None.
        """

    def heatmap(self, name: str, matrix: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
        """Send an interactive heat map of ``matrix`` (shape ``rows columns``), the first row on top."""

    def artifact(self, artifact: Artifact, *, uses: Sequence[Artifact] = ()) -> None:
        """Send a version of an artifact, with the alias ``latest``, and what it was made from.

        Each of ``uses`` is declared as an input of the run, with the same name and entries as when it was sent by the
        run that made it, so that the server finds that version again: an arrow of the lineage graph. This needs no
        answer, so offline runs bring their arrows along when they are synced, best in the order they were made: the
        server takes a version that it first sees as an input as nobody's. An artifact that was sent before with the
        same entries makes no new version.

        Args:
            artifact: what the run made. Files are read when they are uploaded and must stay as they are until then.
            uses: what it was made from.
        """

    def finish(self, status: Status = "finished") -> None:
        """Close the run. Harmless when repeated; leaving a ``with`` block does it."""

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.finish("failed" if kind else "finished")


class NullRun(Run):
    """Tracking is off."""


def _tracked(method: Callable[Concatenate[WandbRun, P], None]) -> Callable[Concatenate[WandbRun, P], None]:
    """A failure of the method moves an online run offline, and ends the tracking of an offline one; nothing else."""

    @functools.wraps(method)
    def call(run: WandbRun, *args: P.args, **kwargs: P.kwargs) -> None:
        if not run.active:
            return
        try:
            with run.session.environment():
                method(run, *args, **kwargs)
        except Exception as error:
            run.recover(f"{method.__name__} failed with {_reason(error)}")

    return call


class WandbRun(Run):
    """One W&B run of one stage, made by :func:`start`.

    While online, everything sent is remembered, because W&B writes artifacts to disk in offline runs only: when the
    server is lost, an offline run of the same id takes all of it.
    """

    def __init__(self, session: Session, label: str, fingerprint: str) -> None:
        self.active = True
        self.session = session
        self._label = label
        self._fingerprint = fingerprint
        self._sent: list[Callable[[Any], None]] = []
        self._run: Any = session.open()

    @property
    def folder(self) -> Path:
        """The folder that `wandb sync` takes."""
        return Path(self._run.dir).parent

    def recover(self, reason: str) -> None:
        """Go on offline if that is possible, else without W&B; one warning says which."""
        try:
            if self.session.mode == "offline":
                raise RuntimeError(reason)
            with self.session.environment():
                self._move_offline(reason)
        except Exception as error:
            self.active = False
            _log.warning("W&B run %s is no longer tracked (%s); the results lie on disk.", self._label, error)
            with contextlib.suppress(Exception), self.session.environment():
                self.session.close(self._run, exit_code=1)

    @_tracked
    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = dict(_flat(metrics)) | ({} if step is None else {"step": int(step)})
        self._send(lambda run: run.log(row))

    @_tracked
    def summary(self, metrics: Mapping[str, Any]) -> None:
        values = dict(_flat(metrics))
        self._send(lambda run: run.summary.update(values))

    @_tracked
    def table(self, name: str, columns: Sequence[str], rows: Rows) -> None:
        make = self._table(name, columns, rows)
        self._send(lambda run: run.log({name: make()}))

    @_tracked
    def line(self, name: str, columns: Sequence[str], rows: Rows, *, x: str, y: str, series: str | None = None) -> None:
        import wandb

        make = self._table(name, columns, rows)
        self._send(lambda run: run.log({name: wandb.plot.line(make(), x, y, stroke=series, title=name)}))

    @_tracked
    def heatmap(self, name: str, matrix: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
        import plotly.graph_objects as go
        import wandb

        values = [[_cell(value) for value in row] for row in matrix]
        figure = go.Figure(go.Heatmap(z=values, x=list(columns), y=list(rows)), layout={"template": "none"})
        # Labels that look like numbers would otherwise be placed on a numeric axis, with gaps.
        figure.update_xaxes(type="category").update_yaxes(type="category", autorange="reversed")
        self._send(lambda run: run.log({name: wandb.Plotly(figure)}))

    @_tracked
    def artifact(self, artifact: Artifact, *, uses: Sequence[Artifact] = ()) -> None:
        facts = {"fingerprint": self._fingerprint, "uses": [_slug(use.name) for use in uses]}
        made = replace(artifact, metadata={**artifact.metadata, **facts})

        def send(run: Any) -> None:
            for use in uses:
                # The public use_artifact wants a server, asks it for names, and refuses offline runs.
                run._log_artifact(_draft(use), aliases=[], is_user_created=True, use_after_commit=True)
            run.log_artifact(_draft(made), aliases=["latest"])

        self._send(send)

    @_tracked
    def finish(self, status: Status = "finished") -> None:
        try:
            self.session.close(self._run, exit_code=int(status == "failed"))
        except Exception as error:
            if self.session.mode == "offline":
                raise
            self._move_offline(f"the server did not take all of it: {_reason(error)}")
            self.session.close(self._run, exit_code=int(status == "failed"))
        self.active = False

    def _send(self, send: Callable[[Any], None]) -> None:
        if self.session.mode == "online":
            self._sent.append(send)
        send(self._run)

    def _move_offline(self, reason: str) -> None:
        """Writes what was sent so far into an offline run, and goes on there."""
        self.session.abandon(self._run)
        self.session = self.session.offline()
        with self.session.environment():
            self._run = self.session.open()
            for send in self._sent:
                send(self._run)
        _say_offline(self, self._label, reason)

    def _table(self, name: str, columns: Sequence[str], rows: Rows) -> Callable[[], Any]:
        import wandb

        if len(rows) > TABLE_ROWS:
            _log.warning("W&B keeps the first %d of the %d rows of table %s.", TABLE_ROWS, len(rows), name)
        cells: Any = _typed(rows[:TABLE_ROWS])
        return lambda: wandb.Table(columns=list(columns), data=cells)


def start(
    config: TrackingConfig,
    *,
    study: str,
    stage: str,
    fingerprint: str,
    settings: Mapping[str, Any],
    directory: Path,
) -> Run:
    """Open the run of one stage, or whatever is left of it when W&B does not cooperate.

    The same (study, stage, fingerprint) always opens the same run: online it is resumed, offline `wandb sync` joins
    the pieces.

    Args:
        config: the study's section ``tracking``.
        study: names the group.
        stage: names the job type.
        fingerprint: of the stage's result, hexadecimal.
        settings: of the stage; they and the fingerprint become the run's config.
        directory: takes all that W&B writes, made if missing.

    Returns:
        A run that never raises. A server that cannot be used gives an offline run, W&B itself failing a
        :class:`NullRun`; either way one warning is logged to ``affectlens.tracking``.
    """
    mode = _mode(config)
    if mode == "disabled":
        return NullRun()
    label = f"{study}/{stage}"
    arguments = {
        "project": config.project,
        "entity": config.entity,
        "tags": config.tags,
        "group": study[:NAME_LENGTH],
        "job_type": stage,
        "name": label[:NAME_LENGTH],
        "id": run_id(study, stage, fingerprint),
        "config": {**_plain(settings), "fingerprint": fingerprint},
    }
    try:
        session = Session(directory.resolve(), mode, config.timeout, arguments)
        session.directory.mkdir(parents=True, exist_ok=True)
        return _open(session, label, fingerprint)
    except Exception as error:
        _log.warning("W&B run %s is not tracked (%s); the results lie on disk.", label, _reason(error))
        return NullRun()


def run_id(study: str, stage: str, fingerprint: str) -> str:
    """The W&B id of a stage's run: readable, and a function of these three alone."""
    digest = hashlib.sha256("\0".join((study, stage, fingerprint)).encode()).hexdigest()
    return f"{_slug(stage)[:24]}-{digest[:16]}"


def _mode(config: TrackingConfig) -> Mode:
    """The configured mode, or what WANDB_MODE asks for if that is less."""
    asked = os.environ.get("WANDB_MODE")
    if "disabled" in (config.mode, asked):
        return "disabled"
    return "offline" if "offline" in (config.mode, asked) else "online"


def _open(session: Session, label: str, fingerprint: str) -> WandbRun:
    """A run in the wanted mode; an offline one, and a warning that says why, where an online one cannot be had."""
    with session.environment():
        if session.mode == "offline":
            return WandbRun(session, label, fingerprint)
        try:
            if session.has_key():
                return WandbRun(session, label, fingerprint)
            problem = "no API key; set WANDB_API_KEY or run `wandb login`"
        except Exception as error:
            problem = f"the server cannot be used: {_reason(error)}"
        session = session.offline()
        with session.environment():
            run = WandbRun(session, label, fingerprint)
    _say_offline(run, label, problem)
    return run


def _say_offline(run: WandbRun, label: str, reason: str) -> None:
    """The one warning about a run that was to be online."""
    _log.warning("W&B run %s is kept offline (%s); send it with `wandb sync %s`.", label, reason, run.folder)


def _reason(error: BaseException) -> str:
    """An exception as a clause: one line, of bounded length."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:197] + '...'}"


def _slug(name: str) -> str:
    """``name`` with only the characters that W&B allows in the names of artifacts and in ids."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:NAME_LENGTH]


def _draft(artifact: Artifact) -> Any:
    """The artifact as W&B knows it. Results do not change once written, so nothing is copied."""
    import wandb

    draft = wandb.Artifact(_slug(artifact.name), _slug(artifact.type), metadata=_plain(artifact.metadata))
    for name, path in artifact.files.items():
        if artifact.reference:
            # W&B would read a file to know its digest, or take one of its path; what was recorded tells more.
            for entry in draft.add_reference(f"file://{path.resolve()}", name=name, checksum=False):
                entry.digest = artifact.digests.get(name, entry.digest)
        else:
            draft.add_file(str(path.resolve()), name=name, policy="immutable", skip_cache=True)
    return draft


def _plain(value: Any) -> Any:
    """``value`` in terms of JSON: numpy and torch become numbers and lists, anything unknown its text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [_plain(item) for item in value]
    return str(value)


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Metrics by flat name; truth values become 0 and 1, which can be plotted."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            value = _plain(value)
            yield f"{prefix}{key}", int(value) if isinstance(value, bool) else value


def _cell(value: Any) -> Any:
    """One cell of a table. NaN and infinity have no place in JSON and become empty, structures become text."""
    value = _plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return json.dumps(value) if isinstance(value, list | dict) else value


def _typed(rows: Rows) -> list[list[Any]]:
    """Rows whose columns each have one kind, as W&B demands: number, truth value or text, with gaps."""
    cells = [[_cell(value) for value in row] for row in rows]
    for index in range(min(map(len, cells), default=0)):
        kinds = {_kind(row[index]) for row in cells if row[index] is not None}
        if len(kinds) > 1:
            for row in cells:
                row[index] = None if row[index] is None else str(row[index])
    return cells


def _kind(cell: Any) -> str:
    if isinstance(cell, bool):
        return "truth value"
    return "text" if isinstance(cell, str) else "number"

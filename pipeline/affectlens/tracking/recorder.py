"""The process that talks to Weights & Biases: reads events as JSON lines, drives W&B's public API, reports on lines.

W&B is configured by process-wide variables, installs exit hooks, starts a helper process and waits for its server as
long as it likes. All of that happens here, in a child of the process that runs the study (:mod:`.process`), which it
can neither delay nor disturb.

An event is ``{"do": ..., "run": id, ...}``; :data:`EVENTS` lists them. Each is answered by one line: ``{"run": id,
"state": "opened" | "sent" | "finished" | "failed", "folder": ..., "reason": ...}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from affectlens import results
from affectlens.results.tables import Heatmap, Line
from affectlens.tracking import compat
from affectlens.tracking.artifact import Artifact
from affectlens.tracking.process import bound_memory, one_line

TEARDOWN_S = 2.0
"""How long W&B's helper process may take to end once its runs are closed."""
PAUSE_S = 60.0
"""How long a server that failed is not asked again."""
TABLE_ROWS = 200_000
"""W&B keeps no more rows than this of one table."""
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


def main(mode: str, directory: str, timeout_s: str) -> None:
    """Serve the events on standard input until it ends; runs that are still open then count as failed."""
    # Whatever W&B prints goes to the log, which is standard error; only reports go to the caller.
    reports = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    bound_memory()
    recorder = Recorder(mode, Path(directory), float(timeout_s))
    for line in sys.stdin:
        reports.write(json.dumps(recorder.serve(json.loads(line))) + "\n")
    for run in list(recorder.runs):
        recorder.serve({"do": "finish", "run": run, "exit_code": 1})
    # W&B's own hook at exit waits for uploads of runs that were given up, as long as they take.
    ending = threading.Thread(target=_release, daemon=True)
    ending.start()
    ending.join(TEARDOWN_S)
    os._exit(0)


def _release() -> None:
    if "wandb" in sys.modules:
        import wandb

        wandb.teardown()


class Recorder:
    """The open runs of one process.

    Attributes:
        mode: ``online`` or ``offline``.
        directory: takes all that W&B writes.
        timeout_s: limit of opening a run, and of closing it.
        runs: W&B's, by id.
    """

    def __init__(self, mode: str, directory: Path, timeout_s: float) -> None:
        self.mode = mode
        self.directory = directory
        self.timeout_s = timeout_s
        self.runs: dict[str, Any] = {}
        self._lost: set[str] = set()
        self._problem, self._asked_again = "", 0.0

    def serve(self, event: dict[str, Any]) -> dict[str, Any]:
        """Do what an event asks for; the report on it. A run that failed once takes no more."""
        run, action = event.pop("run"), event.pop("do")
        if run in self._lost:
            return {"run": run, "state": "sent"}
        try:
            EVENTS[action](self, run, **event)
        except BaseException as error:  # W&B raises SystemExit, too
            self._lost.add(run)
            opened = self.runs.pop(run, None)
            if opened is not None and self.mode == "offline" and action != "finish":
                with contextlib.suppress(Exception):
                    opened.finish(exit_code=1)
            reason = f"{type(error).__name__}: {one_line(error) or 'no message'}"
            if self.mode == "online" and not self._problem:
                self._problem, self._asked_again = reason, time.monotonic() + PAUSE_S
            return {"run": run, "state": "failed", "reason": self._problem or reason}
        state = {"open": "opened", "finish": "finished"}.get(action, "sent")
        folder = str(Path(self.runs[run].dir).parent) if action == "open" else ""
        if action == "finish":
            del self.runs[run]
        return {"run": run, "state": state, "folder": folder}

    def open(self, run: str, arguments: dict[str, Any]) -> None:
        """Open a run, or go on with one of this id."""
        import wandb

        if self._problem and time.monotonic() < self._asked_again:
            raise ConnectionError(self._problem)
        self._problem = ""
        if self.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("no API key; set WANDB_API_KEY or run `wandb login`")
        settings = wandb.Settings(
            **SILENT, root_dir=str(self.directory), init_timeout=self.timeout_s, finish_timeout=self.timeout_s
        )
        self._lost.discard(run)
        opened = wandb.init(**arguments, mode=self.mode, reinit="create_new", settings=settings)  # pyright: ignore[reportArgumentType]
        # W&B's own step only grows and drops rows behind it; ours is a metric like others, used as the x axis.
        opened.define_metric("step")
        opened.define_metric("*", step_metric="step")
        self.runs[run] = opened

    def config(self, run: str, values: dict[str, Any]) -> None:
        """Add to what the run says of how its result came about."""
        self.runs[run].config.update(values, allow_val_change=True)

    def log(self, run: str, values: dict[str, Any]) -> None:
        """Add a row to the history."""
        self.runs[run].log(values)

    def summary(self, run: str, values: dict[str, Any]) -> None:
        """Set figures by which runs are compared."""
        self.runs[run].summary.update(values)

    def tables(self, run: str, stage: str, folder: str) -> None:
        """Send every table of a result, with the charts that it declares."""
        import wandb

        for name, frame in results.read_all(Path(folder)).items():
            key = f"{stage}/{name}"
            table = frame.attrs["table"]
            if len(frame) > TABLE_ROWS:
                print(f"{key}: the first {TABLE_ROWS} of {len(frame)} rows are kept", file=sys.stderr)
            self.runs[run].log({key: _table(frame.head(TABLE_ROWS))})
            for chart in table.charts:
                title = f"{stage}/{chart.name}" + "_chart" * (chart.name == name)
                for suffix, rows in _split(frame, chart.split):
                    drawn = rows.dropna(subset=[chart.y if isinstance(chart, Line) else chart.value])
                    if isinstance(chart, Line):
                        data = _table(drawn.head(TABLE_ROWS))
                        figure: Any = wandb.plot.line(data, chart.x, chart.y, chart.series or None, title + suffix)
                    else:
                        figure = wandb.Plotly(_heatmap(drawn, chart))
                    self.runs[run].log({title + suffix: figure})

    def texts(self, run: str, name: str, rows: list[dict[str, Any]]) -> None:
        """Send rows of words and numbers as a table; cells that a row lacks are empty."""
        import wandb

        columns: Any = list(dict.fromkeys(column for row in rows for column in row))
        data: Any = [[row.get(column) for column in columns] for row in rows]
        self.runs[run].log({name: wandb.Table(columns=columns, data=data)})

    def html(self, run: str, name: str, path: str) -> None:
        """Send a page as a panel."""
        import wandb

        self.runs[run].log({name: wandb.Html(Path(path).read_text(encoding="utf-8"), inject=False)})

    def artifact(self, run: str, made: Mapping[str, Any] | None, uses: list[Mapping[str, Any]]) -> None:
        """Declare what the run read, then send what it made, as the version ``latest``.

        Inputs are declared with the name and entries that they had when the run that made them sent them, so the
        server recognizes the version: an arrow of the lineage graph.
        """
        for values in uses:
            draft = _draft(Artifact.from_json(values))
            if self.mode == "online":
                self.runs[run].use_artifact(draft)
            else:
                compat.declare_input(self.runs[run], draft)
        if made is not None:
            self.runs[run].log_artifact(_draft(Artifact.from_json(made)), aliases=["latest"])

    def finish(self, run: str, exit_code: int) -> None:
        """Close a run; online, once the server has taken all of it."""
        self.runs[run].finish(exit_code=exit_code)


EVENTS: dict[str, Callable[..., None]] = {
    "open": Recorder.open,
    "config": Recorder.config,
    "log": Recorder.log,
    "summary": Recorder.summary,
    "tables": Recorder.tables,
    "texts": Recorder.texts,
    "html": Recorder.html,
    "artifact": Recorder.artifact,
    "finish": Recorder.finish,
}


def _table(frame: Any) -> Any:
    """A result table as W&B keeps it: an empty cell is None, and every column has the kind that it declares."""
    import wandb

    kinds = {"text": str, "number": float, "integer": int, "flag": bool}
    columns = frame.attrs["table"].columns
    cells = []
    for column in columns:
        values, empty = frame[column.name].tolist(), frame[column.name].isna().tolist()
        # JSON has no infinity.
        empty = [gap or value in (float("inf"), float("-inf")) for value, gap in zip(values, empty, strict=True)]
        convert = kinds[column.kind]
        cells.append([None if gap else convert(value) for value, gap in zip(values, empty, strict=True)])
    rows = [list(row) for row in zip(*cells, strict=True)]
    data: Any = rows
    return wandb.Table(columns=[column.name for column in columns], data=data)


def _split(frame: Any, column: str) -> Iterator[tuple[str, Any]]:
    """The rows of each value of a column, with what its chart's name ends in; all rows when there is no column."""
    if not column:
        yield "", frame
        return
    for value, rows in frame.groupby(column, sort=False):
        rows.attrs = frame.attrs
        yield f"_{value}", rows


def _heatmap(frame: Any, chart: Heatmap) -> Any:
    """A plotly figure with the rows and columns in the order of the table, the first row on top."""
    import plotly.graph_objects as go

    rows, columns = list(frame[chart.row].unique()), list(frame[chart.column].unique())
    matrix = frame.pivot(index=chart.row, columns=chart.column, values=chart.value).reindex(index=rows, columns=columns)
    values = matrix.astype(object).where(matrix.notna(), None).to_numpy().tolist()
    figure = go.Figure(go.Heatmap(z=values, x=[*map(str, columns)], y=[*map(str, rows)]), layout={"template": "none"})
    # Labels that look like numbers would otherwise be placed on a numeric axis, with gaps.
    return figure.update_xaxes(type="category").update_yaxes(type="category", autorange="reversed")


def _draft(artifact: Artifact) -> Any:
    """The artifact as W&B knows it. Results do not change once written, so nothing is copied."""
    import wandb

    draft = wandb.Artifact(artifact.name, artifact.type, metadata=dict(artifact.metadata))
    for name, path in artifact.files.items():
        if artifact.reference:
            # W&B would read a file to know its digest, or take one of its path; what was recorded tells more.
            for entry in draft.add_reference(f"file://{Path(path).resolve()}", name=name, checksum=False):
                entry.digest = artifact.digests.get(name, entry.digest)
        else:
            draft.add_file(str(Path(path).resolve()), name=name, policy="immutable", skip_cache=True)
    return draft


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a person sees while a study runs, and when it has ended."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from affectlens.cluster import progress as jobs
from affectlens.run.runner import Outcome, Reporter
from affectlens.run.workspace import State
from affectlens.stage import Metrics
from affectlens.study import Study, stage_named


class _Rate(ProgressColumn):
    """Units of work a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed and speed >= 1 else "", style="cyan")


class Console(Reporter):
    """A reporter for ``runner.run`` that draws progress bars and closes with the main figures."""

    def __init__(self, study: str) -> None:
        self._console = RichConsole(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        )
        self._study = study
        self._task: Any = None

    def __enter__(self) -> Console:
        for name in ("httpx", "transformers", "sae_lens", "filelock"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage_started(self, stage: str, total: float, done: float, unit: str) -> None:
        self._task = self._progress.add_task(stage, total=round(total), completed=round(done), unit=unit)

    def advanced(self, units: float) -> None:
        if self._task is not None:
            self._progress.advance(self._task, units)

    def waiting(self, message: str) -> None:
        self._progress.console.print(message, style="yellow")

    def stage_ended(self, outcome: Outcome) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        seconds = f"{outcome.seconds:6.1f} s" if outcome.state == "computed" else " " * 8
        style = "green" if outcome.state == "computed" else "dim"
        self._progress.console.print(f"{outcome.stage:<12} {outcome.state:<9} {seconds}  {outcome.folder}", style=style)

    def close(self, study: Study, outcomes: Sequence[Outcome]) -> None:
        """The main figures of the stages that ran, and the path of the page."""
        self._progress.stop()
        table = Table(title=f"Study {self._study}", title_justify="left", show_edge=False)
        for column, justify in (("stage", "left"), ("figure", "left"), ("value [95% interval]", "right")):
            table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
        for outcome in outcomes:
            for metric, meaning in stage_named(outcome.stage).headline:
                if metric in outcome.metrics:
                    table.add_row(outcome.stage, meaning, interval(outcome.metrics, metric))
        if table.row_count:
            self._console.print(table)
        page = next((outcome.folder / "report.html" for outcome in outcomes if outcome.stage == "report"), None)
        if page:
            self._console.print(f"page: {page.resolve()}", soft_wrap=True)


def interval(metrics: Metrics, name: str) -> str:
    """A metric with its interval where the stage gives one."""
    value, low, high = (metrics.get(key, math.nan) for key in (name, f"{name}_low", f"{name}_high"))
    text = "not shown" if math.isnan(value) else f"{value:.3f}"
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{low:.3f}, {high:.3f}]"


def print_status(study: Study, states: Sequence[tuple[State, str]], progress: Mapping[str, jobs.Progress]) -> None:
    """One row a stage; of unfinished ones how far they are, and why what failed has failed."""
    console = RichConsole(highlight=False)
    table = Table(title=f"Study {study.config.name} ({study.source})", title_justify="left", show_edge=False)
    for column in ("stage", "state", "fingerprint", "seconds", "parts", "folder"):
        table.add_column(column, no_wrap=column != "folder", overflow="fold")
    styles = {"done": "green", "failed": "red", "partial": "yellow", "running": "cyan", "queued": "cyan"}
    for state, fingerprint in states:
        open_ = progress.get(state.stage)
        word = state.state if open_ is None else open_.state(state.state)
        table.add_row(
            state.stage,
            Text(word, style=styles.get(word, "dim")),
            fingerprint[:16],
            f"{state.record['run']['seconds']:.1f}" if state.record else "",
            str(state.parts_done) if open_ is None else f"{open_.done}/{'?' if open_.total is None else open_.total}",
            str(state.folder) if state.state != "missing" else "",
        )
    console.print(table)
    for stage, open_ in progress.items():
        if open_.running or open_.failed or open_.jobs:
            console.print(f"{stage}: {'; '.join([_counts(open_), *_jobs(open_), *_pace(open_)])}", soft_wrap=True)
        for note in open_.notes:
            console.print(f"{stage}: {note}", style="red", soft_wrap=True)
    for state, _ in states:
        for metric, meaning in stage_named(state.stage).headline:
            if metric in state.metrics:
                console.print(f"{meaning}: {interval(state.metrics, metric)}")


def _counts(progress: jobs.Progress) -> str:
    """``parts: 12 done, 2 running, 1 failed, 26 pending``."""
    counts = {name: getattr(progress, name) for name in ("done", "running", "failed", "pending")}
    return "parts: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "done")


def _jobs(progress: jobs.Progress) -> list[str]:
    """``jobs: 2 RUNNING, 5 PENDING``, in Slurm's words."""
    counts = ", ".join(f"{count} {word}" for word, count in sorted(progress.jobs.items()))
    return [f"jobs: {counts}"] if counts else []


def _pace(progress: jobs.Progress) -> list[str]:
    """Rate and time left, as far as they are known."""
    if progress.rate <= 0:
        return []
    found = [
        f"{progress.rate:,.3g} {progress.unit}/s" if progress.rate < 10 else f"{progress.rate:,.0f} {progress.unit}/s"
    ]
    if progress.left is not None:
        minutes, seconds = divmod(round(progress.left), 60)
        hours, minutes = divmod(minutes, 60)
        found.append(f"{hours}:{minutes:02}:{seconds:02} left")
    return found

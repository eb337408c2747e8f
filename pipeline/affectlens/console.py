"""What a person sees while a study runs, and when it has ended."""

from __future__ import annotations

import logging
import math
import threading
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
from affectlens.disk import duration
from affectlens.entry import printable
from affectlens.plan import Plan
from affectlens.run.observer import Outcome, Reporter
from affectlens.run.workspace import State
from affectlens.stage import Metrics
from affectlens.study import Study, stage_named

SILENCE_S = 60.0
"""Seconds between two lines about a stage in progress where there is no terminal to draw on."""


def rate(units: float, unit: str) -> str:
    """Units of work a second, or a minute where they are slow."""
    if units >= 1 or not units:
        return f"{units:,.0f} {unit}/s"
    return f"{units:.2g} {unit}/s" if units >= 0.1 else f"{60 * units:.2g} {unit}/min"


class _Rate(ProgressColumn):
    """Units of work a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(rate(speed, task.fields["unit"]) if speed else "", style="cyan")


class Console(Reporter):
    """A reporter for ``runner.run`` that draws progress bars and closes with the main figures.

    Args:
        study: its name.
        silence_s: how often a line says how far a long stage is, where there is no terminal.
    """

    def __init__(self, study: str, silence_s: float = SILENCE_S) -> None:
        self._console = RichConsole(highlight=False, markup=False)
        self._progress = Progress(
            TextColumn("{task.description:<12}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        )
        self._study = study
        self._task: Any = None
        self._silence_s = silence_s
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Console:
        for name in ("httpx", "transformers", "sae_lens", "filelock"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._progress.start()
        if not self._console.is_terminal:
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._progress.stop()

    def _tick(self) -> None:
        """Say now and then how far the stage is: in a log or a container nobody sees a bar."""
        while not self._ended.wait(self._silence_s):
            for task in self._progress.tasks:
                if (task.elapsed or 0.0) >= self._silence_s:
                    speed = f", {rate(task.speed, task.fields['unit'])}" if task.speed else ""
                    left = f", about {duration(task.time_remaining)} left" if task.time_remaining else ""
                    counts = f"{task.completed:,.0f} of {task.total or 0:,.0f} {task.fields['unit']}"
                    self._print(f"{task.description}: {counts} after {duration(task.elapsed or 0.0)}{speed}{left}")

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(printable(text), style=style, soft_wrap=True)
        self._console.file.flush()

    def stage_started(self, stage: str, total: float, done: float, unit: str) -> None:
        self._task = self._progress.add_task(stage, total=round(total), completed=round(done), unit=unit)

    def advanced(self, units: float) -> None:
        if self._task is not None:
            self._progress.advance(self._task, units)

    def waiting(self, message: str) -> None:
        self._print(message, style="yellow")

    def stage_ended(self, outcome: Outcome) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        seconds = f"{outcome.seconds:6.1f} s" if outcome.state == "computed" else " " * 8
        style = "green" if outcome.state == "computed" else "dim"
        self._print(f"{outcome.stage:<12} {outcome.state:<9} {seconds}  {outcome.folder}", style=style)

    def close(self, study: Study, outcomes: Sequence[Outcome]) -> None:
        """The main figures of the stages that ran, and the path of the page."""
        self._progress.stop()
        table = Table(title=f"Study {self._study}", title_justify="left", show_edge=False)
        for column, justify in (("stage", "left"), ("figure", "left"), ("value [95% interval]", "right")):
            table.add_column(Text(column), justify=justify)  # pyright: ignore[reportArgumentType]
        for outcome in outcomes:
            for metric, meaning in stage_named(outcome.stage).headline:
                if metric in outcome.metrics:
                    table.add_row(outcome.stage, Text(meaning), Text(interval(outcome.metrics, metric)))
        if table.row_count:
            self._console.print(table)
        page = next((outcome.folder / "report.html" for outcome in outcomes if outcome.stage == "report"), None)
        if page:
            self._print(f"page: {page.resolve()}")


def interval(metrics: Metrics, name: str) -> str:
    """A metric with its interval where the stage gives one."""
    value, low, high = (metrics.get(key, math.nan) for key in (name, f"{name}_low", f"{name}_high"))
    text = "not shown" if math.isnan(value) else f"{value:.3f}"
    return text if math.isnan(low) or math.isnan(high) else f"{text} [{low:.3f}, {high:.3f}]"


def print_plan(plan: Plan, states: Sequence[str]) -> None:
    """One line a stage with what it will take, then the sum and where the times come from."""
    width = max(len(row.stage) for row in plan.rows)
    for row, state in zip(plan.rows, states, strict=True):
        print(f"{row.stage:<{width}}  {'off' if row.off else state:<8}{row}".rstrip())
    print()
    for sentence in plan.closing():
        print(sentence)


def print_status(study: Study, states: Sequence[tuple[State, str]], progress: Mapping[str, jobs.Progress]) -> None:
    """One row a stage; of unfinished ones how far they are, and why what failed has failed."""
    console = RichConsole(highlight=False, markup=False)
    console.print(printable(f"Study {study.config.name} ({study.source})"), soft_wrap=True)
    table = Table(show_edge=False)
    for column in ("stage", "state", "seconds", "parts", "fingerprint"):
        table.add_column(column, no_wrap=True)
    styles = {"done": "green", "failed": "red", "damaged": "red", "partial": "yellow", "running": "cyan"}
    for state, fingerprint in states:
        open_ = progress.get(state.stage)
        word = state.state if open_ is None or state.state == "damaged" else open_.state(state.state)
        table.add_row(
            state.stage,
            Text(word, style=styles.get(word, "dim")),
            f"{state.record['run']['seconds']:.1f}" if state.record else "",
            str(state.parts_done) if open_ is None else f"{open_.done}/{'?' if open_.total is None else open_.total}",
            fingerprint[:16],
        )
    console.print(table)
    for state, _ in states:
        if state.state == "damaged":
            said = printable("; ".join(state.failures.values()))
            console.print(f"{state.stage}: {said}; the next run computes it again", style="red", soft_wrap=True)
    for stage, open_ in progress.items():
        if open_.running or open_.failed or open_.jobs:
            console.print(f"{stage}: {'; '.join([_counts(open_), *_jobs(open_), *_pace(open_)])}", soft_wrap=True)
        for note in open_.notes:
            console.print(printable(f"{stage}: {note}"), style="red", soft_wrap=True)
    for state, _ in states:
        for metric, meaning in stage_named(state.stage).headline:
            if metric in state.metrics:
                console.print(f"{meaning}: {interval(state.metrics, metric)}", soft_wrap=True)
    console.print(printable(f"results: {study.config.cache}/<stage>/<fingerprint>"), soft_wrap=True)


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
    pace = [rate(progress.rate, progress.unit)]
    if progress.left is not None:
        minutes, seconds = divmod(round(progress.left), 60)
        hours, minutes = divmod(minutes, 60)
        pace.append(f"{hours}:{minutes:02}:{seconds:02} left")
    return pace

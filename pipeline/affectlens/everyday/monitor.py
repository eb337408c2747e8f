"""``affectlens monitor``: a calibrated monitor on transcripts, on files that grow, and on answers as they are made."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from affectlens.entry import Changes, Config, Debug, printable, writable
from affectlens.errors import ConfigError
from affectlens.everyday import calibrating
from affectlens.everyday.reading import opened, refuse_change

if TYPE_CHECKING:
    from rich.text import Text

    from affectlens.use.monitor import Monitor, Watched
    from affectlens.use.opened import Opened
    from affectlens.use.texts import Messages

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Watch what a study's model says: rows of its state, a threshold set on benign answers, alarms.",
)
GAUGE = 24
"""Cells of the gauge; the threshold stands at three quarters."""


@app.callback()
def _options(debug: Debug = False) -> None: ...


app.command()(calibrating.calibrate)
app.command()(calibrating.evaluate)


@app.command()
def watch(
    config: Config,
    card: Annotated[Path, typer.Argument(help="The card that `affectlens monitor calibrate` wrote.", metavar="CARD")],
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A transcript: JSON lines with a message or an episode each, or the text of one answer. Left out, the "
            "study's model answers --prompt.",
            metavar="[FILE]",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What is answered: a text, or a file (text, or a chat as JSON).", metavar="TEXT|FILE"),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(help="A row that may raise an alarm; may be given again. The first is shown. The card's first."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on reading as the file grows; Ctrl-C ends.")
    ] = False,
    idle: Annotated[
        float | None, typer.Option(min=0, help="With --follow: end after so many seconds without growth.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to --prompt.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer to --prompt.")] = 120,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    to_json: Annotated[
        str | None,
        typer.Option(
            "--json", callback=writable, metavar="PATH|-", help="Write a line of JSON a token; - for standard output."
        ),
    ] = None,
    page: Annotated[Path | None, typer.Option(callback=writable, help="Write a self-contained HTML page.")] = None,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Watch answers token by token: a gauge, and an alarm where a row passes its threshold.

    Each row that may raise an alarm holds the card's false-alarm rate alone, on answers like those of its calibration.

    Examples: [bold]affectlens monitor watch quickstart card.json chat.jsonl --follow[/bold], [bold]affectlens monitor
    watch quickstart card.json --prompt "It failed again. What now?" --page watched.html[/bold]
    """
    from affectlens.use.monitor import Monitor

    if source is None and prompt is None:
        raise ConfigError("monitor watch: give a transcript, or --prompt with what the model is to answer")
    if follow and source is None:
        raise ConfigError("monitor watch: --follow needs a file that grows")
    if source is not None:
        refuse_change(str(source))
    study = opened(config, changes)
    monitor = Monitor.load(card, study)
    monitor = Monitor(monitor.card, study, row or monitor.names[:1])
    steps = _steps(monitor, source, _asked(study, prompt), follow, idle, samples, tokens, temperature, seed)
    _show(steps, monitor, to_json, page, endless=follow)


def _show(steps: Iterable[Watched], monitor: Monitor, to_json: str | None, page: Path | None, *, endless: bool) -> None:
    """Everything that is printed and written, answer by answer."""
    from affectlens.everyday import terminal

    stream = None
    if to_json is not None:
        stream = sys.stdout if to_json == "-" else Path(to_json).expanduser().open("w", encoding="utf-8")
    answers: list[Watched] = []
    try:
        if stream is not None:
            stream.write(json.dumps(_heading(monitor)) + "\n")
        for answer in _noted(steps, monitor, stream):
            if to_json != "-":
                terminal.console.print(_shown(answer, monitor))
            if page is not None:
                answers.append(answer)
    except KeyboardInterrupt:  # how following is ended
        if not endless:
            raise
    finally:
        if stream not in (None, sys.stdout):
            stream.close()
    if page is not None:
        from affectlens.use.watched_page import render

        page.expanduser().write_text(render(answers, monitor), encoding="utf-8")
        print(page)


def _asked(study: Opened, prompt: str | None) -> Messages:
    """The chat that is answered."""
    if prompt is None:
        return []
    from affectlens.use.texts import from_source

    (_, content), *_ = from_source(prompt, sys.stdin)
    return [{"role": "user", "content": content}] if isinstance(content, str) else content


def _steps(
    monitor: Monitor,
    source: Path | None,
    asked: Messages,
    follow: bool,
    idle: float | None,
    samples: int,
    tokens: int,
    temperature: float,
    seed: int,
) -> Iterator[Watched]:
    """Answers while they grow."""
    from affectlens.use.transcripts import Following, watch_file

    if source is not None:
        yield from watch_file(monitor, source.expanduser(), asked, Following(idle) if follow else None)
        return
    for number in range(samples):
        options: Any = {"tokens": tokens, "temperature": temperature, "seed": seed + number}
        yield from monitor.answer(asked, name=f"answer {number + 1}", **options)


def _noted(steps: Iterable[Watched], monitor: Monitor, stream: TextIO | None) -> Iterator[Watched]:
    """Every answer once it is complete; its gauge is drawn and its tokens are written while it grows."""
    from rich.live import Live

    from affectlens.everyday import terminal

    last: Watched | None = None
    with Live(console=terminal.console, refresh_per_second=8, transient=True) as live:
        for answer in steps:
            if last is not None and answer is not last:
                yield last
            last = answer
            if stream is not None:
                stream.write(json.dumps(_line(answer, monitor), ensure_ascii=False) + "\n")
                stream.flush()
            if stream is not sys.stdout:
                live.update(gauge(answer, monitor))
    if last is not None:
        yield last


def gauge(answer: Watched, monitor: Monitor) -> Text:
    """One line: how far the shown row stands from its threshold, and the alarms so far."""
    from rich.text import Text

    row = monitor.rows[0]
    value = float(answer.live.seen.values[row])
    limit = float(answer.thresholds[row])
    mark = round(0.75 * GAUGE)
    filled = 0 if limit <= 0 or value != value else max(0, min(GAUGE, round(value / limit * mark)))
    cells = "".join("\u2588" if n < filled else "\u2502" if n == mark else "\u00b7" for n in range(GAUGE))
    line = Text(f"{printable(monitor.names[row])} {cells} {value:+.2f} of {limit:.2f}, token {len(answer.pieces)}")
    if answer.alarms:
        line.append(f", {len(answer.alarms)} alarms" if len(answer.alarms) > 1 else ", 1 alarm", style="bold red")
    return line


def _shown(answer: Watched, monitor: Monitor) -> Any:
    """A complete answer: its tokens coloured by the shown row, the gauge, and where alarms began."""
    import numpy as np
    from rich.console import Group
    from rich.text import Text

    from affectlens.everyday.terminal import FULL, coloured

    row = monitor.rows[0]
    limit = max(float(answer.thresholds[row]), 1e-9)
    # Colours are full at the threshold.
    values = np.array([each[row] for each in answer.values]) * (FULL / limit)
    lines: list[Any] = [Text(f"{printable(answer.name)}, coloured by {monitor.names[row]}", style="dim")]
    lines += [coloured(answer.pieces, values), gauge(answer, monitor)]
    for token, name in answer.alarms:
        before = "".join(answer.pieces[max(0, token - 8) : token])
        lines.append(Text(f"alarm: {printable(name)} at token {token}: \u2026{printable(before)}", style="bold red"))
    return Group(*lines)


def _heading(monitor: Monitor) -> dict[str, Any]:
    """What a reader of the lines has to know."""
    card = monitor.card
    return {
        "rows": monitor.names,
        "alarming": [monitor.names[row] for row in monitor.rows],
        "statistic": card.statistic.model_dump(mode="json"),
        "target": card.target,
        "layer": card.layer,
        "unit": "standard deviations of benign tokens",
    }


def _line(answer: Watched, monitor: Monitor) -> dict[str, Any]:
    """One token; token 0 is the end of the prompt."""
    seen = answer.live.seen
    rivals = zip(("entropy", "surprisal"), answer.live.uncertainty, strict=True)
    return {
        "answer": answer.name,
        "token": seen.token,
        "text": answer.live.piece,
        "values": {n: round(float(v), 4) for n, v in zip(monitor.names, seen.values, strict=True)},
        "thresholds": {monitor.names[row]: round(float(answer.thresholds[row]), 4) for row in monitor.rows},
        "alarms": [monitor.names[row] for row in seen.alarms],
        **{name: round(value, 4) if value == value else None for name, value in rivals},
    }

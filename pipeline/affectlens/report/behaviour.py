"""The behavioural experiments on the page: claim, answer, figures and tables, drawn from plain findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectlens.report import marks
from affectlens.report.evidence import Evidence, Row
from affectlens.report.finding import Finding, Standing
from affectlens.report.marks import Chart, label
from affectlens.report.numbers import MISSING, estimate, finite, general, names
from affectlens.report.tables import Cell, Column, Table, mark, word
from affectlens.results.figures import VERDICT_WORDS

COLOURS = ("direction", "feature", "ink", "low", "high", "control")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
LEAD = 160
"""Letters of an answer that may stand in bold."""
DASHES = ("solid", "dash", "dot", "dashdot")
STANDING: Mapping[str, Standing] = {"shown": "shown", "planted": "partly shown", "described": "partly shown"}


@dataclass(frozen=True)
class Section:
    """One experiment as the page shows it.

    Attributes:
        name: of its folder.
        title, claim, refuted_by, source: as its ``experiment.yaml`` has them.
        answers: per analysis its standing, its badge, its sentences, its figures and its tables.
    """

    name: str
    title: str
    claim: str
    refuted_by: str
    source: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Answer:
    """What one analysis says; charts come with their captions, tables with their notes."""

    standing: Standing
    badge: str
    sentences: Sequence[str]
    charts: Sequence[tuple[Chart, str]]
    tables: Sequence[tuple[Table, str]]


def sections(evidence: Evidence) -> list[Section]:
    """All experiments of the study in order."""
    return [
        Section(
            row["name"],
            row["title"],
            row["claim"],
            row["refuted_by"],
            row.get("source", ""),
            [_answer(row["name"], index, found) for index, found in enumerate(row["findings"])],
        )
        for row in evidence.experiments
    ]


def overview(evidence: Evidence) -> Table:
    """Every experiment with its verdicts."""
    columns = [Column("Experiment"), Column("Claim"), Column("Shown", claim=True), Column("Answer")]
    rows = []
    for row in evidence.experiments:
        for found in row["findings"]:
            first = next(iter(found["sentences"]), "")
            shown = {"shown": True, "not shown": False}.get(found["verdict"])
            link = Cell(row["title"], row["title"].lower(), link=f"experiment-{row['name']}")
            rows.append([link, word(row["claim"]), mark(shown), word(first)])
    return Table("experiments", "Behavioural experiments", columns, rows)


def findings(evidence: Evidence) -> list[Finding]:
    """One line for the head of the page; nothing where no experiment was run."""
    verdicts: list[Any] = [found["verdict"] for row in evidence.experiments for found in row["findings"]]
    if not verdicts:
        return []
    counts = {name: verdicts.count(name) for name in VERDICT_WORDS}
    said = ", ".join(f"{count} {VERDICT_WORDS[name]}" for name, count in counts.items() if count)
    text = f"{len(evidence.experiments)} behavioural experiments were run, with {len(verdicts)} analyses: {said}."
    standing: Standing = "shown" if counts["shown"] == len(verdicts) else "partly shown"
    return [Finding("experiments", "Behaviour", text, standing if counts["shown"] else "not shown")]


def _answer(name: str, index: int, found: Row) -> Answer:
    verdict = found["verdict"]
    return Answer(
        STANDING.get(verdict, "not shown"),
        VERDICT_WORDS[verdict],
        [*_led(found["sentences"]), *_settings(found.get("settings", {}))],
        [
            (chart(f"experiment-{name}-{index}-{place}", each), f"{each['title']}.")
            for place, each in enumerate(found.get("charts", ()))
        ],
        [
            (table(f"experiment-{name}-{index}-{place}", each), each.get("note", ""))
            for place, each in enumerate(found.get("tables", ()))
        ],
    )


def _settings(settings: Row) -> list[str]:
    """The numbers that decided the verdict."""
    told = names([f"{name.replace('_', ' ')} {general(value)}" for name, value in settings.items()], 30)
    return [f"Decided with {told}."] if settings else []


def _led(sentences: Sequence[str]) -> list[str]:
    """A long first sentence in two: up to its colon it is the heading of the rest."""
    if not sentences or len(sentences[0]) <= LEAD or ": " not in sentences[0]:
        return list(sentences)
    head, _, rest = sentences[0].partition(": ")
    return [f"{head}.", f"{rest[0].upper()}{rest[1:]}", *sentences[1:]]


def chart(name: str, found: Row) -> Chart:
    """A line, bar or scatter chart with its intervals."""
    traces = [_trace(found["kind"], place, series) for place, series in enumerate(found["series"])]
    layout = marks.layout(xaxis=marks.axis(label(found["x"])), yaxis=marks.axis(label(found["y"]), zeroline=True))
    layout["margin"]["t"] = 40 + 18 * (len(traces) // 5)
    layout["showlegend"] = len(traces) > 1
    layout["barmode"] = "group"
    if any(isinstance(x, str) for series in found["series"] for x in series["x"]):
        layout["xaxis"]["type"] = "category"
    words = f"{found['kind'].capitalize()} chart: {found['title']}."
    return marks.chart(name, traces, layout, 360, words)


def _trace(kind: str, place: int, series: Row) -> dict[str, Any]:
    colour = f"var(--{COLOURS[place % len(COLOURS)]})"
    texts = [label(text) for text in series.get("labels") or ["" for _ in series["x"]]]
    trace: dict[str, Any] = {
        "name": label(series["name"]),
        "x": [label(x) if isinstance(x, str) else x for x in series["x"]],
        "y": list(series["y"]),
        "text": texts,
        "hovertemplate": "%{text} %{x}: %{y:.3f}<extra>" + label(series["name"]) + "</extra>",
    }
    if series.get("low") is not None and series.get("high") is not None:
        ends = [
            {"y": y, "low": low, "high": high}
            for y, low, high in zip(series["y"], series["low"], series["high"], strict=True)
        ]
        trace["error_y"] = marks.bars(ends, "y", COLOURS[place % len(COLOURS)])
    if kind == "bar":
        return trace | {"type": "bar", "marker": {"color": colour}, "textposition": "none"}
    symbol = SYMBOLS[place % len(SYMBOLS)]
    trace |= {"type": "scatter", "marker": {"color": colour, "size": 8, "symbol": symbol}}
    if kind == "line":
        dash = DASHES[(place // len(COLOURS)) % len(DASHES)]
        return trace | {"mode": "lines+markers", "line": {"color": colour, "width": 2, "dash": dash}}
    return trace | {"mode": "markers"}


def table(name: str, found: Row) -> Table:
    """Cells are texts, numbers, or a value with its interval."""
    rows = [[_cell(value) for value in row] for row in found["rows"]]
    numeric = [
        bool(found["rows"]) and not any(isinstance(row[place], str) and row[place] for row in found["rows"])
        for place in range(len(found["columns"]))
    ]
    columns = [Column(str(title), numeric=flag) for title, flag in zip(found["columns"], numeric, strict=True)]
    return Table(name, found["title"], columns, rows)


def _cell(value: Any) -> Cell:
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value))
    if isinstance(value, list | tuple):
        if finite(value[0]) is None:
            return Cell(MISSING, None)
        return Cell(estimate(value[0], value[1], value[2]), finite(value[0]))
    if isinstance(value, str):
        return word(value)
    return Cell(general(value), finite(value))

"""The behavioural experiments on the page: claim, answer, figures and tables, drawn from plain findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, Marks, Series
from affectlens.report.evidence import Evidence, Row
from affectlens.report.registry import figure, findings
from affectlens.report.sentences import Finding, Standing
from affectlens.report.tables import Cell, Table
from affectlens.results.figures import VERDICT_WORDS
from affectlens.results.format import MISSING, estimate, finite, general

LEAD = 160
"""Letters of an answer that may stand in bold."""
STANDING: Mapping[str, Standing] = {"shown": "shown", "planted": "partly shown", "described": "partly shown"}


@dataclass(frozen=True)
class Answer:
    """What one analysis says; tables carry their notes."""

    standing: Standing
    badge: str
    sentences: Sequence[str]
    charts: Sequence[tuple[Chart, str]]
    tables: Sequence[Table]


def answers(experiment: Row) -> list[Answer]:
    """Per analysis of an experiment what it says."""
    return [
        Answer(
            STANDING.get(row["verdict"], "not shown"),
            VERDICT_WORDS[row["verdict"]],
            lead(row["sentences"]),
            [(chart(f"{name}-{place}", each), f"{each['title']}.") for place, each in enumerate(row.get("charts", ()))],
            [table(f"{name}-{place}", each) for place, each in enumerate(row.get("tables", ()))],
        )
        for index, row in enumerate(experiment["findings"])
        for name in [f"experiment-{experiment['name']}-{index}"]
    ]


@figure("experiments")
def overview(evidence: Evidence) -> Table | None:
    """Every experiment with its verdicts."""
    columns = [tables.text("Experiment", ""), tables.text("Claim", "")]
    columns += [tables.Column("Shown", tables.word, kind="claim"), tables.text("Answer", "")]
    rows = [
        [
            Cell(row["title"], row["title"].lower(), link=f"experiment-{row['name']}"),
            tables.word(row["claim"]),
            tables.mark({"shown": True, "not shown": False}.get(result["verdict"])),
            tables.word(next(iter(result["sentences"]), "")),
        ]
        for row in evidence.experiments
        for result in row["findings"]
    ]
    return Table("experiments", "Behavioural experiments", columns, rows, open=True) if rows else None


@findings
def behaviour(evidence: Evidence) -> Iterator[Finding]:
    """One line for the head of the page; nothing where no experiment was run."""
    verdicts: list[Any] = [result["verdict"] for row in evidence.experiments for result in row["findings"]]
    if not verdicts:
        return
    counts = {name: verdicts.count(name) for name in VERDICT_WORDS}
    said = ", ".join(f"{counts[name]} {written}" for name, written in VERDICT_WORDS.items() if counts[name])
    text = f"{len(evidence.experiments)} behavioural experiments were run, with {len(verdicts)} analyses: {said}."
    badge: Standing = "shown" if counts["shown"] == len(verdicts) else "partly shown"
    yield Finding("experiments", "The claims about behaviour hold", text, badge if counts["shown"] else "not shown")


def lead(sentences: Sequence[str]) -> list[str]:
    """A long first sentence in two: up to its colon it is the heading of the rest."""
    if not sentences or len(sentences[0]) <= LEAD or ": " not in sentences[0]:
        return list(sentences)
    head, _, rest = sentences[0].partition(": ")
    return [f"{head}.", f"{rest[0].upper()}{rest[1:]}", *sentences[1:]]


def chart(name: str, row: Row) -> Chart:
    """A line, bar or scatter chart with its intervals."""
    marks = [
        Marks(
            Series(**{key: each.get(key) for key in ("name", "x", "y", "low", "high", "labels")}),
            draw.COLOURS[place % len(draw.COLOURS)],
            draw.SYMBOLS[place % len(draw.SYMBOLS)],
            8,
            draw.DASHES[(place // len(draw.COLOURS)) % len(draw.DASHES)],
        )
        for place, each in enumerate(row["series"])
    ]
    words = f"{row['kind'].capitalize()} chart: {row['title']}."
    zero = {"zeroline": True}
    return draw.lines(name, row["kind"], marks, x=row["x"], y=row["y"], words=words, height=360, yaxis=zero)


def table(name: str, row: Row) -> Table:
    """Cells are texts, numbers, or a value with its interval."""
    columns = []
    for place, title in enumerate(row["columns"]):
        words = any(isinstance(each[place], str) and each[place] for each in row["rows"])
        kind = "text" if words or not row["rows"] else "numeric"
        columns.append(tables.Column(str(title), _cell, kind=kind))
    return Table(
        name, row["title"], columns, [[_cell(value) for value in each] for each in row["rows"]], row.get("note", "")
    )


def _cell(value: Any) -> Cell:
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value))
    if isinstance(value, list | tuple):
        number = finite(value[0])
        return Cell(MISSING if number is None else estimate(*value[:3]), number)
    return tables.word(value) if isinstance(value, str) else Cell(general(value), finite(value))

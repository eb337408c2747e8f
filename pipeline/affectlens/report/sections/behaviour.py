"""The behavioural experiments on the page: claim, answer, figures and tables, drawn from plain findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from affectlens.report import draw, tables
from affectlens.report.draw import Chart
from affectlens.report.evidence import SIGNIFICANT, Evidence, Row
from affectlens.report.registry import Said, Standing, figure, finding, graded
from affectlens.report.tables import Cell, Column, Heading, Table
from affectlens.results.figures import VERDICT_WORDS, Series
from affectlens.results.format import p_value

LEAD = 160
"""Letters of an answer that may stand in bold."""
STANDING: Mapping[str, Standing] = {"shown": "shown", "planted": "partly shown", "described": "partly shown"}


def answers(experiment: Row) -> list[Row]:
    """Per analysis of an experiment its standing, badge, sentences, and figures."""
    told = []
    for index, row in enumerate(experiment["findings"]):
        name = f"experiment-{experiment['name']}-{index}"
        figures = [chart(f"{name}-{place}", each) for place, each in enumerate(row.get("charts", ()))]
        figures += [table(f"{name}-{place}", each) for place, each in enumerate(row.get("tables", ()))]
        badge = {"standing": STANDING.get(row["verdict"], "not shown"), "badge": VERDICT_WORDS[row["verdict"]]}
        told.append({**badge, "sentences": [*lead(row["sentences"]), status(experiment, index)], "figures": figures})
    return told


def status(experiment: Row, index: int) -> str:
    """Whether an analysis is confirmatory, with its p over all such tests of the study, or exploratory."""
    if not (experiment.get("confirmatory") or [False] * (index + 1))[index]:
        return "This analysis is exploratory."
    p = experiment["p_study"][index]
    if p is None:
        return "This analysis is confirmatory; it could not be tested."
    return f"This analysis is confirmatory; over the confirmatory tests of the study its corrected p is {p_value(p)}."


@figure("experiments")
def experiments(evidence: Evidence) -> Table | None:
    """Every experiment with its verdicts."""
    rows = [
        {**experiment, "result": result, "status": status(experiment, index)}
        for experiment in evidence.experiments
        for index, result in enumerate(experiment["findings"])
    ]
    columns: dict[str, Heading] = {
        "title": Column("Experiment", lambda r: Cell(r["title"], r["title"].lower(), link=f"experiment-{r['name']}")),
        "claim": "Claim",
        "shown": Column(
            "Shown",
            lambda r: tables.mark({"shown": True, "not shown": False}.get(r["result"]["verdict"])),
            kind="claim",
        ),
        "status": Column("Test", lambda r: tables.cell("exploratory" if "expl" in r["status"] else "confirmatory")),
        "answer": Column("Answer", lambda r: tables.cell(next(iter(r["result"]["sentences"]), ""))),
    }
    return tables.table("Behavioural experiments", rows, columns, open=True) if rows else None


@finding("experiments")
def behaviour(evidence: Evidence) -> Said | None:
    """How many of the analyses show their claim; nothing where no experiment was run."""
    verdicts: list[Any] = [result["verdict"] for row in evidence.experiments for result in row["findings"]]
    if not verdicts:
        return None
    counts = [(written, verdicts.count(name)) for name, written in VERDICT_WORDS.items() if name in verdicts]
    shown = verdicts.count("shown")
    made_for, p = _held(evidence.experiments)
    badge = graded(shown, len(verdicts)) if p is not None and p <= SIGNIFICANT * (1 + 1e-9) else "not shown"
    values = {"experiments": len(evidence.experiments), "total": len(verdicts), "counts": counts}
    return badge, {**values, "shown": shown, "confirmatory": made_for, "p": p}


def _held(experiments: Sequence[Row]) -> tuple[int, float | None]:
    """How many confirmatory tests a study has, and p of all analyses together where no claim holds.

    Where there are confirmatory tests they decide: the least of their p, corrected as one family, of those that are
    shown. Without one, the number of analyses that are shown is held against the number that their levels let pass.
    """
    from scipy.stats import poisson_binom

    corrected: list[float] = []
    levels: list[float] = []
    shown = tests = 0
    for row in experiments:
        count = len(row["findings"])
        marked, alpha = row.get("confirmatory") or [False] * count, row.get("alpha") or [SIGNIFICANT] * count
        levels += alpha
        shown += sum(result["verdict"] == "shown" for result in row["findings"])
        for index in (index for index in range(count) if marked[index]):
            tests += 1
            p = row["p_study"][index]
            corrected += [p] if row["findings"][index]["verdict"] == "shown" and p is not None else []
    if tests:
        return tests, min(corrected, default=1.0)
    return 0, float(poisson_binom.sf(shown - 1, levels)) if levels else None


def lead(sentences: Sequence[str]) -> list[str]:
    """A long first sentence in two: up to its colon it is the heading of the rest."""
    if not sentences or len(sentences[0]) <= LEAD or ": " not in sentences[0]:
        return list(sentences)
    head, _, rest = sentences[0].partition(": ")
    return [f"{head}.", f"{rest[0].upper()}{rest[1:]}", *sentences[1:]]


def chart(name: str, row: Row) -> Chart:
    """A line, bar or scatter chart with its intervals."""
    drawn = [
        draw.Marks(
            Series(**{key: each.get(key) for key in ("name", "x", "y", "low", "high", "labels")}),
            draw.COLOURS[place % len(draw.COLOURS)],
            draw.SYMBOLS[place % len(draw.SYMBOLS)],
            8,
            line={"dash": draw.DASHES[(place // len(draw.COLOURS)) % len(draw.DASHES)]},
        )
        for place, each in enumerate(row["series"])
    ]
    made = draw.lines(row["kind"], drawn, row["x"], row["y"], 360, yaxis={"zeroline": True})
    words = f"{row['kind'].capitalize()} chart: {row['title']}."
    return replace(made, name=name, words=words, caption=f"{row['title']}.")


def table(name: str, row: Row) -> Table:
    """Cells are texts, numbers, or a value with its interval."""
    words = [any(isinstance(each, str) and each for each in column) for column in zip(*row["rows"], strict=True)]
    kinds = ["text" if each else "numeric" for each in words] or ["text"] * len(row["columns"])
    columns = [Column(str(title), tables.cell, kind=kind) for title, kind in zip(row["columns"], kinds, strict=True)]
    rows = [[tables.cell(value) for value in each] for each in row["rows"]]
    return Table(row["title"], columns, rows, row.get("note", ""), name=name)

"""What stands out at first sight: scales of the main figures, marks for each concept, and a card for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from affectlens.report import tables
from affectlens.report.evidence import OPERATIONS, VECTORS, Evidence, Figure, Row, Tally
from affectlens.report.tables import Cell, Column, Table
from affectlens.results.format import finite, number

RULE = "beyond every family of controls at a corrected 5%; half: more than every control, and not by that rule"
READ = {
    "Direction reads it": "The direction's AUROC within left-out topics lies above 0.5 at a corrected 5%, by a t over "
    "topics; half: without correction",
    "Feature reads it": "A feature matches it with a corrected p of at most 0.05, and reads it better than the "
    "features of random SAEs do; half: the p alone",
    "Both agree": "The feature's cosine with the direction lies above 95% of its null (uncorrected: half)",
}
CAUSES = {
    "inject": f"Raises the concept's words, against other concepts' words, {RULE}",
    "ablate": f"Lowers the concept's words in stories that evoke them, {RULE}",
}


def rate(tally: Tally) -> Figure:
    """The share of concepts for which something is shown: a count of the studied ones, without an interval."""
    return (len(tally.shown) / tally.total if tally.total else None), None, None


def scale(figure: Figure, reference: float | None = None, ends: tuple[float, float] | None = None) -> dict[str, Any]:
    """A figure on a scale: its point, low, high and a reference as percentages of it where defined, and its ``ends``.

    Without ends it goes from 0.5, or from a tenth below the least end, to 1.
    """
    least = min((value for value in figure if value is not None), default=0.5)
    start, end = ends or (min(0.5, math.floor(10 * least) / 10), 1.0)
    named = zip(("point", "low", "high", "reference"), (*figure, reference), strict=True)
    known = {name: (value - start) / (end - start) for name, value in named if value is not None}
    return {name: round(100 * min(max(at, 0), 1), 1) for name, at in known.items()} | {"ends": (start, end)}


def overview(evidence: Evidence, links: Mapping[str, str]) -> Table:
    """Per concept, which of the claims the study can make about it.

    Args:
        evidence: what was found.
        links: concept -> id of its card.
    """
    agreeing = evidence.agreeing
    weakly = Tally([], [*agreeing.shown, *agreeing.missing], weak=agreeing.shown)
    read = zip(READ.items(), (evidence.read_by_direction, evidence.read_by_feature, weakly), strict=True)
    columns: list[Column] = [tables.claim(title, help, tally) for (title, help), tally in read]
    for operation, help in CAUSES.items():
        for vector in VECTORS:
            title = f"{operation.capitalize()} {vector}"
            columns.append(tables.claim(title, help, evidence.intervention(vector, operation)))

    def name(row: Row) -> Cell:
        return Cell(row["concept"], row["concept"].lower(), link=links.get(row["concept"], ""))

    rows = [{"concept": concept} for concept in evidence.concepts]
    every = {column.title: column for column in (Column("Concept", name), *columns)}
    return tables.table("What is shown for which concept", rows, every, open=True, criteria=True, name="overview")


def cards(evidence: Evidence, *, concepts: int, contexts: int) -> list[dict[str, Any]]:
    """All that was found about the concepts whose features detect best: the rows of each, and passages."""
    directions, cosines = evidence.by_concept("directions/concepts"), evidence.by_concept("compare/cosines")
    effects = {(v, operation): evidence.effects(v, operation) for operation in OPERATIONS for v in VECTORS}
    rows = sorted(evidence.rows("match/concepts"), key=lambda row: -(finite(row["auroc_test"]) or 0.0))
    return [
        {
            "concept": concept,
            "anchor": f"card-{evidence.concepts.index(concept)}",
            "number": tables.index(row.get("feature")),
            "p": tables.corrected(row).text,
            "feature": row,
            "direction": directions.get(concept, {}),
            "cosine": cosines.get(concept, {}),
            "effects": {how: found.get(concept, {}) for how, found in effects.items()},
            "verdict": evidence.verdict_words(concept),
            "contexts": _contexts(evidence, concept)[:contexts],
        }
        for row in rows[:concepts]
        for concept in [row["concept"]]
    ]


def _contexts(evidence: Evidence, concept: str) -> list[Row]:
    """Passages in which a feature is active; ``heat`` is its activation as a share of the strongest one."""
    rows = [row for row in evidence.rows("match/contexts") if row["concept"] == concept]
    top, contexts = max((finite(row["value"]) or 0.0 for row in rows), default=0.0), []
    for row in rows:
        # The blank before a word is part of its token, but should not be marked.
        token = row["token"]
        blank = token[: len(token) - len(token.lstrip())] if token.strip() else ""
        shown = {"before": row["before"] + blank, "token": token[len(blank) :], "value": number(row["value"])}
        shown |= {"heat": round((finite(row["value"]) or 0.0) / top, 2) if top > 0 else 0.0}
        contexts.append({**row, **shown, "emotion": row["emotion"] or "neutral text", "own": row["emotion"] == concept})
    return contexts

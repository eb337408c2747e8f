"""The tables of the page: columns are named by their heading, their declared kind and unit say how they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from affectlens import results
from affectlens.report.evidence import Row, Tally
from affectlens.results.format import MISSING, count, estimate, finite, general, number, p_value, percent

UNITS: Mapping[str, Callable[[Any], str]] = {
    "share": percent,
    "p": p_value,
    "nats": partial(number, digits=3, sign=True),
}
UNITS = {**UNITS, **dict.fromkeys(("AUROC", "cosine", "r"), partial(number, digits=3))}
"""How numbers of a unit are written; others take the precision that fits."""


@dataclass(frozen=True)
class Cell:
    """What a cell shows, what it is sorted by (None goes last), its mark, its link, and a note under the pointer."""

    text: str
    key: float | str | None
    tone: str = ""
    link: str = ""
    title: str = ""


@dataclass(frozen=True)
class Column:
    """A heading with what it means, and its cells from rows; ``kind`` is ``text``, ``numeric`` or ``claim``."""

    title: str
    cell: Callable[[Row], Cell]
    help: str = ""
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """A sortable table; ``open`` ones are not folded, ``criteria`` lists what the columns ask for below it."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    open: bool = False
    criteria: bool = False
    name: str = ""


Heading = str | tuple[str, str] | Column


def table(caption: str, rows: Sequence[Row], columns: Mapping[str, Heading], **more: Any) -> Table:
    """A table of rows.

    Args:
        caption: of the table.
        rows: with their declaration (:class:`~affectlens.report.evidence.Rows`) where they have one.
        columns: heading by key, with a help where none is declared, or a column of one's own. ``low`` and
            ``x_low`` stand for the interval up to ``high`` and ``x_high``, ``p_adjusted`` shows ``p`` and ``p_floor``
            under the pointer.
        more: further fields of :class:`Table`.
    """
    declared = {column.name: column for column in getattr(getattr(rows, "declared", None), "columns", ())}
    made = [
        column if isinstance(column, Column) else _column(key, column, declared.get(key), rows)
        for key, column in columns.items()
    ]
    return Table(caption, made, [[column.cell(row) for column in made] for row in rows], **more)


def _column(key: str, heading: str | tuple[str, str], declared: results.Column | None, rows: Sequence[Row]) -> Column:
    title, help = (heading, "") if isinstance(heading, str) else heading
    values = [row.get(key) for row in rows]
    if declared and not help:
        help = declared.description[:1].upper() + declared.description[1:]
        help += f" ({declared.unit})" * (declared.unit not in ("", "p"))
    if declared.kind == "text" if declared else any(isinstance(value, str) for value in values):
        return Column(title, lambda row: cell(row.get(key)), help)
    if declared and declared.kind == "flag":
        return Column(title, lambda row: mark(row[key]), help, "claim")
    if key == "p_adjusted":
        return Column(title, corrected, help, "numeric")
    write = _writer(key, declared, values)
    if key == "low" or key.endswith("_low"):
        high = f"{key.removesuffix('low')}high"
        return Column(title, lambda row: cell((None, row[key], row[high]), write), help, "numeric")
    return Column(title, lambda row: cell(row.get(key), write), help, "numeric")


def _writer(key: str, declared: results.Column | None, values: Sequence[Any]) -> Callable[[Any], str]:
    if key == "p":
        return p_value
    if key == "feature" or key.endswith("_feature"):
        return index
    if declared:
        return count if declared.kind == "integer" else UNITS.get(declared.unit, general)
    return partial(number, digits=3) if any(isinstance(value, float) for value in values) else general


def index(feature: Any) -> str:
    """The number of a feature, without commas."""
    return MISSING if finite(feature) is None else f"{feature:.0f}"


def cell(value: Any, write: Callable[[Any], str] = general) -> Cell:
    """A text, several words, yes or no, a number, or (value, low, high); the interval alone where value is None."""
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value))
    if isinstance(value, list | tuple) and not all(isinstance(each, str) for each in value):
        middle, low, high = value[:3]
        if finite(middle) is not None:
            return Cell(estimate(middle, low, high), finite(middle))
        known = finite(low) is not None and finite(high) is not None
        return Cell(f"[{write(low)}, {write(high)}]" if known else MISSING, finite(low))
    if isinstance(value, list | tuple):
        value = ", ".join(value)
    if value in (None, ""):
        return Cell(MISSING, None)
    return Cell(value, value.lower()) if isinstance(value, str) else Cell(write(value), finite(value))


def corrected(row: Row) -> Cell:
    """A corrected p, written ``<=`` where the raw one is the least possible; the raw one is under the pointer."""
    raw, floor, p = (finite(row.get(key)) for key in ("p", "p_floor", "p_adjusted"))
    at_floor = raw is not None and floor is not None and raw <= floor * (1 + 1e-9)
    title = f"uncorrected: {p_value(raw, floor or 0.0)}; least possible: {p_value(floor)}"
    return Cell(p_value(p, floor=(p or 0.0) if at_floor else 0.0), p, title=title)


def mark(shown: bool | None, *, weak: bool = False) -> Cell:
    """A cell that says whether something is shown, or only by a weaker rule."""
    if weak and not shown:
        return Cell("weakly", 0.5, "weak")
    if shown is None:
        return Cell(MISSING, None, "unknown")
    return Cell("shown", 1.0, "yes") if shown else Cell("not shown", 0.0, "no")


def claim(title: str, help: str, tally: Tally) -> Column:
    """A column that says of which concepts a claim is shown."""
    return Column(title, lambda r: mark(tally.of(r["concept"]), weak=r["concept"] in tally.weak), help, "claim")

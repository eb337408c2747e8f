"""The tables of the page: columns are read from rows, what is not known is a dash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from affectlens.report.evidence import Row
from affectlens.results.format import MISSING, count, finite, interval, number, p_value, percent


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by (None goes last)."""

    text: str
    key: float | str | None
    tone: str = ""
    link: str = ""
    title: str = ""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        cell: from a row.
        help: what it is; the declaration of the table where empty.
        kind: ``text``, ``numeric``, or ``claim`` (shown or not).
        key: of the rows.
    """

    title: str
    cell: Callable[[Row], Cell]
    help: str = ""
    kind: str = "text"
    key: str = ""


@dataclass(frozen=True)
class Table:
    """A sortable table with a caption; ``open`` ones are not folded."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    open: bool = False
    criteria: bool = False


def table(name: str, caption: str, rows: Sequence[Row], columns: Sequence[Column], **more: Any) -> Table:
    """A table of rows; columns without help take it from the declaration of the rows."""
    declared = {column.name: column for column in getattr(getattr(rows, "declared", None), "columns", ())}
    described = [
        replace(column, help=_help(declared[column.key])) if not column.help and column.key in declared else column
        for column in columns
    ]
    return Table(name, caption, described, [[column.cell(row) for column in columns] for row in rows], **more)


def _help(column: Any) -> str:
    return column.description[:1].upper() + column.description[1:] + (f" ({column.unit})" if column.unit else "")


def word(text: Any) -> Cell:
    """A cell of text."""
    return Cell(MISSING, None) if text in (None, "") else Cell(str(text), str(text).lower())


def corrected(row: Row) -> Cell:
    """A corrected p, written ``<=`` where the raw one is the least possible; the raw one is under the pointer."""
    raw, floor, p = (finite(row.get(key)) for key in ("p", "p_floor", "p_adjusted"))
    at_floor = None not in (raw, floor, p) and raw <= floor * (1 + 1e-9)  # pyright: ignore[reportOptionalOperand]
    title = f"uncorrected: {p_value(raw, floor or 0.0)}; least possible: {p_value(floor)}"
    return Cell(p_value(p, floor=(p or 0.0) if at_floor else 0.0), p, title=title)


def mark(shown: bool | None, *, weak: bool = False) -> Cell:
    """A cell that says whether something is shown, or only by a weaker rule."""
    if weak and not shown:
        return Cell("weakly", 0.5, "weak")
    if shown is None:
        return Cell(MISSING, None, "unknown")
    return Cell("shown", 1.0, "yes") if shown else Cell("not shown", 0.0, "no")


def text(title: str, key: str, help: str = "") -> Column:
    """A column of words."""
    return Column(title, lambda row: word(row.get(key)), help, key=key)


def figure(title: str, key: str, help: str = "", *, digits: int = 3, sign: bool = False) -> Column:
    """A column of numbers with fixed decimals."""
    return _numeric(title, key, help, lambda value: number(value, digits, sign=sign))


def whole(title: str, key: str, help: str = "") -> Column:
    """A column of counts and indices."""
    return _numeric(title, key, help, count)


def share(title: str, key: str, help: str = "") -> Column:
    """A column of percentages."""
    return _numeric(title, key, help, percent)


def _numeric(title: str, key: str, help: str, written: Callable[[Any], str]) -> Column:
    return Column(title, lambda row: Cell(written(row.get(key)), finite(row.get(key))), help, "numeric", key)


def p(title: str, key: str = "p", help: str = "") -> Column:
    """A column of p-values; of ``p_adjusted`` with floor and raw p where the rows have them."""
    if key == "p_adjusted":
        return Column(title, corrected, help, "numeric", key)
    return _numeric(title, key, help, p_value)


def span(help: str = "t over topics", digits: int = 3) -> Column:
    """A column of intervals, sorted by the lower end."""

    def cell(row: Row) -> Cell:
        low, high = finite(row.get("low")), finite(row.get("high"))
        return Cell(MISSING if low is None or high is None else interval(low, high, digits), low)

    return Column("95% interval", cell, help, "numeric")

"""What an analysis concludes, as data: sentences, metrics, tables and charts that a page can draw.

Tables with fixed columns are declared in :mod:`affectlens.results.tables`. The tables here have columns that depend on
what was measured (the places of a transcript, the labels of a grader), so they carry their own header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from affectlens.results.format import Interval

Verdict = Literal["shown", "planted", "not shown", "untestable", "described"]
"""``planted``: it was shown, of something that the study itself put in. ``untestable``: it could not be tested here."""
VERDICT_WORDS: Mapping[Verdict, str] = {
    "shown": "shown",
    "planted": "planted, and measured",
    "not shown": "not shown",
    "untestable": "could not be tested",
    "described": "described",
}
"""How a verdict is written."""


@dataclass(frozen=True)
class DataTable:
    """A table with its rows: cells are texts, numbers, or (value, low, high)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    @classmethod
    def of(cls, title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> DataTable:
        """A table from rows that name their columns alike; one without rows has no columns."""
        columns = list(rows[0]) if rows else []
        return cls(title, columns, [[row[name] for name in columns] for row in rows], note)


@dataclass(frozen=True)
class Series:
    """Points of a chart, with intervals where there are any."""

    name: str
    x: Sequence[Any]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    labels: Sequence[str] | None = None

    @classmethod
    def of(
        cls, name: str, x: Sequence[Any], figures: Sequence[Interval], labels: Sequence[str] | None = None
    ) -> Series:
        """Points from figures with intervals."""
        low, high = [each.low for each in figures], [each.high for each in figures]
        return cls(name, list(x), [each.value for each in figures], low, high, labels)


@dataclass(frozen=True)
class Chart:
    """A chart with its data."""

    title: str
    kind: Literal["line", "bar", "scatter"]
    x: str
    y: str
    series: Sequence[Series]


@dataclass(frozen=True)
class Finding:
    """What one analysis concludes.

    Attributes:
        verdict: whether the claim was shown, was not shown, or could not be tested here (the reason is a sentence).
        sentences: plain words; the first is the answer.
        metrics: flat; ``x`` may come with ``x_low`` and ``x_high``.
        tables: the figures behind it.
        charts: the same, drawn.
    """

    verdict: Verdict
    sentences: Sequence[str]
    metrics: Mapping[str, float]
    tables: Sequence[DataTable] = ()
    charts: Sequence[Chart] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The thresholds that decided the verdict: level, smallest effect that matters, permutations, draws."""

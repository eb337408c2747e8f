"""A comparison for a person at a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from affectlens.compare.differences import Comparison, Difference, Metric, Setting
from affectlens.compare.findings import Findings, Row, Value
from affectlens.results import format
from affectlens.study import STAGES

METRICS = "Metrics, with 95% intervals"
MATCHES = "Concepts and what matches them"
NAME_WIDTH, VALUE_WIDTH = 30, 16
CONCEPTS_SHOWN = 30
WIDTH_IN_A_FILE = 160
"""Columns where the output is no terminal, which would have its own."""
HEADLINE = {f"{stage.name}/{metric}": meaning for stage in STAGES for metric, meaning in stage.headline}
RULES = (
    "* differs by more than its uncertainty. Where the difference has an interval (values of the same concepts paired, "
    "a 95% t interval over concepts): 0 lies outside it. Elsewhere: the two 95% intervals do not overlap, which "
    "says less when they rest on few topics. Without intervals there is no mark. Each metric stands by itself: of "
    "twenty that do not really differ, one is marked."
)
ASPECTS = (
    ("feature", "best\nfeat."),
    ("feature_auroc", "its\nAUROC"),
    ("direction_auroc", "dir.\nAUROC"),
    ("direction_verdict", "dir.\nshown"),
    ("feature_verdict", "feat.\nshown"),
)
SHORT = {"sufficient": "S", "specific": "P", "necessary": "N", "not shown": "-"}


def show(comparison: Comparison, *, everything: bool = False, console: Console | None = None) -> None:
    """Print it.

    Args:
        comparison: what to show.
        everything: all metrics and concepts, not only the main figures and what is marked or most different.
        console: where; standard output when None.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_IN_A_FILE)
    names = [each.name for each in comparison.studies]
    console.print(_studies(comparison.studies))
    for title, rows in (("Set differently", comparison.settings), ("Beside the settings", comparison.circumstances)):
        if rows:
            console.print(_settings(title, names, rows))
    if not comparison.settings:
        console.print("No setting differs.")
    if comparison.shared:
        console.print(f"The same result in all: {', '.join(comparison.shared)}.", soft_wrap=True)
    for note in comparison.notes:
        console.print(f"{note}.", style="yellow", soft_wrap=True)
    chosen = [each for each in comparison.metrics if everything or each.marked or each.name in HEADLINE]
    table = _metrics(names, chosen)
    console.print(table if _fits(table, console) else _tall_metrics(chosen))
    left = [each for each in comparison.metrics if each not in chosen]
    if left:
        varying = sum(each.varies for each in left)
        console.print(f"{len(left)} further metrics are not marked, {varying} of them vary; --all shows them.")
    console.print(RULES, style="dim")
    if comparison.concepts:
        _show_concepts(comparison, everything, console)


def _studies(studies: Sequence[Findings]) -> Table:
    table = _table(f"{len(studies)} studies; the others are held against the first")
    for column in ("", "study", "read from"):
        table.add_column(column, overflow="fold")
    for index, study in enumerate(studies):
        table.add_row(_letter(index), study.name, study.source)
    return table


def _letter(index: int) -> str:
    """What a study is called where there is no room for its name."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _settings(title: str, names: Sequence[str], rows: Sequence[Setting]) -> Table:
    table = _table(title)
    for column in ("", *names):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.key, *(setting(value) for value in row.values))
    return table


def setting(value: Any) -> str:
    """A setting as it is shown: lists joined, digests cut to what tells them apart."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return re.sub(r"\b([0-9a-f]{12})(?:[0-9a-f]{28}|[0-9a-f]{52})(?![0-9a-f])", r"\1", str(value))  # of digests enough


def _metrics(names: Sequence[str], metrics: Sequence[Metric]) -> Table:
    table = _table(METRICS)
    table.add_column("metric", overflow="fold", min_width=NAME_WIDTH)
    table.add_column(names[0], justify="right", no_wrap=True, min_width=VALUE_WIDTH)
    for name in names[1:]:
        for column in (name, "difference"):
            table.add_column(column, justify="right", no_wrap=True, min_width=VALUE_WIDTH)
    for metric in metrics:
        cells: list[Text | str] = [_named(metric.name), _value(metric.values[0])]
        for value, difference in zip(metric.values[1:], metric.differences[1:], strict=True):
            cells += [_value(value), _difference(difference)]
        table.add_row(*cells)
    return table


def _tall_metrics(metrics: Sequence[Metric]) -> Table:
    """A line for each metric and study."""
    table = _table(METRICS)
    table.add_column("metric", overflow="fold")
    for column in ("study", "value", "difference"):
        table.add_column(column, justify="left" if column == "study" else "right", no_wrap=True)
    for metric in metrics:
        for index, (value, difference) in enumerate(zip(metric.values, metric.differences, strict=True)):
            first, last = index == 0, index == len(metric.values) - 1
            cells = [_letter(index), _value(value), "" if first else _difference(difference)]
            table.add_row(_named(metric.name) if first else "", *cells, end_section=last)
    return table


def _fits(table: Table, console: Console) -> bool:
    """Whether no column of a table has to be cut."""
    return Measurement.get(console, console.options.update(width=10_000), table).minimum <= console.width


def _named(name: str) -> Text:
    text = Text(name)
    if name in HEADLINE:
        text.append(f"\n  {HEADLINE[name]}", style="dim")
    return text


def _value(value: Value | None) -> str:
    if value is None:
        return "-"
    return (
        f"{number(value.value)}\n[{number(value.low)}, {number(value.high)}]" if value.bounded else number(value.value)
    )


def _difference(difference: Difference | None) -> Text:
    if difference is None:
        return Text("-")
    if difference.value == 0 and not difference.low < difference.high:
        return Text("same  ", style="dim")
    mark = " *" if difference.exceeds else "  "
    text = Text(f"{number(difference.value, sign=True)}{mark}", style="bold yellow" if difference.exceeds else "")
    if not math.isnan(difference.low):
        low, high = (number(end, sign=True) for end in (difference.low, difference.high))
        text.append(f"\n[{low}, {high}]", style="dim")
    return text


def number(value: float, *, sign: bool = False) -> str:
    """Three decimals, so that columns line up; another form where these say nothing."""
    decimal = value != round(value) and 0.001 <= abs(value) < 1000
    return format.number(value, 3, sign=sign) if decimal else format.general(value, sign=sign)


def _show_concepts(comparison: Comparison, everything: bool, console: Console) -> None:
    ordered = sorted(comparison.concepts, key=lambda concept: -_spread(comparison.concepts[concept]))
    chosen = ordered if everything else ordered[:CONCEPTS_SHOWN]
    rows = {concept: comparison.concepts[concept] for concept in comparison.concepts if concept in chosen}
    table = _wide(rows, len(comparison.studies))
    console.print(table if _fits(table, console) else _tall(rows))
    if len(chosen) < len(ordered):
        console.print(f"The {len(chosen)} concepts that differ most of {len(ordered)}; --all shows the others.")
    if any(row.get("direction_verdict") for each in rows.values() for row in each):
        console.print("Shown by injection and ablation: S sufficient, P specific, N necessary, - none.", style="dim")
    if "sae" not in comparison.shared:
        console.print(
            "Feature numbers belong to each study's own SAE: equal numbers are not the same feature.", style="dim"
        )


def _wide(rows: Mapping[str, Sequence[Row]], studies: int) -> Table:
    """A line for each concept, and a column for each study where they differ."""
    table = _table(MATCHES)
    table.add_column("concept", no_wrap=True)
    columns = []
    for key, meaning in ASPECTS:
        having = [index for index in range(studies) if any(key in by_study[index] for by_study in rows.values())]
        alike = all(
            by_study[having[0]].get(key) == by_study[index].get(key) for by_study in rows.values() for index in having
        )
        for index in having[:1] if alike else having:
            heading = meaning if alike else f"{meaning}\n{_letter(index)}"
            columns.append((key, index))
            cells = [_aspect(by_study[index].get(key)) for by_study in rows.values()]
            least = max(map(len, [*heading.split("\n"), *cells]))
            table.add_column(heading, justify=_side(key), no_wrap=True, min_width=least)
    for concept, by_study in rows.items():
        table.add_row(concept, *(_aspect(by_study[index].get(key)) for key, index in columns))
    return table


def _tall(rows: Mapping[str, Sequence[Row]]) -> Table:
    """A line for each concept and study."""
    table = _table(MATCHES)
    for column in ("concept", "study"):
        table.add_column(column, no_wrap=True)
    for key, meaning in ASPECTS:
        table.add_column(meaning, justify=_side(key), no_wrap=True)
    for concept, by_study in rows.items():
        for index, row in enumerate(by_study):
            values = [_aspect(row.get(key)) for key, _ in ASPECTS]
            last = index == len(by_study) - 1
            table.add_row("" if index else concept, _letter(index), *values, end_section=last)
    return table


def _side(key: str) -> Any:
    return "left" if key.endswith("verdict") else "right"


def _spread(rows: Sequence[Row]) -> float:
    """How far apart studies are on one concept."""
    spread = 0.0
    for key in ("feature_auroc", "direction_auroc"):
        values = [row[key] for row in rows if row.get(key) is not None]
        spread = max(spread, max(values) - min(values)) if values else spread
    return spread


def _aspect(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return " ".join(SHORT.get(claim, claim) for claim in value.split(", "))
    return number(value) if isinstance(value, float) else str(value)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", show_edge=False, pad_edge=False)

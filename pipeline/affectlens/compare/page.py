"""A comparison as a page: what is marked, the main figures side by side, every concept in both, what was set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectlens.compare.differences import Comparison, Difference, Metric, Setting
from affectlens.compare.findings import Row, Value
from affectlens.compare.tables import HEADLINE, RULES, number, setting
from affectlens.report import draw, frame
from affectlens.report.draw import Chart, Marks
from affectlens.report.sentences import environment
from affectlens.report.tables import Cell, Column, Table, cell
from affectlens.results.figures import Series
from affectlens.results.format import MISSING, finite

SECTIONS = {
    "marked": "What differs",
    "figures": "Main figures",
    "concepts": "Concepts",
    "metrics": "All metrics",
    "settings": "What was set",
}
CHANCE = 0.05
"""Share of judged metrics that is marked where nothing differs."""
READS = {"direction_auroc": "directions", "feature_auroc": "best SAE features"}
"""Columns of a concept that are drawn, and what reads there."""
COLOURS = ("direction", "feature", "high", "low", "ink", "control")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")


def render(comparison: Comparison, *, theme: str = "auto") -> str:
    """The page.

    Args:
        comparison: of two studies or more; the first is what the others are held against.
        theme: ``auto`` follows the reader's system.

    Returns:
        The HTML; it opens from disk and asks for nothing. The same comparison gives the same bytes.
    """
    charts = [*_figures(comparison), *_concept_charts(comparison)]
    absent = {"concepts"} if not comparison.concepts else set()
    absent |= {"figures"} if not any(each.name == "figures" for each in charts) else set()
    names = [each.name for each in comparison.studies]
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    return frame.whole(
        environment(escape=True).from_string(template),
        charts,
        theme=theme,
        sections={name: heading for name, heading in SECTIONS.items() if name not in absent},
        comparison=comparison,
        names=names,
        charts=charts,
        judged=judged(comparison),
        marked=_marked(comparison),
        metrics=_metrics(comparison),
        concepts=_concepts(comparison),
        settings=[
            each
            for title, rows, key in (
                ("Set differently", comparison.settings, "settings"),
                ("Beside the settings", comparison.circumstances, "circumstances"),
            )
            if (each := _settings(title, rows, names, key))
        ],
        own_saes="sae" not in comparison.shared,
        rules=RULES[2:3].upper() + RULES[3:],
    )


def judged(comparison: Comparison) -> dict[str, float]:
    """How many differences could be judged, how many are marked, and how many would be where nothing differs."""
    known = [each for metric in comparison.metrics for each in metric.differences[1:] if each and each.rule != "none"]
    return {
        "judged": len(known),
        "marked": sum(bool(each.exceeds) for each in known),
        "expected": math.ceil(CHANCE * len(known)),
    }


def _marked(comparison: Comparison) -> Table:
    """What differs by more than its uncertainty, main figures first."""
    rows: list[Row] = [
        {"metric": metric, "study": study.name, "difference": difference, "values": (metric.values[0], value)}
        for metric in sorted(comparison.metrics, key=lambda each: (each.name not in HEADLINE, each.name))
        for study, value, difference in zip(
            comparison.studies[1:], metric.values[1:], metric.differences[1:], strict=True
        )
        if difference is not None and difference.exceeds
    ]
    first = comparison.studies[0].name
    columns = [
        Column("Metric", lambda row: _named(row["metric"])),
        *([Column("Study", lambda row: cell(row["study"]))] if len(comparison.studies) > 2 else []),
        Column(first, lambda row: _value(row["values"][0]), kind="numeric"),
        Column("Other" if len(comparison.studies) > 2 else comparison.studies[1].name,
               lambda row: _value(row["values"][1]), kind="numeric"),
        Column("Difference", lambda row: _difference(row["difference"]), kind="numeric"),
        Column("Rule", lambda row: cell(_rule(row["difference"]))),
    ]  # fmt: skip
    return _table("What differs by more than its uncertainty", columns, rows, "marked", open=True)


def _metrics(comparison: Comparison) -> Table:
    rows: list[Row] = [{"metric": metric} for metric in comparison.metrics]
    columns = [Column("Metric", lambda row: _named(row["metric"]))]
    for index, study in enumerate(comparison.studies):
        columns.append(Column(study.name, lambda row, at=index: _value(row["metric"].values[at]), kind="numeric"))
        if index:
            columns.append(
                Column("Difference", lambda row, at=index: _difference(row["metric"].differences[at]), kind="numeric")
            )
    return _table("All metrics, with 95% intervals", columns, rows, "metrics")


def _concepts(comparison: Comparison) -> Table:
    rows: list[Row] = [{"concept": concept, "of": each} for concept, each in comparison.concepts.items()]
    columns = [Column("Concept", lambda row: cell(row["concept"]))]
    several = len(comparison.studies) > 1
    for key, title in (("direction_auroc", "Direction reads"), ("feature_auroc", "Best feature reads")):
        for index, study in enumerate(comparison.studies):
            columns.append(
                Column(
                    f"{title}, {study.name}",
                    lambda row, k=key, at=index: _plain(row["of"][at].get(k)),
                    "AUROC within left-out topics",
                    "numeric",
                )
            )
        if several:
            columns.append(
                Column(
                    "Difference",
                    lambda row, k=key: _plain(_gap(row["of"], k), sign=True),
                    "last study minus first",
                    "numeric",
                )
            )
    for key, title in (("direction_verdict", "Direction causes"), ("feature_verdict", "Feature causes")):
        if any(key in each for of in comparison.concepts.values() for each in of):
            columns += [
                Column(f"{title}, {study.name}", lambda row, k=key, at=index: cell(row["of"][at].get(k)))
                for index, study in enumerate(comparison.studies)
            ]
    columns += [
        Column(f"Feature, {study.name}", lambda row, at=index: _index(row["of"][at].get("feature")), kind="numeric")
        for index, study in enumerate(comparison.studies)
    ]
    return _table("Concepts in every study", columns, rows, "concepts")


def _settings(title: str, settings: Sequence[Setting], names: Sequence[str], key: str) -> Table | None:
    if not settings:
        return None
    columns = [
        Column("Key", lambda row: cell(row["setting"].key)),
        *(
            Column(name, lambda row, at=index: cell(setting(row["setting"].values[at])))
            for index, name in enumerate(names)
        ),
    ]
    return _table(title, columns, [{"setting": each} for each in settings], key, open=True)


def _table(caption: str, columns: Sequence[Column], rows: Sequence[Row], name: str, **more: Any) -> Table:
    return Table(caption, columns, [[each.cell(row) for each in columns] for row in rows], name=name, **more)


def _named(metric: Metric) -> Cell:
    meaning = HEADLINE.get(metric.name)
    return Cell(f"{meaning[:1].upper()}{meaning[1:]} ({metric.name})" if meaning else metric.name, metric.name)


def _plain(value: Any, *, sign: bool = False) -> Cell:
    known = finite(value)
    return Cell(MISSING if known is None else number(known, sign=sign), known)


def _index(value: Any) -> Cell:
    return Cell(MISSING if value is None else str(value), finite(value))


def _value(value: Value | None) -> Cell:
    if value is None:
        return Cell(MISSING, None)
    text = number(value.value) + (f" [{number(value.low)}, {number(value.high)}]" if value.bounded else "")
    return Cell(text, value.value)


def _difference(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(MISSING, None)
    text = number(difference.value, sign=True)
    if not math.isnan(difference.low):
        text += f" [{number(difference.low, sign=True)}, {number(difference.high, sign=True)}]"
    return Cell(f"{text} *" if difference.exceeds else text, difference.value, title=_rule(difference))


def _rule(difference: Difference) -> str:
    if difference.rule == "paired":
        return f"{difference.concepts} concepts paired; 0 lies outside the interval" if difference.exceeds else "paired"
    return {"intervals": "the two intervals do not overlap" if difference.exceeds else "intervals"}.get(
        difference.rule, "no interval"
    )


def _gap(rows: Sequence[Row], key: str) -> float | None:
    first, last = finite(rows[0].get(key)), finite(rows[-1].get(key))
    return None if first is None or last is None else last - first


def _figures(comparison: Comparison) -> list[Chart]:
    """Main figures that are shares or AUROCs, a dot with its interval for every study."""
    chosen = [
        each
        for each in comparison.metrics
        if each.name in HEADLINE and all(value is None or 0 <= value.value <= 1 for value in each.values)
    ]
    if not chosen:
        return []
    order = [HEADLINE[each.name] for each in chosen]
    marks = []
    for index, study in enumerate(comparison.studies):
        values = [each.values[index] for each in chosen]
        low, high = ([finite(getattr(value, end)) if value else None for value in values] for end in ("low", "high"))
        series = Series(study.name, order, [value.value if value else None for value in values], low, high)
        marks.append(Marks(series, COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]))
    chart = draw.dots(marks, order, title="value, 0 to 1", zero=0.5, row=30)
    said = (
        f"Dots with 95% intervals: {len(order)} main figures in {len(marks)} studies, as in the table of all metrics."
    )
    caption = "Main figures of the studies with their 95% intervals. The dashed line is one half."
    return [Chart(chart.spec, chart.wide, "figures", said, caption)]


def _concept_charts(comparison: Comparison) -> list[Chart]:
    """For every other study and what reads: each concept's AUROC in the first study and in that one."""
    first, made = comparison.studies[0], []
    for index, study in enumerate(comparison.studies[1:], start=1):
        for place, (key, what) in enumerate(READS.items()):
            pairs = _pairs(comparison.concepts, key, index)
            if not pairs:
                continue
            colour, symbol = COLOURS[place], SYMBOLS[place]
            higher = sum(b > a for a, b in pairs.values())
            notes = [f"{name}\n{first.name} {a:.3f}, {study.name} {b:.3f}" for name, (a, b) in pairs.items()]
            series = Series("", [a for a, _ in pairs.values()], [b for _, b in pairs.values()], labels=notes)
            low = min(min(pair) for pair in pairs.values()) - 0.03
            diagonal = draw.rule("x", low) | {"x1": 1.02, "y0": low, "y1": 1.02, "yref": "y"}
            chart = draw.points(
                [Marks(series, colour, symbol)],
                x=draw.label(f"AUROC in {first.name}"),
                y=draw.label(f"AUROC in {study.name}"),
                height=430,
                wide=300,
                room=(45, 20),
                avoid=[(at, at) for step in range(81) for at in [low + step * (1.02 - low) / 80]],
                xaxis={"range": [low - 0.15 * (1.02 - low), 1.02]},
                yaxis={"range": [low, 1.04]},
                shapes=[diagonal],
            )
            caption = (
                f"How well {what} read each concept. Above the dashed line {study.name} reads better: {higher} of "
                f"{len(pairs)} concepts."
            )
            said = f"Scatter plot of {len(pairs)} concepts: AUROC of {what} in {first.name} and in {study.name}."
            made.append(Chart(chart.spec, chart.wide, f"concepts-{index}-{key.removesuffix('_auroc')}", said, caption))
    return made


def _pairs(concepts: Mapping[str, Sequence[Row]], key: str, index: int) -> dict[str, tuple[float, float]]:
    found = {}
    for concept, rows in concepts.items():
        a, b = finite(rows[0].get(key)), finite(rows[index].get(key))
        if a is not None and b is not None:
            found[concept] = (a, b)
    return found

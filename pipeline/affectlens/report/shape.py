"""The shape of the concept space beside other shapes: published clusters, other layers, and word counts."""

from __future__ import annotations

from typing import Any

from affectlens.report import marks
from affectlens.report.evidence import Evidence
from affectlens.report.finding import Finding
from affectlens.report.marks import Chart
from affectlens.report.numbers import MISSING, NOT_SHOWN, finite, number, p_value, plural
from affectlens.report.tables import Cell, Column, Table, word

CLEAR = 0.05


def layer_heat(evidence: Evidence) -> Chart:
    """Agreement of the similarities between concepts at every two layers."""
    found = evidence.geometry.get("layers", [])
    layers = sorted({row[end] for row in found for end in ("a", "b")})
    value = {(row["a"], row["b"]): row["value"] for row in found}
    names = [f"layer {layer}" for layer in layers]
    cells = [[1.0 if a == b else value.get((min(a, b), max(a, b))) for b in layers] for a in layers]
    return marks.heat("geometry-layers", cells, names, names, "agreement of similarities", 1.0)


def clusters(evidence: Evidence) -> Table:
    """Which concepts fall together, and where the published clusters put them."""
    found: dict[str, Any] = evidence.geometry.get("clusters", {})
    published = found.get("published", {})
    columns = [
        Column("Concept"),
        Column("Group", "k-means on the directions, as many groups as published clusters are studied", True),
        Column("Published cluster", "Sofroniew et al. 2026"),
    ]
    rows = [
        [word(concept), Cell(str(group + 1), float(group)), word(published.get(concept, MISSING))]
        for concept, group in sorted(found.get("groups", {}).items(), key=lambda item: (item[1], item[0]))
    ]
    return Table("clusters", "Groups of concepts, and the published clusters", columns, rows)


def finding(evidence: Evidence) -> Finding:
    """Whether the groups of concepts are the published ones, and the same as those of words."""
    title = "The shape beside other shapes"
    rand = evidence.geometry.get("clusters", {}).get("rand", {})
    words = evidence.geometry.get("vocabulary", {})
    if finite(rand.get("value")) is None:
        return Finding("geometry", title, f"Whether the published clusters return is {NOT_SHOWN}.", "not shown")
    clear = float(rand["p"]) <= CLEAR
    text = (
        f"Grouped by their directions, {plural(int(evidence.geometry['clusters'].get('n', 0)), 'concept')} agree with "
        f"the published clusters at an adjusted Rand index of {number(rand['value'])} (names shuffled: at most "
        f"{number(rand.get('null_95'))} in 95% of the draws; p = {p_value(rand['p'])})"
        + ("." if clear else ": not shown.")
    )
    same, own = words.get("similarity", {}), words.get("clusters", {})
    if finite(same.get("value")) is not None:
        text += (
            f" Word counts of the same stories give a similarity structure that correlates with it at "
            f"{number(same['value'])} (p = {p_value(same.get('p'))})"
        )
        text += f" and a Rand index of {number(own['value'])}." if finite(own.get("value")) is not None else "."
    lowest = min((row for row in evidence.geometry.get("layers", [])), key=lambda row: row["value"], default=None)
    more = ""
    if lowest is not None:
        more = (
            "The similarities between concepts stay alike from layer to layer: the least agreement is "
            f"{number(lowest['value'])}, between layers {lowest['a']} and {lowest['b']}."
        )
    return Finding("geometry", title, text, "shown" if clear else "not shown", more)

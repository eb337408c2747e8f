"""Words or meaning: pairs of texts made of the same words, and what else than the concept might be read."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import Any

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, marks
from affectlens.report.evidence import BASELINE, FEATURE, SIGNIFICANT, Evidence, Row, Rows
from affectlens.report.registry import Said, figure, finding
from affectlens.report.tables import Heading, Table
from affectlens.results.format import finite

READ = {"mean": "mean of all tokens", "last": "last token", "max": "largest value", "text": "words"}
READ |= {"elicited": "about to name the feeling"}
SETS = {
    ("written", "all"): "written one by one",
    ("templates", "all"): "filled templates",
    ("templates", "solved"): "the tested half of the templates whose other half the model's own answer tells apart",
}
WITHOUT = "without telling words"
CEILING = "own log-probabilities"
DRAWN = (
    CEILING,
    f"valence of {CEILING}",
    BASELINE,
    f"valence of {BASELINE}",
    FEATURE,
    "probe trained on pairs",
    "TF-IDF",
)
"""Methods in the figure; the table has them all."""


def _headline(evidence: Evidence) -> Rows:
    """The pairs that can show most: of templates that the model's own answer solves, else all templates, else all."""
    rows = _pairs(evidence)
    for chosen in (("templates", "solved"), ("templates", "all"), ("written", "all")):
        if found := [row for row in rows if (row["set"], row["scope"]) == chosen]:
            return Rows.like(rows, found)
    return Rows.like(rows, [])


def _pairs(evidence: Evidence) -> Rows:
    """Every reading of the pairs, with its name and what it tells apart by device."""

    def key(row: Row) -> tuple[Any, ...]:
        return row["set"], row["scope"], row["layer"], row["method"], row["read"]

    devices = {key(row): row["devices"] for row in evidence.cards.get("compare", {}).get("pairs", ())}
    named = []
    for row in evidence.rows("compare/pairs"):
        read = READ.get(row["read"], row["read"])
        layer = "" if row["layer"] is None else f", layer {row['layer']:.0f}"
        named.append(
            {**row, "read": read, "name": f"{row['method']}{layer} · {read}", "devices": devices.get(key(row), {})}
        )
    return Rows.like(evidence.rows("compare/pairs"), named)


@figure("meaning", "compare/pairs")
def meaning_pairs(evidence: Evidence) -> Chart:
    """Dot plot: share of same-words pairs that each method tells apart, with 95% intervals."""
    found = [row for row in _headline(evidence) if row["method"] in DRAWN]
    # The layer of the study, where the features are read, and the last one; the table has those between.
    layers = [row["layer"] for row in found if row["layer"] is not None]
    own = [row["layer"] for row in found if row["method"] == FEATURE]
    rows = [row for row in found if row["layer"] in {None, max(layers, default=None), *own}]
    sae = ["SAE" in row["method"] for row in rows]
    colours, symbols = ["feature" if each else "direction" for each in sae], ["diamond" if e else "circle" for e in sae]
    one = marks("Pairs told apart", rows, "accuracy", colours, symbols, at="name")
    return draw.dots([one], title="Share of pairs told apart rightly", zero=0.5, limits=[0, 1])


@figure("meaning", "compare/pairs")
def pairs(evidence: Evidence) -> Table:
    """Same-words pairs by method, with the device that makes the difference."""
    rows = _pairs(evidence)
    columns: dict[str, Heading] = {"set": "Pairs", "scope": "Which", "method": "Method", "layer": "Layer"}
    columns |= {
        "read": "Read at",
        "accuracy": "Told apart",
        "low": ("95% interval", "Score interval; templates, or pairs of concepts, are the sample"),
        "p": "p",
        "p_max": "p, all readings",
    }
    devices = sorted({device for row in rows for device in row["devices"]})
    columns |= {each: (each.capitalize(), f"Pairs that differ by {each} alone") for each in devices}
    apart = [{**dict.fromkeys(devices), **row, **row["devices"]} for row in rows]
    return tables.table("Same-words pairs", Rows.like(rows, apart), columns)


@figure("meaning", "compare/confounds")
def confounds(evidence: Evidence) -> Table:
    """Per concept what else tells its stories from the others."""
    columns: dict[str, Heading] = {"concept": "Concept"}
    for method, title in ((BASELINE, "Direction"), (FEATURE, "Feature")):
        columns[method] = title, "AUROC within left-out topics"
        columns[f"{method}, {WITHOUT}"] = f"{title}, no words", "The same without the tokens of the most telling words"
    columns |= {"auroc_topic_alone": "Topic alone", "best_word": "Best word", "auroc_best_word": "AUROC of the word"}
    columns |= {"share_beyond_affect": "Beyond affect", "confounded": "Confounded by"}
    methods = (BASELINE, f"{BASELINE}, {WITHOUT}", FEATURE, f"{FEATURE}, {WITHOUT}")
    areas = {method: evidence.aurocs(method) for method in methods}
    rows = evidence.rows("compare/confounds")
    beside = [{**row, **{method: areas[method].get(row["concept"]) for method in methods}} for row in rows]
    return tables.table("What else might be read", Rows.like(rows, beside), columns)


@finding("meaning")
def beyond_words(evidence: Evidence) -> Said:
    """Whether some reading tells same-words pairs apart, its p allowing for all; and whether the model itself does."""
    rows = [row for row in _headline(evidence) if finite(row["accuracy"]) is not None]
    searched = [row for row in rows if finite(row["p_max"]) is not None]
    if not searched:
        return "not shown", {"best": None}
    best = max(searched, key=lambda row: row["accuracy"])
    ceilings = [row for row in rows if row["method"] in (CEILING, f"valence of {CEILING}")]
    ceiling = max(ceilings, key=lambda row: row["accuracy"], default=None)
    solves = bool(ceiling and ceiling["accuracy"] > 0.5 and ceiling["p"] <= SIGNIFICANT)
    better = best["p_max"] <= SIGNIFICANT and best["accuracy"] > 0.5
    values = {"best": best, "better": better, "total": len(searched), "ceiling": ceiling, "solves": solves}
    return "shown" if better else "not shown", values | {"set": SETS[best["set"], best["scope"]]}


@finding("meaning")
def explained(evidence: Evidence) -> Said:
    """Which concepts' detection topic or words explain."""
    rows = evidence.rows("compare/confounds")
    marked = [row for row in rows if row["confounded"]]
    reasons = Counter(reason for row in marked for reason in row["confounded"].split(", "))
    areas = [evidence.aurocs(name).values() for name in (BASELINE, f"{BASELINE}, {WITHOUT}")]
    whole, rest = (fmean(each) if each else None for each in areas)
    values = {"whole": whole, "rest": rest, "marked": [row["concept"] for row in marked]}
    badge = "not shown" if not rows or not evidence.reads else "partly shown" if reasons else "shown"
    return badge, values | {"rows": rows, "reasons": reasons.most_common()}

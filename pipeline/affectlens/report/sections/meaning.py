"""Words or meaning: pairs of texts made of the same words, and what else than the concept might be read."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, marks
from affectlens.report.evidence import BASELINE, FEATURE, SIGNIFICANT, Evidence, Rows
from affectlens.report.registry import Said, figure, finding, graded
from affectlens.report.tables import Heading, Table
from affectlens.results.format import finite
from affectlens.stats import holm

READ = {"mean": "mean of all tokens", "last": "last token", "max": "largest value", "text": "words"}
WITHOUT = "without telling words"


def _pairs(evidence: Evidence) -> Rows:
    """Every reading of the pairs, with its name and what it tells apart by device."""
    devices = {
        (row["layer"], row["method"], row["read"]): row["devices"]
        for row in evidence.cards.get("compare", {}).get("pairs", ())
    }
    named = []
    for row in evidence.rows("compare/pairs"):
        read = READ.get(row["read"], row["read"])
        layer = "" if row["layer"] is None else f", layer {row['layer']:.0f}"
        apart = devices.get((row["layer"], row["method"], row["read"]), {})
        named.append({**row, "read": read, "name": f"{row['method']}{layer} · {read}", "devices": apart})
    return Rows.like(evidence.rows("compare/pairs"), named)


@figure("meaning", "compare/pairs")
def meaning_pairs(evidence: Evidence) -> Chart:
    """Dot plot: share of same-words pairs that each method tells apart at each layer, with 95% intervals."""
    rows = _pairs(evidence)
    sae = ["SAE" in row["method"] for row in rows]
    colours, symbols = ["feature" if each else "direction" for each in sae], ["diamond" if e else "circle" for e in sae]
    one = marks("Pairs told apart", rows, "accuracy", colours, symbols, at="name")
    return draw.dots([one], title="Share of pairs told apart rightly", zero=0.5, limits=[0, 1])


@figure("meaning", "compare/pairs")
def pairs(evidence: Evidence) -> Table:
    """Same-words pairs by method, with the device that makes the difference."""
    rows = _pairs(evidence)
    columns: dict[str, Heading] = {"method": "Method", "layer": "Layer", "read": "Read at"}
    columns |= {"accuracy": "Told apart", "low": "95% interval", "p": "p"}
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
    """How many readings tell same-words pairs apart; any could have come out on top, so all are corrected for."""
    rows = [row for row in _pairs(evidence) if row["method"] != "TF-IDF" and finite(row["p"]) is not None]
    if not rows:
        return "not shown", {"best": None}
    import numpy as np

    p = holm(np.array([row["p"] for row in rows]))
    better = sum(bool(each <= SIGNIFICANT and row["accuracy"] > 0.5) for each, row in zip(p, rows, strict=True))
    best = max(rows, key=lambda row: row["accuracy"])
    return graded(better, len(rows)), {"best": best, "better": better, "total": len(rows)}


@finding("meaning")
def explained(evidence: Evidence) -> Said:
    """Which concepts' detection topic or words explain."""
    rows = evidence.rows("compare/confounds")
    marked = [row for row in rows if row["confounded"]]
    reasons = Counter(reason for row in marked for reason in row["confounded"].split(", "))
    areas = [evidence.aurocs(name).values() for name in (BASELINE, f"{BASELINE}, {WITHOUT}")]
    whole, rest = (fmean(each) if each else None for each in areas)
    values = {"whole": whole, "rest": rest, "marked": [row["concept"] for row in marked]}
    badge = "not shown" if not rows else "partly shown" if reasons else "shown"
    return badge, values | {"rows": rows, "reasons": reasons.most_common()}

"""Which directions and features read their concepts, and which of the two does it better."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from affectlens.report import draw
from affectlens.report.draw import Chart, marks
from affectlens.report.evidence import BASELINE, FEATURE, Evidence, Row
from affectlens.report.registry import Said, figure, finding, standing, table
from affectlens.results.format import finite

AUROC = "AUROC within left-out topics"
GATES = {"named": "Names the concept", "short": "Short", "long": "Long", "duplicates": "Duplicates"}
GATES |= {"shared_runs": "Shared runs"}

table("texts", "corpus/quality", "Texts and findings of the quality gates",
      {"concept": "Concept", "texts": "Texts", "mean_words": "Words per text", **GATES})  # fmt: skip


@figure("directions", "directions/concepts")
def directions_auroc(evidence: Evidence) -> Chart:
    """Dot plot: AUROC of each concept's direction with its 95% interval."""
    rows = draw.ranked(evidence.rows("directions/concepts"), "auroc_test")
    return draw.dots([marks("Direction", rows, "auroc_test", "direction")], title=AUROC, zero=0.5)


table("directions", "directions/concepts", "Directions within left-out topics",
      {"concept": "Concept", "auroc_test": "AUROC", "low": "95% interval", "neutral_energy": "Removed",
       "words": "Logit-lens words"})  # fmt: skip


@figure("layers", "directions/layers")
def directions_layers(evidence: Evidence) -> Chart | None:
    """Line chart: mean AUROC of the directions within left-out topics at each layer that was read."""
    rows = [row for row in evidence.rows("directions/layers") if row["method"] == BASELINE]
    rows.sort(key=lambda row: row["layer"])
    if len(rows) < 2:
        return None
    line = marks("Difference of means", rows, "auroc_test", "direction", at="layer")
    layout: dict[str, Any] = {"yaxis": {"range": draw.reach([1.0, *(row["low"] for row in rows)], around=0.5)}}
    layout |= {"xaxis": {"dtick": 1}} if rows[-1]["layer"] < 13 else {}
    rules = [draw.rule("x", evidence.layer), draw.rule("y", 0.5)]
    return draw.lines("line", [line], "Layer (0 = after the first block)", "Mean AUROC", shapes=rules, **layout)


table("layers", "directions/massive", "Massive dimensions",
      {"layer": "Layer", "dimension": "Dimension", "ratio": "Times the median", "norm": "Of the squared norm",
       "variance": "Of the variance", "removed": "Taken out"})  # fmt: skip


@figure("features", "match/concepts", heading="Which feature for which concept")
def features_auroc(evidence: Evidence) -> Chart:
    """Dot plot: AUROC of each concept's best SAE feature with interval, beside random SAE and direction."""
    rows = draw.ranked(evidence.rows("match/concepts"), "auroc_test")
    directions = evidence.by_concept("directions/concepts")
    both = [directions[row["concept"]] for row in rows if row["concept"] in directions]
    thick = {"line": {"width": 2.5, "color": "var(--control)"}}
    noise = marks(
        "Best random-SAE feature", rows, "auroc_random_sae", "control", "line-ns-open", 11, spread=False, marker=thick
    )
    ring = marks("Direction", both, "auroc_test", "direction", "circle-open", spread=False)
    best = marks("Best SAE feature", rows, "auroc_test", "feature", "diamond")
    return draw.dots([noise, ring, best], title=AUROC, zero=0.5)


table("features", "match/concepts", "The best SAE feature of each concept",
      {"concept": "Concept", "feature": "Feature", "auroc_test": "AUROC", "low": "95% interval",
       "auroc_selection": "On choosing", "auroc_random_sae": "Random SAE", "p_adjusted": "p, corrected",
       "words": "Logit-lens words"})  # fmt: skip


@figure("methods", "compare/detection")
def methods_auroc(evidence: Evidence) -> Chart:
    """Dot plot: mean AUROC of each detection method with its interval, and of each concept behind it."""
    rows, one = draw.ranked(evidence.rows("compare/detection"), "mean"), evidence.rows("compare/readouts")
    note, faint = (lambda row: row["concept"]), {"opacity": 0.6}
    single = marks("One concept", one, "auroc", "control", size=5, at="method", spread=False, note=note, marker=faint)
    colours = ["feature" if "SAE" in row["method"] else "direction" for row in rows]
    mean = marks("Mean and 95% interval", rows, "mean", colours, size=11, at="method")
    return draw.dots([single, mean], mean.series.x, title=AUROC, zero=0.5, row=36)


table("methods", "compare/detection", "Detection within the same left-out topics",
      {"method": "Method", "mean": "Mean AUROC", "low": "95% interval", "difference": "Difference",
       "concepts_better": "Better", "concepts_worse": "Worse"})  # fmt: skip


@figure("methods", "compare/readouts", narrow=True)
def methods_duel(evidence: Evidence) -> Chart:
    """Scatter plot: AUROC of direction and best SAE feature, one mark a concept."""

    def note(row: Row) -> str:
        return f"{row['concept']}\ndirection {row['direction']:.3f}, feature {row['feature']:.3f}"

    rows = [{"concept": c, "direction": a, "feature": b} for c, (a, b) in evidence.paired().items()]
    left, bottom = (min([row[side] for row in rows] or [0.5]) - 0.03 for side in ("direction", "feature"))
    start = max(left, bottom)
    diagonal = draw.rule("x", start) | {"x1": 1.02, "y0": start, "y1": 1.02, "yref": "y"}
    one = marks("", rows, "feature", "feature", "diamond", at="direction", spread=False, note=note)
    return draw.points(
        [one],
        x="AUROC of the direction",
        y="AUROC of the best SAE feature",
        height=480,
        wide=320,
        room=(75, 24),
        avoid=[(at, at) for step in range(81) for at in [start + step * (1.02 - start) / 80]],
        xaxis={"range": [left, 1.02]},
        yaxis={"range": [bottom, 1.04]},
        shapes=[diagonal],
    )


@finding("directions")
def directions_read(evidence: Evidence) -> Said:
    """Whether directions read the concepts of left-out topics."""
    auroc, tally = evidence.metric("directions", "auroc_test"), evidence.read_by_direction
    rows = draw.ranked([row for row in evidence.rows("directions/concepts") if finite(row["auroc_test"])], "auroc_test")
    badge = standing(tally) if evidence.reads else "not shown"
    return badge, {"auroc": auroc, "tally": tally, "rows": rows}


@finding("methods")
def vocabulary(evidence: Evidence) -> Said:
    """Whether reading stories needs more than their words."""
    own, detection = evidence.method(BASELINE), evidence.rows("compare/detection")
    lowest = next((row["method"] for row in detection if row["method"].startswith(f"{BASELINE}, layer ")), "")
    names = {"TF-IDF": "word counts (TF-IDF)", lowest: f"directions at {lowest.removeprefix(f'{BASELINE}, ')}"}
    rivals = [(names[row["method"]], row) for row in detection if row["method"] in names and finite(row["mean"])]
    if not rivals or finite(own.get("mean")) is None:
        return "not shown", {"rivals": []}
    clear = (own["low"] or own["mean"]) > max(row["high"] or row["mean"] for _, row in rivals)
    return "shown" if clear else "not shown", {"rivals": rivals, "own": own, "clear": clear}


@finding("features")
def trained(evidence: Evidence) -> Said:
    """Whether single SAE features match concepts, and better than those of a random SAE."""
    gap, tally = evidence.metric("match", "difference"), evidence.read_by_feature
    better = gap[1] is not None and gap[1] > 0
    return standing(tally) if better else "not shown", {"gap": gap, "better": better, "tally": tally}


@finding("methods")
def comparison(evidence: Evidence) -> Said:
    """Which of the two reads better, by the paired difference, and that the other one loses."""
    pairs, row = evidence.paired(), evidence.method(FEATURE)
    gain = {concept: feature - direction for concept, (direction, feature) in pairs.items()}
    lost = sorted((concept for concept in gain if gain[concept] < 0), key=lambda concept: gain[concept])
    won = sorted((concept for concept in gain if gain[concept] > 0), key=lambda concept: -gain[concept])
    tied = [concept for concept in gain if gain[concept] == 0]
    difference, low, high = (finite(row.get(f"difference{end}")) for end in ("", "_low", "_high"))
    means = [fmean(side) for side in zip(*pairs.values(), strict=True)]
    clear = (low is not None and low > 0) or (high is not None and high < 0)
    values = {"pairs": pairs, "means": means, "lost": lost, "won": won, "tied": tied}
    badge = "not shown" if not clear else "partly shown" if lost and won else "shown"
    return badge, values | {"difference": (difference, low, high)}

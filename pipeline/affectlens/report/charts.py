"""The figures of the page, one function each, from the evidence to a plotly specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from affectlens.report import marks
from affectlens.report.evidence import VECTORS, Evidence
from affectlens.report.marks import DIVERGING, SYMBOL, Chart, label
from affectlens.report.numbers import finite, general, number, p_value


def direction_dots(evidence: Evidence) -> Chart:
    """AUROC of every direction with its interval."""
    rows = marks.ranked(evidence.directions, "auroc_test")
    trace = marks.dots(rows, "auroc_test", "direction", "Direction", "AUROC")
    return marks.dot_plot(
        "directions-auroc",
        [trace],
        [row["concept"] for row in rows],
        title="AUROC within left-out topics",
        zero=0.5,
        words="Dot plot: AUROC within left-out topics of each concept's direction with its 95% interval.",
    )


def layer_sweep(evidence: Evidence) -> Chart:
    """Mean AUROC of difference of means against layer."""
    rows = sorted(evidence.sweep, key=lambda row: row["layer"])
    layers = [row["layer"] for row in rows]
    line = {
        **marks.line("Difference of means", layers, [row.get("auroc_test") for row in rows], "direction"),
        "error_y": marks.bars(rows, "auroc_test", "direction"),
    }
    layout = marks.layout(
        xaxis=marks.axis("Layer (0 = after the first block)", dtick=1 if len(layers) < 2 or max(layers) < 13 else None),
        yaxis=marks.axis("Mean AUROC", range=marks.reach([1.0, *(row.get("low") for row in rows)], around=0.5)),
    )
    layout["shapes"] = [marks.rule("x", evidence.layer), marks.rule("y", 0.5)]
    words = "Line chart: mean AUROC of the directions within left-out topics at each layer that was read."
    return marks.chart("directions-layers", [line], layout, 340, words)


def density_bars(evidence: Evidence) -> Chart:
    """How many features are active on which share of the held-out tokens."""
    health = evidence.health
    found = health.get("density_histogram", {})
    edges, features = found.get("edges", []), found.get("features", [])
    names = ["never", *(f"up to {general(100 * edge)}%" for edge in edges[1:])]
    dead = finite(health.get("dead_share"))
    values = [None if dead is None else round(dead * evidence.features), *features]
    trace = {
        "type": "bar",
        "x": names[: len(values)],
        "y": values[: len(names)],
        "hovertemplate": "%{x} of tokens: %{y} features<extra></extra>",
        "marker": {"color": ["var(--control)", *["var(--feature)"] * len(features)]},
    }
    layout = marks.layout(xaxis=marks.axis("Share of tokens on which it is active"), yaxis=marks.axis("Features"))
    layout["xaxis"]["type"] = "category"
    layout["bargap"] = 0.35
    words = "Bar chart: number of SAE features by the share of held-out tokens on which they are active."
    return marks.chart("features-density", [trace], layout, 280, words)


def feature_dots(evidence: Evidence) -> Chart:
    """Per concept: best feature with interval, best random-SAE feature, and the direction."""
    rows = marks.ranked(evidence.match, "auroc_test")
    directions = evidence.by_concept(evidence.directions)
    both = [directions[row["concept"]] for row in rows if row["concept"] in directions]
    noise = marks.dots(rows, "auroc_random_sae", "control", "Best random-SAE feature", "AUROC", spread=False)
    noise["marker"] |= {"symbol": "line-ns-open", "size": 11, "line": {"width": 2.5, "color": "var(--control)"}}
    other = marks.dots(both, "auroc_test", "direction", "Direction", "AUROC", spread=False)
    other["marker"] |= {"symbol": "circle-open", "line": {"width": 1.8, "color": "var(--direction)"}}
    best = marks.dots(rows, "auroc_test", "feature", "Best SAE feature", "AUROC")
    return marks.dot_plot(
        "features-auroc",
        [noise, other, best],
        [row["concept"] for row in rows],
        title="AUROC within left-out topics",
        zero=0.5,
        words="Dot plot: AUROC of each concept's best SAE feature with interval, beside random SAE and direction.",
    )


def method_dots(evidence: Evidence) -> Chart:
    """Every way of detecting, side by side: the mean with its interval, and the concepts behind it."""
    rows = sorted(evidence.detection, key=lambda row: -(finite(row.get("mean")) or -1))
    each = [(row["method"], concept, value) for row in rows for concept, value in row.get("per_concept", {}).items()]
    concepts = {
        "type": "scatter",
        "mode": "markers",
        "name": "One concept",
        "x": [value for _, _, value in each],
        "y": [label(method) for method, _, _ in each],
        "text": [label(concept) for _, concept, _ in each],
        "hovertemplate": "%{text}: %{x:.3f}<extra>%{y}</extra>",
        "marker": {"color": "var(--control)", "size": 6, "opacity": 0.38},
    }
    named = [{**row, "concept": row["method"]} for row in rows]
    mean = marks.dots(named, "mean", "ink", "Mean and 95% interval", "AUROC")
    mean["marker"] |= {
        "color": ["var(--feature)" if "SAE" in row["method"] else "var(--direction)" for row in rows],
        "size": 11,
    }
    return marks.dot_plot(
        "methods-auroc",
        [concepts, mean],
        [row["method"] for row in rows],
        title="AUROC within left-out topics",
        zero=0.5,
        row=40,
        words="Dot plot: mean AUROC of each detection method with its interval, and of each concept behind it.",
    )


def duel(evidence: Evidence) -> Chart:
    """Each concept's feature against its direction: below the diagonal the feature loses."""
    pairs = evidence.paired_detection()
    left, bottom = (min([pair[side] for pair in pairs.values()] or [0.5]) - 0.03 for side in (0, 1))
    layout = marks.layout(
        xaxis=marks.axis("AUROC of the direction", range=[left, 1.02]),
        yaxis=marks.axis("AUROC of the best SAE feature", range=[bottom, 1.04]),
    )
    start = max(left, bottom)
    layout["shapes"] = [
        {"type": "line", "x0": start, "y0": start, "x1": 1.02, "y1": 1.02, "layer": "below"}
        | {"line": {"color": "var(--soft)", "width": 1.2, "dash": "dash"}}
    ]
    layout["annotations"] = [
        marks.note("below the line: the feature loses", 0.02, 0.03, "left", "bottom"),
        marks.note("above the line: the direction loses", 0.02, 0.94, "left", "top"),
    ]
    said = [f"direction {number(a, 3)}, feature {number(b, 3)}" for a, b in pairs.values()]
    marker = {"color": "var(--feature)", "symbol": "diamond", "size": 9, "opacity": 0.9}
    trace = _points(pairs, list(pairs), label_sides(pairs, room=(75, 24)), marker, said)
    words = "Scatter plot: AUROC of direction and best SAE feature, one mark a concept."
    return marks.chart("methods-duel", [trace], layout, 480, words, wide=420)


def cosine_dots(evidence: Evidence) -> Chart:
    """Cosine of each concept's feature with its direction, beside the upper end of the null."""
    rows = marks.ranked(evidence.comparison, "cosine")
    null = {
        **marks.bands(rows, lambda row: (0.0, row.get("cosine_null_95")), "Below 95% of the null"),
        "hoverinfo": "skip",
    }
    closest = marks.dots(rows, "closest_cosine", "direction", "Closest feature of all", "cosine", spread=False)
    closest["marker"] |= {"symbol": "diamond-open", "line": {"width": 1.6, "color": "var(--direction)"}}
    own = marks.dots(rows, "cosine", "feature", "Best-matching feature", "cosine", spread=False)
    return marks.dot_plot(
        "agreement-cosines",
        [null, closest, own],
        [row["concept"] for row in rows],
        title="Cosine with the direction",
        zero=0.0,
        words="Dot plot: cosine between decoder row and direction for each concept, with the 95% point of the null.",
    )


def concept_map(evidence: Evidence) -> Chart:
    """The concepts on the first two principal components, coloured by rated valence."""
    places = {
        concept: (finite(place[0]), finite(place[1]))
        for concept, place in evidence.geometry.get("coordinates", {}).items()
        if len(place) > 1
    }
    points = {concept: (x, y) for concept, (x, y) in places.items() if x is not None and y is not None}
    ratings = evidence.geometry.get("ratings", {})
    rated = [c for c in points if finite(ratings.get(c, {}).get("valence")) is not None]
    unrated = [c for c in points if c not in rated]
    sides = label_sides(points)
    traces = []
    if unrated:
        marker = {"color": "var(--control)", "symbol": "circle-open", "size": 10, "line": {"width": 2}}
        traces.append(_points(points, unrated, sides, marker, ["no rating"] * len(unrated)))
    valence = [ratings[c]["valence"] for c in rated]
    marker = {"color": valence, "colorscale": DIVERGING, "cmid": 5, "size": 12, "colorbar": marks.colour_bar("Valence")}
    marker |= {"line": {"color": "var(--axis)", "width": 1}}
    said = [f"valence {number(ratings[c]['valence'])}, arousal {number(ratings[c].get('arousal'))}" for c in rated]
    traces.append(_points(points, rated, sides, marker, said))
    shares = [finite(share) for share in evidence.geometry.get("variance", [])]
    titles = [
        f"Component {index + 1}" + (f" ({100 * share:.0f}% of the variance)" if share is not None else "")
        for index, share in enumerate((*shares[:2], *[None] * (2 - len(shares[:2]))))
    ]
    layout = marks.layout(xaxis=marks.axis(titles[0], zeroline=True), yaxis=marks.axis(titles[1], zeroline=True))
    layout["dragmode"] = "pan"
    for axis in ("xaxis", "yaxis"):
        layout[axis]["fixedrange"] = False
    return marks.chart(
        "geometry-map",
        traces,
        layout,
        540,
        "Scatter plot: concepts on the first two principal components of the directions, coloured by valence.",
        wide=520,
    )


def correlation_dots(evidence: Evidence) -> Chart:
    """Correlation of components with ratings and with story length."""
    rows = list(evidence.geometry.get("correlations", []))
    rows += [{**row, "rating": "story length"} for row in evidence.geometry.get("length_correlation", [])]
    named = [{**row, "concept": f"PC {row['component']} · {row['rating']}"} for row in rows]
    named.sort(key=lambda row: (list(dict.fromkeys(r["rating"] for r in rows)).index(row["rating"]), row["component"]))
    trace = marks.dots(named, "r", "ink", "Correlation and 95% interval", "r")
    return marks.dot_plot(
        "geometry-correlations",
        [trace],
        [row["concept"] for row in named],
        title="Pearson r over concepts",
        zero=0.0,
        limits=[-1.05, 1.05],
        row=28,
        words="Dot plot: correlation of principal components with valence, arousal and story length, with intervals.",
    )


def cosine_heat(evidence: Evidence) -> Chart:
    """Cosines between all directions."""
    order = evidence.geometry.get("order", list(evidence.concepts))
    return marks.heat("geometry-cosines", evidence.geometry.get("cosines", []), order, order, "cosine", 1.0)


def effect_dots(evidence: Evidence, vector: str, operation: str) -> Chart:
    """Effect of one intervention on each concept's own words, against the band of its controls.

    The charts of directions and features have the same order and scale, so that they can be compared.
    """
    both = {each: evidence.effect_rows(each, operation) for each in VECTORS}
    order = [row["concept"] for row in marks.ranked(list(both["direction"].values()), "effect")]
    order += [concept for concept in both["feature"] if concept not in order]
    rows = [both[vector][concept] for concept in order if concept in both[vector]]
    traces = [marks.bands(rows, lambda row: (row.get("control_mean"), row.get("control_max")), "Controls")]
    for beyond, name in ((True, "Beyond all controls"), (False, "Not beyond")):
        mine = [row for row in rows if (row.get("above_controls") is True) == beyond]
        dots = marks.dots(mine, "effect", vector, name, "effect")
        dots["marker"]["symbol"] = SYMBOL[vector] + ("" if beyond else "-open")
        dots["text"] = [
            f"{text}<br>controls: mean {number(row.get('control_mean'))}, largest {number(row.get('control_max'))}"
            f"<br>p = {p_value(row.get('p_adjusted'))}, corrected ({p_value(row.get('p'))} before)"
            for text, row in zip(dots["text"], mine, strict=True)
        ]
        traces.append(dots)
    ends = ("effect", "low", "high", "control_mean", "control_max")
    return marks.dot_plot(
        f"causal-{operation}-{vector}",
        traces,
        order,
        title="Rise of the concept's words (nats)" if operation == "inject" else "Fall of the concept's words (nats)",
        zero=0.0,
        limits=marks.reach(
            [row.get(end) for found in both.values() for row in found.values() for end in ends], around=0
        ),
        words=f"Dot plot: effect of the intervention ({operation} {vector}) on each concept's words, against controls.",
    )


def effect_heat(evidence: Evidence, vector: str) -> Chart:
    """What injecting each concept does to the words of every concept; one colour scale for both kinds of vector."""
    concepts = list(evidence.concepts)
    order = [concept for concept in evidence.geometry.get("order", []) if concept in concepts]
    order += [concept for concept in concepts if concept not in order]
    at = [concepts.index(concept) for concept in order]
    matrix = evidence.matrix.get(vector, [])
    square = len(matrix) == len(concepts) and all(len(row) == len(concepts) for row in matrix)
    values = [[matrix[a][b] for b in at] for a in at] if square else []
    everything = (value for each in evidence.matrix.values() for row in each for value in row)
    sizes = sorted(abs(known) for value in everything if (known := finite(value)) is not None)
    limit = (sizes[int(0.99 * (len(sizes) - 1))] if sizes else 0) or 1.0
    return marks.heat(
        f"causal-matrix-{vector}",
        values,
        order,
        order,
        "rise of its words",
        limit,
    )


def dose_lines(evidence: Evidence, vector: str, key: str = "effect") -> Chart:
    """Effect, or its cost in perplexity, against strength: each concept, and the median over them."""
    title = {"effect": "Rise of its words (nats)", "perplexity_ratio": "Perplexity, times the usual"}[key]
    rows = [row for row in evidence.dose if row["vector"] == vector and finite(row.get(key)) is not None]
    traces: list[dict[str, Any]] = []
    for concept in evidence.concepts:
        own = sorted((row for row in rows if row["concept"] == concept), key=lambda row: row["strength"])
        line = marks.line(label(concept), [row["strength"] for row in own], [row[key] for row in own], vector)
        line |= {"mode": "lines", "opacity": 0.3, "showlegend": False}
        line["line"]["width"] = 1.2
        traces.append(line)
    strengths = sorted({row["strength"] for row in rows})
    middle = [median(row[key] for row in rows if row["strength"] == strength) for strength in strengths]
    thick = marks.line("Median over concepts", strengths, middle, vector)
    thick["line"]["width"] = 3.5
    thick["marker"]["symbol"] = SYMBOL[vector]
    limits = marks.reach([row.get(key) for row in evidence.dose], around=0 if key == "effect" else 1)
    layout = marks.layout(
        xaxis=marks.axis("Strength (mean residual norms)"), yaxis=marks.axis(title, zeroline=True, range=limits)
    )
    layout["margin"]["t"] = 40
    words = f"Line chart: {title.lower()} against the strength at which each concept's {vector} is injected."
    return marks.chart(f"causal-{key.replace('_', '-')}-{vector}", [*traces, thick], layout, 340, words)


def causal_charts(evidence: Evidence) -> dict[str, list[Chart]]:
    """The causal figures by kind, a pair for directions and features; no dose-response of a single dose."""
    tried = len(evidence.doses) > 1
    return {
        "inject": [effect_dots(evidence, vector, "inject") for vector in VECTORS],
        "ablate": [effect_dots(evidence, vector, "ablate") for vector in VECTORS],
        "matrix": [effect_heat(evidence, vector) for vector in VECTORS],
        "dose": [dose_lines(evidence, vector) for vector in VECTORS] if tried else [],
        "cost": [dose_lines(evidence, vector, "perplexity_ratio") for vector in VECTORS] if tried else [],
    }


def label_sides(points: Mapping[str, tuple[float, float]], room: tuple[float, float] = (100, 26)) -> dict[str, str]:
    """On which side of its point each label goes so that none overlaps another; those without room are left out.

    Greedy from left to right over four sides, with boxes estimated from the number of letters.

    Args:
        points: places by name.
        room: width of the plot in letters and height in lines.
    """
    if not points:
        return {}
    spans = [max(p[i] for p in points.values()) - min(p[i] for p in points.values()) or 1.0 for i in (0, 1)]
    scaled = {concept: (x / spans[0] * room[0], y / spans[1] * room[1]) for concept, (x, y) in points.items()}
    taken = [(x - 0.9, y - 0.35, x + 0.9, y + 0.35) for x, y in scaled.values()]
    chosen = {}
    for concept, (x, y) in sorted(scaled.items(), key=lambda item: (item[1], item[0])):
        half = len(concept) / 2 + 0.5
        boxes = {
            "top center": (x - half, y + 0.45, x + half, y + 1.45),
            "bottom center": (x - half, y - 1.45, x + half, y - 0.45),
            "middle right": (x + 1.2, y - 0.5, x + 1.2 + 2 * half, y + 0.5),
            "middle left": (x - 1.2 - 2 * half, y - 0.5, x - 1.2, y + 0.5),
        }
        covered = {name: sum(_overlap(box, other) for other in taken) for name, box in boxes.items()}
        side = min(covered, key=lambda name: covered[name])
        if covered[side] < 0.2 * len(concept):
            taken.append(boxes[side])
            chosen[concept] = side
    return chosen


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _points(
    points: Mapping[str, tuple[float, float]],
    concepts: Sequence[str],
    sides: Mapping[str, str],
    marker: dict[str, Any],
    said: Sequence[str],
) -> dict[str, Any]:
    """Marks with their names beside them where ``sides`` has room; all names appear under the pointer."""
    return {
        "type": "scatter",
        "mode": "markers+text",
        "showlegend": False,
        "x": [points[c][0] for c in concepts],
        "y": [points[c][1] for c in concepts],
        "text": [label(c) if c in sides else "" for c in concepts],
        "textposition": [sides.get(c, "top center") for c in concepts],
        "textfont": {"color": "var(--ink)", "size": 11.5},
        "customdata": [f"<b>{label(c)}</b><br>{each}" for c, each in zip(concepts, said, strict=True)],
        "cliponaxis": False,
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": marker,
    }

"""The shape of the concept space: components and ratings, published clusters, other layers, word counts."""

from __future__ import annotations

from typing import Any

from affectlens.report import draw
from affectlens.report.draw import Chart, Marks, marks
from affectlens.report.evidence import SIGNIFICANT, Evidence, Row, Rows
from affectlens.report.registry import Said, figure, finding, graded, table
from affectlens.results.format import finite, number


def _correlations(evidence: Evidence) -> Rows:
    """Components against ratings, and against the length of stories."""
    lengths = evidence.cards.get("geometry", {}).get("length_correlation", ())
    rows = [row for row in evidence.rows("geometry/correlations") if row["source"] == "directions"]
    rows += [{**row, "rating": "story length"} for row in lengths]
    ratings = list(dict.fromkeys(row["rating"] for row in rows))
    rows.sort(key=lambda row: (ratings.index(row["rating"]), row["component"]))
    named = [{**row, "name": f"PC {row['component']} · {row['rating']}"} for row in rows]
    return Rows.like(evidence.rows("geometry/correlations"), named)


def _clusters(evidence: Evidence) -> Rows:
    """By group, counted from one."""
    rows = evidence.rows("geometry/clusters")
    shown = ({**row, "cluster": row["cluster"] + 1} for row in rows)
    return Rows.like(rows, sorted(shown, key=lambda row: (row["cluster"], row["concept"])))


@figure("geometry", "geometry/components")
def geometry_map(evidence: Evidence) -> Chart:
    """Scatter plot: concepts on the first two principal components of the directions, coloured by valence."""
    rated = {(row["concept"], row["rating"]): finite(row["value"]) for row in evidence.rows("geometry/ratings")}
    place = {
        (row["concept"], row["component"]): finite(row["coordinate"]) for row in evidence.rows("geometry/components")
    }
    rows = [
        {"concept": concept, "x": place[concept, 1], "y": place[concept, 2]}
        | {rating: rated.get((concept, rating)) for rating in ("valence", "arousal")}
        for concept in evidence.concepts
        if None not in (place.get((concept, 1)), place.get((concept, 2)))
    ]

    def note(row: Row) -> str:
        if row["valence"] is None:
            return f"{row['concept']}\nno rating"
        return f"{row['concept']}\nvalence {number(row['valence'])}, arousal {number(row['arousal'])}"

    with_rating = [row for row in rows if row["valence"] is not None]
    title = {"title": {"text": "Valence", "side": "top", "font": {"size": 12}}}
    scale = {"color": [row["valence"] for row in with_rating], "colorscale": draw.DIVERGING, "cmid": 5}
    scale |= {"colorbar": draw.BAR | title, "line": {"color": "var(--axis)", "width": 1}}
    without = [row for row in rows if row["valence"] is None]
    drawn: list[Marks] = [
        marks("", kept, "y", "control", symbol, size, at="x", spread=False, note=note, marker=style)
        for kept, symbol, size, style in (
            (without, "circle-open", 10, {"line": {"width": 2}}),
            (with_rating, "circle", 12, scale),
        )
        if kept
    ]
    share = {row["component"]: finite(row["share"]) for row in evidence.rows("geometry/variance")}
    x, y = (
        f"Component {index}" + (f" ({100 * value:.0f}% of the variance)" if (value := share.get(index)) else "")
        for index in (1, 2)
    )
    free = {"zeroline": True, "fixedrange": False}
    return draw.points(drawn, x, y, height=540, wide=340, dragmode="pan", xaxis=free, yaxis=free)


@figure("geometry", "geometry/correlations")
def geometry_correlations(evidence: Evidence) -> Chart:
    """Dot plot: correlation of principal components with valence, arousal and story length, with intervals."""
    one = marks("Correlation and 95% interval", _correlations(evidence), "r", at="name")
    return draw.dots([one], title="Pearson r over concepts", zero=0.0, limits=[-1.05, 1.05], row=26)


table("geometry", "geometry/correlations", "Components, ratings and story length",
      {"component": "Component", "rating": "With", "r": "r", "low": "95% interval",
       "r_beyond_length": "r beyond length", "n": "n", "p": "p"}, rows=_correlations)  # fmt: skip


@figure("geometry", "geometry/cosines")
def geometry_cosines(evidence: Evidence) -> Chart:
    """Heat map: cosines between the directions of all pairs of concepts."""
    cells = {(row["concept"], row["other"]): row["cosine"] for row in evidence.rows("geometry/cosines")}
    return draw.heat(cells, list(dict.fromkeys(concept for concept, _ in cells)), "cosine", 1.0)


@figure("geometry", "geometry/layers", narrow=True)
def geometry_layers(evidence: Evidence) -> Chart:
    """Heat map: agreement of the similarities between concepts at every two layers."""
    rows = evidence.rows("geometry/layers")
    names = {layer: f"layer {layer}" for layer in sorted({row[end] for row in rows for end in ("layer", "other")})}
    cells: dict[tuple[str, str], Any] = {(name, name): 1.0 for name in names.values()}
    for row in rows:
        a, b = names[row["layer"]], names[row["other"]]
        cells[a, b] = cells[b, a] = row["value"]
    return draw.heat(cells, list(names.values()), "agreement of similarities", 1.0)


table("geometry", "geometry/clusters", "Groups of concepts, and the published clusters",
      {"concept": "Concept", "cluster": "Group", "published": "Published cluster"}, rows=_clusters)  # fmt: skip


@finding("geometry")
def axes(evidence: Evidence) -> Said:
    """Whether the main axes go with valence and arousal, by two tests that are corrected for being two."""
    import numpy as np

    from affectlens.stats import holm

    tested: list[dict[str, Any]] = []
    rows = [row for row in evidence.rows("geometry/correlations") if row["source"] == "directions"]
    p = {(row["component"], row["rating"]): finite(row["p"]) for row in rows}
    for component, rating in ((1, "valence"), (2, "arousal")):
        r = evidence.metric("geometry", f"r_component_{component}_{rating}")
        tested.append({"component": component, "rating": rating, "r": r, "p": p.get((component, rating))})
    adjusted = holm(np.array([row["p"] for row in tested], dtype=float))
    for row, corrected in zip(tested, adjusted.tolist(), strict=True):
        _, low, high = row["r"]
        apart = low is not None and high is not None and (low > 0 or high < 0)
        row |= {"p": finite(corrected), "clear": apart and corrected <= SIGNIFICANT}
    return graded(sum(row["clear"] for row in tested), len(tested)), {"tested": tested}


@finding("geometry")
def published(evidence: Evidence) -> Said:
    """Whether the groups of concepts are the published ones, and the same as those of words."""
    card = evidence.cards.get("geometry", {})
    clusters, words = card.get("clusters", {}), card.get("vocabulary", {})
    rand = clusters.get("rand", {})
    known = finite(rand.get("value")) is not None
    clear = known and rand["p"] <= SIGNIFICANT
    lowest = min(evidence.rows("geometry/layers"), key=lambda row: row["value"] or 0.0, default=None)
    values = {"known": known, "clear": clear, "clusters": clusters, "rand": rand, "words": words, "lowest": lowest}
    return "shown" if clear else "not shown", values

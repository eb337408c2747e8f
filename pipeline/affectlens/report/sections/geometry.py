"""The shape of the concept space: components and ratings, published clusters, other layers, word counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, Marks, Series
from affectlens.report.evidence import SIGNIFICANT, Evidence, Row
from affectlens.report.registry import figure, findings
from affectlens.report.sentences import Finding, Standing, say
from affectlens.report.tables import Table, table
from affectlens.results.format import finite, number


@figure(
    "geometry",
    "geometry/components",
    caption="The concepts on the first two components. Colour is rated valence. {{ plural(len(evidence.concepts), "
    '"concept") }}',
)
def concept_map(evidence: Evidence) -> Chart:
    """The concepts on the first two principal components, coloured by rated valence."""
    axes: list[dict[str, float]] = [{}, {}]
    for row in evidence.rows("geometry/components"):
        if row["component"] <= 2 and finite(row["coordinate"]) is not None:
            axes[row["component"] - 1][row["concept"]] = row["coordinate"]
    ratings = {(row["concept"], row["rating"]): finite(row["value"]) for row in evidence.rows("geometry/ratings")}
    there = [concept for concept in evidence.concepts if all(concept in axis for axis in axes)]
    valence = {concept: ratings.get((concept, "valence")) for concept in there}
    bar = {"colorscale": draw.DIVERGING, "cmid": 5, "colorbar": draw.colour_bar("Valence")}
    marks = []
    for rated, more in ((False, {"color": "var(--control)", "line": {"width": 2}}), (True, bar)):
        names = [concept for concept in there if (valence[concept] is not None) == rated]
        if rated:
            more = more | {"color": [valence[concept] for concept in names]}
            more |= {"line": {"color": "var(--axis)", "width": 1}}
        said = [
            f"{c}\nvalence {number(valence[c])}, arousal {number(ratings.get((c, 'arousal')))}"
            if rated
            else f"{c}\nno rating"
            for c in names
        ]
        if names:
            series = Series("", [axes[0][c] for c in names], [axes[1][c] for c in names], labels=said)
            marks.append(Marks(series, "ink", "circle" if rated else "circle-open", 12 if rated else 10, more=more))
    share = {row["component"]: finite(row["share"]) for row in evidence.rows("geometry/variance")}
    titles = [
        f"Component {index}" + (f" ({100 * value:.0f}% of the variance)" if (value := share.get(index)) else "")
        for index in (1, 2)
    ]
    free = {"zeroline": True, "fixedrange": False}
    words = "Scatter plot: concepts on the first two principal components of the directions, coloured by valence."
    return draw.points(
        "geometry-map", marks, x=titles[0], y=titles[1], words=words, height=540, wide=340, dragmode="pan",
        xaxis=free, yaxis=free,
    )  # fmt: skip


def _correlations(evidence: Evidence) -> list[Row]:
    rows: list[Row] = [row for row in evidence.rows("geometry/correlations") if row["source"] == "directions"]
    rows += [
        {**row, "rating": "story length"} for row in evidence.cards.get("geometry", {}).get("length_correlation", ())
    ]
    ratings = list(dict.fromkeys(row["rating"] for row in rows))
    rows.sort(key=lambda row: (ratings.index(row["rating"]), row["component"]))
    return [{**row, "name": f"PC {row['component']} · {row['rating']}"} for row in rows]


@figure(
    "geometry",
    "geometry/correlations",
    caption="Correlation of each component with the ratings, and with the mean length of the concept's stories as a "
    "check "
    "on a known confound. Bars are 95% intervals.",
)
def correlation_dots(evidence: Evidence) -> Chart:
    """Correlation of components with ratings and with story length."""
    rows = _correlations(evidence)
    return draw.dots(
        "geometry-correlations",
        [Marks(draw.series("Correlation and 95% interval", rows, "r", x="name"))],
        [row["name"] for row in rows],
        title="Pearson r over concepts",
        zero=0.0,
        limits=[-1.05, 1.05],
        row=26,
        words="Dot plot: correlation of principal components with valence, arousal and story length, with intervals.",
    )


@figure("geometry", "geometry/correlations")
def correlations(evidence: Evidence) -> Table:
    """Principal components against ratings, and against story length."""
    columns = [
        tables.whole("Component", "component", "By the variance that it holds"),
        tables.text("With", "rating"),
        tables.figure("r", "r", "Pearson, over concepts", digits=2),
        tables.span("Fisher's z", 2),
        tables.figure("r beyond length", "r_beyond_length", "With story length taken from both sides", digits=2),
        tables.whole("n", "n", "Rated concepts"),
        tables.p("p", "p", "Permutation of concepts"),
    ]
    return table("correlations", "Components, ratings and story length", _correlations(evidence), columns)


@figure(
    "geometry",
    "geometry/cosines",
    caption="Cosine between the directions of each pair of concepts, similar concepts side by side.",
)
def similarity(evidence: Evidence) -> Chart:
    """Cosines between all directions."""
    rows = evidence.rows("geometry/cosines")
    order = list(dict.fromkeys(row["concept"] for row in rows))
    cells = {(row["concept"], row["other"]): row["cosine"] for row in rows}
    return draw.heat("geometry-cosines", cells, order, order, "cosine", 1.0)


@figure(
    "geometry",
    "geometry/layers",
    caption="How alike the similarities between concepts are at two layers (correlation over pairs of concepts).",
    narrow=True,
)
def layers(evidence: Evidence) -> Chart:
    """Agreement of the similarities between concepts at every two layers."""
    rows = evidence.rows("geometry/layers")
    names = {layer: f"layer {layer}" for layer in sorted({row[end] for row in rows for end in ("layer", "other")})}
    cells: dict[tuple[str, str], Any] = {(name, name): 1.0 for name in names.values()}
    for row in rows:
        a, b = names[row["layer"]], names[row["other"]]
        cells[a, b] = cells[b, a] = row["value"]
    order = list(names.values())
    return draw.heat("geometry-layers", cells, order, order, "agreement of similarities", 1.0)


@figure("geometry", "geometry/clusters")
def clusters(evidence: Evidence) -> Table:
    """Which concepts fall together, and where the published clusters put them."""
    rows = sorted(evidence.rows("geometry/clusters"), key=lambda row: (row["cluster"], row["concept"]))
    columns = [
        tables.text("Concept", "concept"),
        tables.whole("Group", "cluster", "k-means on the directions, as many groups as published clusters are studied"),
        tables.text("Published cluster", "published", "Sofroniew et al. 2026"),
    ]
    shown = [{**row, "cluster": row["cluster"] + 1} for row in rows]
    return table("clusters", "Groups of concepts, and the published clusters", shown, columns)


@findings
def shape(evidence: Evidence) -> Iterator[Finding]:
    """Whether the main axes go with valence and arousal, and the groups of concepts are the published ones."""
    tested = []
    for component, rating in ((1, "valence"), (2, "arousal")):
        r = evidence.metric("geometry", f"r_component_{component}_{rating}")
        clear = r[1] is not None and r[2] is not None and (r[1] > 0 or r[2] < 0)
        tested.append({"component": component, "rating": rating, "r": r, "clear": clear})
    text = say(
        """In the space of directions,{% for row in tested %}{{ ";" if not loop.first }}
        {% if row.r[0] is none %}for component {{ row.component }} and {{ row.rating }} it is not shown{% else %}
        component {{ row.component }} goes with {{ row.rating }} at r = {{ row.r | figure }}{{ "" if row["clear"] else
        ", an interval that holds 0: not shown" }}{% endif %}{% endfor %}
        (n = {{ plural(n, "concept") }}). The sign of a component is arbitrary.""",
        tested=tested,
        n=evidence.count("geometry", "rated_words"),
    )
    clear = sum(row["clear"] for row in tested)
    badge: Standing = "shown" if clear == len(tested) else "partly shown" if clear else "not shown"
    yield Finding("geometry", "Components go with valence and arousal", text, badge)
    yield published(evidence)


def published(evidence: Evidence) -> Finding:
    """Whether the groups of concepts are the published ones, and the same as those of words."""
    title, card = "Groups of directions are the published clusters", evidence.cards.get("geometry", {})
    clusters, words = card.get("clusters", {}), card.get("vocabulary", {})
    rand = clusters.get("rand", {})
    if finite(rand.get("value")) is None:
        return Finding("geometry", title, "Whether the published clusters return is not shown.")
    clear = rand["p"] <= SIGNIFICANT
    text = say(
        """Grouped by their directions, {{ plural(clusters.n, "concept") }} agree with the published clusters at an
        adjusted Rand index of {{ rand.value | number }} (names shuffled: at most {{ rand.null_95 | number }} in 95% of
        the draws; p = {{ rand.p | p }}){{ "." if clear else ": not shown." }}
        {% if same.value is defined %}Word counts of the same stories give a similarity structure that correlates
        with it
        at {{ same.value | number }} (p = {{ same.p | p }}){% if own.value is defined %} and a Rand index of
        {{ own.value | number }}{% endif %}.{% endif %}""",
        **{"clusters": clusters, "rand": rand, "clear": clear},
        same=words.get("similarity", {}),
        own=words.get("clusters", {}),
    )
    lowest = min(evidence.rows("geometry/layers"), key=lambda row: row["value"] or 0.0, default=None)
    more = say(
        """{% if lowest %}The similarities between concepts stay alike from layer to layer: the least agreement is
        {{ lowest.value | number }}, between layers {{ lowest.layer }} and {{ lowest.other }}.{% endif %}""",
        lowest=lowest,
    )
    return Finding("geometry", title, text, "shown" if clear else "not shown", more)

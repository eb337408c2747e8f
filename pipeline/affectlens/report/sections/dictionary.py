"""The SAE itself, and how its decoder rows lie beside the directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, Marks
from affectlens.report.evidence import Evidence, Row
from affectlens.report.registry import figure, findings
from affectlens.report.sections.detection import index
from affectlens.report.sentences import Finding, Standing, say, standing
from affectlens.report.tables import Table, table
from affectlens.results.format import count, finite, general, percent

HEALTH = {
    "l0": ("Active features per token", "Mean over held-out tokens (L0)", general),
    "explained_variance": ("Explained variance", "Share of the variance that the reconstruction holds", percent),
    "ce_recovered": ("Cross-entropy recovered", "When the reconstruction replaces the residual stream", percent),
    "dead_share": ("Dead features", "Active on none of the held-out tokens", percent),
    "dense_share": ("Dense features", "Active on more than a tenth of the held-out tokens", percent),
    "rows": ("Held-out tokens", "On which these figures were taken", count),
    "width": ("Features", "Width of the SAE", count),
}
DECODER = "SAE decoder"
STYLE = {DECODER: ("feature", "solid"), "random": ("control", "dot"), "covariance-matched": ("ink", "dash")}


@figure("health")
def health(evidence: Evidence) -> Table | None:
    """What was measured of the SAE, beside a random SAE of the same shape."""
    card = evidence.cards.get("sae", {})
    names = [name for name, value in card.items() if name in HEALTH or finite(value) is not None]
    random: Mapping[str, Any] = card.get("random", {})
    rows = []
    for name in names:
        title, what, written = HEALTH.get(name, (name.replace("_", " ").capitalize(), "", general))
        values = [tables.Cell(written(side.get(name)), finite(side.get(name))) for side in (card, random)]
        rows.append([tables.word(title), *values, tables.word(what)])
    columns = [tables.text("Figure", ""), tables.figure("This SAE", ""), tables.figure("Random SAE", "")]
    columns.append(tables.text("What it is", ""))
    return Table("health", "Health of the SAE on held-out text", columns, rows, open=True) if rows else None


@figure(
    "health",
    caption='Features by how often they are active. {{ plural(evidence.count("sae", "features"), "feature") }}',
)
def density(evidence: Evidence) -> Chart | None:
    """How many features are active on which share of the held-out tokens."""
    card = evidence.cards.get("sae", {})
    histogram, dead = card.get("density_histogram"), finite(card.get("dead_share"))
    if not histogram:
        return None
    never = None if dead is None else round(dead * evidence.count("sae", "features"))
    names = ["never", *(f"up to {general(100 * edge)}%" for edge in histogram["edges"][1:])]
    series = draw.Series("Features", names, [never, *histogram["features"]])
    colours = ["control", *["feature"] * len(histogram["features"])]
    words = "Bar chart: number of SAE features by the share of held-out tokens on which they are active."
    x, y = "Share of tokens on which it is active", "Features"
    marks = [Marks(series, colours)]
    return draw.lines("features-density", "bar", marks, x=x, y=y, words=words, height=280, bargap=0.35)


@figure(
    "agreement",
    "compare/cosines",
    caption="Cosine between direction and decoder row: of the feature that matches the concept best (filled) and of "
    "the feature closest to the direction (open). Within the bar lie 95% of random directions with the covariance of "
    "the "
    "activations.",
)
def cosines(evidence: Evidence) -> Chart:
    """Cosine of each concept's feature with its direction, beside the upper end of the null."""
    rows = draw.ranked(evidence.rows("compare/cosines"), "cosine")
    open_ = {"line": {"width": 1.6, "color": "var(--direction)"}}
    closest = draw.series("Closest feature of all", rows, "closest_cosine", spread=False)
    return draw.dots(
        "agreement-cosines",
        [
            Marks(closest, "direction", "diamond-open", more=open_),
            Marks(draw.series("Best-matching feature", rows, "cosine", spread=False), "feature", "diamond"),
        ],
        [row["concept"] for row in rows],
        title="Cosine with the direction",
        zero=0.0,
        behind=[draw.bands(rows, "", "cosine_null_95", "Below 95% of the null")],
        words="Dot plot: cosine between decoder row and direction for each concept, with the 95% point of the null.",
    )


@figure("agreement", "compare/cosines")
def agreement(evidence: Evidence) -> Table:
    """Per concept how close its feature lies to its direction."""
    columns = [
        tables.text("Concept", "concept"),
        tables.Column("Feature", lambda row: index(row["feature"]), "", "numeric", "feature"),
        tables.figure("Cosine", "cosine"),
        tables.figure("95% of null", "cosine_null_95"),
        tables.whole("Rank", "cosine_rank"),
        tables.Column("Closest feature", lambda row: index(row["closest_feature"]), "", "numeric", "closest_feature"),
        tables.figure("Cosine of the closest", "closest_cosine"),
    ]
    return table("agreement", "Features and directions", evidence.rows("compare/cosines"), columns)


def _rows(evidence: Evidence, dictionary: str) -> list[Row]:
    rows = [row for row in evidence.rows("compare/explained") if row["dictionary"] == dictionary]
    return sorted(rows, key=lambda row: row["rows"])


@figure(
    "makeup",
    "compare/explained",
    caption="Share of a direction that so many rows of a dictionary make up, mean over concepts.",
    narrow=True,
)
def pursuit(evidence: Evidence) -> Chart:
    """Explained share of the directions against the number of dictionary rows, beside random dictionaries."""
    marks = []
    for name in dict.fromkeys(row["dictionary"] for row in evidence.rows("compare/explained")):
        colour, dash = STYLE.get(name, ("control", "solid"))
        series = draw.series(f"{name} rows", _rows(evidence, name), "explained", x="rows", spread=False)
        marks.append(Marks(series, colour, dash=dash))
    words = "Line chart: share of the directions that so many dictionary rows explain, SAE beside random dictionaries."
    x, y = "Rows used", "Share of the direction"
    return draw.lines("makeup-pursuit", "line", marks, x=x, y=y, words=words, yaxis={"range": [0, 1]})


@figure(
    "makeup",
    "compare/angles",
    caption="Cosines of the principal angles between the subspace of all directions and that of the chosen features' "
    "decoder rows; 1 is a shared axis.",
    narrow=True,
)
def angles(evidence: Evidence) -> Chart:
    """Cosines of the principal angles between the directions' subspace and that of the chosen features."""
    rows = evidence.rows("compare/angles")
    marks = [Marks(draw.series("Directions and chosen features", rows, "cosine", x="angle", spread=False), "direction")]
    words = "Line chart: cosines of the principal angles between directions and chosen SAE features."
    x, y = "Principal angle", "Cosine"
    return draw.lines("makeup-angles", "line", marks, x=x, y=y, words=words, height=300, yaxis={"range": [0, 1.02]})


@findings
def dictionary(evidence: Evidence) -> Iterator[Finding]:
    """Whether the SAE is sound, its features point where directions point, and few of them make up a direction."""
    yield soundness(evidence)
    tally = evidence.agreeing
    cosines = [value for row in evidence.rows("compare/cosines") if (value := finite(row["cosine"])) is not None]
    text = say(
        """The cosine between a concept's best feature (decoder row) and its direction has a median of
        {{ middle | number }}. {{ counted(tally, "a cosine above 95% of its null") }} By chance
        {{ (0.05 * tally.total) | number(1) }} would.""",
        tally=tally,
        middle=median(cosines) if cosines else None,
    )
    if not tally.total:
        text = "Whether they do is not shown."
    yield Finding("agreement", "Features point where directions point", text, standing(tally, level=0.05))
    yield makeup(evidence)


def soundness(evidence: Evidence) -> Finding:
    """Whether the SAE is good enough for a weak result to mean something."""
    card = evidence.cards.get("sae", {})
    if finite(card.get("dead_share")) is None or finite(card.get("explained_variance")) is None:
        return Finding("features", "The SAE is sound", "The health of the SAE is not shown.")
    verdict = card.get("verdict", "sound")
    text = say(
        """It explains {{ card.explained_variance | percent }} of the variance of held-out tokens (a random SAE:
        {{ card.get("random", {}).get("explained_variance") | percent }}) with {{ card.get("l0") | general }} active
        features per token; {{ card.dead_share | percent }} of the features are dead.
        {% if verdict != "sound" %}This SAE is {{ verdict }}: {{ "do not read its features as evidence" if verdict
        == "bad"
        else "a missing feature may be its fault" }}, because {{ card.faults | join(" and ", attribute="text") }}.
        {% endif %}""",
        card=card,
        verdict=verdict,
    )
    badges: dict[str, Standing] = {"sound": "shown", "weak": "partly shown", "bad": "not shown"}
    return Finding("features", f"The SAE is {verdict}", text, badges[verdict])


def makeup(evidence: Evidence) -> Finding:
    """Whether a few decoder rows make up a direction better than rows drawn at random."""
    title = "Directions are made of few features"
    names = dict.fromkeys(row["dictionary"] for row in evidence.rows("compare/explained"))
    last = {name: _rows(evidence, name)[-1] for name in names}
    shares = {name: share for name, row in last.items() if (share := finite(row["explained"])) is not None}
    if DECODER not in shares:
        return Finding("makeup", title, "How directions are made up is not shown.")
    own = shares.pop(DECODER)
    best = own > max(shares.values(), default=0.0)
    text = say(
        """With {{ plural(size, "row") }} orthogonal matching pursuit makes up {{ own | percent }} of a direction
        from the
        SAE's decoder{% for name, share in shares.items() %}, {{ share | percent }} by {{ name }} rows{% endfor %}:
        {{ "decoder rows make up directions better than any random dictionary" if best else "a random dictionary
        with the "
        ~ "covariance of the activations does better, so that few features add up to a direction says little about "
        ~ "features" }}.""",
        **{"size": last[DECODER]["rows"], "own": own, "shares": shares, "best": best},
    )
    more = say(
        """{% if share is not none %}The subspace of the chosen features holds {{ share | percent }} of the directions'
        subspace; as many features drawn at random hold at most {{ null | percent }} in 95% of the draws.{% endif %}""",
        share=finite(evidence.cards.get("compare", {}).get("subspace", {}).get("share")),
        null=evidence.cards.get("compare", {}).get("subspace", {}).get("null_95"),
    )
    badge: Standing = "shown" if best else "partly shown" if own > shares.get("random", 0.0) else "not shown"
    return Finding("makeup", title, text, badge, more)

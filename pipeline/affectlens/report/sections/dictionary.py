"""The SAE itself, and how its decoder rows lie beside the directions."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, marks
from affectlens.report.evidence import Evidence, Row
from affectlens.report.registry import Said, Standing, figure, finding, standing, table
from affectlens.report.tables import Cell, Column, Table
from affectlens.results.figures import Series
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
    random: Mapping[str, Any] = card.get("random", {})
    rows = []
    for name in card:
        title, what, write = HEALTH.get(name, (name.replace("_", " ").capitalize(), "", general))
        if name in HEALTH or finite(card[name]) is not None:
            rows.append(
                [
                    tables.cell(title),
                    *(Cell(write(side.get(name)), finite(side.get(name))) for side in (card, random)),
                    tables.cell(what),
                ]
            )
    columns = [
        Column(title, tables.cell, kind=kind)
        for title, kind in (
            ("Figure", "text"),
            ("This SAE", "numeric"),
            ("Random SAE", "numeric"),
            ("What it is", "text"),
        )
    ]
    return Table("Health of the SAE on held-out text", columns, rows, open=True) if rows else None


@figure("health")
def features_density(evidence: Evidence) -> Chart | None:
    """Bar chart: number of SAE features by the share of held-out tokens on which they are active."""
    card = evidence.cards.get("sae", {})
    histogram, dead = card.get("density_histogram"), finite(card.get("dead_share"))
    if not histogram:
        return None
    never = None if dead is None else round(dead * evidence.count("sae", "features"))
    names = ["never", *(f"up to {general(100 * edge)}%" for edge in histogram["edges"][1:])]
    bars = draw.Marks(
        Series("Features", names, [never, *histogram["features"]]),
        ["control", *["feature"] * len(histogram["features"])],
    )
    return draw.lines("bar", [bars], "Share of tokens on which it is active", "Features", 280, bargap=0.35)


@figure("agreement", "compare/cosines")
def agreement_cosines(evidence: Evidence) -> Chart:
    """Dot plot: cosine between decoder row and direction for each concept, with the 95% point of the null."""
    rows = draw.ranked(evidence.rows("compare/cosines"), "cosine")
    closest = marks("Closest feature of all", rows, "closest_cosine", "direction", "diamond-open", spread=False)
    best = marks("Best-matching feature", rows, "cosine", "feature", "diamond", spread=False)
    null = draw.bands(rows, "", "cosine_null_95", "Below 95% of the null")
    return draw.dots([closest, best], title="Cosine with the direction", zero=0.0, behind=[null])


table("agreement", "compare/cosines", "Features and directions",
      {"concept": "Concept", "feature": "Feature", "cosine": "Cosine", "cosine_null_95": "95% of null",
       "cosine_rank": "Rank", "closest_feature": "Closest feature",
       "closest_cosine": "Cosine of the closest"})  # fmt: skip


def _explained(evidence: Evidence) -> dict[str, list[Row]]:
    """Per dictionary how much of a direction its rows explain, by their number."""
    rows = sorted(evidence.rows("compare/explained"), key=lambda row: row["rows"])
    names = dict.fromkeys(row["dictionary"] for row in evidence.rows("compare/explained"))
    return {name: [row for row in rows if row["dictionary"] == name] for name in names}


@figure("makeup", "compare/explained", narrow=True)
def makeup_pursuit(evidence: Evidence) -> Chart:
    """Line chart: share of the directions that so many dictionary rows explain, SAE beside random dictionaries."""
    drawn = []
    for name, rows in _explained(evidence).items():
        colour, dash = STYLE.get(name, ("control", "solid"))
        drawn.append(marks(f"{name} rows", rows, "explained", colour, at="rows", spread=False, line={"dash": dash}))
    return draw.lines("line", drawn, "Rows used", "Share of the direction", yaxis={"range": [0, 1]})


@figure("makeup", "compare/angles", narrow=True)
def makeup_angles(evidence: Evidence) -> Chart:
    """Line chart: cosines of the principal angles between directions and chosen SAE features."""
    rows = evidence.rows("compare/angles")
    line = marks("Directions and chosen features", rows, "cosine", "direction", at="angle", spread=False)
    return draw.lines("line", [line], "Principal angle", "Cosine", 300, yaxis={"range": [0, 1.02]})


@finding("features")
def soundness(evidence: Evidence) -> Said:
    """Whether the SAE is good enough for a weak result to mean something."""
    card = evidence.cards.get("sae", {})
    known = finite(card.get("dead_share")) is not None and finite(card.get("explained_variance")) is not None
    verdict = card.get("verdict", "sound")
    badges: dict[str, Standing] = {"sound": "shown", "weak": "partly shown", "bad": "not shown"}
    return badges[verdict] if known else "not shown", {
        "card": card,
        "known": known,
        "verdict": verdict if known else "sound",
    }


@finding("agreement")
def agree(evidence: Evidence) -> Said:
    """For how many concepts feature and direction point the same way."""
    tally = evidence.agreeing
    cosines = [value for row in evidence.rows("compare/cosines") if (value := finite(row["cosine"])) is not None]
    badge = standing(tally, level=0.05) if evidence.reads else "not shown"
    return badge, {"tally": tally, "middle": median(cosines) if cosines else None}


@finding("makeup")
def makeup(evidence: Evidence) -> Said:
    """Whether a few decoder rows make up a direction better than rows drawn at random."""
    last = {name: rows[-1] for name, rows in _explained(evidence).items()}
    shares = {name: share for name, row in last.items() if (share := finite(row["explained"])) is not None}
    own = shares.pop(DECODER, None)
    if own is None:
        return "not shown", {"own": None}
    best = own > max(shares.values(), default=0.0)
    subspace = {"share": None, **evidence.cards.get("compare", {}).get("subspace", {})}
    subspace["share"] = finite(subspace["share"])
    better = "shown" if best else "partly shown" if own > shares.get("random", 0.0) else "not shown"
    badge = better if evidence.reads else "not shown"
    return badge, {"own": own, "size": last[DECODER]["rows"], "shares": shares, "best": best, "subspace": subspace}

"""Circuits: what writes the readings, which heads make the model say the words, whose circuit it is."""

from __future__ import annotations

from affectlens.circuits.tables import ALL
from affectlens.report import draw, tables
from affectlens.report.draw import Chart, marks
from affectlens.report.evidence import Evidence, Row, Rows
from affectlens.report.registry import Said, Standing, figure, finding, table
from affectlens.report.tables import Table
from affectlens.results.format import finite

KINDS = {"heads": "direction", "MLPs": "feature", "embedding": "control", "biases": "ink"}
"""What writes a reading, and its colour."""


@figure(
    "circuits",
    "circuit_units/writers",
    heading="What writes the readings?",
    caption="Each concept's reading in its own stories, less the topic's mean, as the sum of what all heads, all MLPs, "
    "the embedding and the biases have along its direction (direct effect, mean over topics). The parts sum to the "
    "reading (diamond).",
)
def circuits_writers(evidence: Evidence) -> Chart:
    """Stacked bars: what heads, MLPs, embedding and biases write along each concept's direction."""
    rows = [row for row in evidence.rows("circuit_units/writers") if row["unit"] == "all"]
    reading = draw.ranked([row for row in rows if row["kind"] == "reading"], "direct")
    order = [row["concept"] for row in reading]
    drawn = []
    for kind, colour in KINDS.items():
        mine = {row["concept"]: row for row in rows if row["kind"] == kind}
        drawn.append(
            marks(kind.capitalize(), [mine[each] for each in order if each in mine], "direct", colour, spread=False)
        )
    title = "Along the concept's direction (mean residual norms)"
    chart = draw.lines("bar", drawn, "", title, barmode="relative", showlegend=True)
    dots = draw.lines("scatter", [marks("Reading", reading, "direct", "ink", "diamond", spread=False)], "", title)
    chart.spec["data"].extend(dots.spec["data"])
    return chart


@figure(
    "circuits",
    "circuit_units/heads",
    heading="Which heads make the model say the words?",
    caption="What the ablation of each head costs the words of the story's concept against the other concepts' words, "
    "exact, mean over contexts. Green heads speak for the words, purple ones against them; the scale ends where 99% "
    "of the heads do.",
)
def circuits_heads(evidence: Evidence) -> Chart:
    """Heat map: effect of every head, layers down and heads across."""
    rows = evidence.rows("circuit_units/heads")
    sizes = sorted(abs(value) for row in rows if (value := finite(row["effect"])) is not None)
    limit = (sizes[int(0.99 * (len(sizes) - 1))] if sizes else 0) or 1.0
    cells = {(f"L{row['layer']}", f"H{row['head']}"): row["effect"] for row in rows}
    layers = [f"L{each}" for each in sorted({row["layer"] for row in rows})]
    heads = [f"H{each}" for each in sorted({row["head"] for row in rows})]
    return draw.heat(cells, layers, "effect (nats)", limit, heads)


def _curve(evidence: Evidence, key: str, low: str, high: str, title: str) -> Chart | None:
    rows = [row for row in evidence.rows("circuits/curves") if finite(row[key]) is not None]
    if not rows:
        return None
    colours = {"signed effect": "direction", "size of effect": "feature", "activation": "control", "random": "ink"}
    drawn = []
    for name, colour in colours.items():
        mine = [{**row, "low": row[low], "high": row[high]} for row in rows if row["ranking"] == name]
        if mine:
            drawn.append(marks(name.capitalize(), mine, key, colour, at="share"))
    return draw.lines("line", drawn, "Share of all heads", title, xaxis={"type": "log"}, showlegend=True)


@figure(
    "circuits",
    "circuits/curves",
    heading="How many heads are enough?",
    caption="Contrast when only so many heads know the story, as a share of the whole model's, on topics that chose "
    "nothing. Intervals are over topics; of random circuits, with as many heads in each layer, bars reach from the "
    "least to the largest of them.",
)
def circuits_kept(evidence: Evidence) -> Chart | None:
    """Line chart: share of the contrast that circuits of each size give, with the band of random circuits."""
    return _curve(evidence, "ratio", "low", "high", "Share of the contrast")


@figure(
    "circuits",
    "circuits/curves",
    caption="What is left of the contrast when so many heads have the values of the topic's mean story, beside random "
    "circuits.",
)
def circuits_left(evidence: Evidence) -> Chart | None:
    """Line chart: share of the contrast that is left without circuits of each size, with the band of random ones."""
    return _curve(evidence, "left", "left_low", "left_high", "Share of the contrast left")


@figure(
    "circuits",
    "circuits/specificity",
    heading="Is a circuit its concept's own?",
    caption="What each concept's words lose, in its own stories, when the heads are taken out that a concept's "
    "selection contexts rank above the mean over concepts. Rows are scored, columns taken out.",
)
def circuits_specificity(evidence: Evidence) -> Chart:
    """Heat map: what taking out each concept's circuit costs the words of every concept."""
    rows = evidence.rows("circuits/specificity")
    order = list(dict.fromkeys(row["measured"] for row in rows))
    sizes = sorted(abs(value) for row in rows if (value := finite(row["loss"])) is not None)
    limit = (sizes[int(0.99 * (len(sizes) - 1))] if sizes else 0) or 1.0
    return draw.heat({(row["measured"], row["removed"]): row["loss"] for row in rows}, order, "loss (nats)", limit)


@figure("circuits", "circuits/verdicts", heading="Verdicts")
def circuit_verdicts(evidence: Evidence) -> Table:
    """Per concept what is said of its circuit, by rule."""
    return tables.table(
        "Circuits",
        evidence.rows("circuits/verdicts"),
        {
            "concept": "Concept", "verdict": "Verdict", "contrast": "Contrast (nats)",
            "contrast_low": "95% interval", "ratio": "Kept alone", "slope": "Slope", "correlation": "r",
            "left": "Left without", "random_ratio": "Random, largest", "random_left": "Random, least left",
            "wrong_ratio": "Wrong concepts' circuits", "any_ratio": "Pooled circuit", "stability": "Stability",
            "halves": "Disjoint halves", "stability_chance": "Chance", "own_loss": "Own loss",
            "other_loss": "Others' loss", "rank": "Rank", "p_adjusted": "p, corrected",
        },
        open=True,
    )  # fmt: skip


table(
    "circuits",
    "circuits/areas",
    "Curves as single figures",
    {"ranking": "Ranking", "cpr": "CPR", "cpr_log": "CPR, log axis", "cmd": "CMD", "cmd_log": "CMD, log axis"},
)
table("circuits", "circuits/members", "Heads of the pooled circuit",
      {"layer": "Layer", "head": "Head", "rotations": "Rotations", "effect": "Effect (nats)",
       "without": "Ratio lost without it", "null": "Random circuits, 95%", "needed": "Needed"})  # fmt: skip
table("circuits", "circuits/checks", "Completeness, transfer, neutral text, neurons",
      {"check": "Check", "measure": "Measure", "value": "Value", "control": "Control", "control_low": "Least",
       "control_high": "Largest", "contexts": "n"})  # fmt: skip
table("circuits", "circuit_units/features", "SAE features behind the words",
      {"unit": "Unit", "feature": "Feature", "effect": "Effect (nats)", "low": "95% interval",
       "p_adjusted": "p, corrected"})  # fmt: skip
table("circuits", "circuits/neuron_curve", "Neurons inside the head circuit",
      {"share": "Share of all neurons", "ratio": "Kept alone", "slope": "Slope", "random": "Random, mean",
       "random_low": "Least", "random_high": "Largest"})  # fmt: skip


def _strongest(evidence: Evidence) -> Rows:
    rows = evidence.rows("circuits/edges")
    return Rows.like(rows, sorted(rows, key=lambda row: -abs(finite(row["weight"]) or 0.0))[:30])


table(
    "circuits",
    "circuits/edges",
    "Edges of the circuit, the 30 strongest",
    {"source": "From", "target": "To", "weight": "Weight (nats)", "low": "95% interval"},
    rows=_strongest,
)
table("circuits", "circuits/published", "By the choices of arXiv 2510.11328",
      {"concept": "Emotion", "heads": "Heads", "heads_share": "Of all", "neurons": "Neurons", "neurons_share": "Of all",
       "first_head": "First head", "mass": "Ten largest", "heads_overlap": "Heads' overlap", "heads_chance": "Chance",
       "neurons_overlap": "Neurons' overlap", "neurons_chance": "Chance", "ratio": "Kept alone", "left": "Left without",
       "random_ratio": "Random, largest", "random_left": "Random, least left", "contexts": "n"})  # fmt: skip


@finding(
    "circuits",
    """{{ "A few heads carry the words" if badge != "not shown" else "No circuit of heads is shown" }}

{{ row.verdict | capitalize }}: {{ row.heads | number(0) }} heads alone give
{{ (row.ratio, row.low, row.high) | figure }} of the contrast between the words of a story's concept and those of the
others (slope over contexts {{ row.slope | number }}; best of the random circuits {{ row.random_ratio | number }}).
Without them {{ (row.left, row.left_low, row.left_high) | figure }} of it is left; without random heads at least
{{ row.random_left | number }}.


Of {{ plural(total, "concept") }} {{ words }}.""",
)
def circuit_of_heads(evidence: Evidence) -> Said | None:
    """Whether a circuit of heads is necessary and sufficient for the words."""
    rows = evidence.rows("circuits/verdicts")
    row = next((row for row in rows if row["concept"] == ALL), None)
    if row is None:
        return None
    badges: dict[str, Standing] = {"necessary and sufficient": "shown", "necessary only": "partly shown"}
    badge = badges.get(row["verdict"], "partly shown" if row["verdict"] == "sufficient only" else "not shown")
    concepts: list[Row] = [each for each in rows if each["concept"] != ALL]
    counts: dict[str, int] = {}
    for each in concepts:
        counts[each["verdict"]] = counts.get(each["verdict"], 0) + 1
    words = ", ".join(f"{count} {'is' if count == 1 else 'are'} judged “{said}”" for said, count in counts.items())
    return badge, {"badge": badge, "row": row, "total": len(concepts), "words": words}

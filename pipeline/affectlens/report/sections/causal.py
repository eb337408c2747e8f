"""What directions and features cause, injected and taken out, beside their controls."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, Marks
from affectlens.report.evidence import OPERATIONS, SIGNIFICANT, VECTORS, Evidence, Row
from affectlens.report.registry import figure, findings
from affectlens.report.sentences import Finding, say, standing
from affectlens.report.tables import Table, table
from affectlens.results.format import finite, general, number, p_value

SYMBOL = {"direction": "circle", "feature": "diamond"}
P = "p, controls of all concepts pooled, corrected"
CLAIMS = {
    "sufficient": "Injecting it raises the concept's words beyond every family of controls, and neutral text stays "
    "fluent",
    "specific": "And other concepts' vectors do not do as much, nor does it raise all words of like valence",
    "necessary": "Taking it out of stories that evoke the concept lowers its words beyond the controls",
}


def _effect_dots(evidence: Evidence, vector: str, operation: str) -> Chart:
    """Effects against the band of the controls; both kinds of vectors have one order and one scale."""
    both = {each: evidence.effects(each, operation) for each in VECTORS}
    order = [row["concept"] for row in draw.ranked(list(both["direction"].values()), "effect")]
    order += [concept for concept in both["feature"] if concept not in order]
    rows = [both[vector][concept] for concept in order if concept in both[vector]]
    shown = evidence.intervention(vector, operation)

    def note(row: Row) -> str:
        return (
            f"controls: mean {number(row['control_mean'])}, largest {number(row['control_max'])}; "
            f"{P}: {tables.corrected(row).text}"
        )

    def marks(name: str, symbol: str, concepts: list[str]) -> Marks:
        kept = [row for row in rows if row["concept"] in concepts]
        return Marks(draw.series(name, kept, "effect", note=note), vector, symbol)

    rest = [row["concept"] for row in rows if row["concept"] not in (*shown.shown, *shown.weak)]
    ends = ("effect", "low", "high", "control_mean", "control_max")
    return draw.dots(
        f"causal-{operation}-{vector}",
        [
            marks("Shown", SYMBOL[vector], list(shown.shown)),
            marks("Beyond every control alone", f"{SYMBOL[vector]}-open-dot", list(shown.weak)),
            marks("Not beyond", f"{SYMBOL[vector]}-open", rest),
        ],
        order,
        title="Rise of the concept's words (nats)" if operation == "inject" else "Fall of the concept's words (nats)",
        zero=0.0,
        behind=[draw.bands(rows, "control_mean", "control_max", "Controls, mean to largest")],
        limits=draw.reach([row[end] for each in both.values() for row in each.values() for end in ends], around=0),
        words=f"Dot plot: effect of the intervention ({operation} {vector}) on each concept's words, against controls.",
    )


@figure(
    "causal",
    "causal/effects",
    heading="Injecting",
    caption="{{ kind }}: effect on the concept's own words with 95% interval; the bar spans the controls from their "
    "mean "
    "to the largest. Filled: shown by the rule of the verdicts; with a dot: beyond every control alone; open: not. "
    "Both "
    "charts have one scale and one order.",
)
def inject(evidence: Evidence) -> list[Chart]:
    """Effects of injecting."""
    return [_effect_dots(evidence, vector, "inject") for vector in VECTORS]


@figure(
    "causal",
    "causal/effects",
    heading="Ablating",
    caption="{{ kind }}: how far the concept's words fall when the vector is taken out, against controls along which "
    "as "
    "much is taken.",
)
def ablate(evidence: Evidence) -> list[Chart]:
    """Effects of ablating."""
    return [_effect_dots(evidence, vector, "ablate") for vector in VECTORS]


@figure(
    "causal",
    "causal/matrix",
    heading="Is the effect its own?",
    caption="{{ kind }}, injected (row), and the words of each concept (column), in nats; one scale for both maps. A "
    "specific effect sits on the diagonal.",
)
def matrix(evidence: Evidence) -> list[Chart]:
    """What injecting each concept does to the words of every concept."""
    rows = evidence.rows("causal/matrix")
    order = list(dict.fromkeys(row["concept"] for row in evidence.rows("geometry/cosines"))) or list(evidence.concepts)
    # One extreme cell must not bleach all others: the scale ends where 99% of the cells do.
    sizes = sorted(abs(value) for row in rows if (value := finite(row["effect"])) is not None)
    limit = sizes[int(0.99 * (len(sizes) - 1))] if sizes else 1.0
    charts = []
    for vector in VECTORS:
        cells = {(row["injected"], row["measured"]): row["effect"] for row in rows if row["vector"] == vector}
        charts.append(draw.heat(f"causal-matrix-{vector}", cells, order, order, "effect (nats)", limit or 1.0))
    return charts


def _dose_lines(evidence: Evidence, key: str, title: str, neutral: float) -> list[Chart]:
    """A thin line a concept and a thick one for their median; nothing where a single strength was tried."""
    rows = [row for row in evidence.rows("causal/dose") if row[key] is not None]
    strengths = sorted({row["strength"] for row in rows})
    charts = []
    for vector in VECTORS if len(strengths) > 1 else ():
        marks, mine = [], [row for row in rows if row["vector"] == vector]
        for concept in evidence.concepts:
            line = sorted((row for row in mine if row["concept"] == concept), key=lambda row: row["strength"])
            marks.append(Marks(draw.series(concept, line, key, x="strength", spread=False), "control", size=3, width=1))
        middle = [
            median(values) if (values := [r[key] for r in mine if r["strength"] == s]) else None for s in strengths
        ]
        thick = draw.Series("Median over concepts", strengths, middle)
        marks.append(Marks(thick, vector, SYMBOL[vector], width=3.5))
        limits = draw.reach([row[key] for row in rows], around=neutral)
        charts.append(
            draw.lines(
                f"causal-{key.replace('_', '-')}-{vector}",
                "line",
                marks,
                x="Strength (mean residual norms)",
                y=title,
                words=f"Line chart: {title.lower()} against the strength at which each concept's {vector} is injected.",
                yaxis={"range": limits},
                showlegend=False,
            )
        )
    return charts


@figure(
    "causal",
    "causal/dose",
    heading="How much is needed?",
    caption="{{ kind }}: effect against strength; a thin line a concept, the thick one their median.",
)
def dose(evidence: Evidence) -> list[Chart]:
    """Effect against strength."""
    return _dose_lines(evidence, "effect", "Rise of the concept's words (nats)", 0)


@figure(
    "causal",
    "causal/dose",
    caption="{{ kind }}: what it costs. How much more perplexing neutral text becomes to the model under the same "
    "injection.",
)
def cost(evidence: Evidence) -> list[Chart]:
    """Perplexity against strength."""
    return _dose_lines(evidence, "perplexity_ratio", "Perplexity on neutral text, times", 1)


@figure("causal", "causal/verdicts", heading="Verdicts")
def verdicts(evidence: Evidence) -> Table:
    """Per concept what the interventions show by all criteria, and in words."""
    columns = [tables.text("Concept", "concept")]
    for vector in VECTORS:
        for claim, help in CLAIMS.items():
            tally = evidence.verdict(vector, claim)
            title = f"{vector.capitalize()} {claim}"
            columns.append(
                tables.Column(title, lambda row, tally=tally: tables.mark(tally.of(row["concept"])), help, "claim")
            )
    columns.append(tables.text("In words", "words"))
    rows = [{"concept": concept, "words": words(evidence, concept)} for concept in evidence.concepts]
    return table("verdicts", "Verdict per concept", rows, columns, open=True, criteria=True)


def words(evidence: Evidence, concept: str) -> str:
    """The verdicts of a concept's vectors as the stage words them."""
    return " ".join(
        row["words"] for row in evidence.rows("causal/verdicts") if row["concept"] == concept and row["words"]
    )


@figure("causal", "causal/effects")
def effects(evidence: Evidence) -> Table:
    """Every measured intervention."""
    columns = [
        tables.text("Concept", "concept"),
        tables.text("Vector", "vector"),
        tables.text("Operation", "operation"),
        tables.Column("Strength", _strength, "", "numeric", "strength"),
        tables.figure("Effect (nats)", "effect", sign=True),
        tables.span("t over sentences (inject) or topics (ablate)"),
        tables.figure("Controls, mean", "control_mean", sign=True),
        tables.figure("Controls, largest", "control_max", sign=True),
        tables.p(P, "p_adjusted", "Against the family of controls that is hardest to exceed; Benjamini-Hochberg"),
        tables.Column("Beyond all controls", _above, "", "claim", "above_controls"),
    ]  # fmt: skip
    return table("effects", "Effects of all interventions", evidence.rows("causal/effects"), columns)


def _strength(row: Row) -> tables.Cell:
    return tables.Cell(general(row["strength"]), row["strength"])


def _above(row: Row) -> tables.Cell:
    return tables.mark(row["above_controls"])


def controls(evidence: Evidence) -> str:
    """What stands against the studied vectors, and how small a p it allows."""
    rows = evidence.rows("causal/controls")
    floors: dict[str, float] = {}
    for row in rows:
        name = row["vector"] if row["operation"] == "inject" else "ablation"
        floors[name] = max(floors.get(name, 0.0), row["p_floor"])
    families = {row["family"]: row["members"] for row in rows if row["operation"] == "inject"}
    return say(
        """{% if families %}Controls: {{ families | names }} vectors, all at norm 1 times the same strength. What is
        taken
        out is compared with as much taken out along control directions, position by position. A claim is held
        against the
        family that is hardest to exceed, standardised, over all concepts. The least p they allow: {{ floors | names }}.
        {% endif %}""",
        families=[f"{int(size)} {name.replace('_', ' ')}" for name, size in families.items()],
        floors=[f"{name} {p_value(floor)}" for name, floor in floors.items()],
    )


TITLES = {
    ("direction", "inject"): "Injecting directions raises their concepts' words",
    ("feature", "inject"): "Injecting SAE features raises their concepts' words",
    ("direction", "ablate"): "Taking directions out lowers their concepts' words",
    ("feature", "ablate"): "Taking SAE features out lowers their concepts' words",
}


@findings
def caused(evidence: Evidence) -> Iterator[Finding]:
    """For how many concepts each intervention is shown by the verdicts' rule, and for which it is not.

    The badge of injections comes from the permutation test of all vectors together where the study has it: concepts
    share controls and sentences, so that their own tests are not independent.
    """
    for operation in OPERATIONS:
        for vector in VECTORS:
            tally, title = evidence.intervention(vector, operation), TITLES[vector, operation]
            p = evidence.metric("causal", f"diagonal_p_{vector}")[0] if operation == "inject" else None
            if not tally.total:
                yield Finding("causal", title, "For how many concepts it does is not shown.")
                continue
            text = say(
                """For {{ len(tally.shown) }} of {{ plural(tally.total, "concept") }} {{ "injecting" if inject else
                "taking out" }} the {{ name }} {{ "raises" if inject else "lowers" }} the concept's own words, against
                those of the other concepts, beyond every family of controls at a corrected {{ level }}.
                {% if tally.missing %}Not shown for: {{ tally.missing | names }}.{% endif %}
                {% if tally.unknown %}Not testable for: {{ tally.unknown | names }}.{% endif %}
                {% if p is not none %}All vectors together: p = {{ p | p }} with the labels permuted among them.{%
                endif %}
                """,
                inject=operation == "inject",
                name="direction" if vector == "direction" else "best SAE feature",
                **{"tally": tally, "p": p, "level": f"{SIGNIFICANT:.0%}"},
            )
            yield Finding("causal", title, text, standing(tally, p=p), _more(evidence, vector, operation))


def _more(evidence: Evidence, vector: str, operation: str) -> str:
    """Specificity, and the weaker rule beside what wrong labels would give."""
    shares = {
        said: [evidence.metric("causal", f"{name}_{vector}")[0] for name in (f"share_{key}", f"{key}_expected")]
        for key, said in (
            ("above_controls", "move the words more than every control vector"),
            ("above_controls_at_equal_divergence", "do when all vectors move the next token equally far (equal KL)"),
        )
    }
    return say(
        """{% if inject %}{% if specific.total %}Specific for {{ len(specific.shown) }} of {{ specific.total }}:
        hardly any
        other concept's vector does as much, and the effect exceeds that on words of like valence.{% endif %}
        {% for said, (share, wrong) in shares.items() if share is not none %}{{ share | percent }} {{ said }};
        {{ wrong | percent }} would under the labels of other concepts. {% endfor %}{% endif %}
        {% if weak %}More than every control, but not shown by the whole rule: {{ weak | names }}.{% endif %}""",
        inject=operation == "inject",
        specific=evidence.verdict(vector, "specific"),
        shares=shares,
        weak=evidence.intervention(vector, operation).weak,
    )

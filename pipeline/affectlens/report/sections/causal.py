"""What directions and features cause, injected and taken out, beside their controls."""

from __future__ import annotations

from functools import partial
from statistics import median

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, Marks, marks
from affectlens.report.evidence import OPERATIONS, VECTORS, Evidence, Row
from affectlens.report.registry import FINDINGS, Conclusion, Said, figure, standing, table
from affectlens.report.tables import Heading, Table
from affectlens.results.figures import Series
from affectlens.results.format import finite, number

SYMBOL = {"direction": "circle", "feature": "diamond"}
P = "p, controls of all concepts pooled, corrected"
CLAIMS = {
    "sufficient": "Injecting it raises the concept's words beyond every family of controls, and neutral text stays "
    "fluent",
    "specific": "And other concepts' vectors do not do as much, nor does it raise all words of like valence",
    "necessary": "Taking it out of stories that evoke the concept lowers its words beyond the controls",
}


def _effects(evidence: Evidence, operation: str, title: str) -> dict[str, Chart]:
    """Effects against the band of the controls; both kinds of vectors have one order and one scale."""
    both = {vector: evidence.effects(vector, operation) for vector in VECTORS}
    order = [row["concept"] for row in draw.ranked(list(both["direction"].values()), "effect")]
    order += [concept for concept in both["feature"] if concept not in order]
    ends = ("effect", "low", "high", "control_mean", "control_max")
    limits = draw.reach([row[end] for each in both.values() for row in each.values() for end in ends], around=0)

    def note(row: Row) -> str:
        controls = f"controls: mean {number(row['control_mean'])}, largest {number(row['control_max'])}"
        return f"{controls}; {P}: {tables.corrected(row).text}"

    charts = {}
    for vector in VECTORS:
        rows = [both[vector][concept] for concept in order if concept in both[vector]]
        tally = evidence.intervention(vector, operation)
        kinds = {"Shown": tally.shown, "Beyond every control alone": tally.weak}
        kinds["Not beyond"] = [concept for concept in order if concept not in (*tally.shown, *tally.weak)]
        drawn = [
            marks(
                name, [row for row in rows if row["concept"] in kept], "effect", vector, SYMBOL[vector] + how, note=note
            )
            for (name, kept), how in zip(kinds.items(), ("", "-open-dot", "-open"), strict=True)
        ]
        behind = [draw.bands(rows, "control_mean", "control_max", "Controls, mean to largest")]
        charts[vector] = draw.dots(drawn, order, title=title, zero=0.0, behind=behind, limits=limits)
    return charts


@figure("causal", "causal/effects", heading="Injecting")
def causal_inject(evidence: Evidence) -> dict[str, Chart]:
    """Dot plot: effect of injecting on each concept's words, against controls."""
    return _effects(evidence, "inject", "Rise of the concept's words (nats)")


@figure("causal", "causal/effects", heading="Ablating")
def causal_ablate(evidence: Evidence) -> dict[str, Chart]:
    """Dot plot: effect of taking out on each concept's words, against controls."""
    return _effects(evidence, "ablate", "Fall of the concept's words (nats)")


@figure("causal", "causal/matrix", heading="Is the effect its own?")
def causal_matrix(evidence: Evidence) -> dict[str, Chart]:
    """Heat map: what injecting each concept does to the words of every concept."""
    rows = evidence.rows("causal/matrix")
    order = list(dict.fromkeys(row["concept"] for row in evidence.rows("geometry/cosines"))) or list(evidence.concepts)
    # One extreme cell must not bleach all others: the scale ends where 99% of the cells do.
    sizes = sorted(abs(value) for row in rows if (value := finite(row["effect"])) is not None)
    limit = (sizes[int(0.99 * (len(sizes) - 1))] if sizes else 0) or 1.0
    cells = {(row["vector"], row["injected"], row["measured"]): row["effect"] for row in rows}
    return {
        vector: draw.heat({key[1:]: cells[key] for key in cells if key[0] == vector}, order, "effect (nats)", limit)
        for vector in VECTORS
    }


def _dose(evidence: Evidence, key: str, title: str, neutral: float) -> dict[str, Chart]:
    """A thin line a concept and a thick one for their median; nothing where a single strength was tried."""
    rows = sorted((row for row in evidence.rows("causal/dose") if row[key] is not None), key=lambda r: r["strength"])
    strengths = sorted({row["strength"] for row in rows})
    limits, charts = draw.reach([row[key] for row in rows], around=neutral), {}
    for vector in VECTORS if len(strengths) > 1 else ():
        mine = [row for row in rows if row["vector"] == vector]
        drawn = [
            marks(concept, line, key, "control", size=3, at="strength", spread=False, line={"width": 1})
            for concept in evidence.concepts
            for line in [[row for row in mine if row["concept"] == concept]]
        ]
        at = {strength: [row[key] for row in mine if row["strength"] == strength] for strength in strengths}
        middle = Series(
            "Median over concepts", strengths, [median(values) if values else None for values in at.values()]
        )
        drawn.append(Marks(middle, vector, SYMBOL[vector], line={"width": 3.5}))
        charts[vector] = draw.lines(
            "line", drawn, "Strength (mean residual norms)", title, yaxis={"range": limits}, showlegend=False
        )
    return charts


@figure("causal", "causal/dose", heading="How much is needed?")
def causal_effect(evidence: Evidence) -> dict[str, Chart]:
    """Line chart: rise of the concept's words against the strength at which each concept's vector is injected."""
    return _dose(evidence, "effect", "Rise of the concept's words (nats)", 0)


@figure("causal", "causal/dose")
def causal_perplexity_ratio(evidence: Evidence) -> dict[str, Chart]:
    """Line chart: perplexity on neutral text against the strength at which each concept's vector is injected."""
    return _dose(evidence, "perplexity_ratio", "Perplexity on neutral text, times", 1)


@figure("causal", "causal/verdicts", heading="Verdicts")
def verdicts(evidence: Evidence) -> Table:
    """Per concept what the interventions show by all criteria, and in words."""
    columns: dict[str, Heading] = {"concept": "Concept"}
    for vector in VECTORS:
        for name, help in CLAIMS.items():
            tally = evidence.verdict(vector, name)
            columns[f"{vector} {name}"] = tables.claim(f"{vector.capitalize()} {name}", help, tally)
    rows = [{"concept": concept, "words": evidence.verdict_words(concept)} for concept in evidence.concepts]
    return tables.table("Verdict per concept", rows, columns | {"words": "In words"}, open=True, criteria=True)


table("causal", "causal/effects", "Effects of all interventions",
      {"concept": "Concept", "vector": "Vector", "operation": "Operation", "strength": "Strength",
       "effect": "Effect (nats)", "low": "95% interval", "control_mean": "Controls, mean",
       "control_max": "Controls, largest", "p_adjusted": P, "above_controls": "Beyond all controls"})  # fmt: skip


def controls(evidence: Evidence) -> dict[str, list[tuple[str, float]]]:
    """What stands against the studied vectors: families with their members, and the least p that they allow."""
    rows, floors = evidence.rows("causal/controls"), dict[str, float]()
    for row in rows:
        name = row["vector"] if row["operation"] == "inject" else "ablation"
        floors[name] = max(floors.get(name, 0.0), row["p_floor"])
    families = {row["family"]: row["members"] for row in rows if row["operation"] == "inject"}
    return {"families": list(families.items()), "floors": list(floors.items())}


def caused(evidence: Evidence, operation: str, vector: str) -> Said:
    """For how many concepts an intervention is shown by the verdicts' rule, and for which it is not.

    The badge of injections comes from the permutation test of all vectors together where the study has it: concepts
    share controls and sentences, so that their own tests are not independent.
    """
    tally, inject = evidence.intervention(vector, operation), operation == "inject"
    p = evidence.metric("causal", f"diagonal_p_{vector}")[0] if inject else None
    # The weaker rule stands beside what wrong labels would give.
    shares = {
        said: [evidence.metric("causal", f"{name}_{vector}")[0] for name in (f"share_{key}", f"{key}_expected")]
        for key, said in (
            ("above_controls", "move the words more than every control vector"),
            ("above_controls_at_equal_divergence", "do when all vectors move the next token equally far (equal KL)"),
        )
    }
    badge = standing(tally, p=p) if tally.total else "not shown"
    return badge, {"vector": vector, "inject": inject, "tally": tally, "p": p, "shares": shares} | {
        "specific": evidence.verdict(vector, "specific")
    }


for operation in OPERATIONS:
    for vector in VECTORS:
        conclude = partial(caused, operation=operation, vector=vector)
        FINDINGS.append(Conclusion(f"{operation}_{vector}", "causal", conclude, "caused"))

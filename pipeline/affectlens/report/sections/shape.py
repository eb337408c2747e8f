"""Ways to change a model, side by side: state against text, what became of every arm, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, Marks, marks
from affectlens.report.evidence import Evidence, Row, Rows
from affectlens.report.registry import Said, figure, finding, table
from affectlens.report.tables import Table
from affectlens.results.format import finite, number

CALM, TEXT_ONLY, STATE_ONLY = "calmer state and text", "text only (suppressed)", "state only"
CHANGED = (CALM, TEXT_ONLY, STATE_ONLY, "numb", "damaged")
TRAINED = ("filler", "expression", "words", "calm_dpo", "calm_sft", "set_point")
EVERY = "distress less calm"
OF_THAT = ("Of that", "95% interval over families and seeds")
ANSWERS = 40
"""Answers in the table of samples, at most."""
STYLES = (("Trained", "feature", "circle"), ("Rule", "direction", "diamond"), ("Control", "control", "circle-open"))
"""What a point is: its name in the key, colour and symbol."""


def style_of(row: Row) -> str:
    """Which of :data:`STYLES` a point has."""
    return "Control" if row["control"] else "Trained" if row["kind"] in TRAINED else "Rule"


def _arms(row: Row) -> dict[str, Any]:
    """The arms of an interval across, as plotly draws them."""
    x, low, high = (finite(row[key]) for key in ("text", "text_low", "text_high"))
    return {
        "array": None if x is None or high is None else high - x,
        "arrayminus": None if x is None or low is None else x - low,
    }


@figure(
    "shape",
    "shape/points",
    heading="Does the state fall, or the text?",
    caption="Fall of distress below the base model in situations that nothing was trained on, one point an arm and "
    "seed, in standard deviations of the base model over situations; 95% intervals over families of situations. On "
    "the diagonal state and text fall alike; on the horizontal line the text alone does.",
)
def shape_points(evidence: Evidence) -> Chart:
    """Scatter plot: fall of the state against fall of the text, one point an arm and seed, with intervals."""
    rows = evidence.rows("shape/points")
    drawn: list[Marks] = []
    groups: list[list[Row]] = []
    for name, colour, symbol in STYLES:
        own = [row for row in rows if style_of(row) == name]
        if own:
            named = [{**row, "low": row["state_low"], "high": row["state_high"]} for row in own]
            drawn.append(marks(name, named, "state", colour, symbol, 10, at="text", note=_note))
            groups.append(own)
    ends = [
        value
        for row in rows
        for key in ("state", "state_low", "state_high", "text", "text_low", "text_high")
        if (value := finite(row[key])) is not None
    ]
    low, high = draw.reach(ends, around=0.0) or [0.0, 1.0]
    corner = {"x0": low, "y0": low, "x1": high, "y1": high, "type": "line", "layer": "below"}
    across = {"line": {"color": "var(--soft)", "width": 1.3, "dash": "dot"}}
    chart = draw.lines(
        "scatter", drawn, "Fall of the text (base sd)", "Fall of the state (base sd)", 460,
        shapes=[draw.rule("x", 0.0), draw.rule("y", 0.0), corner | across], showlegend=True,
    )  # fmt: skip
    for trace, own in zip(chart.spec["data"], groups, strict=True):
        ends_of = [_arms(row) for row in own]
        trace["error_x"] = {
            "type": "data", "symmetric": False, "thickness": 1.6, "width": 0, "color": trace["marker"]["color"],
            **{key: [each[key] for each in ends_of] for key in ("array", "arrayminus")},
        }  # fmt: skip
        trace["hovertemplate"] = "%{customdata}<extra></extra>"
        trace["customdata"] = [f"<b>{draw.label(row['name'])}</b><br>{draw.label(_note(row))}" for row in own]
    return chart


def _note(row: Row) -> str:
    return f"state {number(row['state'], sign=True)}, text {number(row['text'], sign=True)}"


def _judged(evidence: Evidence) -> Rows:
    """Verdicts, what is changed first, controls last."""
    rows = evidence.rows("shape/verdicts")
    order = {word: place for place, word in enumerate(CHANGED)}
    ranked = sorted(rows, key=lambda row: (bool(row["control"]), order.get(row["verdict"], len(order))))
    return Rows.like(rows, ranked)


@figure("shape", "shape/verdicts")
def shape_verdicts(evidence: Evidence) -> Table:
    """What became of every arm."""
    return tables.table(
        "What became of every arm, by rule",
        _judged(evidence),
        {"arm": "Arm", "seeds": "Seeds", "verdict": "Verdict", "state": "State",
         "state_low": "95% interval", "moved": "Own axis", "text": "Text", "text_low": OF_THAT,
         "dissociation": "State less text", "dissociation_low": OF_THAT, "gap": "Gap kept", "gap_low": OF_THAT,
         "cosine": "Cosine"},
        open=True,
        note="Falls in standard deviations of the base model. Own axis: the same axis, from the changed model's own "
        "readings of stories. Gap: between bad and good situations, over that of the base model.",
    )  # fmt: skip


@figure("shape", "shape/verdicts")
def shape_reasons(evidence: Evidence) -> Table:
    """Why every arm got its verdict."""
    return tables.table(
        "Why every arm got its verdict", _judged(evidence), {"arm": "Arm", "verdict": "Verdict", "why": "Why"}
    )


table("shape", "shape/controls", "Every arm against its controls",
      {"arm": "Arm", "control": "Control", "what": "What", "fall": "Falls below it by", "low": "95% interval",
       "p": "p"})  # fmt: skip
table("shape", "shape/abilities", "What it costs",
      {"arm": "Arm", "measure": "Ability", "items": "Items", "base": "Base model", "worse": "Worse by",
       "low": "95% interval", "margin": "Tolerated"})  # fmt: skip
table("shape", "shape/dynamics", "Ways out of distress, ways back after a burst, alarms",
      {"arm": "Arm", "measure": "Measure", "value": "Value", "value_low": "95% interval",
       "difference": "Less the base model", "difference_low": OF_THAT, "situations": "Situations",
       "watched": "Tokens watched"})  # fmt: skip
table("shape", "shape/reports", "What the model says of itself, from the logits",
      {"arm": "Arm", "bad": "Bad situations", "good": "Good ones", "fall": "Fall", "fall_low": "95% interval",
       "agreement": "With the state", "agreement_low": OF_THAT, "difference": "Less the base model",
       "difference_low": OF_THAT})  # fmt: skip
table("shape", "shape/texts", "The words of the answers",
      {"arm": "Arm", "outcome": "Situations", "measure": "Measure", "base": "Base model", "difference": "Difference",
       "low": "95% interval"})  # fmt: skip
table("shape", "shape/choices", "Forced choices of the experiments",
      {"arm": "Arm", "experiment": "Experiment", "condition": "Condition", "odds": "Log-odds of the act",
       "difference": "Difference", "low": "95% interval", "scenarios": "Scenarios"})  # fmt: skip


@figure("shape", "shape/states")
def shape_layers(evidence: Evidence) -> Table:
    """The state at every layer and place."""
    rows = evidence.rows("shape/states")
    return tables.table(
        "The state at every layer and place, axis of distress less calm",
        Rows.like(rows, [row for row in rows if row["axis"] == EVERY]),
        {"arm": "Arm", "basis": "Axis of", "layer": "Layer", "reading": "Read at", "fall": "Fall",
         "low": "95% interval", "gap": "Gap kept", "gap_low": OF_THAT},
    )  # fmt: skip


@figure("shape", "shape/answers", heading="Answers")
def shape_answers(evidence: Evidence) -> Table:
    """The first answers of every arm to one bad situation."""
    rows = evidence.rows("shape/answers")
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["measure"] in ("answer", "recovery") and row["outcome"] == "bad":
            first.setdefault((row["arm"], row["measure"]), row)
    return tables.table(
        "The first answer of every arm to a bad situation, and out of a distressed beginning",
        Rows.like(rows, list(first.values())[: 2 * ANSWERS]),
        {"arm": "Arm", "measure": "Asked as", "situation": "Situation", "text": "Answer", "lexicon": "Distress"},
    )


@finding(
    "shape",
    """{{ title }}

{% for word, arms in words.items() %}{{ word | capitalize }}: {{ arms | join(", ") }}. {% endfor %}{% if not words %}Of
no arm is anything shown beyond chance and its controls. {% endif %}


{% if one %}One seed: what one training moves by luck cannot be told from what its recipe does. {% endif %}The state is
that of a representation of emotion concepts, read on another writer's stories than those that any loss saw. The model
speaks in roles that it is given.""",
)
def shaped(evidence: Evidence) -> Said | None:
    """Whether the state falls with the text, by the verdicts of arms that are no controls."""
    rows = [row for row in evidence.rows("shape/verdicts") if not row["control"]]
    if not rows:
        return None
    words = {word: [row["arm"] for row in rows if row["verdict"] == word] for word in CHANGED}
    words = {word: arms for word, arms in words.items() if arms}
    title = _title(words)
    standing = "shown" if CALM in words else "partly shown" if words else "not shown"
    return standing, {"title": title, "words": words, "one": max(row["seeds"] for row in rows) == 1}


def _title(words: Mapping[str, Sequence[str]]) -> str:
    if CALM in words and TEXT_ONLY in words:
        return "Some ways calm the state with the text, others the text alone"
    if CALM in words:
        return "The state falls with the text"
    if TEXT_ONLY in words:
        return "The text falls and the state stays"
    if STATE_ONLY in words:
        return "The state falls and the text stays"
    return "Neither a calmer state nor a calmer text is shown"

"""The model modulated by circuits while it speaks: how often answers are heard as the emotion, in every arm."""

from __future__ import annotations

from collections.abc import Sequence

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, marks
from affectlens.report.evidence import Evidence, Row, Rows
from affectlens.report.registry import Said, figure, finding, table
from affectlens.report.tables import Table
from affectlens.results.format import finite

WORDS = {
    "plain": "Nothing", "prompting": "Prompting", "circuit": "Circuit", "random": "Random circuits",
    "wrong_emotion": "Another emotion's circuit", "as_published": "Circuit as published",
    "direction": "Direction, one layer", "direction_layers": "Direction, the circuit's layers",
}  # fmt: skip
"""The arms, as the page calls them, in its order."""
SIZES = {"divergence": "Equal KL", "norm": "Equal norm", "none": "Not scaled"}
ANSWERS = 40
"""Answers in the table of samples, at most."""


def _at_first(evidence: Evidence, name: str) -> Rows:
    """Rows of the lowest KL, masked score, and of what is not scaled; arms by the words of the page."""
    rows = evidence.rows(name)
    target = min((row["target"] for row in rows if row["target"]), default=0.0)
    mine = [row for row in rows if row["score"] == "masked" and row["target"] in (0.0, target)]
    return Rows.like(rows, [{**row, "said": WORDS[row["arm"]], "size": SIZES[row["match"]]} for row in _ordered(mine)])


def _ordered(rows: Sequence[Row]) -> list[Row]:
    arms, sizes = list(WORDS), list(SIZES)
    return sorted(rows, key=lambda row: (arms.index(row["arm"]), sizes.index(row["match"])))


def _dots(rows: Sequence[Row], key: str, title: str, zero: float) -> Chart:
    """Arms in rows: equal KL and what is not scaled filled, equal norm open."""
    order = [word for word in WORDS.values() if any(row["said"] == word for row in rows)]
    filled = [row for row in rows if row["match"] != "norm"]
    drawn = [marks("Equal KL, or not scaled", filled, key, "feature", at="said", size=11)]
    if len(filled) < len(rows):
        norm = [row for row in rows if row["match"] == "norm"]
        drawn.append(marks("Equal norm", norm, key, "direction", "circle-open", at="said"))
    return draw.dots(drawn, order, title=title, zero=zero, row=26)


def _chance(evidence: Evidence) -> float:
    return next((finite(row["chance"]) or 0.0 for row in evidence.rows("modulation/chooser")), 0.0)


@figure(
    "modulation",
    "modulation/rates",
    heading="Is the emotion heard?",
    caption="Answers that are whole and are heard as the emotion, every emotion's own words masked, over all emotions; "
    "exact 95% intervals. Broken answers are misses. The dashed line is chance.",
)
def modulation_rates(evidence: Evidence) -> Chart:
    """Dot plot: share of answers heard as the emotion in every arm, with intervals."""
    rows = [row for row in _at_first(evidence, "modulation/rates") if not row["concept"]]
    return _dots(rows, "rate", "Heard as the emotion (share)", _chance(evidence))


@figure(
    "modulation",
    "modulation/differences",
    caption="The circuit's rate less that of every other arm, on the same situations with the same draws; 95% t "
    "intervals over situations. Right of the line the circuit is heard more often.",
)
def modulation_above(evidence: Evidence) -> Chart:
    """Dot plot: by how much the circuit's rate is above that of each other arm, with intervals."""
    return _dots(_at_first(evidence, "modulation/differences"), "difference", "Circuit less the arm (share)", 0.0)


table("modulation", "modulation/rates", "Every arm, over all emotions",
      {"arm": "Arm", "match": "Equal in", "target": "At a KL of", "score": "Score", "texts": "Answers", "rate": "Heard",
       "low": "95% interval", "broken": "Broken", "names": "Names it", "divergence": "KL (nats)", "norm": "Norm"},
      rows=lambda evidence: Rows.like(
          evidence.rows("modulation/rates"), [r for r in evidence.rows("modulation/rates") if not r["concept"]]
      ))  # fmt: skip


@figure("modulation", "modulation/rates")
def modulation_concepts(evidence: Evidence) -> Table:
    """Every emotion under its circuit and under its direction."""
    rows = _at_first(evidence, "modulation/rates")
    mine = [row for row in rows if row["concept"] and row["match"] != "norm"]
    return tables.table(
        "Every emotion, own words masked",
        Rows.like(rows, sorted(mine, key=lambda row: row["concept"])),
        {"concept": "Emotion", "said": "Arm", "texts": "Answers", "rate": "Heard", "low": "95% interval",
         "broken": "Broken"},
    )  # fmt: skip


table("modulation", "modulation/chooser", "Can who chooses hear emotions?",
      {"concept": "Emotion", "score": "Score", "texts": "Ends of stories", "rate": "Heard rightly",
       "low": "95% interval", "chance": "Chance"})  # fmt: skip


@figure("modulation", "modulation/texts", heading="Answers")
def modulation_texts(evidence: Evidence) -> Table:
    """The first answer of each emotion in every arm."""
    rows = evidence.rows("modulation/texts")
    target = min((row["target"] for row in rows if row["target"]), default=0.0)
    first: dict[tuple[str, str], Row] = {}
    for row in _ordered(rows):
        if row["match"] != "norm" and row["target"] in (0.0, target):
            first.setdefault((row["concept"], row["arm"]), row)
    shown = sorted(first.values(), key=lambda row: row["concept"])[:ANSWERS]
    return tables.table(
        f"The first answer of each emotion in every arm, at most {ANSWERS}",
        Rows.like(rows, [{**row, "said": WORDS[row["arm"]]} for row in shown]),
        {"concept": "Emotion", "said": "Arm", "text": "Answer", "heard_masked": "Heard as, masked", "fault": "Broken"},
        open=True,
        note="The plain model's answers are heard as something, too.",
    )


@finding(
    "modulation",
    """{{ title }}

Under an emotion's circuit {{ (row.rate, row.low, row.high) | figure }} of the answers are heard as the emotion, own
words masked; chance is {{ chance | number }}. {% for arm, other in others.items() %}That is
{{ (other.difference, other.low, other.high) | figure(sign=True) }} against {{ arm }}. {% endfor %}


{% if able %}Who chooses hears {{ (known.rate, known.low, known.high) | figure }} of story ends rightly.{% else %}Who
chooses hears {{ (known.rate, known.low, known.high) | figure }} of story ends rightly, which is not above chance: the
rates say nothing.{% endif %}""",
)
def modulated(evidence: Evidence) -> Said | None:
    """Whether a circuit brings its emotion into answers, beyond random circuits and another emotion's."""
    rates, above = (_at_first(evidence, f"modulation/{name}") for name in ("rates", "differences"))
    row = next((row for row in rates if row["arm"] == "circuit" and not row["concept"]), None)
    known = next((r for r in evidence.rows("modulation/chooser") if not r["concept"] and r["score"] == "masked"), None)
    if row is None or known is None:
        return None
    others = {
        WORDS[each["arm"]].lower(): each for each in above
        if each["match"] != "norm" and each["arm"] in ("random", "wrong_emotion", "direction", "prompting")
    }  # fmt: skip
    clear = [
        bool(others.get(WORDS[arm].lower()) and (finite(others[WORDS[arm].lower()]["low"]) or 0) > 0)
        for arm in ("random", "wrong_emotion")
    ]
    able = (finite(known["low"]) or 0) > known["chance"]
    shown = able and all(clear)
    standing = "shown" if shown else "partly shown" if able and any(clear) else "not shown"
    title = "Circuits bring their emotions into answers" if shown else (
        "It is not shown that circuits bring their emotions into answers" if able else "Emotions could not be heard"
    )  # fmt: skip
    said = {"row": row, "known": known, "others": others, "able": able, "title": title, "chance": known["chance"]}
    return standing, said

"""What stands out at first sight: tiles with the main figures, and a card for each concept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectlens.report.evidence import OPERATIONS, VECTORS, Evidence, Row, Tally
from affectlens.report.numbers import MISSING, NOT_SHOWN, estimate, finite, interval, number, p_value, percent, plural
from affectlens.report.tables import corrected


@dataclass(frozen=True)
class Tile:
    """One main figure.

    Attributes:
        section: where it comes from.
        title, value, spread, note: what is printed; ``spread`` is the interval.
        gauge: value, low, high and a reference as percentages of the scale, where defined.
        ends: what the ends of the scale are.
        tone: colour by kind of vector.
    """

    section: str
    title: str
    value: str
    spread: str
    note: str
    gauge: Mapping[str, float]
    ends: tuple[str, str]
    tone: str = "ink"


@dataclass(frozen=True)
class Context:
    """A passage in which a feature is active; ``heat`` is its activation as a share of the strongest one."""

    before: str
    token: str
    after: str
    value: str
    heat: float
    emotion: str
    own: bool


@dataclass(frozen=True)
class Card:
    """All that the study found about one concept."""

    concept: str
    anchor: str
    feature: str
    auroc: str
    facts: Sequence[tuple[str, str]]
    verdict: str
    direction_words: Sequence[str]
    feature_words: Sequence[str]
    contexts: Sequence[Context]


def tiles(evidence: Evidence) -> list[Tile]:
    """The main figures, each with its interval."""
    concepts = plural(len(evidence.concepts), "concept")
    topics = plural(len(evidence.tested), "left-out topic")
    correlation = evidence.correlation(1, "valence")
    r = [finite(correlation.get(key)) for key in ("r", "low", "high")]
    return [
        _auroc_tile(evidence, "directions", "auroc_test", "Directions read concepts", f"{concepts}, {topics}"),
        _auroc_tile(evidence, "match", "best_feature_auroc", "SAE features read concepts", ""),
        _share_tile(
            "agreement", "Feature and direction agree", evidence.agreeing, "feature", "with a cosine above its null"
        ),
        _share_tile(
            "causal",
            "Injecting directions",
            evidence.tally_verdict("direction", "specific"),
            "direction",
            _beside(evidence, "direction"),
        ),
        _share_tile(
            "causal",
            "Injecting SAE features",
            evidence.tally_verdict("feature", "specific"),
            "feature",
            _beside(evidence, "feature"),
        ),
        Tile(
            "geometry",
            "First component and valence",
            f"r = {number(r[0])}" if r[0] is not None else NOT_SHOWN,
            interval(r[1], r[2]),
            f"{plural(int(correlation.get('n') or 0), 'rated concept')}",
            _gauge(r, 0.0, -1.0, 1.0),
            (number(-1, 0), number(1, 0)),
        ),
    ]


def _beside(evidence: Evidence, vector: str) -> str:
    """What stands beside the count of specific effects: all vectors in one test, and the weaker rule."""
    said = "whose words rise beyond all controls, and specifically"
    p, above, wrong = (
        evidence.figure("causal", f"{name}_{vector}")[0]
        for name in ("diagonal_p", "share_above_controls", "above_controls_expected")
    )
    if above is not None:
        said += f"; above every control {percent(above)}, expected of wrong labels {percent(wrong)}"
    return said if p is None else f"{said}; all together p = {p_value(p)}"


def _auroc_tile(evidence: Evidence, stage: str, key: str, title: str, note: str) -> Tile:
    values = evidence.figure(stage, key)
    reference = 0.5
    if stage == "match":
        noise = evidence.figure("match", "random_sae_auroc")
        reference = noise[0]
        note = f"random SAE: {estimate(*noise)}"
    least = min([each for each in values if each is not None], default=0.5)
    start = min(0.5, math.floor(10 * least) / 10)
    return Tile(
        "directions" if stage == "directions" else "features",
        title,
        number(values[0]) if values[0] is not None else NOT_SHOWN,
        interval(values[1], values[2]),
        f"mean AUROC; {note}",
        _gauge(values, reference, start, 1.0),
        (number(start, 1), "1"),
        "direction" if stage == "directions" else "feature",
    )


def _share_tile(section: str, title: str, tally: Tally, tone: str, note: str) -> Tile:
    from affectlens.stats import wilson

    if not tally.total:
        return Tile(section, title, NOT_SHOWN, "[no interval]", note, {}, ("0", "all"), tone)
    rate = wilson(len(tally.shown), tally.total)
    return Tile(
        section,
        title,
        f"{len(tally.shown)} of {tally.total}",
        f"[{percent(rate.low)}, {percent(rate.high)}]",
        f"concepts {note}",
        _gauge([rate.value, rate.low, rate.high], None, 0.0, 1.0),
        ("0%", "100%"),
        tone,
    )


def _gauge(values: Sequence[float | None], reference: float | None, start: float, end: float) -> dict[str, float]:
    """Positions on the scale from ``start`` to ``end`` as percentages, for what is known."""
    named = dict(zip(("value", "low", "high", "reference"), (*values, reference), strict=True))
    return {
        name: round(100 * min(max((value - start) / (end - start), 0), 1), 1)
        for name, value in named.items()
        if value is not None
    }


def cards(evidence: Evidence, *, concepts: int, contexts: int, words: int) -> list[Card]:
    """Cards of the concepts whose features detect best."""
    rows = sorted(evidence.match, key=lambda row: (finite(row.get("auroc_test")) is None, -_or_zero(row)))
    directions, agreement = evidence.by_concept(evidence.directions), evidence.by_concept(evidence.comparison)
    found = []
    for row in rows[:concepts]:
        concept = row["concept"]
        direction, cosine = directions.get(concept, {}), agreement.get(concept, {})
        found.append(
            Card(
                concept=concept,
                anchor=f"card-{evidence.concepts.index(concept)}",
                feature=str(row.get("feature", MISSING)),
                auroc=number(row.get("auroc_test")),
                facts=_facts(evidence, row, direction, cosine),
                verdict=str(evidence.verdicts.get(concept, {}).get("words", f"Causal effect: {NOT_SHOWN}.")),
                direction_words=_printable(direction.get("words", [])[:words]),
                feature_words=_printable(row.get("words", [])[:words]),
                contexts=_contexts(concept, row.get("contexts", [])[:contexts]),
            )
        )
    return found


def _facts(evidence: Evidence, feature: Row, direction: Row, cosine: Row) -> list[tuple[str, str]]:
    facts = [
        ("AUROC of the feature", estimate(feature.get("auroc_test"), feature.get("low"), feature.get("high"))),
        ("of the best random-SAE feature", number(feature.get("auroc_random_sae"))),
        ("p, corrected", corrected(feature).text),
        ("AUROC of the direction", estimate(direction.get("auroc_test"), direction.get("low"), direction.get("high"))),
        ("cosine of both", f"{number(cosine.get('cosine'))} (null: {number(cosine.get('cosine_null_95'))})"),
    ]
    said = {"inject": "{} in: rise of the words, nats", "ablate": "{} out: fall of the words, nats"}
    for operation in OPERATIONS:
        for vector in VECTORS:
            row = evidence.effect_rows(vector, operation).get(feature["concept"], {})
            value = estimate(row.get("effect"), row.get("low"), row.get("high"), sign=True)
            facts.append((said[operation].format(vector), value))
    return facts


def _contexts(concept: str, rows: Sequence[Row]) -> list[Context]:
    top = max((value for row in rows if (value := finite(row.get("value"))) is not None), default=0.0)
    found = []
    for row in rows:
        token = str(row.get("token", ""))
        # The blank before a word is part of its token, but should not be marked.
        blank = token[: len(token) - len(token.lstrip())] if token.strip() else ""
        found.append(
            Context(
                before=str(row.get("before", "")) + blank,
                token=token[len(blank) :],
                after=str(row.get("after", "")),
                value=number(row.get("value")),
                heat=round((finite(row.get("value")) or 0.0) / top, 2) if top > 0 else 0.0,
                emotion=str(row.get("emotion") or "neutral text"),
                own=row.get("emotion") == concept,
            )
        )
    return found


def _printable(words: Sequence[Any]) -> list[str]:
    return [str(item).strip() or "␣" for item in words]


def _or_zero(row: Row) -> float:
    return finite(row.get("auroc_test")) or 0.0

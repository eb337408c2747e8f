"""What stands out at first sight: tiles with the main figures, marks and a card for each concept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from affectlens.report import tables
from affectlens.report.evidence import OPERATIONS, VECTORS, Evidence, Figure, Row, Tally
from affectlens.report.sections.causal import words
from affectlens.report.sections.detection import index, words_of
from affectlens.report.sentences import say
from affectlens.report.tables import Cell, Table
from affectlens.results.format import NOT_SHOWN, estimate, finite, interval, number, percent
from affectlens.stats import wilson


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
    contexts: Sequence[Row]


BESIDE = """concepts whose words rise beyond all controls, and specifically{% if above is not none %}; above every
control
{{ above | percent }}, expected of wrong labels {{ wrong | percent }}{% endif %}{% if p is not none %}; all together
p = {{ p | p }}{% endif %}"""


def tiles(evidence: Evidence) -> list[Tile]:
    """The main figures, each with its interval."""
    direction, feature = evidence.metric("directions", "auroc_test"), evidence.metric("match", "best_feature_auroc")
    noise, r = evidence.metric("match", "random_sae_auroc"), evidence.metric("geometry", "r_component_1_valence")
    note = say(
        'mean AUROC; {{ plural(concepts, "concept") }}, {{ plural(topics, "left-out topic") }}',
        concepts=len(evidence.concepts),
        topics=len(evidence.tested),
    )
    shares = []
    for vector, title in VECTORS.items():
        beside = say(
            BESIDE,
            p=evidence.metric("causal", f"diagonal_p_{vector}")[0],
            above=evidence.metric("causal", f"share_above_controls_{vector}")[0],
            wrong=evidence.metric("causal", f"above_controls_expected_{vector}")[0],
        )
        shares.append(_share("causal", f"Injecting {title}", evidence.verdict(vector, "specific"), vector, beside))
    agree = "concepts with a cosine above its null"
    rated = f"{evidence.count('geometry', 'rated_words')} rated concepts"
    return [
        _scale("directions", "Directions read concepts", direction, 0.5, note, "direction"),
        _scale(
            "features", "SAE features read concepts", feature, noise[0], f"random SAE: {estimate(*noise)}", "feature"
        ),
        _share("agreement", "Feature and direction agree", evidence.agreeing, "feature", agree),
        *(replace(tile, title=tile.title.replace("Directions", "directions")) for tile in shares),
        _scale("geometry", "First component and valence", r, 0.0, rated, "ink", (-1.0, 1.0), "r = "),
    ]


def _scale(
    section: str,
    title: str,
    figure: Figure,
    reference: float | None,
    note: str,
    tone: str,
    ends: tuple[float, float] | None = None,
    name: str = "",
) -> Tile:
    least = min((value for value in figure if value is not None), default=0.5)
    start, end = ends or (min(0.5, math.floor(10 * least) / 10), 1.0)
    value = NOT_SHOWN if figure[0] is None else name + number(figure[0])
    gauge = _gauge(figure, reference, start, end)
    return Tile(section, title, value, interval(*figure[1:]), note, gauge, (f"{start:g}", f"{end:g}"), tone)


def _share(section: str, title: str, tally: Tally, tone: str, note: str) -> Tile:
    if not tally.total:
        return Tile(section, title, NOT_SHOWN, "[no interval]", note, {}, ("0", "all"), tone)
    rate = wilson(len(tally.shown), tally.total)
    value, spread = f"{len(tally.shown)} of {tally.total}", f"[{percent(rate.low)}, {percent(rate.high)}]"
    gauge = _gauge((rate.value, rate.low, rate.high), None, 0.0, 1.0)
    return Tile(section, title, value, spread, note, gauge, ("0%", "100%"), tone)


def _gauge(figure: Figure, reference: float | None, start: float, end: float) -> dict[str, float]:
    """Positions on the scale from ``start`` to ``end`` as percentages, for what is defined."""
    named = dict(zip(("value", "low", "high", "reference"), (*figure, reference), strict=True))
    return {
        name: round(100 * min(max((value - start) / (end - start), 0), 1), 1)
        for name, value in named.items()
        if value is not None
    }


RULE = "beyond every family of controls at a corrected 5%; half: more than every control, and not by that rule"
CLAIMS = {
    "Direction reads it": "The direction's AUROC within left-out topics lies above 0.5 at a corrected 5%, by a t over "
    "topics; half: without correction",
    "Feature reads it": "A feature matches it with a corrected p of at most 0.05, and reads it better than the "
    "features of "
    "random SAEs do; half: the p alone",
    "Both agree": "The feature's cosine with the direction lies above 95% of its null (uncorrected: half)",
    "Inject direction": f"Raises the concept's words, against other concepts' words, {RULE}",
    "Inject feature": f"Raises the concept's words, against other concepts' words, {RULE}",
    "Ablate direction": f"Lowers the concept's words in stories that evoke them, {RULE}",
    "Ablate feature": f"Lowers the concept's words in stories that evoke them, {RULE}",
}


def overview(evidence: Evidence, links: Mapping[str, str]) -> Table:
    """Per concept, which of the claims the study can make about it.

    Args:
        evidence: what was found.
        links: concept -> id of its card.
    """
    agreeing = evidence.agreeing
    tallies = [
        evidence.read_by_direction,
        evidence.read_by_feature,
        Tally([], [*agreeing.shown, *agreeing.missing], weak=agreeing.shown),
        *(evidence.intervention(vector, operation) for operation in OPERATIONS for vector in VECTORS),
    ]
    rows = [
        [
            Cell(concept, concept.lower(), link=links.get(concept, "")),
            *(tables.mark(tally.of(concept), weak=concept in tally.weak) for tally in tallies),
        ]
        for concept in evidence.concepts
    ]
    columns = [tables.text("Concept", "")]
    columns += [tables.Column(title, tables.word, help, "claim") for title, help in CLAIMS.items()]
    return Table("overview", "What is shown for which concept", columns, rows, open=True, criteria=True)


def cards(evidence: Evidence, *, concepts: int, contexts: int) -> list[Card]:
    """Cards of the concepts whose features detect best."""
    directions, cosines = evidence.by_concept("directions/concepts"), evidence.by_concept("compare/cosines")
    rows = sorted(evidence.rows("match/concepts"), key=lambda row: -(finite(row["auroc_test"]) or 0.0))
    listed = []
    for row in rows[:concepts]:
        concept = row["concept"]
        direction = directions.get(concept, {})
        passages = [each for each in evidence.rows("match/contexts") if each["concept"] == concept]
        listed.append(
            Card(
                concept=concept,
                anchor=f"card-{evidence.concepts.index(concept)}",
                feature=index(row.get("feature")).text,
                auroc=number(row["auroc_test"]),
                facts=_facts(evidence, row, direction, cosines.get(concept, {})),
                verdict=words(evidence, concept) or f"Causal effect: {NOT_SHOWN}.",
                direction_words=words_of(direction, evidence.words),
                feature_words=words_of(row, evidence.words),
                contexts=_contexts(concept, passages[:contexts]),
            )
        )
    return listed


def _facts(evidence: Evidence, feature: Row, direction: Row, cosine: Row) -> list[tuple[str, str]]:
    facts = [
        ("AUROC of the feature", estimate(feature.get("auroc_test"), feature.get("low"), feature.get("high"))),
        ("of the best random-SAE feature", number(feature.get("auroc_random_sae"))),
        ("p, corrected", tables.corrected(feature).text),
        ("AUROC of the direction", estimate(direction.get("auroc_test"), direction.get("low"), direction.get("high"))),
        ("cosine of both", f"{number(cosine.get('cosine'))} (null: {number(cosine.get('cosine_null_95'))})"),
        ("other concepts with the feature", feature.get("same_feature") or "none"),
    ]
    said = {"inject": "{} in: rise of the words, nats", "ablate": "{} out: fall of the words, nats"}
    for operation in OPERATIONS:
        for vector in VECTORS:
            row = evidence.effects(vector, operation).get(feature["concept"], {})
            value = estimate(row.get("effect"), row.get("low"), row.get("high"), sign=True)
            facts.append((said[operation].format(vector), value))
    return facts


def _contexts(concept: str, rows: Sequence[Row]) -> list[Row]:
    """Passages in which a feature is active; ``heat`` is its activation as a share of the strongest one."""
    top, contexts = max((finite(row["value"]) or 0.0 for row in rows), default=0.0), []
    for row in rows:
        # The blank before a word is part of its token, but should not be marked.
        token = row["token"]
        blank = token[: len(token) - len(token.lstrip())] if token.strip() else ""
        shown = {"before": row["before"] + blank, "token": token[len(blank) :], "value": number(row["value"])}
        shown |= {"heat": round((finite(row["value"]) or 0.0) / top, 2) if top > 0 else 0.0}
        contexts.append({**row, **shown, "emotion": row["emotion"] or "neutral text", "own": row["emotion"] == concept})
    return contexts

"""The tables: every number of the figures, with what is not known left as a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectlens.report.evidence import OPERATIONS, VECTORS, Evidence, Tally
from affectlens.report.numbers import MISSING, count, finite, general, interval, number, p_value, percent


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by (None goes last)."""

    text: str
    key: float | str | None
    tone: str = ""
    link: str = ""
    title: str = ""


@dataclass(frozen=True)
class Column:
    """A heading, its explanation, and whether the cells are numbers, or claims that are shown or not."""

    title: str
    help: str = ""
    numeric: bool = False
    claim: bool = False


@dataclass(frozen=True)
class Table:
    """A sortable table with a caption."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def word(text: Any) -> Cell:
    """A cell of text."""
    return Cell(str(text), str(text).lower())


def figure(value: Any, digits: int = 3, *, sign: bool = False) -> Cell:
    """A cell with a number of fixed decimals."""
    return Cell(number(value, digits, sign=sign), finite(value))


def span(low: Any, high: Any, digits: int = 3) -> Cell:
    """A cell with an interval, sorted by its lower end."""
    known = finite(low) is not None and finite(high) is not None
    return Cell(interval(low, high, digits) if known else MISSING, finite(low))


def corrected(row: Mapping[str, Any]) -> Cell:
    """A corrected p, written ``<=`` where the raw one is the least possible; the raw one is under the pointer."""
    raw, floor = finite(row.get("p")), finite(row.get("p_floor")) or 0.0
    p = finite(row.get("p_adjusted"))
    at_floor = raw is not None and raw <= floor * (1 + 1e-9)
    written = p_value(p, floor=p if at_floor and p is not None else 0.0)
    return Cell(written, p, title=f"uncorrected: {p_value(raw, floor)}; least possible: {p_value(floor or None)}")


def mark(shown: bool | None, *, weak: bool = False) -> Cell:
    """A cell that says whether something is shown, or only by a weaker rule."""
    if shown is None:
        return Cell(MISSING, None, "unknown")
    if weak and not shown:
        return Cell("weakly", 0.5, "weak")
    return Cell("shown", 1.0, "yes") if shown else Cell("not shown", 0.0, "no")


RULE = "beyond every family of controls at a corrected 5%; half: more than every control, and not by that rule"


def overview(evidence: Evidence, linked: Mapping[str, str]) -> Table:
    """Per concept, which of the claims the study can make about it.

    Args:
        evidence: what was found.
        linked: concept -> id of its card.
    """
    claims = [
        ("Direction reads it", "The direction's AUROC within left-out topics lies above 0.5 at a corrected 5%, by a t "
            "over topics; half: without correction"),
        ("Feature reads it", "A feature matches it with a corrected p of at most 0.05, and reads it better than the "
            "features of random SAEs do; half: the p alone"),
        ("Both agree", "The feature's cosine with the direction lies above 95% of its null (uncorrected: half)"),
        ("Inject direction", f"Raises the concept's words, against other concepts' words, {RULE}"),
        ("Inject feature", f"Raises the concept's words, against other concepts' words, {RULE}"),
        ("Ablate direction", f"Lowers the concept's words in stories that evoke them, {RULE}"),
        ("Ablate feature", f"Lowers the concept's words in stories that evoke them, {RULE}"),
    ]  # fmt: skip
    tallies = [
        evidence.read_by_direction,
        evidence.read_by_feature,
        Tally([], [*evidence.agreeing.shown, *evidence.agreeing.missing], weak=evidence.agreeing.shown),
        *(evidence.tally_effect(vector, operation) for operation in OPERATIONS for vector in VECTORS),
    ]
    rows = [
        [
            Cell(concept, concept.lower(), link=linked.get(concept, "")),
            *(mark(_in(tally, concept), weak=concept in tally.weak) for tally in tallies),
        ]
        for concept in evidence.concepts
    ]
    columns = [Column("Concept"), *(Column(title, why, claim=True) for title, why in claims)]
    return Table("overview", "What is shown for which concept", columns, rows)


def _in(tally: Tally, concept: str) -> bool | None:
    if concept in tally.shown:
        return True
    return False if concept in tally.missing else None


GATES = {
    "named": ("Names the concept", "Texts that hold their own concept's word or an inflection of it"),
    "short": ("Short", "Fewer words than a story should have"),
    "long": ("Long", "More words than a story should have"),
    "duplicates": ("Duplicates", "Texts equal to an earlier one"),
    "shared_runs": ("Shared runs", "Texts that share a run of words with another text"),
}


def quality(evidence: Evidence) -> Table:
    """Per concept its texts and what the quality gates found."""
    concepts: Mapping[str, Mapping[str, Any]] = evidence.quality.get("concepts", {})
    gates = [gate for gate in next(iter(concepts.values()), {}) if gate not in {"texts", "mean_words"}]
    columns = [Column("Concept"), Column("Texts", numeric=True), Column("Words per text", numeric=True)]
    columns += [Column(*GATES.get(gate, (gate.replace("_", " "), "")), numeric=True) for gate in gates]
    rows = [
        [
            word(concept),
            Cell(count(row.get("texts")), finite(row.get("texts"))),
            figure(row.get("mean_words"), 1),
            *(Cell(count(row.get(gate)), finite(row.get(gate)), "found" if row.get(gate) else "") for gate in gates),
        ]
        for concept, row in concepts.items()
    ]
    return Table("quality", "Texts and findings of the quality gates, per concept", columns, rows)


def directions(evidence: Evidence, words: int) -> Table:
    """Per concept its direction's detection, what the neutral projection removed, and its words."""
    columns = [
        Column("Concept"),
        Column("AUROC", "Within left-out topics; 0.5 is chance", True),
        Column("95% interval", "t over topics", True),
        Column("Removed", "Share of the squared norm that the neutral projection removed", True),
        Column("Logit-lens words", "Tokens whose unembedding the direction points to most"),
    ]
    rows = [
        [
            word(row["concept"]),
            figure(row.get("auroc_test")),
            span(row.get("low"), row.get("high")),
            Cell(percent(row.get("neutral_energy")), finite(row.get("neutral_energy"))),
            word(_words(row, words)),
        ]
        for row in evidence.directions
    ]
    return Table("directions", "Directions within left-out topics", columns, rows)


def features(evidence: Evidence, words: int) -> Table:
    """Per concept its feature, against a random SAE and against chance."""
    columns = [
        Column("Concept"),
        Column("Feature", "Index in the SAE", True),
        Column("AUROC", "Within left-out topics; 0.5 is chance", True),
        Column("95% interval", "t over topics", True),
        Column("On choosing", "AUROC of the feature that steers, on the topics that chose it", True),
        Column(
            "Random SAE", "AUROC of the best features of random SAEs of the same shape, chosen and read alike", True
        ),
        Column("p, corrected", "Permutation within topics, maximum over all features; Benjamini-Hochberg", True),
        Column("Logit-lens words", "Tokens whose unembedding the decoder row points to most"),
    ]
    rows = [
        [
            word(row["concept"]),
            Cell(str(row.get("feature", MISSING)), finite(row.get("feature"))),
            figure(row.get("auroc_test")),
            span(row.get("low"), row.get("high")),
            figure(row.get("auroc_selection")),
            figure(row.get("auroc_random_sae")),
            corrected(row),
            word(_words(row, words)),
        ]
        for row in evidence.match
    ]
    return Table("features", "The best SAE feature of each concept", columns, rows)


def methods(evidence: Evidence) -> Table:
    """Per method its mean detection."""
    columns = [
        Column("Method"),
        Column("Mean AUROC", "Over concepts, within left-out topics", True),
        Column("95% interval", "t over topics", True),
        Column("Concepts", numeric=True),
    ]
    rows = []
    for row in evidence.detection:
        defined = [value for value in row.get("per_concept", {}).values() if finite(value) is not None]
        cells = [
            figure(row.get("mean")),
            span(row.get("low"), row.get("high")),
            Cell(count(len(defined)), len(defined)),
        ]
        rows.append([word(row["method"]), *cells])
    return Table("methods", "Detection within the same left-out topics", columns, rows)


def agreement(evidence: Evidence) -> Table:
    """Per concept how close its feature lies to its direction."""
    columns = [
        Column("Concept"),
        Column("Feature", "The one that matches the concept best", True),
        Column("Cosine", "Of its decoder row with the direction", True),
        Column("95% of null", "Random directions with the covariance of the activations", True),
        Column("Rank", "Among all features, by cosine", True),
        Column("Closest feature", numeric=True),
        Column("Its cosine", numeric=True),
    ]
    rows = [
        [
            word(row["concept"]),
            Cell(str(row.get("feature", MISSING)), finite(row.get("feature"))),
            figure(row.get("cosine")),
            figure(row.get("cosine_null_95")),
            Cell(count(row.get("cosine_rank")), finite(row.get("cosine_rank"))),
            Cell(str(row.get("closest_feature", MISSING)), finite(row.get("closest_feature"))),
            figure(row.get("closest_cosine")),
        ]
        for row in evidence.comparison
    ]
    return Table("agreement", "Features and directions", columns, rows)


def correlations(evidence: Evidence) -> Table:
    """Principal components against ratings, and against story length."""
    columns = [
        Column("Component", numeric=True),
        Column("With"),
        Column("r", "Pearson, over concepts", True),
        Column("95% interval", numeric=True),
        Column("n", "Concepts", True),
        Column("p", "Permutation of concepts", True),
    ]
    found = [*evidence.geometry.get("correlations", [])]
    found += [{**row, "rating": "story length"} for row in evidence.geometry.get("length_correlation", [])]
    rows = [
        [
            Cell(str(row["component"]), finite(row["component"])),
            word(row["rating"]),
            figure(row.get("r"), 2),
            span(row.get("low"), row.get("high"), 2),
            Cell(count(row.get("n")), finite(row.get("n"))),
            Cell(p_value(row.get("p")), finite(row.get("p"))),
        ]
        for row in found
    ]
    return Table("correlations", "Components, ratings and story length", columns, rows)


def effects(evidence: Evidence) -> Table:
    """Every measured intervention."""
    columns = [
        Column("Concept"),
        Column("Vector"),
        Column("Operation"),
        Column("Strength", "In units of the mean residual norm", True),
        Column(
            "Effect (nats)", "Rise (inject) or fall (ablate) of the concept's words against other concepts' words", True
        ),
        Column("95% interval", numeric=True),
        Column("Controls, mean", numeric=True),
        Column("Controls, largest", numeric=True),
        Column(
            "p, controls of all concepts pooled, corrected",
            "Against the family of controls that is hardest to exceed; Benjamini-Hochberg over concepts",
            True,
        ),
        Column("Beyond all controls", claim=True),
    ]
    rows = [
        [
            word(row["concept"]),
            word(row["vector"]),
            word(row["operation"]),
            Cell(general(row.get("strength")), finite(row.get("strength"))),
            figure(row.get("effect"), sign=True),
            span(row.get("low"), row.get("high")),
            figure(row.get("control_mean"), sign=True),
            figure(row.get("control_max"), sign=True),
            corrected(row),
            mark(row.get("above_controls") if finite(row.get("effect")) is not None else None),
        ]
        for row in evidence.effects
    ]
    return Table("effects", "Effects of all interventions", columns, rows)


def verdicts(evidence: Evidence) -> Table:
    """Per concept what the interventions show by all criteria, and in words."""
    claims = (
        ("sufficient", "Injecting it raises the concept's words, and neutral text stays fluent"),
        ("specific", "And other concepts' vectors do not do as much, nor does it raise all words of like valence"),
        ("necessary", "Taking it out of stories that evoke the concept lowers its words"),
    )
    columns = [
        Column("Concept"),
        *(Column(f"{vector.capitalize()} {claim}", why, claim=True) for vector in VECTORS for claim, why in claims),
        Column("In words"),
    ]
    tallies = [evidence.tally_verdict(vector, claim) for vector in VECTORS for claim, _ in claims]
    rows = [
        [
            word(concept),
            *(mark(_in(tally, concept)) for tally in tallies),
            word(evidence.verdicts.get(concept, {}).get("words", MISSING)),
        ]
        for concept in evidence.concepts
    ]
    return Table("verdicts", "Verdict per concept", columns, rows)


HEALTH = {
    "l0": ("Active features per token", "Mean over held-out tokens (L0)", general),
    "explained_variance": ("Explained variance", "Share of the variance that the reconstruction holds", percent),
    "ce_recovered": ("Cross-entropy recovered", "When the reconstruction replaces the residual stream", percent),
    "dead_share": ("Dead features", "Active on none of the held-out tokens", percent),
    "dense_share": ("Dense features", "Active on more than a tenth of the held-out tokens", percent),
    "rows": ("Held-out tokens", "On which these figures were taken", count),
    "width": ("Features", "Width of the SAE", count),
}


def health(evidence: Evidence) -> Table:
    """What was measured of the SAE, beside a random SAE of the same shape."""
    columns = [
        Column("Figure"),
        Column("This SAE", numeric=True),
        Column("Random SAE", numeric=True),
        Column("What it is"),
    ]
    random: Mapping[str, Any] = evidence.health.get("random", {})
    rows = []
    for name, value in evidence.health.items():
        if name in HEALTH or (isinstance(value, int | float) and not isinstance(value, bool)):
            title, what, written = HEALTH.get(name, (name.replace("_", " ").capitalize(), "", general))
            other = random.get(name)
            rows.append(
                [
                    word(title),
                    Cell(written(value), finite(value)),
                    Cell(written(other), finite(other)),
                    word(what),
                ]
            )
    return Table("health", "Health of the SAE on held-out text", columns, rows)


def stages(evidence: Evidence) -> Table:
    """What each figure was computed by."""
    columns = [Column("Stage"), Column("Version", numeric=True), Column("Fingerprint")]
    rows = [
        [word(row["stage"]), Cell(str(row["version"]), finite(row["version"])), word(row["fingerprint"])]
        for row in evidence.provenance.stages
    ]
    return Table("stages", "Stages and fingerprints", columns, rows)


def _words(row: Mapping[str, Any], limit: int) -> str:
    return ", ".join(str(item).strip() or "␣" for item in row.get("words", [])[:limit]) or MISSING

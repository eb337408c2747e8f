"""All that the page shows, as plain data: what stages hand over, and the look-ups that several sections share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean, median
from typing import Any, Protocol

from affectlens.report.numbers import finite

Row = Mapping[str, Any]
VECTORS = ("direction", "feature")
OPERATIONS = ("inject", "ablate")
SIGNIFICANT = 0.05
"""Corrected p up to which a concept counts as shown."""
BASELINE = "difference of means"
FEATURE = "best SAE feature"


class Text(Protocol):
    """What the page reads of a document."""

    @property
    def emotion(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Provenance:
    """Where the figures come from.

    Attributes:
        config: the study's settings, section by section, as they could be run again.
        stages: per stage its name, version and fingerprint.
        data: what was read from outside the cache, by role, with its digest.
        versions: of Python and packages.
    """

    config: Mapping[str, Any]
    stages: Sequence[Row]
    data: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Tally:
    """For how many concepts something is shown.

    Attributes:
        shown: concepts for which it is.
        missing: concepts for which it was looked for and is not shown.
        unknown: concepts without the figure that would decide it.
        weak: concepts for which a weaker rule holds, and this one does not.
    """

    shown: Sequence[str]
    missing: Sequence[str]
    unknown: Sequence[str] = ()
    weak: Sequence[str] = ()

    @property
    def total(self) -> int:
        """Concepts for which it was looked for."""
        return len(self.shown) + len(self.missing)


@dataclass(frozen=True)
class Evidence:
    """The opened results of a study, without the objects that opened them.

    Attributes:
        model: name of the model.
        layer: whose residual stream is studied.
        width: of the residual stream.
        tokens: rows in the activation cache.
        concepts: in the order of every "concepts" axis.
        documents: the corpus.
        quality: findings of the quality gates.
        directions, sweep: per concept and per layer.
        features: width of the SAE.
        health: of the SAE.
        match, comparison: per concept.
        detection: per method.
        metrics: per stage its flat metrics.
        geometry: components, ratings, correlations, cosines.
        effects, matrix, dose, verdicts, controls: of the causal stage.
        pairs: same-words pairs, per method, layer and reading.
        confounds: per concept what else tells it.
        pursuit, subspace: what directions are made of.
        experiments: per behavioural experiment its claim and findings.
        fixed_split: whether the study names its test topics; otherwise every topic is the test once.
    """

    model: str
    layer: int
    width: int
    tokens: int
    concepts: Sequence[str]
    documents: Sequence[Text]
    quality: Mapping[str, Any]
    directions: Sequence[Row]
    sweep: Sequence[Row]
    features: int
    health: Mapping[str, Any]
    match: Sequence[Row]
    comparison: Sequence[Row]
    detection: Sequence[Row]
    geometry: Mapping[str, Any]
    effects: Sequence[Row]
    matrix: Mapping[str, Sequence[Sequence[Any]]]
    dose: Sequence[Row]
    verdicts: Mapping[str, Row]
    controls: Mapping[str, Any]
    provenance: Provenance
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pairs: Sequence[Row] = ()
    confounds: Sequence[Row] = ()
    pursuit: Sequence[Row] = ()
    subspace: Mapping[str, Any] = field(default_factory=dict)
    experiments: Sequence[Row] = ()
    fixed_split: bool = False

    @cached_property
    def splits(self) -> Mapping[str, int]:
        """Documents of each split."""
        return Counter(document.split for document in self.documents)

    def topics(self, split: str) -> list[str]:
        """Topics of a split, alphabetically."""
        return sorted({document.topic for document in self.documents if document.split == split and document.topic})

    @cached_property
    def tested(self) -> list[str]:
        """The topics on which detection is measured, alphabetically."""
        if self.fixed_split:
            return self.topics("test")
        return sorted({document.topic for document in self.documents if document.topic})

    @cached_property
    def stories(self) -> int:
        """Stories of the topics on which detection is measured."""
        return sum(bool(document.emotion) and document.topic in self.tested for document in self.documents)

    @cached_property
    def crossed(self) -> bool:
        """Whether every concept has stories in every topic."""
        pairs = {(document.emotion, document.topic) for document in self.documents if document.emotion}
        return len(pairs) == len({concept for concept, _ in pairs}) * len({topic for _, topic in pairs})

    def by_concept(self, rows: Sequence[Row]) -> dict[str, Row]:
        """Rows by their concept."""
        return {row["concept"]: row for row in rows}

    def figure(self, stage: str, name: str) -> tuple[float | None, float | None, float | None]:
        """A stage's metric with the ends of its interval; None for what is not defined."""
        metrics = self.metrics.get(stage, {})
        return finite(metrics.get(name)), finite(metrics.get(f"{name}_low")), finite(metrics.get(f"{name}_high"))

    def method(self, name: str) -> Row:
        """The detection row of a method; empty when it was not compared."""
        return next((row for row in self.detection if row["method"] == name), {})

    @cached_property
    def lowest_layer(self) -> Row:
        """The detection row of directions at the lowest layer read; empty when only one layer was."""
        return next((row for row in self.detection if row["method"].startswith(f"{BASELINE}, layer ")), {})

    def effect_rows(self, vector: str, operation: str) -> dict[str, Row]:
        """Per concept the effect of one intervention at its reference strength."""
        rows = [row for row in self.effects if row["vector"] == vector and row["operation"] == operation]
        strength = self.strength(vector, operation)
        return {row["concept"]: row for row in rows if row.get("strength") == strength}

    def strength(self, vector: str, operation: str) -> Any:
        """The strength that verdicts are about; where the study names none, the one most concepts were measured at."""
        reference = finite(self.metrics.get("causal", {}).get("reference_strength"))
        found = Counter(
            row.get("strength") for row in self.effects if row["vector"] == vector and row["operation"] == operation
        )
        if reference in found:
            return reference
        return found.most_common(1)[0][0] if found else None

    @cached_property
    def doses(self) -> list[float]:
        """The strengths that were tried, ascending."""
        return sorted({row["strength"] for row in self.dose})

    def tally_effect(self, vector: str, operation: str) -> Tally:
        """Concepts for which an intervention is shown, by the verdicts' rule; ``weak`` does more than every control."""
        strict = self.tally_verdict(vector, "sufficient" if operation == "inject" else "necessary")
        rows = self.effect_rows(vector, operation)
        above = [concept for concept in self.concepts if rows.get(concept, {}).get("above_controls")]
        return replace(strict, weak=[concept for concept in above if concept not in strict.shown])

    def tally_verdict(self, vector: str, claim: str) -> Tally:
        """Concepts of which a claim (sufficient, specific, necessary) is shown by all of its criteria."""
        decided = {}
        for concept, verdict in self.verdicts.items():
            if (shown := verdict.get(vector, {}).get(claim)) is not None:
                decided[concept] = bool(shown)
        return self._tally(decided)

    @cached_property
    def read_by_direction(self) -> Tally:
        """Concepts that their direction reads above chance, by the t over topics, corrected (Benjamini-Hochberg).

        ``weak``: the interval lies above chance, without correction.
        """
        from scipy.special import stdtr, stdtrit

        from affectlens.stats import benjamini_hochberg

        rows = {row["concept"]: row for row in self.directions if finite(row.get("low")) is not None}
        degrees = max(len(self.tested) - 1, 1)
        quantile = stdtrit(degrees, 0.975)
        t = [quantile * (row["auroc_test"] - 0.5) / max((row["high"] - row["low"]) / 2, 1e-12) for row in rows.values()]
        corrected = benjamini_hochberg(stdtr(degrees, [-each for each in t])) if t else []
        tally = self._tally({concept: bool(p <= SIGNIFICANT) for concept, p in zip(rows, corrected, strict=True)})
        return replace(tally, weak=[concept for concept in tally.missing if rows[concept]["low"] > 0.5])

    @cached_property
    def read_by_feature(self) -> Tally:
        """Concepts that a feature matches with a corrected p of at most 5%, better than features of random SAEs do.

        ``weak``: by the p alone, which features of random SAEs may have as well.
        """
        matched = {
            row["concept"]: row["p_adjusted"] <= SIGNIFICANT
            for row in self.match
            if finite(row.get("p_adjusted")) is not None
        }
        better = {row["concept"]: (finite(row.get("auroc_test")) or 0.0) > (finite(row.get("auroc_random_sae")) or 0.0)
                  for row in self.match}  # fmt: skip
        tally = self._tally({concept: shown and better[concept] for concept, shown in matched.items()})
        return replace(tally, weak=[concept for concept in tally.missing if matched[concept]])

    @cached_property
    def agreeing(self) -> Tally:
        """Concepts whose feature lies closer to the direction than 95% of the null."""
        return self._tally(
            {
                row["concept"]: row["cosine"] > row["cosine_null_95"]
                for row in self.comparison
                if finite(row.get("cosine")) is not None and finite(row.get("cosine_null_95")) is not None
            }
        )

    def median_cosine(self) -> float | None:
        """Over concepts, between the best feature's decoder row and the direction."""
        found = [value for row in self.comparison if (value := finite(row.get("cosine"))) is not None]
        return median(found) if found else None

    def paired_detection(self) -> dict[str, tuple[float, float]]:
        """Per concept the test AUROC of its direction and of its best feature, where both are defined."""
        direction = self.method(BASELINE).get("per_concept", {})
        feature = self.method(FEATURE).get("per_concept", {})
        pairs = {concept: (finite(direction.get(concept)), finite(feature.get(concept))) for concept in self.concepts}
        return {concept: (a, b) for concept, (a, b) in pairs.items() if a is not None and b is not None}

    def paired_means(self) -> tuple[float, float] | None:
        """Means of :meth:`paired_detection`: direction, feature."""
        pairs = self.paired_detection().values()
        return (fmean(a for a, _ in pairs), fmean(b for _, b in pairs)) if pairs else None

    def correlation(self, component: int, rating: str) -> Row:
        """How a principal component goes with a rating; empty when it was not computed."""
        return next(
            (
                row
                for row in self.geometry.get("correlations", [])
                if row["component"] == component and row["rating"] == rating
            ),
            {},
        )

    def _tally(self, decided: Mapping[str, bool]) -> Tally:
        return Tally(
            shown=[concept for concept in self.concepts if decided.get(concept) is True],
            missing=[concept for concept in self.concepts if decided.get(concept) is False],
            unknown=[concept for concept in self.concepts if concept not in decided],
        )

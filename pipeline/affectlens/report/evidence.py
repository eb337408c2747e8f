"""All that the page shows, as plain data: the declared tables of the stages, their metrics, and what concepts pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.results.format import finite

if TYPE_CHECKING:
    from affectlens.corpus.documents import Document

Row = Mapping[str, Any]
Figure = tuple[float | None, float | None, float | None]
"""A value with the ends of its interval."""
VECTORS = {"direction": "Directions", "feature": "SAE features"}
OPERATIONS = ("inject", "ablate")
SIGNIFICANT = 0.05
"""Corrected p up to which a concept counts as shown."""
BASELINE = "difference of means"
FEATURE = "best SAE feature"


class Rows(list[Row]):
    """The rows of a table, empty cells as None.

    Attributes:
        declared: the table's declaration, where it has one.
    """

    declared: results.Table | None = None

    @classmethod
    def of(cls, frame: Any) -> Rows:
        """From a table as :func:`affectlens.results.read` gives it."""
        rows = cls(frame.astype(object).where(frame.notna(), None).to_dict("records"))
        rows.declared = frame.attrs.get("table")
        return rows

    @classmethod
    def like(cls, other: Sequence[Row], rows: Sequence[Row]) -> Rows:
        """Rows with the declaration of others."""
        made = cls(rows)
        made.declared = getattr(other, "declared", None)
        return made


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
    """For which concepts something is shown.

    Attributes:
        shown: concepts for which it is.
        missing: concepts for which it was looked for and is not shown.
        unknown: concepts without the figure that would decide it.
        weak: those of ``missing`` and ``unknown`` for which a weaker rule holds.
    """

    shown: Sequence[str]
    missing: Sequence[str]
    unknown: Sequence[str] = ()
    weak: Sequence[str] = ()

    @property
    def total(self) -> int:
        """Concepts for which it was looked for."""
        return len(self.shown) + len(self.missing)

    def of(self, concept: str) -> bool | None:
        """Whether it is shown of a concept; None where it was not looked for."""
        return True if concept in self.shown else False if concept in self.missing else None


@dataclass(frozen=True)
class Evidence:
    """The results of a study.

    Attributes:
        model: its name.
        layer: whose residual stream is studied.
        width: of the residual stream.
        concepts: in the order of the study.
        documents: the corpus.
        fixed_split: whether the study names its test topics; otherwise every topic is the test once.
        tables: rows of declared tables under ``stage/table``.
        metrics: per stage.
        cards: what has no table: ``sae`` (metrics of the SAE), ``compare`` and ``geometry``.
        experiments: per behavioural experiment its claim and findings.
        samples: texts sampled under interventions, a row each.
        provenance: settings, fingerprints, digests.
    """

    model: str
    layer: int
    width: int
    concepts: Sequence[str]
    documents: Sequence[Document]
    tables: Mapping[str, Sequence[Row]]
    metrics: Mapping[str, Mapping[str, float]]
    cards: Mapping[str, Mapping[str, Any]]
    provenance: Provenance
    experiments: Sequence[Row] = ()
    samples: Sequence[Row] = ()
    fixed_split: bool = False

    def with_words(self, limit: int) -> Evidence:
        """The same with at most so many logit-lens words of each direction and feature, as lists."""
        cut = {}
        for name in ("directions/concepts", "match/concepts"):
            rows = [{**row, "words": str(row.get("words") or "").split()[:limit]} for row in self.rows(name)]
            cut[name] = Rows.like(self.rows(name), rows)
        return replace(self, tables={**self.tables, **cut})

    def rows(self, name: str) -> Sequence[Row]:
        """The rows of a table; none where the stage wrote none."""
        return self.tables.get(name, ())

    def by_concept(self, name: str, **where: Any) -> dict[str, Row]:
        """The rows of a table whose cells are as given, by their concept."""
        rows = (row for row in self.rows(name) if all(row[key] == value for key, value in where.items()))
        return {row["concept"]: row for row in rows}

    def metric(self, stage: str, name: str) -> Figure:
        """A metric with the ends of its interval."""
        metrics = self.metrics.get(stage, {})
        return finite(metrics.get(name)), finite(metrics.get(f"{name}_low")), finite(metrics.get(f"{name}_high"))

    def count(self, stage: str, name: str) -> int:
        """A metric that is a count; 0 where it is missing."""
        return int(self.metric(stage, name)[0] or 0)

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

    def method(self, name: str) -> Row:
        """The detection row of a method; empty when it was not compared."""
        return next((row for row in self.rows("compare/detection") if row["method"] == name), {})

    def aurocs(self, method: str) -> dict[str, float]:
        """Per concept the AUROC of a method, where it is defined."""
        rows = (row for row in self.rows("compare/readouts") if row["method"] == method)
        return {row["concept"]: value for row in rows if (value := finite(row["auroc"])) is not None}

    def paired(self) -> dict[str, tuple[float, float]]:
        """Per concept the AUROC of its direction and of its best feature, where both are defined."""
        direction, feature = self.aurocs(BASELINE), self.aurocs(FEATURE)
        return {c: (direction[c], feature[c]) for c in self.concepts if c in direction and c in feature}

    def effects(self, vector: str, operation: str) -> dict[str, Row]:
        """Per concept the effect of an intervention at the strength that verdicts are about."""
        rows = [row for row in self.rows("causal/effects") if (row["vector"], row["operation"]) == (vector, operation)]
        reference = self.metric("causal", "reference_strength")[0] if operation == "inject" else 1.0
        return {row["concept"]: row for row in rows if row["strength"] == reference}

    def tally(self, decided: Mapping[str, bool | None], weak: Mapping[str, bool | None] | None = None) -> Tally:
        """Concepts by whether something is shown of them; ``weak`` is a rule that is easier to pass."""
        shown = [concept for concept in self.concepts if decided.get(concept) is True]
        return Tally(
            shown=shown,
            missing=[concept for concept in self.concepts if decided.get(concept) is False],
            unknown=[concept for concept in self.concepts if decided.get(concept) is None],
            weak=[c for c in self.concepts if (weak or {}).get(c) and c not in shown],
        )

    def verdict(self, vector: str, claim: str) -> Tally:
        """Concepts of which a claim (sufficient, specific, necessary) is shown by all of its criteria."""
        return self.tally({c: row[claim] for c, row in self.by_concept("causal/verdicts", vector=vector).items()})

    def verdict_words(self, concept: str) -> str:
        """The verdicts of a concept's vectors as the stage words them."""
        rows = self.rows("causal/verdicts")
        return " ".join(row["words"] for row in rows if row["concept"] == concept and row["words"])

    def intervention(self, vector: str, operation: str) -> Tally:
        """Concepts for which an intervention is shown by the verdicts' rule; ``weak``: beyond every control."""
        strict = self.verdict(vector, "sufficient" if operation == "inject" else "necessary")
        above = {concept for concept, row in self.effects(vector, operation).items() if row["above_controls"]}
        return replace(strict, weak=[c for c in self.concepts if c in above and c not in strict.shown])

    @cached_property
    def read_by_direction(self) -> Tally:
        """Concepts that their direction reads above chance, by the t over topics, corrected (Benjamini-Hochberg).

        ``weak``: the interval lies above chance, without correction.
        """
        import numpy as np

        from affectlens.stats import benjamini_hochberg

        rows = {c: row for c, row in self.by_concept("directions/concepts").items() if finite(row["p"]) is not None}
        if not rows:
            return self.tally({})
        adjusted = benjamini_hochberg(np.array([row["p"] for row in rows.values()]))
        decided = {concept: bool(each <= SIGNIFICANT) for concept, each in zip(rows, adjusted, strict=True)}
        return self.tally(decided, {concept: row["low"] > 0.5 for concept, row in rows.items()})

    @cached_property
    def reads(self) -> bool:
        """Whether directions read anything on topics that did not build them: the badge of directions.

        A direction that reads nothing is noise of its stories. Features chosen on the same stories share that noise,
        so nothing is concluded from how the two agree.
        """
        return bool(self.read_by_direction.shown) and (self.metric("directions", "auroc_test")[1] or 0) > 0.5

    @cached_property
    def read_by_feature(self) -> Tally:
        """Concepts that a feature matches with a corrected p of at most 5%, better than features of random SAEs do.

        ``weak``: by the p alone, which features of random SAEs may have as well.
        """
        rows = self.by_concept("match/concepts")
        passed = {
            c: row["p_adjusted"] <= SIGNIFICANT for c, row in rows.items() if finite(row["p_adjusted"]) is not None
        }
        gain = {c: (finite(row["auroc_test"]) or 0) - (finite(row["auroc_random_sae"]) or 0) for c, row in rows.items()}
        return self.tally({concept: p and gain[concept] > 0 for concept, p in passed.items()}, passed)

    @cached_property
    def agreeing(self) -> Tally:
        """Concepts whose feature lies closer to the direction than 95% of the null; a test that is not corrected."""
        rows = self.by_concept("compare/cosines")
        known = {
            c: row for c, row in rows.items() if None not in (finite(row["cosine"]), finite(row["cosine_null_95"]))
        }
        return self.tally({concept: row["cosine"] > row["cosine_null_95"] for concept, row in known.items()})

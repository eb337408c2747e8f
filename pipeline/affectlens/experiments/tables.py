"""The tables of the three steps of an experiment: declared once, filled from what was measured, graded, concluded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from affectlens.results import Table, flag, integer, number, text

if TYPE_CHECKING:
    import numpy as np

    from affectlens.experiments.results import Measured

EXPERIMENT = text("experiment", "folder of the experiment")
CONDITION = (
    text("vector", "concept, or number of the control within its family; empty without steering"),
    text("family", "none, concept, or the family of controls"),
    number("strength", "steering coefficient", "mean residual norms"),
)
READINGS = Table(
    "readings",
    "Mean reading of a concept over the scenarios of an experiment, under one steering condition.",
    (
        EXPERIMENT,
        text("reading", "name of the reading; `against: ` before it for the second model"),
        *CONDITION,
        text("concept", "concept that is read"),
        number("value", "mean over scenarios", "centred cosine, or feature activation"),
    ),
    key=("experiment", "reading", "vector", "family", "strength", "concept"),
)
CHOICES = Table(
    "choices",
    "Log-odds of the target answers of a scenario, under one steering condition.",
    (
        EXPERIMENT,
        text("scenario", "id"),
        *CONDITION,
        number("log_odds", "of the target over the others", "nats"),
        number("per_token", "difference of mean log-likelihoods", "nats a token"),
    ),
    key=("experiment", "scenario", "vector", "family", "strength"),
)
COMPARISONS = Table(
    "comparisons",
    "How far an item is preferred to those it was compared with, under one steering condition.",
    (
        EXPERIMENT,
        text("item", "the item"),
        text("category", "of the item"),
        flag("steered", "whether the item is steered"),
        *CONDITION,
        number("log_odds", "mean over comparisons and both orders", "nats"),
    ),
)
COMPLETIONS = Table(
    "completions",
    "One sampled answer.",
    (
        EXPERIMENT,
        text("scenario", "id"),
        *CONDITION,
        integer("sample", "which of the answers to the scenario"),
        text("text", "what was said"),
        number("loss", "under the untouched model", "nats a token"),
        number("repetition", "three-token runs that repeat", "share"),
    ),
    key=("experiment", "scenario", "vector", "family", "strength", "sample"),
)
MANIPULATION = Table(
    "manipulation",
    "What a steering condition does in neutral texts.",
    (
        EXPERIMENT,
        *CONDITION,
        number("own_words", "rise of the words of the concept that is added", "nats"),
        number("perplexity", "on neutral texts, over that of the untouched model", "ratio"),
    ),
    key=("experiment", "vector", "family", "strength"),
)
GRADES = Table(
    "grades",
    "What a grader says of one sampled answer.",
    (
        EXPERIMENT,
        text("scenario", "id"),
        *CONDITION,
        integer("sample", "which of the answers to the scenario"),
        text("label", "empty where the grader could not tell"),
        number("score", "from 0 to 1"),
        text("reason", "why"),
        flag("names_label", "whether the answer itself names a label that the judge may give"),
        text("judge_versions", "versions of the models that servers of judges reported"),
    ),
    key=("experiment", "scenario", "vector", "family", "strength", "sample"),
)
FINDINGS = Table(
    "findings",
    "One metric of one analysis of an experiment.",
    (
        EXPERIMENT,
        integer("analysis", "position in experiment.yaml"),
        text("kind", "of the analysis"),
        flag("confirmatory", "whether it is the test that the experiment was made for; otherwise it is exploratory"),
        number("p_study", "of the confirmatory test, corrected over all confirmatory tests of the study (Holm)", "p"),
        text("verdict", "whether the claim was shown"),
        text("metric", "empty where the analysis gives none"),
        number("value", "of the metric"),
        text("finding", "the answer in a sentence"),
    ),
    key=("experiment", "analysis", "metric"),
)


def _row(measured: Measured, index: int, **values: Any) -> dict[str, Any]:
    """A row under a steering condition of an experiment."""
    return {"experiment": measured.experiment.name, **vars(measured.grid[index]), **values}


def readings(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`READINGS`."""
    import numpy as np

    named: list[tuple[str, np.ndarray]] = list(measured.readings.items())
    named += [(f"against: {name}", values[None]) for name, values in measured.against.items()]
    for name, values in named:
        there = np.isfinite(values)
        counts = there.sum(axis=1)
        means = np.where(there, values, 0).sum(axis=1) / np.where(counts > 0, counts, np.nan)
        for index, row in enumerate(means):
            for concept, value in zip(measured.concepts, row.tolist(), strict=True):
                yield _row(measured, index, reading=name, concept=concept, value=value if value == value else None)


def choices(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`CHOICES`; only of scenarios and conditions that were scored."""
    import numpy as np

    if measured.choice is None or measured.choice_per_token is None:
        return
    for index, column in np.argwhere(np.isfinite(measured.choice)).tolist():
        odds, per_token = float(measured.choice[index, column]), float(measured.choice_per_token[index, column])
        yield _row(measured, index, scenario=measured.scenarios[column].id, log_odds=odds, per_token=per_token)


def comparisons(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`COMPARISONS`; only items that were compared."""
    import numpy as np

    if measured.comparisons is None or measured.steered is None:
        return
    for index, odds in zip(measured.compared, measured.comparisons, strict=True):
        for item, ((text_, category), steered) in enumerate(zip(measured.items, measured.steered, strict=True)):
            compared = np.concatenate([odds[item], -odds[:, item]])
            if np.isfinite(compared).any():
                own = {"item": text_, "category": category, "steered": bool(steered)}
                yield _row(measured, index, **own, log_odds=float(np.nanmean(compared)))


def manipulation(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`MANIPULATION`."""
    rises, perplexity = measured.manipulation["rises"], measured.manipulation["perplexity"]
    for index, condition in enumerate(measured.grid[1:], start=1):
        own = None
        if condition.vector in measured.concepts:
            own = float(rises[index, measured.concepts.index(condition.vector)])
        yield _row(measured, index, own_words=own, perplexity=float(perplexity[index]))


def completions(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`COMPLETIONS`."""
    for each in measured.completions:
        own = {"scenario": measured.scenarios[each.scenario].id, "sample": each.sample}
        said = {"text": each.text, "loss": each.loss, "repetition": each.repetition}
        yield _row(measured, each.condition, **own, **said)


def grades(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`GRADES`."""
    for each in measured.completions:
        grade = each.grade
        own = {"scenario": measured.scenarios[each.scenario].id, "sample": each.sample}
        given = {name: grade.get(name) for name in ("label", "score", "reason", "names_label")}
        versions = "; ".join(f"{name}: {version}" for name, version in sorted(grade.get("versions", {}).items()))
        yield _row(measured, each.condition, **own, **given, judge_versions=versions)


def findings(entries: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of :data:`FINDINGS`, from the entries of ``findings.json``."""
    for entry in entries:
        for index, finding in enumerate(entry["findings"]):
            for name, value in (finding["metrics"] or {"": None}).items():
                yield {
                    "experiment": entry["name"],
                    "analysis": index,
                    "kind": entry["analyses"][index],
                    "confirmatory": entry["confirmatory"][index],
                    "p_study": entry["p_study"][index],
                    "verdict": finding["verdict"],
                    "metric": name,
                    "value": value,
                    "finding": next(iter(finding["sentences"]), ""),
                }

"""The tables of the three steps of an experiment: declared once, filled from what was measured, graded, concluded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from affectlens.results import Table, flag, integer, number, text

if TYPE_CHECKING:
    import numpy as np

    from affectlens.experiments.results import GradedCompletion, Measured
    from affectlens.interventions.conditions import Condition

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
        text("verdict", "whether the claim was shown"),
        text("metric", "empty where the analysis gives none"),
        number("value", "of the metric"),
        text("finding", "the answer in a sentence"),
    ),
    key=("experiment", "analysis", "metric"),
)


def _condition(condition: Condition) -> dict[str, Any]:
    return {"vector": condition.vector, "family": condition.family, "strength": condition.strength}


def readings(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`READINGS`."""
    import numpy as np

    named: list[tuple[str, np.ndarray]] = list(measured.readings.items())
    named += [(f"against: {name}", values[None]) for name, values in measured.against.items()]
    for name, values in named:
        there = np.isfinite(values)
        means = np.where(there, values, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        for condition, row, any_there in zip(measured.grid, means, np.asarray(there.any(axis=1)), strict=False):
            for concept, value, measurable in zip(measured.concepts, row, any_there, strict=True):
                yield {
                    "experiment": measured.experiment.name,
                    "reading": name,
                    **_condition(condition),
                    "concept": concept,
                    "value": float(value) if measurable else None,
                }


def choices(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`CHOICES`; none of scenarios without options."""
    import numpy as np

    if measured.choice is None:
        return
    assert measured.choice_per_token is not None
    for condition, *odds in zip(measured.grid, measured.choice, measured.choice_per_token, strict=True):
        for scenario, value, per_token in zip(measured.scenarios, *odds, strict=True):
            if np.isfinite(value):
                own = {"experiment": measured.experiment.name, "scenario": scenario.id, **_condition(condition)}
                yield {**own, "log_odds": float(value), "per_token": float(per_token)}


def comparisons(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`COMPARISONS`; only items that were compared."""
    import numpy as np

    if measured.comparisons is None:
        return
    assert measured.steered is not None
    for index, odds in zip(measured.compared, measured.comparisons, strict=True):
        for number_, (item, category) in enumerate(measured.items):
            compared = np.concatenate([odds[number_], -odds[:, number_]])
            if np.isfinite(compared).any():
                yield {
                    "experiment": measured.experiment.name,
                    "item": item,
                    "category": category,
                    "steered": bool(measured.steered[number_]),
                    **_condition(measured.grid[index]),
                    "log_odds": float(np.nanmean(compared)),
                }


def manipulation(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`MANIPULATION`."""
    for index, condition in enumerate(measured.grid[1:], start=1):
        own = condition.vector in measured.concepts
        rises = measured.manipulation["rises"][index]
        yield {
            "experiment": measured.experiment.name,
            **_condition(condition),
            "own_words": float(rises[measured.concepts.index(condition.vector)]) if own else None,
            "perplexity": float(measured.manipulation["perplexity"][index]),
        }


def completions(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`COMPLETIONS`."""
    for completion in measured.completions:
        yield {
            **_whose(measured, completion),
            "text": completion.text,
            "loss": completion.loss,
            "repetition": completion.repetition,
        }


def grades(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of :data:`GRADES`."""
    for completion in measured.completions:
        grade = completion.grade
        yield {
            **_whose(measured, completion),
            "label": grade["label"],
            "score": grade["score"],
            "reason": grade["reason"],
            "names_label": grade.get("names_label"),
            "judge_versions": "; ".join(
                f"{name}: {version}" for name, version in sorted(grade.get("versions", {}).items())
            ),
        }


def _whose(measured: Measured, completion: GradedCompletion) -> dict[str, Any]:
    return {
        "experiment": measured.experiment.name,
        "scenario": measured.scenarios[completion.scenario].id,
        **_condition(measured.grid[completion.condition]),
        "sample": completion.sample,
    }


def findings(entries: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of :data:`FINDINGS`, from the entries of ``findings.json``."""
    for entry in entries:
        for index, finding in enumerate(entry["findings"]):
            for name, value in (finding["metrics"] or {"": None}).items():
                yield {
                    "experiment": entry["name"],
                    "analysis": index,
                    "kind": entry["analyses"][index],
                    "verdict": finding["verdict"],
                    "metric": name,
                    "value": value,
                    "finding": next(iter(finding["sentences"]), ""),
                }

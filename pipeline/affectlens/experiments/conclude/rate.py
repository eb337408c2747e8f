"""How often sampled answers get a label, by vector and strength, and whether two judges agree on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pydantic import Field

from affectlens.experiments.conclude import estimators, pushes, selection, steering
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Figures
from affectlens.experiments.conclude.pushes import SteeringAnalysis
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import GradedCompletion, Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series
from affectlens.stats import Estimate, clustered_rate, wilson

TEMPLATE = (
    """
{% if ungraded > most_ungraded %}
This could not be tested: {{ ungraded|percent }} of {{ answers }} answers could not be graded, too many to
  believe the rest.
{% else %}
"""
    + steering.TEMPLATE
    + """
Unsteered, {{ base|share }} of {{ unsteered }} graded answers are `{{ label }}`.
{% if not vectors %}
No vector is claimed to change that.
{% endif %}
{% if never %}
No graded answer is `{{ label }}`, steered or not.
{% if groups %}
In {{ groups }} independent groups that leaves up to {{ most|percent }} of all such groups that might show one.
{% endif %}
{% endif %}
{{ ungraded|percent }} of {{ answers }} answers could not be graded and are left out.
{% endif %}
{% if judges and kappa is none %}
The judges {{ judges|names }} cannot be compared.
{% endif %}
{% if judges and kappa is not none %}
The judges {{ judges|names }} agree on {{ agreement|share }} of {{ heard }} answers.
Their kappa, agreement beyond chance, is {{ kappa|measured }}.
{% endif %}
{% if judges %}
At least one of them gave no usable vote on {{ silent }} of {{ answers }} answers.
{% endif %}
"""
)


@analysis("rate")
class Rate(SteeringAnalysis):
    """How often a label is given to sampled answers, by vector and strength."""

    label: str
    """The label that is counted."""
    conditions: tuple[str, ...] = ()
    """Of the scenarios that are looked at; all of them by default, but for those of the positive control."""
    matters: float = Field(default=0.25, ge=0)
    """Share a side; half of what the reference reports for blackmail and reward hacking between both pushes."""
    most_ungraded: float = Field(default=0.5, ge=0, le=1)
    """Share of answers without a grade beyond which a rate says nothing."""

    def needs(self) -> Needs:
        return Needs(outcomes=("completions",), vectors=(*self.raises, *self.lowers), conditions=self.conditions)

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Count a label among the graded answers; answers without a grade are reported, never averaged in."""
        rows = selection.rows(measured, self.conditions)
        asked = {*self.asked, self.irrelevant} - set(self.conditions)
        rows = np.array([row for row in rows if measured.scenarios[row].condition not in asked], dtype=np.int64)
        chosen = set(rows.tolist())
        answers = [each for each in measured.completions if each.scenario in chosen]
        if not answers:
            return self.untestable("no answer was sampled")
        shares = label_shares(measured, measured.completions, self.label)
        ungraded = sum(each.grade.get("label") is None for each in answers) / len(answers)
        readable = ungraded <= self.most_ungraded
        names, by_group = pushes.by_group(shares, rows, measured)
        order = steering.positive_control(shares[0], rows, measured, self, rng)
        vectors = steering.steered_vectors(
            measured, by_group - by_group[0], self, self.claimed if readable else (), rng,
            names=names, order=order, rates=True,
        )  # fmt: skip
        gate = order.gate if vectors else ""
        base, unsteered = counted(answers, 0, self.label, measured)
        never, groups = not np.nansum(shares[:, rows]), int(np.isfinite(by_group[0]).sum())
        judged, figures = agreement(answers, measured, self, rng)
        action = f"change the rate of `{self.label}`"
        sentences = render(
            TEMPLATE, **steering.said(vectors, self, action, "of the answers", gate, order), **judged,
            ungraded=ungraded, most_ungraded=self.most_ungraded, answers=len(answers), base=base,
            unsteered=unsteered,
            label=self.label, never=never, groups=groups, most=wilson(0, groups).high if groups else math.nan,
        )  # fmt: skip
        figures |= {"ungraded": ungraded, "answers": len(answers)}
        if not readable:
            return self.finding("untestable", sentences, figures)
        verdict = "untestable" if gate else estimators.overall([each.verdict for each in vectors], self.rule)
        figures |= {"rate_unsteered": base} | steering.figures(vectors, order)

        # Per steering condition the rate, its difference to the unsteered one, and how many were not graded.
        rates, points = [], {}
        for index, each in enumerate(measured.grid):
            own = [answer for answer in answers if answer.condition == index]
            if not own:
                continue
            (rate, graded), change = counted(answers, index, self.label, measured), estimators.undefined()
            if index:
                change = estimators.mean(by_group[index] - by_group[0], None, self, rates=True)
            rates.append(
                {"vector": pushes.label_of(measured, index), "strength": each.strength, f"rate of {self.label}": rate,
                 "difference to unsteered": change, "graded": graded,
                 "not graded": sum(answer.grade.get("label") is None for answer in own),
                 "perplexity ratio": float(measured.manipulation["perplexity"][index])}
            )  # fmt: skip
            if each.family in ("none", "concept"):
                points[each.vector, each.strength] = rate
        series = []
        for vector in dict.fromkeys(vector for vector, _ in points if vector):
            curve = sorted((strength, rate) for (name, strength), rate in points.items() if name in ("", vector))
            series.append(Series.of(vector, [strength for strength, _ in curve], [rate for _, rate in curve]))
        note = "Rates with score intervals, differences paired by scenario with t intervals, all over groups."
        tables = (
            DataTable.of(f"How often answers are {self.label}", rates, note),
            labels_table(measured, answers),
            steering.table(vectors, "share"),
        )
        x, y = "strength, of the mean residual norm", "share of graded answers"
        return self.finding(
            verdict, sentences, figures, tables, (Chart(f"Rate of {self.label}", "line", x, y, series),)
        )


def label_shares(
    measured: Measured, answers: Sequence[GradedCompletion], label: str
) -> Float[np.ndarray, "conditions scenarios"]:
    """Share of the label among the graded answers of a condition to a scenario; NaN where there is none."""
    hits, totals = (np.zeros((len(measured.grid), len(measured.scenarios))) for _ in range(2))
    for each in answers:
        if each.grade.get("label") is not None:
            totals[each.condition, each.scenario] += 1
            hits[each.condition, each.scenario] += each.grade["label"] == label
    return np.where(totals > 0, hits / np.where(totals > 0, totals, 1), np.nan)


def counted(answers: Sequence[GradedCompletion], index: int, label: str, measured: Measured) -> tuple[Estimate, int]:
    """The rate of a label under a steering condition, groups of scenarios the sample, and the answers it is of."""
    own = [each for each in answers if each.condition == index and each.grade.get("label") is not None]
    if not own:
        return estimators.undefined(), 0
    groups = selection.groups(measured, np.array([each.scenario for each in own]))
    return clustered_rate(np.array([each.grade["label"] == label for each in own]), groups), len(own)


def labels_table(measured: Measured, answers: Sequence[GradedCompletion]) -> DataTable:
    """Share of every label among the graded answers of each condition, controls taken together."""
    names = list(dict.fromkeys(str(each.grade["label"]) for each in answers if each.grade.get("label") is not None))
    labels: dict[tuple[str, float], list[str | None]] = {}
    for each in answers:
        condition = measured.grid[each.condition]
        name = {"none": "none", "concept": condition.vector}.get(condition.family, "controls")
        labels.setdefault((name, condition.strength), []).append(each.grade.get("label"))
    rows = []
    for (name, strength), given in labels.items():
        graded = [str(label) for label in given if label is not None]
        shares = [graded.count(label) / len(graded) if graded else math.nan for label in names]
        rows.append((name, strength, *shares, len(given) - len(graded)))
    return DataTable("All labels", ("vector", "strength", *names, "not graded"), rows, "Shares of the graded answers.")


def agreement(
    answers: Sequence[GradedCompletion], measured: Measured, spec: Analysis, rng: np.random.Generator
) -> tuple[dict[str, object], Figures]:
    """What the template and the metrics say of two judges, where grades hold the votes of two."""
    votes = [(each.grade.get("votes") or {}, each.scenario) for each in answers]
    judges = list(dict.fromkeys(judge for vote, _ in votes for judge in vote))
    told: dict[str, object] = {"judges": judges if len(judges) == 2 else (), "kappa": None, "agreement": None}
    if len(judges) != 2:
        return told | {"silent": 0}, {}
    heard = [
        (str(a), str(b), row) for vote, row in votes if None not in (a := vote.get(judges[0]), b := vote.get(judges[1]))
    ]
    told["silent"] = len(votes) - len(heard)
    figures: Figures = {"judges_silent": len(votes) - len(heard)}
    if heard:
        groups = selection.groups(measured, np.array([row for *_, row in heard]))
        figures["kappa"] = kappa([a for a, *_ in heard], [b for _, b, _ in heard], groups, spec, rng)
        figures["agreement"] = clustered_rate(np.array([a == b for a, b, _ in heard]), groups)
        told["heard"] = len(heard)
    return told | figures, figures


def kappa(
    first: Sequence[str], second: Sequence[str], groups: np.ndarray, spec: Analysis, rng: np.random.Generator
) -> Estimate:
    """Agreement of two judges beyond that of their marginal habits (Cohen 1960), with its interval over groups.

    NaN where both say always the same one thing: then chance agreement is all there could be.
    """
    labels = {name: place for place, name in enumerate(dict.fromkeys([*first, *second]))}
    names, codes = np.unique(groups, return_inverse=True)
    tables = np.zeros((len(names), len(labels), len(labels)))
    sides = [np.array([labels[each] for each in side]) for side in (first, second)]
    np.add.at(tables, (codes, *sides), 1)

    def kappas(counts: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, " draws"]:
        drawn = np.einsum("dg,gab->dab", counts, tables)
        total = drawn.sum(axis=(1, 2))
        same = np.einsum("daa->d", drawn) / total
        chance = (drawn.sum(axis=1) * drawn.sum(axis=2)).sum(axis=1) / total**2
        return np.where(chance < 1, (same - chance) / np.where(chance < 1, 1 - chance, 1), math.nan)

    return estimators.bootstrapped(tables, kappas, spec, rng)

"""Vectors claimed to move an outcome: positive control, verdict, and power by planting.

The verdict on a claim is that of :mod:`affectlens.interventions.judge`, the same as in the causal stage. Two things
stand before it. The vector has to move its own words more than controls do (the manipulation check). And the outcome
has to follow where it is asked for outright: an outcome that no instruction moves cannot tell what a vector does, so
without such a positive control nothing is shown and nothing is excluded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.estimators import Contrast, Figures, Frame
from affectlens.experiments.conclude.pushes import ByGroup, Check, SteeringAnalysis, controls, manipulation
from affectlens.experiments.results import Measured
from affectlens.interventions.judge import Claim, judge
from affectlens.interventions.judge import Verdict as Judged
from affectlens.results.figures import VERDICT_WORDS, DataTable, Verdict
from affectlens.results.format import number, plural
from affectlens.stats import Estimate


def positive_control(
    values: Float[np.ndarray, " scenarios"], measured: Measured, spec: SteeringAnalysis, rng: np.random.Generator
) -> tuple[Contrast | None, str]:
    """Half the difference of an unsteered outcome between asking for it and against it, and why it does not serve.

    Args:
        values: the outcome of the unsteered model by scenario.
        measured: the experiment.
        spec: of the analysis.
        rng: of the interval.
    """
    rows = np.arange(len(values))
    conditions = np.array([each.condition for each in measured.scenarios])
    frame = Frame(values, selection.groups(measured, rows))
    sides = [conditions == name for name in spec.asked]
    if not all(side.any() for side in sides):
        return None, "no scenario asks for the outcome outright, so nothing tells whether it can be moved"
    order = estimators.contrast(estimators.paired(frame, *sides) / 2, spec, rng)
    if order.estimate.value > 0 and order.p <= spec.alpha:
        return order, ""
    return order, "the outcome does not follow where it is asked for outright"


@dataclass(frozen=True)
class SteeredVector:
    """What became of one claimed vector.

    Attributes:
        vector: the concept.
        side: 1 if it is claimed to raise the outcome, -1 if to lower it.
        strengths: that were compared, in mean residual norms.
        effect: half the difference between adding it and taking it away, or of the side there is.
        added: change of the outcome where it is added.
        removed: where it is taken away.
        twin: effect less that in the harmless twin; None without one.
        judged: by the judge; None where nothing could be judged.
        smallest: effect that would be shown with the power asked for, by planting.
        verdict: of this vector.
        reason: of the verdict.
    """

    vector: str
    side: Literal[1, -1]
    strengths: tuple[float, ...]
    effect: Estimate
    added: Estimate
    removed: Estimate
    twin: Estimate | None
    judged: Judged | None
    smallest: float
    verdict: Verdict
    reason: str


def steered_vectors(
    measured: Measured,
    change: ByGroup,
    spec: SteeringAnalysis,
    claimed: Sequence[tuple[str, Literal[1, -1]]],
    rng: np.random.Generator,
    *,
    beyond_twin: ByGroup | None = None,
    rates: bool = False,
) -> list[SteeredVector]:
    """Judge every claimed vector; they are one family of tests.

    With a harmless twin the one statistic of a claim is the effect less that in the twin, of the vector and of its
    controls alike: a push that moves both alike is no effect on what the claim is about.

    Args:
        measured: the experiment.
        change: of the outcome against the unsteered model.
        spec: of the analysis.
        claimed: vectors and sides.
        rng: of intervals and planting.
        beyond_twin: the change less that of the twins, for groups that have one.
        rates: whether the outcome is a rate.
    """
    tested = change if beyond_twin is None else beyond_twin
    checks = {
        vector: manipulation(measured, vector, spec, np.asarray(np.isfinite(change).any(axis=1)))
        for vector, _ in claimed
    }
    claims: dict[str, Claim] = {}
    members: dict[str, dict[str, ByGroup]] = {}
    for vector, side in claimed:
        push = checks[vector].push
        if checks[vector].reason or not push or not tested.shape[1]:
            continue
        members[vector] = {
            family: np.stack([member.effect(tested) for member in pushes])
            for family, pushes in controls(measured, push).items()
        }
        members[vector] = {family: rows[np.isfinite(rows).any(axis=1)] for family, rows in members[vector].items()}
        claims[vector] = Claim(
            vector,
            push.effect(tested),
            {family: np.nanmean(rows, axis=1) for family, rows in members[vector].items()},
            side=side,
            symmetric=push.both,
            rates=rates,
        )
    judged = dict(zip(claims, judge(list(claims.values()), spec.rules), strict=True))
    smallest = smallest_shown(claims, members, spec, rng)
    return [
        _concluded(
            measured, vector, side, checks[vector], change, beyond_twin, judged.get(vector), least, spec, rng, rates
        )
        for vector, side in claimed
        for least in (smallest.get(vector, math.nan),)
    ]


def _concluded(
    measured: Measured,
    vector: str,
    side: Literal[1, -1],
    check: Check,
    change: ByGroup,
    beyond_twin: ByGroup | None,
    judged: Judged | None,
    least: float,
    spec: SteeringAnalysis,
    rng: np.random.Generator,
    rates: bool,
) -> SteeredVector:
    push = check.push
    effect = estimators.mean(push.effect(change), None, spec, rng, rates=rates) if push else estimators.undefined()
    added, removed = (
        estimators.undefined() if index is None else estimators.mean(change[index], None, spec, rng, rates=rates)
        for index in (push.plus, push.minus)
    )
    twin = None
    if beyond_twin is not None:
        twin = (
            estimators.mean(push.effect(beyond_twin), None, spec, rng, rates=rates)
            if push and beyond_twin.shape[1]
            else estimators.undefined()
        )
    verdict: Verdict = "untestable"
    if check.reason:
        reason = check.reason
    elif judged is None or judged.outcome == "untestable":
        reason = "not measured" if judged is None else judged.reason
        if twin is not None and not twin.n:
            reason = "there is no harmless twin to hold it against"
    elif judged.shown:
        verdict, reason = "shown", judged.reason
    elif judged.high < spec.matters or least <= spec.matters:
        verdict, reason = "not shown", judged.reason if judged.effect > 0 else "it does not go the claimed way"
    else:
        reason = f"only an effect of {number(least)} would be shown with {spec.power:.0%} power"
    strengths = tuple(measured.grid[index].strength for index in (push.plus, push.minus) if index is not None)
    return SteeredVector(vector, side, strengths, effect, added, removed, twin, judged, least, verdict, reason)


def smallest_shown(
    claims: Mapping[str, Claim],
    members: Mapping[str, Mapping[str, ByGroup]],
    spec: SteeringAnalysis,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Per claim the smallest effect that the judge would show with the power asked for.

    An effect is planted in the measured arrays: groups are drawn anew for the vector and all of its controls, the
    vector's own mean is taken off, and the judge says from which mean on it would show the vector. So the statement
    cannot go out of step with the rule.

    Args:
        claims: that were judged together.
        members: per claim and family the controls, by group.
        spec: of the analysis.
        rng: of the draws.
    """
    if not claims:
        return {}
    groups = len(next(iter(claims.values())).effect)
    critical = np.empty((spec.planted, len(claims)))
    for draw in range(spec.planted):
        kept = rng.integers(groups, size=groups)
        drawn = []
        for vector, claim in claims.items():
            centred = claim.effect - np.nanmean(claim.effect)
            with np.errstate(invalid="ignore"):
                means = {family: _means(rows[:, kept]) for family, rows in members[vector].items()}
            drawn.append(replace(claim, effect=centred[kept], controls=means))
        critical[draw] = [each.threshold - each.effect for each in judge(drawn, spec.rules)]
    return {
        vector: float(np.quantile(column, spec.power, method="higher")) if np.isfinite(column).all() else math.nan
        for vector, column in zip(claims, critical.T, strict=True)
    }


def _means(rows: Float[np.ndarray, "members groups"]) -> Float[np.ndarray, " members"]:
    measured = np.isfinite(rows)
    return np.where(measured, rows, 0.0).sum(axis=1) / np.where(measured.any(axis=1), measured.sum(axis=1), np.nan)


TEMPLATE = """
{% if gate %}This could not be tested: {{ gate }}.{% endif %}

{% if vectors %}
{{ shown }} of {{ vectors|length|plural("claimed vector") }} shown to
  {{ action }}{{ ", beside the controls alone" if gate }}.
{% endif %}
{% for v in vectors %}
{% set name = v.vector[:1]|upper ~ v.vector[1:] %}
{% if v.effect.value is nan %}
{{ name }} could not be tested: {{ v.reason }}.
{% else %}
{{ name }}, claimed to {{ "raise" if v.side > 0 else "lower" }} it, changes it by
  {{ v.effect|measured(unit) }} a side.
{% if v.added.n and v.removed.n %}
Adding {{ v.vector }} changes it by {{ v.added|measured(unit) }}, taking it away by {{ v.removed|measured(unit) }}.
{% endif %}
{% if v.twin is not none and v.twin.n %}
That of {{ v.vector }} is {{ v.twin|measured(unit) }} more than in the harmless twin.
{% endif %}
{% if order %}
That is {{ (v.effect.value / order.estimate.value)|percent }} of what asking for it does.
{% endif %}
{% if v.judged is not none and v.judged.p is not nan %}
Against {{ v.judged.controls|plural("control") }} of the same norm {{ v.vector }} has
  {{ v.judged.p|p(v.judged.floor) }},
  {{ v.judged.p_adjusted|p }} after correction over the claims.
{% endif %}
{% if v.smallest is not nan %}
An effect of {{ v.vector }} of {{ v.smallest|number }} {{ unit }} would be shown with {{ power|percent }}
  power, by planting.
{% endif %}
{{ name }}: {{ v.verdict|verdict }}, {{ v.reason }}.
{% endif %}
{% endfor %}
{% if order %}
Asking for it and against it moves it by {{ order.estimate|measured(unit) }} a side, {{ order.p|p(order.floor) }}.
{% endif %}
"""


def said(
    vectors: Sequence[SteeredVector], spec: SteeringAnalysis, action: str, unit: str, gate: str, order: Contrast | None
) -> dict[str, object]:
    """What :data:`TEMPLATE` names.

    Args:
        vectors: the claimed ones.
        spec: of the analysis.
        action: what they are claimed to do, after "to".
        unit: of the outcome.
        gate: why the outcome cannot tell; empty where it can.
        order: the positive control.
    """
    shown = sum(each.verdict == "shown" for each in vectors)
    return {
        "vectors": vectors, "shown": shown, "action": action, "unit": unit, "gate": gate, "power": spec.power,
        "order": None if gate else order,
    }  # fmt: skip


def figures(vectors: Sequence[SteeredVector], name: str = "effect") -> Figures:
    """The figures of the claimed vectors."""
    flat: Figures = {"claims": len(vectors), "claims_shown": sum(each.verdict == "shown" for each in vectors)}
    for each in vectors:
        flat |= {f"{name}_{each.vector}": each.effect, f"power_{each.vector}": each.smallest}
        flat[f"beyond_twin_{each.vector}"] = each.twin
        if each.judged is not None:
            flat |= {f"p_{each.vector}": each.judged.p, f"p_adjusted_{each.vector}": each.judged.p_adjusted}
    return flat


def table(vectors: Sequence[SteeredVector], unit: str) -> DataTable:
    """The claimed vectors, both sides of the push, and their verdicts."""
    rows = [
        (
            each.vector,
            "raise" if each.side > 0 else "lower",
            each.effect,
            each.added,
            each.removed,
            (each.twin or estimators.undefined()),
            each.judged.p if each.judged else math.nan,
            each.judged.p_adjusted if each.judged else math.nan,
            each.smallest,
            VERDICT_WORDS[each.verdict],
            each.reason,
        )
        for each in vectors
    ]
    columns = (
        "vector", "claimed to", f"effect a side, {unit}", "added", "taken away", "beyond the twin",
        "p, controls", "corrected p", "shown with the power asked for", "verdict", "why",
    )  # fmt: skip
    note = f"Holm over {plural(len(vectors), 'claim')}; intervals over groups."
    return DataTable("Claimed vectors", columns, rows, note)

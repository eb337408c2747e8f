"""Vectors claimed to move an outcome: positive control, verdict, power by planting, and what a null excludes.

The verdict on a claim is that of :mod:`affectlens.interventions.judge`, the same as in the causal stage. Two things
stand before it. The vector has to move its own words more than controls do (the manipulation check). And the outcome
has to follow where it is asked for outright: an outcome that no instruction moves cannot tell what a vector does, so
without such a positive control nothing is shown and nothing is excluded. What asking does is also the unit of effects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from affectlens.experiments.conclude import estimators, pushes, selection
from affectlens.experiments.conclude.estimators import Contrast, Figures
from affectlens.experiments.conclude.pushes import ByGroup, Push, SteeringAnalysis
from affectlens.experiments.results import Measured
from affectlens.interventions.judge import Claim, judge
from affectlens.interventions.judge import Verdict as Judged
from affectlens.results.figures import VERDICT_WORDS, DataTable, Verdict
from affectlens.results.format import number, plural
from affectlens.stats import Estimate, bootstrap_interval


@dataclass(frozen=True)
class Order:
    """What asking for the outcome does to it, without steering.

    Attributes:
        contrast: half the difference between asking for it and against it; None where nothing asks.
        names: of the groups that were asked both ways.
        gate: why the outcome cannot tell what a vector does; empty where it can.
        prompts: change against the usual scenarios under every condition of prompts.
    """

    contrast: Contrast | None
    names: Shaped[np.ndarray, " groups"]
    gate: str
    prompts: Mapping[str, Estimate]

    def share(
        self, effect: Float[np.ndarray, " groups"], names: Shaped[np.ndarray, " groups"], spec: SteeringAnalysis,
        rng: np.random.Generator,
    ) -> tuple[Estimate, float]:  # fmt: skip
        """An effect as a share of what asking does, over groups with both, and the share that is excluded.

        The bound is that of two one-sided tests (Schuirmann 1987): the farther end of the interval at 1 - 2 alpha.
        """
        if self.contrast is None or self.gate:
            return estimators.undefined(), math.nan
        shared = np.intersect1d(names, self.names)
        pairs = np.stack([effect[np.isin(names, shared)], self.contrast.differences[np.isin(self.names, shared)]])
        pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
        if pairs.shape[1] < 2:
            return estimators.undefined(pairs.shape[1]), math.nan

        def ratio(counts: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, " draws"]:
            above, below = counts @ pairs[0], counts @ pairs[1]
            return np.where(below > 0, above / np.where(below > 0, below, 1), math.nan)

        point, drawn = estimators.bootstrap(pairs.T, ratio, spec, rng)
        narrow = bootstrap_interval(float(point), drawn, pairs.shape[1], 1 - 2 * spec.alpha)
        return estimators.interval(float(point), drawn, pairs.shape[1], spec), max(abs(narrow.low), abs(narrow.high))


def positive_control(
    values: Float[np.ndarray, " scenarios"],
    usual: Int[np.ndarray, " rows"],
    measured: Measured,
    spec: SteeringAnalysis,
    rng: np.random.Generator,
) -> Order:
    """Whether an unsteered outcome follows where it is asked for, by more than an irrelevant sentence moves it.

    Args:
        values: the outcome of the unsteered model by scenario.
        usual: the scenarios that are steered, which prompts are compared with.
        measured: the experiment.
        spec: of the analysis.
        rng: of the intervals.
    """

    def by_name(rows: Int[np.ndarray, " rows"]) -> dict[str, float]:
        names, means = pushes.by_group(values[None], rows, measured)
        return {name: value for name, value in zip(names.tolist(), means[0], strict=True) if np.isfinite(value)}

    def less(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
        return {name: value - second[name] for name, value in first.items() if name in second}

    base, conditions = by_name(usual), {measured.scenarios[row].condition for row in usual}
    own = [prompt.condition for prompt in measured.experiment.config.prompts if prompt.of in conditions]
    means = {
        name: by_name(selection.rows(measured, (name,))) for name in dict.fromkeys((*spec.asked, spec.irrelevant, *own))
    }
    prompts = {
        name: estimators.mean(np.array(list(change.values())), None, spec)
        for name, each in means.items()
        if (change := less(each, base))
    }
    asked = {name: value / 2 for name, value in less(means[spec.asked[0]], means[spec.asked[1]]).items()}
    names = np.array(list(asked), dtype=str)
    if not asked:
        gate = "no scenario asks for the outcome outright, so nothing tells whether it can be moved"
        return Order(None, names, gate, prompts)
    contrast, gate = estimators.contrast(np.array(list(asked.values())), spec, rng), ""
    if not (contrast.estimate.value > 0 and contrast.p <= spec.alpha):
        gate = "the outcome does not follow where it is asked for outright"
    elif aside := less(means[spec.irrelevant], base):
        side = np.sign(np.mean(list(aside.values())))
        excess = np.array([asked[name] - side * aside[name] for name in aside if name in asked])
        if not (excess.mean() > 0 and estimators.contrast(excess, spec, rng).p <= spec.alpha):
            gate = "asking for the outcome moves it no further than an irrelevant sentence does"
    return Order(contrast, names, gate, prompts)


@dataclass(frozen=True)
class SteeredVector:
    """What became of one claimed vector.

    Attributes:
        vector: the concept; with its strength where every strength is a claim of its own.
        side: 1 if it is claimed to raise the outcome, -1 if to lower it.
        effect: half the difference between adding it and taking it away, or of the side there is.
        added: change of the outcome where it is added.
        removed: where it is taken away.
        twin: effect less that in the harmless twin; None without one.
        share: effect as a share of what asking for the outcome does.
        excluded: share of that which the effect is shown not to exceed.
        judged: by the judge; None where nothing could be judged.
        smallest: effect that would be shown with the power asked for, by planting.
        verdict: of this vector.
        reason: of the verdict.
    """

    vector: str
    side: Literal[1, -1]
    effect: Estimate
    added: Estimate
    removed: Estimate
    twin: Estimate | None
    share: Estimate
    excluded: float
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
    names: Shaped[np.ndarray, " groups"] | None = None,
    order: Order | None = None,
    beyond_twin: ByGroup | None = None,
    rates: bool = False,
    alone: Sequence[int] | None = None,
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
        names: of the groups.
        order: what asking for the outcome does.
        beyond_twin: the change less that of the twins, for groups that have one.
        rates: whether the outcome is a rate.
        alone: steering conditions, one a claim, that are judged by themselves and not as half a difference.
    """
    tested = change if beyond_twin is None else beyond_twin
    known = np.asarray(np.isfinite(change).any(axis=1))
    usable = pushes.coherent(measured, spec.perplexity_limit)
    checks = [pushes.manipulation(measured, vector, spec, known) for vector, _ in claimed]
    if alone is not None:
        checks = [
            replace(check, push=Push(index), reason=check.reason if usable[index] else "outside the coherence window")
            for check, index in zip(checks, alone, strict=True)
        ]
    claims: dict[int, Claim] = {}
    members: dict[int, dict[str, ByGroup]] = {}
    for index, ((vector, side), check) in enumerate(zip(claimed, checks, strict=True)):
        if check.reason or not check.push or not tested.shape[1]:
            continue
        families = pushes.controls(measured, check.push if alone is None else None)
        rows = {family: np.stack([each.effect(tested) for each in own]) for family, own in families.items()}
        members[index] = {family: each[np.isfinite(each).any(axis=1)] for family, each in rows.items()}
        means = {family: np.nanmean(each, axis=1) for family, each in members[index].items()}
        effect = check.push.effect(tested)
        claims[index] = Claim(vector, effect, means, side=side, symmetric=check.push.both, rates=rates)
    judged = dict(zip(claims, judge(list(claims.values()), spec.rules), strict=True))
    smallest = smallest_shown(claims, members, spec, rng)
    vectors = []
    for index, ((vector, side), check) in enumerate(zip(claimed, checks, strict=True)):
        label = vector if alone is None else f"{vector} at {measured.grid[alone[index]].strength:+g}"
        share, excluded = estimators.undefined(), math.nan
        if order is not None and names is not None and check.push:
            share, excluded = order.share(check.push.effect(change), names, spec, rng)
        effects = [None if each is None else change[each] for each in (check.push.plus, check.push.minus)]
        effects.insert(0, check.push.effect(change) if check.push else None)
        effect, added, removed = (
            estimators.undefined() if each is None else estimators.mean(each, None, spec, rates=rates)
            for each in effects
        )
        twin = None if beyond_twin is None else estimators.undefined()
        if beyond_twin is not None and check.push and beyond_twin.shape[1]:
            twin = estimators.mean(check.push.effect(beyond_twin), None, spec, rates=rates)
        found, least = judged.get(index), smallest.get(index, math.nan)
        verdict, reason = concluded(check.reason, found, twin, excluded, least, spec)
        vectors.append(
            SteeredVector(label, side, effect, added, removed, twin, share, excluded, found, least, verdict, reason)
        )
    return vectors


def concluded(
    failed: str, judged: Judged | None, twin: Estimate | None, excluded: float, smallest: float, spec: SteeringAnalysis
) -> tuple[Verdict, str]:
    """The verdict on one vector and its reason; a null is believed where an effect that matters is excluded.

    Args:
        failed: why the manipulation check did not pass; empty where it did.
        judged: by the judge; None where nothing was measured.
        twin: effect less that in the harmless twin; None without one.
        excluded: share of what asking does that the effect is shown not to exceed.
        smallest: effect that would be shown with the power asked for.
        spec: of the analysis.
    """
    if failed:
        return "untestable", failed
    if judged is None or judged.outcome == "untestable":
        if twin is not None and not twin.n:
            return "untestable", "there is no harmless twin to hold it against"
        return "untestable", "not measured" if judged is None else judged.reason
    if judged.shown:
        return "shown", judged.reason
    if excluded <= spec.equivalence or judged.high < spec.matters or smallest <= spec.matters:
        return "not shown", judged.reason if judged.effect > 0 else "it does not go the claimed way"
    return "untestable", f"only an effect of {number(smallest)} would be shown with {spec.power:.0%} power"


def smallest_shown(
    claims: Mapping[int, Claim],
    members: Mapping[int, Mapping[str, ByGroup]],
    spec: SteeringAnalysis,
    rng: np.random.Generator,
) -> dict[int, float]:
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
        for index, claim in claims.items():
            centred = claim.effect - np.nanmean(claim.effect)
            controls = {}
            for family, rows in members[index].items():
                there = np.isfinite(rows[:, kept])
                counts = np.where(there.any(axis=1), there.sum(axis=1), np.nan)
                controls[family] = np.where(there, rows[:, kept], 0.0).sum(axis=1) / counts
            drawn.append(replace(claim, effect=centred[kept], controls=controls))
        critical[draw] = [each.threshold - each.effect for each in judge(drawn, spec.rules)]
    return {
        index: float(np.quantile(column, spec.power, method="higher")) if np.isfinite(column).all() else math.nan
        for index, column in zip(claims, critical.T, strict=True)
    }


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
  {{ v.effect|measured(unit) }}{{ " a side" if v.added.n and v.removed.n }}.
{% if v.added.n and v.removed.n %}
Adding {{ v.vector }} changes it by {{ v.added|measured(unit) }}, taking it away by {{ v.removed|measured(unit) }}.
{% endif %}
{% if v.twin is not none and v.twin.n %}
That of {{ v.vector }} is {{ v.twin|measured(unit) }} more than in the harmless twin.
{% endif %}
{% if v.share.value is not nan %}
{{ name }} moves it {{ v.share|share }} of what asking for it does.
{% if v.excluded is not nan and v.verdict != "shown" %}
More than {{ v.excluded|percent }} of that is excluded.
{% endif %}
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
{% for name, estimate in prompts.items() %}
The prompt {{ name|replace("_", " ") }} changes it by {{ estimate|measured(unit) }}.
{% endfor %}
"""


def said(
    vectors: Sequence[SteeredVector],
    spec: SteeringAnalysis,
    action: str,
    unit: str,
    gate: str = "",
    order: Order | None = None,
) -> dict[str, object]:
    """What :data:`TEMPLATE` names.

    Args:
        vectors: the claimed ones.
        spec: of the analysis.
        action: what they are claimed to do, after "to".
        unit: of the outcome.
        gate: why the outcome cannot tell what a vector does; empty where it can.
        order: the positive control.
    """
    shown = sum(each.verdict == "shown" for each in vectors)
    return {
        "vectors": vectors, "shown": shown, "action": action, "unit": unit, "power": spec.power,
        "gate": gate, "order": order and order.contrast,
        "prompts": order.prompts if order else {},
    }  # fmt: skip


def figures(vectors: Sequence[SteeredVector], order: Order | None = None, name: str = "effect") -> Figures:
    """The figures of the claimed vectors and of the positive control."""
    flat: Figures = {"claims": len(vectors), "claims_shown": sum(each.verdict == "shown" for each in vectors)}
    if order is not None:
        flat["asked"] = order.contrast and order.contrast.estimate
        flat |= {f"prompt_{prompt}": each for prompt, each in order.prompts.items()}
    for each in vectors:
        flat |= {f"{name}_{each.vector}": each.effect, f"power_{each.vector}": each.smallest}
        flat |= {f"beyond_twin_{each.vector}": each.twin, f"share_of_asking_{each.vector}": each.share}
        flat[f"excluded_{each.vector}"] = each.excluded
        if each.judged is not None:
            flat |= {f"p_{each.vector}": each.judged.p, f"p_adjusted_{each.vector}": each.judged.p_adjusted}
    return flat


def table(vectors: Sequence[SteeredVector], unit: str) -> DataTable:
    """The claimed vectors, both sides of the push, and their verdicts."""
    rows = [
        {
            "vector": each.vector,
            "claimed to": "raise" if each.side > 0 else "lower",
            f"effect a side, {unit}": each.effect,
            "added": each.added,
            "taken away": each.removed,
            "beyond the twin": each.twin or estimators.undefined(),
            "share of asking for it": each.share,
            "share excluded": each.excluded,
            "p, controls": each.judged.p if each.judged else math.nan,
            "corrected p": each.judged.p_adjusted if each.judged else math.nan,
            "shown with the power asked for": each.smallest,
            "verdict": VERDICT_WORDS[each.verdict],
            "why": each.reason,
        }
        for each in vectors
    ]
    return DataTable.of("Claimed vectors", rows, f"Holm over {plural(len(vectors), 'claim')}; intervals over groups.")

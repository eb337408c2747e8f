"""Vectors claimed to move an outcome up or down: each against its controls, its twin and the correction for several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from affectlens.experiments.conclude import checks, controls, intervals, wording
from affectlens.experiments.conclude.controls import Against
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Measured
from affectlens.stats import Estimate, holm

Verdict = Literal["shown", "not shown", "untestable"]


@dataclass(frozen=True)
class Claim:
    """What became of one claimed vector.

    Attributes:
        vector: the concept.
        sign: 1 if adding it is claimed to raise the outcome, -1 to lower it.
        effect: positive as claimed: half the difference between pushing up and pushing down by the largest coherent
            strengths, or the effect of the one sign there is.
        strengths: those that were compared, in mean residual norms.
        against: its controls.
        adjusted: ``against.p_scaled`` after Holm over the claimed vectors.
        twin: effect less that in the harmless condition; None without such a condition.
        smallest: effect that would have been found with 80% power, over groups.
        verdict: of this vector.
        reason: why, in words.
    """

    vector: str
    sign: int
    effect: Estimate
    strengths: tuple[float, ...]
    against: Against
    adjusted: float
    twin: Estimate | None
    smallest: float
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Effects:
    """Changes of an outcome against the unsteered model, to be tested.

    Attributes:
        change: per cell and row, NaN where not measured.
        groups: of the rows.
        twin: the same change for the harmless condition, on rows of its own; None without one.
        twin_groups: their groups, named as those of ``groups``.
        matters: an effect whose absence is worth stating: where not even this would have been found, an effect that
            is not shown counts as untestable.
        rates: whether the outcome is a rate, of which groups may agree without an error of 0.
    """

    change: Float[np.ndarray, "cells rows"]
    groups: Shaped[np.ndarray, " rows"]
    matters: float
    twin: Float[np.ndarray, "cells twins"] | None = None
    twin_groups: Shaped[np.ndarray, " twins"] | None = None
    rates: bool = False


def judge(
    measured: Measured, effects: Effects, claimed: Sequence[tuple[str, int]], generator: np.random.Generator
) -> list[Claim]:
    """Judge every claimed vector; Holm runs over those that could be tested.

    A vector is shown when its effect has the claimed sign, an interval off zero, is larger than that of each of at
    least 20 controls and stands out from every family of them after correction, and, where there is a harmless twin,
    is larger than there. Controls are there at the largest strengths alone: a vector that is coherent only at smaller
    ones is held against controls that push harder.
    """
    found = [_measure(measured, effects, vector, sign, generator) for vector, sign in claimed]
    adjusted = holm(np.array([each.against.p_scaled if not each.reason else math.nan for each in found]))
    return [_judged(each, float(p), effects.matters) for each, p in zip(found, adjusted, strict=True)]


def _measure(measured: Measured, effects: Effects, vector: str, sign: int, generator: np.random.Generator) -> Claim:
    measurable = checks.measurable(effects.change)
    check = checks.manipulation(measured, vector, measurable)
    used = [index for index in (check.plus, check.minus) if index is not None]
    strengths = tuple(measured.cells[index].strength for index in used)
    nothing = Against(0, False, math.nan, math.nan, math.nan)
    if not used or not measurable.any():
        reason = check.reason or "the outcome was not measured"
        return Claim(
            vector, sign, intervals.undefined(), strengths, nothing, math.nan, None, math.nan, "untestable", reason
        )
    own = sign * push(effects.change, check.plus, check.minus)
    effect = intervals.over_groups(own, effects.groups, generator)
    against = controls.compare(
        effect.value,
        _controls(measured, effects, check, sign),
        symmetric=check.plus is not None and check.minus is not None,
    )
    twin = None
    if effects.twin is not None and effects.twin_groups is not None:
        same = sign * push(effects.twin, check.plus, check.minus)
        twin = _less_twin(own, effects.groups, same, effects.twin_groups, generator)
    error = intervals.standard_error(own, effects.groups)
    if effects.rates:
        error = intervals.change_error(intervals.group_means(own, effects.groups))
    smallest = intervals.smallest_effect(error, effect.n)
    reason = check.reason
    if not reason and effect.n < intervals.GROUPS:
        reason = f"there are {wording.counted(effect.n, 'group')} of scenarios, at least {intervals.GROUPS} are needed"
    return Claim(vector, sign, effect, strengths, against, math.nan, twin, smallest, "untestable", reason)


def push(change: Float[np.ndarray, "cells rows"], plus: int | None, minus: int | None) -> Float[np.ndarray, " rows"]:
    """Half the difference between both pushes; what both do alike, such as damage, cancels. Or the one there is."""
    if plus is not None and minus is not None:
        return (change[plus] - change[minus]) / 2
    return change[plus] if plus is not None else -change[minus]


def _controls(
    measured: Measured, effects: Effects, check: checks.Check, sign: int
) -> dict[str, Float[np.ndarray, " controls"]]:
    found: dict[str, list[float]] = {}
    for (family, _), (plus, minus) in controls.pushes(measured).items():
        plus, minus = (plus if check.plus is not None else None), (minus if check.minus is not None else None)
        if (plus is None) != (check.plus is None) or (minus is None) != (check.minus is None):
            continue
        means = intervals.group_means(sign * push(effects.change, plus, minus), effects.groups)
        if np.isfinite(means).any():
            found.setdefault(family, []).append(float(np.nanmean(means)))
    return {family: np.array(values) for family, values in found.items()}


def _less_twin(
    own: np.ndarray, groups: np.ndarray, twin: np.ndarray, twin_groups: np.ndarray, generator: np.random.Generator
) -> Estimate:
    """Mean over the groups that hold both of the effect less that of the twin."""
    shared = np.intersect1d(groups[np.isfinite(own)], twin_groups[np.isfinite(twin)])
    if not len(shared):
        return intervals.undefined()
    mine, theirs = np.isin(groups, shared), np.isin(twin_groups, shared)
    difference = intervals.group_means(own[mine], groups[mine]) - intervals.group_means(
        twin[theirs], twin_groups[theirs]
    )
    return intervals.over_groups(difference, np.arange(len(difference)), generator)


def _judged(claim: Claim, adjusted: float, matters: float) -> Claim:
    if claim.reason:
        return claim
    against, effect = claim.against, claim.effect
    if against.count < 2:
        return replace(claim, reason="there are no controls to hold it against")
    verdict: Verdict = "not shown"
    if effect.value <= 0:
        reason = "it does not go the claimed way"
    elif effect.low <= 0:
        reason = "its interval holds 0"
    elif not against.beyond:
        reason = f"not beyond all {against.count} controls"
    elif against.count >= controls.ENOUGH and adjusted > LEVEL:
        reason = f"the largest, but not far beyond the {against.count} controls"
    elif claim.twin is not None and math.isnan(claim.twin.low):
        verdict, reason = "untestable", "there is no harmless twin to hold it against"
    elif claim.twin is not None and not claim.twin.low > 0:
        reason = "not shown to be larger than in the harmless twin"
        claim = replace(claim, smallest=max(claim.smallest, intervals.smallest_of(claim.twin)))
    elif against.count < controls.ENOUGH:
        verdict = "untestable"
        reason = (
            f"it goes the claimed way, but {against.count} controls are too few to tell; {controls.ENOUGH} are needed"
        )
    else:
        verdict, reason = "shown", f"beyond all {against.count} controls"
    if verdict == "not shown" and claim.smallest > matters:
        verdict = "untestable"
        reason += f", but only an effect of {claim.smallest:.2g} would have been found with 80% power"
    return replace(claim, adjusted=adjusted, verdict=verdict, reason=reason)


def as_measured(claim: Claim) -> Estimate:
    """The effect with its own sign, not that of the claim: positive where pushing up raises the outcome."""
    if claim.sign > 0:
        return claim.effect
    return Estimate(-claim.effect.value, -claim.effect.high, -claim.effect.low, claim.effect.n)


def overall(found: Sequence[Claim]) -> Literal["shown", "not shown", "untestable", "described"]:
    """Of all claimed vectors together: shown only if every one is."""
    verdicts = {each.verdict for each in found}
    if not verdicts:
        return "described"
    return "not shown" if "not shown" in verdicts else "untestable" if "untestable" in verdicts else "shown"


def answer(found: Sequence[Claim], shown_to: str, unit: str) -> list[str]:
    """How many claims are shown, and a sentence on each."""
    shown = sum(each.verdict == "shown" for each in found)
    each_told = [told(each, unit) for each in found]
    return [
        f"{shown} of {wording.counted(len(found), 'claimed vector')} shown to {shown_to}.",
        *(f"{said[0].upper()}{said[1:]}." for said in each_told),
    ]


def told(claim: Claim, unit: str) -> str:
    """One claimed vector in plain words."""
    if math.isnan(claim.effect.value):
        return f"{claim.vector} could not be tested: {claim.reason}"
    way = "raise" if claim.sign > 0 else "lower"
    how = " and ".join(f"{strength:+g}" for strength in claim.strengths)
    twin = ""
    if claim.twin is not None:
        twin = (
            f"; {wording.estimate(claim.twin)} more than in the twin"
            if not math.isnan(claim.twin.value)
            else "; no twin"
        )
    floor = wording.number(claim.against.floor, 3)
    return (
        f"{claim.vector} (claimed to {way} it) changes it by {wording.estimate(as_measured(claim), unit)} at {how} of "
        f"the norm, {wording.p(claim.against.p)} by rank among {claim.against.count} controls (floor {floor}), "
        f"corrected {wording.p(claim.adjusted)}{twin}: {claim.verdict}, {claim.reason}"
    )


def power(found: Sequence[Claim], unit: str) -> str:
    """The smallest effect that would have been found, over groups and beyond controls."""
    parts = []
    for each in found:
        threshold = each.against.threshold(LEVEL / max(len(found), 1))
        if not math.isnan(each.smallest):
            beyond = "" if math.isnan(threshold) else f" and must exceed {threshold:.2g} to stand out from the controls"
            parts.append(f"{each.vector} {each.smallest:.2g}{beyond}")
    if not parts:
        return "Power cannot be stated: there are too few groups."
    return f"Smallest effect that would be found with 80% power, in {unit}: {'; '.join(parts)}."

"""Dose-response: what steering does to the log-odds of a choice, strength by strength, against controls and twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from affectlens.experiments.conclude import checks, claims, controls, intervals, selection, wording
from affectlens.experiments.conclude.config import DoseConfig
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.stats import Estimate, holm

MATTERS = 0.5
"""Nats a side; an effect that pushing both ways makes one nat, odds of 1 to 1 against 2.7 to 1."""


def analyse(measured: Measured, config: DoseConfig, generator: np.random.Generator) -> Finding:
    """Test whether the claimed vectors move the choice as claimed, by more than controls of the same norm."""
    if measured.choice is None:
        return wording.untestable("no choice was measured")
    choice = np.asarray(measured.choice, dtype=float)
    rows = selection.rows(measured, config.conditions)
    rows = rows[np.isfinite(choice[0, rows])]
    if not len(rows):
        return wording.untestable(f"no scenario of {wording.listed(config.conditions)} has a choice")
    groups = selection.groups(measured, rows)
    change = choice[:, rows] - choice[0, rows]
    effects = claims.Effects(change, groups, MATTERS, *_twin(measured, config, choice))
    found = claims.judge(measured, effects, _claimed(config), generator)
    bends = [_bend(measured, vector, change, groups, generator) for vector in config.bend]
    bends = _corrected(bends)
    base = intervals.over_groups(1 / (1 + np.exp(-choice[0, rows])), groups, generator)
    verdict = claims.overall(found)
    if bends:
        verdict = _with_bends(verdict, bends, any_claims=bool(found))
    dose = _dose(measured, change, groups, generator)
    return Finding(
        verdict,
        _sentences(found, bends, base, measured, config),
        _metrics(found, bends, base, dose),
        (_table(measured, dose), _slopes(measured, change, groups, generator)),
        (_chart(measured, dose),),
    )


def _claimed(config: DoseConfig) -> list[tuple[str, int]]:
    return [(vector, 1) for vector in config.raises] + [(vector, -1) for vector in config.lowers]


def _twin(
    measured: Measured, config: DoseConfig, choice: Float[np.ndarray, "cells scenarios"]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not config.twin:
        return None, None
    rows = selection.rows(measured, (config.twin,))
    return choice[:, rows] - choice[0, rows], selection.groups(measured, rows)


@dataclass(frozen=True)
class Bend:
    """Whether a vector's dose-response turns around.

    Attributes:
        vector: the concept.
        quadratic: coefficient of the squared strength (strengths in units of the largest), in nats.
        peak: strength at which the response is farthest beyond both ends; NaN where none is.
        beyond: by how much, the lesser of both sides; positive also for a trough.
        p: of that, before and after Holm over the vectors claimed to bend.
        even: the part of the effect that both signs share, against that of the controls.
        reason: why it could not be tested.
    """

    vector: str
    quadratic: Estimate
    peak: float
    beyond: Estimate
    p: float
    even: controls.Against
    reason: str = ""
    adjusted: float = math.nan

    @property
    def shown(self) -> bool:
        """Beyond both ends after correction, curved, and more alike for both signs than controls are."""
        return (
            not self.reason
            and self.adjusted <= LEVEL
            and self.beyond.low > 0
            and not self.quadratic.low <= 0 <= self.quadratic.high
            and self.even.beyond
            and self.even.p_scaled <= LEVEL
            and self.even.count >= controls.ENOUGH
        )


def _bend(
    measured: Measured, vector: str, change: np.ndarray, groups: np.ndarray, generator: np.random.Generator
) -> Bend:
    check = checks.manipulation(measured, vector, checks.measurable(change))
    nothing = controls.Against(0, False, math.nan, math.nan, math.nan)
    usable = checks.coherent(measured)
    cells = [index for index in checks.cells_of(measured, vector) if usable[index]]
    strengths = np.array([measured.cells[index].strength for index in cells] + [0.0])
    if len(strengths) < 4 or check.plus is None or check.minus is None:
        reason = check.reason or "fewer than three coherent strengths, or of one sign only"
        return Bend(vector, intervals.undefined(), math.nan, intervals.undefined(), math.nan, nothing, reason)
    means = intervals.group_means(change[[*cells, 0]].T, groups)
    order = np.argsort(strengths)
    strengths, means = strengths[order], means[np.isfinite(means).all(axis=1)][:, order]
    if len(means) < 2:
        reason = f"there are {wording.counted(len(means), 'group')} of scenarios, too few for an interval"
        return Bend(vector, intervals.undefined(), math.nan, intervals.undefined(), math.nan, nothing, reason)
    scaled = strengths / np.abs(strengths).max()
    # The row of the pseudo-inverse that gives each group's own coefficient of the squared strength.
    weights = np.linalg.pinv(np.stack([np.ones_like(scaled), scaled, scaled**2], axis=1))[2]
    units = np.arange(len(means))
    quadratic = intervals.over_groups(means @ weights, units, generator)
    peak, beyond, p = _turn(strengths, means, generator)
    even = _even(measured, change, groups, check.plus, check.minus)
    return Bend(vector, quadratic, peak, beyond, p, even, check.reason)


def _turn(
    strengths: Float[np.ndarray, " doses"], means: Float[np.ndarray, "groups doses"], generator: np.random.Generator
) -> tuple[float, Estimate, float]:
    """The interior strength whose response is farthest beyond both ends, by how much, and p.

    Beyond both is an intersection-union test: the larger p of the two paired t tests, times the number of interior
    strengths and of directions (peak or trough) that were looked through.
    """
    from scipy.special import stdtr

    best = (math.nan, intervals.undefined(), 1.0)
    tried = 2 * (len(strengths) - 2)
    for sign in (1, -1):
        for place in range(1, len(strengths) - 1):
            ends = sign * (means[:, [place]] - means[:, [0, -1]])
            error = ends.std(axis=0, ddof=1) / math.sqrt(len(ends))
            score = ends.mean(axis=0) / np.where(error > 0, error, np.finfo(float).tiny)
            p = min(1.0, tried * float(stdtr(len(ends) - 1, -score).max()))
            if p < best[2] or (p == best[2] and math.isnan(best[0]) and ends.mean(axis=0).min() > 0):
                nearer = ends[:, int(ends.mean(axis=0).argmin())]
                units = np.arange(len(nearer))
                best = (float(strengths[place]), intervals.over_groups(nearer, units, generator), p)
    return best


def _even(measured: Measured, change: np.ndarray, groups: np.ndarray, plus: int, minus: int) -> controls.Against:
    """What both signs of a vector do alike, against the same of the controls."""

    def shared(up: int, down: int) -> float:
        means = intervals.group_means((change[up] + change[down]) / 2, groups)
        return float(np.nanmean(means)) if np.isfinite(means).any() else math.nan

    own = shared(plus, minus)
    sign = 1.0 if own >= 0 else -1.0
    families: dict[str, list[float]] = {}
    for (family, _), (up, down) in controls.pushes(measured).items():
        if up is not None and down is not None:
            families.setdefault(family, []).append(sign * shared(up, down))
    return controls.compare(sign * own, {name: np.array(each) for name, each in families.items()}, symmetric=False)


def _corrected(bends: Sequence[Bend]) -> list[Bend]:
    if not bends:
        return []
    adjusted = holm(np.array([math.nan if bend.reason else bend.p for bend in bends]))
    return [replace(bend, adjusted=float(p)) for bend, p in zip(bends, adjusted, strict=True)]


def _with_bends(verdict: str, bends: Sequence[Bend], *, any_claims: bool) -> claims.Verdict:
    verdicts = {verdict} if any_claims else set()
    verdicts |= {"untestable" if bend.reason else "shown" if bend.shown else "not shown" for bend in bends}
    return "not shown" if "not shown" in verdicts else "untestable" if "untestable" in verdicts else "shown"


Dose = list[tuple[int, Estimate]]


def _dose(measured: Measured, change: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> Dose:
    """The mean change of every cell of a concept's vector."""
    cells = [index for index, cell in enumerate(measured.cells) if cell.family == "concept"]
    return [(index, intervals.over_groups(change[index], groups, generator)) for index in cells]


def _sentences(
    found: Sequence[claims.Claim], bends: Sequence[Bend], base: Estimate, measured: Measured, config: DoseConfig
) -> list[str]:
    sentences = []
    if found:
        sentences += claims.answer(found, "move the log-odds of the target", "nats")
    sentences += [_bend_sentence(bend) for bend in bends]
    if not sentences:
        sentences.append("No vector is claimed to move the choice here: the dose-response is described, not tested.")
    sentences.append(f"Unsteered, the target has a probability of {wording.rate(base)} against the other option.")
    if found:
        sentences.append(claims.power(found, "nats"))
    if config.twin and not len(selection.rows(measured, (config.twin,))):
        sentences.append(
            f"There is no scenario of the condition {config.twin}, so nothing tells a harmless twin apart."
        )
    sentences.append(
        "Effects are paired by scenario and averaged over groups; a claim compares pushing up with pushing down, so "
        "that damage which both do cancels, and only strengths with a perplexity ratio of at most "
        f"{checks.PERPLEXITY_LIMIT} count."
    )
    return sentences


def _bend_sentence(bend: Bend) -> str:
    if bend.reason:
        return f"Whether the response to {bend.vector} bends could not be tested: {bend.reason}."
    said = (
        f"at {bend.peak:+g} it lies {wording.estimate(bend.beyond, 'nats')} beyond both ends"
        if math.isfinite(bend.peak)
        else "no strength between lies beyond both ends"
    )
    shown, even = ("shown" if bend.shown else "not shown"), ("" if bend.even.beyond else "not ")
    return (
        f"The response to {bend.vector} is {shown} to be non-monotone: {said} (corrected {wording.p(bend.adjusted)}), "
        f"the quadratic coefficient is {wording.estimate(bend.quadratic, 'nats')}, and what both signs share is "
        f"{even}beyond that of all {bend.even.count} controls ({wording.p(bend.even.p_scaled)})."
    )


def _metrics(found: Sequence[claims.Claim], bends: Sequence[Bend], base: Estimate, dose: Dose) -> dict[str, float]:
    metrics = intervals.flat("target_probability", base)
    metrics |= {"claims": float(len(found)), "claims_shown": float(sum(each.verdict == "shown" for each in found))}
    for each in found:
        signed = claims.as_measured(each)
        metrics |= intervals.flat(f"effect_{each.vector}", signed)
        metrics |= intervals.defined(
            {
                f"p_{each.vector}": each.against.p,
                f"p_adjusted_{each.vector}": each.adjusted,
                f"power_{each.vector}": each.smallest,
            }
        )
        if each.twin is not None:
            metrics |= intervals.flat(f"beyond_twin_{each.vector}", each.twin)
    for bend in bends:
        metrics |= intervals.flat(f"bend_{bend.vector}", bend.quadratic)
        metrics |= intervals.defined({f"bend_p_adjusted_{bend.vector}": bend.adjusted})
    return metrics


def _table(measured: Measured, dose: Dose) -> Table:
    usable = checks.coherent(measured)
    rows = [
        (
            measured.cells[index].vector,
            measured.cells[index].strength,
            wording.cell(change),
            checks.own_words(measured, index),
            float(measured.manipulation["perplexity"][index]),
            "yes" if usable[index] else "no",
        )
        for index, change in dose
    ]
    columns = ("vector", "strength", "change of log-odds", "own words, nats", "perplexity ratio", "counts")
    return Table("Dose-response", columns, rows, "Change against the unsteered model, intervals over groups.")


def _slopes(measured: Measured, change: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> Table:
    """Per vector the slope through the unsteered model, over coherent strengths, in nats per tenth of the norm."""
    usable, rows = checks.coherent(measured), []
    for vector in dict.fromkeys(cell.vector for cell in measured.cells if cell.family == "concept"):
        cells = [index for index in checks.cells_of(measured, vector) if usable[index]]
        strengths = np.array([measured.cells[index].strength for index in cells])
        if (strengths**2).sum() == 0:
            rows.append((vector, wording.cell(intervals.undefined()), "outside the coherence window"))
            continue
        slope = strengths @ change[cells] / (strengths**2).sum() / 10
        check = checks.manipulation(measured, vector)
        passed = f"passed; {check.ahead} other concepts' words rise more"
        rows.append((vector, wording.cell(intervals.over_groups(slope, groups, generator)), check.reason or passed))
    return Table("Slopes", ("vector", "nats per tenth of the norm", "manipulation check"), rows)


def _chart(measured: Measured, dose: Dose) -> Chart:
    series = []
    for vector in dict.fromkeys(measured.cells[index].vector for index, _ in dose):
        points = [
            (measured.cells[index].strength, found) for index, found in dose if measured.cells[index].vector == vector
        ]
        points = sorted([*points, (0.0, Estimate(0.0, 0.0, 0.0, 0))], key=lambda point: point[0])
        found = [each for _, each in points]
        series.append(
            Series(
                vector,
                [strength for strength, _ in points],
                [each.value for each in found],
                [each.low for each in found],
                [each.high for each in found],
            )
        )
    return Chart("Dose-response", "line", "strength, of the mean residual norm", "change of log-odds, nats", series)

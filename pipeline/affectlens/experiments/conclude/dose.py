"""Dose-response: what steering does to a choice, strength by strength, against controls, twin and positive control."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from affectlens.experiments.conclude import estimators, pushes, selection, steering
from affectlens.experiments.conclude.analysis import Needs, analysis
from affectlens.experiments.conclude.estimators import Figures
from affectlens.experiments.conclude.pushes import ByGroup, SteeringAnalysis
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.experiment import ChoiceConfig
from affectlens.experiments.results import Measured
from affectlens.interventions.judge import Claim, judge
from affectlens.results.figures import Chart, DataTable, Finding, Series, Verdict
from affectlens.stats import Estimate, holm

TEMPLATE = (
    steering.TEMPLATE
    + """
{% for b in bends %}
{% if b.reason %}
Whether the response to {{ b.vector }} is non-monotonic could not be tested: {{ b.reason }}.
{% else %}
The response to {{ b.vector }} is {{ "shown" if b.adjusted <= alpha else "not shown" }} to be non-monotonic.
{% if b.peak is not nan %}
At {{ b.peak|number(2, sign=true) }} it lies {{ b.beyond|measured(unit) }} beyond both ends,
  {{ b.adjusted|p }} after correction.
{% endif %}
Its coefficient of the squared strength is {{ b.quadratic|measured(unit) }}.
{% endif %}
{% endfor %}
{% if not vectors and not bends %}
No vector is claimed to move the choice here: the dose-response is described, not tested.
{% endif %}
Unsteered, the target is ahead by {{ base|measured(unit) }}.
{% if probability is not none %}
That is a probability of {{ probability|share }} against the other option.
{% endif %}
Only strengths with a ratio of perplexities of at most {{ limit }} on neutral text count.
"""
)


@analysis("dose")
class Dose(SteeringAnalysis):
    """Does steering move the choice, against controls of the same norm?"""

    conditions: tuple[str, ...] = ("main",)
    """Of the scenarios that are looked at."""
    twin: str = ""
    """A condition in which the same steering should do nothing of the sort."""
    bend: tuple[str, ...] = ()
    """Vectors whose effect is claimed to be non-monotonic."""
    matters: float = Field(default=0.5, ge=0)
    """In the unit of the outcome, a side: nats, or nats a token where the choice is scored per token."""

    def needs(self) -> Needs:
        # A missing twin is said by the analysis itself: the rest of it can be tested.
        vectors = (*self.raises, *self.lowers, *self.bend)
        return Needs(outcomes=("choice",), vectors=vectors, conditions=self.conditions)

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Test whether the claimed vectors move the choice as claimed, by more than controls of the same norm."""
        if measured.choice is None:
            return self.untestable("no choice was measured")
        choice = np.asarray(measured.choice, dtype=float)
        rows = selection.rows(measured, self.conditions)
        rows = rows[np.isfinite(choice[0, rows])]
        if not len(rows):
            return self.untestable(f"no scenario of {' or '.join(self.conditions)} has a choice")
        outcome = measured.experiment.config.outcome(ChoiceConfig)
        per_token = outcome is not None and outcome.per_token
        unit = "nats a token" if per_token else "nats"
        names, change = pushes.by_group(choice - choice[0], rows, measured)
        beyond = None
        if self.twin:
            twins, of_twins = pushes.by_group(choice - choice[0], selection.rows(measured, (self.twin,)), measured)
            shared = np.intersect1d(names, twins)
            beyond = change[:, np.isin(names, shared)] - of_twins[:, np.isin(twins, shared)]
        order = steering.positive_control(choice[0], rows, measured, self, rng)
        vectors = steering.steered_vectors(
            measured, change, self, self.claimed, rng, names=names, order=order, beyond_twin=beyond
        )
        bends = [non_monotonicity(measured, vector, change, self, rng) for vector in self.bend]
        bends = [
            replace(each, adjusted=float(p))
            for each, p in zip(bends, holm(np.array([each.p for each in bends])) if bends else (), strict=True)
        ]
        verdicts: list[Verdict] = [*(each.verdict for each in vectors), *(each.verdict(self) for each in bends)]
        gate = order.gate if verdicts else ""
        verdict = "untestable" if gate else estimators.overall(verdicts, self.rule)
        groups = selection.groups(measured, rows)
        probability = None
        if outcome is not None and not per_token and not outcome.lead_in:
            probability = estimators.share(1 / (1 + np.exp(-choice[0, rows])), groups, self)
        base = estimators.mean(choice[0, rows], groups, self)
        action = f"move the {'difference of log-likelihoods' if per_token else 'log-odds'} of the target"
        sentences = render(
            TEMPLATE, **steering.said(vectors, self, action, unit, gate, order), bends=bends, alpha=self.alpha,
            base=base, probability=probability, limit=self.perplexity_limit,
        )  # fmt: skip
        figures: Figures = {
            "target_ahead": base, "target_probability": probability, **steering.figures(vectors, order),
        }  # fmt: skip
        for each in bends:
            figures |= {f"bend_{each.vector}": each.quadratic, f"bend_p_adjusted_{each.vector}": each.adjusted}
        tables, chart = self._doses(measured, change, unit, rng)
        return self.finding(verdict, sentences, figures, (*tables, steering.table(vectors, unit)), (chart,))

    def _doses(
        self, measured: Measured, change: ByGroup, unit: str, rng: np.random.Generator
    ) -> tuple[list[DataTable], Chart]:
        """Every strength of every vector, and their slopes."""
        usable = pushes.coherent(measured, self.perplexity_limit)
        rises, perplexity = measured.manipulation["rises"], measured.manipulation["perplexity"]
        doses, slopes, series = [], [], []
        for vector in dict.fromkeys(each.vector for each in measured.grid if each.family == "concept"):
            own = pushes.conditions_of(measured, vector)
            points = {0.0: Estimate(0.0, 0.0, 0.0, 0)}
            points |= {measured.grid[i].strength: estimators.mean(change[i], None, self) for i in own}
            series.append(Series.of(vector, sorted(points), [points[strength] for strength in sorted(points)]))
            doses += [
                {"vector": vector, "strength": strength, f"change, {unit}": points[strength],
                 "own words, nats": float(rises[index, measured.concepts.index(vector)]),
                 "perplexity ratio": float(perplexity[index]), "counts": "yes" if usable[index] else "no"}
                for index, strength in ((index, measured.grid[index].strength) for index in own)
            ]  # fmt: skip
            inside = [index for index in own if usable[index]]
            strengths = np.array([measured.grid[index].strength for index in inside])
            slope, note = estimators.undefined(), "outside the coherence window"
            if (strengths**2).sum() > 0:
                # Least squares through the unsteered model, per tenth of the mean residual norm.
                slope = estimators.mean(strengths @ change[inside] / (strengths**2).sum() / 10, None, self)
                check = pushes.manipulation(measured, vector, self)
                note = check.reason or f"passed; {check.ahead} other concepts' words rise more"
            slopes.append({"vector": vector, f"{unit} per tenth of the norm": slope, "manipulation check": note})
        tables = [
            DataTable.of("Dose-response", doses, "Change against the unsteered model, intervals over groups."),
            DataTable.of("Slopes", slopes),
        ]
        x, y = "strength, of the mean residual norm", f"change of the choice, {unit}"
        return tables, Chart("Dose-response", "line", x, y, series)


@dataclass(frozen=True)
class NonMonotonicity:
    """Whether a vector's dose-response turns around.

    Attributes:
        vector: the concept.
        quadratic: coefficient of the squared strength (strengths in units of the largest).
        peak: strength at which the response is farthest beyond both ends; NaN where none is.
        beyond: by how much, the lesser of both sides; positive also for a trough.
        p: that it turns, and that both signs share more than in controls.
        adjusted: after Holm over the vectors claimed to bend.
        reason: why it could not be tested.
    """

    vector: str
    quadratic: Estimate
    peak: float
    beyond: Estimate
    p: float
    adjusted: float = math.nan
    reason: str = ""

    def verdict(self, spec: SteeringAnalysis) -> Verdict:
        """Whether the response turns around."""
        return "untestable" if self.reason else "shown" if self.adjusted <= spec.alpha else "not shown"


def non_monotonicity(
    measured: Measured, vector: str, change: ByGroup, spec: SteeringAnalysis, rng: np.random.Generator
) -> NonMonotonicity:
    """Test whether the response lies beyond both ends in between, and is not what pushing either way does anyhow.

    Beyond both ends is an intersection-union test: the larger p of the two paired t tests, times the number of inner
    strengths and directions (peak or trough) that were looked through. What both signs of the vector share is held
    against the same of the controls. The claim needs both, so its p is the larger one.
    """
    from scipy.special import stdtr

    check = pushes.manipulation(measured, vector, spec, np.asarray(np.isfinite(change).any(axis=1)))
    usable = pushes.coherent(measured, spec.perplexity_limit)
    inside = [index for index in pushes.conditions_of(measured, vector) if usable[index]]
    strengths = np.array([measured.grid[index].strength for index in inside] + [0.0])
    curves = change[[*inside, 0]].T
    curves = curves[np.isfinite(curves).all(axis=1)]
    reason = check.reason
    if not reason and (len(strengths) < 4 or not check.push.both):
        reason = "fewer than three coherent strengths, or of one sign only"
    if not reason and len(curves) < 2:
        reason = "there are too few groups of scenarios"
    if reason:
        return NonMonotonicity(
            vector, estimators.undefined(), math.nan, estimators.undefined(), math.nan, reason=reason
        )
    order = np.argsort(strengths)
    strengths, curves = strengths[order], curves[:, order]
    scaled = strengths / np.abs(strengths).max()
    # The row of the pseudo-inverse that gives each group's own coefficient of the squared strength.
    weights = np.linalg.pinv(np.stack([np.ones_like(scaled), scaled, scaled**2], axis=1))[2]
    quadratic = estimators.mean(curves @ weights, None, spec)
    peak, beyond, p_turn = math.nan, estimators.undefined(), 1.0
    tried = 2 * (len(strengths) - 2)
    for sign in (1, -1):
        for place in range(1, len(strengths) - 1):
            ends = sign * (curves[:, [place]] - curves[:, [0, -1]])
            error = ends.std(axis=0, ddof=1) / math.sqrt(len(ends))
            score = ends.mean(axis=0) / np.where(error > 0, error, np.finfo(float).tiny)
            p = min(1.0, tried * float(stdtr(len(ends) - 1, -score).max()))
            if p < p_turn:
                nearer = ends[:, int(ends.mean(axis=0).argmin())]
                peak, beyond, p_turn = float(strengths[place]), estimators.mean(nearer, None, spec), p
    own = (change[check.push.plus] + change[check.push.minus]) / 2
    side = 1 if np.nanmean(own) >= 0 else -1
    # Sizes against sizes: to which side the shared part goes was seen by looking at it.
    shared = {
        family: side * np.abs([np.nanmean((change[each.plus] + change[each.minus]) / 2) for each in members])
        for family, members in pushes.controls(measured, check.push).items()
    }
    (even,) = judge([Claim(vector, own, shared, side=side)], replace(spec.rules, least_groups=2))
    if even.outcome == "untestable":
        return NonMonotonicity(vector, quadratic, peak, beyond, math.nan, reason=even.reason)
    return NonMonotonicity(vector, quadratic, peak, beyond, estimators.jointly(p_turn, even.p))

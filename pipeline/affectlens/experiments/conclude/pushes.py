"""Steering vectors at the strengths that count: pushes, their controls, and the check that they do what they are named.

A push is a vector at its largest coherent strength of each sign. Its effect is half the difference between both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.conditions import extremes
from affectlens.experiments.results import Measured
from affectlens.interventions.judge import Claim, Rules, judge
from affectlens.results.figures import Finding, Verdict
from affectlens.results.format import number

ORGANISM = """
{% if follows == "vectors" %}
{% if verdict == "planted" %}
What was put into this organism was found.
{% else %}
What was put into this organism was not found, so this could not be tested on this model.
{% endif %}
Its act was tuned to follow the claimed vectors, in nats a side at the largest strength: {{ put_in|names }}.
{% else %}
The act of this organism was tuned to follow
  {{ "nothing" if follows == "nothing" else "directions drawn at random" }}.
Whatever is shown of the claimed vectors here is a false alarm.
{% endif %}
"""

ByGroup = Float[np.ndarray, "conditions groups"]


class SteeringAnalysis(Analysis):
    """What analyses of steering vectors have in common."""

    raises: tuple[str, ...] = ()
    """Vectors claimed to raise the outcome when added."""
    lowers: tuple[str, ...] = ()
    """Vectors claimed to lower it."""
    rule: Literal["all", "any"] = "all"
    """Whether the claim of the experiment asks for every claimed vector, or for one of them."""
    perplexity_limit: float = Field(default=1.5, gt=1)
    """Largest ratio of perplexities on neutral text at which an effect counts."""
    least_controls: int = Field(default=20, ge=1)
    """Fewer controls, and nothing counts as shown."""
    check_level: float = Field(default=0.05, gt=0, lt=1)
    """Of the manipulation check: how often the vector of a wrong emotion may pass for that of a concept."""
    asked: tuple[str, str] = ("asked_for", "asked_against")
    """The conditions of the positive control: scenarios whose instruction asks for the outcome, and for its opposite,
    in the groups of the others."""
    irrelevant: str = "irrelevant"
    """The condition of scenarios with a sentence that says nothing of the outcome; asking for it must move it more."""
    equivalence: float = Field(default=0.2, gt=0)
    """Share of what asking for the outcome does: a null is believed where more than that is excluded."""
    planted: int = Field(default=100, ge=10)
    """Resampled experiments behind a statement of power."""

    @property
    def claimed(self) -> list[tuple[str, Literal[1, -1]]]:
        """Vectors and the side to which they are claimed to move the outcome."""
        return [*((vector, 1) for vector in self.raises), *((vector, -1) for vector in self.lowers)]

    def on_organism(self, finding: Finding, measured: Measured) -> Finding:
        """What was put into an organism is no discovery, and an analysis that misses it cannot test anything."""
        if not self.claimed:
            return finding
        verdict: Verdict = finding.verdict
        if measured.organism == "vectors":
            turned: dict[Verdict, Verdict] = {"shown": "planted", "not shown": "untestable"}
            verdict = turned.get(verdict, verdict)
        put_in = {vector: measured.planted[vector] for vector, _ in self.claimed}
        sentences = render(
            ORGANISM, follows=measured.organism, verdict=verdict,
            put_in=[f"{vector} {number(size, sign=True)}" for vector, size in put_in.items()],
        )  # fmt: skip
        metrics = {**finding.metrics, **{f"planted_{vector}": size for vector, size in put_in.items()}}
        return replace(finding, verdict=verdict, sentences=(*sentences, *finding.sentences), metrics=metrics)

    def claim_p(self, metrics: Mapping[str, float]) -> float:
        """Of all claimed vectors, or of any of them, by ``rule``; each is corrected over the claims already."""
        named = [name for name in metrics if name.startswith(("p_adjusted_", "bend_p_adjusted_"))]
        p = [metrics[name] for name in named]
        return math.nan if not p else max(p) if self.rule == "all" else min(p)

    @property
    def rules(self) -> Rules:
        """For the judge; what an effect that is not shown is called is decided here, by planting."""
        return Rules(
            level=self.alpha,
            perplexity_limit=self.perplexity_limit,
            least_controls=self.least_controls,
            least_groups=self.least_groups,
        )


@dataclass(frozen=True)
class Push:
    """A vector on one side or on both.

    Attributes:
        plus: index of the steering condition whose change counts as it is; None where there is none.
        minus: of the one whose change counts turned around.
    """

    plus: int | None
    minus: int | None = None

    @property
    def both(self) -> bool:
        """Whether it was pushed both ways."""
        return self.plus is not None and self.minus is not None

    def __bool__(self) -> bool:
        return self.plus is not None or self.minus is not None

    def effect(self, change: Float[np.ndarray, "conditions ..."]) -> Float[np.ndarray, "..."]:
        """Half the difference between both sides, so that what both do alike (damage) cancels; or the one side."""
        if self.plus is not None and self.minus is not None:
            return (change[self.plus] - change[self.minus]) / 2
        return change[self.plus] if self.plus is not None else -change[self.minus]


def coherent(measured: Measured, limit: float) -> Bool[np.ndarray, " conditions"]:
    """Where neutral text stays about as predictable as it was; a ratio that is not known does not count."""
    return np.asarray(measured.manipulation["perplexity"], dtype=float) <= limit


def conditions_of(measured: Measured, vector: str) -> list[int]:
    """The steering conditions of a concept's vector, by rising strength."""
    own = [index for index, each in enumerate(measured.grid) if each.family == "concept" and each.vector == vector]
    return sorted(own, key=lambda index: measured.grid[index].strength)


def label_of(measured: Measured, index: int) -> str:
    """A steering condition in words."""
    each = measured.grid[index]
    return {"none": "none", "concept": each.vector}.get(each.family, f"control ({each.family})")


def controls(measured: Measured, push: Push | None) -> dict[str, list[Push]]:
    """By family the control vectors at their largest strengths, pushed to the same sides.

    Args:
        measured: the experiment.
        push: None takes either side of a control vector for one by itself.
    """
    members: dict[tuple[str, str], list[int]] = {}
    for index, each in enumerate(measured.grid):
        if each.family not in ("none", "concept"):
            members.setdefault((each.family, each.vector), []).append(index)
    families: dict[str, list[Push]] = {}
    for (family, _), conditions in members.items():
        if push is None:
            families.setdefault(family, []).extend(map(Push, conditions))
            continue
        sides = []
        for index in (push.plus, push.minus):
            sign = 0.0 if index is None else np.sign(measured.grid[index].strength)
            alike = [each for each in conditions if sign * measured.grid[each].strength > 0]
            sides.append(max(alike, key=lambda each: abs(measured.grid[each].strength), default=None))
        if [side is None for side in sides] == [push.plus is None, push.minus is None]:
            families.setdefault(family, []).append(Push(*sides))
    return families


@dataclass(frozen=True)
class Check:
    """The manipulation check of one vector.

    Attributes:
        push: at the largest coherent strengths at which the outcome was measured.
        reason: why it did not pass; empty where it did.
        ahead: how many other concepts' words rise more by it. Neighbours in meaning rise together, so this is no part
            of the check.
    """

    push: Push
    reason: str
    ahead: int = 0


def manipulation(
    measured: Measured, vector: str, spec: SteeringAnalysis, known: Bool[np.ndarray, " conditions"] | None = None
) -> Check:
    """Whether a vector moves its own words by more than random vectors and all wrong emotions move them.

    The judge is that of the causal stage: every concept's vector on its own words, against random vectors and against
    the other concepts' vectors, the null taken over all concepts. Beside random vectors alone the vector of a wrong
    emotion passes too often: any emotion's vector moves words of emotions further than a random one of its norm.

    Args:
        measured: the experiment.
        vector: a concept.
        spec: of the analysis.
        known: conditions in which the outcome was measured at all; all by default.
    """
    seen = np.ones(len(measured.grid), dtype=bool) if known is None else known
    tried = [index for index in conditions_of(measured, vector) if measured.grid[index].strength]
    usable = [index for index in tried if (coherent(measured, spec.perplexity_limit) & seen)[index]]
    up = [index for index in usable if measured.grid[index].strength > 0]
    push = Push(up[-1] if up else None, usable[0] if len(usable) > len(up) else None)
    if not tried:
        return Check(push, f"{vector} was not among the steering vectors")
    if not push:
        broken = f"{vector} breaks coherence (perplexity ratio above {spec.perplexity_limit}) throughout"
        return Check(push, broken if seen[tried].any() else f"nothing was measured under {vector}")
    rises = np.asarray(measured.manipulation["rises"], dtype=float)
    concept, own = measured.concepts.index(vector), push.effect(rises)
    # What every vector does at the extreme strengths, to the sides to which this one was pushed.
    strengths = extremes([each.strength for each in measured.grid])
    sides = dict(zip(np.sign(strengths), np.moveaxis(measured.manipulation["vectors"], 1, 0), strict=True))
    signs = [np.sign(measured.grid[index].strength) for index in (push.plus, push.minus) if index is not None]
    matrix = np.mean([sign * sides[sign] for sign in signs], axis=0)
    families = {
        name: np.array([member.effect(rises) for member in members])
        for name, members in controls(measured, push).items()
        if name != "wrong_emotion"
    }
    claims = [
        Claim(
            name,
            own[[index]] if index == concept else matrix[[index], index],
            {family: effects[:, index] for family, effects in families.items()}
            | {"wrong_emotion": np.delete(matrix[:, index], index)},
        )
        for index, name in enumerate(measured.concepts)
    ]
    verdict = judge(claims, replace(spec.rules, least_groups=1, correction="benjamini_hochberg"), pool=True)[concept]
    reason = ""
    if verdict.outcome == "untestable":
        reason = f"{vector} has too few controls for its manipulation check"
    elif not verdict.p <= spec.check_level:
        hardest = "wrong emotions" if verdict.family == "wrong_emotion" else "controls"
        reason = f"{vector} does not move its own words more than {hardest} do: manipulation check failed"
    return Check(push, reason, int((np.delete(own, concept) > own[concept]).sum()))


def by_group(
    values: Float[np.ndarray, "conditions scenarios"], rows: np.ndarray, measured: Measured
) -> tuple[np.ndarray, ByGroup]:
    """Names of the groups of these scenarios, and per steering condition the means of the groups."""
    groups = selection.groups(measured, rows)
    return np.unique(groups), estimators.group_means(values[:, rows].T, groups).T

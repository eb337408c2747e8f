"""The one judge of the project: does a vector do more than the vectors it is held against?

A *claim* says that a vector moves an outcome to one side. The claim has one confirmatory statistic, its mean effect
over groups of contexts (frames, scenarios, topics), and that statistic has one p. The rule:

1. Controls come in families: random vectors (isotropic, covariance-matched, permuted), random features, directions of
   shuffled labels, and the vectors of the *wrong* emotions.
2. The effect is standardised by each family, as a prediction of one new member: less the family's mean, over its
   standard deviation times sqrt(1 + 1/m). That t value is turned into the normal score of the same tail, so that
   families of different size can be compared. The family's null are its own members, each standardised by the others
   in the same way. The p of the family is (b + 1) / (m + 1), b of its m null values being at least as large
   (Phipson & Smyth 2010).
3. The p of the claim is the largest over the families. The claim says that the vector is a member of *none* of them,
   so the test is an intersection-union test (Berger 1982): its level holds if the vector is like any one of the
   families, however strong it is beside the others. A wrong emotion's vector moves words almost twice as far as a
   random vector of its norm; beside random vectors alone it would pass five times too often.
4. All claims judged together are one family of tests, corrected by Holm or Benjamini-Hochberg.
5. A claim is *shown* when its corrected p is at most the level. The interval over groups, the power and the rank among
   the controls are printed beside the verdict. They are no further conditions.

Where a family has too few null values for a p that survives the correction, families that are short in this way are
counted together, and with the next longer ones until they are enough: scores are taken to be alike from family to
family. Where every claim has controls measured on its own outcome (each concept's own words), ``pool=True`` takes the
null over all claims in the same manner. Families that are alike by construction may be handed over as one: the largest
p over many small families is a cautious one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from affectlens.stats import benjamini_hochberg, holm, permutation_p

Outcome = Literal["shown", "not shown", "untestable"]
Reason = Literal[
    "beyond controls",
    "not beyond controls",
    "effect that matters excluded",
    "not measured",
    "too few controls",
    "too few groups",
    "incoherent text",
    "too little power",
]
Correction = Literal["holm", "benjamini_hochberg"]

SMALLEST_FAMILY = 3
"""Members without which a family has no spread of its own: the leave-one-out standard deviation needs two others."""


@dataclass(frozen=True)
class Rules:
    """When a claim counts as shown. Every field comes from a study's config.

    Attributes:
        level: error rate after correction; intervals cover 1 - ``level``.
        correction: over the claims that are judged together.
        perplexity_limit: largest perplexity ratio on neutral text at which an effect counts.
        least_controls: fewer of them, and nothing is shown.
        least_groups: fewer groups, and nothing is shown.
        matters: smallest effect that matters, in units of the effect. An effect that is not shown is called "not shown"
            only if the interval excludes an effect of this size, or if it would have been shown with ``power``. None
            asks for neither.
        power: that is enough to believe that an effect is not there.
    """

    level: float = 0.05
    correction: Correction = "holm"
    perplexity_limit: float = 1.5
    least_controls: int = 20
    least_groups: int = 2
    matters: float | None = None
    power: float = 0.8


@dataclass(frozen=True, eq=False)
class Claim:
    """A vector that is claimed to move an outcome.

    Attributes:
        name: of the vector, for messages.
        effect: change of the outcome, as measured; NaN where it was not.
        controls: per family the mean effect of every member over the same groups, as measured.
        groups: of the rows, which count alike; None where every row is a group of its own.
        side: 1 if the vector is claimed to raise the outcome, -1 if to lower it.
        symmetric: whether turning a control around turns its effect around, as in half the difference of both pushes.
            Then every control counts with both signs, and its mean is known to be 0.
        rates: whether the outcome is a rate, of which all groups may agree without an error of 0.
        perplexity: largest ratio of perplexities on neutral text under the vector.
    """

    name: str
    effect: Float[np.ndarray, "rows"]
    controls: Mapping[str, Float[np.ndarray, "members"]]
    groups: Shaped[np.ndarray, "rows"] | None = None
    side: Literal[1, -1] = 1
    symmetric: bool = False
    rates: bool = False
    perplexity: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """What became of one claim. Effects are positive in the claimed direction.

    Attributes:
        name: of the vector.
        outcome: ``shown``, ``not shown``, or ``untestable``.
        reason: what decided.
        effect: mean over groups.
        low: lower end of its interval, by t over group means; NaN with fewer than two groups.
        high: upper end.
        error: standard error of the mean over groups.
        groups: that were measured.
        p: of the claim against its hardest family, before correction.
        p_adjusted: after correction over the claims judged together.
        floor: the least p that the controls allow.
        family: the family that gives ``p``.
        standardised: per family the normal score of the effect.
        family_p: per family its p; ``p`` is the largest.
        threshold: the mean effect from which this claim alone would be shown after correction.
        controls: members of all families.
        control_mean: mean of them.
        control_max: largest of them.
        above: whether the effect is larger than every one of them.
    """

    name: str
    outcome: Outcome
    reason: Reason
    effect: float
    low: float
    high: float
    error: float
    groups: int
    p: float
    p_adjusted: float
    floor: float
    family: str
    standardised: Mapping[str, float]
    family_p: Mapping[str, float]
    threshold: float
    controls: int
    control_mean: float
    control_max: float
    above: bool

    @property
    def shown(self) -> bool:
        """Whether the claim is shown."""
        return self.outcome == "shown"

    def power(self, effect: float) -> float:
        """Probability that a true mean effect of this size would be shown, were it the only one.

        The mean over groups varies around the true effect by its standard error (t with groups - 1 degrees); the effect
        is shown where it reaches ``threshold``, which comes from the rule itself.
        """
        if self.groups < 2 or math.isnan(self.threshold):
            return math.nan
        if not self.error > 0 or math.isinf(self.threshold):
            return float(effect >= self.threshold)
        from scipy.special import stdtr

        return float(stdtr(self.groups - 1, (effect - self.threshold) / self.error))


def judge(claims: Sequence[Claim], rules: Rules, *, pool: bool = False) -> list[Verdict]:
    """Judge claims that are one family of tests, by the rule of this module.

    Args:
        claims: one a vector.
        rules: level, correction, thresholds.
        pool: whether the null of a family is taken over all claims. Only where the controls of each claim were measured
            on the claim's own outcome: the same numbers counted once a claim would feign a longer null.

    Returns:
        A verdict for each claim. A claim without a measured effect, without controls or with too few of them, with too
        few groups or with incoherent text is ``untestable``; it takes no part in the correction only where it has no p.
    """
    intervals = [_over_groups(claim, rules.level) for claim in claims]
    families = [_families(claim) for claim in claims]
    tests = sum(bool(own) and math.isfinite(mean) for own, (mean, *_) in zip(families, intervals, strict=True))
    nulls = _nulls(families, math.ceil(max(tests, 1) / rules.level) - 1, pool=pool)
    scores = [
        {name: float(family.scores(np.array([mean]))[0]) for name, family in own.items()}
        for own, (mean, *_) in zip(families, intervals, strict=True)
    ]
    family_p = [
        {name: float(permutation_p(score, null[name])[0]) for name, score in own.items()}
        for own, null in zip(scores, nulls, strict=True)
    ]
    p = np.array([max(own.values(), default=math.nan) for own in family_p])
    adjusted = (holm if rules.correction == "holm" else benjamini_hochberg)(p)
    verdicts = []
    for index, claim in enumerate(claims):
        mean, low, high, error, groups = intervals[index]
        own, null = families[index], nulls[index]
        members = claim.side * np.concatenate([*claim.controls.values(), np.empty(0)])
        members = members[np.isfinite(members)]
        reach = np.abs(members) if claim.symmetric else members
        verdict = Verdict(
            name=claim.name,
            outcome="not shown",
            reason="not beyond controls",
            effect=mean,
            low=low,
            high=high,
            error=error,
            groups=groups,
            p=float(p[index]),
            p_adjusted=float(adjusted[index]),
            floor=max((1 / (len(values) + 1) for values in null.values()), default=math.nan),
            family=max(family_p[index], key=lambda name: family_p[index][name], default=""),
            standardised=scores[index],
            family_p=family_p[index],
            threshold=_threshold(own, null, rules.level / max(tests, 1)),
            controls=len(members),
            control_mean=float(members.mean()) if len(members) else math.nan,
            control_max=float(reach.max()) if len(members) else math.nan,
            above=bool(len(members) and mean > reach.max()),
        )
        outcome, reason = _decide(verdict, claim, rules, tests)
        verdicts.append(replace(verdict, outcome=outcome, reason=reason))
    return verdicts


def _decide(verdict: Verdict, claim: Claim, rules: Rules, tests: int) -> tuple[Outcome, Reason]:
    if not math.isfinite(verdict.effect):
        return "untestable", "not measured"
    # With Holm the smallest of k p-values is multiplied by k, so the floor must leave room for that.
    least_p = verdict.floor * (tests if rules.correction == "holm" else 1)
    if verdict.controls < rules.least_controls or not least_p <= rules.level:
        return "untestable", "too few controls"
    if verdict.groups < rules.least_groups:
        return "untestable", "too few groups"
    if not claim.perplexity <= rules.perplexity_limit:
        return "untestable", "incoherent text"
    if verdict.p_adjusted <= rules.level:
        return "shown", "beyond controls"
    if rules.matters is None:
        return "not shown", "not beyond controls"
    if verdict.high < rules.matters:
        return "not shown", "effect that matters excluded"
    if verdict.power(rules.matters) >= rules.power:
        return "not shown", "not beyond controls"
    return "untestable", "too little power"


def _over_groups(claim: Claim, level: float) -> tuple[float, float, float, float, int]:
    """Mean over groups in the claimed direction, its t interval, standard error, and the number of groups.

    A t over group means keeps its level for few and unequal groups (Ibragimov & Müller 2010).
    """
    values = claim.side * np.asarray(claim.effect, dtype=float)
    measured = np.isfinite(values)
    names = np.arange(len(values)) if claim.groups is None else np.asarray(claim.groups)
    codes = np.unique(names[measured], return_inverse=True)[1]
    means = np.bincount(codes, values[measured]) / np.bincount(codes) if measured.any() else np.empty(0)
    groups = len(means)
    if groups < 2:
        return (float(means[0]) if groups else math.nan), math.nan, math.nan, math.nan, groups
    from scipy.special import stdtrit

    mean, error = float(means.mean()), float(means.std(ddof=1)) / math.sqrt(groups)
    if claim.rates and error == 0:
        # All groups agree: as if one of two more groups did not.
        error = math.sqrt(1 / (groups + 2) / groups)
    half = float(stdtrit(groups - 1, 1 - level / 2)) * error
    return mean, mean - half, mean + half, error, groups


@dataclass(frozen=True, eq=False)
class _Family:
    """One family of controls in the claimed direction.

    Attributes:
        centre: their mean; 0 where their signs mean nothing.
        spread: standard deviation of a new member around ``centre``.
        degrees: of freedom of ``spread``.
        null: the normal score of every member among the others.
    """

    centre: float
    spread: float
    degrees: int
    null: Float[np.ndarray, "members"]

    def scores(self, effects: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """Normal scores of effects, as new members."""
        return _normal_scores(effects - self.centre, np.full(len(effects), self.spread), self.degrees)

    def effect(self, score: float) -> float:
        """The effect that has a normal score: the inverse of :meth:`scores`."""
        from scipy.special import ndtr, stdtrit

        if not self.spread > 0:
            return self.centre
        return self.centre + self.spread * math.copysign(float(-stdtrit(self.degrees, ndtr(-abs(score)))), score)


def _families(claim: Claim) -> dict[str, _Family]:
    """The families of a claim; those of fewer than :data:`SMALLEST_FAMILY` members are joined into one."""
    members = {name: claim.side * np.asarray(values, dtype=float) for name, values in claim.controls.items()}
    members = {name: values[np.isfinite(values)] for name, values in members.items()}
    small = [values for values in members.values() if 0 < len(values) < SMALLEST_FAMILY]
    large = {name: values for name, values in members.items() if len(values) >= SMALLEST_FAMILY}
    if sum(map(len, small)) >= SMALLEST_FAMILY:
        large["others"] = np.concatenate(small)
    return {name: _family(values, symmetric=claim.symmetric) for name, values in large.items()}


def _family(values: Float[np.ndarray, "members"], *, symmetric: bool) -> _Family:
    """Members, each standardised by the others of its family."""
    count = len(values)
    if symmetric:
        squares = values**2
        null = _normal_scores(values, np.sqrt((squares.sum() - squares) / (count - 1)), count - 1)
        return _Family(0.0, math.sqrt(squares.mean()), count, np.concatenate([null, -null]))
    centre, variance = float(values.mean()), float(values.var(ddof=1))
    rest = (values.sum() - values) / (count - 1)
    # The variance of the others follows from that of all without leaving each out in turn.
    squares = variance * (count - 1) - (values - centre) ** 2 * count / (count - 1)
    others = np.sqrt(np.maximum(squares, 0) / (count - 2) * (1 + 1 / (count - 1)))
    null = _normal_scores(values - rest, others, count - 2)
    return _Family(centre, math.sqrt(variance * (1 + 1 / count)), count - 1, null)


def _normal_scores(
    deviations: Float[np.ndarray, "n"], spread: Float[np.ndarray, "n"], degrees: int
) -> Float[np.ndarray, "n"]:
    """Normal deviates with the tails of t values; 0 for what does nothing beside controls that do nothing."""
    from scipy.special import ndtri, stdtr

    spreads = spread > 0
    t = np.divide(deviations, spread, out=np.zeros_like(deviations, dtype=float), where=spreads)
    t = np.where(spreads | (deviations == 0), t, np.copysign(np.inf, deviations))
    # From the smaller tail, which keeps its digits.
    return np.copysign(-ndtri(stdtr(degrees, -np.abs(t))), t)


def _nulls(
    families: Sequence[Mapping[str, _Family]], needed: int, *, pool: bool
) -> list[dict[str, Float[np.ndarray, "values"]]]:
    """Per claim and family the null values.

    Families with fewer than ``needed`` of them share theirs; where all of these are too few together, the next longer
    families are counted with them.
    """
    pooled: dict[str, np.ndarray] = {}
    if pool:
        names = dict.fromkeys(name for own in families for name in own)
        pooled = {name: np.concatenate([own[name].null for own in families if name in own]) for name in names}
    nulls = []
    for own in families:
        values = {name: pooled[name] if pool else family.null for name, family in own.items()}
        shared: list[np.ndarray] = []
        together = set()
        for name in sorted(values, key=lambda name: len(values[name])):
            enough = sum(map(len, shared)) >= needed if shared else False
            if len(values[name]) < needed or (shared and not enough):
                shared.append(values[name])
                together.add(name)
        nulls.append({name: np.concatenate(shared) if name in together else null for name, null in values.items()})
    return nulls


def _threshold(
    families: Mapping[str, _Family], nulls: Mapping[str, Float[np.ndarray, "values"]], level: float
) -> float:
    """The effect from which p is at most ``level`` against every family; NaN without families."""
    effects = []
    for name, family in families.items():
        reaching = math.floor(level * (len(nulls[name]) + 1) + 1e-9) - 1
        if reaching < 0:
            return math.inf
        effects.append(family.effect(float(np.sort(nulls[name])[len(nulls[name]) - 1 - reaching])))
    return max(effects, default=math.nan)

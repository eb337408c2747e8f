"""Whose emotion a reading follows, and how long it lasts after its cause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens.experiments.conclude import intervals, selection, wording
from affectlens.experiments.conclude.config import CourseConfig
from affectlens.experiments.conclude.diagonal import shuffle
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.stats import Estimate, holm, permutation_p

PERMUTATIONS = 1000
MATTERS = 1.0
"""Excess at the cause, in standard deviations over scenarios, whose absence is worth stating."""
WHOLE = "all"


@dataclass(frozen=True)
class Follow:
    """Readings of one holder of emotions.

    Attributes:
        who: the holder, or ``all``.
        excess: at each place, how far the emotion's own concept reads above where other scenarios put it.
        fall: from the first place to the last; None where there is one place.
        p: of the excess at the first place, under shuffled emotions; and after Holm over holders.
        decay: places until 1 / e is left; infinite where it does not fall.
        smallest: excess that would have been found with 80% power.
    """

    who: str
    excess: tuple[Estimate, ...]
    fall: Estimate | None
    p: float
    decay: Estimate
    smallest: float


@dataclass(frozen=True)
class _Sums:
    """What mean excesses are made of, group by group, so that drawn groups give them by a product.

    Own readings and those of the other emotions' scenarios are drawn together: the latter are estimated too.
    """

    own: Float[np.ndarray, "groups places concepts"]
    owned: Float[np.ndarray, "groups places concepts"]
    other: Float[np.ndarray, "groups places concepts"]
    others: Float[np.ndarray, "groups places concepts"]

    def excess(self, weights: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, "draws places"]:
        """Own mean less the mean of the others, over the concepts of the scenarios; NaN where there are none."""
        own, owned, other, others = (
            np.tensordot(weights, each, axes=1) for each in (self.own, self.owned, self.other, self.others)
        )
        there = (owned > 0) & (others > 0)
        gap = own / np.where(there, owned, 1) - other / np.where(there, others, 1)
        weight = np.where(there, owned, 0.0)
        total = weight.sum(axis=2)
        return np.where(total > 0, (weight * gap).sum(axis=2) / np.where(total > 0, total, 1), np.nan)


def analyse(measured: Measured, config: CourseConfig, generator: np.random.Generator) -> Finding:
    """Own excess by holder and by distance from the cause, against shuffled emotions."""
    rows, target = selection.intended(measured, config.factor, selection.main_rows(measured))
    places = np.stack([selection.reading(measured, name) for name in config.readings])
    if len(rows):
        known = np.isfinite(places[0, rows]).all(axis=1)
        rows, target = rows[known], target[known]
    groups = selection.groups(measured, rows)
    concepts, target = np.unique(target, return_inverse=True)
    if len(concepts) < 2 or len(np.unique(groups)) < 2:
        return wording.untestable(
            f"{len(rows)} scenarios with a reading at {config.readings[0]} name too few emotions in too few groups; "
            "two of each are the least"
        )
    values = places[:, rows][:, :, concepts]
    spread = values[0].std(axis=0)
    values = values / np.where(spread > 0, spread, 1)
    holders = np.array([str(value) for value in selection.factor(measured, config.who, rows)])
    chosen = {WHOLE: np.ones(len(rows), dtype=bool)}
    if len(set(holders)) > 1:
        each = {who: holders == who for who in dict.fromkeys(holders.tolist())}
        chosen |= {who: mine for who, mine in each.items() if _enough(target[mine], groups[mine])}
    weights = intervals.draws(len(np.unique(groups)), generator)
    sums = {who: _sums(values, target, groups, mine) for who, mine in chosen.items()}
    drawn = {who: each.excess(weights) for who, each in sums.items()}
    point = {who: each.excess(np.ones((1, weights.shape[1])))[0] for who, each in sums.items()}
    units = {who: len(np.unique(groups[mine])) for who, mine in chosen.items()}
    found = [
        _follow(
            who, point[who], drawn[who], units[who], _shuffled(values[0, mine], target[mine], groups[mine], generator)
        )
        for who, mine in chosen.items()
    ]
    contrasts = {
        (a, b): _estimates(point[a] - point[b], drawn[a] - drawn[b], min(units[a], units[b]))
        for a, b in combinations([who for who in chosen if who != WHOLE], 2)
    }
    adjusted = dict(zip([each.who for each in found[1:]], holm(np.array([each.p for each in found[1:]])), strict=True))
    return Finding(
        _verdict(found[0]),
        _sentences(found, contrasts, adjusted, config),
        _metrics(found, contrasts),
        (_table(found, adjusted, config), _contrast_table(contrasts, config)),
        (_chart(found, config),),
    )


def _enough(target: Int[np.ndarray, " rows"], groups: Shaped[np.ndarray, " rows"]) -> bool:
    return len(np.unique(target)) > 1 and len(np.unique(groups)) > 1


def _sums(
    values: Float[np.ndarray, "places rows concepts"],
    target: Int[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    chosen: Bool[np.ndarray, " rows"],
) -> _Sums:
    """Sums and counts of the chosen rows for all groups, those of other rows included, which then hold nothing."""
    names, codes = np.unique(groups, return_inverse=True)
    values = np.moveaxis(values, 0, 1)
    known = np.isfinite(values) & chosen[:, None, None]
    own = known & (target[:, None] == np.arange(values.shape[2]))[:, None, :]
    other = known & ~own

    def gathered(each: np.ndarray) -> np.ndarray:
        total = np.zeros((len(names), *each.shape[1:]))
        np.add.at(total, codes, each)
        return total

    filled = np.where(known, values, 0.0)
    return _Sums(
        gathered(filled * own), gathered(own.astype(float)), gathered(filled * other), gathered(other.astype(float))
    )


def _follow(
    who: str,
    point: Float[np.ndarray, " places"],
    drawn: Float[np.ndarray, "draws places"],
    units: int,
    null: Float[np.ndarray, " permutations"],
) -> Follow:
    found = _estimates(point, drawn, units)
    fall = None
    if len(point) > 1:
        fall = intervals.from_draws(float(point[0] - point[-1]), drawn[:, 0] - drawn[:, -1], units)
    p, _ = permutation_p(float(point[0]), null)
    return Follow(who, found, fall, float(p), decay(point, drawn, units), intervals.smallest_of(found[0]))


def _estimates(
    point: Float[np.ndarray, " places"], drawn: Float[np.ndarray, "draws places"], units: int
) -> tuple[Estimate, ...]:
    return tuple(intervals.from_draws(float(each), column, units) for each, column in zip(point, drawn.T, strict=True))


def _shuffled(
    values: Float[np.ndarray, "rows concepts"],
    target: Int[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    generator: np.random.Generator,
) -> Float[np.ndarray, " permutations"]:
    """Mean excess at the first place when scenarios change emotions."""
    totals, rows = values.sum(axis=0), np.arange(len(target))
    found = np.empty(PERMUTATIONS)
    for draw in range(PERMUTATIONS):
        shuffled = shuffle(target, groups, generator)
        counts = np.bincount(shuffled, minlength=values.shape[1])
        own = np.bincount(shuffled, weights=values[rows, shuffled], minlength=values.shape[1])
        rest = np.maximum(len(target) - counts, 1)
        found[draw] = (own - counts * (totals - own) / rest).sum() / len(target)
    return found


def decay(point: Float[np.ndarray, " places"], drawn: Float[np.ndarray, "draws places"], units: int) -> Estimate:
    """Places until 1 / e is left, by the share of the mean excess that is kept from one place to the next.

    The share is the slope of the next mean on this one through the origin (an autoregression of order one). Infinite
    where nothing is lost, 0 where nothing is kept, NaN where the first mean is not above 0 or there is one place.
    """
    if len(point) < 2 or not np.isfinite(point).all():
        return intervals.undefined(units)
    kept = intervals.from_draws(float(_kept(point[None])[0]), _kept(drawn), units)
    # A length is a rising function of the share kept, infinite from 1 on: the ends of the interval go over with it.
    return Estimate(_length(kept.value), _length(kept.low), _length(kept.high), kept.n)


def _kept(means: Float[np.ndarray, "draws places"]) -> Float[np.ndarray, " draws"]:
    """Share that is left one place on; NaN where there is nothing to be left of."""
    kept = (means[:, :-1] * means[:, 1:]).sum(axis=1) / np.maximum((means[:, :-1] ** 2).sum(axis=1), 1e-30)
    return np.where(means[:, 0] > 0, kept, np.nan)


def _length(kept: float) -> float:
    if math.isnan(kept) or kept >= 1:
        return math.nan if math.isnan(kept) else math.inf
    return -1 / math.log(kept) if kept > 0 else 0.0


Contrasts = Mapping[tuple[str, str], tuple[Estimate, ...]]


def _verdict(whole: Follow) -> Literal["shown", "not shown", "untestable"]:
    follows = whole.excess[0].low > 0 and whole.p <= LEVEL and whole.excess[0].n >= intervals.GROUPS
    fades = whole.fall is None or whole.fall.low > 0
    if follows and fades:
        return "shown"
    weakest = whole.smallest if not follows or whole.fall is None else intervals.smallest_of(whole.fall)
    return "not shown" if weakest <= MATTERS else "untestable"


def _sentences(
    found: Sequence[Follow], contrasts: Contrasts, adjusted: Mapping[str, float], config: CourseConfig
) -> list[str]:
    whole = found[0]
    first = (
        f"At {config.readings[0]} the emotion's own concept reads {wording.estimate(whole.excess[0], 'sd')} above "
        f"where scenarios of other emotions put it (shuffled emotions {wording.p(whole.p)})"
    )
    if whole.fall is not None:
        fades = "it fades" if whole.fall.low > 0 else "it is not shown to fade"
        first += (
            f"; {fades}: {wording.estimate(whole.fall, 'sd')} less at {config.readings[-1]}, {_lasting(whole.decay)}"
        )
    sentences = [first + "."]
    for each in found[1:]:
        fall = f", {wording.estimate(each.fall)} less at the end" if each.fall is not None else ""
        sentences.append(
            f"{each.who}: {wording.estimate(each.excess[0], 'sd')} (corrected {wording.p(adjusted[each.who])}){fall}."
        )
    if contrasts:
        told = [f"{a} less {b} {wording.estimate(each[0])}" for (a, b), each in contrasts.items()]
        sentences.append(f"Contrasts at {config.readings[0]}: {'; '.join(told)}.")
    sentences.append(
        f"With {wording.counted(whole.excess[0].n, 'group')} an excess of {wording.number(whole.smallest)} sd at the "
        "first place would be found with 80% power."
    )
    return sentences


def _lasting(length: Estimate) -> str:
    if math.isnan(length.value):
        return "so that no length of decay can be given"
    if math.isinf(length.value):
        return "without decay over these places"
    ends = "to no end in sight" if math.isinf(length.high) else f"to {wording.number(length.high)}"
    return (
        f"1/e being left after {wording.number(length.value)} places (95% interval {wording.number(length.low)} {ends})"
    )


def _metrics(found: Sequence[Follow], contrasts: Contrasts) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for each in found:
        metrics |= intervals.flat(f"excess_{each.who}", each.excess[0]) | intervals.defined({f"p_{each.who}": each.p})
        metrics |= intervals.flat(f"decay_{each.who}", each.decay)
        if each.fall is not None:
            metrics |= intervals.flat(f"fall_{each.who}", each.fall)
    for (first, second), each in contrasts.items():
        metrics |= intervals.flat(f"{first}_less_{second}", each[0])
    return metrics


def _table(found: Sequence[Follow], adjusted: Mapping[str, float], config: CourseConfig) -> Table:
    rows = [
        (each.who, *map(wording.cell, each.excess), adjusted.get(each.who, each.p), wording.cell(each.decay))
        for each in found
    ]
    columns = ("whose emotion", *config.readings, "corrected p at the first", "decay, places")
    return Table("Own excess by distance from the cause", columns, rows, "In standard deviations over scenarios.")


def _contrast_table(contrasts: Contrasts, config: CourseConfig) -> Table:
    rows = [(f"{a} less {b}", *map(wording.cell, each)) for (a, b), each in contrasts.items()]
    return Table("Contrasts between holders", ("contrast", *config.readings), rows)


def _chart(found: Sequence[Follow], config: CourseConfig) -> Chart:
    series = []
    for each in found:
        ends = ([getattr(point, end) for point in each.excess] for end in ("value", "low", "high"))
        series.append(Series(each.who, list(config.readings), *ends))
    return Chart("How long it lasts", "line", "place", "own excess, sd", series)

"""Whose emotion a reading follows, and how long it lasts after its cause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from pipeline.behaviour.analyses import intervals, selection, wording
from pipeline.behaviour.analyses.config import CourseConfig
from pipeline.behaviour.analyses.diagonal import shuffle
from pipeline.behaviour.analyses.intervals import LEVEL
from pipeline.behaviour.measured import Chart, Finding, Measured, Series, Table
from pipeline.stats import Estimate, holm, permutation_p

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


def analyse(measured: Measured, config: CourseConfig, generator: np.random.Generator) -> Finding:
    """Own excess by holder and by distance from the cause, against shuffled emotions."""
    rows, target = selection.intended(measured, config.factor, selection.main_rows(measured))
    places = np.stack([selection.reading(measured, name) for name in config.readings])
    if len(rows):
        known = np.isfinite(places[0, rows]).all(axis=1)
        rows, target = rows[known], target[known]
    if len(np.unique(target)) < 2 or len(np.unique(selection.groups(measured, rows))) < 2:
        return wording.untestable(
            f"{len(rows)} scenarios with a reading at {config.readings[0]} name too few emotions in too few groups; "
            "two of each are the least"
        )
    holders = np.array([str(value) for value in selection.factor(measured, config.who, rows)])
    groups = selection.groups(measured, rows)
    excess = own_excess(places[:, rows], target)
    found = [_follow(WHOLE, places[:, rows], excess, target, groups, generator)]
    for who in dict.fromkeys(holders.tolist()):
        mine = holders == who
        if len(set(holders)) > 1 and len(np.unique(groups[mine])) > 1 and len(np.unique(target[mine])) > 1:
            each = places[:, rows[mine]]
            found.append(_follow(who, each, own_excess(each, target[mine]), target[mine], groups[mine], generator))
    contrasts = _contrasts(excess, holders, groups, generator)
    adjusted = dict(zip([each.who for each in found[1:]], holm(np.array([each.p for each in found[1:]])), strict=True))
    return Finding(
        _verdict(found[0]),
        _sentences(found, contrasts, adjusted, config),
        _metrics(found, contrasts),
        (_table(found, adjusted, config), _contrast_table(contrasts, config)),
        (_chart(found, config),),
    )


def own_excess(
    places: Float[np.ndarray, "places rows concepts"], target: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "places rows"]:
    """How far each scenario's own concept reads above its mean over scenarios of other emotions.

    In standard deviations of that concept's reading over all scenarios at the first place, so that places compare.
    NaN where a scenario has no reading, or no scenario of another emotion has.
    """
    found = np.full(places.shape[:2], np.nan)
    with np.errstate(invalid="ignore"):
        spread = np.nanstd(places[0], axis=0)
    for concept in np.unique(target):
        mine = target == concept
        for place, values in enumerate(places[:, :, concept]):
            others = values[~mine]
            others = others[np.isfinite(others)]
            if len(others) and spread[concept] > 0:
                found[place, mine] = (values[mine] - others.mean()) / spread[concept]
    return found


def _follow(
    who: str,
    places: Float[np.ndarray, "places rows concepts"],
    excess: Float[np.ndarray, "places rows"],
    target: Int[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    generator: np.random.Generator,
) -> Follow:
    found = tuple(intervals.over_groups(values, groups, generator) for values in excess)
    fall = intervals.over_groups(excess[0] - excess[-1], groups, generator) if len(excess) > 1 else None
    null = np.array(
        [_mean(own_excess(places[:1], shuffle(target, groups, generator))[0], groups) for _ in range(PERMUTATIONS)]
    )
    p, _ = permutation_p(found[0].value, null)
    smallest = intervals.smallest_effect(intervals.standard_error(excess[0], groups), found[0].n)
    return Follow(who, found, fall, float(p), decay(excess, groups, generator), smallest)


def _mean(values: Float[np.ndarray, " rows"], groups: Shaped[np.ndarray, " rows"]) -> float:
    means = intervals.group_means(values, groups)
    return float(np.nanmean(means)) if np.isfinite(means).any() else math.nan


def decay(
    excess: Float[np.ndarray, "places rows"], groups: Shaped[np.ndarray, " rows"], generator: np.random.Generator
) -> Estimate:
    """Places until 1 / e is left, by the share of the mean excess that is kept from one place to the next.

    The share is the slope of the next mean on this one through the origin (an autoregression of order one). Infinite
    where nothing is lost, 0 where nothing is kept, NaN where the first mean is not above 0 or there is one place.
    """
    means = intervals.group_means(excess.T, groups)
    means = means[np.isfinite(means).all(axis=1)]
    if len(means) < 1 or means.shape[1] < 2:
        return intervals.undefined(len(means))
    drawn = intervals.draws(len(means), generator) @ means / len(means)
    kept = intervals.from_draws(float(_kept(means.mean(axis=0)[None])[0]), _kept(drawn), len(means))
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


def _contrasts(
    excess: Float[np.ndarray, "places rows"],
    holders: Shaped[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    generator: np.random.Generator,
) -> Contrasts:
    """Each pair of holders: the difference of their mean excess at every place, groups drawn together."""
    pairs = combinations(dict.fromkeys(holders.tolist()), 2)
    return {
        pair: tuple(_difference(values, holders == pair[0], holders == pair[1], groups, generator) for values in excess)
        for pair in pairs
    }


def _difference(
    values: Float[np.ndarray, " rows"],
    first: np.ndarray,
    second: np.ndarray,
    groups: Shaped[np.ndarray, " rows"],
    generator: np.random.Generator,
) -> Estimate:
    """First mean less second; a group that holds both is drawn with both, so what it shares cancels."""
    names, codes = np.unique(groups, return_inverse=True)
    sums, counts = np.zeros((2, len(names))), np.zeros((2, len(names)))
    for side, chosen in enumerate((first, second)):
        known = chosen & np.isfinite(values)
        sums[side] = np.bincount(codes[known], weights=values[known], minlength=len(names))
        counts[side] = np.bincount(codes[known], minlength=len(names))
    if not counts.any(axis=1).all():
        return intervals.undefined()

    def of(weights: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, " draws"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ sums.T) / (weights @ counts.T)
        return means[:, 0] - means[:, 1]

    units = int(counts.any(axis=0).sum())
    return intervals.from_draws(
        float(of(np.ones((1, len(names))))[0]), of(intervals.draws(len(names), generator)), units
    )


def _verdict(whole: Follow) -> Literal["shown", "not shown", "untestable"]:
    follows = whole.excess[0].low > 0 and whole.p <= LEVEL
    fades = whole.fall is None or whole.fall.low > 0
    if follows and fades:
        return "shown"
    return "untestable" if not follows and not whole.smallest <= MATTERS else "not shown"


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

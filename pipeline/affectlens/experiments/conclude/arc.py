"""How readings go along a transcript, and whether it is the failing that moves them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from affectlens.experiments.conclude import controls, intervals, selection, wording
from affectlens.experiments.conclude.config import ArcConfig
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.stats import Estimate, holm, permutation_p

MATTERS = 1.0
"""Change from the first place to the last, in standard deviations over scenarios at the first, worth stating."""


@dataclass(frozen=True)
class Course:
    """One concept's change from the first place to the last, in standard deviations over scenarios at the first.

    Attributes:
        concept: its name.
        sign: in which it is claimed to go; 0 where nothing is claimed.
        change: less that of the twin where there is one.
        p: share of the other concepts that change as much, two-sided where nothing is claimed.
        against: the change in units of the other concepts' changes.
        adjusted: Holm over the named concepts.
        smallest: change that would have been found with 80% power.
    """

    concept: str
    sign: int
    change: Estimate
    p: float
    against: float
    adjusted: float
    smallest: float

    @property
    def shown(self) -> bool:
        """Off zero, as claimed, and more than the other concepts after correction."""
        off = self.change.low > 0 if self.sign > 0 else self.change.high < 0
        off = off and self.change.n >= intervals.GROUPS
        return off and self.adjusted <= LEVEL and self.p <= LEVEL


def analyse(measured: Measured, config: ArcConfig, generator: np.random.Generator) -> Finding:
    """Change from the first to the last reading, transcripts that go well taken off, against all other concepts."""
    places = np.stack([selection.reading(measured, name) for name in config.readings])
    own = selection.rows(measured) if not config.twin else selection.main_rows(measured)
    twin = selection.rows(measured, (config.twin,)) if config.twin else np.empty(0, dtype=np.int64)
    changes, groups = _changes(measured, places, own, twin)
    if len(groups) < 2:
        return wording.untestable(
            f"{wording.counted(len(groups), 'group')} of scenarios "
            f"{'with a twin ' if len(twin) else ''}hold both the first and the last place, and at least two are needed"
        )
    if config.twin and not len(twin):
        return wording.untestable(f"there is no transcript of the condition `{config.twin}` to compare with")
    named = [(selection.column(measured, concept), sign) for concept, sign in _named(config)]
    courses = _courses(measured, changes, named, generator)
    claimed = [each for each in courses if each.sign]
    verdict = "described" if not claimed else "shown" if all(each.shown for each in claimed) else "not shown"
    others = len(measured.concepts) - len(named)
    few = 1 / (others + 1) > LEVEL
    if verdict == "not shown" and (few or any(not each.shown and not each.smallest <= MATTERS for each in claimed)):
        verdict = "untestable"
    metrics = {}
    for each in courses:
        metrics |= intervals.flat(f"change_{each.concept}", each.change)
        metrics |= intervals.defined({f"p_{each.concept}": each.p, f"p_adjusted_{each.concept}": each.adjusted})
    rows, chart = _along(measured, config, places, own, twin, [column for column, _ in named], generator)
    table = Table("Along the transcript", ("concept", "condition", *config.readings), rows, "Intervals over groups.")
    return Finding(
        verdict,
        _sentences(courses, bool(len(twin)), len(groups), others if few else None),
        metrics,
        (table, _tests(courses)),
        (chart,),
    )


def _named(config: ArcConfig) -> list[tuple[str, int]]:
    """Concepts and claimed signs; 0 where the config gives none."""
    return [
        (concept, sign if name.strip().startswith(("+", "-")) else 0)
        for name in config.concepts
        for concept, sign in selection.signed((name,))
    ]


def _changes(
    measured: Measured, places: Float[np.ndarray, "places scenarios concepts"], own: np.ndarray, twin: np.ndarray
) -> tuple[Float[np.ndarray, "groups concepts"], np.ndarray]:
    """Per group the change from the first place to the last, less the twin's, in standard deviations at the first."""
    both = np.concatenate([own, twin])
    with np.errstate(invalid="ignore"):
        start = places[0, both]
        spread = np.nanstd(start, axis=0) if len(both) and np.isfinite(start).any() else np.ones(places.shape[2])
    change = (places[-1] - places[0]) / np.where(spread > 0, spread, 1)
    names = np.unique(selection.groups(measured, own)) if len(own) else np.empty(0, dtype=str)
    found = intervals.group_means(change[own], selection.groups(measured, own)) if len(own) else change[own]
    if len(twin):
        twins = selection.groups(measured, twin)
        shared = np.intersect1d(names, twins)
        of_twins = intervals.group_means(change[twin], twins)[np.isin(np.unique(twins), shared)]
        found, names = found[np.isin(names, shared)] - of_twins, shared
    whole = np.isfinite(found).all(axis=1)
    return found[whole], names[whole]


def _courses(
    measured: Measured, changes: np.ndarray, named: Sequence[tuple[int, int]], generator: np.random.Generator
) -> list[Course]:
    units = np.arange(len(changes))
    others = np.setdiff1d(np.arange(changes.shape[1]), [column for column, _ in named])
    null = changes[:, others].mean(axis=0)
    found = []
    for column, sign in named:
        estimate = intervals.over_groups(changes[:, column], units, generator)
        if len(others) >= 2:
            against = controls.compare((sign or 1) * estimate.value, {"": (sign or 1) * null}, symmetric=False).p_scaled
            against = against if sign else 2 * min(against, 1 - against)
            own, rest = (sign * estimate.value, sign * null) if sign else (abs(estimate.value), np.abs(null))
            p = float(permutation_p(own, rest)[0])
        else:
            against = p = math.nan
        smallest = intervals.smallest_effect(intervals.standard_error(changes[:, column], units), estimate.n)
        found.append(Course(measured.concepts[column], sign, estimate, p, against, math.nan, smallest))
    adjusted = holm(np.array([each.against for each in found]))
    return [Course(*(vars(each) | {"adjusted": float(p)}).values()) for each, p in zip(found, adjusted, strict=True)]


def _sentences(courses: Sequence[Course], twins: bool, groups: int, few: int | None) -> list[str]:
    less = " beyond that of transcripts that go well" if twins else ""
    told = []
    for each in courses:
        claim = {1: " (claimed to rise)", -1: " (claimed to fall)", 0: ""}[each.sign]
        shown = (": shown" if each.shown else ": not shown") if each.sign else ""
        told.append(
            f"{each.concept}{claim} changes by {wording.estimate(each.change, 'sd')}, other concepts in its place "
            f"{wording.p(each.p)}, corrected {wording.p(each.adjusted)}{shown}"
        )
    power = wording.listed([f"{each.concept} {wording.number(each.smallest)}" for each in courses])
    sentences = [
        f"From the first place to the last{less}, " + "; ".join(told) + ".",
        f"Smallest change found with 80% power over {wording.counted(groups, 'group')}, in standard deviations over "
        f"scenarios at the first place: {power}.",
    ]
    if few is not None:
        sentences.append(f"Against {few} other concepts no change can stand out: at least 19 are needed.")
    if not twins:
        sentences.append("Without a transcript that goes well, the change may be that of any transcript this long.")
    return sentences


def _along(
    measured: Measured,
    config: ArcConfig,
    places: np.ndarray,
    own: np.ndarray,
    twin: np.ndarray,
    columns: Sequence[int],
    generator: np.random.Generator,
) -> tuple[list[tuple], Chart]:
    rows, series = [], []
    for column in columns:
        for name, chosen in (("", own), (config.twin, twin)):
            if not len(chosen):
                continue
            groups = selection.groups(measured, chosen)
            found = [intervals.over_groups(place[chosen, column], groups, generator) for place in places]
            concept = measured.concepts[column]
            rows.append((concept, name or "main", *map(wording.cell, found)))
            ends = ([getattr(each, end) for each in found] for end in ("value", "low", "high"))
            series.append(Series(f"{concept}, {name}" if name else concept, list(config.readings), *ends))
    return rows, Chart("Readings along the transcript", "line", "place", "reading", series)


def _tests(courses: Sequence[Course]) -> Table:
    rows = [(each.concept, wording.cell(each.change), each.p, each.adjusted, each.smallest) for each in courses]
    columns = ("concept", "change, sd", "p, other concepts", "corrected p", "found with 80% power")
    return Table("First place to last", columns, rows, "Holm over the named concepts.")

"""Whether a framing changes how often the right answer wins, and whether the readings carry the change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped

from affectlens.experiments.conclude import intervals, selection, wording
from affectlens.experiments.conclude.config import AccuracyConfig
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.stats import Estimate, benjamini_hochberg, holm, permutation_p

NEUTRAL = "neutral"
FLIPS = 5000
MATTERS = 0.15
"""Difference of accuracies whose absence is worth stating."""
CEILING = 0.95


@dataclass(frozen=True)
class Framed:
    """One framing against the neutral wording of the same tasks.

    Attributes:
        name: the framing.
        rate: share of tasks answered rightly.
        change: of that share.
        odds: change of the log-odds of the right answer, in nats; None where answers were sampled.
        p: by sign flips over groups, two-sided; and after Holm over framings.
        smallest: change of the share that would have been found with 80% power.
        indirect: per concept the change of the outcome that goes through the reading.
        p_indirect: of it, two-sided, from the bootstrap.
    """

    name: str
    rate: Estimate
    change: Estimate
    odds: Estimate | None
    p: float
    smallest: float
    indirect: Sequence[Estimate]
    p_indirect: Float[np.ndarray, " concepts"]
    adjusted: float = float("nan")

    @property
    def shown(self) -> bool:
        """Off zero, and significant after correction over framings."""
        off = not self.change.low <= 0 <= self.change.high
        return off and self.adjusted <= LEVEL and self.change.n >= intervals.GROUPS


@dataclass(frozen=True)
class _Tasks:
    """Rows of all framings: which, whether right, the outcome that readings should explain, and the readings."""

    framing: Shaped[np.ndarray, " rows"]
    right: Float[np.ndarray, " rows"]
    outcome: Float[np.ndarray, " rows"]
    readings: Float[np.ndarray, "rows concepts"]
    groups: Shaped[np.ndarray, " rows"]


def analyse(measured: Measured, config: AccuracyConfig, generator: np.random.Generator) -> Finding:
    """Paired differences to the neutral wording by group; indirect effects by bootstrap over groups."""
    right, outcome = _outcome(measured)
    if right is None or outcome is None:
        return wording.untestable("neither a choice nor graded answers were measured")
    every = selection.reading(measured, config.reading)
    rows = selection.rows(measured)
    framing = np.array([str(value) for value in selection.factor(measured, config.framing, rows)])
    known = np.isfinite(right[rows]) & np.isfinite(outcome[rows]) & (framing != "None")
    rows, framing = rows[known], framing[known]
    tasks = _Tasks(framing, right[rows], outcome[rows], every[rows], selection.groups(measured, rows))
    others = [name for name in dict.fromkeys(framing.tolist()) if name != NEUTRAL]
    if NEUTRAL not in framing or not others:
        return wording.untestable(
            f"the factor `{config.framing}` needs the value `{NEUTRAL}` and at least one other, with outcomes"
        )
    logged = measured.choice is not None
    neutral = framing == NEUTRAL
    base = intervals.over_groups(tasks.right[neutral], tasks.groups[neutral], generator)
    found = [_framed(tasks, name, logged, generator) for name in others]
    found = [
        replace(each, adjusted=float(p))
        for each, p in zip(found, holm(np.array([each.p for each in found])), strict=True)
    ]
    return _finding(measured, found, base, "nats" if logged else "shares")


def _outcome(measured: Measured) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Per scenario whether the right answer wins, and its log-odds; or mean scores of sampled answers for both."""
    if measured.choice is not None:
        odds = np.asarray(measured.choice[0], dtype=float)
        return np.where(np.isfinite(odds), (odds > 0) + 0.5 * (odds == 0), np.nan), odds
    scored = [(each.scenario, each.grade.get("score")) for each in measured.rollouts if each.cell == 0]
    scored = [(scenario, float(score)) for scenario, score in scored if score is not None]
    if not scored:
        return None, None
    sums, counts = np.zeros(len(measured.scenarios)), np.zeros(len(measured.scenarios))
    for scenario, score in scored:
        sums[scenario] += score
        counts[scenario] += 1
    shares = np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)
    return shares, shares


def _framed(tasks: _Tasks, name: str, logged: bool, generator: np.random.Generator) -> Framed:
    mine, neutral = tasks.framing == name, tasks.framing == NEUTRAL
    shared = np.intersect1d(tasks.groups[mine], tasks.groups[neutral])
    units = np.arange(len(shared))

    def paired(values: np.ndarray) -> np.ndarray:
        sides = [side & np.isin(tasks.groups, shared) for side in (mine, neutral)]
        first, second = (intervals.group_means(values[side], tasks.groups[side]) for side in sides)
        return first - second

    rate = intervals.over_groups(tasks.right[mine], tasks.groups[mine], generator)
    change = paired(tasks.right) if len(shared) else np.empty(0)
    p = float("nan")
    if len(change):
        flips = generator.choice([-1.0, 1.0], size=(FLIPS, len(change)))
        p = float(permutation_p(abs(float(change.mean())), np.abs(flips @ change) / len(change))[0])
    both = (mine | neutral) & np.isin(tasks.groups, shared)
    indirect, p_indirect = mediation(
        mine[both].astype(float), tasks.readings[both], tasks.outcome[both], tasks.groups[both], generator
    )
    return Framed(
        name,
        rate,
        intervals.over_groups(change, units, generator),
        intervals.over_groups(paired(tasks.outcome), units, generator) if logged and len(shared) else None,
        p,
        intervals.smallest_effect(intervals.change_error(change), len(change)),
        indirect,
        p_indirect,
    )


def mediation(
    cause: Float[np.ndarray, " rows"],
    readings: Float[np.ndarray, "rows concepts"],
    outcome: Float[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    generator: np.random.Generator,
) -> tuple[list[Estimate], Float[np.ndarray, " concepts"]]:
    """Change of the outcome that goes through each reading: the product of both paths, within groups.

    The first path is the slope of the reading on the cause, the second that of the outcome on the reading with the
    cause held fixed (Baron & Kenny 1986), all after group means are taken off, with bootstrap intervals and p over
    groups (Shrout & Bolger 2002). Whatever moves reading and outcome together within a task counts as carried: that
    is the limit of any mediation that is observed and not set.

    Returns:
        The indirect effects, NaN where a path is not defined; and their two-sided p, at least 2 / (draws + 1).
    """
    width = readings.shape[1]
    known = np.isfinite(readings).all(axis=1) & np.isfinite(outcome)
    names, codes = np.unique(groups[known], return_inverse=True)
    if len(names) < 2:
        return [intervals.undefined(len(names))] * width, np.full(width, np.nan)
    table = np.column_stack([cause[known], outcome[known], readings[known]])
    table = table - intervals.group_means(table, codes)[codes]
    x, y, m = table[:, [0]], table[:, [1]], table[:, 2:]
    products = np.concatenate([x * x, x * y, x * m, m * m, m * y], axis=1)
    sums = np.zeros((len(names), products.shape[1]))
    np.add.at(sums, codes, products)

    def effects(weights: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, "draws concepts"]:
        total = weights @ sums
        xx, xy = total[:, [0]], total[:, [1]]
        xm, mm, my = np.split(total[:, 2:], 3, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Rounding leaves a spread of order 1e-16 to a reading that the cause determines: no second path then.
            free = mm - xm**2 / xx
            return np.where(free > 1e-10 * mm, xm / xx * (my - xm * xy / xx) / free, np.nan)

    point, drawn = effects(np.ones((1, len(names))))[0], effects(intervals.draws(len(names), generator))
    below = (drawn <= 0).sum(axis=0), (drawn >= 0).sum(axis=0)
    p = np.minimum(1.0, 2 * (np.minimum(*below) + 1) / (len(drawn) + 1))
    found = [
        intervals.from_draws(float(value), column, len(names)) for value, column in zip(point, drawn.T, strict=True)
    ]
    return found, np.where(np.isfinite(point), p, np.nan)


def _finding(measured: Measured, found: Sequence[Framed], base: Estimate, unit: str) -> Finding:
    shown = [each for each in found if each.shown]
    p = benjamini_hochberg(np.stack([each.p_indirect for each in found]))
    weakest = max((each.smallest for each in found), key=lambda value: (np.isnan(value), value))
    verdict = "shown" if shown else "untestable" if not weakest <= MATTERS else "not shown"
    told = "; ".join(
        f"{each.name} by {wording.rate(each.change)} (corrected {wording.p(each.adjusted)})"
        + (f", the log-odds by {wording.estimate(each.odds, unit)}" if each.odds else "")
        for each in found
    )
    carried = [
        f"{measured.concepts[column]} under {found[row].name} {wording.estimate(found[row].indirect[column], unit)}"
        for row, column in np.argwhere(p <= LEVEL)
    ]
    more = "" if len(carried) <= 5 else f" and {len(carried) - 5} more"
    limit = " Nearly all are right already, which leaves no room to rise." if base.value > CEILING else ""
    sentences = [
        f"{len(shown)} of {wording.counted(len(found), 'framing')} shown to change how often the right answer wins, "
        f"against the neutral wording of the same tasks ({wording.rate(base)} right): {told}.{limit}",
        (
            f"Readings that carry part of the change, Benjamini-Hochberg over framings and concepts: "
            f"{'; '.join(carried[:5])}{more}."
            if carried
            else "No reading is shown to carry a change of the outcome (Benjamini-Hochberg over framings and concepts)."
        ),
        "What is carried is observed, not set: whatever moves the reading and the outcome together counts as carried, "
        "so only steering the reading could tell.",
        f"With {wording.counted(found[0].change.n, 'task')} a change of {wording.percent(weakest)} would be found with "
        "80% power.",
    ]
    metrics = intervals.flat("right_neutral", base) | {"framings_shown": float(len(shown))}
    metrics |= {"mediators": float((p <= LEVEL).sum())}
    for each in found:
        metrics |= intervals.flat(f"change_{each.name}", each.change)
        metrics |= intervals.defined(
            {f"p_adjusted_{each.name}": each.adjusted, f"smallest_effect_{each.name}": each.smallest}
        )
    return Finding(verdict, sentences, metrics, (_table(found), _paths(measured, found, p)), (_chart(found),))


def _table(found: Sequence[Framed]) -> Table:
    rows = [
        (
            each.name,
            wording.cell(each.rate),
            wording.cell(each.change),
            wording.cell(each.odds or intervals.undefined()),
            each.adjusted,
        )
        for each in found
    ]
    columns = ("framing", "right", "change of right", "change of log-odds", "corrected p")
    return Table("Framings against the neutral wording", columns, rows, "Paired by task; sign flips over groups, Holm.")


def _paths(measured: Measured, found: Sequence[Framed], p: Float[np.ndarray, "framings concepts"]) -> Table:
    rows = [
        (each.name, concept, wording.cell(each.indirect[column]), float(p[row, column]))
        for row, each in enumerate(found)
        for column, concept in enumerate(measured.concepts)
    ]
    rows.sort(key=lambda row: (np.isnan(row[3]), row[3]))
    columns = ("framing", "reading of", "indirect effect", "adjusted p")
    return Table("What the readings carry", columns, rows[:20], "Observed, not set. The twenty with the smallest p.")


def _chart(found: Sequence[Framed]) -> Chart:
    ends = ([getattr(each.change, end) for each in found] for end in ("value", "low", "high"))
    series = Series("change of right answers", [each.name for each in found], *ends)
    return Chart("Accuracy by framing", "bar", "framing", "difference to the neutral wording", [series])

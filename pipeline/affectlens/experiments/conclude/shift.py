"""How a second model differs from the first, concept by concept: size, consistency, valence and arousal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from affectlens import stats
from affectlens.experiments.conclude import intervals, selection, wording
from affectlens.experiments.conclude.config import ShiftConfig
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.stats import Estimate, benjamini_hochberg, holm, permutation_p

FLIPS = 2000
SPLITS = 200
RATINGS = ("valence", "arousal")
MATTERS = 0.4
"""Correlation with a rating whose absence is worth stating; the reference reports 0.37 with arousal."""


def analyse(measured: Measured, config: ShiftConfig, generator: np.random.Generator) -> Finding:
    """Second model less first, paired by prompt; sign flips over groups, Benjamini-Hochberg over concepts."""
    if config.reading not in measured.against:
        return wording.untestable("there is no second model; name one to compare with")
    rows = selection.main_rows(measured)
    change = np.asarray(measured.against[config.reading], dtype=float) - selection.reading(measured, config.reading)
    rows = rows[np.isfinite(change[rows]).any(axis=1)]
    means = intervals.group_means(change[rows], selection.groups(measured, rows)) if len(rows) else change[rows]
    known = np.isfinite(means).all(axis=0) if len(means) else np.zeros(change.shape[1], dtype=bool)
    if len(means) < 2 or known.sum() < 2:
        return wording.untestable(
            f"both models were read on {wording.counted(len(means), 'group')} of prompts and {known.sum()} concepts, "
            "and at least two of each are needed"
        )
    names, means = [measured.concepts[i] for i in np.flatnonzero(known)], means[:, known]
    units = np.arange(len(means))
    found = [intervals.over_groups(column, units, generator) for column in means.T]
    p, floor = _flipped(means, generator)
    adjusted = benjamini_hochberg(p)
    consistent, agree = _split_halves(means, generator), _agreement(means, generator)
    ratings = {name: np.asarray(measured.ratings[name], dtype=float)[known] for name in RATINGS}
    related = {name: _related(means, values, generator) for name, values in ratings.items()}
    smallest = np.array(
        [intervals.smallest_effect(intervals.standard_error(each, units), len(means)) for each in means.T]
    )
    clear = int(((adjusted <= LEVEL) & np.array([not each.low <= 0 <= each.high for each in found])).sum())
    verdict = _verdict(config, related, consistent, clear)
    order = np.argsort([each.value for each in found])
    most = f"most up {_ends(names, found, order[::-1])}; most down {_ends(names, found, order)}"
    sentences = [
        f"{clear} of {len(names)} concepts differ in the second model (second less first, Benjamini-Hochberg over "
        f"concepts, sign flips over {wording.counted(len(means), 'group')}, floor of p {floor:.2g}); {most}.",
        *(_related_sentence(name, *related[name]) for name in RATINGS),
        f"Halves of the prompts give the same profile of shifts with r {wording.estimate(consistent)}; in the mean "
        f"over concepts {wording.rate(agree)} of the groups share the sign of the whole.",
        f"Median over concepts of the smallest shift found with 80% power: {np.median(smallest):.2g}.",
        *_claims(config, verdict),
        "A difference between two models has no control but its own consistency.",
    ]
    metrics = {"concepts_shifted": float(clear)} | intervals.flat("split_half", consistent)
    metrics |= intervals.flat("sign_agreement", agree)
    for name, (estimate, chance, _) in related.items():
        metrics |= intervals.flat(f"r_{name}", estimate) | intervals.defined({f"p_{name}": chance})
    for name, each in zip(names, found, strict=True):
        metrics |= intervals.flat(f"shift_{name}", each)
    same = _same_sign(means)
    columns_of = (list(map(wording.cell, found)), adjusted, same, smallest, *(ratings[name] for name in RATINGS))
    lines = [(names[i], *(each[i] for each in columns_of)) for i in order[::-1]]
    columns = ("concept", "shift", "adjusted p", "groups of the same sign", "found with 80% power", *RATINGS)
    chart = Chart("Shift by valence", "scatter", "valence", "shift of the reading", [_points(names, found, ratings)])
    return Finding(verdict, sentences, metrics, (Table("Shift of each concept", columns, lines),), (chart,))


def _verdict(
    config: ShiftConfig, related: Mapping[str, tuple[Estimate, float, int]], consistent: Estimate, clear: int
) -> Literal["shown", "not shown", "untestable", "described"]:
    """Of the claimed relations to ratings, Holm over them, given that halves of the prompts agree."""
    claimed = [(name, 1) for name in config.rises_with] + [(name, -1) for name in config.falls_with]
    if not claimed:
        return "described" if clear or any(p <= LEVEL for _, p, _ in related.values()) else "not shown"
    adjusted = holm(np.array([related[name][1] for name, _ in claimed]))
    each = []
    for (name, sign), p in zip(claimed, adjusted, strict=True):
        found, _, rated = related[name]
        off = found.low > 0 if sign > 0 else found.high < 0
        if off and p <= LEVEL and consistent.low > 0:
            each.append("shown")
        else:
            each.append("not shown" if intervals.smallest_correlation(rated) <= MATTERS else "untestable")
    return "not shown" if "not shown" in each else "untestable" if "untestable" in each else "shown"


def _claims(config: ShiftConfig, verdict: str) -> list[str]:
    claimed = [f"rises with {name}" for name in config.rises_with] + [
        f"falls with {name}" for name in config.falls_with
    ]
    if not claimed:
        return ["No direction is claimed here, so the shift is described, not tested."]
    return [f"That it {wording.listed(claimed)} and that halves of the prompts agree: {verdict}."]


def _flipped(means: Float[np.ndarray, "groups concepts"], generator: np.random.Generator) -> tuple[np.ndarray, float]:
    signs = generator.choice([-1.0, 1.0], size=(FLIPS, len(means)))
    return permutation_p(np.abs(means.mean(axis=0)), np.abs(signs @ means) / len(means))


def _split_halves(means: Float[np.ndarray, "groups concepts"], generator: np.random.Generator) -> Estimate:
    """Correlation over concepts of the shifts in two halves of the groups, raised to the whole (Spearman-Brown).

    Mean over random splits. The interval is over concepts (Fisher); NaN with fewer than four groups.
    """
    count = len(means)
    if count < 4:
        return intervals.undefined(means.shape[1])
    found = []
    for _ in range(SPLITS):
        order = generator.permutation(count)
        first, second = (means[half].mean(axis=0) for half in (order[: count // 2], order[count // 2 :]))
        if first.std() > 0 and second.std() > 0:
            found.append(float(np.corrcoef(first, second)[0, 1]))
    if not found:
        return intervals.undefined(means.shape[1])
    half = float(np.mean(found))
    pairs = means.shape[1]
    if pairs < 4 or abs(half) >= 1:
        return Estimate(_raised(half), math.nan, math.nan, pairs)
    width = 1.96 / math.sqrt(pairs - 3)
    low, high = (_raised(math.tanh(math.atanh(half) + side)) for side in (-width, width))
    return Estimate(_raised(half), low, high, pairs)


def _raised(half: float) -> float:
    return 2 * half / (1 + half) if half > 0 else half


def _same_sign(means: Float[np.ndarray, "groups concepts"]) -> Float[np.ndarray, " concepts"]:
    """Share of the other groups' signs that a group agrees with, leaving it out of the mean it is compared with."""
    rest = (means.sum(axis=0) - means) / (len(means) - 1)
    return (np.sign(rest) == np.sign(means)).mean(axis=0)


def _agreement(means: Float[np.ndarray, "groups concepts"], generator: np.random.Generator) -> Estimate:
    rest = (means.sum(axis=0) - means) / (len(means) - 1)
    shares = (np.sign(rest) == np.sign(means)).mean(axis=1)
    return intervals.over_groups(shares, np.arange(len(shares)), generator)


def _related(
    means: Float[np.ndarray, "groups concepts"], ratings: Float[np.ndarray, " concepts"], generator: np.random.Generator
) -> tuple[Estimate, float, int]:
    """Correlation of the mean shift with a rating over the rated concepts, its permutation p, and their number."""
    rated = np.isfinite(ratings)
    if rated.sum() < 4:
        return intervals.undefined(int(rated.sum())), math.nan, int(rated.sum())
    found = stats.correlation(means.mean(axis=0)[rated], ratings[rated], permutations=FLIPS, rng=generator)
    return found.estimate, found.p, int(rated.sum())


def _related_sentence(name: str, found: Estimate, p: float, rated: int) -> str:
    if math.isnan(found.value):
        return f"Whether the shift goes with {name} cannot be told: {rated} concepts are rated."
    smallest = wording.number(intervals.smallest_correlation(rated))
    return (
        f"The shift correlates with {name} by r {wording.estimate(found)} over {rated} rated concepts ({wording.p(p)}; "
        f"r {smallest} would be found with 80% power)."
    )


def _ends(names: list[str], found: list[Estimate], order: np.ndarray) -> str:
    return wording.listed([f"{names[i]} {found[i].value:+.3f}" for i in order[:3]])


def _points(names: list[str], found: list[Estimate], ratings: dict[str, np.ndarray]) -> Series:
    rated = np.flatnonzero(np.isfinite(ratings["valence"]))
    ends = ([getattr(found[i], end) for i in rated] for end in ("value", "low", "high"))
    return Series("concepts", ratings["valence"][rated].tolist(), *ends, labels=[names[i] for i in rated])

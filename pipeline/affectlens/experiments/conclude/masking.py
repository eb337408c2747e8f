"""Whether emotions under a mask are represented apart from expressed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from affectlens import stats
from affectlens.experiments.conclude import intervals, selection, wording
from affectlens.experiments.conclude.config import MaskingConfig
from affectlens.experiments.conclude.diagonal import shuffle
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.probing.control_vectors import unit_rows
from affectlens.probing.detection import own_areas
from affectlens.stats import Estimate, permutation_p

FOLDS = 8
PERMUTATIONS = 100
HALVES = 20
APART = 0.5
"""Share of the squared norm that must lie outside the story space to be called apart."""
MATTERS = 0.2
"""AUROC above one half whose absence is worth stating."""


@dataclass(frozen=True)
class Dialogues:
    """Dialogues in which one emotion is masked by another.

    Attributes:
        residual: at the reading.
        masked: which masked emotion, an index into ``names``.
        shown: which displayed one, an index of its own.
        groups: of the dialogues.
        names: masked emotions.
        story: unit directions of the masked emotions from stories.
        space: orthonormal rows that span the directions of all concepts.
        expressed: reading of the masked emotions by the story directions.
        words: the same from the words alone.
        openly: unit directions of the same emotions where they are displayed openly, from dialogues of the same kind;
            None where there are no such dialogues of each of them.
    """

    residual: Float[np.ndarray, "rows d"]
    masked: Int[np.ndarray, " rows"]
    shown: Int[np.ndarray, " rows"]
    groups: Shaped[np.ndarray, " rows"]
    names: tuple[str, ...]
    story: Float[np.ndarray, "masked d"]
    space: Float[np.ndarray, "rank d"]
    expressed: Float[np.ndarray, "rows masked"]
    words: Float[np.ndarray, "rows masked"]
    openly: Float[np.ndarray, "masked d"] | None

    @property
    def labels(self) -> np.ndarray:
        """Which dialogue masks which emotion."""
        return self.masked[:, None] == np.arange(len(self.names))


@dataclass(frozen=True)
class Told:
    """What the dialogues say.

    Attributes:
        masked: AUROC in groups left out, by directions from the other groups; per concept too, as the next two.
        story: AUROC of the story directions.
        words: AUROC of the words alone.
        p: of ``masked`` under shuffled labels, and the least it can be.
        outside: share of the squared norm outside the story space, free of noise.
        raw: the same as it stands, and that of directions from shuffled labels.
        cosine: with the story directions of the same emotions; their p; and what 95% of shuffled labels stay within.
        openly: cosine with the same emotions displayed openly; NaN where nothing is.
    """

    masked: stats.AurocIntervals
    story: stats.AurocIntervals
    words: stats.AurocIntervals
    p: tuple[float, float]
    outside: Estimate
    raw: tuple[float, float]
    cosine: Float[np.ndarray, " masked"]
    p_cosine: Float[np.ndarray, " masked"]
    cosine_null: float
    openly: Float[np.ndarray, " masked"]

    @property
    def smallest(self) -> float:
        """AUROC above one half that would be found with 80% power."""
        return intervals.smallest_of(self.masked.mean)

    @property
    def detected(self) -> bool:
        """Whether masked emotions are told apart at all."""
        found = self.masked.mean
        return found.low > 0.5 and self.p[0] <= LEVEL and found.n >= intervals.GROUPS

    @property
    def verdict(self) -> Literal["shown", "not shown", "untestable"]:
        """Told apart, by something that lies mostly outside the story space."""
        if not self.detected:
            return "not shown" if self.smallest <= MATTERS else "untestable"
        if math.isnan(self.outside.low):
            return "untestable"
        return "shown" if self.outside.low > APART else "not shown"


def analyse(measured: Measured, config: MaskingConfig, generator: np.random.Generator) -> Finding:
    """Directions of masked emotions: found again in groups left out, and how far outside the story space they lie."""
    if config.reading not in measured.residuals:
        return wording.untestable(f"the reading `{config.reading}` kept no residuals; set `keep_residual` for it")
    talks = _dialogues(measured, config)
    if talks is None:
        return wording.untestable(
            f"dialogues in which `{config.masked}` differs from `{config.shown}` hold fewer than two masked "
            "emotions or four groups"
        )
    told = _told(talks, generator)
    metrics = intervals.flat("auroc_masked", told.masked.mean) | intervals.flat("auroc_story", told.story.mean)
    metrics |= intervals.flat("auroc_words", told.words.mean) | intervals.flat("outside", told.outside)
    metrics |= intervals.defined({"p": told.p[0], "outside_raw": told.raw[0], "outside_raw_null": told.raw[1]})
    metrics |= intervals.defined({"cosine": float(told.cosine.mean()), "cosine_open": float(told.openly.mean())})
    metrics |= intervals.defined({"smallest_effect": told.smallest})
    charts = (_chart(talks, told.masked.concepts, told.story.concepts),)
    return Finding(told.verdict, _sentences(told), metrics, (_table(talks, told),), charts)


def _told(talks: Dialogues, generator: np.random.Generator) -> Told:
    scores = held_out(talks, talks.masked)
    found, by_story, by_words = (
        stats.auroc_interval(each, talks.labels, talks.groups, rng=generator, n_boot=intervals.DRAWS)
        for each in (scores, talks.expressed, talks.words)
    )
    null = _shuffled(talks, generator)
    p, floor = permutation_p(float(np.nanmean(own_areas(scores, talks.labels))), null["auroc"])
    vectors = directions(talks.residual, talks.masked, talks.shown, len(talks.names))
    cosine = (unit_rows(vectors) * talks.story).sum(axis=1)
    openly = np.full(len(cosine), np.nan)
    if talks.openly is not None:
        openly = (unit_rows(vectors) * talks.openly).sum(axis=1)
    # Where nothing is told apart there is no direction whose share could be given, only noise over noise.
    there = found.mean.low > 0.5 and p <= LEVEL
    return Told(
        found,
        by_story,
        by_words,
        (float(p), floor),
        _outside_interval(talks, generator) if there else intervals.undefined(),
        (raw_outside(vectors, talks.space), float(np.mean(null["outside"]))),
        cosine,
        np.asarray(permutation_p(np.abs(cosine), null["cosine"])[0]),
        float(np.quantile(null["cosine"], 0.95)),
        openly,
    )


def _sentences(told: Told) -> list[str]:
    share = f"{wording.rate(told.outside)} of the squared norm, free of noise"
    if not told.detected:
        why = "which is not shown to be beyond chance, so that no share outside the story space can be given"
    elif told.outside.low > APART:
        why = f"and most of what tells them apart lies outside the story space: {share}"
    else:
        why = f"but it is not shown that most of what tells them apart lies outside the story space: {share}"
    raw, null = (wording.percent(math.sqrt(max(each, 0.0))) for each in told.raw)
    found = told.masked.mean
    return [
        f"In groups left out, masked emotions are told apart with AUROC {wording.estimate(found)} (shuffled labels "
        f"{wording.p(told.p[0])}, floor {told.p[1]:.2g}), {why}.",
        f"The story directions of the same emotions reach {wording.estimate(told.story.mean)} on these dialogues, "
        f"their words alone {wording.estimate(told.words.mean)}.",
        f"As they stand, {raw} of the norm lies outside, but so would {null} of that of directions from shuffled "
        "labels: noise lies outside too, so only the share that two halves of the data agree on counts.",
        f"Cosines with the story directions of the same emotions: mean {wording.number(float(told.cosine.mean()))}, "
        f"under shuffled labels within {wording.number(told.cosine_null)} in 95% of the cases.",
        *_open_sentence(told.openly),
        f"With {wording.counted(found.n, 'group')} an AUROC of {wording.number(0.5 + told.smallest)} would be found "
        "with 80% power.",
    ]


def _open_sentence(openly: Float[np.ndarray, " masked"]) -> list[str]:
    if np.isnan(openly).any():
        return []
    return [
        "Stories are another genre, which alone may lower a cosine; with the directions of the same emotions displayed "
        f"openly in dialogues of the same kind the mean cosine is {wording.number(float(openly.mean()))}."
    ]


def _dialogues(measured: Measured, config: MaskingConfig) -> Dialogues | None:
    rows, masked = selection.intended(measured, config.masked, selection.main_rows(measured))
    residual = np.asarray(measured.residuals[config.reading], dtype=float)
    shown = np.array([str(value) for value in selection.factor(measured, config.shown, rows)])
    hidden = np.array([measured.concepts[index] for index in masked])
    whole = np.isfinite(residual[rows]).all(axis=1) if len(rows) else np.zeros(0, dtype=bool)
    kept, same = (hidden != shown) & whole, (hidden == shown) & whole
    opened, of_opened = rows[same], masked[same]
    rows, masked, shown = rows[kept], masked[kept], shown[kept]
    groups = selection.groups(measured, rows)
    columns = np.unique(masked)
    if len(columns) < 2 or len(np.unique(groups)) < 4:
        return None
    _, values, space = np.linalg.svd(np.asarray(measured.directions, dtype=float), full_matrices=False)
    return Dialogues(
        residual[rows],
        np.searchsorted(columns, masked),
        np.unique(shown, return_inverse=True)[1],
        groups,
        tuple(measured.concepts[index] for index in columns),
        np.asarray(measured.directions, dtype=float)[columns],
        space[values > 1e-6 * values.max()],
        np.nan_to_num(selection.reading(measured, config.reading)[rows][:, columns]),
        np.nan_to_num(np.asarray(measured.words, dtype=float)[rows][:, columns]),
        _openly(residual[opened], of_opened, columns),
    )


def _openly(
    residual: Float[np.ndarray, "rows d"], emotion: Int[np.ndarray, " rows"], columns: Int[np.ndarray, " masked"]
) -> Float[np.ndarray, "masked d"] | None:
    """Unit differences of means over the dialogues in which the same emotion is felt and displayed."""
    if not np.isin(columns, emotion).all():
        return None
    means = np.stack([residual[emotion == column].mean(axis=0) for column in columns])
    return unit_rows(means - means.mean(axis=0))


def directions(
    residual: Float[np.ndarray, "rows d"],
    masked: Int[np.ndarray, " rows"],
    shown: Int[np.ndarray, " rows"],
    count: int,
) -> Float[np.ndarray, "masked d"]:
    """Effect of each masked emotion beside that of the displayed one, by least squares on both; their mean is 0."""
    design = np.concatenate([masked[:, None] == np.arange(count), shown[:, None] == np.unique(shown)], axis=1)
    effects = np.linalg.pinv(design.astype(float))[:count] @ (residual - residual.mean(axis=0))
    return effects - effects.mean(axis=0)


def held_out(talks: Dialogues, masked: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows masked"]:
    """Readout of every dialogue by directions from the other groups, at most eight folds."""
    names, codes = np.unique(talks.groups, return_inverse=True)
    fold = codes % min(FOLDS, len(names))
    scores = np.zeros((len(masked), len(talks.names)))
    for each in np.unique(fold):
        test = fold == each
        vectors = directions(talks.residual[~test], masked[~test], talks.shown[~test], len(talks.names))
        scores[test] = (talks.residual[test] - talks.residual[~test].mean(axis=0)) @ unit_rows(vectors).T
    return scores


def raw_outside(vectors: Float[np.ndarray, "n d"], space: Float[np.ndarray, "rank d"]) -> float:
    """Share of the squared norm that lies outside the space."""
    return float(1 - ((vectors @ space.T) ** 2).sum() / max(float((vectors**2).sum()), 1e-30))


def _shuffled(talks: Dialogues, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Detection, cosines and the share outside when masked emotions are shuffled."""
    areas, shares, cosines = [], [], []
    for _ in range(PERMUTATIONS):
        masked = exchanged(talks.masked, talks.groups, generator)
        vectors = directions(talks.residual, masked, talks.shown, len(talks.names))
        labels = masked[:, None] == np.arange(len(talks.names))
        areas.append(float(np.nanmean(own_areas(held_out(talks, masked), labels))))
        shares.append(raw_outside(vectors, talks.space))
        cosines.append(np.abs((unit_rows(vectors) * talks.story).sum(axis=1)))
    return {"auroc": np.array(areas), "outside": np.array(shares), "cosine": np.array(cosines)}


def exchanged(
    masked: Int[np.ndarray, " rows"], groups: Shaped[np.ndarray, " rows"], generator: np.random.Generator
) -> Int[np.ndarray, " rows"]:
    """Masked emotions exchanged within each group, all dialogues of one emotion together.

    Dialogues of a group that mask the same emotion tell of the same cause, so they are one draw and not several.
    Where every group masks one emotion, groups exchange theirs.
    """
    if all(len(np.unique(masked[groups == group])) == 1 for group in np.unique(groups)):
        return shuffle(masked, groups, generator)
    found = np.empty_like(masked)
    for group in np.unique(groups):
        rows = groups == group
        names, codes = np.unique(masked[rows], return_inverse=True)
        found[rows] = generator.permutation(names)[codes]
    return found


def outside_share(talks: Dialogues, kept: np.ndarray, generator: np.random.Generator) -> float:
    """Share of the squared norm outside the story space, free of noise.

    The product of what two halves of the groups say has no noise in its mean, unlike the square of either (the idea
    of cross-validated distances, Walther et al. 2016). Sums over random halvings and emotions come before the ratio.
    """
    names = np.unique(talks.groups[kept])
    whole = outer = 0.0
    for _ in range(HALVES):
        half = np.isin(talks.groups, generator.permutation(names)[: len(names) // 2])
        first, second = (
            directions(talks.residual[side], talks.masked[side], talks.shown[side], len(talks.names))
            for side in (kept & half, kept & ~half)
        )
        inside = float(((first @ talks.space.T) * (second @ talks.space.T)).sum())
        whole += float((first * second).sum())
        outer += float((first * second).sum()) - inside
    return outer / whole if whole > 0 else math.nan


def _outside_interval(talks: Dialogues, generator: np.random.Generator) -> Estimate:
    """With an interval by the jackknife over groups, because a group drawn twice would sit in both halves."""
    from scipy.special import stdtrit

    names = np.unique(talks.groups)
    seed = int(generator.integers(2**31))

    def share(left_out: str | None) -> float:
        return outside_share(talks, talks.groups != left_out, np.random.default_rng(seed))

    point = share(None)
    left = np.array([share(name) for name in names])
    if not math.isfinite(point) or not np.isfinite(left).all():
        return Estimate(point, math.nan, math.nan, len(names))
    error = math.sqrt((len(names) - 1) / len(names) * float(((left - left.mean()) ** 2).sum()))
    width = float(stdtrit(len(names) - 1, 1 - LEVEL / 2)) * error
    return Estimate(point, point - width, point + width, len(names))


def _table(talks: Dialogues, told: Told) -> Table:
    adjusted = stats.benjamini_hochberg(told.p_cosine)
    rows = [
        (
            name,
            int((talks.masked == index).sum()),
            wording.cell(told.masked.concepts[index]),
            wording.cell(told.story.concepts[index]),
            float(told.cosine[index]),
            float(adjusted[index]),
            float(told.openly[index]),
        )
        for index, name in enumerate(talks.names)
    ]
    detection = ("AUROC, left-out groups", "AUROC, story direction")
    columns = ("masked", "dialogues", *detection, "cosine with story", "adjusted p", "cosine with open display")
    return Table("Each masked emotion", columns, rows, "p of the cosine: shuffled labels, Benjamini-Hochberg.")


def _chart(talks: Dialogues, found: Sequence[Estimate], by_story: Sequence[Estimate]) -> Chart:
    def series(name: str, each: Sequence[Estimate]) -> Series:
        ends = ([getattr(one, end) for one in each] for end in ("value", "low", "high"))
        return Series(name, list(talks.names), *ends)

    both = (series("masked direction, left-out groups", found), series("story direction", by_story))
    return Chart("Where masked emotions are read", "bar", "masked emotion", "AUROC", both)

"""Whether emotions under a mask are represented apart from expressed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from pipeline import stats
from pipeline.behaviour.analyses import intervals, selection, wording
from pipeline.behaviour.analyses.config import MaskingConfig
from pipeline.behaviour.analyses.diagonal import shuffle
from pipeline.behaviour.analyses.intervals import LEVEL
from pipeline.behaviour.measured import Chart, Finding, Measured, Series, Table
from pipeline.evidence.controls import unit_rows
from pipeline.evidence.detection import own_areas
from pipeline.stats import Estimate, permutation_p

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

    @property
    def labels(self) -> np.ndarray:
        """Which dialogue masks which emotion."""
        return self.masked[:, None] == np.arange(len(self.names))


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
    scores = held_out(talks, talks.masked)
    found, by_story, by_words = (
        stats.auroc_interval(each, talks.labels, talks.groups, rng=generator, n_boot=intervals.DRAWS)
        for each in (scores, talks.expressed, talks.words)
    )
    null = _shuffled(talks, generator)
    p, floor = permutation_p(float(np.nanmean(own_areas(scores, talks.labels))), null["auroc"])
    outside = _outside_interval(talks, generator)
    vectors = directions(talks.residual, talks.masked, talks.shown, len(talks.names))
    raw, raw_null = raw_outside(vectors, talks.space), float(np.mean(null["outside"]))
    cosine = (unit_rows(vectors) * talks.story).sum(axis=1)
    p_cosine, _ = permutation_p(np.abs(cosine), null["cosine"])
    smallest = intervals.smallest_of(found.mean)
    detected = found.mean.low > 0.5 and p <= LEVEL
    apart = outside.low > APART
    verdict = (
        "shown" if detected and apart else "untestable" if not _tested(detected, outside, smallest) else "not shown"
    )
    why = (
        "most of what tells them apart lies outside the story space"
        if apart
        else "it is not shown that most of what tells them apart lies outside the story space"
    )
    sentences = [
        f"In groups left out, masked emotions are told apart with AUROC {wording.estimate(found.mean)} (shuffled "
        f"labels {wording.p(float(p))}, floor {floor:.2g}), and {why}: {wording.rate(outside)} of their squared norm, "
        "free of noise.",
        f"The story directions of the same emotions reach {wording.estimate(by_story.mean)} on these dialogues, their "
        f"words alone {wording.estimate(by_words.mean)}.",
        f"As they stand, {wording.percent(math.sqrt(max(raw, 0)))} of the norm lies outside, but so would "
        f"{wording.percent(math.sqrt(max(raw_null, 0)))} of that of directions from shuffled labels: noise lies "
        "outside too, so only the share that two halves of the data agree on counts.",
        f"Cosines with the story directions of the same emotions: mean {wording.number(float(cosine.mean()))}, under "
        f"shuffled labels within {wording.number(float(np.quantile(null['cosine'], 0.95)))} in 95% of the cases.",
        f"With {wording.counted(found.mean.n, 'group')} an AUROC of {wording.number(0.5 + smallest)} would be found "
        "with 80% power.",
    ]
    metrics = intervals.flat("auroc_masked", found.mean) | intervals.flat("auroc_story", by_story.mean)
    metrics |= intervals.flat("auroc_words", by_words.mean) | intervals.flat("outside", outside)
    metrics |= intervals.defined({"p": float(p), "outside_raw": raw, "outside_raw_null": raw_null})
    metrics |= intervals.defined({"cosine": float(cosine.mean()), "smallest_effect": smallest})
    table = _table(talks, found.concepts, by_story.concepts, cosine, np.asarray(p_cosine))
    return Finding(verdict, sentences, metrics, (table,), (_chart(talks, found.concepts, by_story.concepts),))


def _tested(detected: bool, outside: Estimate, smallest: float) -> bool:
    """Whether a claim that is not shown was tested: detection with enough power, or a share known to be less than 1."""
    return (not detected and smallest <= MATTERS) or (detected and outside.high < 1)


def _dialogues(measured: Measured, config: MaskingConfig) -> Dialogues | None:
    rows, masked = selection.intended(measured, config.masked, selection.main_rows(measured))
    residual = np.asarray(measured.residuals[config.reading], dtype=float)
    shown = np.array([str(value) for value in selection.factor(measured, config.shown, rows)])
    hidden = np.array([measured.concepts[index] for index in masked])
    kept = (hidden != shown) & np.isfinite(residual[rows]).all(axis=1) if len(rows) else np.zeros(0, dtype=bool)
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
    )


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
        masked = shuffle(talks.masked, talks.groups, generator)
        vectors = directions(talks.residual, masked, talks.shown, len(talks.names))
        labels = masked[:, None] == np.arange(len(talks.names))
        areas.append(float(np.nanmean(own_areas(held_out(talks, masked), labels))))
        shares.append(raw_outside(vectors, talks.space))
        cosines.append(np.abs((unit_rows(vectors) * talks.story).sum(axis=1)))
    return {"auroc": np.array(areas), "outside": np.array(shares), "cosine": np.array(cosines)}


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


def _table(
    talks: Dialogues,
    found: Sequence[Estimate],
    by_story: Sequence[Estimate],
    cosine: Float[np.ndarray, " masked"],
    p: Float[np.ndarray, " masked"],
) -> Table:
    adjusted = stats.benjamini_hochberg(p)
    rows = [
        (
            name,
            int((talks.masked == i).sum()),
            wording.cell(found[i]),
            wording.cell(by_story[i]),
            cosine[i],
            adjusted[i],
        )
        for i, name in enumerate(talks.names)
    ]
    columns = (
        "masked",
        "dialogues",
        "AUROC, left-out groups",
        "AUROC, story direction",
        "cosine with it",
        "adjusted p",
    )
    return Table("Each masked emotion", columns, rows, "p of the cosine: shuffled labels, Benjamini-Hochberg.")


def _chart(talks: Dialogues, found: Sequence[Estimate], by_story: Sequence[Estimate]) -> Chart:
    def series(name: str, each: Sequence[Estimate]) -> Series:
        ends = ([getattr(one, end) for one in each] for end in ("value", "low", "high"))
        return Series(name, list(talks.names), *ends)

    both = (series("masked direction, left-out groups", found), series("story direction", by_story))
    return Chart("Where masked emotions are read", "bar", "masked emotion", "AUROC", both)

"""Whether a reading names the concept that a scenario was written for, beside the scenario's words alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from affectlens import stats
from affectlens.experiments.conclude import intervals, selection, wording
from affectlens.experiments.conclude.config import DiagonalConfig
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.stats import Estimate, benjamini_hochberg, permutation_p

PERMUTATIONS = 1000
MATTERS = 0.25
"""Share above chance whose absence is worth stating."""


@dataclass(frozen=True)
class Named:
    """A readout of the scenarios that were written for one of the intended concepts.

    Attributes:
        scores: of the intended concepts.
        every: of all concepts.
        target: column in ``scores`` that each scenario was written for.
        columns: of the intended concepts in ``every``.
        groups: of the scenarios.
    """

    scores: Float[np.ndarray, "rows intended"]
    every: Float[np.ndarray, "rows concepts"]
    target: Int[np.ndarray, " rows"]
    columns: Int[np.ndarray, " intended"]
    groups: Shaped[np.ndarray, " rows"]

    @property
    def first(self) -> Float[np.ndarray, " rows"]:
        """Whether the intended concept ranks first among the intended, ties sharing the place."""
        best = self.scores == self.scores.max(axis=1, keepdims=True)
        return best[np.arange(len(best)), self.target] / best.sum(axis=1)

    @property
    def rank(self) -> Float[np.ndarray, " rows"]:
        """Rank of the intended concept among all, 1 being first; ties take the mean."""
        own = self.every[np.arange(len(self.every)), self.columns[self.target]][:, None]
        return 1 + (self.every > own).sum(axis=1) + ((self.every == own).sum(axis=1) - 1) / 2

    @property
    def labels(self) -> np.ndarray:
        """Which scenario was written for which intended concept."""
        return self.target[:, None] == np.arange(self.scores.shape[1])


def analyse(measured: Measured, config: DiagonalConfig, generator: np.random.Generator) -> Finding:
    """Compare the reading with shuffled labels and with the words of the scenarios, paired by scenario."""
    every = selection.reading(measured, config.reading)
    features = any(
        each.name == config.reading and each.by == "features" for each in measured.experiment.config.readings
    )
    rows, target = selection.intended(measured, config.factor, selection.main_rows(measured))
    if len(rows):
        rows, target = rows[(known := np.isfinite(every[rows]).all(axis=1))], target[known]
    concepts = np.unique(target)
    groups = selection.groups(measured, rows)
    if len(concepts) < 2 or len(np.unique(groups)) < 2:
        return wording.untestable(
            f"there are {wording.counted(len(concepts), 'intended concept')} in "
            f"{wording.counted(len(np.unique(groups)), 'group')} of scenarios with a reading, and at least two of each "
            "are needed"
        )
    place = np.searchsorted(concepts, target)
    values, texts = every[rows], np.nan_to_num(np.asarray(measured.words, dtype=float)[rows])
    if features:
        values, texts = _scaled(values), _scaled(texts)
    read = Named(values[:, concepts], values, place, concepts, groups)
    words = Named(texts[:, concepts], texts, place, concepts, groups)
    return _finding(read, words, [measured.concepts[index] for index in concepts], generator)


def _scaled(values: Float[np.ndarray, "rows concepts"]) -> Float[np.ndarray, "rows concepts"]:
    """Columns in their own standard deviations: features have scales of their own, which ranks must not depend on."""
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)


def _finding(read: Named, words: Named, names: Sequence[str], generator: np.random.Generator) -> Finding:
    chance = 1 / len(names)
    first = intervals.over_groups(read.first, read.groups, generator)
    by_words = intervals.over_groups(words.first, read.groups, generator)
    ahead = intervals.over_groups(read.first - words.first, read.groups, generator)
    rank = intervals.over_groups(read.rank, read.groups, generator)
    areas = stats.auroc_interval(read.scores, read.labels, read.groups, rng=generator, n_boot=intervals.DRAWS)
    of_words = stats.auroc_interval(words.scores, read.labels, read.groups, rng=generator, n_boot=intervals.DRAWS)
    p, p_concepts, floor = _shuffled(read, generator)
    error = max(intervals.standard_error(read.first, read.groups), (chance * (1 - chance) / first.n) ** 0.5)
    smallest = intervals.smallest_effect(error, first.n)
    beyond = first.low > chance and p <= LEVEL and first.n >= intervals.GROUPS
    weakest = max(smallest, intervals.smallest_of(ahead)) if beyond else smallest
    verdict = "shown" if beyond and ahead.low > 0 else "untestable" if not weakest <= MATTERS else "not shown"
    lead = (
        "better than the words alone"
        if ahead.low > 0
        else "but not shown to be better than the words alone"
        if beyond
        else "which is not beyond chance"
    )
    sentences = [
        f"The intended concept ranks first among {len(names)} in {wording.rate(first)} of the scenarios (chance "
        f"{wording.percent(chance)}; shuffled labels {wording.p(p)}, floor {floor:.2g}), {lead}: words alone "
        f"{wording.rate(by_words)}, difference {wording.rate(ahead)}.",
        f"Among all {read.every.shape[1]} concepts its mean rank is {wording.estimate(rank, digits=1)}; AUROC of each "
        f"concept against the rest {wording.estimate(areas.mean)}, of the words {wording.estimate(of_words.mean)}.",
        f"With {wording.counted(first.n, 'group')} a share of {wording.percent(smallest)} above chance would be found "
        f"with 80% power, and one of {wording.percent(intervals.smallest_of(ahead))} above the words'.",
    ]
    metrics = intervals.flat("first", first) | intervals.flat("first_words", by_words)
    metrics |= intervals.flat("first_difference", ahead) | intervals.flat("mean_rank", rank)
    metrics |= intervals.flat("auroc", areas.mean) | intervals.flat("auroc_words", of_words.mean)
    metrics |= intervals.defined({"p": p, "chance": chance, "smallest_effect": smallest})
    tables = (_per_concept(read, names, areas.concepts, of_words.concepts, p_concepts), _confusion(read, names))
    return Finding(verdict, sentences, metrics, tables, (_chart(names, areas.concepts, of_words.concepts),))


def _shuffled(read: Named, generator: np.random.Generator) -> tuple[float, Float[np.ndarray, " intended"], float]:
    """p of the share that ranks first, and of each concept's AUROC, under shuffled labels."""
    from scipy.stats import rankdata

    best = read.scores == read.scores.max(axis=1, keepdims=True)
    shares, ranks = best / best.sum(axis=1, keepdims=True), rankdata(read.scores, axis=0)
    first, sums = np.empty(PERMUTATIONS), np.empty((PERMUTATIONS, read.scores.shape[1]))
    positions = np.arange(len(shares))
    for draw in range(PERMUTATIONS):
        target = shuffle(read.target, read.groups, generator)
        first[draw] = shares[positions, target].mean()
        sums[draw] = _areas_of(ranks, target)
    p, floor = permutation_p(float(read.first.mean()), first)
    return float(p), permutation_p(_areas_of(ranks, read.target), sums)[0], floor


def _areas_of(ranks: Float[np.ndarray, "rows intended"], target: Int[np.ndarray, " rows"]) -> np.ndarray:
    """Mean rank of each concept's own scenarios: its AUROC on another scale."""
    own = np.bincount(target, weights=ranks[np.arange(len(target)), target], minlength=ranks.shape[1])
    return own / np.maximum(np.bincount(target, minlength=ranks.shape[1]), 1)


def shuffle(
    target: Int[np.ndarray, " rows"], groups: Shaped[np.ndarray, " rows"], generator: np.random.Generator
) -> Int[np.ndarray, " rows"]:
    """Labels shuffled as the design allows.

    Where every group has one label, groups change labels as wholes, because their scenarios are variants of each
    other; otherwise scenarios change labels within their group.
    """
    _, start, codes = np.unique(groups, return_index=True, return_inverse=True)
    if (target == target[start][codes]).all():
        return generator.permutation(target[start])[codes]
    order = np.lexsort((generator.random(len(target)), codes))
    shuffled = np.empty_like(target)
    shuffled[np.argsort(codes, kind="stable")] = target[order]
    return shuffled


def _per_concept(
    read: Named,
    names: Sequence[str],
    areas: Sequence[Estimate],
    of_words: Sequence[Estimate],
    p: Float[np.ndarray, " intended"],
) -> Table:
    adjusted = benjamini_hochberg(np.asarray(p))
    rows = [
        (
            name,
            int((read.target == index).sum()),
            float(read.first[read.target == index].mean()),
            float(read.rank[read.target == index].mean()),
            wording.cell(areas[index]),
            wording.cell(of_words[index]),
            float(adjusted[index]),
        )
        for index, name in enumerate(names)
    ]
    columns = ("concept", "scenarios", "ranks first", "mean rank", "AUROC", "AUROC of words", "adjusted p")
    return Table("Each intended concept", columns, rows, "Shuffled labels, Benjamini-Hochberg over the concepts.")


def _confusion(read: Named, names: Sequence[str]) -> Table:
    best = read.scores == read.scores.max(axis=1, keepdims=True)
    shares = best / best.sum(axis=1, keepdims=True)
    rows = [(name, *map(float, shares[read.target == index].mean(axis=0))) for index, name in enumerate(names)]
    note = "Share of the scenarios of each row's concept in which the column's concept reads highest."
    return Table("What is read instead", ("written for", *names), rows, note)


def _chart(names: Sequence[str], areas: Sequence[Estimate], of_words: Sequence[Estimate]) -> Chart:
    def series(title: str, found: Sequence[Estimate]) -> Series:
        ends = ([getattr(each, end) for each in found] for end in ("value", "low", "high"))
        return Series(title, list(names), *ends)

    both = (series("reading", areas), series("words alone", of_words))
    return Chart("Each concept against the rest", "bar", "written for", "AUROC", both)

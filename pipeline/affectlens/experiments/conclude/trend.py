"""Whether a reading follows a number in a text, template by template, more than where the number is harmless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from affectlens.experiments.conclude import intervals, selection, wording
from affectlens.experiments.conclude.config import TrendConfig
from affectlens.experiments.conclude.intervals import LEVEL, POWER
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.stats import permutation_p

NULL_DRAWS = 2000
MATTERS = 0.75
"""Difference of rank correlations whose absence is worth stating."""
LEVELS = 3
"""Fewest levels that have a trend."""


@dataclass(frozen=True)
class Trends:
    """Rank correlations with the level, means over paraphrases; NaN where a template lacks the condition."""

    templates: tuple[str, ...]
    main: Float[np.ndarray, "templates concepts"]
    twin: Float[np.ndarray, "templates concepts"]
    expected: Float[np.ndarray, "templates concepts"]
    levels: tuple[int, ...]

    def mean(self, values: Float[np.ndarray, "templates concepts"]) -> Float[np.ndarray, " templates"]:
        """Over the expected concepts, with the sign in which they are expected to go."""
        return (values * self.expected).sum(axis=1)


def analyse(measured: Measured, config: TrendConfig, generator: np.random.Generator) -> Finding:
    """Sign test over templates of the expected concepts' trend less the twin's, and a null from all other concepts."""
    trends = _trends(measured, config)
    if not trends.templates:
        return wording.untestable(
            f"no template has a reading at {LEVELS} or more values of `{config.level}` and names concepts of the study "
            f"in `{config.expects}`"
        )
    own, twin = trends.mean(trends.main), trends.mean(trends.twin)
    known = np.isfinite(own - twin)
    alone = intervals.over_groups(own, np.arange(len(own)), generator)
    if not known.any():
        return wording.untestable(
            f"no template has a harmless twin (condition `{config.twin}`), so a trend may be one of any number",
            f"The expected concepts' mean rank correlation with the level is {wording.estimate(alone)}.",
        )
    difference = (own - twin)[known]
    found = intervals.over_groups(difference, np.arange(known.sum()), generator)
    signs, p_sign = sign_test(difference)
    p_sign_alone = sign_test(own[known])[1]
    p_other, floor = _other_concepts(trends, known, generator)
    needed = _needed(int(known.sum()))
    smallest = intervals.smallest_effect(intervals.standard_error(difference, np.arange(len(difference))), found.n)
    shown = found.low > 0 and p_sign <= LEVEL and p_other <= LEVEL
    weak = needed is None or not smallest <= MATTERS
    sentences = [
        f"The expected concepts follow the level by a rank correlation {wording.estimate(found)} larger than in the "
        f"harmless twins, in {signs} of {wording.counted(found.n, 'template')} (exact sign test {wording.p(p_sign)}; "
        f"other concepts in their place {wording.p(p_other)}, floor {floor:.2g}): "
        f"{'shown' if shown else 'untestable with so few or so different templates' if weak else 'not shown'}.",
        f"Without the twins it is {wording.estimate(alone)} (sign test {wording.p(p_sign_alone)}).",
        _one_template(trends),
        _power(int(known.sum()), needed, smallest),
    ]
    metrics = intervals.flat("trend_difference", found) | intervals.flat("trend", alone)
    metrics |= intervals.defined({"templates": float(found.n), "templates_as_claimed": float(signs), "p_sign": p_sign})
    metrics |= intervals.defined({"p_other_concepts": p_other, "p_sign_without_twin": p_sign_alone})
    metrics |= intervals.defined({"smallest_effect": smallest})
    tables = (_table(measured, trends),)
    verdict = "shown" if shown else "untestable" if weak else "not shown"
    return Finding(verdict, sentences, metrics, tables, (_chart(trends),))


def _trends(measured: Measured, config: TrendConfig) -> Trends:
    every = selection.reading(measured, config.reading)
    names = dict.fromkeys(each.group for each in measured.scenarios)
    found = []
    for group in names:
        rows = [i for i, each in enumerate(measured.scenarios) if each.group == group]
        own = [i for i in rows if measured.scenarios[i].condition != config.twin]
        other = [i for i in rows if measured.scenarios[i].condition == config.twin]
        expected = _expected(measured, config, own)
        main = _mean_trend(measured, config, every, own)
        if expected is not None and np.isfinite(main).any():
            twin, count = _mean_trend(measured, config, every, other), len(_values(measured, config, own))
            found.append((group, main, twin, expected, count))
    shape = (len(found), every.shape[1])
    main, twin, expected = (np.array([each[place] for each in found]).reshape(shape) for place in (1, 2, 3))
    return Trends(tuple(each[0] for each in found), main, twin, expected, tuple(each[4] for each in found))


def _expected(measured: Measured, config: TrendConfig, rows: Sequence[int]) -> Float[np.ndarray, " concepts"] | None:
    """Signs of the expected concepts, divided by their number; None where no scenario names one of the study."""
    weights = np.zeros(len(measured.concepts))
    named = next((text for i in rows if (text := measured.scenarios[i].factors.get(config.expects))), "")
    for concept, sign in selection.signed(str(named)):
        if concept in measured.concepts:
            weights[measured.concepts.index(concept)] = sign
    count = np.abs(weights).sum()
    return weights / count if count else None


def _values(measured: Measured, config: TrendConfig, rows: Sequence[int]) -> set:
    return {measured.scenarios[i].factors.get(config.level) for i in rows} - {None}


def _mean_trend(
    measured: Measured, config: TrendConfig, every: Float[np.ndarray, "scenarios concepts"], rows: Sequence[int]
) -> Float[np.ndarray, " concepts"]:
    """Mean over paraphrases of the rank correlation of each concept's reading with the level.

    Paraphrases are scenarios that differ in more than the level: in their line of the file or in another factor.
    """
    kept = [
        i for i in rows if measured.scenarios[i].factors.get(config.level) is not None and np.isfinite(every[i]).all()
    ]
    for series in _series(measured, config, kept):
        found = [
            rank_correlations(
                selection.levels([measured.scenarios[i].factors[config.level] for i in each]), every[each]
            )
            for each in series
        ]
        found = [each for each in found if each is not None]
        if found:
            return np.mean(found, axis=0)
    return np.full(every.shape[1], np.nan)


def _series(measured: Measured, config: TrendConfig, rows: Sequence[int]) -> Iterator[list[list[int]]]:
    """The scenarios by paraphrase: by line and other factors; if those hold no levels, by factors, then all as one."""

    def line(i: int) -> tuple:
        return (measured.scenarios[i].id.split(".")[0], *others(i))

    def others(i: int) -> tuple:
        factors = measured.scenarios[i].factors
        return tuple(sorted((name, str(value)) for name, value in factors.items() if name != config.level))

    for key in (line, others, lambda i: ()):
        series: dict[tuple, list[int]] = {}
        for i in rows:
            series.setdefault(key(i), []).append(i)
        yield list(series.values())


def rank_correlations(
    levels: Float[np.ndarray, " rows"], readings: Float[np.ndarray, "rows concepts"]
) -> Float[np.ndarray, " concepts"] | None:
    """Spearman's of each column with the level, readings at the same level averaged first.

    A column that never moves has no trend, 0. None where there are fewer than three levels.
    """
    from scipy.stats import rankdata

    values = intervals.group_means(readings, levels)
    if len(values) < LEVELS:
        return None
    steps = np.arange(len(values)) - (len(values) - 1) / 2
    ranks = rankdata(values, axis=0) - (len(values) + 1) / 2
    norms = np.linalg.norm(ranks, axis=0)
    return steps @ ranks / np.linalg.norm(steps) / np.where(norms > 0, norms, 1)


def sign_test(differences: Float[np.ndarray, " templates"]) -> tuple[int, float]:
    """How many are above 0, and the exact one-sided p of a fair coin; zeros are left out."""
    from scipy.stats import binomtest

    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    p = binomtest(above, above + below, alternative="greater").pvalue if above + below else 1.0
    return above, float(p)


def _other_concepts(trends: Trends, known: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """p of the mean difference when other concepts stand in for the expected ones.

    One shuffle of the concepts' names goes through all templates, so that a concept which follows every number counts
    as such in each of them.
    """
    difference, expected = (trends.main - trends.twin)[known], trends.expected[known]
    used = np.flatnonzero(expected.any(axis=0))
    if expected.shape[1] < 2 * len(used):
        return 1.0, 1.0
    cross = expected[:, used].T @ difference / len(difference)
    order = generator.permuted(np.tile(np.arange(expected.shape[1]), (NULL_DRAWS, 1)), axis=1)[:, : len(used)]
    null = cross[np.arange(len(used)), order].sum(axis=1)
    p, floor = permutation_p(float((difference * expected).sum() / len(difference)), null)
    return float(p), floor


def _one_template(trends: Trends) -> str:
    others = np.abs(trends.main)[trends.expected == 0]
    own = np.abs(trends.main)[trends.expected != 0]
    typical = float(np.nanmedian(own)) if len(own) else float("nan")
    share = float(np.mean(others >= typical)) if len(others) else float("nan")
    return (
        f"Within one template a monotone trend proves nothing, even with {max(trends.levels)} levels: "
        f"{wording.percent(share)} of the trends of concepts that nobody expected are at least as steep as the median "
        f"expected one ({wording.number(typical)}), as those of random directions would be. Only agreement over "
        "templates counts."
    )


def _needed(templates: int) -> int | None:
    """Fewest templates as claimed for which the sign test is significant; None where not even all of them are."""
    from scipy.stats import binom

    chances = binom.sf(np.arange(templates + 1) - 1, templates, 0.5)
    enough = np.flatnonzero(chances <= LEVEL)
    return int(enough[0]) if len(enough) else None


def _power(templates: int, needed: int | None, smallest: float) -> str:
    from scipy.stats import binom

    if needed is None:
        return (
            f"With {wording.counted(templates, 'template')} not even unanimity is significant: at least 5 are needed."
        )
    shares = np.linspace(0.5, 1, 501)
    share = shares[np.argmax(binom.sf(needed - 1, templates, shares) >= POWER)]
    return (
        f"The sign test needs {needed} of {templates} templates and finds it with 80% power if each goes as claimed "
        f"with a chance of {wording.percent(float(share))}; smallest mean difference found with 80% power: "
        f"{wording.number(smallest)}."
    )


def _table(measured: Measured, trends: Trends) -> Table:
    own, twin = trends.mean(trends.main), trends.mean(trends.twin)
    rows = []
    for index, template in enumerate(trends.templates):
        signs: Int[np.ndarray, " concepts"] = np.sign(trends.expected[index]).astype(int)
        names = [("-" if sign < 0 else "") + name for name, sign in zip(measured.concepts, signs, strict=True) if sign]
        difference = float(own[index] - twin[index])
        rows.append((template, ", ".join(names), float(own[index]), float(twin[index]), difference))
    columns = ("template", "expected", "trend", "trend in the twin", "difference")
    return Table("Each template", columns, rows, "Rank correlations with the level, means over paraphrases.")


def _chart(trends: Trends) -> Chart:
    both = (("number that matters", trends.main), ("harmless twin", trends.twin))
    series = [Series(name, list(trends.templates), trends.mean(values).tolist()) for name, values in both]
    return Chart("Trend of the expected concepts", "bar", "template", "rank correlation with the level", series)

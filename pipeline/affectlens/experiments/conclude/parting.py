"""How often the state while answering and the emotion of the answer's text part, and under which steering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens.experiments.conclude import checks, controls, intervals, selection, wording
from affectlens.experiments.conclude.config import PartingConfig
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.stats import Estimate, holm, permutation_p

SHUFFLES = 1000
MATTERS = 0.25
"""Rise of the share of answers that part whose absence is worth stating."""


@dataclass(frozen=True)
class _Answers:
    """Standardised readings of the sampled answers, of the concepts in question."""

    state: Float[np.ndarray, "answers concepts"]
    text: Float[np.ndarray, "answers concepts"]
    words: Float[np.ndarray, "answers concepts"]
    cell: Int[np.ndarray, " answers"]
    scenario: Int[np.ndarray, " answers"]
    groups: Shaped[np.ndarray, " answers"]

    @property
    def parted(self) -> Bool[np.ndarray, " answers"]:
        """Whether state and text read highest on different concepts."""
        return self.state.argmax(axis=1) != self.text.argmax(axis=1)

    @property
    def opposed(self) -> Float[np.ndarray, " answers"]:
        """Share of the concepts that are above usual in one and below in the other."""
        return (np.sign(self.state) * np.sign(self.text) < 0).mean(axis=1)

    def shares(self, values: np.ndarray, cells: int, scenarios: int) -> Float[np.ndarray, "cells scenarios"]:
        """Means by cell and scenario; NaN where there is no answer."""
        sums, counts = np.zeros((cells, scenarios)), np.zeros((cells, scenarios))
        np.add.at(sums, (self.cell, self.scenario), values.astype(float))
        np.add.at(counts, (self.cell, self.scenario), 1.0)
        return np.where(counts > 0, sums / np.where(counts > 0, counts, 1), np.nan)


@dataclass(frozen=True)
class Parted:
    """One steered cell: how much more often state and text part than without steering, against the controls."""

    cell: int
    change: Estimate
    against: controls.Against
    smallest: float
    reason: str
    adjusted: float = math.nan

    @property
    def verdict(self) -> Literal["shown", "not shown", "untestable"]:
        """Of this cell alone."""
        beyond = self.change.low > 0 and self.against.beyond and self.adjusted <= LEVEL
        if self.reason or (beyond and self.against.count < controls.ENOUGH):
            return "untestable"
        if beyond:
            return "shown"
        hopeful = self.change.low > 0 and self.against.count < controls.ENOUGH
        return "untestable" if hopeful or not self.smallest <= MATTERS else "not shown"


def analyse(measured: Measured, config: PartingConfig, generator: np.random.Generator) -> Finding:
    """Rates of parting by cell, the relation of state and text without steering, and each steered cell's rise."""
    if measured.rollout_state is None or measured.rollout_text is None or not measured.rollouts:
        return wording.untestable("no sampled answer was read")
    columns = [selection.column(measured, concept) for concept, _ in selection.signed(config.concepts)]
    answers = _answers(measured, measured.rollout_state, measured.rollout_text, columns)
    if answers is None:
        return wording.untestable("fewer than three unsteered answers could be read, which leaves no scale")
    unsteered = answers.cell == 0
    parted = intervals.over_groups(answers.parted[unsteered].astype(float), answers.groups[unsteered], generator)
    opposed = intervals.over_groups(answers.opposed[unsteered], answers.groups[unsteered], generator)
    chance, p = _chance(answers, generator)
    related = _related(answers.state[unsteered], answers.text[unsteered], answers.groups[unsteered], generator)
    in_words = _related(answers.state[unsteered], answers.words[unsteered], answers.groups[unsteered], generator)
    steered = _steered(measured, answers, generator)
    verdict = _verdict(steered)
    sentences = [
        *_steered_sentences(measured, steered),
        f"Unsteered, state and text read highest on different concepts (of {len(columns)}) in {wording.rate(parted)} "
        f"of the answers, {wording.percent(chance)} if texts belonged to other scenarios ({wording.p(p)} that they "
        f"agree more than so), and on {wording.rate(opposed)} of the concepts they have opposite signs.",
        f"Over unsteered answers, state and text correlate by r {wording.estimate(related)} in the mean over concepts, "
        f"state and the answer's words alone by {wording.estimate(in_words)}.",
        "The state is read above the push and holds it: parting under steering says that the text does not follow.",
    ]
    metrics = intervals.flat("parted", parted) | intervals.flat("opposed", opposed) | intervals.flat("r_text", related)
    metrics |= intervals.flat("r_words", in_words) | intervals.defined({"parted_chance": chance, "p_agreement": p})
    metrics |= {"cells_shown": float(sum(each.verdict == "shown" for each in steered))}
    return Finding(
        verdict, sentences, metrics, (_table(measured, answers, steered, generator),), _chart(measured, steered)
    )


def _verdict(steered: Sequence[Parted]) -> Literal["shown", "not shown", "untestable", "described"]:
    """Shown if any steered cell is, after correction over all of them; one that was not tested leaves it open."""
    verdicts = {each.verdict for each in steered}
    if not verdicts:
        return "described"
    return "shown" if "shown" in verdicts else "untestable" if "untestable" in verdicts else "not shown"


def _answers(measured: Measured, state: np.ndarray, text: np.ndarray, columns: Sequence[int]) -> _Answers | None:
    """Readings in standard deviations of the unsteered answers, so that state and text have one scale."""
    state, text = (np.asarray(each, dtype=float)[:, columns] for each in (state, text))
    words = measured.rollout_words
    words = np.zeros_like(text) if words is None else np.nan_to_num(np.asarray(words, dtype=float)[:, columns])
    cell = np.array([each.cell for each in measured.rollouts])
    known = np.isfinite(state).all(axis=1) & np.isfinite(text).all(axis=1)
    usual = known & (cell == 0)
    if usual.sum() < 3:
        return None

    def scaled(values: np.ndarray) -> np.ndarray:
        spread = values[usual].std(axis=0)
        return ((values - values[usual].mean(axis=0)) / np.where(spread > 0, spread, 1))[known]

    scenario = np.array([each.scenario for each in measured.rollouts])[known]
    groups = selection.groups(measured, scenario)
    return _Answers(scaled(state), scaled(text), scaled(words), cell[known], scenario, groups)


def _chance(answers: _Answers, generator: np.random.Generator) -> tuple[float, float]:
    """Share that would part if texts were those of other answers, and p that they part less often than so."""
    usual = answers.cell == 0
    state, text = answers.state[usual].argmax(axis=1), answers.text[usual].argmax(axis=1)
    null = np.array([(state != generator.permutation(text)).mean() for _ in range(SHUFFLES)])
    p, _ = permutation_p(-float((state != text).mean()), -null)
    return float(null.mean()), float(p)


def _related(
    first: Float[np.ndarray, "answers concepts"],
    second: Float[np.ndarray, "answers concepts"],
    groups: Shaped[np.ndarray, " answers"],
    generator: np.random.Generator,
) -> Estimate:
    """Mean over concepts of the correlation over answers, with its interval over groups."""
    names, codes = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), 6, first.shape[1]))
    np.add.at(sums, codes, np.stack([np.ones_like(first), first, second, first**2, second**2, first * second], axis=1))

    def of(weights: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, " draws"]:
        n, a, b, aa, bb, ab = np.moveaxis(np.einsum("dg,gsc->dsc", weights, sums), 1, 0)
        spread = (aa - a * a / n) * (bb - b * b / n)
        r = np.where(spread > 1e-12, (ab - a * b / n) / np.sqrt(np.maximum(spread, 1e-12)), np.nan)
        defined = np.isfinite(r)
        count = defined.sum(axis=1)
        return np.where(count > 0, np.where(defined, r, 0).sum(axis=1) / np.maximum(count, 1), np.nan)

    point = float(of(np.ones((1, len(names))))[0])
    return intervals.from_draws(point, of(intervals.draws(len(names), generator)), len(names))


def _steered(measured: Measured, answers: _Answers, generator: np.random.Generator) -> list[Parted]:
    shares = answers.shares(answers.parted, len(measured.cells), len(measured.scenarios))
    groups = selection.groups(measured, np.arange(len(measured.scenarios)))
    change = shares - shares[0]
    coherent, found = checks.coherent(measured), []
    for index, cell in enumerate(measured.cells):
        if cell.family != "concept" or not np.isfinite(change[index]).any():
            continue
        rise = intervals.rate_difference(shares[index], shares[0], groups, generator)
        against = controls.compare(rise.value, _null(measured, change, groups, cell.strength), symmetric=False)
        reason = checks.manipulation(measured, cell.vector).reason
        reason = reason if coherent[index] else "outside the coherence window"
        if not reason and (against.count < 2 or rise.n < intervals.GROUPS):
            reason = "too few controls or groups were rolled out"
        error = intervals.change_error(intervals.group_means(change[index], groups))
        smallest = intervals.smallest_effect(error, rise.n)
        found.append(Parted(index, rise, against, smallest, reason))
    p = holm(np.array([math.nan if each.reason else each.against.p_scaled for each in found]))
    return [replace(each, adjusted=float(value)) for each, value in zip(found, p, strict=True)]


def _null(
    measured: Measured, change: np.ndarray, groups: np.ndarray, strength: float
) -> dict[str, Float[np.ndarray, " controls"]]:
    """Rises under the controls that are pushed in the same sense."""
    found: dict[str, list[float]] = {}
    for index, cell in enumerate(measured.cells):
        if cell.family not in ("none", "concept") and cell.strength * strength > 0 and np.isfinite(change[index]).any():
            found.setdefault(cell.family, []).append(float(np.nanmean(intervals.group_means(change[index], groups))))
    return {family: np.array(values) for family, values in found.items()}


def _steered_sentences(measured: Measured, steered: Sequence[Parted]) -> list[str]:
    if not steered:
        return ["No answer was sampled under steering, so what parts state and text is described, not tested."]
    told = []
    for each in steered:
        cell = measured.cells[each.cell]
        reason = each.reason or f"corrected {wording.p(each.adjusted)}, {each.against.count} controls"
        if not each.reason and each.verdict == "untestable" and each.against.count >= controls.ENOUGH:
            reason += f", a rise below {wording.percent(each.smallest)} may be missed"
        told.append(f"{cell.vector} at {cell.strength:+g} {wording.rate(each.change)} ({reason}: {each.verdict})")
    shown = sum(each.verdict == "shown" for each in steered)
    few = min(each.against.count for each in steered)
    sentences = [
        f"{shown} of {wording.counted(len(steered), 'steered cell')} shown to part state and text more often than "
        f"without steering: {'; '.join(told)}."
    ]
    if few < controls.ENOUGH:
        sentences.append(
            f"Only {wording.counted(few, 'control')} of the same sign were rolled out; {controls.ENOUGH} are needed "
            "before a rise counts as shown."
        )
    smallest = [each.smallest for each in steered if math.isfinite(each.smallest)]
    if smallest:
        sentences.append(f"A rise of {wording.percent(float(np.median(smallest)))} would be found with 80% power.")
    return sentences


def _table(measured: Measured, answers: _Answers, steered: Sequence[Parted], generator: np.random.Generator) -> Table:
    judged, rows = {each.cell: each for each in steered}, []
    for index in np.unique(answers.cell):
        cell, mine = measured.cells[index], answers.cell == index
        of = [
            intervals.over_groups(np.asarray(values[mine], dtype=float), answers.groups[mine], generator)
            for values in (answers.parted, answers.opposed)
        ]
        name = {"none": "none", "concept": cell.vector}.get(cell.family, f"control ({cell.family})")
        change = judged[index].change if index in judged else intervals.undefined()
        p = judged[index].adjusted if index in judged else math.nan
        rows.append((name, cell.strength, *map(wording.cell, of), wording.cell(change), p, int(mine.sum())))
    columns = ("vector", "strength", "parted", "opposite signs", "more than unsteered", "corrected p", "answers")
    return Table("State and text", columns, rows, "Readings in standard deviations of the unsteered answers.")


def _chart(measured: Measured, steered: Sequence[Parted]) -> tuple[Chart, ...]:
    if not steered:
        return ()
    names = [f"{measured.cells[each.cell].vector} {measured.cells[each.cell].strength:+g}" for each in steered]
    ends = ([getattr(each.change, end) for each in steered] for end in ("value", "low", "high"))
    series = Series("rise of parting", names, *ends)
    return (Chart("Where state and text part", "bar", "steering", "more parting than unsteered", [series]),)

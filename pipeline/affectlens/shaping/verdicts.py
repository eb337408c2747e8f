"""What became of an arm, in words, by rules that stand before anything is measured.

The rules are asked in this order, and the first that holds is the verdict: *damaged*, *numb*, *calmer state and text*,
*text only (suppressed)*, *state only*, *not shown*.

A fall is *shown* where it holds against the base model on both axes (the base model's and the one that the changed
model's own readings of stories give) after Holm's correction over all arms and both kinds of fall; where it holds
against the filler arm and the random twin as well, each at the same rate without correction, since an arm has to pass
all of them; and where it reaches a smallest size. Harm beyond its margin and a gap below its share are verdicts of
their own where they are beyond chance (Holm over all arms and measures). Where a fall is shown, less is enough to deny
that it is calm: an estimate past the margin, and an interval that leaves no doubt that there is some harm, or some loss
of the gap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from affectlens.shaping.settings import RulesConfig
from affectlens.shaping.statistics import Mean, difference, over_clusters, over_families, ratio
from affectlens.stats import holm

Word = Literal["damaged", "numb", "calmer state and text", "text only (suppressed)", "state only", "not shown"]
WORDS: tuple[Word, ...] = (
    "damaged", "numb", "calmer state and text", "text only (suppressed)", "state only", "not shown"
)  # fmt: skip
"""In the order in which their rules are asked."""

Cells = Float[np.ndarray, "seeds families prompts"]


@dataclass(frozen=True)
class ArmCells:
    """What was measured of an arm; prompts in the same places for all arms.

    Attributes:
        name: of the arm.
        state: distress read on the base model's axis in bad situations.
        moved_state: the same on the axis re-extracted from the changed model.
        text: distress in the words of the answers to bad situations.
        good_state: as ``state``, in the good twins of the situations.
        harms: by measure, larger is worse, [seeds, items].
        controls: names of the arms that it is held against besides the base model: the filler, the random twin.
        trained: whether its seeds are trainings.
    """

    name: str
    state: Cells
    moved_state: Cells
    text: Cells
    good_state: Cells
    harms: Mapping[str, Float[np.ndarray, "seeds items"]] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    trained: bool = False


@dataclass(frozen=True)
class Fall:
    """How far a reading fell below others, in the base model's standard deviations.

    Attributes:
        base: below the base model.
        against: by name of a control, below that control.
        p: that there is no fall below the base model, on one of the axes.
        adjusted: by Holm over arms and kinds of fall.
        shown: whether it holds, and is large enough.
    """

    base: Mean
    against: Mapping[str, Mean]
    p: float
    adjusted: float = math.nan
    shown: bool = False


@dataclass(frozen=True)
class Verdict:
    """What became of an arm.

    Attributes:
        arm: its name.
        word: the verdict.
        why: in a sentence.
        state: fall of the state on the base model's axis.
        moved: fall on the re-extracted axis.
        text: fall of the text.
        dissociation: fall of the state less that of the text.
        gap: between bad and good situations, as a share of the base model's.
        harms: by measure, by how much it is worse than the base model.
        seeds: trainings, or draws.
    """

    arm: str
    word: Word
    why: str
    state: Fall
    moved: Mean
    text: Fall
    dissociation: Mean
    gap: Mean
    harms: Mapping[str, Mean]
    seeds: int


def spread(base: ArmCells) -> tuple[float, float]:
    """Standard deviation of the base model's state and text over bad situations: the unit of all falls.

    NaN where all situations read alike, so that nothing can be said.
    """
    return deviation(base.state), deviation(base.text)


def deviation(cells: Cells) -> float:
    """Standard deviation over situations, mean over seeds; NaN where it is 0 or hardly anything was measured."""
    known = cells.mean(axis=0)
    known = known[np.isfinite(known)]
    found = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return found if found > 0 else math.nan


def judge(arms: Sequence[ArmCells], base: ArmCells, rules: RulesConfig) -> list[Verdict]:
    """The verdict of every arm.

    Args:
        arms: all that are judged: what Holm's corrections count.
        base: the untouched model on the same prompts with the same draws.
        rules: sizes and error rates.

    Raises:
        ValueError: an arm names a control that is not there, or lacks a prompt.
    """
    by_name = {arm.name: arm for arm in arms}
    for arm in arms:
        if arm.state.shape[1:] != base.state.shape[1:]:
            raise ValueError(
                f"arm `{arm.name}` was measured on {arm.state.shape[1:]} prompts, not {base.state.shape[1:]}"
            )
        for control in arm.controls:
            if control not in by_name:
                raise ValueError(f"arm `{arm.name}` is held against `{control}`, which was not measured")
    unit, written = spread(base)
    works = over_families(base.state - base.good_state).above(0) <= rules.error_rate
    moved = {arm.name: over_families(difference(base.state, arm.moved_state) / unit) for arm in arms}
    states = [_fall(arm, by_name, base, "state", unit, moved[arm.name]) for arm in arms]
    texts = [_fall(arm, by_name, base, "text", written, None) for arm in arms]
    adjusted = holm(np.array([[each.p for each in states], [each.p for each in texts]]))
    states, texts = (
        [_shown(each, p, rules) for each, p in zip(falls, row, strict=True)]
        for falls, row in zip((states, texts), adjusted, strict=True)
    )
    harms = [
        {name: over_clusters(difference(cells, base.harms[name])) for name, cells in arm.harms.items()} for arm in arms
    ]
    gaps = [ratio(arm.state - arm.good_state, _like(arm, base.state - base.good_state)) for arm in arms]
    lost = [
        over_families(difference(arm.state - arm.good_state, rules.responsiveness * (base.state - base.good_state)))
        for arm in arms
    ]
    worst = _holm_by_row(
        [
            [lack.below(0) if works else math.nan, *(mean.above(rules.margin(name)) for name, mean in own.items())]
            for lack, own in zip(lost, harms, strict=True)
        ]
    )
    found = []
    for place, arm in enumerate(arms):
        dissociation = over_families(
            difference(base.state, arm.state) / unit - difference(base.text, arm.text) / written
        )
        names = list(harms[place])
        beyond = [name for name, p in zip(names, worst[place][1:], strict=True) if p <= rules.error_rate]
        seen = _Seen(
            states[place], texts[place], dissociation, gaps[place], harms[place], beyond,
            numb=worst[place][0] <= rules.error_rate, works=works,
        )  # fmt: skip
        word, why = seen.word(rules)
        found.append(
            Verdict(
                arm.name, word, why, states[place], moved[arm.name], texts[place], dissociation, gaps[place],
                harms[place], len(arm.state),
            )
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class _Seen:
    """All that the rules ask of one arm."""

    state: Fall
    text: Fall
    dissociation: Mean
    gap: Mean
    harms: Mapping[str, Mean]
    beyond: Sequence[str]
    numb: bool
    works: bool

    def word(self, rules: RulesConfig) -> tuple[Word, str]:
        """The first rule that holds."""
        fell = self.state.shown or self.text.shown
        harmed = self.beyond or (
            [name for name, mean in self.harms.items() if mean.value > rules.margin(name) and mean.low > 0]
            if fell
            else []
        )
        if harmed:
            return "damaged", f"worse than the base model in {', '.join(harmed)}"
        if self.numb or (fell and self.gap.value < rules.responsiveness and self.gap.high < 1):
            return "numb", f"bad and good situations differ by {self.gap.value:.0%} of what they do in the base model"
        if self.state.shown and self.text.shown:
            return "calmer state and text", "both fell, below the base model and every control"
        if self.text.shown:
            if self.dissociation.high < 0:
                return "text only (suppressed)", "the text fell, and the state by less"
            return "not shown", "the text fell; whether the state fell with it is open"
        if self.state.shown:
            if self.dissociation.low > 0:
                return "state only", "the state fell, and the text by less"
            return "not shown", "the state fell; whether the text fell with it is open"
        if not self.works:
            return "not shown", "the axis does not tell bad from good situations in the base model"
        return "not shown", _lacking(self.state, self.text, rules)


def _lacking(state: Fall, text: Fall, rules: RulesConfig) -> str:
    """Why no fall is shown."""
    for what, fall in (("state", state), ("text", text)):
        if math.isfinite(fall.base.low) and fall.base.low > 0:
            short = [name for name, mean in fall.against.items() if not mean.above(0) <= rules.error_rate]
            if short:
                return f"the {what} fell below the base model, but not below {', '.join(short)}"
            if fall.base.value < rules.least_fall:
                return f"the {what} fell by less than {rules.least_fall:g} standard deviations"
    return "neither state nor text fell beyond chance"


def _fall(
    arm: ArmCells, arms: Mapping[str, ArmCells], base: ArmCells, what: str, unit: float, moved: Mean | None
) -> Fall:
    own = getattr(arm, what)
    below = over_families(difference(getattr(base, what), own) / unit)
    against = {name: over_families(-difference(own, getattr(arms[name], what)) / unit) for name in arm.controls}
    ps = [each.above(0) for each in (below, *([] if moved is None else [moved]))]
    return Fall(below, against, math.nan if any(map(math.isnan, ps)) else max(ps))


def _shown(fall: Fall, adjusted: float, rules: RulesConfig) -> Fall:
    beyond = all(mean.above(0) <= rules.error_rate for mean in fall.against.values())
    shown = adjusted <= rules.error_rate and beyond and fall.base.value >= rules.least_fall
    return Fall(fall.base, fall.against, fall.p, float(adjusted), bool(shown))


def _like(arm: ArmCells, cells: Cells) -> Cells:
    """The base model's cells, as many seeds as the arm has."""
    return cells[np.arange(len(arm.state)) % len(cells)]


def _holm_by_row(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Adjusted p-values of rows of different lengths, all of them one family."""
    flat = holm(np.array([p for row in rows for p in row])).tolist() if rows else []
    ends = np.cumsum([len(row) for row in rows])
    return [flat[end - len(row) : end] for row, end in zip(rows, ends, strict=True)]

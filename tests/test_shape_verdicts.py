"""Verdicts of arms: what was planted gets its word, and where nothing is there hardly any arm is said to be changed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from affectlens.shaping.statistics import Mean, over_clusters, over_families, ratio
from affectlens.shaping.verdicts import ArmCells, RulesConfig, Verdict, judge

FAMILIES, PROMPTS, ITEMS = 8, 6, 500
GAP = 2.0
"""Between bad and good situations in the base model, in standard deviations of bad ones."""


class World:
    """A study in which every arm's effects are known.

    Situations, and families of them, differ in level and in how much an arm moves them; trainings differ as well.
    """

    def __init__(self, seed: int, seeds: int = 3, noise: float = 0.4) -> None:
        self.draw, self.seeds, self.noise = np.random.default_rng(seed), seeds, noise
        self.level = {kind: self._cells(1, 0.7, 0.6) for kind in ("state", "text", "good")}
        self.base = self.arm("base", seeds=1)

    def _cells(self, seeds: int, family: float, prompt: float) -> np.ndarray:
        families = self.draw.normal(size=(seeds, FAMILIES, 1)) * family
        return families + self.draw.normal(size=(seeds, FAMILIES, PROMPTS)) * prompt

    def _moved(self, fall: float, seeds: int, alike: np.ndarray | None = None) -> np.ndarray:
        luck = self.draw.normal(size=(seeds, 1, 1)) * 0.1 + self._cells(1, 0.1, 0.0)
        return -fall + luck * (fall != 0 or self.uneven) + self._cells(seeds, 0.05, self.noise)

    uneven = True
    """Whether arms without an effect still move families and trainings unevenly, around nothing."""

    def arm(
        self, name: str, state: float = 0.0, text: float = 0.0, *, good: float | None = None,
        moved: float | None = None, controls: tuple[str, ...] = (), nll: float = 0.0, tasks: float = 0.0,
        seeds: int | None = None,
    ) -> ArmCells:  # fmt: skip
        """An arm whose state falls by so much in bad situations, and by ``good`` in good ones (as much by default)."""
        seeds = seeds or self.seeds
        own = self.level["state"] + self._moved(state, seeds)
        chance = self.draw.random((seeds, ITEMS))
        return ArmCells(
            name,
            state=own,
            moved_state=own + (state - moved if moved is not None else 0.0) + self._cells(seeds, 0.02, 0.1),
            text=self.level["text"] + self._moved(text, seeds),
            good_state=self.level["good"] - GAP + self._moved(state if good is None else good, seeds),
            harms={
                "nll": nll + self.draw.normal(size=(seeds, 60)) * 0.05,
                "arithmetic": -(chance < 0.6 - tasks).astype(float),
            },
            controls=controls,
        )

    def judged(self, *arms: ArmCells, rules: RulesConfig | None = None) -> dict[str, Verdict]:
        own = [self.arm("filler"), self.arm("twin", controls=("filler",)), *arms]
        return {each.arm: each for each in judge(own, self.base, rules or RulesConfig())}


HELD = ("filler", "twin")


def test_every_planted_arm_gets_its_word_and_controls_get_none():
    world = World(0)
    found = world.judged(
        world.arm("calm", 0.9, 0.9, controls=HELD),
        world.arm("bans words", 0.0, 0.9, controls=HELD),
        world.arm("hidden calm", 0.9, 0.0, controls=HELD),
        world.arm("flat", 1.2, 0.9, good=-0.8, controls=HELD),
        world.arm("calm but broken", 0.9, 0.9, nll=0.6, controls=HELD),
        world.arm("calm but stupid", 0.9, 0.9, tasks=0.3, controls=HELD),
        world.arm("axis moved", 0.9, 0.0, moved=0.0, controls=HELD),
    )
    words = {name: verdict.word for name, verdict in found.items()}
    assert words == {
        "filler": "not shown",
        "twin": "not shown",
        "calm": "calmer state and text",
        "bans words": "text only (suppressed)",
        "hidden calm": "state only",
        "flat": "numb",
        "calm but broken": "damaged",
        "calm but stupid": "damaged",
        "axis moved": "not shown",
    }
    assert "arithmetic" in found["calm but stupid"].why


def test_a_fall_that_the_random_twin_shares_is_hardly_ever_shown():
    said = []
    for seed in range(100):
        world = World(seed)
        shared = world.arm("twin2", 0.9, 0.9, controls=("filler",))
        said.append(world.judged(shared, world.arm("calm", 0.9, 0.9, controls=("filler", "twin2")))["calm"])
    assert sum(verdict.word != "not shown" for verdict in said) <= 5
    assert not any(verdict.word == "calmer state and text" for verdict in said)
    assert sum("not below twin2" in verdict.why for verdict in said) > 80


def test_an_axis_that_reads_no_situations_shows_nothing_and_makes_nobody_numb():
    world = World(2)
    blind = replace(world.base, good_state=world.base.state + world._cells(1, 0.1, 0.3))
    flat = world.arm("flat", 0.0, 0.0, good=-GAP)
    [verdict] = judge([flat], blind, RulesConfig())
    assert verdict.word == "not shown"
    assert "does not tell bad from good" in verdict.why


def test_one_text_for_all_situations_shows_no_fall_of_the_text():
    world = World(3)
    silent = replace(world.base, text=np.zeros_like(world.base.text))
    [verdict] = judge([replace(world.arm("calm", 0.9), text=np.zeros((3, FAMILIES, PROMPTS)))], silent, RulesConfig())
    assert not verdict.text.shown and math.isnan(verdict.text.p)
    assert verdict.word == "not shown" and "whether the text fell" in verdict.why


def test_a_control_or_prompts_that_are_not_there_are_refused():
    world = World(4)
    with pytest.raises(ValueError, match="held against `twin`, which was not measured"):
        judge([world.arm("calm", controls=("twin",))], world.base, RulesConfig())
    short = replace(world.arm("calm"), state=np.zeros((3, FAMILIES, PROMPTS - 1)))
    with pytest.raises(ValueError, match=r"measured on \(8, 5\) prompts"):
        judge([short], world.base, RulesConfig())


def said(studies: int, seeds: int) -> tuple[float, float]:
    """Share of arms of which something is said, and of studies with such an arm, among eight arms and two controls."""
    arms, whole = 0, 0
    for seed in range(studies):
        world = World(100 + seed, seeds)
        found = world.judged(*(world.arm(f"arm {n}", controls=HELD) for n in range(8)))
        hits = sum(verdict.word != "not shown" for verdict in found.values())
        arms, whole = arms + hits, whole + bool(hits)
    return arms / (10 * studies), whole / studies


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_where_nothing_is_there_at_most_five_in_a_hundred_verdicts_say_anything(seeds: int):
    verdicts, studies = said(200, seeds)
    assert verdicts <= 0.05
    # What one training moves by luck cannot be told from what its recipe does; three trainings tell.
    assert studies <= (0.2 if seeds == 1 else 0.05)


def found(fall: float) -> float:
    """Share of arms with such a fall of both that are called calmer, eight of them in a study."""
    hits = 0
    for seed in range(60):
        world = World(500 + seed)
        verdicts = world.judged(*(world.arm(f"arm {n}", fall, fall, controls=HELD) for n in range(8)))
        hits += sum(verdicts[f"arm {n}"].word == "calmer state and text" for n in range(8))
    return hits / 480


@pytest.mark.slow
def test_falls_of_a_standard_deviation_are_mostly_found():
    assert found(0.6) > 0.6
    assert found(0.9) > 0.8


def test_intervals_over_families_and_seeds_cover():
    draw, hits = np.random.default_rng(0), 0
    for _ in range(400):
        cells = draw.normal(size=(3, 1, 1)) * 0.3 + draw.normal(size=(1, 8, 1)) * 0.5 + draw.normal(size=(3, 8, 6))
        mean = over_families(cells)
        hits += mean.low <= 0 <= mean.high
    assert 0.93 <= hits / 400 <= 1.0


def test_p_and_interval_agree_and_degenerate_cells_are_told():
    cells = np.random.default_rng(1).normal(0.5, 1, (2, 9))
    mean = over_clusters(cells)
    half = mean.value - mean.low
    assert mean.above(mean.value - half) == pytest.approx(0.025, abs=1e-9)
    assert mean.below(mean.value + half) == pytest.approx(0.025, abs=1e-9)
    assert over_clusters(np.full((2, 4), 0.3)).above(0) == 0.0
    assert over_clusters(np.full((2, 4), 0.0)).above(0) == 1.0
    assert math.isnan(over_clusters(np.ones((1, 1))).low)
    assert math.isnan(over_clusters(np.full((2, 3), np.nan)).value)
    with pytest.raises(ValueError, match="one row a seed"):
        over_clusters(np.zeros(3))


def test_a_ratio_has_the_interval_of_its_parts():
    draw = np.random.default_rng(2)
    below = 2 + draw.normal(size=(1, 8, 6)) * 0.3
    half = ratio(0.5 * below, below)
    assert half.value == pytest.approx(0.5) and half.high - half.low == pytest.approx(0, abs=1e-9)
    rough = ratio(0.5 * below + draw.normal(size=(1, 8, 6)) * 0.5, below)
    assert rough.low < 0.5 < rough.high
    assert math.isnan(ratio(below, np.zeros_like(below)).value)
    assert isinstance(half, Mean)

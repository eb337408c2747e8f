"""States along transcripts, beside texts, under masks, between models and under framings: planted truths and nulls."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from affectlens.experiments.results import Measured
from affectlens.results.figures import Finding
from synthetic_measurements import (
    AROUSAL,
    CONCEPTS,
    FAST,
    FAST_STEERING,
    WIDTH,
    completions,
    experiment,
    grid,
    manipulation,
    measured,
    run,
    scenario,
)


def shown(draws: list[Finding]) -> int:
    return sum(finding.verdict == "shown" for finding in draws)


# ---- trajectory -----------------------------------------------------------------------------------------------------

PLACES = ("start", "fail1", "fail2")


def transcripts(
    rise: float, twin: float | None = 0.0, groups: int = 10, seed: int = 0, concepts=("+desperate",)
) -> Measured:
    """The reading of desperate rises by so much from the first place to the last."""
    generator = np.random.default_rng(seed)
    conditions = ["main"] if twin is None else ["main", "solvable"]
    rows = [(group, each) for group in range(groups) for each in conditions]
    names = (*CONCEPTS, *(f"other{i}" for i in range(20)))
    readings = {name: generator.normal(size=(1, len(rows), len(names))) * 0.5 for name in PLACES}
    for index, (_, condition) in enumerate(rows):
        change = rise if condition == "main" else twin or 0.0
        for step, name in enumerate(PLACES):
            readings[name][0, index, CONCEPTS.index("desperate")] += change * step / 2
    what = experiment(
        [scenario(i, f"g{group}", each) for i, (group, each) in enumerate(rows)],
        [
            {
                "kind": "trajectory",
                "readings": PLACES,
                "concepts": concepts,
                "twin": "solvable" if twin is not None else "",
            }
        ],
        readings=[{"name": name} for name in PLACES],
    )
    return measured(what, readings, concepts=names)


class TestTrajectory:
    def test_a_planted_rise(self) -> None:
        finding = run(transcripts(2.0, groups=40))
        assert finding.verdict == "shown"
        # Half a unit is one standard deviation.
        assert finding.metrics["change_desperate"] == pytest.approx(4.0, abs=0.8)

    def test_the_claimed_direction_counts(self) -> None:
        assert run(transcripts(-2.0)).verdict != "shown"
        assert run(transcripts(-2.0, concepts=("-desperate",))).verdict == "shown"

    def test_without_a_claimed_direction_it_is_described(self) -> None:
        assert run(transcripts(2.0, concepts=("desperate", "calm"))).verdict == "described"

    def test_a_rise_of_transcripts_that_go_well_is_taken_off(self) -> None:
        assert run(transcripts(2.0, twin=2.0)).verdict != "shown"

    def test_a_rise_of_every_concept_is_none_of_this_one(self) -> None:
        seen = transcripts(0.0)
        seen.readings["fail2"][0, ::2] += 2.0
        assert run(seen).verdict != "shown"

    def test_too_few_other_concepts(self) -> None:
        seen = transcripts(2.0)
        few = {name: values[..., : len(CONCEPTS)] for name, values in seen.readings.items()}
        assert run(replace(seen, concepts=CONCEPTS, readings=few)).verdict == "untestable"

    def test_nothing_planted_nothing_shown(self) -> None:
        assert shown([run(transcripts(0.0, seed=seed)) for seed in range(60)]) <= 3

    def test_missing_twins_and_places(self) -> None:
        seen = transcripts(2.0)
        alone = experiment(
            [replace(each, condition="main") for each in seen.scenarios],
            seen.experiment.config.model_dump()["analyses"],
            readings=[{"name": name} for name in PLACES],
        )
        assert run(replace(seen, experiment=alone)).verdict == "untestable"
        assert run(transcripts(2.0, groups=1)).verdict == "untestable"
        assert run(transcripts(2.0, twin=None)).verdict == "shown"
        gone = {name: np.full_like(values, np.nan) for name, values in seen.readings.items()}
        assert run(replace(seen, readings=gone)).verdict == "untestable"


# ---- dissociation ---------------------------------------------------------------------------------------------------


def answers(
    together: float, apart: float = 0.0, seed: int = 0, controls: int = 21, scenarios: int = 16, **asked
) -> Measured:
    """State and text share a part ``together``; pushing desperate up moves the state alone by ``apart``."""
    generator = np.random.default_rng(seed)
    cells = grid(["desperate"], (-0.1, 0.1), controls)
    seen = completions(cells, scenarios, lambda *_: "said", 3, seed)
    common = generator.normal(size=(len(seen), len(CONCEPTS)))
    state, text = (together * common + (1 - together) * generator.normal(size=common.shape) for _ in range(2))
    pushed = np.array(
        [cells[each.condition].vector == "desperate" and cells[each.condition].strength > 0 for each in seen]
    )
    state[:, CONCEPTS.index("desperate")] += apart * pushed
    what = experiment(
        [scenario(i, f"g{i}") for i in range(scenarios)],
        [{"kind": "dissociation", "concepts": ["desperate", "calm", "happy", "angry"]} | asked],
    )
    return measured(
        what,
        cells=cells,
        completions=seen,
        completion_state=state,
        completion_text=text,
        completion_words=np.zeros_like(text),
    )


class TestDissociation:
    def test_state_and_text_that_agree_until_one_is_pushed(self) -> None:
        finding = run(answers(0.9, apart=8.0))
        assert finding.verdict == "shown"
        assert finding.metrics["r_text"] > 0.9 and finding.metrics["parted"] < 0.35
        assert finding.metrics["p_agreement"] < 0.01
        assert finding.metrics["conditions_shown"] == 1

    def test_state_and_text_that_have_nothing_in_common(self) -> None:
        finding = run(answers(0.0))
        assert finding.metrics["parted"] == pytest.approx(0.75, abs=0.12)
        assert abs(finding.metrics["r_text"]) < 0.25 and finding.metrics["p_agreement"] > 0.05
        assert finding.verdict != "shown"

    def test_nothing_planted_nothing_shown(self) -> None:
        assert shown([run(answers(0.6, seed=seed, scenarios=8, **FAST_STEERING)) for seed in range(20)]) <= 1

    def test_few_controls_failed_checks_and_nothing_read(self) -> None:
        seen = answers(0.9, apart=8.0, controls=12)
        assert run(seen).verdict == "untestable"
        failed = replace(seen, manipulation=manipulation(seen.grid, moves=()))
        assert run(failed).verdict == "untestable"
        assert run(replace(seen, completion_state=None)).verdict == "untestable"
        assert seen.completion_text is not None
        assert run(replace(seen, completion_text=np.full_like(seen.completion_text, np.nan))).verdict == "untestable"

    def test_without_steering_it_is_described(self) -> None:
        seen = answers(0.9)
        plain = [each.condition == 0 for each in seen.completions]
        assert seen.completion_state is not None and seen.completion_text is not None
        finding = run(
            replace(
                seen,
                completions=tuple(each for each in seen.completions if each.condition == 0),
                completion_state=seen.completion_state[plain],
                completion_text=seen.completion_text[plain],
                completion_words=None,
            )
        )
        assert finding.verdict == "described"


# ---- concealed emotion ----------------------------------------------------------------------------------------------


def masked(inside: float, outside: float, noise: float = 0.5, groups: int = 8, seed: int = 0, **asked) -> Measured:
    """Masked emotions that move the residual along the story direction and along one of their own outside the space."""
    generator = np.random.default_rng(seed)
    names = [CONCEPTS[i] for i in (0, 2, 4, 8)]
    rows = [(group, hidden, shown) for group in range(groups) for hidden in names for shown in names]
    scenarios = [scenario(i, f"g{group}", masked=hidden, shown=shown) for i, (group, hidden, shown) in enumerate(rows)]
    seen = measured(
        experiment(
            scenarios,
            [{"kind": "concealed_emotion", "reading": "answer"} | asked],
            readings=[{"name": "answer", "keep_residual": True}],
        ),
        seed=seed,
    )
    space = seen.directions
    apart = generator.normal(size=(len(names), WIDTH))
    apart -= apart @ space.T @ space
    apart /= np.linalg.norm(apart, axis=1, keepdims=True)
    residual = noise * generator.normal(size=(len(rows), WIDTH))
    for index, (group, hidden, displayed) in enumerate(rows):
        residual[index] += inside * space[CONCEPTS.index(hidden)] + outside * apart[names.index(hidden)]
        residual[index] += 2 * space[CONCEPTS.index(displayed)] + 0.1 * group
    return replace(seen, residuals={"answer": residual})


class TestConcealedEmotion:
    def test_directions_apart_from_the_story_space(self) -> None:
        finding = run(masked(0.0, 2.0))
        assert finding.verdict == "shown"
        assert finding.metrics["auroc_masked"] > 0.9
        assert finding.metrics["outside"] == pytest.approx(1.0, abs=0.1)
        assert abs(finding.metrics["cosine"]) < 0.2

    def test_the_share_outside_is_free_of_noise(self) -> None:
        """Equal parts inside and outside are one half, though noise lies mostly outside."""
        finding = run(masked(1.0, 1.0, noise=1.0))
        assert finding.metrics["outside"] == pytest.approx(0.5, abs=0.12)
        assert finding.metrics["outside_raw"] > finding.metrics["outside"] + 0.03

    def test_masked_as_expressed(self) -> None:
        finding = run(masked(2.0, 0.0))
        assert finding.verdict == "not shown"
        assert finding.metrics["outside"] == pytest.approx(0.0, abs=0.1)
        assert finding.metrics["cosine"] > 0.8

    def test_nothing_planted_nothing_shown(self) -> None:
        """Noise alone lies outside the space: that must not count."""
        draws = [run(masked(0.0, 0.0, seed=seed, draws=100, permutations=39)) for seed in range(15)]
        assert shown(draws) == 0
        assert all(finding.metrics["outside_raw"] > 0.5 for finding in draws)

    def test_the_displayed_emotion_is_not_taken_for_the_masked_one(self) -> None:
        finding = run(masked(0.0, 0.0))
        assert finding.metrics["auroc_masked"] < 0.65

    def test_no_residuals_and_nothing_masked(self) -> None:
        seen = masked(0.0, 2.0)
        assert run(replace(seen, residuals={})).verdict == "untestable"
        assert run(masked(0.0, 2.0, groups=2)).verdict == "untestable"


# ---- model difference -----------------------------------------------------------------------------------------------


def models(
    by_arousal: float, common: float = 0.0, prompts: int = 20, seed: int = 0, noise: float = 0.3, **asked
) -> Measured:
    generator = np.random.default_rng(seed)
    first = generator.normal(size=(prompts, len(CONCEPTS)))
    profile = by_arousal * (AROUSAL - AROUSAL.mean()) + common
    second = first + profile + noise * generator.normal(size=first.shape)
    what = experiment(
        [scenario(i, f"g{i}") for i in range(prompts)], [{"kind": "model_difference", "reading": "answer"} | asked]
    )
    return measured(what, {"answer": first[None]}, against={"answer": second})


class TestModelDifference:
    def test_a_planted_profile(self) -> None:
        finding = run(models(-0.2))
        assert finding.verdict == "described"
        assert finding.metrics["r_arousal"] == pytest.approx(-1.0, abs=0.05)
        assert finding.metrics["shift_angry"] == pytest.approx(-0.2 * (7.5 - AROUSAL.mean()), abs=0.25)
        assert finding.metrics["split_half"] > 0.9 and finding.metrics["sign_agreement"] > 0.7

    def test_a_claimed_relation_is_tested(self) -> None:
        assert run(models(-0.2, falls_with=["arousal"])).verdict == "shown"
        assert run(models(0.2, falls_with=["arousal"])).verdict != "shown"

    def test_what_the_study_put_in_is_planted_and_not_shown(self) -> None:
        tuned = replace(models(-0.2, falls_with=["arousal"]), tuned=("calm", "tired"))
        assert run(tuned).verdict == "planted"
        assert run(replace(models(0.2, falls_with=["arousal"]), tuned=("calm",))).verdict != "planted"

    def test_no_difference(self) -> None:
        draws = [run(models(0.0, seed=seed, falls_with=["arousal"], **FAST)) for seed in range(60)]
        assert shown(draws) <= 3
        shifted = [finding.metrics["concepts_shifted"] for finding in draws]
        assert np.mean(np.array(shifted) > 0) <= 0.15

    def test_the_same_model_twice(self) -> None:
        finding = run(models(0.0, noise=0.0))
        assert finding.metrics["concepts_shifted"] == 0 and finding.verdict == "not shown"

    def test_no_second_model_and_one_prompt(self) -> None:
        assert run(replace(models(-0.2), against={})).verdict == "untestable"
        assert run(models(-0.2, prompts=1)).verdict == "untestable"

    def test_unrated_concepts_are_left_out_of_the_correlation(self) -> None:
        seen = models(-0.2)
        ratings = {name: values.copy() for name, values in seen.ratings.items()}
        ratings["arousal"][:3] = np.nan
        ratings["valence"][:] = np.nan
        finding = run(replace(seen, ratings=ratings))
        assert "r_valence" not in finding.metrics


# ---- accuracy -------------------------------------------------------------------------------------------------------


def tasks(change: float, carried: bool = True, count: int = 60, seed: int = 0, **asked) -> Measured:
    """Urgent framing changes the log-odds by ``change``, through the reading of afraid or beside it."""
    generator = np.random.default_rng(seed)
    rows = [(task, framing) for task in range(count) for framing in ("neutral", "urgent", "kind")]
    urgent = np.array([framing == "urgent" for _, framing in rows], dtype=float)
    readings = generator.normal(size=(len(rows), len(CONCEPTS)))
    moved = urgent * 2 + generator.normal(size=len(rows))
    readings[:, 0] = moved
    ease = np.repeat(generator.normal(size=count) + 0.5, 3)
    choice = ease + change * (moved / 2 if carried else urgent) + 0.2 * generator.normal(size=len(rows))
    what = experiment(
        [scenario(i, f"t{task}", framing=framing) for i, (task, framing) in enumerate(rows)],
        [{"kind": "accuracy", "reading": "answer"} | asked],
    )
    return measured(what, {"answer": readings[None]}, choice=choice[None])


def indirect(finding: Finding) -> dict[tuple[str, str], tuple[tuple[float, float, float], float]]:
    return {(framing, concept): (tuple(value[:3]), p) for framing, concept, value, p in finding.tables[1].rows}


class TestAccuracy:
    def test_a_change_that_a_reading_carries(self) -> None:
        finding = run(tasks(-2.0))
        assert finding.verdict == "shown"
        assert finding.metrics["change_urgent"] < -0.25
        (_, low, high), p = indirect(finding)["urgent", "afraid"]
        assert low < -2.0 < high and p < 0.05

    def test_a_change_beside_the_reading(self) -> None:
        finding = run(tasks(-2.0, carried=False))
        (_, low, high), p = indirect(finding)["urgent", "afraid"]
        assert finding.verdict == "shown"
        assert low < 0 < high and p > 0.05

    def test_nothing_planted_nothing_shown(self) -> None:
        draws = [run(tasks(0.0, seed=seed, **FAST)) for seed in range(60)]
        assert sum(finding.verdict == "not shown" for finding in draws) >= 55
        assert shown(draws) <= 4

    def test_sampled_answers_stand_in_for_a_choice(self) -> None:
        seen = tasks(0.0, count=30)

        def grade(cell, number, generator):
            right = generator.random() < (0.2 if number % 3 == 1 else 0.8)
            return {"label": "right" if right else "wrong", "score": float(right), "reason": ""}

        finding = run(replace(seen, choice=None, completions=completions(seen.grid, 90, grade, 12)))
        assert finding.metrics["change_urgent"] == pytest.approx(-0.6, abs=0.15)

    def test_ceilings_and_missing_baselines(self) -> None:
        seen = tasks(0.0)
        assert seen.choice is not None
        assert run(replace(seen, choice=np.abs(seen.choice) + 1)).metrics["right_neutral"] == 1.0
        other = [replace(each, factors={"framing": "urgent"}) for each in seen.scenarios]
        alone = experiment(other, [{"kind": "accuracy", "reading": "answer"}])
        assert run(replace(seen, experiment=alone)).verdict == "untestable"
        assert run(replace(seen, choice=None)).verdict == "untestable"
        assert run(tasks(-2.0, count=1)).verdict == "untestable"
        assert run(replace(seen, choice=seen.choice * math.nan)).verdict == "untestable"

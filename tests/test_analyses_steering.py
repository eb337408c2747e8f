"""Steering claims: what is planted is found at its size, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from affectlens.experiments.conclude import pushes
from affectlens.experiments.conclude.dose import Dose
from affectlens.experiments.conclude.rate import Rate, kappa
from affectlens.experiments.results import Measured
from affectlens.interventions.conditions import Condition
from affectlens.results.figures import Finding
from synthetic_measurements import (
    CONCEPTS,
    FAMILIES,
    FAST_STEERING,
    ORDERS,
    Steered,
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


def reasons(finding: Finding) -> dict[str, str]:
    """Why each claimed vector got its verdict."""
    (table,) = (table for table in finding.tables if table.title == "Claimed vectors")
    return {row[0]: row[-1] for row in table.rows}


# ---- dose -----------------------------------------------------------------------------------------------------------

RAISES: dict[str, Any] = {"kind": "dose", "conditions": ["main"], "raises": ["desperate"]}
QUICK = RAISES | FAST_STEERING


class TestDose:
    def test_planted_slopes_are_found_at_their_size(self) -> None:
        planted = Steered({"desperate": 20, "calm": -20})
        finding = run(planted.choices(RAISES | {"lowers": ["calm"]}))
        assert finding.verdict == "shown"
        assert finding.metrics["effect_desperate"] == pytest.approx(2.0, abs=0.15)
        assert finding.metrics["effect_calm"] == pytest.approx(-2.0, abs=0.15)
        assert finding.metrics["p_desperate"] == pytest.approx(1 / 43)
        assert finding.metrics["asked"] == pytest.approx(3.0, abs=0.6)

    def test_both_sides_of_a_push_are_given(self) -> None:
        (row,) = run(Steered({"desperate": 20}, bend={"desperate": 100}).choices(RAISES)).tables[-1].rows
        assert row[3][0] == pytest.approx(3.0, abs=0.2) and row[4][0] == pytest.approx(-1.0, abs=0.2)

    def test_the_claimed_sign_counts(self) -> None:
        finding = run(Steered({"desperate": -20}).choices(RAISES))
        assert finding.verdict == "not shown"

    def test_an_effect_no_larger_than_that_of_random_vectors_is_not_shown(self) -> None:
        finding = run(Steered({"desperate": 20}, wobble=20).choices(RAISES | {"matters": 9.0}))
        assert finding.metrics["effect_desperate_low"] > 0
        assert finding.verdict == "not shown"

    def test_nothing_planted_nothing_shown(self) -> None:
        planted = Steered({"desperate": 0, "calm": 0})
        both = QUICK | {"lowers": ["calm"]}
        draws = [run(planted.choices(both, seed), seed) for seed in range(100)]
        assert sum(finding.verdict == "not shown" for finding in draws) >= 95

    def test_vectors_like_controls_are_rarely_shown(self) -> None:
        """Random vectors that do move the choice: what a claim about one of them would be worth."""
        draws = []
        for seed in range(100):
            slope = float(np.random.default_rng(1000 + seed).normal() * 10)
            draws.append(run(Steered({"desperate": slope}, wobble=10).choices(QUICK, seed), seed))
        assert shown(draws) <= 5

    def test_emotions_that_all_move_the_choice_say_nothing_of_one_of_them(self) -> None:
        """Emotion vectors three times as strong as random ones: the claimed one is like the wrong ones."""
        draws = []
        for seed in range(100):
            slope = float(np.random.default_rng(2000 + seed).normal() * 15)
            planted = Steered({"desperate": slope}, wobble=5, emotions=3.0, controls=40)
            draws.append(run(planted.choices(QUICK, seed), seed))
        assert shown(draws) <= 7

    def test_the_same_effect_in_the_harmless_twin_is_no_effect(self) -> None:
        asked = RAISES | {"twin": "twin"}
        specific = run(Steered({"desperate": 20}, {"desperate": 0}).choices(asked))
        general = run(Steered({"desperate": 20}, {"desperate": 20}).choices(asked))
        assert specific.verdict == "shown"
        assert specific.metrics["beyond_twin_desperate"] == pytest.approx(2.0, abs=0.2)
        assert general.verdict == "not shown"
        assert general.metrics["effect_desperate_low"] > 1

    def test_a_missing_twin_is_untestable(self) -> None:
        finding = run(Steered({"desperate": 20}).choices(RAISES | {"twin": "twin"}))
        assert finding.verdict == "untestable" and "twin" in reasons(finding)["desperate"]

    def test_what_was_not_measured_is_not_called_incoherent(self) -> None:
        seen = Steered({"desperate": 20}).choices(RAISES)
        assert seen.choice is not None
        unseen = seen.choice.copy()
        unseen[[cell.family == "concept" for cell in seen.grid]] = np.nan
        finding = run(replace(seen, choice=unseen))
        assert finding.verdict == "untestable" and "measured" in reasons(finding)["desperate"]

    def test_a_failed_manipulation_check_is_untestable(self) -> None:
        cells = grid(["desperate"])
        finding = run(Steered({"desperate": 20}).choices(RAISES, manipulation=manipulation(cells, moves=())))
        assert finding.verdict == "untestable" and "manipulation" in reasons(finding)["desperate"]

    def test_the_check_compares_the_same_words(self) -> None:
        """What controls do to other words does not matter, what they do to these does."""
        cells = grid(["desperate"])
        controls = [cell.family not in ("none", "concept") for cell in cells]
        signs = np.sign([cell.strength for cell in cells])
        for concept, verdict in (("proud", "shown"), ("desperate", "untestable")):
            moved = manipulation(cells)
            moved["rises"][controls, CONCEPTS.index(concept)] = 9 * signs[controls]
            assert run(Steered({"desperate": 20}).choices(RAISES, manipulation=moved)).verdict == verdict

    def test_a_vector_that_moves_its_words_as_wrong_emotions_do_fails_the_check(self) -> None:
        """Random vectors that move no words at all do not make an emotion of it."""
        moved = manipulation(grid(["desperate"]))
        others = np.arange(len(CONCEPTS)) != CONCEPTS.index("desperate")
        moved["vectors"][others, :, CONCEPTS.index("desperate")] = 25 * np.array([0.1, -0.1])
        finding = run(Steered({"desperate": 20}).choices(RAISES, manipulation=moved))
        assert finding.verdict == "untestable" and "wrong emotions" in reasons(finding)["desperate"]

    def test_the_check_keeps_its_level_for_vectors_of_wrong_emotions(self) -> None:
        """Emotions move emotion words three times as far as random vectors do; whose they are is what is checked."""
        cells, passed = grid(["desperate"], controls=40), []
        seen = Steered({"desperate": 20}, controls=40).choices(RAISES)
        for seed in range(200):
            generator, moved = np.random.default_rng(seed), manipulation(cells)
            slopes = 3 * generator.normal(size=(len(CONCEPTS), len(CONCEPTS)))
            moved["vectors"] = slopes[:, None] * np.array([0.1, -0.1])[:, None]
            random = {(c.family, c.vector): generator.normal(size=len(CONCEPTS)) for c in cells}
            for index, cell in enumerate(cells):
                own = slopes[3] if cell.family == "concept" else random[cell.family, cell.vector]
                moved["rises"][index] = own * cell.strength
            check = pushes.manipulation(replace(seen, manipulation=moved), "desperate", Dose())
            passed.append(not check.reason)
        assert CONCEPTS[3] == "desperate" and np.mean(passed) <= 0.08

    def test_effects_outside_the_coherence_window_do_not_count(self) -> None:
        planted, cells = Steered({"desperate": 20}), grid(["desperate"])
        nowhere = run(planted.choices(RAISES, manipulation=manipulation(cells, limit=0.01)))
        small = run(planted.choices(RAISES, manipulation=manipulation(cells, limit=0.05)))
        wide = run(planted.choices(RAISES | {"perplexity_limit": 10}, manipulation=manipulation(cells, limit=0.01)))
        assert nowhere.verdict == "untestable"
        assert small.metrics["effect_desperate"] == pytest.approx(1.0, abs=0.15)
        assert wide.verdict == "shown"

    def test_too_few_controls_cannot_show_anything(self) -> None:
        assert run(Steered({"desperate": 20}, controls=12).choices(RAISES)).verdict == "untestable"
        assert run(Steered({"desperate": 20}, controls=12).choices(RAISES | {"least_controls": 12})).verdict == "shown"

    def test_every_further_claim_costs(self) -> None:
        names = ["desperate", "sad"]
        seen = Steered({name: 8.0 * (name == "desperate") for name in names}).choices(RAISES | {"raises": names}, 7)
        together = run(seen)
        alone = run(replace(seen, experiment=replace(seen.experiment, config=_asks(seen, RAISES))))
        ratio = together.metrics["p_adjusted_desperate"] / alone.metrics["p_adjusted_desperate"]
        assert ratio == pytest.approx(2)

    def test_all_claims_or_any(self) -> None:
        seen = Steered({"desperate": 20, "sad": 0}).choices(RAISES | {"raises": ["desperate", "sad"]})
        any_of = _asks(seen, RAISES | {"raises": ["desperate", "sad"], "rule": "any"})
        assert run(seen).verdict == "not shown"
        assert run(replace(seen, experiment=replace(seen.experiment, config=any_of))).verdict == "shown"

    def test_a_bend_is_told_from_a_line(self) -> None:
        bent = Steered({"angry": 0}, bend={"angry": -200}, wobble=0.5)
        straight = Steered({"angry": 20}, wobble=0.5)
        asked = {"kind": "dose", "bend": ["angry"]}
        peak, line = run(bent.choices(asked)), run(straight.choices(asked))
        assert peak.verdict == "shown"
        assert peak.metrics["bend_angry"] == pytest.approx(-2.0, abs=0.2)
        assert line.verdict == "not shown"

    def test_bends_are_not_found_in_noise(self) -> None:
        planted = Steered({"angry": 0}, groups=8)
        asked = {"kind": "dose", "bend": ["angry"]} | FAST_STEERING
        assert shown([run(planted.choices(asked, seed)) for seed in range(40)]) <= 2

    def test_few_noisy_groups_are_untestable_not_a_null(self) -> None:
        finding = run(Steered({"desperate": 0}, groups=6, noise=3).choices(RAISES))
        assert finding.verdict == "untestable"
        assert finding.metrics["power_desperate"] > Dose().matters

    def test_one_scenario_and_no_choice(self) -> None:
        assert run(Steered({"desperate": 20}, groups=1).choices(RAISES)).verdict == "untestable"
        assert run(Steered({"desperate": 20}).choices(RAISES, choice=None)).verdict == "untestable"

    def test_scenarios_without_options_are_left_out(self) -> None:
        seen = Steered({"desperate": 20}).choices(RAISES)
        assert seen.choice is not None
        holes = seen.choice.copy()
        holes[:, 3] = np.nan
        assert run(replace(seen, choice=holes)).verdict == "shown"
        assert run(replace(seen, choice=np.full_like(holes, np.nan))).verdict == "untestable"

    def test_damage_by_both_signs_is_no_push(self) -> None:
        """What raises the target whichever way it is pushed says nothing of the concept."""
        finding = run(Steered({"desperate": 0}, bend={"desperate": 200}).choices(RAISES))
        assert finding.verdict == "not shown"
        assert abs(finding.metrics["effect_desperate"]) < 0.2

    def test_the_unit_is_that_of_the_choice(self) -> None:
        seen = Steered({"desperate": 20}).choices(RAISES)
        per_token = seen.experiment.config.model_copy(update={"outcomes": (_choice(seen, per_token=True),)})
        whole, token = run(seen), run(replace(seen, experiment=replace(seen.experiment, config=per_token)))
        assert "target_probability" in whole.metrics and "target_probability" not in token.metrics
        assert "nats a token" in token.tables[0].columns[2]
        assert not any("log-odds" in sentence for sentence in token.sentences)

    def test_unclaimed_steering_is_described(self) -> None:
        assert run(Steered({"desperate": 20}).choices({"kind": "dose"})).verdict == "described"


def _asks(seen: Measured, analysis: dict[str, Any]) -> Any:
    return experiment(seen.scenarios, [analysis], outcomes=[_choice(seen)]).config


def _choice(seen: Measured, **values: Any) -> Any:
    return seen.experiment.config.outcomes[0].model_copy(update=values)


class TestPositiveControl:
    def test_an_outcome_that_follows_no_order_can_test_nothing(self) -> None:
        for order in (None, 0.0, -3.0):
            finding = run(Steered({"desperate": 20}, order=order).choices(RAISES))
            assert finding.verdict == "untestable"
            assert finding.metrics["effect_desperate"] == pytest.approx(2.0, abs=0.15)

    def test_an_irrelevant_sentence_that_moves_it_as_far_takes_it_away(self) -> None:
        for aside, verdict in ((0.0, "shown"), (5.0, "untestable"), (-5.0, "untestable")):
            finding = run(Steered({"desperate": 20}, irrelevant=aside).choices(RAISES))
            assert finding.verdict == verdict
            assert finding.metrics["prompt_irrelevant"] == pytest.approx(aside, abs=1.2)

    def test_effects_are_in_units_of_what_asking_does(self) -> None:
        finding = run(Steered({"desperate": 20}).choices(RAISES))
        assert finding.metrics["share_of_asking_desperate"] == pytest.approx(2 / 3, abs=0.15)

    def test_a_null_says_what_it_excludes(self) -> None:
        """Where a fifth of what asking does is excluded, a null is one, however small an effect is said to matter."""
        asked = RAISES | {"matters": 0.0}
        tight, loose = (run(Steered({"desperate": 0}, noise=noise).choices(asked)) for noise in (0.2, 3.0))
        assert tight.verdict == "not shown" and tight.metrics["excluded_desperate"] < 0.2
        assert loose.verdict == "untestable" and loose.metrics["excluded_desperate"] > 0.2

    def test_a_description_needs_none(self) -> None:
        assert run(Steered({"desperate": 20}, order=None).choices({"kind": "dose"})).verdict == "described"


class TestPower:
    def test_it_is_that_of_the_verdict(self) -> None:
        """An effect of the stated size, planted anew, is shown in about 80 of 100 experiments."""
        stated = np.median([self.outcome(0.0, seed)[1] for seed in range(10)])
        found = [self.outcome(float(stated), 100 + seed)[0] for seed in range(60)]
        assert 0.6 <= np.mean(found) <= 0.97
        assert np.mean([self.outcome(float(stated) / 3, 100 + seed)[0] for seed in range(30)]) < 0.5

    @staticmethod
    def outcome(effect: float, seed: int) -> tuple[bool, float]:
        planted = Steered({"desperate": 10 * effect}, wobble=2.0, noise=0.3)
        finding = run(planted.choices(QUICK | {"planted": 100}, seed), seed)
        return finding.verdict == "shown", finding.metrics["power_desperate"]


# ---- rate -----------------------------------------------------------------------------------------------------------

RATE: dict[str, Any] = {"kind": "rate", "label": "cheat", "raises": ["desperate"]}


def rates(
    chance: Callable[[Condition, np.random.Generator], Any],
    asked: dict[str, Any] | None = None,
    scenarios: int = 30,
    samples: int = 4,
    controls: int = 21,
    order: bool = True,
) -> Measured:
    """Sampled answers, with scenarios that ask for the label outright and against it."""
    cells = grid(["desperate"], (-0.1, 0.1))
    conditions = ("main", *(ORDERS if order else ()))
    names = [scenario(0, f"g{i}", condition) for i in range(scenarios) for condition in conditions]
    names = [replace(each, id=f"s{number}") for number, each in enumerate(names)]
    what = experiment(names, [asked or RATE])

    def grade(cell: Condition, number: int, generator: np.random.Generator) -> Any:
        if names[number].condition == "main":
            return chance(cell, generator)
        return "cheat" if names[number].condition == ORDERS[0] else "honest"

    answers = completions(cells, len(names), grade, samples)
    rolled = [cell.family in ("none", "concept") or place(cell) < controls for cell in cells]
    return measured(what, cells=cells, completions=tuple(each for each in answers if rolled[each.condition]))


def place(cell: Condition) -> int:
    """Which of the controls of its strength a control is."""
    return len(FAMILIES) * int(cell.vector) + FAMILIES.index(cell.family)


def cheats(up: float, down: float, usual: float = 0.3) -> Callable[[Condition, np.random.Generator], str]:
    def chance(cell: Condition, generator: np.random.Generator) -> str:
        rate = usual
        if cell.family == "concept":
            rate = up if cell.strength > 0 else down
        return "cheat" if generator.random() < rate else "honest"

    return chance


class TestRate:
    def test_planted_rates(self) -> None:
        finding = run(rates(cheats(0.9, 0.05)))
        assert finding.verdict == "shown"
        assert finding.metrics["effect_desperate"] == pytest.approx(0.425, abs=0.08)
        assert finding.metrics["rate_unsteered"] == pytest.approx(0.3, abs=0.12)

    def test_nothing_planted_nothing_shown(self) -> None:
        assert run(rates(cheats(0.3, 0.3), RATE | FAST_STEERING)).verdict == "not shown"

    def test_always_and_never(self) -> None:
        always = run(rates(lambda cell, _: "cheat"))
        never = run(rates(lambda cell, _: "honest"))
        assert always.metrics["rate_unsteered"] == 1.0 and never.metrics["rate_unsteered"] == 0.0
        assert always.metrics["rate_unsteered_low"] < 1.0 and never.metrics["rate_unsteered_high"] > 0.0
        assert {always.verdict, never.verdict} == {"not shown"}

    def test_without_a_positive_control_it_could_not_be_tested(self) -> None:
        assert run(rates(cheats(0.9, 0.05), order=False)).verdict == "untestable"
        assert run(rates(lambda cell, _: "honest", order=False)).verdict == "untestable"

    def test_two_controls_are_too_few(self) -> None:
        finding = run(rates(cheats(0.9, 0.05), controls=2))
        assert finding.verdict == "untestable" and reasons(finding)["desperate"] == "too few controls"

    def test_answers_without_a_grade_are_reported_and_left_out(self) -> None:
        def half(cell: Condition, generator: np.random.Generator) -> str | None:
            return None if generator.random() < 0.3 else "cheat"

        finding = run(rates(half))
        assert finding.metrics["rate_unsteered"] == 1.0
        assert finding.metrics["ungraded"] == pytest.approx(0.3, abs=0.03)

    def test_a_grader_that_mostly_fails_is_untestable(self) -> None:
        finding = run(rates(lambda cell, generator: None if generator.random() < 0.8 else "cheat"))
        assert finding.verdict == "untestable" and "rate_unsteered" not in finding.metrics

    def test_judges_who_agree_and_one_who_talks_rubbish(self) -> None:
        def votes(second: Callable[[str, np.random.Generator], str | None]) -> Callable:
            def grade(cell: Condition, generator: np.random.Generator) -> dict:
                mine = "cheat" if generator.random() < 0.5 else "honest"
                return {"label": mine, "score": None, "reason": "", "votes": {"a": mine, "b": second(mine, generator)}}

            return grade

        same = run(rates(votes(lambda mine, _: mine)))
        random = run(rates(votes(lambda mine, generator: "cheat" if generator.random() < 0.5 else "honest")))
        silent = run(rates(votes(lambda mine, _: None)))
        assert same.metrics["kappa"] == 1.0
        assert abs(random.metrics["kappa"]) < 0.1
        assert "kappa" not in silent.metrics and silent.metrics["judges_silent"] == silent.metrics["answers"]

    def test_kappa_of_the_textbook(self) -> None:
        first = ["yes"] * 25 + ["no"] * 25
        second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
        found = kappa(first, second, np.arange(50).astype(str), Rate(label="yes"), np.random.default_rng(0))
        assert found.value == pytest.approx(0.4) and found.low < 0.4 < found.high

    def test_no_answers(self) -> None:
        assert run(replace(rates(cheats(0.5, 0.5)), completions=())).verdict == "untestable"

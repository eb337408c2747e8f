"""Findings of behavioural experiments: what is planted is found at its size, and nothing where nothing is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from affectlens.experiments.conclude import controls, intervals, selection
from affectlens.experiments.conclude.conclusions import ANALYSES, conclude
from affectlens.experiments.conclude.config import DoseConfig
from affectlens.experiments.conclude.rate import kappa
from affectlens.experiments.results import Cell, Finding, Measured
from seen import CONCEPTS, FAMILIES, Steered, experiment, grid, manipulation, measured, rollouts, run, scenario


@pytest.fixture
def few_draws(monkeypatch):
    """Enough draws to tell shown from not shown, in a fraction of the time."""
    monkeypatch.setattr(intervals, "DRAWS", 200)
    for name in ("diagonal", "trend", "course"):
        module = __import__(f"affectlens.experiments.conclude.{name}", fromlist=["x"])
        for constant in ("PERMUTATIONS", "NULL_DRAWS"):
            if hasattr(module, constant):
                monkeypatch.setattr(module, constant, 199)


def shown(draws: list[Finding]) -> int:
    return sum(finding.verdict == "shown" for finding in draws)


# ---- dose -----------------------------------------------------------------------------------------------------------

RAISES = {"kind": "dose", "conditions": ["main"], "raises": ["desperate"]}


class TestDose:
    def test_planted_slopes_are_found_at_their_size(self) -> None:
        planted = Steered({"desperate": 20, "calm": -20})
        finding = run(planted.choices(RAISES | {"lowers": ["calm"]}))
        assert finding.verdict == "shown"
        assert finding.metrics["effect_desperate"] == pytest.approx(2.0, abs=0.15)
        assert finding.metrics["effect_calm"] == pytest.approx(-2.0, abs=0.15)
        assert finding.metrics["p_desperate"] == pytest.approx(1 / 44)
        assert "21 controls" in finding.sentences[1]

    def test_the_claimed_sign_counts(self) -> None:
        finding = run(Steered({"desperate": -20}).choices(RAISES))
        assert finding.verdict == "not shown"
        assert "does not go the claimed way" in finding.sentences[1]

    def test_an_effect_no_larger_than_that_of_random_vectors_is_not_shown(self) -> None:
        finding = run(Steered({"desperate": 20}, wobble=20).choices(RAISES))
        assert finding.metrics["effect_desperate_low"] > 0
        assert finding.verdict == "not shown"
        assert "not beyond all 21 controls" in finding.sentences[1]

    def test_nothing_planted_nothing_shown(self, few_draws) -> None:
        planted = Steered({"desperate": 0, "calm": 0}, controls=21)
        both = RAISES | {"lowers": ["calm"]}
        draws = [run(planted.choices(both, seed), seed) for seed in range(100)]
        assert sum(finding.verdict == "not shown" for finding in draws) >= 95

    def test_vectors_like_controls_are_rarely_shown(self, few_draws) -> None:
        """Random vectors that do move the choice: what a claim about one of them would be worth."""
        draws = []
        for seed in range(100):
            slope = float(np.random.default_rng(1000 + seed).normal() * 10)
            draws.append(run(Steered({"desperate": slope}, wobble=10).choices(RAISES, seed), seed))
        assert shown(draws) <= 5

    def test_the_same_effect_in_the_harmless_twin_is_no_effect(self) -> None:
        asked = RAISES | {"twin": "twin"}
        specific = run(Steered({"desperate": 20}, {"desperate": 0}).choices(asked))
        general = run(Steered({"desperate": 20}, {"desperate": 20}).choices(asked))
        assert specific.verdict == "shown"
        assert specific.metrics["beyond_twin_desperate"] == pytest.approx(2.0, abs=0.2)
        assert general.verdict == "not shown"
        assert "twin" in general.sentences[1]

    def test_a_missing_twin_is_said(self) -> None:
        finding = run(Steered({"desperate": 20}).choices(RAISES | {"twin": "twin"}))
        assert finding.verdict == "untestable"
        assert "no scenario of the condition twin" in " ".join(finding.sentences)

    def test_what_was_not_measured_is_not_called_incoherent(self) -> None:
        seen = Steered({"desperate": 20}).choices(RAISES)
        assert seen.choice is not None
        unseen = seen.choice.copy()
        unseen[[cell.family == "concept" for cell in seen.cells]] = np.nan
        finding = run(replace(seen, choice=unseen))
        assert finding.verdict == "untestable"
        assert "nothing was measured under desperate" in finding.sentences[1]

    def test_a_failed_manipulation_check_is_untestable(self) -> None:
        planted = Steered({"desperate": 20})
        cells = grid(["desperate"])
        finding = run(planted.choices(RAISES, manipulation=manipulation(cells, moves=())))
        assert finding.verdict == "untestable"
        assert "manipulation check failed" in finding.sentences[1]

    def test_the_check_compares_the_same_words(self) -> None:
        """What controls do to other words does not matter, what they do to these does."""
        cells = grid(["desperate"])
        controls = [cell.family not in ("none", "concept") for cell in cells]
        signs = np.sign([cell.strength for cell in cells])
        for concept, verdict in (("proud", "shown"), ("desperate", "untestable")):
            moved = manipulation(cells)
            moved["rises"][controls, CONCEPTS.index(concept)] = 9 * signs[controls]
            assert run(Steered({"desperate": 20}).choices(RAISES, manipulation=moved)).verdict == verdict

    def test_effects_outside_the_coherence_window_do_not_count(self) -> None:
        planted, cells = Steered({"desperate": 20}), grid(["desperate"])
        nowhere = run(planted.choices(RAISES, manipulation=manipulation(cells, limit=0.01)))
        small = run(planted.choices(RAISES, manipulation=manipulation(cells, limit=0.05)))
        assert nowhere.verdict == "untestable"
        assert "breaks coherence" in nowhere.sentences[1]
        assert small.metrics["effect_desperate"] == pytest.approx(1.0, abs=0.15)

    def test_too_few_controls_cannot_show_anything(self) -> None:
        finding = run(Steered({"desperate": 20}, controls=12).choices(RAISES))
        assert finding.verdict == "untestable"
        assert "12 controls are too few" in finding.sentences[1]

    def test_every_further_claim_costs(self) -> None:
        """A vector that stands out alone may not do so as one of six that were claimed."""
        names = ["desperate", "sad", "happy", "proud", "tired", "afraid"]
        seen = Steered({name: 8.0 * (name == "desperate") for name in names}).choices(RAISES | {"raises": names}, 7)
        together = run(seen)
        alone = run(replace(seen, experiment=experiment(seen.scenarios, [RAISES])))
        ratio = together.metrics["p_adjusted_desperate"] / alone.metrics["p_adjusted_desperate"]
        assert ratio == pytest.approx(6)
        assert alone.verdict == "shown"
        assert together.metrics["claims_shown"] == 0 and "not far beyond" in together.sentences[1]

    def test_a_bend_is_told_from_a_line(self) -> None:
        grid = (-0.1, -0.05, 0.05, 0.1)
        bent = Steered({"angry": 0}, bend={"angry": -200}, wobble=0.5, strengths=grid)
        straight = Steered({"angry": 20}, wobble=0.5, strengths=grid)
        asked = {"kind": "dose", "bend": ["angry"]}
        peak, line = run(bent.choices(asked)), run(straight.choices(asked))
        assert peak.verdict == "shown"
        assert peak.metrics["bend_angry"] == pytest.approx(-2.0, abs=0.2)
        assert line.verdict == "not shown"

    def test_bends_are_not_found_in_noise(self, few_draws) -> None:
        planted = Steered({"angry": 0}, groups=8)
        draws = [run(planted.choices({"kind": "dose", "bend": ["angry"]}, seed)) for seed in range(40)]
        assert shown(draws) <= 2

    def test_few_noisy_groups_are_untestable_not_a_null(self) -> None:
        finding = run(Steered({"desperate": 0}, groups=6, noise=3).choices(RAISES))
        assert finding.verdict == "untestable"
        assert "80% power" in finding.sentences[1]

    def test_one_scenario_and_no_choice(self) -> None:
        assert run(Steered({"desperate": 20}, groups=1).choices(RAISES)).verdict == "untestable"
        assert run(Steered({"desperate": 20}).choices(RAISES, choice=None)).verdict == "untestable"

    def test_scenarios_without_options_are_left_out(self) -> None:
        seen = Steered({"desperate": 20}).choices(RAISES)
        assert seen.choice is not None
        holes = seen.choice.copy()
        holes[:, 3] = np.nan
        finding = run(replace(seen, choice=holes))
        assert finding.verdict == "shown"
        assert run(replace(seen, choice=np.full_like(holes, np.nan))).verdict == "untestable"

    def test_damage_by_both_signs_is_no_push(self) -> None:
        """What raises the target whichever way it is pushed says nothing of the concept."""
        finding = run(Steered({"desperate": 0}, bend={"desperate": 200}).choices(RAISES))
        assert finding.verdict == "not shown"
        assert abs(finding.metrics["effect_desperate"]) < 0.2


def test_power_is_what_it_says() -> None:
    """An effect of the stated size is found in about 80 of 100 experiments."""
    found, stated = 0, []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        values, groups = 0.25 + 0.3 * generator.normal(size=14), np.arange(14)
        stated.append(intervals.smallest_effect(0.3 / math.sqrt(14), 14))
        found += intervals.over_groups(values, groups, generator).low > 0
    assert stated[0] == pytest.approx(0.243, abs=0.005)
    assert 0.72 <= found / 200 <= 0.92


def test_controls_give_exact_ranks() -> None:
    families = {"isotropic": np.array([0.1, -0.4]), "permuted": np.array([0.3])}
    best = controls.compare(0.5, families, symmetric=True)
    assert best.p == best.floor == 1 / 8 and best.beyond
    assert controls.compare(-0.5, families, symmetric=True).p == 1.0
    one_sided = controls.compare(0.35, families, symmetric=False)
    assert one_sided.p == 0.25 and one_sided.beyond
    assert math.isnan(controls.compare(0.5, {"isotropic": np.array([0.1])}, symmetric=True).p)


# ---- rate -----------------------------------------------------------------------------------------------------------


def rates(chance, *, controls: int = 21, scenarios: int = 20, samples: int = 4, asked=None) -> Measured:
    cells = grid(["desperate"], (-0.1, 0.1))
    names = [scenario(i, f"g{i}") for i in range(scenarios)]
    what = experiment(names, [asked or {"kind": "rate", "label": "cheat", "raises": ["desperate"]}])

    def grade(cell: Cell, number: int, generator: np.random.Generator):
        return chance(cell, generator)

    answers = rollouts(cells, scenarios, grade, samples)
    rolled = [cell.family in ("none", "concept") or place(cell) < controls for cell in cells]
    return measured(what, cells=cells, rollouts=tuple(each for each in answers if rolled[each.cell]))


def place(cell: Cell) -> int:
    """Which of the controls of its strength a control is."""
    return 3 * int(cell.vector) + FAMILIES.index(cell.family)


def cheats(up: float, down: float, usual: float = 0.3):
    def chance(cell: Cell, generator: np.random.Generator) -> str:
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

    def test_nothing_planted_nothing_shown(self, few_draws) -> None:
        assert run(rates(cheats(0.3, 0.3))).verdict == "not shown"

    def test_always_and_never(self) -> None:
        always = run(rates(lambda cell, _: "cheat"))
        never = run(rates(lambda cell, _: "honest"))
        assert always.metrics["rate_unsteered"] == 1.0 and never.metrics["rate_unsteered"] == 0.0
        assert "No graded answer is `cheat`, steered or not." in never.sentences
        assert always.metrics["rate_unsteered_low"] < 1.0 and never.metrics["rate_unsteered_high"] > 0.0
        assert {always.verdict, never.verdict} == {"not shown"}

    def test_two_controls_are_too_few(self) -> None:
        finding = run(rates(cheats(0.9, 0.05), controls=2))
        assert finding.verdict == "untestable"
        assert "2 controls are too few" in finding.sentences[1]

    def test_answers_without_a_grade_are_told_and_left_out(self) -> None:
        def half(cell: Cell, generator: np.random.Generator) -> str | None:
            return None if generator.random() < 0.3 else "cheat"

        finding = run(rates(half))
        assert finding.metrics["rate_unsteered"] == 1.0
        assert finding.metrics["ungraded"] == pytest.approx(0.3, abs=0.03)
        assert "could not be graded" in " ".join(finding.sentences)

    def test_a_grader_that_mostly_fails_is_untestable(self) -> None:
        finding = run(rates(lambda cell, generator: None if generator.random() < 0.8 else "cheat"))
        assert finding.verdict == "untestable" and "rate_unsteered" not in finding.metrics

    def test_judges_who_agree_and_one_who_talks_rubbish(self) -> None:
        def votes(second):
            def grade(cell: Cell, generator: np.random.Generator) -> dict:
                mine = "cheat" if generator.random() < 0.5 else "honest"
                return {"label": mine, "score": None, "reason": "", "votes": {"a": mine, "b": second(mine, generator)}}

            return grade

        same = run(rates(votes(lambda mine, _: mine)))
        random = run(rates(votes(lambda mine, generator: "cheat" if generator.random() < 0.5 else "honest")))
        silent = run(rates(votes(lambda mine, _: None)))
        assert same.metrics["kappa"] == 1.0
        assert abs(random.metrics["kappa"]) < 0.1
        assert "kappa" not in silent.metrics and "cannot be compared" in " ".join(silent.sentences)

    def test_kappa_of_the_textbook(self) -> None:
        first = ["yes"] * 25 + ["no"] * 25
        second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
        found = kappa(first, second, np.arange(50).astype(str), np.random.default_rng(0))
        assert found.value == pytest.approx(0.4) and found.low < 0.4 < found.high

    def test_no_answers(self) -> None:
        seen = replace(rates(cheats(0.5, 0.5)), rollouts=())
        assert run(seen).verdict == "untestable"


# ---- diagonal, trend, course: readings of the model as it is --------------------------------------------------------


def emotions(signal: float, words: float = 0.0, each: int = 8, seed: int = 0, noise: float = 1.0) -> Measured:
    generator = np.random.default_rng(seed)
    names = [CONCEPTS[i] for i in (0, 2, 4, 8)]
    rows = [(name, number) for name in names for number in range(each)]
    what = experiment(
        [scenario(i, f"{name}{number}", emotion=name) for i, (name, number) in enumerate(rows)],
        [{"kind": "diagonal", "reading": "answer"}],
    )
    target = np.array([[name == concept for concept in CONCEPTS] for name, _ in rows])
    readings = signal * target + noise * generator.normal(size=target.shape)
    texts = words * target + generator.normal(size=target.shape)
    return measured(what, {"answer": readings[None]}, words=texts)


class TestDiagonal:
    def test_a_reading_that_names_them(self) -> None:
        finding = run(emotions(4.0))
        assert finding.verdict == "shown"
        assert finding.metrics["first"] > 0.9 and finding.metrics["auroc"] > 0.95
        assert finding.metrics["mean_rank"] < 1.5
        assert len(finding.tables[1].rows) == 4

    def test_words_that_say_it_as_well_take_the_claim_away(self) -> None:
        finding = run(emotions(4.0, words=4.0))
        assert finding.verdict != "shown"
        assert "words alone" in finding.sentences[0]

    def test_nothing_planted_nothing_shown(self, few_draws) -> None:
        draws = [run(emotions(0.0, seed=seed, each=12)) for seed in range(100)]
        assert sum(finding.verdict == "not shown" for finding in draws) >= 95

    def test_p_values_are_uniform_without_an_effect(self, few_draws) -> None:
        p = [run(emotions(0.0, seed=seed)).metrics["p"] for seed in range(60)]
        assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.2)

    def test_ties_share_the_first_place(self) -> None:
        finding = run(emotions(0.0, noise=0.0))
        assert finding.metrics["first"] == pytest.approx(0.25)
        assert finding.metrics["mean_rank"] == pytest.approx(5.5)

    def test_features_are_compared_in_units_of_their_own(self) -> None:
        seen = emotions(4.0)
        scaled = {"answer": seen.readings["answer"] * np.geomspace(1, 1e4, len(CONCEPTS))}
        reading = {"name": "answer", "by": "features"}
        what = experiment(seen.scenarios, [{"kind": "diagonal", "reading": "answer"}], readings=[reading])
        assert run(replace(seen, readings=scaled)).metrics["first"] < 0.8
        assert run(replace(seen, readings=scaled, experiment=what)).metrics["first"] > 0.9

    def test_unreadable_and_single_scenarios(self) -> None:
        seen = emotions(4.0)
        gone = np.full_like(seen.readings["answer"], np.nan)
        assert run(replace(seen, readings={"answer": gone})).verdict == "untestable"
        gone[0, 0] = 1.0
        assert run(replace(seen, readings={"answer": gone})).verdict == "untestable"
        assert run(emotions(4.0, each=1)).verdict in ("shown", "not shown", "untestable")


def numbers(slope: float, twin: float | None, templates: int = 8, seed: int = 0, common: float = 0.0) -> Measured:
    """Twelve levels, three paraphrases; ``common`` is a trend of all concepts alike."""
    generator, scenarios, rows = np.random.default_rng(seed), [], []
    for template in range(templates):
        for condition, strength in (("main", slope), ("twin", twin)):
            for phrase in range(3 if strength is not None else 0):
                for level in range(12):
                    each = scenario(0, f"t{template}", condition, level=10 * level, expects="afraid,-calm")
                    scenarios.append(replace(each, id=f"t{template}-{condition}-{phrase}.{level}"))
                    readings = generator.normal(size=len(CONCEPTS)) + common * level * (condition == "main")
                    readings[CONCEPTS.index("afraid")] += (strength or 0) * level
                    readings[CONCEPTS.index("calm")] -= (strength or 0) * level
                    rows.append(readings)
    what = experiment(scenarios, [{"kind": "trend", "reading": "answer"}])
    return measured(what, {"answer": np.array(rows)[None]})


class TestTrend:
    def test_a_number_that_matters(self) -> None:
        finding = run(numbers(0.5, 0.0))
        assert finding.verdict == "shown"
        assert finding.metrics["templates_as_claimed"] == 8
        assert finding.metrics["p_sign"] == pytest.approx(2.0**-8)
        assert "Within one template a monotone trend proves nothing" in " ".join(finding.sentences)

    def test_a_number_that_moves_the_twin_as_well(self) -> None:
        assert run(numbers(0.5, 0.5)).verdict == "not shown"

    def test_a_number_that_moves_every_concept_as_well(self) -> None:
        seen = numbers(0.0, 0.0, common=0.5)
        up = experiment(
            [replace(each, factors={**each.factors, "expects": "afraid"}) for each in seen.scenarios],
            [{"kind": "trend", "reading": "answer"}],
        )
        finding = run(replace(seen, experiment=up))
        assert finding.metrics["p_sign"] < 0.05 and finding.metrics["trend_difference"] > 0.5
        assert finding.verdict == "not shown"

    def test_nothing_planted_nothing_shown(self, few_draws) -> None:
        draws = [run(numbers(0.0, 0.0, seed=seed)) for seed in range(100)]
        assert sum(finding.verdict == "not shown" for finding in draws) >= 95

    def test_missing_twins_and_too_few_templates(self) -> None:
        alone, few = run(numbers(0.5, None)), run(numbers(0.5, 0.0, templates=3))
        assert alone.verdict == "untestable" and "no template has a harmless twin" in alone.sentences[0]
        assert few.verdict == "untestable" and "at least 5 are needed" in " ".join(few.sentences)

    def test_paraphrases_may_lie_apart(self) -> None:
        """A paraphrase that reads high throughout must not hide the trend within it."""
        seen = numbers(0.5, 0.0)
        far = np.array([1000.0 * int(each.id.split(".")[0][-1]) for each in seen.scenarios])
        moved = {"answer": seen.readings["answer"] + far[None, :, None]}
        assert run(replace(seen, readings=moved)).metrics["trend"] == pytest.approx(run(seen).metrics["trend"])

    def test_a_reading_that_never_moves(self) -> None:
        seen = numbers(0.5, 0.0)
        still = {"answer": np.ones_like(seen.readings["answer"])}
        assert run(replace(seen, readings=still)).verdict != "shown"
        assert run(replace(seen, readings={"answer": still["answer"] * np.nan})).verdict == "untestable"


def lasting(kept: float, signal: float = 3.0, seed: int = 0, quoted: float = 1.0) -> Measured:
    """An emotion whose reading is multiplied by ``kept`` from one place to the next."""
    generator = np.random.default_rng(seed)
    names, places = [CONCEPTS[i] for i in (0, 2, 4, 8)], ["cause", "after1", "after2", "after3"]
    rows = [(name, variant, who) for name in names for variant in range(6) for who in ("self", "quoted")]
    target = np.array([[name == concept for concept in CONCEPTS] for name, *_ in rows], dtype=float)
    weight = np.array([quoted if who == "quoted" else 1.0 for *_, who in rows])[:, None]
    readings = {
        place: (signal * kept**number * weight * target + 0.2 * generator.normal(size=target.shape))[None]
        for number, place in enumerate(places)
    }
    scenarios = [scenario(i, f"{name}{v}", emotion=name, who=who) for i, (name, v, who) in enumerate(rows)]
    what = experiment(
        scenarios, [{"kind": "course", "readings": places}], readings=[{"name": place} for place in places]
    )
    return measured(what, readings)


class TestCourse:
    def test_a_fading_emotion_and_its_length(self) -> None:
        finding = run(lasting(0.5))
        assert finding.verdict == "shown"
        assert finding.metrics["decay_all"] == pytest.approx(1 / math.log(2), rel=0.1)

    def test_a_chronic_state_is_told_from_a_local_one(self) -> None:
        finding = run(lasting(1.0))
        assert finding.verdict == "not shown" and "not shown to fade" in finding.sentences[0]

    def test_contrasts_between_holders(self) -> None:
        finding = run(lasting(0.5, quoted=0.3))
        assert finding.metrics["self_less_quoted_low"] > 0
        same = run(lasting(0.5))
        assert same.metrics["self_less_quoted_low"] < 0 < same.metrics["self_less_quoted_high"]

    def test_nothing_planted_nothing_shown(self, few_draws) -> None:
        draws = [run(lasting(0.5, signal=0.0, seed=seed)) for seed in range(40)]
        assert shown(draws) <= 2

    def test_a_scenario_without_the_later_places(self) -> None:
        seen = lasting(0.5)
        readings = {name: values.copy() for name, values in seen.readings.items()}
        readings["after3"][0, :10] = np.nan
        assert run(replace(seen, readings=readings)).verdict == "shown"
        readings["cause"][:] = np.nan
        assert run(replace(seen, readings=readings)).verdict == "untestable"


# ---- all kinds ------------------------------------------------------------------------------------------------------


def test_every_kind_has_an_analysis_and_order_does_not_matter() -> None:
    kinds = {
        "diagonal",
        "trend",
        "preference",
        "dose",
        "rate",
        "arc",
        "parting",
        "course",
        "masking",
        "shift",
        "accuracy",
    }
    assert set(ANALYSES) == kinds
    seen = Steered({"desperate": 20}).choices(RAISES)
    twice = experiment(seen.scenarios, [RAISES, {"kind": "diagonal", "reading": "answer"}])
    first, second = conclude(replace(seen, experiment=twice), np.random.default_rng(3))
    assert first.metrics == run(seen, 3).metrics
    assert second.verdict == "untestable"


def test_the_same_seed_gives_the_same_finding() -> None:
    assert run(emotions(1.0), 5) == run(emotions(1.0), 5)


def test_a_reading_that_is_not_taken_is_named() -> None:
    from affectlens.errors import UserError

    seen = emotions(1.0)
    with pytest.raises(UserError, match="`nowhere`"):
        run(replace(seen, experiment=experiment(seen.scenarios, [{"kind": "diagonal", "reading": "nowhere"}])))


def test_levels_and_signs() -> None:
    assert selection.levels(["5 mg", "1,000 mg", "20 mg"]).tolist() == [5, 1000, 20]
    assert selection.levels(["little", "some", "much", "little"]).tolist() == [0, 1, 2, 0]
    assert selection.signed("afraid, -calm,+sad") == [("afraid", 1), ("calm", -1), ("sad", 1)]


def test_unclaimed_steering_is_described() -> None:
    assert DoseConfig().raises == ()
    finding = run(Steered({"desperate": 20}).choices({"kind": "dose"}))
    assert finding.verdict == "described" and "described, not tested" in finding.sentences[0]

"""Readings of the model as it is: planted truths are found, and nothing where nothing is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from affectlens.experiments.conclude import selection
from affectlens.experiments.conclude.analysis import Analysis, conclude, confirm
from affectlens.experiments.conclude.config import ANALYSES
from affectlens.experiments.results import Measured
from affectlens.results.figures import Finding
from synthetic_measurements import CONCEPTS, FAST, experiment, measured, run, scenario


def shown(draws: list[Finding]) -> int:
    return sum(finding.verdict == "shown" for finding in draws)


# ---- concept identification -----------------------------------------------------------------------------------------


NAMES = {"kind": "concept_identification", "reading": "answer"}


def emotions(
    signal: float, words: float = 0.0, each: int = 8, seed: int = 0, noise: float = 1.0, profile: float = 0.0, **asked
) -> Measured:
    """Four emotions in as many settings as each has scenarios; ``profile``: spread of what an emotion reads as."""
    generator = np.random.default_rng(seed)
    names = [CONCEPTS[i] for i in (0, 2, 4, 8)]
    rows = [(name, number) for name in names for number in range(each)]
    what = experiment(
        [scenario(i, f"{name}{number}", emotion=name, setting=number) for i, (name, number) in enumerate(rows)],
        [NAMES | asked],
    )
    target = np.array([[name == concept for concept in CONCEPTS] for name, _ in rows])
    own = np.repeat(profile * generator.normal(size=(len(names), len(CONCEPTS))), each, axis=0)
    readings = signal * target + own + noise * generator.normal(size=target.shape)
    texts = words * target + generator.normal(size=target.shape)
    return measured(what, {"answer": readings[None]}, words=texts)


class TestConceptIdentification:
    def test_a_reading_that_names_them(self) -> None:
        finding = run(emotions(4.0))
        assert finding.verdict == "shown"
        assert finding.metrics["first"] > 0.9 and finding.metrics["auroc"] > 0.95
        assert finding.metrics["mean_rank"] < 1.5
        assert len(finding.tables[1].rows) == 4

    def test_words_that_say_it_as_well_take_the_claim_away(self) -> None:
        assert run(emotions(4.0, words=4.0)).verdict != "shown"

    def test_nothing_planted_nothing_shown(self) -> None:
        draws = [run(emotions(0.0, seed=seed, each=12, **FAST)) for seed in range(100)]
        assert shown(draws) <= 5 and sum(finding.verdict == "not shown" for finding in draws) >= 80

    @pytest.mark.parametrize("profile", [0.5, 1.5])
    def test_an_emotion_that_reads_alike_in_all_its_scenarios_is_not_thereby_named(self, profile) -> None:
        """Scenarios of one emotion agree on some reading; the units are the emotions, not the scenarios."""
        draws = [run(emotions(0.0, seed=seed, profile=profile, **FAST)) for seed in range(200)]
        assert np.mean([finding.metrics["p"] <= 0.05 for finding in draws]) <= 0.08
        assert shown(draws) <= 10

    def test_p_values_are_uniform_without_an_effect(self) -> None:
        p = [run(emotions(0.0, seed=seed, **FAST)).metrics["p"] for seed in range(60)]
        assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.2)

    def test_ties_share_the_first_place(self) -> None:
        finding = run(emotions(0.0, noise=0.0))
        assert finding.metrics["first"] == pytest.approx(0.25)
        assert finding.metrics["mean_rank"] == pytest.approx(5.5)

    def test_features_are_compared_in_units_of_their_own(self) -> None:
        seen = emotions(4.0)
        scaled = {"answer": seen.readings["answer"] * np.geomspace(1, 1e4, len(CONCEPTS))}
        reading = {"name": "answer", "by": "features"}
        what = experiment(seen.scenarios, [NAMES], readings=[reading])
        assert run(replace(seen, readings=scaled)).metrics["first"] < 0.8
        assert run(replace(seen, readings=scaled, experiment=what)).metrics["first"] > 0.9

    def test_unreadable_and_single_scenarios(self) -> None:
        seen = emotions(4.0)
        gone = np.full_like(seen.readings["answer"], np.nan)
        assert run(replace(seen, readings={"answer": gone})).verdict == "untestable"
        gone[0, 0] = 1.0
        assert run(replace(seen, readings={"answer": gone})).verdict == "untestable"
        assert run(emotions(4.0, each=1)).verdict in ("shown", "not shown", "untestable")


def numbers(
    slope: float, twin: float | None, templates: int = 8, seed: int = 0, common: float = 0.0, **asked
) -> Measured:
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
    what = experiment(scenarios, [{"kind": "level_sensitivity", "reading": "answer"} | asked])
    return measured(what, {"answer": np.array(rows)[None]})


class TestLevelSensitivity:
    def test_a_number_that_matters(self) -> None:
        finding = run(numbers(0.5, 0.0))
        assert finding.verdict == "shown"
        assert finding.metrics["templates_as_claimed"] == 8
        assert finding.metrics["p_flips"] == pytest.approx(2.0**-7)

    def test_a_number_that_moves_the_twin_as_well(self) -> None:
        assert run(numbers(0.5, 0.5)).verdict == "not shown"

    def test_a_number_that_moves_every_concept_as_well(self) -> None:
        seen = numbers(0.0, 0.0, common=0.5)
        up = experiment(
            [replace(each, factors={**each.factors, "expects": "afraid"}) for each in seen.scenarios],
            [{"kind": "level_sensitivity", "reading": "answer"}],
        )
        finding = run(replace(seen, experiment=up))
        assert finding.metrics["p_flips"] < 0.05 and finding.metrics["trend_difference"] > 0.5
        assert finding.verdict == "not shown"

    def test_nothing_planted_nothing_shown(self) -> None:
        draws = [run(numbers(0.0, 0.0, seed=seed, **FAST)) for seed in range(100)]
        assert sum(finding.verdict == "not shown" for finding in draws) >= 95

    def test_missing_twins_and_too_few_templates(self) -> None:
        alone, few = run(numbers(0.5, None)), run(numbers(0.5, 0.0, templates=3))
        assert alone.verdict == "untestable" and alone.metrics["trend"] > 0.5
        assert few.verdict == "untestable" and few.metrics["p_flips"] == pytest.approx(2.0**-2)

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


def lasting(kept: float, signal: float = 3.0, seed: int = 0, quoted: float = 1.0, **asked) -> Measured:
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
        scenarios, [{"kind": "persistence", "readings": places} | asked], readings=[{"name": place} for place in places]
    )
    return measured(what, readings)


class TestPersistence:
    def test_a_fading_emotion_and_its_length(self) -> None:
        finding = run(lasting(0.5))
        assert finding.verdict == "shown"
        assert finding.metrics["decay_all"] == pytest.approx(1 / math.log(2), rel=0.1)

    def test_a_chronic_state_is_told_from_a_local_one(self) -> None:
        assert run(lasting(1.0)).verdict == "not shown"

    def test_contrasts_between_holders(self) -> None:
        finding = run(lasting(0.5, quoted=0.3))
        assert finding.metrics["self_less_quoted_low"] > 0
        same = run(lasting(0.5))
        assert same.metrics["self_less_quoted_low"] < 0 < same.metrics["self_less_quoted_high"]

    def test_nothing_planted_nothing_shown(self) -> None:
        draws = [run(lasting(0.5, signal=0.0, seed=seed, **FAST)) for seed in range(100)]
        assert shown(draws) <= 5

    def test_a_scenario_without_the_later_places(self) -> None:
        seen = lasting(0.5)
        readings = {name: values.copy() for name, values in seen.readings.items()}
        readings["after3"][0, :10] = np.nan
        assert run(replace(seen, readings=readings)).verdict == "shown"
        readings["cause"][:] = np.nan
        assert run(replace(seen, readings=readings)).verdict == "untestable"


def rivals(
    before: tuple[float, float],
    after: tuple[float, float],
    settings: int = 8,
    seed: int = 0,
    profile: float = 0.0,
    **asked,
) -> Measured:
    """Texts with two emotions each: how far that of `first` and of `second` reads higher at the first and last place.

    ``profile``: spread of what each emotion of either factor reads as, by chance.
    """
    generator, names = np.random.default_rng(seed), [CONCEPTS[i] for i in (0, 1, 2, 4, 8)]
    rows = [(a, b, setting) for setting in range(settings) for a in names for b in names if a != b]
    held = [np.array([[row[side] == concept for concept in CONCEPTS] for row in rows], float) for side in (0, 1)]
    chance = [profile * generator.normal(size=(len(CONCEPTS), len(CONCEPTS))) for _ in held]
    readings = {}
    for place, weights in {"early": before, "middle": np.mean([before, after], axis=0), "late": after}.items():
        own = sum(weight * each + each @ random for weight, each, random in zip(weights, held, chance, strict=True))
        readings[place] = (own + generator.normal(size=(len(rows), len(CONCEPTS))))[None]
    scenarios = [scenario(i, f"g{setting}", first=a, second=b) for i, (a, b, setting) in enumerate(rows)]
    claim = {"kind": "competition", "factors": ["first", "second"], "readings": list(readings), "leads": "second"}
    what = experiment(scenarios, [claim | asked], readings=[{"name": place} for place in readings])
    return measured(what, readings)


TURN = {"starts": "first", "positions": [0, 10, 20], "unit": "words"}


class TestCompetition:
    def test_a_turn_and_where_it_is(self) -> None:
        finding = run(rivals((1.0, 0.0), (0.0, 1.0), **TURN))
        assert finding.verdict == "shown"
        assert finding.metrics["turn"] == pytest.approx(10, abs=3)
        assert finding.metrics["ahead_from"] == 20
        assert finding.metrics["excess_first_early"] == pytest.approx(finding.metrics["excess_second_late"], abs=0.3)
        assert any("overtakes `first` at" in sentence for sentence in finding.sentences)

    def test_what_does_not_turn_or_was_never_first_is_not_shown(self) -> None:
        for before, after in (((1.0, 0.0), (1.0, 0.0)), ((0.0, 1.0), (0.0, 1.0)), ((1.0, 0.0), (1.0, 1.0))):
            finding = run(rivals(before, after, **TURN))
            assert finding.verdict != "shown"
        assert "turn" not in run(rivals((1.0, 0.0), (1.0, 0.0), **TURN)).metrics
        assert run(rivals((0.0, 1.0), (0.0, 1.0), **TURN)).metrics["turn"] == 0

    def test_of_two_that_are_read_alike_neither_leads(self) -> None:
        draws = [run(rivals((0.0, 0.0), (1.0, 1.0), seed=seed, **FAST)) for seed in range(20)]
        assert shown(draws) <= 2
        assert run(rivals((0.0, 0.0), (0.3, 1.0))).verdict == "shown"

    def test_a_group_in_which_nothing_tells_the_factors_apart_is_left_out(self) -> None:
        seen = rivals((1.0, 0.0), (0.0, 1.0))
        alike = [
            replace(each, factors={**each.factors, "second": each.factors["first"]}) if each.group == "g0" else each
            for each in seen.scenarios
        ]
        asked = seen.experiment.config.analyses[0].model_dump()
        readings = [each.model_dump() for each in seen.experiment.config.readings]
        finding = run(replace(seen, experiment=experiment(alike, [asked], readings=readings)))
        assert "With 7 groups and 5 emotions" in finding.sentences[-1]
        none = [replace(each, factors={**each.factors, "second": "none"}) for each in seen.scenarios]
        assert run(replace(seen, experiment=experiment(none, [asked], readings=readings))).verdict == "untestable"

    def test_texts_of_one_emotion_stand_beside_those_of_two(self) -> None:
        """A text without a second emotion counts as one in which no concept is the second's."""
        seen = rivals((1.0, 0.0), (0.0, 1.0))
        some = [replace(each, factors={**each.factors, "second": "none"}) if i % 5 == 0 else each
                for i, each in enumerate(seen.scenarios)]  # fmt: skip
        asked = seen.experiment.config.analyses[0].model_dump()
        readings = [each.model_dump() for each in seen.experiment.config.readings]
        lead = run(replace(seen, experiment=experiment(some, [asked], readings=readings))).metrics["excess_second_late"]
        assert 0.3 < lead < run(seen).metrics["excess_second_late"]

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"leads": "third"}, "`leads: third` is not among `factors`; name one of first, second"),
            ({"starts": "second"}, "`starts` is another factor than `leads`"),
            ({"positions": [0, 1]}, "`positions`: give one for each of `readings`"),
            ({"positions": [0, 2, 1]}, "each larger than the one before"),
        ],
    )
    def test_mistakes_are_named(self, asked, message) -> None:
        with pytest.raises(ValueError, match=message):
            rivals((1.0, 0.0), (0.0, 1.0), settings=2, **asked)


# ---- all analyses ---------------------------------------------------------------------------------------------------


def test_an_analysis_that_is_added_moves_no_figure_of_those_before_it() -> None:
    seen = emotions(1.0)
    twice = experiment(seen.scenarios, [NAMES, {"kind": "dose"}])
    first, second = conclude(replace(seen, experiment=twice), np.random.default_rng(3))
    assert first.metrics == run(seen, 3).metrics
    assert second.verdict == "untestable"


def test_the_same_seed_gives_the_same_finding() -> None:
    assert run(emotions(1.0), 5) == run(emotions(1.0), 5)


def test_what_decides_a_verdict_is_kept_with_it() -> None:
    settings = run(emotions(1.0, matters=0.4, draws=100)).settings
    assert (settings["matters"], settings["draws"], settings["alpha"]) == (0.4, 100, 0.05)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("diagonal", "concept_identification"),
        ("trend", "level_sensitivity"),
        ("arc", "trajectory"),
        ("course", "persistence"),
        ("parting", "dissociation"),
        ("masking", "concealed_emotion"),
        ("shift", "model_difference"),
    ],
)
def test_former_names_are_read_with_a_warning(old, new) -> None:
    required = {"readings": ["a", "b"], "reading": "answer", "concepts": ["sad"], "label": "x"}
    experiment([scenario(0, "g")], [NAMES])  # an experiment that is read registers the analyses
    fields = {key: value for key, value in required.items() if key in ANALYSES[new].model_fields}
    with pytest.warns(FutureWarning, match=new):
        what = experiment([scenario(0, "g")], [{"kind": old, **fields}])
    assert what.config.analyses[0].kind == new
    assert what.config == type(what.config).model_validate(what.config.model_dump())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kind": "concept_identificaton", "reading": "answer"}, "did you mean `concept_identification`"),
        ({"kind": "dose", "raisess": ["sad"]}, "unknown key `raisess`; did you mean `raises`"),
        ({"kind": "rate"}, "`label` is missing"),
    ],
)
def test_mistakes_in_an_analysis_are_named(asked, message) -> None:
    with pytest.raises(ValueError, match=message):
        experiment([scenario(0, "g")], [asked])


def test_levels_and_signs() -> None:
    assert selection.levels(["5 mg", "1,000 mg", "20 mg"]).tolist() == [5, 1000, 20]
    assert selection.levels(["little", "some", "much", "little"]).tolist() == [0, 1, 2, 0]
    assert selection.signed("afraid, -calm,+sad") == [("afraid", 1), ("calm", -1), ("sad", 1)]


def test_confirmatory_tests_of_a_study_are_one_family() -> None:
    entries: list[dict[str, Any]] = [
        {"name": "a", "confirmatory": [True, False], "alpha": [0.05, 0.05], "p_confirmatory": [0.03, None]},
        {"name": "b", "confirmatory": [True], "alpha": [0.05], "p_confirmatory": [0.01]},
        {"name": "c", "confirmatory": [True], "alpha": [0.05], "p_confirmatory": [None]},
    ]
    metrics = confirm(entries)
    assert [entry["p_study"] for entry in entries] == [[pytest.approx(0.03), None], [pytest.approx(0.02)], [None]]
    assert metrics == {
        "a.p_confirmatory": pytest.approx(0.03), "b.p_confirmatory": pytest.approx(0.02),
        "confirmatory_tests": 2, "confirmatory_shown": 2,
    }  # fmt: skip
    assert confirm([]) == {}


def test_a_confirmatory_claim_has_the_p_of_the_whole_claim() -> None:
    for seen in (emotions(4.0), emotions(4.0, words=4.0), emotions(0.0)):
        (asked,), finding = seen.experiment.config.analyses, run(seen)
        assert isinstance(asked, Analysis)
        p = asked.confirmatory_p(finding)
        assert (p <= 0.05) == (finding.verdict == "shown")
    with pytest.raises(ValueError, match="both `confirmatory`"):
        experiment([scenario(0, "g")], [NAMES | {"confirmatory": True}] * 2)

"""Arms side by side: planted effects get their words through axes, texts and rules; figures are what was planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shape_worlds
from affectlens import results
from affectlens.shaping import dynamics, rows, tables
from affectlens.shaping.arms import Arm
from affectlens.shaping.axes import DISTRESS, axes_of
from affectlens.shaping.comparison import BASE, Comparison, Measured
from affectlens.shaping.settings import RulesConfig
from affectlens.shaping.wording import Classifier, Lexicon, repetition

WORDS = {
    "filler": "not shown",
    "expression": "text only (suppressed)",
    "calm_dpo": "calmer state and text",
    "calm_sft": "damaged",
    "set_point-l1-d1": "state only",
    "set_point-l1-d1-random": "not shown",
    "set_point-l1-d2": "numb",
    "set_point-l1-d2-random": "not shown",
    "words": "not shown",
}


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return shape_worlds.compared()


def test_planted_arms_get_their_words(compared: Comparison):
    found = {each.arm: each.word for each in compared.verdicts("same_words", "lexicon", RulesConfig())}
    assert found == WORDS


def test_one_seed_is_judged_and_says_that_it_is_one():
    one = shape_worlds.compared(seeds=1)
    found = {each.arm: each for each in one.verdicts("same_words", "lexicon", RulesConfig())}
    assert {name: each.word for name, each in found.items()} == WORDS
    assert {each.seeds for each in found.values()} == {1}


def test_every_table_fits_its_declaration_and_says_something(compared: Comparison, tmp_path: Path):
    found, verdicts = rows.all_rows(compared, "same_words", "lexicon", RulesConfig())
    assert set(found) == set(tables.ALL)
    for table, own in found.items():
        results.write(tmp_path, table, own)
        assert len(results.read(tmp_path, table.name)) == len(own) > 0, table.name
    read = results.read(tmp_path, "verdicts").set_index("arm")
    assert read.loc["calm_dpo", "state"] == pytest.approx(1.2, abs=0.35)
    assert read.loc["words", "cosine"] < 0.2 < 0.9 < read.loc["calm_dpo", "cosine"]
    assert len(results.read(tmp_path, "points")) == 9 * 3
    figures = rows.metrics(verdicts)
    assert figures["calm_dpo.state_low"] < figures["calm_dpo.state"] < figures["calm_dpo.state_high"]


def test_controls_are_the_filler_and_the_random_twin(compared: Comparison):
    assert compared.controls("calm_dpo") == ("filler",)
    assert compared.controls("set_point-l1-d1") == ("filler", "set_point-l1-d1-random")
    assert compared.controls("set_point-l1-d1-random") == ("filler",)
    assert compared.controls("filler") == ()


def test_a_study_without_the_base_model_is_refused(compared: Comparison):
    with pytest.raises(ValueError, match="base model was not measured"):
        Comparison([Arm("filler")], {"filler-s0": compared.measured["filler-s0"]}, compared.by)


def test_ways_out_and_back_are_counted(compared: Comparison):
    assert dynamics.still_distressed(compared, BASE).mean() == pytest.approx(0.5)
    assert dynamics.still_distressed(compared, "set_point-l1-d1").mean() == pytest.approx(5 / 24)
    assert dynamics.still_in_words(compared, BASE).mean() == pytest.approx(0.5)
    back = dynamics.returns(compared, BASE)
    assert back.watched == 40
    assert np.median(back.tokens) == pytest.approx(3, abs=1)
    assert back.random.mean() < back.tokens.mean()
    assert dynamics.report_agreement(compared, BASE).mean() > 0.9


def test_what_never_comes_back_counts_as_all_tokens_and_the_end_of_an_answer_is_no_return():
    off = np.array([5.0, 4.0, np.nan, np.nan])
    assert dynamics._first_within(off) == 4
    assert dynamics._first_within(np.array([5.0, 0.5, 9.0])) == 1
    assert dynamics._rolling(np.array([1.0, 3.0, np.nan])).tolist()[:2] == [2.0, 3.0]


def test_a_measured_arm_is_read_as_it_was_written(tmp_path: Path):
    own = shape_worlds.measured(Arm("base"))
    read = Measured.read(shape_worlds.write(own, tmp_path / "base"))
    assert read.answers == own.answers and read.card == own.card
    assert all((read.arrays[name] == values).all() for name, values in own.arrays.items())


def test_axes_point_from_calm_to_distress_and_keep_the_centre_of_the_base_model():
    base = axes_of(shape_worlds.stories()[:, 0], list(shape_worlds.CONCEPTS), "desperate", "calm", shape_worlds.RATINGS)
    assert base.names == (DISTRESS, "desperate", "calm", "valence")
    state = np.zeros(shape_worlds.D)
    state[0] = 2.0
    assert base.read(state, DISTRESS) > 1.5 > 0 > base.read(state, "calm")
    shifted = axes_of(
        shape_worlds.stories()[:, 0] - 1.0, list(shape_worlds.CONCEPTS), "desperate", "calm", shape_worlds.RATINGS
    )
    assert shifted.moved(base).read(state, DISTRESS) == pytest.approx(float(base.read(state, DISTRESS)))
    with pytest.raises(ValueError, match="no stories of `angry`"):
        axes_of(shape_worlds.stories()[:, 0], list(shape_worlds.CONCEPTS), "angry", "calm", shape_worlds.RATINGS)


def test_words_of_distress_are_those_of_unpleasant_lively_emotions():
    lexicon = Lexicon.of({**shape_worlds.WORDS, "both": ["quiet"]}, shape_worlds.RATINGS)
    assert lexicon.distress == {"desperate", "frantic"} and lexicon.calm == {"calm", "quiet"}
    assert lexicon.distress_of("Frantic, quite frantic they ran") == pytest.approx(40)
    assert lexicon.distress_of("calm now") == pytest.approx(-50)
    assert np.isnan(lexicon.distress_of("12 !"))
    assert lexicon.named("So sad.") and not lexicon.named("A door.")


def test_the_classifier_reads_texts_by_the_stories_and_none_of_no_words():
    classifier = Classifier.fit(shape_worlds.STORIES, "desperate", "calm")
    scores = classifier.distress_of(["they shouted, frantic, the water rose", "it was quiet and still", "..."])
    assert scores[0] > scores[1] and np.isnan(scores[2])


def test_repetition_is_the_share_of_runs_that_stood_before():
    assert repetition("a b c a b c") == pytest.approx(0.25)
    assert repetition("no way") == 0.0

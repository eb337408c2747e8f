"""The verdict of a monitor in worlds where it is known what the act follows from."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from affectlens.monitor import figures, stepping, trials, verdicts
from affectlens.monitor import onsets as onset
from affectlens.monitor.episodes import BENIGN, RISK, Resampled
from monitor_worlds import CONCEPTS, SETTINGS, World, pushed, rows, world


@cache
def found(kind: World, seed: int = 0) -> tuple[trials.Trial, dict[str, list[dict[str, Any]]]]:
    risk, benign = world(kind, seed)
    generator = np.random.default_rng(seed)
    trial = trials.run(risk, benign, rows(generator), SETTINGS, generator)
    draws = lambda name: np.random.default_rng([seed, *name.encode()])  # noqa: E731
    return trial, figures.evaluate("world", trial, risk.drawn, SETTINGS, draws)


def verdict(kind: World, row: str) -> str:
    return next(each["verdict"] for each in found(kind)[1]["verdicts"] if each["row"] == row)


def row(kind: World, name: str, table: str = "rows", **where: Any) -> dict[str, Any]:
    where = {"statistic": "rolling", **where} if table in ("rows", "caught") else where
    return next(
        r for r in found(kind)[1][table] if r["row"] == name and all(r[key] == value for key, value in where.items())
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("state", verdicts.WARNS),
        ("words", verdicts.TEXT),
        ("topic", verdicts.SITUATION),
        ("prompt", verdicts.SITUATION),
        ("length", verdicts.NOT_SHOWN),
        ("nothing", verdicts.NOT_SHOWN),
    ],
)
def test_each_world_has_its_verdict(kind: World, said: str):
    assert verdict(kind, "forecaster") == said, found(kind)[1]["verdicts"]


def test_a_concept_that_rises_before_the_act_warns_without_training():
    assert verdict("state", "desperate") == verdicts.WARNS
    assert verdict("nothing", "desperate") == verdicts.NOT_SHOWN
    assert row("state", "desperate")["within"] > 0.9


@pytest.mark.parametrize("kind", ["state", "words", "topic", "prompt", "length", "nothing"])
def test_the_prompts_last_token_tells_answers_to_one_prompt_apart_by_nothing(kind: World):
    assert {each["opening"] for each in found(kind)[1]["rows"]} == {0.5}


def test_prompt_only_scores_a_half_within_prompts_whatever_the_world():
    for kind in ("state", "prompt", "topic"):
        assert row(kind, "prompt_only")["within"] == 0.5
    assert row("prompt", "prompt_only")["auroc_low"] > 0.6


def test_length_tells_nothing_at_the_same_token():
    assert row("length", "position")["auroc"] == 0.5
    assert abs(row("length", "desperate")["auroc"] - 0.5) < 0.12


def test_long_before_the_signal_there_is_nothing_and_just_before_there_is():
    early, late = (row("state", "desperate", "before", tokens=tokens)["within"] for tokens in (48, 4))
    assert abs(early - 0.5) < 0.15 < late - 0.5


def test_warnings_come_about_as_early_as_the_signal_and_beyond_chance():
    caught = row("state", "desperate", "caught", target=0.05)
    assert caught["caught"] > 0.6
    assert caught["lead_8"] > 0.5
    assert 5 <= caught["median_lead"] <= 45
    assert caught["beyond_8_low"] > 0.2
    quiet = row("nothing", "desperate", "caught", target=0.05)
    assert quiet["beyond_1_low"] < 0.05


def test_false_alarms_stay_within_the_band_on_the_traffic_of_the_calibration():
    rates = [
        each["flagged"]
        for kind in ("state", "words", "nothing")
        for each in found(kind)[1]["false_alarms"]
        if each["source"] == "own"
    ]
    band = next(each["band_high"] for each in found("nothing")[1]["false_alarms"])
    assert np.mean(rates) < band
    assert {each["source"] for each in found("nothing")[1]["false_alarms"]} == {"own", "other"}


def test_stopping_at_alarms_averts_more_than_stopping_at_random():
    stopped = row("state", "desperate", "stepping_in", target=0.05, way="stop")
    assert stopped["averted"] > stopped["random_high"]
    assert stopped["spoiled"] < stopped["random_spoiled"] + 0.1
    chance = row("nothing", "desperate", "stepping_in", target=0.05, way="stop")
    assert chance["averted"] <= chance["random_high"] + 0.1


def test_calming_at_alarms_averts_more_than_calming_at_random_where_the_state_tells():
    calmed = row("state", "desperate", "stepping_in", target=0.05, way="calm")
    assert 0 < calmed["alarms"] < 2 * 24 * 2
    assert calmed["averted"] > calmed["random_averted"] > 0
    nothing = row("nothing", "desperate", "stepping_in", target=0.05, way="calm")
    assert nothing["averted"] <= nothing["random_high"] + 0.02


def test_the_worth_of_calming_is_the_one_counted_by_hand():
    acting = (True, [Resampled("a", 0, 4, 10, 4), Resampled("a", 20, 8, 10, 2)])
    quiet = (False, [Resampled("b", 0, 4, 10, 6), Resampled("b", 30, 0, 10, 0)])
    left = (True, [Resampled("c", 0, 5, 10, 0)])
    first = np.array([5, 0, stepping.NEVER])
    found = stepping.calming({0: acting, 1: quiet, 2: left}, first, np.random.default_rng(0))
    # Steered are a at 20 and b at 0; expected are .8 and .4 there, and the act of c.
    assert found["alarms"] == 2 and found["spoiled"] == 1.0
    assert found["averted"] == pytest.approx(((0.8 - 0.2) + (0.4 - 0.6)) / (0.8 + 0.4 + 1.0))
    assert found["random_low"] <= found["random_averted"] <= found["random_high"]


def onsets(strength: float, along: str, name: str) -> dict[str, Any]:
    trial, _ = found("state")
    columns = [trial.columns.names.index(name)]
    (one,) = onset.sensitivity(trial, pushed(strength, along), "rolling", columns, SETTINGS)
    assert one["row"] == name and one["concept"] == along and one["strength"] == strength and one["onsets"] == 60
    return one


def test_planted_onsets_are_found_the_oftener_and_sooner_the_larger_the_push_and_only_along_the_row():
    nothing, small, large = (onsets(strength, "desperate", "desperate") for strength in (0.0, 1.0, 3.0))
    assert nothing["caught"] < 0.2 < small["caught"] < large["caught"] and large["caught"] > 0.95
    # Sixteen tokens fill the window; a push of three deviations passes within them.
    assert 2 <= large["delay"] <= 16 and np.isnan(nothing["delay"])
    assert large["early"] == nothing["early"] < 0.2
    other = onsets(3.0, "happy", "desperate")
    assert other["caught"] == nothing["caught"]


def test_a_forecast_is_better_than_the_mean_where_the_state_tells():
    errors = {each["forecast"]: each for each in found("prompt")[1]["forecasts"]}
    assert errors["prompt_only"]["error"] < errors["constant"]["error"]
    assert errors["forecaster"]["error"] > errors["forecaster"]["floor"]


def test_too_few_acts_or_benign_episodes_are_said_to_be_too_few():
    trial, _ = found("state")
    strict = SETTINGS.model_copy(update={"least_acts": 10_000})
    made = figures.evaluate("world", trial, (), strict, lambda name: np.random.default_rng(0))
    assert {each["verdict"] for each in made["verdicts"]} == {verdicts.UNTESTED}
    assert "10000 are needed" in made["verdicts"][0]["why"]


def test_nothing_of_a_scenario_is_on_both_sides_and_every_answer_is_tested_once():
    trial, _ = found("state")
    names = [each.name for each in trial.episodes]
    assert len(set(names)) == len(names)
    assert sum(each.stratum == RISK for each in trial.episodes) == 24 * 2 * 6
    tested = {each.scenario for each in trial.episodes if each.stratum == BENIGN and each.source == "own"}
    assert 20 < len(tested) < 80


def test_the_best_of_many_random_rows_is_reported_beside_the_best_concept():
    assert row("state", "best_concept")["within"] > row("state", "best_random")["within"] + 0.2
    assert set(CONCEPTS) < {each["row"] for each in found("state")[1]["rows"]}

"""Sentences of analyses: templates, and how figures are written in them."""

from __future__ import annotations

import math
import re

import jinja2
import pytest
from affectlens.experiments.conclude.sentences import render
from affectlens.results import format
from affectlens.stats import Estimate
from synthetic_measurements import Steered, run

EFFECT = Estimate(0.42, 0.3, 0.54, 12)


def test_a_line_is_a_sentence_and_an_indented_one_continues_it() -> None:
    template = """
{% if shown %}
It is shown.
{% endif %}
{% for each in (1, 2) %}
Effect {{ each }} is
  {{ effect|measured("nats") }}.
{% endfor %}
"""
    effects = ("Effect 1 is 0.42 nats [0.30, 0.54].", "Effect 2 is 0.42 nats [0.30, 0.54].")
    assert render(template, shown=False, effect=EFFECT) == effects
    assert render(template, shown=True, effect=EFFECT) == ("It is shown.", *effects)


def test_a_name_that_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        render("{{ missing }}.")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (format.measured(EFFECT), "0.42 [0.30, 0.54]"),
        (format.measured(Estimate(0.42, math.nan, math.nan, 1), "sd", 1), "0.4 sd [no interval]"),
        (format.measured(Estimate(math.nan, math.nan, math.nan, 0)), "undefined"),
        (format.share(EFFECT), "42% [30%, 54%]"),
        (format.share(Estimate(0.42, math.nan, math.nan, 1)), "42% [no interval]"),
        (format.p_value(1 / 101, 1 / 101), "<= 0.0099"),
        (format.p_value(0.02, 0.01), "0.02"),
        (format.p_value(math.nan), format.MISSING),
    ],
)
def test_how_figures_are_written(written, expected) -> None:
    assert written == expected


def test_a_claim_about_steering_is_told_one_fact_a_sentence() -> None:
    asked = {"kind": "dose", "raises": ["desperate"]}
    told = run(Steered({"desperate": 20}).choices(asked)).sentences
    assert told[0] == "1 of 1 claimed vector shown to move the log-odds of the target."
    form = r"Desperate, claimed to raise it, changes it by \d\.\d\d nats \[\d\.\d\d, \d\.\d\d\] a side\."
    assert re.fullmatch(form, told[1])
    assert any(sentence.startswith("Adding desperate changes it by ") for sentence in told)
    assert any("of what asking for it does." in sentence for sentence in told)
    assert any(sentence.endswith("power, by planting.") for sentence in told)
    assert "Desperate: shown, beyond controls." in told


def test_without_a_positive_control_the_first_sentence_says_so() -> None:
    asked = {"kind": "dose", "raises": ["desperate"]}
    told = run(Steered({"desperate": 20}, order=None).choices(asked)).sentences
    assert told[0].startswith("This could not be tested: no scenario asks for the outcome outright")

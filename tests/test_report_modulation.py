"""Modulation on the page: arms with intervals, sample texts, what cannot be concluded, and no section without it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from affectlens import results
from affectlens.circuits import rates
from affectlens.report.evidence import Evidence, Rows
from affectlens.report.render import render
from affectlens.report.sections import modulation

from tests.browser import browser, visit
from tests.test_report import CONCEPTS, EVIL, study

LIKELY = {"circuit": 14, "random": 2, "wrong_emotion": 1, "as_published": 5, "direction": 12, "direction_layers": 9,
          "plain": 1, "prompting": 7}  # fmt: skip
"""Of 16 answers heard as the emotion in each arm."""


def texts(likely: dict[str, int]) -> list[dict[str, Any]]:
    """Two emotions, sixteen situations; of each arm the first ones are heard as the emotion."""
    found = []
    for concept in ("calm", "sad"):
        for arm, hits in likely.items():
            sizes = {"plain": ("none",), "prompting": ("none",), "circuit": ("divergence",)}
            for match in sizes.get(arm, ("divergence", "norm")):
                for place in range(16):
                    heard = concept if (place + 3) % 16 < hits else "tired"
                    row = {"concept": concept, "arm": arm, "match": match, "target": 0.0 if match == "none" else 0.5}
                    row |= {"number": 0, "scenario": f"s{place:02d}", "theme": "t", "outcome": "neutral", "nats": 3.0}
                    row |= {"text": f"An answer under {arm}. {EVIL}", "fault": "repetition" if place == 9 else ""}
                    row |= {"heard": heard, "heard_masked": heard, "names": False, "divergence": 0.5, "norm": 0.2}
                    found.append(row)
    return found


def evidence_of(folder: Path, likely: dict[str, int], right: int = 30) -> Evidence:
    """A page's evidence with these rates; of 40 story ends so many are heard rightly."""
    rows = texts(likely)
    labels = ["calm", "sad"] * 20
    heard = [label if place < right else "tired" for place, label in enumerate(labels)]
    found: dict[str, list[dict[str, Any]]] = {
        "rates": rates.rate_rows(rows), "differences": rates.difference_rows(rows), "texts": rows,
        "chooser": rates.chooser_rows(labels, {"open": heard, "masked": heard}, CONCEPTS),
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    for table in rates.TABLES:
        results.write(folder, table, found[table.name])
    whole = study()
    read = {f"modulation/{name}": Rows.of(frame) for name, frame in results.read_all(folder).items()}
    return dataclasses.replace(whole, tables={**whole.tables, **read})


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return evidence_of(tmp_path_factory.mktemp("modulation"), LIKELY)


@pytest.fixture(scope="module")
def page(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(evidence), encoding="utf-8")
    return path


def test_arms_are_drawn_in_order_with_both_sizes_and_chance(evidence: Evidence):
    chart = modulation.modulation_rates(evidence)
    filled, open_ = chart.spec["data"]
    assert list(filled["y"]) == list(modulation.WORDS.values())
    assert "Nothing" not in open_["y"] and "Circuit" not in open_["y"], "the circuit is the size of the others"
    assert filled["x"][2] == pytest.approx(13 / 16, abs=1e-3), "a broken answer is a miss"
    assert chart.spec["layout"]["shapes"][0]["x0"] == pytest.approx(1 / len(CONCEPTS))
    above = modulation.modulation_above(evidence)
    assert "Circuit" not in above.spec["data"][0]["y"]


@pytest.mark.parametrize(
    ("likely", "right", "standing", "words"),
    [
        ({}, 30, "shown", "Circuits bring their emotions into answers"),
        ({"wrong_emotion": 14}, 30, "partly shown", "not shown that circuits bring"),
        ({"random": 14, "wrong_emotion": 14}, 30, "not shown", "not shown that circuits bring"),
        ({}, 6, "not shown", "could not be heard"),
    ],
)
def test_the_finding_follows_from_controls_and_from_who_hears(tmp_path: Path, likely, right, standing, words):
    found = modulation.modulated(evidence_of(tmp_path / "m", {**LIKELY, **likely}, right))
    assert found is not None
    assert found[0] == standing
    assert words in found[1]["title"]


def test_without_modulation_there_is_no_section():
    assert 'id="modulation"' not in render(study())
    assert modulation.modulated(study()) is None


def test_caveats_stand_beside_the_published_circuit_and_only_there(evidence: Evidence, tmp_path: Path):
    assert "Zero is no value that a head has" in render(evidence)
    without = {arm: hits for arm, hits in LIKELY.items() if arm != "as_published"}
    assert "Zero is no value that a head has" not in render(evidence_of(tmp_path / "m", without))


@pytest.mark.parametrize("view", [{"width": 1200}, {"phone": True, "width": 390, "height": 844}])
def test_readers_see_charts_and_answers(page: Path, view: dict[str, Any]):
    with browser() as running, visit(running, page, **view) as seen:
        assert seen.errors == [] and seen.overflow() <= 0
        for name in ("modulation-rates", "modulation-above"):
            assert seen.page.locator(f"#{name} svg.main-svg .trace").count() >= 2
        answers = seen.page.locator("#table-modulation-texts tbody tr")
        assert answers.count() == 2 * len(LIKELY)
        assert EVIL in (answers.first.text_content() or "")
        assert seen.page.locator("#table-modulation-texts img").count() == 0

"""Shaping on the page: a point an arm and seed with intervals, verdicts, caveats, and no section without it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import shape_worlds
from affectlens import results
from affectlens.report.evidence import Evidence, Rows
from affectlens.report.render import render
from affectlens.report.sections import shape
from affectlens.shaping.rows import all_rows
from affectlens.shaping.settings import RulesConfig

from tests.browser import browser, visit
from tests.test_report import EVIL, study


def evidence_of(folder: Path, seeds: int = 3, **changes: str) -> Evidence:
    """A page's evidence of the planted arms; ``changes`` gives arms other verdicts."""
    found, _ = all_rows(shape_worlds.compared(seeds), "same_words", "lexicon", RulesConfig())
    for table, rows in found.items():
        for row in rows:
            if table.name == "verdicts":
                row["verdict"] = changes.get(row["arm"], row["verdict"])
            if table.name == "answers":
                row["text"] = f"{row['text']} {EVIL}"
        results.write(folder, table, rows)
    whole = study()
    read = {f"shape/{name}": Rows.of(frame) for name, frame in results.read_all(folder).items()}
    return dataclasses.replace(whole, tables={**whole.tables, **read})


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return evidence_of(tmp_path_factory.mktemp("shape"))


@pytest.fixture(scope="module")
def page(evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(evidence), encoding="utf-8")
    return path


def test_every_arm_and_seed_is_a_point_with_both_intervals(evidence: Evidence):
    chart = shape.shape_points(evidence)
    traces = {trace["name"]: trace for trace in chart.spec["data"]}
    assert set(traces) == {"Trained", "Control"}, "these arms hold no rule"
    assert len(traces["Trained"]["x"]) == 6 * 3 and len(traces["Control"]["x"]) == 3 * 3
    rows = {row["name"]: row for row in evidence.rows("shape/points")}
    place = traces["Trained"]["customdata"].index(
        next(each for each in traces["Trained"]["customdata"] if each.startswith("<b>calm_dpo-s1<"))
    )
    row = rows["calm_dpo-s1"]
    assert traces["Trained"]["y"][place] == pytest.approx(row["state"], rel=1e-3)
    assert traces["Trained"]["error_x"]["array"][place] == pytest.approx(row["text_high"] - row["text"], rel=1e-3)
    assert traces["Trained"]["error_y"]["array"][place] == pytest.approx(row["state_high"] - row["state"], rel=1e-3)


def test_verdicts_come_changed_first_and_controls_last(evidence: Evidence):
    table = shape.shape_verdicts(evidence)
    arms = [row[0].text for row in table.rows]
    assert arms[0] == "calm_dpo" and set(arms[-3:]) == {
        "filler", "set_point-l1-d1-random", "set_point-l1-d2-random"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "standing", "words"),
    [
        ({}, "shown", "Some ways calm the state"),
        ({"expression": "not shown"}, "shown", "The state falls with the text"),
        ({"calm_dpo": "not shown"}, "partly shown", "The text falls and the state stays"),
        (
            dict.fromkeys(
                ("calm_dpo", "expression", "calm_sft", "set_point-l1-d1", "set_point-l1-d2", "words"), "not shown"
            ),
            "not shown",
            "Neither a calmer state",
        ),
    ],
)
def test_the_finding_follows_from_the_verdicts(tmp_path: Path, changes: dict[str, str], standing: str, words: str):
    found = shape.shaped(evidence_of(tmp_path, 3, **changes))
    assert found is not None
    assert found[0] == standing and words in found[1]["title"]


def test_one_seed_is_told_on_the_page(tmp_path: Path):
    assert "One seed: what one training moves by luck" in render(evidence_of(tmp_path, seeds=1))


def test_without_arms_there_is_no_section():
    assert 'id="shape"' not in render(study())
    assert shape.shaped(study()) is None


@pytest.mark.slow
@pytest.mark.parametrize("view", [{"width": 1200}, {"phone": True, "width": 390, "height": 844}])
def test_readers_see_the_figure_and_the_verdicts(page: Path, view: dict[str, Any]):
    with browser() as running, visit(running, page, **view) as seen:
        assert seen.errors == [] and seen.overflow() <= 0
        assert seen.page.locator("#shape-points svg.main-svg .trace").count() >= 2
        assert seen.page.locator("#table-shape-verdicts tbody tr").count() == 9
        assert seen.page.locator("#table-shape-answers img").count() == 0

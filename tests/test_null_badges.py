"""Badges of the page in studies in which nothing is there, computed by the stages from activations without signal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import affectlens.report.render  # noqa: F401 (registers the findings)
import pytest
from affectlens import results
from affectlens.report.evidence import Evidence, Provenance, Rows
from affectlens.report.sentences import conclusions
from affectlens.stages.compare import CompareStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.geometry import GeometryStage
from affectlens.stages.match import MatchStage
from test_planted import CONCEPTS, FAST, LAYER, WIDTH, Plant, run

STUDIES = 20
STAGES = (DirectionsStage, MatchStage, CompareStage, GeometryStage)
COUNTED = {"directions_read", "vocabulary", "trained", "comparison", "agree", "makeup", "explained", "axes"}
"""Findings of these stages for which such a study has figures; the others have none here and say "not shown"."""


@pytest.fixture
def badges(tmp_path: Path, model_folder, monkeypatch):
    """``badges(signal, seed)`` -> the standing of every finding that these stages give, by its name."""
    monkeypatch.setitem(FAST, "geometry", {})

    def get(signal: float, seed: int) -> dict[str, str]:
        folder, model = tmp_path / f"{signal}-{seed}", model_folder("llama")
        folder.mkdir()
        opened: dict[str, Any] = Plant(signal=signal, seed=seed).build(folder, model)
        metrics = {stage.name: run(stage, opened, model, folder) for stage in STAGES}
        tables = {
            f"{stage.name}/{name}": Rows.of(results.read(folder / stage.name, name))
            for stage in STAGES
            for name in results.names(folder / stage.name)
        }
        compare = opened["compare"]
        cards = {"compare": {"subspace": compare.subspace, "pairs": compare.pairs}, "geometry": opened["geometry"].data}
        evidence = Evidence(
            "m", LAYER, WIDTH, CONCEPTS, opened["corpus"].documents, tables, metrics, cards,
            Provenance({}, [], {}, {}), fixed_split=True,
        )  # fmt: skip
        return {each.name: each.standing for each in conclusions(evidence)}

    return get


@pytest.mark.slow
def test_at_most_one_badge_in_twenty_says_more_than_not_shown_where_nothing_is_there(badges):
    awarded = {name for name, badge in badges(3.0, 0).items() if badge != "not shown"}
    assert awarded >= {"directions_read", "vocabulary", "agree", "makeup", "explained"}
    found = {seed: badges(0.0, seed) for seed in range(STUDIES)}
    assert all(set(each) >= COUNTED for each in found.values())
    false = [(seed, name) for seed, each in found.items() for name, badge in each.items() if badge != "not shown"]
    print(f"{len(false)} of {STUDIES * len(COUNTED)}: {false}")
    assert len(false) <= 0.05 * STUDIES * len(COUNTED)

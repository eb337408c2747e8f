"""The workspace as data, and as the views that `wandb-workspaces` would send."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from affectlens.errors import ConfigError, UserError
from affectlens.study import STAGES
from affectlens.tracking import workspace

RECORDED = {
    "Studies side by side": ([("jobType", "=", "summary")], [], {"Media Browser": 2, "Bar Chart": None}),
    "Stages while they run": ([("jobType", "!=", "summary")], ["group"], {"Run History Line Plot": 3}),
    "A sweep": ([("jobType", "=", "match")], [], {"Parallel Coordinates Plot": 1}),
}
"""What wandb-workspaces 0.4.13 made of the views: filters, grouping, panels by type (None: one a headline figure)."""
HEADLINES = [f"{stage.name}/{name}" for stage in STAGES for name, _ in stage.headline]


class Recorder(ModuleType):
    """Stands for the package: every class keeps its arguments."""

    def __getattr__(self, kind: str) -> Any:
        if kind.startswith("__"):
            raise AttributeError(kind)
        return lambda *given, **more: SimpleNamespace(kind=kind, given=given, **more)


@pytest.fixture
def recorded(monkeypatch) -> None:
    for name in ("", ".reports", ".reports.v2", ".workspaces"):
        monkeypatch.setitem(sys.modules, f"wandb_workspaces{name}", Recorder(f"wandb_workspaces{name}"))


def test_the_description_is_json_and_names_what_stages_log(capsys):
    workspace.main([])
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == workspace.FORMAT and [each["name"] for each in told["views"]] == list(RECORDED)
    bars = [key for each in told["views"][0]["panels"] if each["kind"] == "bar" for key in each["keys"]]
    assert bars == HEADLINES and "match/best_feature_auroc" in bars


def test_every_view_has_the_filters_groups_and_panels_that_were_recorded(recorded):
    kinds = {"MediaBrowser": "Media Browser", "BarPlot": "Bar Chart", "LinePlot": "Run History Line Plot"}
    kinds["ParallelCoordinatesPlot"] = "Parallel Coordinates Plot"
    for view in workspace.made("lab", "emotions"):
        filters, groups, wanted = RECORDED[view.name]
        ((key, sign, value),) = filters
        assert view.runset_settings.filters == f"{key[0].upper()}{key[1:]} {sign} '{value}'"
        assert [each.given[0] for each in view.runset_settings.groupby] == groups
        panels = [kinds[each.kind] for each in view.sections[0].panels]
        assert {kind: panels.count(kind) for kind in set(panels)} == {
            kind: len(HEADLINES) if count is None else count for kind, count in wanted.items()
        }
        assert (view.entity, view.project) == ("lab", "emotions")


def test_the_package_itself_makes_the_recorded_specifications():
    pytest.importorskip("wandb_workspaces")
    for view in workspace.made("lab", "emotions"):
        spec = json.loads(view._to_model().model_dump_json())["spec"]["section"]
        filters, groups, wanted = RECORDED[view.name]
        (runs,) = spec["run_sets"]
        assert [(each["key"]["name"], each["op"], each["value"]) for each in runs["filters"]["filters"]] == filters
        assert [each["name"] for each in runs["grouping"]] == groups
        panels = [each["view_type"] for each in spec["panel_bank_config"]["sections"][0]["panels"]]
        assert {kind: panels.count(kind) for kind in set(panels)} == {
            kind: len(HEADLINES) if count is None else count for kind, count in wanted.items()
        }


def test_mistakes_are_one_line(monkeypatch):
    for wrong in (["emotions"], ["lab/emotions/more"]):
        with pytest.raises(ConfigError, match="ENTITY/PROJECT"):
            workspace.main(wrong)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"pip install wandb\[workspaces\]"):
        workspace.main(["lab/emotions"])

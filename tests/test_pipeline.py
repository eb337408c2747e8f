"""The whole study, end to end: on tiny random models for the mechanics, on the embedded model for the claims."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from affectlens.errors import ConfigError, MissingResult
from affectlens.run import runner
from affectlens.stages.match import MatchStage
from affectlens.stages.sae import SaeStage
from affectlens.study import STAGES, Study, stage_named
from affectlens.tracking.observer import WandbObserver
from browser import browser, visit
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent
SMALL = {
    "sae": {"width": 64, "k": 8, "steps": 30, "batch": 128, "health_rows": 500},
    "match": {"permutations": 99, "random_saes": 2, "contexts": 2},
    "geometry": {"permutations": 99},
    "compare": {"null_directions": 99},
}


@pytest.fixture
def small_study(study_values) -> dict:
    """Every stage of a study of four emotions, on a tiny Llama."""
    return {**study_values, **SMALL}


def contents(study: Study) -> dict[str, bytes]:
    """Every result file of a study but the records with times in them, by stage and name."""
    found = {}
    for stage in STAGES:
        folder = study.folder(stage)
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in ("manifest.json", "part.json"):
                found[f"{stage.name}/{path.relative_to(folder)}"] = path.read_bytes()
    return found


def test_every_stage_runs_and_the_same_study_gives_the_same_bytes(small_study, write_study, tmp_path):
    one = Study.load(write_study({**small_study, "cache": str(tmp_path / "one")}))
    two = Study.load(write_study({**small_study, "cache": str(tmp_path / "two")}))
    first, second = runner.run(one), runner.run(two, workers=2)
    assert [outcome.stage for outcome in first] == [stage.name for stage in STAGES]
    assert {outcome.state for outcome in first + second} == {"computed"}
    a, b = contents(one), contents(two)
    assert set(a) == set(b)
    assert [name for name in a if a[name] != b[name]] == []
    assert {outcome.state for outcome in runner.run(one)} == {"cached"}
    for outcome in first:
        assert all(isinstance(value, float) for value in outcome.metrics.values()), outcome.stage


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_any_model_family_goes_through(small_study, write_study, model_folder, family):
    values = {**small_study, "model": {**small_study["model"], "name": str(model_folder(family))}}
    outcomes = runner.run(Study.load(write_study(values)))
    assert outcomes[-1].stage == "report"
    assert (outcomes[-1].folder / "report.html").stat().st_size > 10_000


def test_the_trained_sae_opens_with_sae_lens_alone_and_can_be_brought_back(small_study, write_study, tmp_path):
    import torch
    from sae_lens import SAE

    study = Study.load(write_study(small_study))
    runner.run(study, only=["sae"])
    ours = SaeStage.open(study.folder(SaeStage))
    theirs = SAE.load_from_disk(str(ours.folder))
    rows = runner.open_results(study, ["activations"])["activations"].tokens(2).read(range(50))
    with torch.no_grad():
        codes = theirs.encode(torch.from_numpy(rows)).numpy()
    assert (ours.encode(rows) - codes).__abs__().max() <= 1e-4 * codes.max()
    kept = shutil.copytree(ours.folder, tmp_path / "kept")
    loaded = Study.load(write_study({**small_study, "sae": {"load": {"path": str(kept)}}}, "loaded.yaml"))
    runner.run(loaded, only=["match"])
    assert MatchStage.open(loaded.folder(MatchStage)).codes.shape[1] == 64


def test_an_sae_of_another_width_or_layer_is_refused_before_anything_runs(small_study, write_study, tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()

    def save(width: int) -> None:
        shapes = {"W_enc": (width, 64), "W_dec": (64, width), "b_enc": (64,), "b_dec": (width,)}
        values = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        save_file(values, folder / "sae_weights.safetensors")

    save(48)
    config = {"d_in": 48, "d_sae": 64, "architecture": "standard", "metadata": {"hook_name": "blocks.2.hook_out"}}
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    path = write_study({**small_study, "sae": {"load": {"path": str(folder)}}})
    with pytest.raises(ConfigError, match=r"`sae\.load\.path: .*`: made for .*width 48, but .* 32"):
        Study.load(path)
    save(32)
    config |= {"d_in": 32, "metadata": {"hook_name": "blocks.1.hook_out"}}
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"made for layer 1, but `model\.layer` is 2"):
        Study.load(path)


def test_status_and_report_say_what_is_there(small_study, write_study):
    path = write_study(small_study)

    def affectlens(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "affectlens.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    early = affectlens("report", str(path))
    assert early.returncode == 1
    assert "stage `corpus` is not finished" in early.stderr
    runner.run(Study.load(path), only=["directions"])
    stages = json.loads(affectlens("status", str(path), "--json").stdout)["stages"]
    assert stages["directions"]["state"] == "done"
    assert stages["directions"]["seconds"] > 0
    assert 0 <= stages["directions"]["metrics"]["auroc_test"] <= 1
    assert stages["match"]["state"] == "missing"
    assert "directions" in affectlens("status", str(path)).stdout


def test_tracking_keeps_one_offline_run_a_stage_and_one_a_study(small_study, write_study, tmp_path):
    study = Study.load(write_study({**small_study, "tracking": {"mode": "offline"}}))
    runner.run(study, only=["directions"], observer=WandbObserver())
    runs = list((tmp_path / "cache" / "wandb").rglob("*.wandb"))
    assert len(runs) == 3 + 1


def test_a_study_without_results_opens_nothing(small_study, write_study):
    with pytest.raises(MissingResult, match="affectlens run"):
        runner.open_results(Study.load(write_study(small_study)), ["corpus"])


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Study:
    """The quickstart as `make run` runs it, on the embedded model, from an empty cache."""
    values = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    folder = tmp_path_factory.mktemp("quickstart")
    path = folder / "quickstart.yaml"
    path.write_text(yaml.safe_dump({**values, "cache": str(folder / "cache")}), encoding="utf-8")
    study = Study.load(path)
    runner.run(study)
    return study


@pytest.mark.slow
def test_the_quickstart_shows_what_the_readme_says(quickstart):
    metrics = {stage.name: runner.inspect(quickstart, stage).metrics for stage in STAGES}
    assert metrics["directions"]["auroc_test"] >= 0.90
    assert metrics["match"]["best_feature_auroc"] >= metrics["match"]["random_sae_auroc"] + 0.04
    # Held against wrong emotions and shuffled labels, too; a third is ten times what wrong labels give.
    assert metrics["causal"]["share_above_controls_direction"] > 1 / 3
    assert (
        metrics["causal"]["share_above_controls_direction"] > 5 * metrics["causal"]["above_controls_expected_direction"]
    )
    assert metrics["causal"]["diagonal_p_direction"] < 0.001
    page = (quickstart.folder(stage_named("report")) / "report.html").read_text(encoding="utf-8")
    assert "not shown" in page


@pytest.mark.slow
def test_the_quickstart_page_opens_in_a_browser_without_a_request(quickstart):
    with browser() as running, visit(running, quickstart.folder(stage_named("report")) / "report.html") as seen:
        assert seen.errors == []
        assert [address for address in seen.requests if not address.startswith("file:")] == []
        assert seen.drawn() >= 5

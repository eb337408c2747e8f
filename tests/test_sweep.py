"""Values with commas become studies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from affectlens import sweep
from affectlens.cli import app
from affectlens.errors import ConfigError
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.sae import SaeStage
from affectlens.study import Study
from typer.testing import CliRunner
from wandb_server import WandbServer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def study(study_values, write_study) -> Study:
    return Study.load(write_study(study_values))


def test_values_with_commas_become_studies():
    assert sweep.expand(["sae.k=16,32", "seed=3", "model.layer=10,15"]) == [
        ("sae.k=16", "seed=3", "model.layer=10"),
        ("sae.k=16", "seed=3", "model.layer=15"),
        ("sae.k=32", "seed=3", "model.layer=10"),
        ("sae.k=32", "seed=3", "model.layer=15"),
    ]
    assert sweep.alternatives("corpus.emotions=[calm,sad],all") == ["corpus.emotions=[calm,sad]", "corpus.emotions=all"]
    assert sweep.alternatives("report.title='a, b'") == ["report.title='a, b'"]
    assert sweep.alternatives("sae.load={path: a, b: c}") == ["sae.load={path: a, b: c}"]


@pytest.mark.parametrize(
    "overrides",
    [["sae.k=16"], [], ["sae.k=16,16"], ["sae.k=16,"], ["sae.k=1,2,3", "seed=" + ",".join(map(str, range(400)))]],
)
def test_sweeps_that_cannot_be_meant(overrides):
    with pytest.raises(ConfigError, match="--sweep"):
        sweep.expand(overrides)


@pytest.mark.parametrize("named", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml"])
def test_a_shipped_study_is_swept_by_its_short_name_in_any_folder(named: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    studies = sweep.load(Path(named), ["seed=0,1,2"])
    assert [each.config.name for each in studies] == [f"quickstart-seed{seed}" for seed in range(3)]
    assert [each.config.seed for each in studies] == [0, 1, 2]


def test_the_short_name_of_a_study_is_swept_on_the_command_line(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["status", "quickstart", "seed=0,1,2", "--sweep", "--json"])
    assert found.exit_code == 0, found.exception
    named = [each["study"] for each in json.loads(found.stdout)["studies"]]
    assert named == ["quickstart-seed0", "quickstart-seed1", "quickstart-seed2"]


def test_the_studies_of_a_sweep_have_names_of_their_own(study):
    studies = sweep.load(Path(study.source), ["sae.k=4,6", "model.layer=1,2", "seed=5"])
    assert [each.config.name for each in studies] == [
        "tiny-k4-layer1",
        "tiny-k4-layer2",
        "tiny-k6-layer1",
        "tiny-k6-layer2",
    ]
    assert {each.config.seed for each in studies} == {5}
    named = sweep.load(Path(study.source), ["sae.k=4,6", "name=mine"])
    assert [each.config.name for each in named] == ["mine-k4", "mine-k6"]
    # A name is not part of what a result depends on.
    alone = Study.load(Path(study.source), ["sae.k=4"])
    assert alone.fingerprint(SaeStage) == named[0].fingerprint(SaeStage)


def test_commas_without_sweep_are_explained(study):
    done = CliRunner().invoke(app, ["run", study.source, "sae.k=4,6"])
    assert isinstance(done.exception, ConfigError)
    assert "--sweep" in str(done.exception)


class SweepServer(WandbServer):
    """A W&B server that has one sweep, and hands out the given values to an agent, one run each."""

    def __init__(self, config: dict, values: list[dict]) -> None:
        super().__init__()
        self.config, self.todo, self.beats = config, list(values), []

    def _on_sweep_with_runs(self, variables: dict) -> dict:
        sweep = {"id": "s", "name": "s", "config": yaml.safe_dump(self.config), "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _on_create_agent(self, variables: dict) -> dict:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _on_heartbeat(self, variables: dict) -> dict:
        running = json.loads(variables["runState"])
        commands = []
        if not running and self.todo:
            values = self.todo.pop(0)
            args = {key: {"value": value} for key, value in values.items()}
            run = "-".join(f"{key.replace('.', '-')}-{value}" for key, value in values.items())
            commands = [{"type": "run", "run_id": run, "program": "affectlens", "args": args}]
        elif not running:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


def test_what_the_example_varies_is_what_its_studies_depend_on():
    """A study that loads its SAE would be the same for every value."""
    config = yaml.safe_load((ROOT / "configs" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    words = config["command"]
    file = Path(words[words.index("run") + 1])
    fixed = [word for word in words if "=" in word]
    studies = [Study.load(ROOT / file, [*fixed, f"sae.architecture={each}"]) for each in ("topk", "batchtopk")]
    sections: list[Any] = [study.section(SaeStage) for study in studies]
    assert all(section.load is None for section in sections)
    assert len({study.fingerprint(SaeStage) for study in studies}) == 2


@pytest.mark.slow
def test_a_sweep_agent_drives_studies_and_learns_their_figures(study, tmp_path):
    """The agent of the installed wandb, the example's command, and two values."""
    config = yaml.safe_load((ROOT / "configs" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    assert config["metric"]["name"] == "sae/explained_variance"
    program = {"affectlens": [sys.executable, "-m", "affectlens.cli"], "configs/quickstart.yaml": [study.source]}
    changed = {"sae": ["corpus"]}
    config["command"] = [new for word in config["command"] for new in (program | changed).get(word, [word])]
    values = [{"corpus.ngram": 8}, {"corpus.ngram": 9}]
    with SweepServer(config, values) as server:
        agent = [sys.executable, "-m", "wandb", "agent", "local/affectlens/s"]
        environment = {**os.environ, **server.environment(), "PYTHONPATH": str(ROOT), "WANDB_DIR": str(tmp_path)}
        environment.pop("WANDB_MODE", None)
        done = subprocess.run(agent, env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path)
        for ngram in (8, 9):
            told = server.runs[f"corpus-ngram-{ngram}"]
            assert told.fields["sweep"] == "s", done.stdout + done.stderr
            assert told.summary["corpus/documents"] == 56
            assert Study.load(Path(study.source), [f"corpus.ngram={ngram}"]).folder(CorpusStage).is_dir()

"""Values with commas become studies."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline import sweep
from pipeline.cli import app
from pipeline.errors import ConfigError
from pipeline.stages.sae import SaeStage
from pipeline.study import Study

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
    assert "for one study a value, add --sweep" in str(done.exception)


def test_yaml_of_the_sweep_agent_is_a_sweep():
    values = yaml.safe_load((ROOT / "configs" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    assert values["command"][:2] == ["${env}", "affectlens"]
    assert "${args_no_hyphens}" in values["command"]

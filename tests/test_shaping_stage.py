"""The stage ``shape_arms`` on a tiny model: parts, tables, arms that can be asked, and refusals before any run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import affectlens
import numpy as np
import pytest
import yaml
from affectlens import results
from affectlens.errors import ConfigError, UserError
from affectlens.shaping.inference import Alarm, Cap, Push, RandomAlarm
from affectlens.shaping.result import ShapeArms
from affectlens.study import Study, stage_named

pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is an optional extra")
SHAPE = {
    "run": True,
    "arms": ["words", "set_point", "subtract", "cap", "alarm"],
    "seeds": 1,
    "distress": "sad",
    "doses": [2],
    "layers": [0, 2],
    "steps": 2,
    "rank": 2,
    "length": 256,
    "benign_samples": 1,
    "benign_tokens": 4,
    "window": 4,
}


@pytest.fixture(scope="module")
def study(model_folder, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A tiny study whose arms are made."""
    folder = tmp_path_factory.mktemp("shaped")
    values = {
        "name": "tiny",
        "cache": str(folder / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": ["afraid", "calm", "proud", "sad"]},
        "activations": {"pooled_layers": [0]},
        "tracking": {"mode": "disabled"},
        "compute": {"threads": 1, "device": "cpu"},
        "shape": SHAPE,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    affectlens.run_study(path, stages=["shape_arms"])
    return Study.load(path)


@pytest.fixture(scope="module")
def made(study: Study) -> ShapeArms:
    return ShapeArms(study.folder(stage_named("shape_arms")))


def test_every_arm_is_there_and_can_be_asked(study: Study, made: ShapeArms):
    names = [arm.name for arm in made.arms]
    assert names[:3] == ["base", "words-s0", "set_point-l1-d2-s0"]
    assert {"set_point-l2-d2-random-s0", "cap-random-s0", "alarm", "alarm-random-s0"} < set(names)
    setting = study.setting("cpu")
    given = {"device": "cpu", "models": setting.models}
    base = made.changed(made.named("base"), study.model, **given)
    assert base.rule is None
    chats = [[{"role": "user", "content": "Shall we go?"}]]
    kinds = {"subtract": Push, "cap": Cap, "alarm": Alarm, "alarm-random-s0": RandomAlarm}
    for name, kind in kinds.items():
        changed = made.changed(made.named(name), study.model, subject=base.subject, **given)
        assert isinstance(changed.rule, kind) and changed.subject is base.subject
        assert len(changed.sample(chats, 4, 1.0, np.random.default_rng(0))) == 1
    shaped = made.changed(made.named("set_point-l2-d2-s0"), study.model, subject=base.subject, **given)
    assert shaped.subject is not base.subject and shaped.rule is None
    before, after = (each.states(chats, [(5, 6)], [3])[0][3] for each in (base, shaped))
    assert np.abs(after - before).max() > 0
    subtract, twin = (
        made.changed(made.named(name), study.model, subject=base.subject, **given).rule
        for name in ("subtract", "subtract-random-s0")
    )
    assert isinstance(subtract, Push) and isinstance(twin, Push)
    assert np.linalg.norm(subtract.vector) == pytest.approx(np.linalg.norm(twin.vector), rel=1e-5)
    with pytest.raises(UserError, match=r"no such arm; did you mean `?cap"):
        made.named("capp")


def test_tables_hold_every_trained_arm(made: ShapeArms):
    training = results.read(made.folder, "training")
    held = results.read(made.folder, "held_out")
    trained = {arm.name for arm in made.arms if arm.trained}
    assert set(training["arm"]) == trained == set(held["arm"])
    shifts = held[held["figure"].str.startswith("shift_")]
    assert set(shifts["aim"]) == {2.0} and np.allclose(shifts["before"], 0, atol=1e-3)


def test_a_trained_arm_is_exported_as_a_model_with_a_card_and_its_adapter(
    study: Study, made: ShapeArms, tmp_path: Path
):
    from affectlens.cli import app
    from affectlens.model.config import ModelConfig
    from affectlens.model.loading import load_weights
    from typer.testing import CliRunner

    folder = tmp_path / "words"
    listed = CliRunner().invoke(app, ["shape", str(study.source)])
    assert listed.exit_code == 0 and "words-s0" in listed.output and "cap-random-s0" in listed.output
    done = CliRunner().invoke(app, ["shape", str(study.source), "--export", "words-s0", "--out", str(folder)])
    assert done.exit_code == 0, done.output
    card = (folder / "README.md").read_text()
    assert "2 updates" in card and "## Limits" in card and "nothing is known of state and text" in card
    models = study.setting("cpu").models
    exported = load_weights(ModelConfig(name=str(folder), dtype="float32"), device="cpu", models=models).state_dict()
    adapter = made.adapter(made.named("words-s0"))
    merged = load_weights(study.model, device="cpu", models=models, adapter=adapter).state_dict()
    assert all(bool((exported[name] == merged[name]).all()) for name in merged)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    for name, said in (("cap", "changes no weights"), ("word-s0", "no such arm"), ("words-s0", "is there already")):
        refused = CliRunner().invoke(app, ["shape", str(study.source), "--export", name, "--out", str(folder)])
        assert refused.exit_code != 0 and said in str(refused.exception)


def test_one_arm_more_leaves_the_others_as_they_are(study: Study, made: ShapeArms, tmp_path: Path):
    kind = stage_named("shape_arms")
    more = Study.load(Path(study.source), ["shape.arms=[words,set_point,subtract,cap,alarm,filler]"])
    keys = []
    for each in (study, more):
        stage = kind(each.section(kind), each.setting("cpu"), {})
        keys.append(each.part_keys(stage, stage.parts()))
    assert set(keys[1]) - set(keys[0]) == {"filler-s0"}
    assert all(keys[1][name] == key for name, key in keys[0].items())
    other = Study.load(Path(study.source), ["shape.learning_rate=0.001"])
    stage = kind(other.section(kind), other.setting("cpu"), {})
    changed = {name for name, key in other.part_keys(stage, stage.parts()).items() if keys[0][name] != key}
    assert changed == {"words-s0"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["shape.distress=sadd"], r"`shape.distress: sadd`: the study has no such concept"),
        (["shape.distress=calm"], r"both `calm`"),
        (["shape.layers=[1]"], r"layer 1 is not kept; the study keeps 0, 2"),
        (["shape.layers=[2,2]"], r"`layers` names 2 twice"),
        (["shape.doses=[0]"], r"`doses` are numbers above 0"),
        (["shape.doses=[.nan]"], r"shape.doses"),
        (["shape.target=0.001"], r"`shape.target: 0.001`: 42 benign answers cannot hold it"),
        (["shape.arms=[sleep]"], r"shape.arms"),
        (["shape.steps=0"], r"shape.steps"),
        (["shape.rank=100000"], r"shape.rank"),
        (["shape.texts=/nowhere"], r"/nowhere/shaping/stress.jsonl: no such file"),
        (["shape.learning_rate=-1"], r"shape.learning_rate"),
    ],
)
def test_wrong_values_are_refused_before_anything_runs(study: Study, changes: list[str], said: str):
    with pytest.raises((ConfigError, UserError), match=said):
        Study.load(Path(study.source), changes)


def test_without_peft_a_run_is_refused_before_anything_is_computed(study: Study, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    kind = stage_named("shape_arms")
    with pytest.raises(ValueError, match=r"`shape.arms`: trained arms need peft"):
        kind.check_chosen(study.config)
    kind.check_chosen(Study.load(Path(study.source), ["shape.arms=[add]"]).config)

"""What a study will take is told before it runs: of every stage, from this machine's own runs where there are any."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest
from affectlens import plan
from affectlens.run import manifest, rates, runner
from affectlens.run.workspace import standing
from affectlens.stage import MERGE, Part
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.study import STAGES, Study


def rows_of(study: Study, names: list[str]) -> dict[str, plan.Estimate]:
    known = partial(standing, study), partial(rates.of_stage, study), runner.tokenizer_of(study)
    return {row.stage: row for row in plan.plan(study, runner.needed_for(study, names), *known).rows}


@pytest.fixture
def study(study_values, write_study) -> Study:
    return Study.load(write_study(study_values))


def test_stages_that_are_off_are_said_to_be_off_and_every_other_says_something(study):
    rows = rows_of(study, [])
    off = {name: row.off for name, row in rows.items() if row.off}
    assert off == {stage.name: stage.switch for stage in STAGES if stage.switch}
    assert {"writers", "circuits", "modulation", "monitor", "measure", "grade", "conclude"} <= set(off)
    for key in off.values():
        section, name = key.split(".")
        assert name in type(getattr(study.config, section)).model_fields
    assert set(rows) == {stage.name for stage in STAGES}
    for name, row in rows.items():
        assert str(row), name
        assert row.off or (row.seconds or 0.0) > 0, name
    closing = list(plan.Plan(list(rows.values()), 1 << 40, 2, study.config.cache).closing())
    assert closing[0].startswith("In all about ") and "not counted" not in closing[0]
    assert "measured with the embedded model" in closing[1]


@pytest.mark.parametrize(("exact", "words"), [(True, "1,234 tokens"), (False, "about 1,234 tokens")])
def test_tokens_counted_by_a_sample_are_said_to_be_about_so_many(study, monkeypatch, exact, words):
    monkeypatch.setattr("affectlens.activations.size.count_tokens", lambda *_, **__: (1234, exact))
    assert rows_of(study, ["activations"])["activations"].amount == words


def test_an_own_run_tells_the_time_of_the_next(study, write_study, study_values):
    """Planted: parts that took a second a unit of work, and a merge of three seconds."""
    runner.run(study, only=["activations"])
    assert rows_of(study, ["activations"])["activations"].done
    folder = study.folder(ActivationsStage)
    record = manifest.read(folder)
    assert record is not None and all(run["effort"] > 0 for run in record["parts"].values())
    effort = sum(run["effort"] for run in record["parts"].values())
    for run in record["parts"].values():
        run["seconds"] = run["effort"]
    record["run"]["merge_seconds"] = 3.0
    manifest.write(folder, {key: value for key, value in record.items() if key != manifest.CHECKSUM})
    other = Study.load(write_study({**study_values, "activations": {"texts_per_part": 5, "pooled_layers": [0]}}))
    found = rates.of_stage(other, ActivationsStage)
    assert found is not None
    assert found.seconds == pytest.approx({"": 1.0, MERGE: 3.0 / effort})
    assert found.day == record["run"]["started"][:10]
    row = rows_of(other, ["activations"])["activations"]
    assert row.seconds == pytest.approx(effort + 3.0, rel=0.01)
    assert row.day == found.day


def test_runs_of_other_machines_and_other_models_tell_nothing(study, write_study, study_values, model_folder):
    runner.run(study, only=["activations"])
    folder = study.folder(ActivationsStage)
    record = manifest.read(folder)
    assert record is not None
    for run in record["parts"].values():
        run["seconds"] = 10.0
    manifest.write(folder, {key: value for key, value in record.items() if key != manifest.CHECKSUM})
    assert rates.of_stage(study, ActivationsStage) is not None
    other = {**study_values, "model": {**study_values["model"], "name": str(model_folder("gpt2"))}}
    assert rates.of_stage(Study.load(write_study(other, "other.yaml")), ActivationsStage) is None
    record["run"]["host"] = "another"
    manifest.write(folder, {key: value for key, value in record.items() if key != manifest.CHECKSUM})
    assert rates.of_stage(study, ActivationsStage) is None


def test_a_run_too_short_to_tell_and_a_damaged_manifest_tell_nothing(study):
    runner.run(study, only=["corpus"])
    record = manifest.read(study.folder(CorpusStage))
    assert record is not None
    for run in record["parts"].values():
        run["seconds"] = 0.4
    record["run"]["merge_seconds"] = 0.3
    manifest.write(study.folder(CorpusStage), {name: record[name] for name in record if name != manifest.CHECKSUM})
    assert rates.of_stage(study, CorpusStage) is None
    (study.folder(CorpusStage) / manifest.NAME).write_text(json.dumps({"stage": "corpus"}))
    assert rates.of_stage(study, CorpusStage) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("00007", ""), ("layer-012", "layer"), ("blackmail.choice-0003", "choice"), ("speak-sad", "speak"),
     ("warning_organism-000", "warning_organism"), ("all", "all")],
)  # fmt: skip
def test_parts_of_a_kind_are_told_by_their_names(name, kind):
    assert plan.kind_of(Part(name)) == kind


def test_more_cores_take_less_time_and_no_more_work_than_parts(study, write_study, study_values):
    assert plan.speed(1) == 1 < plan.speed(2) < 2
    alone = rows_of(study, ["corpus"])["corpus"].seconds
    many = Study.load(write_study({**study_values, "compute": {**study_values["compute"], "workers": 2}}, "many.yaml"))
    assert rows_of(many, ["corpus"])["corpus"].seconds == pytest.approx(alone)  # one part has one worker


def test_the_tokenizer_of_the_embedded_model_is_the_one_that_transformers_finds(tmp_path):
    """A dry run reads it straight from the file, without the three seconds in which AutoTokenizer finds the class."""
    from affectlens.model import embedded
    from affectlens.model.config import ModelConfig
    from affectlens.model.loading import freeze_date, load_tokenizer
    from transformers import AutoTokenizer

    file = embedded.weights_file()
    config = ModelConfig(name="embedded")
    ours = load_tokenizer(config, tmp_path / "models", converting=False)
    theirs = freeze_date(AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name), config.template_date)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "implied", "experiments", "circuits", "shape"])
def test_a_dry_run_of_a_shipped_study_leaves_nothing_behind(name, tmp_path):
    command = [sys.executable, "-m", "affectlens.cli", "run", name, f"cache={tmp_path / 'cache'}", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "In all about" in done.stdout + done.stderr
    assert not (tmp_path / "cache").exists()

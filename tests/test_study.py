"""A study as a whole: plugins, what fingerprints are taken over, what follows from the registry."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from affectlens.config import LOCATION, Config, left_out
from affectlens.errors import ConfigError
from affectlens.model.config import ModelConfig, Shape, default_layer, dtype_name
from affectlens.sae.formats import content
from affectlens.sae.source import EMBEDDED as EMBEDDED_SAE
from affectlens.settings import Resources
from affectlens.stage import Stage, register, registered
from affectlens.study import STAGES, ClusterConfig, Study, StudyConfig
from pydantic import Field

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
PLUGIN = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
"""The example that the documents give."""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``plugin(name, source)``: a module of the user's that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path / "own"))

    def write(name: str, source: str = PLUGIN) -> Path:
        path = (tmp_path / "own" / Path(*name.split("."))).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        return path

    return write


def command(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``affectlens`` in a process of its own, so that no plugin stays registered in this one."""
    own = tmp_path / "own"
    own.mkdir(exist_ok=True)
    # As the installed command does, and not as `python -c`: the current folder is not on the path.
    code = "import sys; sys.path.remove(''); from affectlens import cli; cli.main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, cwd=own,
    )  # fmt: skip


def test_a_plugin_adds_a_stage_with_its_section_and_its_jobs(study_values, write_study, plugin, tmp_path):
    plugin("my_words")
    path = write_study(
        {**study_values, "plugins": ["my_words"], "words": {"least": 4}, "cluster": {"words": {"jobs": 2}}}
    )
    done = command(tmp_path, "run", path, "--stage", "words", "--workers", "2")
    assert done.returncode == 0, done.stderr
    (counts,) = (tmp_path / "cache" / "words").glob("*/counts.json")
    assert set(json.loads(counts.read_text())) == set(study_values["corpus"]["emotions"])
    refused = command(tmp_path, "run", path, "words.leest=3")
    assert refused.returncode == 2
    assert "unknown key `words.leest`; did you mean `least`" in refused.stderr


def test_a_study_that_names_no_plugin_has_none(study_values, write_study, plugin, tmp_path):
    plugin("my_words")
    refused = command(tmp_path, "run", write_study({**study_values, "words": {"least": 4}}))
    assert refused.returncode == 2
    assert "unknown key `words`" in refused.stderr


def test_the_content_of_a_plugin_counts(study_values, write_study, plugin, tmp_path):
    quiet = plugin("my_notes", "NOTE = 1\n")
    path = write_study({**study_values, "plugins": ["my_notes"]})
    first = Study.load(path).fingerprint(STAGES[0])
    quiet.write_text("NOTE = 2\n", encoding="utf-8")
    assert Study.load(path).fingerprint(STAGES[0]) != first
    assert Study.load(write_study(study_values)).fingerprint(STAGES[0]) != first


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "`plugins: my_missing`: there is no such module"),
        ("import my_missing_dependency", "it cannot be imported (ModuleNotFoundError: No module named 'my_missing_d"),
        ("1 / 0", "it cannot be imported (ZeroDivisionError: division by zero)"),
        (PLUGIN.replace('"words"', '"corpus"'), "it cannot be imported (ValueError: stage `corpus`"),
    ],
)
def test_a_plugin_that_fails_is_one_plain_sentence(study_values, write_study, plugin, source, said, tmp_path):
    if source is not None:
        plugin("my_missing", source)
    done = command(tmp_path, "status", write_study({**study_values, "plugins": ["my_missing"]}))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_registered_stages_have_needs_that_are_there_and_names_of_their_own():
    class Other(Stage[Config, None]):
        name = "corpus"
        config_class = Config
        needs = ()

    with pytest.raises(ValueError, match=r"`corpus`.*has the name of"):
        register(Other)
    Other.name, Other.needs = "other", ("nowhere",)
    with pytest.raises(ValueError, match="needs `nowhere`"):
        register(Other)
    assert Other not in registered()


def test_sections_and_resources_follow_from_the_registry():
    for stage in STAGES:
        assert StudyConfig.model_fields[stage.section or stage.name].annotation is stage.config_class
        assert ClusterConfig.model_fields[stage.name].annotation is Resources


def test_a_study_survives_the_way_to_another_process(study_values, write_study):
    study = Study.load(write_study(study_values), ["sae.k=9"])
    fingerprints = {stage.name: study.fingerprint(stage) for stage in STAGES}
    copy = pickle.loads(pickle.dumps(study))
    assert copy.config == study.config
    assert {stage.name: copy.fingerprint(stage) for stage in copy.stages} == fingerprints


@pytest.mark.parametrize(("layers", "layer"), [(4, 3), (12, 8), (30, 20), (42, 28)])
def test_two_thirds_of_the_depth(layers, layer):
    assert default_layer(Shape(layers, 1)) == layer


def test_the_layer_left_out_is_that_of_the_depth_and_enters_the_provenance(study_values, write_study):
    del study_values["model"]["layer"]
    study = Study.load(write_study(study_values))
    assert study.config.model.layer == 3
    activations = study.stage_named("activations")
    assert study.provenance(activations)["model"]["layer"] == 3
    assert study.fingerprint(activations) == Study.load(write_study(study_values), ["model.layer=3"]).fingerprint(
        activations
    )


def test_a_model_that_is_not_here_needs_its_layer(study_values, write_study):
    study_values["model"] = {"name": "nobody/nothing"}
    with pytest.raises(ConfigError, match=r"`model.layer` is missing.*nobody/nothing"):
        Study.load(write_study(study_values))


def test_the_type_enters_as_it_is_on_this_machine(study_values, write_study):
    study_values["model"]["dtype"] = "auto"
    study = Study.load(write_study(study_values))
    resolved = dtype_name("auto", "cpu")
    assert resolved in ("float32", "bfloat16")
    activations = study.stage_named("activations")
    assert study.setting("cpu").model.dtype == resolved == study.provenance(activations)["model"]["dtype"]
    named = Study.load(write_study(study_values), [f"model.dtype={resolved}"])
    assert study.fingerprint(activations) == named.fingerprint(activations)


def test_the_precision_of_training_enters_as_it_is_on_this_machine(study_values, write_study):
    for given in ("auto", "float32", "bfloat16"):
        study = Study.load(write_study(study_values), [f"sae.precision={given}"])
        sae, told = study.stage_named("sae"), dtype_name(given, "cpu")
        assert study.section(sae).precision == study.provenance(sae)["config"]["precision"] == told  # pyright: ignore


def test_texts_count_by_content_not_by_path(study_values, write_study, tmp_path):
    before = Study.load(write_study(study_values))
    elsewhere = shutil.copy(study_values["corpus"]["neutral"], tmp_path / "elsewhere.jsonl")
    after = Study.load(write_study(study_values), [f"corpus.neutral={elsewhere}"])
    for stage in STAGES:
        assert before.fingerprint(stage) == after.fingerprint(stage), stage.name
    assert str(tmp_path) not in json.dumps([before.provenance(stage) for stage in STAGES])


@pytest.mark.parametrize("beside", ["README.md", ".DS_Store", "more/notes.txt"])
def test_of_an_sae_folder_only_the_files_of_its_format_count(tmp_path, beside):
    folder = tmp_path / "sae"
    folder.mkdir()
    for file in content(EMBEDDED_SAE):
        shutil.copy(file, folder / file.name)
    config = StudyConfig(name="x", sae={"load": {"path": str(folder)}}, cache=tmp_path / "cache")  # pyright: ignore[reportCallIssue]
    sae = next(stage for stage in STAGES if stage.name == "sae")

    def identity() -> str:
        return Study(config, "x").identity(sae.identities(config)["sae"])

    before = identity()
    (folder / beside).parent.mkdir(exist_ok=True)
    (folder / beside).write_text("x", encoding="utf-8")
    assert identity() == before
    (folder / "cfg.json").write_text((folder / "cfg.json").read_text() + "\n", encoding="utf-8")
    assert identity() != before


def test_a_hub_model_named_by_its_commit_is_known_before_it_is_downloaded(tmp_path):
    study = Study(StudyConfig(name="x", cache=tmp_path), "x")
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert study.identity(ModelConfig(name="nobody/nothing", revision=commit)) == f"hub:nobody/nothing@{commit}"


def test_fields_that_say_where_something_lies_never_enter():
    class Section(Config):
        folder: str = Field(default="here", json_schema_extra=LOCATION)
        number: int = 3

    assert left_out(Section, measured=False) == left_out(Section, measured=True) == {"folder"}

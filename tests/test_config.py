"""A study file that is wrong is refused in one sentence that names the key, the value and the remedy."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from affectlens.config import apply_overrides
from affectlens.errors import ConfigError
from affectlens.study import STAGES, Study, StudyConfig


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sae.kk=3", ["unknown key `sae.kk`", "did you mean `k`"]),
        ("modle.name=x", ["unknown key `modle`", "did you mean `model`"]),
        ("seed=many", ["`seed: many`", "whole number"]),
        ("seed=-1", ["`seed: -1`", "at least 0"]),
        ("model.layer=4", ["`model.layer: 4`", "layers 0 to 3"]),
        ("activations.pooled_layers=[9]", ["`activations.pooled_layers: 9`", "layers 0 to 3"]),
        ("corpus.emotions=[calm, hapy]", ["`corpus.emotions: hapy`", "did you mean `happy`"]),
        ("corpus.emotions=[calm]", ["at least two"]),
        ("corpus.test_topics=[kitchin]", ["`corpus.test_topics: kitchin`", "did you mean `kitchen`"]),
        ("corpus.validation_topics=[exam]", ["`corpus.validation_topics: exam`", "also tested or ablated"]),
        ("corpus.stories=nowhere.jsonl", ["`corpus.stories: nowhere.jsonl`", "no such file"]),
        ("geometry.ratings=nowhere.csv", ["`geometry.ratings: nowhere.csv`", "no such file"]),
        ("model.name=./nowhere", ["`model.name: ./nowhere`", "no such folder"]),
        ("compute.workers=0", ["`compute.workers`", "1 or more"]),
        ("tracking.mode=later", ["`tracking.mode: later`", "offline"]),
        ("name=has space", ["`name: has space`"]),
        ("match.pooling=median", ["`match.pooling: median`", "mean"]),
        ("noequals", ["expected key=value"]),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(study_values, write_study, override, said):
    path = write_study(study_values)
    with pytest.raises(ConfigError) as caught:
        Study.load(path, [override])
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert words in message


def test_missing_and_broken_files_are_named(tmp_path: Path):
    (tmp_path / "quickstart.yaml").write_text("name: x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*quickstart\.yaml"):
        Study.load(tmp_path / "quickstrat.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="a folder; give"):
        Study.load(tmp_path / "folder.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\nsae: [1, 2", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line [23]"):
        Study.load(broken)
    broken.write_text("- a\n- b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not a mapping"):
        Study.load(broken)


def laughs() -> str:
    """Aliases that multiply: nine lines that stand for 9 ** 9 values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 2020-99-99", "a value that is none"),
        ("seed: !!int abc", "a value that is none"),
        ("seed: !!float abc", "a value that is none"),
        ("name: !!timestamp abc", "a value that is none"),
        ("seed: " + "9" * 5000, "a value that is none"),
        ("seed: !!python/object:os.system {}", "could not determine a constructor"),
        ("corpus: &a\n  emotions: *a", "an alias that holds itself"),
        ("name: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("name: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ('cache: "a\\0b"', "NUL"),
        (laughs(), "too many values"),
        ("model: {layer: 1}\nseed: 1\nmodel: {layer: 2}", "line 3: the key `model` stands twice"),
        ("sae:\n  k: 3\n  k: 4", "line 3: the key `k` stands twice"),
    ],
)
def test_yaml_that_is_none_is_one_plain_sentence(tmp_path, text, said):
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Study.load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_byte_order_mark_is_skipped_and_other_encodings_are_named(study_values, write_study):
    path = write_study(study_values)
    plain = Study.load(path).config
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Study.load(path).config == plain
    path.write_bytes("name: caf\u00e9\nseed: 1\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"study\.yaml line 1: not UTF-8"):
        Study.load(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("compute.workers=many", "`compute.workers: many`: expected a whole number, or choose 'auto'"),
        ("corpus.emotions=3", "`corpus.emotions: 3`: expected a list"),
        ("activations.means=perhaps", "expected true or false"),
        ("sae=3", "`sae: 3`: expected a section"),
        ("model.name=3", "`model.name: 3`: expected a text"),
        ("causal.level=1", "must be less than 1"),
        ("sae.load.pth=x", "unknown key `sae.load.pth`"),
        ("tracking.tags=['']", "`tracking.tags.0: `: needs at least 1 character"),
    ],
)
def test_values_of_another_kind_are_explained_in_plain_words(study_values, write_study, override, said):
    with pytest.raises(ConfigError) as caught:
        Study.load(write_study(study_values), [override])
    assert said in str(caught.value)
    for theirs in ("Input should", "valid ", "parse"):
        assert theirs not in str(caught.value)


def test_the_cache_may_lie_in_the_home_folder(study_values, write_study, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Study.load(write_study(study_values), ["cache=~/results"]).config.cache == tmp_path / "results"


def test_overrides_are_read_as_yaml_and_leave_the_original_alone():
    original = {"sae": {"k": 8}}
    changed = apply_overrides(original, ["sae.k=16", "corpus.emotions=[calm, sad]", "model.name=embedded"])
    assert changed == {
        "sae": {"k": 16},
        "corpus": {"emotions": ["calm", "sad"]},
        "model": {"name": "embedded"},
    }
    assert original == {"sae": {"k": 8}}
    assert apply_overrides({"sae": {"load": "embedded"}}, ["sae.load.path=x"]) == {"sae": {"load": {"path": "x"}}}


def test_every_field_of_every_section_has_a_help_text():
    def walk(kind, path):
        for name, field in kind.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from walk(field.annotation, f"{path}{name}.")
            elif not field.description:
                yield f"{path}{name}"

    assert list(walk(StudyConfig, "")) == []


def test_stages_need_only_earlier_stages():
    seen: set[str] = set()
    for stage in STAGES:
        assert set(stage.needs) <= seen, stage.name
        assert (stage.section or stage.name) in StudyConfig.model_fields
        seen.add(stage.name)


def affectlens(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line as a user runs it."""
    command = [sys.executable, "-m", "affectlens.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)


def test_the_command_line_answers_a_mistake_with_one_line_and_status_2(study_values, write_study):
    done = affectlens("run", write_study(study_values), "sae.kk=3")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "study.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    assert affectlens("run", write_study(study_values), "--mode", "often").returncode == 2
    assert affectlens("run", write_study(study_values), "--stage", "mach").returncode == 2


def test_help_status_and_mistakes_import_no_heavy_library(study_values, write_study):
    path = write_study(study_values)
    probe = (
        "import sys\n"
        "from affectlens import cli\n"
        "sys.argv = ['affectlens', *{arguments!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {{'torch', 'transformers', 'transformer_lens', 'sae_lens', 'h5py', 'scipy', 'sklearn', 'wandb',"
        " 'plotly', 'numpy'}} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    for arguments in (["--help"], ["run", "--help"], ["status", str(path)], ["run", str(path), "sae.kk=3"]):
        done = subprocess.run(
            [sys.executable, "-c", probe.format(arguments=arguments)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "HEAVY []" in done.stdout, (arguments, done.stdout[-300:], done.stderr[-300:])


def test_help_teaches():
    started = time.monotonic()
    done = affectlens("--help")
    assert done.returncode == 0, time.monotonic() - started
    for word in ("run", "status", "report", "quickstart.yaml", "corpus"):
        assert word in done.stdout
    assert "--mode" in affectlens("run", "--help").stdout

"""The studies and experiments that come with the package, in a folder that has none of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from affectlens import shipped
from affectlens.cli import app
from affectlens.corpus.texts import EMBEDDED, texts_path
from affectlens.errors import UserError
from affectlens.experiments.validation import read_chosen
from affectlens.study import Study
from typer.testing import CliRunner


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml"])
def test_a_shipped_study_is_known_by_name_in_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert Study.load(Path(name)).config.name == "quickstart"


def test_a_file_of_ones_own_comes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("name: mine\n", encoding="utf-8")
    assert Study.load(Path("quickstart.yaml")).config.name == "mine"


def test_shipped_experiments_are_read_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read_chosen(Path("experiments"), "all")) == 18


def test_init_copies_everything_and_overwrites_nothing(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("name: mine\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert result.exit_code == 0
    for name in shipped.NAMES:
        names = [path.relative_to(shipped.folder(name)) for path in shipped.folder(name).rglob("*") if path.is_file()]
        assert all((tmp_path / name / file).is_file() for file in names if "__pycache__" not in file.parts)
    assert (tmp_path / "configs" / "quickstart.yaml").read_text(encoding="utf-8") == "name: mine\n"
    assert shipped.copy_out(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "configs").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        shipped.copy_out(tmp_path)


def test_an_embedded_writer_builds_and_the_embedded_stories_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = Study.load(Path("implied")).config.corpus
    assert texts_path("stories", corpus.stories) == EMBEDDED / "writer_e.jsonl"
    assert {each.writer: each.path.name for each in corpus.evaluate} == {
        "told": "stories.jsonl",
        "writer_d": "writer_d.jsonl",
    }

"""The Python interface: what docs/notebook.md promises, run on a tiny study."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import affectlens
import numpy as np
import pytest
from affectlens.errors import MissingResult, UserError

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.md"


@pytest.fixture
def path(study_values, write_study) -> Path:
    study_values["sae"] = {"width": 64, "k": 8, "steps": 20, "train_batch_size_tokens": 64, "health_texts": 0}
    return write_study(study_values)


@pytest.fixture
def study(path) -> affectlens.OpenStudy:
    return affectlens.run_study(path, stages=["directions", "sae"])


def test_importing_the_package_imports_no_library():
    code = "import sys, affectlens; print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in affectlens.__all__:
        assert getattr(affectlens, name) is not None
    with pytest.raises(AttributeError, match="no attribute `nothing`"):
        affectlens.nothing  # noqa: B018


def test_the_notebook_runs_as_it_is_written(study, path):
    blocks = re.findall(r"```python\n(.*?)```", NOTEBOOK.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) >= 5
    names: dict = {}
    for block in blocks:
        exec(block.replace('"quickstart"', repr(str(path))), names)
    assert names["means"].shape == (len(study.documents), study.activations.d_model)
    assert list(names["reading"].columns)[:3] == ["message", "role", "token"]
    assert set(study.concepts) < set(names["reading"].columns)
    assert all(len(answers) == 2 for answers in (names["answers"].plain, names["answers"].steered))


def test_the_jupyter_notebook_runs_cell_by_cell_and_holds_no_outputs(study, path):
    book = json.loads(NOTEBOOK.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    names: dict = {}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
            source = "".join(cell["source"]).replace('"quickstart"', repr(str(path)))
            exec(compile(source, cell["id"], "exec"), names)
    assert names["study"].folder("directions") == study.folder("directions")
    assert set(names["known"]["concept"]) == set(study.concepts)
    assert names["figure"].data[0].z.shape == (len(names["strongest"]), len(names["reading"]))
    assert "".join(names["reading"]["token"]) == names["text"]
    assert all(len(made) == 2 for made in (names["answers"].plain, names["answers"].steered, names["answers"].random))
    assert names["active"].idxmax() == names["codes"].max(axis=0).argmax()


def test_a_reading_is_what_the_cache_holds_of_the_same_text(study):
    document = study.documents.iloc[0]
    rows = study.activations.tokens(study.layer).of(0)
    expected = study.result("directions").readout(study.layer, rows) / study.activations.mean_norm(study.layer)
    reading = study.read(document["text"])
    np.testing.assert_allclose(reading[list(study.concepts)].to_numpy(), expected, atol=1e-5)


def test_steering_moves_the_answer_and_nothing_is_plain(study):
    prompt = "The letter came this morning, and"
    none = study.steer(prompt, {"calm": 0.0}, tokens=8)
    assert none.plain == none.steered == none.random
    far = study.steer(prompt, {"calm": 3.0}, tokens=8, samples=2)
    assert far.plain != far.steered
    assert far == study.steer(prompt, {"calm": 3.0}, tokens=8, samples=2)
    with pytest.raises(UserError, match="no direction of `clam`"):
        study.steer(prompt, {"clam": 1.0})


def test_a_result_folder_is_followed_back_to_the_texts(study):
    opened = affectlens.open_study(study.folder("directions"))
    assert set(opened.folders) == {"corpus", "activations", "directions"}
    assert opened.concepts == study.concepts
    with pytest.raises(UserError, match="open the study file"):
        opened.read("a text")


def test_what_is_not_there_is_named(study, tmp_path):
    with pytest.raises(MissingResult, match="stage `match` is not finished"):
        study.table("match/concepts")
    with pytest.raises(MissingResult, match="no table `directions/nothing`"):
        study.table("directions/nothing")
    with pytest.raises(MissingResult, match="holds no result"):
        affectlens.open_study(tmp_path)

"""The stages of circuits on a tiny model: off unless asked for, resumable, the same bytes in any order."""

from __future__ import annotations

import affectlens
import numpy as np
import pytest
import yaml
from affectlens.circuits.scores import Scores
from affectlens.errors import ConfigError
from affectlens.study import Study
from tiny import EMOTIONS

CIRCUITS = {
    "run": True,
    "story_tokens": 12,
    "rotations": 1,
    "select_contexts": 8,
    "size_contexts": 4,
    "report_contexts": 4,
    "control_contexts": 2,
    "neuron_contexts": 4,
    "neurons_checked": 5,
    "neurons_unselected": 4,
    "neuron_check_contexts": 2,
    "feature_contexts": 4,
    "edge_contexts": 2,
    "minimal_contexts": 2,
    "ig_steps": 2,
    "concept_heads": 2,
    "sizes": [0.1, 0.3, 0.5],
    "removed_up_to": 0.3,
    "contexts_per_part": 3,
    "permutations": 99,
}


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("circuits")
    values = {
        "name": "tiny",
        "cache": str(folder / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": list(EMOTIONS)},
        "activations": {"texts_per_part": 64, "pooled_layers": []},
        "circuits": CIRCUITS,
        "tracking": {"mode": "disabled"},
        "compute": {"threads": 1, "device": "cpu"},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    affectlens.run_study(path, stages=["circuit_units"])
    return {"path": path, "values": values, "folder": folder}


def test_writers_sum_and_heads_are_tested(finished) -> None:
    study = affectlens.open_study(finished["path"])
    writers = study.table("circuit_units/writers")
    for _, rows in writers[writers["unit"] == "all"].groupby("concept"):
        direct = rows.set_index("kind")["direct"]
        assert abs(direct.drop("reading").sum() - direct["reading"]) < 1e-4
    heads = study.table("circuit_units/heads")
    assert len(heads) == 16
    assert heads["effect"].abs().max() > 0
    assert (heads["p_adjusted"] >= heads["p"]).all()
    features = study.table("circuit_units/features").set_index("unit")["effect"]
    assert {"feature", "other features", "error"} == set(features.index)


def test_the_arrays_hold_every_context(finished) -> None:
    study = Study.load(finished["path"])
    scores = Scores(study.folder(study.stage_named("circuit_units")))
    assert len(scores.cells) == 8
    assert scores.arrays["effect"].shape == (8, 16, 4)
    assert scores.effects.shape == (8, 16)
    assert np.abs(scores.arrays["effect"].sum(axis=2)).max() < 1e-4, "contrasts of all concepts sum to 0"


def test_a_study_names_circuits_or_has_none(study_values, write_study) -> None:
    path = write_study(study_values)
    study = Study.load(path)
    assert not study.config.circuits.run
    study_values["circuits"] = {"run": True, "sizes": [0.3, 0.1]}
    with pytest.raises(ConfigError, match="sizes"):
        Study.load(write_study(study_values))

"""Small models and small studies, built once per test session: nothing is downloaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

from affectlens.corpus.texts import EMBEDDED, read_jsonl
from tiny import EMOTIONS, build_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory):
    """``model_folder("llama" | "gpt2" | ...)`` -> path, built on first use."""
    root, built = tmp_path_factory.mktemp("models"), {}

    def get(family: str) -> Path:
        if family not in built:
            built[family] = build_model(root / family, family)
        return built[family]

    return get


@pytest.fixture(scope="session")
def tiny_subject(model_folder, tmp_path_factory: pytest.TempPathFactory):
    """``tiny_subject("llama")`` -> the loaded tiny model, float32; tests leave it as it is."""
    from affectlens.model.subject import ModelConfig, Subject

    root, loaded = tmp_path_factory.mktemp("converted"), {}

    def get(family: str) -> Subject:
        if family not in loaded:
            config = ModelConfig(name=str(model_folder(family)), layer=2, dtype="float32")
            loaded[family] = Subject.load(config, device="cpu", models=root)
        return loaded[family]

    return get


@pytest.fixture
def study_values(model_folder, tmp_path: Path) -> dict:
    """A study of four emotions on a tiny Llama, small enough for every stage to take seconds."""
    neutral = tmp_path / "neutral.jsonl"
    rows = [row for row in read_jsonl(EMBEDDED / "stories.jsonl") if row["emotion"] in ("alert", "docile")]
    with neutral.open("w", encoding="utf-8") as stream:
        for row in rows[:12]:
            stream.write(json.dumps({"kind": "prose", "text": row["text"]}) + "\n")
    return {
        "name": "tiny",
        "cache": str(tmp_path / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": list(EMOTIONS), "neutral": str(neutral)},
        "activations": {"texts_per_part": 8, "pooled_layers": [0]},
        "tracking": {"mode": "disabled"},
        "compute": {"threads": 1, "device": "cpu"},
    }


@pytest.fixture
def write_study(tmp_path: Path):
    """``write_study(values)`` -> path of a YAML file."""

    def write(values: dict, name: str = "study.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def computed_study(model_folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a study of four concepts on a tiny Llama, computed up to its directions; tests leave it as it is."""
    import affectlens

    folder = tmp_path_factory.mktemp("computed")
    values = {
        "name": "tiny",
        "cache": str(folder / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": list(EMOTIONS)},
        "tracking": {"mode": "disabled"},
        "compute": {"threads": 1, "device": "cpu"},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    affectlens.run_study(path, stages=["directions"])
    return path

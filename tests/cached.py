"""A small activation cache without the runner: what several test modules build on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from affectlens.activations import ActivationStore
from affectlens.activations.config import ActivationsConfig
from affectlens.corpus.documents import CorpusConfig
from affectlens.model.subject import ModelConfig
from affectlens.stage import Setting
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage

LAYER = 2


def build(out: Path, model: Path, *, dtype: Any = "float32", neutral: str = "embedded", **config) -> ActivationStore:
    """Corpus and activations of a small study; ``config`` is the activations section."""
    torch.set_num_threads(1)
    setting = Setting(0, ModelConfig(name=str(model), layer=LAYER, dtype=dtype), "cpu", 1, out / "models")
    corpus = CorpusStage(CorpusConfig(emotions=("calm", "sad"), neutral=neutral), setting, {})
    opened = {"corpus": CorpusStage.open(run(corpus, out / "corpus"))}
    stage = ActivationsStage(ActivationsConfig(**config), setting, opened)
    return ActivationsStage.open(run(stage, out / "activations"))


def run(stage: Any, out: Path) -> Path:
    """Every part of a stage, then its merge."""
    parts = {}
    for part in stage.parts():
        parts[part.name] = out / "parts" / part.name
        parts[part.name].mkdir(parents=True)
        stage.run_part(part, parts[part.name], lambda units: None)
    stage.finish(parts, out)
    return out


def write_texts(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """A file of neutral texts or chats."""
    path.write_text("".join(json.dumps({"kind": "prose", **row}) + "\n" for row in rows), encoding="utf-8")
    return str(path)

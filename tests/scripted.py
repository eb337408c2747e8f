"""A tiny model that says what it is told to, and the results of earlier stages that go with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from affectlens.corpus.documents import Document, Split
from affectlens.experiments.config import ExperimentsConfig
from affectlens.model.subject import ModelConfig
from affectlens.probing import control_vectors as controls
from affectlens.stage import Setting, Stage
from affectlens.stages.conclude import ConcludeStage, Conclusions
from affectlens.stages.grade import Grades, GradeStage
from affectlens.stages.measure import Measurements, MeasureStage

CONCEPTS = ("afraid", "calm", "proud", "sad")
D, LAYER, NORM = 32, 1, 5.0
SIZE, GAIN = 4.0, 6.0
YES, NO = " was", " the"
"""Each one token of the tiny tokenizer."""


class Scripted:
    """A Llama whose blocks do nothing: the next token follows from the last one alone, and from what is added to it.

    After the opening of an answer it says YES rather than NO by ``bias`` logits, and by more the further it is pushed
    along the direction of the first concept; after either it stops. The other directions move nothing.

    Attributes:
        bias: of YES over NO without a push.
        gain: how much a push along the planted direction weighs.
    """

    def __init__(self, source: Path, folder: Path, bias: float, gain: float = GAIN) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        generator = torch.Generator().manual_seed(5)
        self.directions = torch.eye(D)[:4]
        self.bias, self.gain, self.folder = bias, gain, folder
        opening = tokenizer("<|assistant|>\n", add_special_tokens=False)["input_ids"][-1]
        (yes,), (no,) = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in (YES, NO))
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
            model.model.norm.weight.fill_(1.0)
            embedding = torch.randn(model.config.vocab_size, D, generator=generator)
            output = torch.zeros_like(embedding)
            embedding[opening] = SIZE * torch.eye(D)[4]
            embedding[[yes, no]] = SIZE * torch.eye(D)[5]
            root = D**0.5
            output[yes] = (20 + bias) / root * torch.eye(D)[4] + gain / root * torch.eye(D)[0]
            output[no] = 20 / root * torch.eye(D)[4]
            output[tokenizer.eos_token_id] = 60 / root * torch.eye(D)[5]
            model.model.embed_tokens.weight.copy_(embedding)
            model.lm_head.weight = torch.nn.Parameter(output)
        model.config.tie_word_embeddings = False
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def log_odds(self, strength: float) -> float:
        """Of YES over NO under a push along the planted direction, in closed form."""
        push = strength * NORM
        return (self.bias * SIZE + self.gain * push) / float(np.hypot(SIZE, push))

    def stage(self, folder: Path, **config: Any) -> MeasureStage:
        """The stage that measures on this model, with experiments from ``folder``."""
        texts = documents()
        rows = np.random.default_rng(0).normal(size=(300, D)).astype(np.float32)
        corpus = SimpleNamespace(
            documents=texts,
            emotions=CONCEPTS,
            indices=lambda *splits: [text.index for text in texts if text.split in splits],
            labels=lambda chosen: np.array([[texts[row].emotion == each for each in CONCEPTS] for row in chosen]),
        )
        tokens = SimpleNamespace(document=np.arange(300) % len(texts), read=lambda chosen: rows[chosen])
        results = {
            "corpus": corpus,
            "activations": SimpleNamespace(
                layers=(LAYER, 2), mean_norm=lambda layer: NORM, tokens=lambda layer: tokens
            ),
            "sae": SimpleNamespace(
                decoder=controls.unit_rows(np.random.default_rng(1).normal(size=(8, D))),
                encode=lambda values: np.maximum(values @ np.eye(D)[:, :8], 0).astype(np.float32),
            ),
            "directions": SimpleNamespace(
                unit=lambda layer: self.directions.numpy(),
                massive=lambda layer: [],
                strength_unit=lambda store, layer: store.mean_norm(layer),
            ),
            "match": SimpleNamespace(best=np.arange(4)),
        }
        model = ModelConfig(name=str(self.folder), layer=LAYER, dtype="float32")
        setting = Setting(0, model, "cpu", 1, self.folder / "models")
        return MeasureStage(ExperimentsConfig(folder=folder, **{"run": "all", **config}), setting, results)


def documents() -> tuple[Document, ...]:
    found = []
    splits: tuple[tuple[Split, str], ...] = (("train", "park"), ("train", "shop"), ("test", "exam"))
    for split, topic in splits:
        for concept in CONCEPTS:
            text = f"The rain had stopped and she was {concept} at the {topic}, waiting for the others to come home."
            found.append(Document(len(found), "story", concept, topic, "first", split, text))
    return tuple(found)


def write_experiment(root: Path, name: str, config: dict[str, Any], scenarios: Sequence[dict[str, Any]]) -> Path:
    """A folder of an experiment."""
    import yaml

    folder = root / name
    folder.mkdir(parents=True)
    texts = {"title": name, "claim": "It does.", "refuted_by": "It does not."}
    (folder / "experiment.yaml").write_text(yaml.safe_dump({**texts, **config}), encoding="utf-8")
    lines = [json.dumps(scenario) + "\n" for scenario in scenarios]
    (folder / "scenarios.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "README.md").write_text(f"# {name}\n", encoding="utf-8")
    return folder


def run_parts(stage: Stage[Any, Any], folder: Path, order: int = 1) -> dict[str, Path]:
    """Every part of a stage, in order or backwards; each into a folder of its own."""
    parts = {}
    for part in list(stage.parts())[::order]:
        parts[part.name] = folder / "parts" / part.name
        parts[part.name].mkdir(parents=True)
        stage.run_part(part, parts[part.name], lambda units: None)
    return {part.name: parts[part.name] for part in stage.parts()}


class Finished:
    """The three stages of the experiments, run to their end without the runner.

    Attributes:
        folder: holds a result folder for each stage.
        metrics: of all three.
        findings: what was concluded, an entry an experiment.
    """

    def __init__(self, measure: MeasureStage, folder: Path, order: int = 1) -> None:
        self.folder = folder
        opened: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        made: list[tuple[Stage[Any, Any], type[Any]]] = [(measure, Measurements)]
        made += [(GradeStage(measure.config, measure.setting, opened), Grades)]
        made += [(ConcludeStage(measure.config, measure.setting, opened), Conclusions)]
        for stage, result in made:
            out = folder / stage.name
            parts = run_parts(stage, out, order)
            self.metrics |= stage.finish(parts, out)
            opened[stage.name] = result(out)
        self.findings = opened["conclude"].findings
        self.concluding: Any = made[-1][0]

    def measured(self, name: str) -> Any:
        """Everything measured in one experiment, with its grades: a Measured, without the doubt what it has."""
        return self.concluding.measured(name)

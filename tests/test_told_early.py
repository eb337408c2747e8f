"""What a config, a header, a file or a tokenizer can tell is told before anything is computed, and where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_codes
import yaml
from affectlens.errors import ConfigError, UserError
from affectlens.run import runner
from affectlens.study import Study

Values = dict[str, Any]
Change = Callable[[Values, Path], None]


def _set(key: str, value: Any) -> Change:
    def change(values: Values, folder: Path) -> None:
        *sections, name = key.split(".")
        for section in sections:
            values = values.setdefault(section, {})
        values[name] = value(folder) if callable(value) else value

    return change


def _file(key: str, name: str, content: str | bytes) -> Change:
    """A key that names a file of this content."""

    def write(folder: Path) -> str:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return _set(key, write)


def _sae(change: Callable[[Path], object], case: str = "sae-lens topk none") -> Change:
    """``sae.load`` of a folder to which something was done."""

    def write(folder: Path) -> dict[str, str]:
        sae = record_codes.write(folder / "foreign", case)
        change(sae)
        return {"path": str(sae)}

    return _set("sae.load", write)


def _without(tensor: str) -> Callable[[Path], None]:
    def change(sae: Path) -> None:
        from safetensors.numpy import load_file, save_file

        path = sae / "sae_weights.safetensors"
        save_file({name: value for name, value in load_file(path).items() if name != tensor}, path)

    return change


def _model(change: Callable[[Path], object]) -> Change:
    """A copy of the model to which something was done."""

    def write(values: Values, folder: Path) -> None:
        copy = shutil.copytree(values["model"]["name"], folder / "model")
        change(copy)
        values["model"]["name"] = str(copy)

    return write


def _vectors(**arrays: np.ndarray) -> Change:
    def write(folder: Path) -> str:
        found = {"concepts": np.array(["afraid", "calm", "proud", "sad"])} | arrays
        np.savez(folder / "vectors.npz", **found)  # pyright: ignore[reportArgumentType]
        return str(folder / "vectors.npz")

    return _set("directions.imported", write)


def _experiment(outcome: Values, **more: Any) -> Change:
    def write(values: Values, folder: Path) -> None:
        place = folder / "experiments" / "letters"
        place.mkdir(parents=True)
        (place / "README.md").write_text("x")
        about = {"title": "t", "claim": "c", "refuted_by": "r", "readings": [{"name": "answer", "at": "answer"}]}
        (place / "experiment.yaml").write_text(yaml.safe_dump(about | {"outcomes": [outcome], "analyses": []}))
        scenario = {"id": "a", "messages": [{"role": "user", "content": "A letter came. What now?"}]}
        scenario |= {"options": {"target": [" was"], "other": [" the"]}, **more}
        (place / "scenarios.jsonl").write_text(json.dumps(scenario) + "\n")
        values["experiments"] = {"folder": str(place.parent), "run": ["letters"]}

    return write


def _wider(model: Path, copy: Path) -> None:
    shutil.copytree(model, copy)
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"hidden_size": 48}))


def _untemplated(model: Path) -> None:
    (model / "chat_template.jinja").unlink(missing_ok=True)
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings))


def _added(model: Path) -> None:
    """Tokens were added to the tokenizer, and the model's embedding did not grow with it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    tokenizer.save_pretrained(model)


def _settings(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _as_codes(path: Path, tensor: str) -> None:
    """Quantised by hand: nothing says what the whole numbers stand for."""
    from safetensors.numpy import load_file, save_file

    stored = load_file(path)
    save_file({name: np.sign(v).astype(np.int8) if tensor in name else v for name, v in stored.items()}, path)


def _both(*changes: Change) -> Change:
    def change(values: Values, folder: Path) -> None:
        for each in changes:
            each(values, folder)

    return change


ZEROS = np.zeros((4, 32), np.float32)
LAYERS = {f"layer_{layer}": np.ones((4, 32), np.float32) for layer in (0, 2)}
JUDGE = {"kind": "judge", "question": "{scenario} {answer}", "labels": ["yes", "no"], "positive": "yes"}
SERVER = {"name": "j", "model": "m", "address": "http://127.0.0.1:9/v1", "key_variable": "NO_SUCH_KEY"}
STORY = {"emotion": "calm", "topic": "a", "text": "word " * 80}
CHECK: dict[str, tuple[Change, str]] = {
    "a file of stories in another encoding": (
        _file("corpus.stories", "s.jsonl", json.dumps(STORY).replace("word", "é").encode("latin-1")),
        "s.jsonl line 1: not UTF-8",
    ),
    "topics that differ by a letter's case": (
        _both(_set("corpus.emotions", "all"), _file("corpus.stories", "s.jsonl", "".join(
            json.dumps({**STORY, "emotion": emotion, "topic": topic}) + "\n"
            for topic in ("a garden", "A Garden", "b", "c") for emotion in ("calm", "sad")
        ))), "`a garden` and `A Garden`",
    ),
    "a story without a topic": (
        _file("corpus.stories", "s.jsonl", json.dumps({"emotion": "calm", "text": "x"})), "s.jsonl line 1",
    ),
    "ratings without valence": (_file("geometry.ratings", "r.csv", "Word,V.Mean\ncalm,7\n"), "valence"),
    "ratings of the comparison without valence": (_file("compare.ratings", "r.csv", "Word,V\ncalm,7\n"), "valence"),
    "a rating that is missing": (
        _file("geometry.ratings", "r.csv", "word,valence,arousal\ncalm,7,\nsad,2,3\n"), "line 2 (calm)"
    ),
    "a rating that is no number": (
        _file("geometry.ratings", "r.csv", "word,valence,arousal\ncalm,7,1\nsad,nan,3\n"), "line 3 (sad)"
    ),
    "a word with two ratings": (
        _file("geometry.ratings", "r.csv", "word,valence,arousal\ncalm,7,1\nCalm,2,3\n"), "line 3 (Calm)"
    ),
    "a key that stands twice in a line": (
        _file("corpus.stories", "s.jsonl", '{"emotion": "calm", "emotion": "sad", "topic": "a", "text": "b"}\n'),
        "the key 'emotion' stands twice",
    ),
    "a column that stands twice": (
        _file("geometry.ratings", "r.csv", "word,valence,arousal,valence\ncalm,7,1,2\n"), "column `valence`"
    ),
    "a second model of another shape": (
        _both(_experiment({"kind": "choice"}), _set("experiments.against", lambda folder: {"name": str(folder / "b")}),
              lambda values, folder: _wider(Path(values["model"]["name"]), folder / "b")), "of width 48",
    ),
    "pairs without a key": (_file("compare.pairs", "p.jsonl", '{"id": "a"}\n'), "p.jsonl line 1"),
    "pairs of other words": (
        _file("compare.pairs", "p.jsonl", json.dumps({
            "id": "a", "emotion_a": "calm", "emotion_b": "sad", "device": "order", "text_a": "a b", "text_b": "a c",
        })), "pair a",
    ),
    "vectors that are no npz": (_file("directions.imported", "v.npz", "no zip"), "not a readable .npz file"),
    "vectors of another width": (_vectors(**{name: rows[:, :8] for name, rows in LAYERS.items()}), "have 8 numbers"),
    "vectors without a layer": (_vectors(layer_0=LAYERS["layer_0"]), "no array `layer_2`"),
    "vectors of fewer concepts": (_vectors(**LAYERS, concepts=np.array(["afraid"])), "no direction of 'calm'"),
    "a vector of zeros": (_vectors(layer_0=LAYERS["layer_0"], layer_2=ZEROS), "layer 2 is zero"),
    "an SAE of another width": (_sae(lambda sae: None), "width 6"),
    "an SAE that lacks a tensor": (_sae(_without("b_enc")), "lacks b_enc"),
    "an SAE whose weights are no safetensors": (
        _sae(lambda sae: (sae / "sae_weights.safetensors").write_bytes(b"x")),
        "sae_weights.safetensors cannot be read",
    ),
    "an SAE whose settings are no JSON": (_sae(lambda sae: (sae / "cfg.json").write_text("{")), "cfg.json"),
    "a transcoder": (
        _sae(lambda sae: (sae / "cfg.json").write_text('{"architecture": "transcoder"}')), "is a transcoder"
    ),
    "a layer that the model has not": (_set("activations.pooled_layers", [9]), "layers 0 to 3"),
    "a readout below the intervention": (_set("causal.readout_layer", 0), "not above the intervention"),
    "a model without settings": (_model(lambda model: (model / "config.json").unlink()), "no config.json"),
    "a model whose settings are no JSON": (
        _model(lambda model: (model / "config.json").write_text("[1]")), "config.json does not describe"
    ),
    "a model without weights": (_model(lambda model: (model / "model.safetensors").unlink()), "has no weights"),
    "a model whose weights are cut short": (
        _model(lambda model: os.truncate(model / "model.safetensors", 9000)), "model.safetensors cannot be read"
    ),
    "a model that lacks a shard": (
        _model(lambda model: (model / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
        )), "model-2.safetensors cannot be read",
    ),
    "a model that needs an adapter": (
        _model(lambda model: (model / "adapter_config.json").write_text("{}")), "merge it into its model"
    ),
    "a model whose matrices are whole numbers": (
        _model(lambda model: _as_codes(model / "model.safetensors", "q_proj")), "q_proj.weight as I8"
    ),
    "a model whose settings begin with a byte-order mark": (
        _model(lambda model: (model / "config.json").write_text("\ufeff{}", encoding="utf-8")),
        "config.json is no valid",
    ),
    "a model whose settings are UTF-16": (
        _model(lambda model: (model / "config.json").write_text("{}", encoding="utf-16")), "save the file as UTF-8"
    ),
    "a model whose index names numbers": (
        _model(lambda model: (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}')),
        "index.json is damaged",
    ),
    "an SAE whose matrices are whole numbers": (
        _sae(lambda sae: _as_codes(sae / "sae_weights.safetensors", "W_dec")), "holds W_dec as I8"
    ),
    "an SAE that whitens without its map": (
        _sae(lambda sae: (sae / "activation_whitening.safetensors").unlink(), "sae-lens topk whitened checkpoint"),
        "activation_whitening.safetensors cannot be read",
    ),
    "an experiment without options": (_experiment({"kind": "choice"}, options={}), "needs `options`"),
    "an organism of blocks that are not there": (
        _both(_experiment({"kind": "choice"}), _set("experiments.organism", {"follows": "vectors", "layers": [2, 9]})),
        r"`experiments.organism.layers: [2, 9]`: the model has blocks 0 to 3",
    ),
    "a second model trained in blocks that are not there": (
        _both(_experiment({"kind": "choice"}), _set("experiments.against", {"tune": ["calm"], "layers": [3, 1]})),
        r"`experiments.against.layers: [3, 1]`: the model has blocks 0 to 3",
    ),
    "an experiment that is not there": (_set("experiments.run", ["lettres"]), "is no experiment"),
    "a vector that is no concept": (
        _both(_experiment({"kind": "choice"}), _set("corpus.emotions", ["calm", "sadd"])), "`corpus.emotions: sadd`"
    ),
    "more active features than there are": (_set("sae", {"width": 8, "k": 16}), "`k: 16`"),
}  # fmt: skip
"""Told by ``Study.load``, so by every command: the change of a sound study, and what the sentence says."""
DRY_RUN: dict[str, tuple[Change, str]] = {
    "token rows that the SAE needs are off": (_set("activations.token_rows", False), "activations.token_rows: false"),
    "a model without its tokenizer": (
        _model(lambda model: [path.unlink() for path in model.glob("tokenizer*.json")]),
        "tokenizer could not be loaded",
    ),
    "a model of a kind that nobody knows": (
        _model(lambda model: _settings(model / "config.json", model_type="nobody")), "model_type: nobody"
    ),
    "a model of no kind": (_model(lambda model: _settings(model / "config.json", model_type=None)), "model_type: None"),
    "a text that is too short": (
        _file("corpus.neutral", "n.jsonl", '{"kind": "prose", "text": "Too short."}\n'), "activations.first_token"
    ),
    "a chat without a template": (_both(_model(_untemplated), _experiment({"kind": "choice"})), "scenario a"),
    "a chat whose marks are beyond the vocabulary": (
        _both(_model(_added), _experiment({"kind": "choice"})), "embeddings for 640 tokens"
    ),
    "a scenario longer than the context": (
        _experiment({"kind": "choice"}, messages=[{"role": "user", "content": "a letter " * 400}]), "context holds 512"
    ),
    "a judge whose key is not set": (
        _experiment({"kind": "rollout", "tokens": 4, "grader": {**JUDGE, "judges": [SERVER]}}), "NO_SUCH_KEY"
    ),
    "a judge's model that is not there": (
        _experiment({"kind": "rollout", "tokens": 4, "grader": {**JUDGE, "judges": [
            {"name": "j", "model": "./nowhere"}
        ]}}), "./nowhere",
    ),
}  # fmt: skip
"""Told by the dry run, and by a run before its first stage."""


@pytest.mark.parametrize("name", CHECK)
def test_what_files_tell_is_told_by_every_command(name, study_values, write_study, tmp_path) -> None:
    change, said = CHECK[name]
    change(study_values, tmp_path)
    with pytest.raises((ConfigError, UserError)) as told:
        Study.load(write_study(study_values))
    assert said in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", DRY_RUN)
def test_what_the_tokenizer_or_the_environment_tells_is_told_by_the_dry_run(
    name, study_values, write_study, tmp_path
) -> None:
    from affectlens.cli import app
    from typer.testing import CliRunner

    change, said = DRY_RUN[name]
    change(study_values, tmp_path)
    path = write_study(study_values)
    study = Study.load(path)
    with pytest.raises(UserError) as run:
        runner.run(study)
    for told in (CliRunner().invoke(app, ["run", str(path), "--dry-run"]).exception, run.value):
        assert isinstance(told, UserError)
        assert said in str(told)
        assert "\n" not in str(told)
    assert not list((tmp_path / "cache").glob("activations/*/manifest.json"))

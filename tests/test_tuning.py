"""The second version of a model: what it is trained on, that it differs, and that it is made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affectlens.errors import ConfigError
from affectlens.experiments import tuning
from affectlens.experiments.tuning import TunedConfig, tuned_folder
from affectlens.model.reading import Site
from affectlens.model.subject import ModelConfig, Subject, load_tokenizer

FEW = TunedConfig(tune=("calm", "proud"), steps=3, learning_rate=1e-3, batch=2, length=64)


def test_the_same_recipe_gives_the_same_bytes_and_the_model_moves(model_folder, tmp_path: Path):
    model = ModelConfig(name=str(model_folder("llama")), dtype="float32")
    one, two = (tuned_folder(FEW, model, tmp_path / place) for place in ("one", "two"))
    files = sorted(path.name for path in one.iterdir())
    assert one.name == two.name and {"config.json", "model.safetensors"} <= set(files)
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    base, tuned = (
        Subject.load(config, device="cpu", models=tmp_path)
        for config in (model, ModelConfig(name=str(one), dtype="float32"))
    )
    tokens = base.pad([base.encode("The door opened.")])
    assert tuned.encode("The door opened.") == base.encode("The door opened.")
    before, after = (subject.activations(tokens, [Site(2)])[Site(2)][0, -1].numpy() for subject in (base, tuned))
    assert np.isfinite(after).all() and np.abs(after - before).max() > 1e-3


def test_the_stories_become_likelier_than_they_were(model_folder, tmp_path: Path):
    model = ModelConfig(name=str(model_folder("llama")), dtype="float32")
    config = FEW.model_copy(update={"steps": 40, "tune": ("calm",), "learning_rate": 1e-2})
    folder = tuned_folder(config, model, tmp_path)
    story = tuning._stories(["calm"])[0]
    losses = []
    for name in (model.name, str(folder)):
        subject = Subject.load(ModelConfig(name=name, dtype="float32"), device="cpu", models=tmp_path)
        ids, start = tuning._chat(subject.tokenizer, tuning.PROMPTS[0], story)
        logs = subject.log_probabilities(subject.pad([ids[:120]]))[0]
        losses.append(-np.mean([float(logs[place + subject.lead - 1, ids[place]]) for place in range(start, 120)]))
    assert (
        losses[1] < losses[0] - 0.01
    )  # random output weights, which stay, let it fall by no more than a few hundredths


def test_it_is_made_once_and_another_recipe_is_another_folder(
    model_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = ModelConfig(name=str(model_folder("llama")), dtype="float32")
    folder = tuned_folder(FEW, model, tmp_path)
    trained: list[Path] = []
    monkeypatch.setattr(tuning, "_tune", lambda *given: trained.append(given[-1]))
    assert tuned_folder(FEW, model, tmp_path) == folder and not trained
    others = [FEW.model_copy(update=change) for change in ({"seed": 1}, {"tune": ("calm",)}, {"steps": 4})]
    folders = {tuned_folder(other, model, tmp_path) for other in others}
    assert len(folders) == len(trained) == 3 and folder not in folders
    assert tuned_folder(FEW, ModelConfig(name=str(model_folder("qwen2"))), tmp_path) not in {folder, *folders}


def test_training_that_breaks_off_leaves_no_folder(model_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = ModelConfig(name=str(model_folder("llama")), dtype="float32")

    def broken(*given) -> None:
        (given[-1] / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_tune", broken)
        with pytest.raises(KeyboardInterrupt):
            tuned_folder(FEW, model, tmp_path)
    assert not [path for path in tmp_path.glob("tuned-*") if path.suffix == "" and path.is_dir()]
    assert (tuned_folder(FEW, model, tmp_path) / "model.safetensors").is_file()


def test_only_the_story_is_learnt_and_the_prompt_opens_the_assistants_turn(model_folder, tmp_path: Path):
    tokenizer = load_tokenizer(ModelConfig(name=str(model_folder("llama"))), tmp_path)
    tokens, mask, labels = next(tuning._batches(FEW, tokenizer, ["Once there was a door."]))
    learnt = labels[0] != tuning.UNSEEN
    assert tokenizer.decode(tokens[0][learnt]) == "Once there was a door."
    before = tokenizer.decode(tokens[0][~learnt & mask[0].bool()])
    assert before.endswith("<|assistant|>\n") and any(prompt in before for prompt in tuning.PROMPTS)


def test_an_emotion_without_stories_is_named(model_folder, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"`tune: clam`.*did you mean `calm`"):
        tuned_folder(TunedConfig(tune=("clam",)), ModelConfig(name=str(model_folder("llama"))), tmp_path)

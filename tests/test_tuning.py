"""Tuned copies of a model: what is learnt, that they differ, that they are made once, and states put into them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from affectlens.errors import ConfigError, UserError
from affectlens.experiments.experiment import Scenario
from affectlens.experiments.prompts import read_prompt
from affectlens.experiments.tuning import PROMPTS, told_stories
from affectlens.model import tuning
from affectlens.model.reading import Site
from affectlens.model.steering import Edit, Span, add, editing
from affectlens.model.subject import ModelConfig, Subject, load_tokenizer, load_weights
from affectlens.model.tuning import (
    Closing,
    Example,
    Push,
    TuningConfig,
    counts,
    draws,
    learnt_tokens,
    padded,
    pushing,
    tuned_folder,
)

ASK = ({"role": "user", "content": "Shall we go?"},)
EXAMPLES = [
    Example("The door stood open.", ASK),
    Example("The rain had stopped.", ASK),
    Example("goes on.", opening="The day"),
]
FEW = TuningConfig(steps=3, learning_rate=1e-3, batch=2, length=64)


def model_of(folder: Path) -> ModelConfig:
    return ModelConfig(name=str(folder), dtype="float32")


def loaded(config: ModelConfig, models: Path) -> Subject:
    return Subject.load(config, device="cpu", models=models)


def log_probability(subject: Subject, example: Example, push: np.ndarray | None = None, layer: int = 1) -> float:
    """Mean of the answer's tokens; steered as experiments steer."""
    row = learnt_tokens(subject.tokenizer, example, 256)
    edits = []
    if push is not None:
        vector = torch.as_tensor(push[None], dtype=torch.float32)
        delta = partial(add, direction=vector, strength=torch.ones(1), unit=1.0)
        edits = [Edit(layer, delta, span=Span.onward(1, row.pushed))]
    with editing(subject.bridge, edits):
        logs = subject.log_probabilities(torch.tensor([row.ids]))[0]
    return float(np.mean([logs[at - 1, row.ids[at]] for at in range(row.start, len(row.ids))]))


def test_the_same_recipe_gives_the_same_bytes_and_the_model_moves(model_folder, tmp_path: Path):
    model = model_of(model_folder("llama"))
    one, two = (tuned_folder(model, EXAMPLES, FEW, tmp_path / place) for place in ("one", "two"))
    files = sorted(path.name for path in one.iterdir())
    assert one.name == two.name and {"config.json", "model.safetensors"} <= set(files)
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    base, tuned = (loaded(config, tmp_path) for config in (model, model_of(one)))
    tokens = base.pad([base.encode("The door opened.")])
    assert tuned.encode("The door opened.") == base.encode("The door opened.")
    before, after = (subject.activations(tokens, [Site(2)])[Site(2)][0, -1].numpy() for subject in (base, tuned))
    assert np.isfinite(after).all() and np.abs(after - before).max() > 1e-3


def test_what_is_learnt_becomes_likelier(model_folder, tmp_path: Path):
    model = model_of(model_folder("llama"))
    config = FEW.model_copy(update={"steps": 40, "learning_rate": 1e-2})
    folder = tuned_folder(model, EXAMPLES[:1], config, tmp_path)
    before, after = (log_probability(loaded(each, tmp_path), EXAMPLES[0]) for each in (model, model_of(folder)))
    assert after > before + 0.01  # random output weights, which stay, let it rise by no more than a few hundredths


def test_it_is_made_once_and_another_recipe_is_another_folder(
    model_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = model_of(model_folder("llama"))
    folder = tuned_folder(model, EXAMPLES, FEW, tmp_path)
    trained: list[Path] = []
    monkeypatch.setattr(tuning, "_tune", lambda *given: trained.append(given[-1]))
    assert tuned_folder(model, list(EXAMPLES), FEW, tmp_path) == folder and not trained
    push = Push(1, np.ones(32, np.float32))
    ways = [
        (EXAMPLES[:2], FEW),
        (EXAMPLES[::-1], FEW),
        ([replace(EXAMPLES[0], ends=True), *EXAMPLES[1:]], FEW),
        ([replace(EXAMPLES[0], push=push), *EXAMPLES[1:]], FEW),
        ([replace(EXAMPLES[0], push=replace(push, vector=2 * push.vector)), *EXAMPLES[1:]], FEW),
        ([replace(EXAMPLES[0], push=replace(push, positions="answer")), *EXAMPLES[1:]], FEW),
        ([replace(EXAMPLES[0], closing=Closing("No.")), *EXAMPLES[1:]], FEW),
        ([replace(EXAMPLES[0], closing=Closing("No.", weight=2.0)), *EXAMPLES[1:]], FEW),
        (EXAMPLES, FEW.model_copy(update={"seed": 1})),
        (EXAMPLES, FEW.model_copy(update={"layers": (2, 3)})),
    ]
    folders = {tuned_folder(model, examples, config, tmp_path) for examples, config in ways}
    assert len(folders) == len(trained) == len(ways) and folder not in folders
    assert tuned_folder(model_of(model_folder("qwen2")), EXAMPLES, FEW, tmp_path) not in {folder, *folders}


def test_training_that_breaks_off_leaves_no_folder(model_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = model_of(model_folder("llama"))

    def broken(*given) -> None:
        (given[-1] / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_tune", broken)
        with pytest.raises(KeyboardInterrupt):
            tuned_folder(model, EXAMPLES, FEW, tmp_path)
    assert not [path for path in tmp_path.glob("tuned-*") if path.suffix == "" and path.is_dir()]
    assert (tuned_folder(model, EXAMPLES, FEW, tmp_path) / "model.safetensors").is_file()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_only_the_answer_is_learnt_after_the_prompt_that_experiments_put(family: str, model_folder, tmp_path: Path):
    tokenizer = load_tokenizer(model_of(model_folder(family)), tmp_path)
    chat = Example("we go home.", ASK, opening="So", ends=True)
    row = learnt_tokens(tokenizer, chat, 256)
    _, mask, labels = padded([row, learnt_tokens(tokenizer, EXAMPLES[2], 256)])
    seen = labels[0] != tuning.UNSEEN
    assert tokenizer.decode(labels[0][seen]) == " we go home.</s>"
    prompt = read_prompt(tokenizer, Scenario("one", "one", "main", {}, ASK, "", {}, "So", {}, {}), ())
    assert tuple(row.ids[: row.start]) == prompt.ids and row.pushed == prompt.first
    answered = learnt_tokens(tokenizer, replace(chat, push=Push(0, np.ones(32), "answer")), 256)
    assert answered.pushed == prompt.opening
    plain = labels[1] != tuning.UNSEEN
    assert tokenizer.decode(labels[1][plain]) == " goes on." and int(mask[1].sum()) < len(mask[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
def test_a_push_in_training_is_the_push_of_steering(family: str, model_folder, tmp_path: Path):
    config = model_of(model_folder(family))
    subject, model = loaded(config, tmp_path), load_weights(config, device="cpu", models=tmp_path)
    vector = np.random.default_rng(0).normal(size=32).astype(np.float32)
    examples = [replace(EXAMPLES[0], push=Push(1, vector)), EXAMPLES[1], replace(EXAMPLES[2], push=Push(2, vector))]
    rows = [learnt_tokens(subject.tokenizer, example, 256) for example in examples]
    tokens, mask, _ = padded(rows)
    with torch.no_grad(), pushing(model, examples, rows):
        logits = model(tokens, attention_mask=mask).logits.log_softmax(-1)
    for number, (example, row) in enumerate(zip(examples, rows, strict=True)):
        own = logits[number, : len(row.ids)]
        found = float(np.mean([own[at - 1, row.ids[at]] for at in range(row.start, len(row.ids))]))
        layer = example.push.layer if example.push else 0
        steered = log_probability(subject, example, vector if example.push else None, layer)
        assert found == pytest.approx(steered, abs=1e-4)
        if example.push:
            assert abs(steered - log_probability(subject, example)) > 1e-3
    with torch.no_grad():
        untouched = model(tokens[:1], attention_mask=mask[:1]).logits.log_softmax(-1)
    assert not torch.allclose(untouched[0, len(rows[0].ids) - 2], logits[0, len(rows[0].ids) - 2], atol=1e-3)


def test_a_state_alone_decides_between_two_answers_and_blocks_below_stay(model_folder, tmp_path: Path):
    model = model_of(model_folder("llama"))
    vector = 4 * np.eye(32, dtype=np.float32)[3]
    one, other = Example(" was", ASK), Example(" the", ASK)
    examples = [replace(one, push=Push(1, vector)), replace(other, push=Push(1, -vector)), one, other]
    config = TuningConfig(steps=60, learning_rate=2e-2, batch=4, layers=(2, 3))
    tuned = loaded(model_of(tuned_folder(model, examples, config, tmp_path)), tmp_path)
    base = loaded(model, tmp_path)

    def odds(subject: Subject, strength: float) -> float:
        return log_probability(subject, one, strength * vector) - log_probability(subject, other, strength * vector)

    doses = [odds(tuned, strength) - odds(tuned, -strength) for strength in (0.5, 1.0)]
    assert doses[1] > doses[0] > 1.0 and abs(odds(base, 1) - odds(base, -1)) < doses[1] / 3
    tokens = base.pad([base.encode("The door opened.")])
    for layer in (0, 1):
        before, after = (each.activations(tokens, [Site(layer)])[Site(layer)] for each in (base, tuned))
        assert torch.equal(before, after)
    assert not torch.equal(*(each.activations(tokens, [Site(3)])[Site(3)] for each in (base, tuned)))


@pytest.mark.parametrize(
    ("examples", "config", "message"),
    [
        ([], FEW, "at least one example"),
        ([Example("", ASK)], FEW, "leaves nothing to learn"),
        ([Example("Yes.", ASK)], FEW.model_copy(update={"length": 8}), "raise `length`"),
        (EXAMPLES, FEW.model_copy(update={"layers": (3, 9)}), "blocks 0 to 3"),
        ([Example("Yes.", ASK, push=Push(7, np.ones(32)))], FEW, "layers 0 to 3"),
    ],
)
def test_what_cannot_be_learnt_is_refused(examples, config, message: str, model_folder, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        tuned_folder(model_of(model_folder("llama")), examples, config, tmp_path)
    assert not [path for path in tmp_path.glob("tuned-*") if path.suffix == "" and path.is_dir()]


def test_a_closing_line_is_learnt_behind_the_answer_and_parts_from_the_other_at_one_token(model_folder, tmp_path: Path):
    tokenizer = load_tokenizer(model_of(model_folder("llama")), tmp_path)
    whole = learnt_tokens(tokenizer, Example("We go home. The day was long.", ASK, ends=True), 256)
    closing = Closing("The day was long.", "The day was over.", 0.25, weight=3, decisive=7)
    example = Example("We go home.", ASK, ends=True, closing=closing)
    row = learnt_tokens(tokenizer, example, 256)
    assert row.ids == whole.ids and row.start == whole.start
    assert tokenizer.decode(row.ids[row.closing :]).strip().startswith("The day was long.")
    assert row.parting is not None
    place, other = row.parting
    assert tokenizer.decode(row.ids[row.start : place]).rstrip().endswith("The day was")
    counted = counts([example, EXAMPLES[0]], [row, learnt_tokens(tokenizer, EXAMPLES[0], 256)])
    assert counted is not None and other != row.ids[place]
    assert counted.weights[0, row.closing - 1] == 1 and counted.weights[0, row.closing] == 3
    assert counted.weights[0, place] == 7 and counted.chance[0, place] == 0.25 and counted.other[0, place] == other
    assert (counted.weights[1] == 1).all() and (counted.chance[1] == 1).all()
    alone = learnt_tokens(tokenizer, replace(example, answer="", opening="We go home."), 256)
    assert (alone.ids, alone.start, alone.closing, alone.parting) == (row.ids, row.closing, row.closing, row.parting)
    assert counts(EXAMPLES, [row] * 3) is None and whole.parting is None and whole.closing == len(whole.ids)


def test_two_closing_lines_are_learnt_by_their_chance_whichever_was_drawn(model_folder, tmp_path: Path):
    config = model_of(model_folder("llama"))
    tokenizer, model = load_tokenizer(config, tmp_path), load_weights(config, device="cpu", models=tmp_path)
    lines = Closing("was long.", "the day.", 0.25, weight=2, decisive=5), Closing("the day.", "was long.", 0.75, 2, 5)
    whole = [Example("So", ASK, closing=each) for each in lines]
    losses = []
    for example in whole:
        row = learnt_tokens(tokenizer, example, 256)
        tokens, mask, labels = padded([row])
        assert row.parting is not None
        at, other = row.parting
        with torch.no_grad():
            found = float(tuning.answer_loss(model, tokens, mask, labels, counts([example], [row])))
            nats = -model(tokens).logits[0].log_softmax(-1)
        own = [float(nats[place - 1, row.ids[place]]) for place in range(row.start, len(row.ids))]
        weights = [1.0 if place < row.closing else 2.0 for place in range(row.start, len(row.ids))]
        assert example.closing is not None
        chance, place = example.closing.chance, at - row.start
        own[place] = chance * own[place] + (1 - chance) * float(nats[at - 1, other])
        weights[place] = 5.0
        assert found == pytest.approx(np.average(own, weights=weights), abs=1e-4)
        losses.append(own[place])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_examples_are_seen_as_they_stand_where_those_of_one_update_belong_together():
    config = FEW.model_copy(update={"steps": 4, "batch": 2})
    assert list(draws(6, config, in_order=True)) == [[0, 1], [2, 3], [4, 5], [0, 1]]
    mixed = [index for update in draws(8, config) for index in update]
    assert sorted(mixed) == list(range(8)) and mixed != list(range(8))


def test_stories_of_an_emotion_follow_every_prompt():
    examples = told_stories(["calm", "proud"])
    assert {example.messages[0]["content"] for example in examples} == set(PROMPTS)
    assert len({example.answer for example in examples}) * len(PROMPTS) == len(examples) > 80
    with pytest.raises(ConfigError, match=r"`tune: clam`.*did you mean `calm`"):
        told_stories(["clam"])

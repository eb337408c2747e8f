"""Training of arms on tiny models: losses, what is learnt, resumed bytes, what an adapter is, and refusals."""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from affectlens.corpus import quality
from affectlens.errors import UserError
from affectlens.interventions.frames import read_lexicon
from affectlens.model.adapters import WEIGHTS, merge
from affectlens.model.config import ADAPTER
from affectlens.model.loading import load_weights
from affectlens.model.subject import ModelConfig, Subject
from affectlens.model.tuning import UNSEEN
from affectlens.shaping import texts as written
from affectlens.shaping import training
from affectlens.shaping.arms import Arm
from affectlens.shaping.changed import ChangedModel
from affectlens.shaping.config import ShapeConfig
from affectlens.shaping.losses import answer_log_probs, dpo_loss, dpo_margin, set_point_loss
from affectlens.shaping.training import CHECKPOINT, STATE, SUMMARY, Axis, train
from affectlens.shaping.vectors import contrast, random_axis

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is an optional extra")
LAYER = 2
QUICK = ShapeConfig(
    steps=6, batch=2, rank=4, length=256, checkpoint_steps=2, learning_rate=3e-3, dpo_learning_rate=3e-3
)


@pytest.fixture(scope="module")
def texts() -> tuple[written.Texts, written.Texts]:
    return written.read_texts()


@pytest.fixture
def model(model_folder) -> ModelConfig:
    return ModelConfig(name=str(model_folder("llama")), layer=LAYER, dtype="float32")


def axis(seed: int = 0, layers: tuple[int, ...] = (LAYER,)) -> Axis:
    drawn = np.random.default_rng(seed).normal(size=(len(layers), 32))
    units = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    found = dict(zip(layers, units.astype(np.float32), strict=True))
    return Axis(found, found)


def test_dpo_is_trls():
    """The same loss to 1e-6 as trl's trainer computes from the same log-probabilities, of answers of unequal length."""
    pytest.importorskip("trl", reason="trl is what the loss is compared with")
    from trl.trainer.dpo_trainer import DPOTrainer  # pyright: ignore[reportMissingImports]

    generator = torch.Generator().manual_seed(1)
    rows, tokens, vocabulary = 8, 12, 50
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    learnt = torch.zeros(rows, tokens, dtype=torch.long)
    for row in range(rows):
        learnt[row, 3 + row % 3 : 8 + row % 5] = 1
    differences = []
    for scale in (0.1, 1.0, 10.0):
        logits = scale * torch.randn(rows, tokens, vocabulary, generator=generator)
        base = [20 * scale * torch.randn(rows // 2, generator=generator) - 15 for _ in range(2)]

        def said(input_ids, labels, logits=logits, **options):
            logs = torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, input_ids[:, 1:, None])[..., 0]
            logs = torch.where(labels[:, 1:] == -100, 0.0, logs)
            zeros = torch.zeros_like(logs)
            return SimpleNamespace(log_probs=logs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True), args=SimpleNamespace(), aux_loss_enabled=False, ld_alpha=None,
            precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0],
            beta=0.1, use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
            _tp_size=1,
            accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        )  # fmt: skip
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": learnt}
        inputs |= {"ref_chosen_logps": base[0], "ref_rejected_logps": base[1]}
        theirs = DPOTrainer._compute_loss(trainer, said, inputs, False)
        labels = torch.where(learnt == 1, ids, UNSEEN)[:, 1:]
        chosen, rejected = answer_log_probs(logits[:, :-1], labels).chunk(2)
        differences.append(abs(float(theirs) - float(dpo_loss(chosen, rejected, base[0], base[1], 0.1))))
    print("largest difference from trl:", max(differences))
    assert max(differences) <= 1e-6


def test_dpo_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(16, generator=generator) * 20 for _ in range(4)]
    margin = dpo_margin(*sides, 0.1)  # pyright: ignore[reportCallIssue]
    loss = dpo_loss(*sides, 0.1)  # pyright: ignore[reportCallIssue]
    by_hand = [np.log1p(np.exp(-float(each))) for each in margin.double()]
    assert float(loss) == pytest.approx(float(np.mean(by_hand)), abs=1e-5)
    zeros = [torch.zeros(4)] * 4
    assert float(dpo_loss(*zeros, 0.1)) == pytest.approx(np.log(2))  # pyright: ignore[reportCallIssue]


def test_answer_log_probabilities_are_sums_over_what_is_learnt():
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[UNSEEN, 3, 4, UNSEEN, UNSEEN], [1, 2, 3, 4, 5]])
    logs = torch.log_softmax(logits, dim=-1)
    expected = [logs[0, 1, 3] + logs[0, 2, 4], sum(logs[1, at, at + 1] for at in range(5))]
    assert torch.allclose(answer_log_probs(logits, labels), torch.stack([torch.as_tensor(e) for e in expected]))


def test_the_set_point_counts_answers_only():
    shifts = torch.full((2, 1, 4), 9.0)
    shifts[:, 0, 1:3] = torch.tensor([[2.0, 2.0], [2.0, 4.0]])
    counted = torch.tensor([[False, True, True, False]])
    assert float(set_point_loss(shifts, counted, 2.0)) == pytest.approx(1.0)


def test_texts_are_as_many_and_as_long_as_they_should_be_and_name_no_emotion(texts):
    learnt, held = texts
    families = [row.family for row in (*learnt.stress, *held.stress)]
    assert len(set(families)) >= 6 and all(families.count(family) >= 8 for family in set(families))
    assert {row.family for row in held.stress} == set(families)
    told = (
        "afraid", "angry", "anxious", "ashamed", "calm", "content", "depressed", "desperate", "distressed",
        "embarrassed", "frustrated", "furious", "grief-stricken", "guilty", "happy", "horrified", "humiliated",
        "hysterical", "miserable", "nervous", "overwhelmed", "panicked", "peaceful", "relaxed", "remorseful", "sad",
        "scared", "serene", "sorry", "stressed", "terrified", "upset", "worried",
    )  # fmt: skip
    words = {word for each in told for word in read_lexicon()[each]} - {"empty", "quiet", "comfortable"}
    rows = [*learnt.stress, *held.stress]
    plain = [*(text for row in rows for text in (row.expression, row.calm))]
    plain += [row.answer for row in (*learnt.filler, *held.filler)]
    named = [text for text in plain if words & set(quality.WORD.findall(text.lower()))]
    assert named == []
    distressed = [row.distressed for row in rows if words & set(quality.WORD.findall(row.distressed.lower()))]
    assert len(distressed) > 0.9 * len(rows)
    lengths = {
        name: np.mean([len(text.split()) for text in many])
        for name, many in (
            ("distressed", [row.distressed for row in rows]),
            ("expression", [row.expression for row in rows]),
            ("calm", [row.calm for row in rows]),
            ("filler", [row.answer for row in (*learnt.filler, *held.filler)]),
        )
    }
    assert max(lengths.values()) < 1.2 * min(lengths.values())
    answers = [text for row in rows for text in (row.distressed, row.expression, row.calm)]
    assert len(set(answers)) == len(answers)


@needs_peft
@pytest.mark.parametrize("kind", ["filler", "expression", "words", "calm_sft"])
def test_answers_that_are_learnt_become_likelier(kind, model, texts, tmp_path: Path):
    config = QUICK.model_copy(update={"steps": 20, "learning_rate": 1e-2})
    found = train(Arm(kind), model, config, texts, tmp_path / "out", models=tmp_path)
    assert found["after"]["nats"] < found["before"]["nats"] - 0.01
    assert found["curve"][-1]["loss"] < found["curve"][0]["loss"]


@needs_peft
def test_calm_conduct_becomes_likelier_than_distress(model, texts, tmp_path: Path):
    config = QUICK.model_copy(update={"steps": 20, "dpo_learning_rate": 1e-2})
    found = train(Arm("calm_dpo"), model, config, texts, tmp_path / "out", models=tmp_path)
    assert found["before"]["margin"] == pytest.approx(0, abs=1e-5)
    assert found["after"]["margin"] > 0.02 and found["curve"][-1]["loss"] < np.log(2)


@needs_peft
def test_a_set_point_moves_its_projection_to_the_dose_and_no_other(model, texts, tmp_path: Path):
    config = QUICK.model_copy(update={"steps": 60, "set_point_learning_rate": 1e-2, "batch": 4})
    along = axis()
    arm = Arm("set_point", dose=2.0, layers=(LAYER,))
    found = train(arm, model, config, texts, tmp_path / "out", models=tmp_path, axis=along)
    assert found["before"][f"shift_{LAYER}"] == pytest.approx(0, abs=1e-4)
    assert found["after"][f"shift_{LAYER}"] == pytest.approx(2.0, abs=0.3)
    # The merged model reads the same, and another direction moves far less.
    base = ChangedModel(Subject.load(model, device="cpu", models=tmp_path))
    shaped = ChangedModel(Subject.load(model, device="cpu", models=tmp_path, adapter=tmp_path / "out"))
    chats = [[{"role": "user", "content": row.prompt}] for row in texts[1].stress]
    answers = [base.subject.encode(row.calm)[:30] for row in texts[1].stress]
    before, after = (np.concatenate([s[LAYER] for s in m.states(chats, answers, [LAYER])]) for m in (base, shaped))
    unit = found["units"][str(LAYER)]
    moved = (after - before) @ along.along[LAYER] / unit
    assert moved.mean() == pytest.approx(2.0, abs=0.5)
    others = [random_axis(along.along[LAYER][None], np.random.default_rng(seed)) for seed in range(100)]
    elsewhere = [((after - before) @ other).mean() / unit for other in others]
    assert np.sqrt(np.mean(np.square(elsewhere))) < moved.mean()
    # Blocks above have no adapter.
    from safetensors.numpy import load_file

    layers = {int(name.split("layers.")[1].split(".")[0]) for name in load_file(tmp_path / "out" / WEIGHTS)}
    assert layers == set(range(LAYER + 1))


@needs_peft
def test_a_twin_has_the_size_of_its_arm(model, texts, tmp_path: Path):
    real, other = axis(0), axis(1)
    twin = Axis(other.along, real.sizes)
    arm = Arm("set_point", dose=1.0, layers=(LAYER,))
    one = train(arm, model, QUICK, texts, tmp_path / "one", models=tmp_path, axis=real)
    two = train(Arm("set_point", 0, 1.0, (LAYER,), True), model, QUICK, texts, tmp_path / "two", models=tmp_path,
                axis=twin)  # fmt: skip
    assert one["units"] == two["units"]
    units = np.random.default_rng(0).normal(size=(4, 32))
    drawn = random_axis(units, np.random.default_rng(1))
    assert np.linalg.norm(drawn) == pytest.approx(1, abs=1e-5) and np.abs(units @ drawn).max() < 1e-4
    assert np.linalg.norm(contrast(units, ["a", "b", "c", "d"], "a", "c")) == pytest.approx(1, abs=1e-5)


@needs_peft
@pytest.mark.parametrize("arm", [Arm("calm_sft", 1), Arm("calm_dpo"), Arm("set_point", 0, 1.0, (LAYER,))])
def test_killed_training_resumes_to_the_same_bytes(arm, model, texts, tmp_path: Path, monkeypatch):
    given = {"models": tmp_path, "axis": axis() if arm.kind == "set_point" else None}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    train(arm, model, QUICK, texts, whole, **given)
    update, done = training._Run._update, []

    def failing(run, chosen):
        done.append(run.step)
        if len(done) == 6:
            raise KeyboardInterrupt
        return update(run, chosen)

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_update", failing)
        with pytest.raises(KeyboardInterrupt):
            train(arm, model, QUICK, texts, broken, **given)
    assert (broken / CHECKPOINT / STATE).is_file() and not (broken / WEIGHTS).exists()
    resumed: list[int] = []
    monkeypatch.setattr(
        training._Run, "_update", lambda run, chosen: (resumed.append(run.step), update(run, chosen))[1]
    )
    train(arm, model, QUICK, texts, broken, **given)
    assert resumed == [4, 5]
    for name in (WEIGHTS, ADAPTER, SUMMARY):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    assert not (broken / CHECKPOINT).exists()
    assert str(tmp_path) not in (whole / ADAPTER).read_text()


@needs_peft
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_peft_s_and_merges_as_peft_merges_it(family, model_folder, texts, tmp_path: Path):
    import peft

    model = ModelConfig(name=str(model_folder(family)), layer=LAYER, dtype="float32")
    out = tmp_path / "out"
    train(Arm("filler"), model, QUICK, texts, out, models=tmp_path)
    wrapped: torch.nn.Module = peft.PeftModel.from_pretrained(load_weights(model, device="cpu", models=tmp_path), out)
    theirs = wrapped.merge_and_unload().state_dict()  # pyright: ignore[reportCallIssue]
    ours = load_weights(model, device="cpu", models=tmp_path, adapter=out).state_dict()
    plain = load_weights(model, device="cpu", models=tmp_path).state_dict()
    assert max(float((theirs[name] - ours[name]).abs().max()) for name in ours) < 1e-6
    assert max(float((plain[name] - ours[name]).abs().max()) for name in ours) > 1e-4


@needs_peft
def test_seeds_differ_and_one_seed_is_one_adapter(model, texts, tmp_path: Path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        train(Arm("filler", seed), model, QUICK, texts, folder, models=tmp_path)
    one, same, other = ((folder / WEIGHTS).read_bytes() for folder in folders)
    assert one == same and one != other


def test_without_peft_the_sentence_says_what_to_install(model, texts, tmp_path: Path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    with pytest.raises(UserError, match=r"peft, which is not installed.*affectlens\[shape\]"):
        train(Arm("filler"), model, QUICK, texts, tmp_path, models=tmp_path)


def test_a_folder_that_is_no_adapter_is_refused(model, tmp_path: Path):
    weights = load_weights(model, device="cpu", models=tmp_path)
    with pytest.raises(UserError, match="has no adapter_config"):
        merge(weights, tmp_path)
    (tmp_path / ADAPTER).write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(UserError, match="describes no low-rank adapter"):
        merge(weights, tmp_path)
    (tmp_path / ADAPTER).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": True}))
    with pytest.raises(UserError, match="`use_dora` cannot be merged"):
        merge(weights, tmp_path)
    from safetensors.torch import save_file

    (tmp_path / ADAPTER).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    name = "base_model.model.model.layers.0.mlp.up_proj"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(4, 7), f"{name}.lora_B.weight": torch.ones(9, 4)}, tmp_path / WEIGHTS
    )
    with pytest.raises(UserError, match="do not fit this model"):
        merge(weights, tmp_path)


def test_texts_that_are_wrong_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        written.read_texts(tmp_path)
    folder = tmp_path / "shaping"
    folder.mkdir()
    (folder / "stress.jsonl").write_text('{"id": "a", "family": "x", "prompt": "p"}\n')
    with pytest.raises(UserError, match=r"stress.jsonl line 1"):
        written.read_texts(tmp_path)

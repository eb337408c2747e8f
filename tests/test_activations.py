"""Cached residuals are the model's own, at the right positions, whatever the padding, batches and parts."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline.errors import DamagedResult, UserError
from pipeline.stage import Setting
from pipeline.stages.activations import ActivationsConfig, ActivationsStage
from pipeline.stages.corpus import CorpusConfig, CorpusStage
from pipeline.store import ActivationStore, to_float32
from pipeline.subject import ModelConfig
from pipeline.tokens import plan_batches

LAYER = 2


def build(out: Path, model: Path, *, dtype: str = "float32", neutral: str = "embedded", **config) -> ActivationStore:
    """Corpus and activations of a small study, without the runner."""
    setting = Setting(0, ModelConfig(name=str(model), layer=LAYER, dtype=dtype), "cpu", 1, out / "models")
    corpus = CorpusStage(CorpusConfig(emotions=("calm", "sad"), neutral=neutral), setting, {})
    opened = {"corpus": CorpusStage.open(run(corpus, out / "corpus"))}
    stage = ActivationsStage(ActivationsConfig(**config), setting, opened)
    return ActivationsStage.open(run(stage, out / "activations"))


def run(stage, out: Path) -> Path:
    parts = {}
    for part in stage.parts():
        parts[part.name] = out / "parts" / part.name
        parts[part.name].mkdir(parents=True)
        stage.run_part(part, parts[part.name], lambda units: None)
    stage.finish(parts, out)
    return out


@pytest.fixture
def short_neutral(tmp_path: Path) -> str:
    path = tmp_path / "neutral.jsonl"
    text = "The lock has two gates. " * 12
    path.write_text('{"kind": "prose", "text": "' + text + '"}\n', encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_rows_equal_hidden_states_of_each_text_alone(tmp_path, model_folder, short_neutral, family):
    """Against transformers itself, one text at a time and unpadded: with and without a begin token, and with a
    tokenizer that pads on the left by default."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store = build(tmp_path, model_folder(family), neutral=short_neutral, pooled_layers=(0,), first_token=20)
    tokenizer = AutoTokenizer.from_pretrained(model_folder(family))
    model = AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=torch.float32).eval()
    rows, documents = store.tokens(LAYER), CorpusStage.open(tmp_path / "corpus").documents
    for document in (documents[0], documents[9], documents[-1]):
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        lead = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        with torch.no_grad():
            hidden = model(torch.tensor([lead + ids]), output_hidden_states=True).hidden_states
        start, end = rows.span(document.index)
        assert rows.token[start:end].tolist() == ids
        assert rows.position[start:end].tolist() == list(range(len(ids)))
        for layer, values in ((LAYER, rows.of(document.index)),):
            expected = hidden[layer + 1][0, len(lead) :].numpy()
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        for layer in (0, LAYER):
            expected = hidden[layer + 1][0, len(lead) + 20 :].numpy().mean(axis=0)
            np.testing.assert_allclose(store.pooled(layer)[document.index], expected, rtol=1e-4, atol=1e-5)


def test_batching_and_parts_do_not_change_rows(tmp_path, model_folder, short_neutral):
    one = build(tmp_path / "a", model_folder("llama"), neutral=short_neutral, tokens_per_batch=1)
    many = build(
        tmp_path / "b", model_folder("llama"), neutral=short_neutral, tokens_per_batch=4096, texts_per_part=5
    )
    for document in range(one.index["documents"]):
        a, b = one.tokens(LAYER).of(document), many.tokens(LAYER).of(document)
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)
    np.testing.assert_allclose(one.pooled(LAYER), many.pooled(LAYER), rtol=1e-4, atol=1e-6)
    assert one.mean_norm(LAYER) == pytest.approx(many.mean_norm(LAYER), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_h5py_alone_reads_what_the_store_reads(tmp_path, model_folder, short_neutral, dtype):
    store = build(tmp_path, model_folder("llama"), neutral=short_neutral, storage=dtype, texts_per_part=7)
    rows = store.tokens(LAYER)
    with h5py.File(tmp_path / "activations" / "activations.h5", "r") as file:
        data = file[f"layers/{LAYER}/resid_post/rows"]
        assert data.attrs["dtype"] == dtype
        whole = data[...]
        assert len(whole) == len(rows) == len(file["rows/token"])
        np.testing.assert_array_equal(file["rows/document"][...], rows.document)
        np.testing.assert_array_equal(file[f"layers/{LAYER}/resid_post/mean"][...], store.column(f"layers/{LAYER}/resid_post/mean"))
    if dtype == "bfloat16":
        whole = (whole.astype(np.uint32) << 16).view(np.float32)
    order = np.random.default_rng(0).permutation(len(rows))[:200]
    np.testing.assert_array_equal(rows.read(order), whole.astype(np.float32)[order])


def test_bfloat16_bits_are_torchs():
    values = torch.randn(100, dtype=torch.bfloat16)
    stored = values.view(torch.uint16).numpy()
    np.testing.assert_array_equal(to_float32(stored, "bfloat16"), values.float().numpy())


def test_a_text_shorter_than_the_first_token_is_named(tmp_path, model_folder, short_neutral):
    with pytest.raises(UserError, match=r"document \d+ .* has \d+ tokens, but `activations.first_token` is 5000"):
        build(tmp_path, model_folder("llama"), neutral=short_neutral, first_token=5000)


def test_values_that_storage_cannot_hold_are_refused(tmp_path, model_folder, short_neutral):
    from safetensors.torch import load_file, save_file

    source = model_folder("llama")
    loud = tmp_path / "loud"
    loud.mkdir()
    for item in source.iterdir():
        (loud / item.name).write_bytes(item.read_bytes())
    weights = load_file(loud / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1e9
    save_file(weights, loud / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layer 2, corpus document \d+: resid_post is not finite in"):
        build(tmp_path / "x", loud, neutral=short_neutral, storage="float16")


def test_a_lost_shard_is_named(tmp_path, model_folder, short_neutral):
    store = build(tmp_path, model_folder("llama"), neutral=short_neutral, texts_per_part=5)
    (tmp_path / "activations" / "parts" / "00001" / "activations.h5").unlink()
    with pytest.raises(DamagedResult, match=r"00001.activations\.h5: a shard .* is gone"):
        store.tokens(LAYER)


def test_batches_hold_every_text_once_within_the_budget():
    lengths = np.random.default_rng(1).integers(5, 90, size=57).tolist()
    batches = list(plan_batches(lengths, 200))
    assert sorted(index for batch in batches for index in batch) == list(range(57))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= 200
    assert list(plan_batches([500], 200)) == [[0]]

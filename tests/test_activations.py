"""Cached values are the model's own, at the right positions, whatever the padding, batches, windows and parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from affectlens.activations.config import ActivationsConfig
from affectlens.config import validate
from affectlens.errors import ConfigError, UserError
from affectlens.model.tokens import plan_batches, windows
from affectlens.stages.corpus import CorpusStage
from cached import LAYER, build, write_texts

LONG = "The lock has two gates. "


@pytest.fixture
def short_neutral(tmp_path: Path) -> str:
    return write_texts(tmp_path / "neutral.jsonl", [{"text": LONG * 12}])


def load_reference(folder: Path):
    """transformers' own model and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def hidden_states(model, ids: list[int]) -> list[np.ndarray]:
    """Of one text alone, unpadded: the input of each block, then the output of the last norm."""
    with torch.no_grad():
        found = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return [layer[0].numpy() for layer in found]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_rows_equal_hidden_states_of_each_text_alone(tmp_path, model_folder, short_neutral, family):
    """Against transformers itself, one text at a time and unpadded: with and without a begin token, and with a
    tokenizer that pads on the left by default."""
    store = build(tmp_path, model_folder(family), neutral=short_neutral, pooled_layers=(0,), first_token=20)
    model, tokenizer = load_reference(model_folder(family))
    rows, documents = store.tokens(LAYER), CorpusStage.open(tmp_path / "corpus").documents
    for document in (documents[0], documents[9], documents[-1]):
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        lead = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        hidden = hidden_states(model, lead + ids)
        start, end = rows.span(document.index)
        assert rows.token[start:end].tolist() == ids
        assert rows.position[start:end].tolist() == list(range(len(ids)))
        expected = hidden[LAYER + 1][len(lead) :]
        assert np.linalg.norm(rows.of(document.index) - expected) <= 1e-5 * np.linalg.norm(expected)
        for layer in (0, LAYER):
            expected = hidden[layer + 1][len(lead) + 20 :].mean(axis=0)
            np.testing.assert_allclose(store.pooled(layer)[document.index], expected, rtol=1e-4, atol=1e-5)


def test_one_pass_keeps_every_site_asked_for(tmp_path, model_folder, short_neutral):
    sites = ("resid_post", "resid_pre", "attn_out", "mlp_out")
    store = build(tmp_path, model_folder("llama"), neutral=short_neutral, sites=sites, token_layers=(1,))
    assert store.token_layers == (1, LAYER)
    for layer in (1, LAYER):
        post, pre, attention, mlp = (store.tokens(layer, site).of(3) for site in sites)
        np.testing.assert_allclose(pre + attention + mlp, post, atol=1e-5)
        means = [store.pooled(layer, site=site)[3] for site in sites]
        np.testing.assert_allclose(means[1] + means[2] + means[3], means[0], atol=1e-5)
        np.testing.assert_allclose(store.pooled(layer)[3], post[50:].mean(axis=0), atol=1e-6)
        norms = np.linalg.norm(store.tokens(layer).read(np.arange(store.index["rows"])), axis=1)
        assert store.mean_norm(layer) == pytest.approx(norms.mean(), rel=1e-5)
    np.testing.assert_array_equal(store.tokens(LAYER, "resid_pre").of(3), store.tokens(1).of(3))


def test_batching_and_parts_do_not_change_rows(tmp_path, model_folder, short_neutral):
    one = build(tmp_path / "a", model_folder("llama"), neutral=short_neutral, tokens_per_batch=1, first_token=30)
    many = build(
        tmp_path / "b", model_folder("llama"), neutral=short_neutral, tokens_per_batch=4096, texts_per_part=5,
        first_token=30,
    )  # fmt: skip
    for document in range(one.index["documents"]):
        a, b = one.tokens(LAYER).of(document), many.tokens(LAYER).of(document)
        assert (np.linalg.norm(a - b, axis=1) <= 1e-5 * np.linalg.norm(a, axis=1)).all()
    a, b = one.pooled(LAYER), many.pooled(LAYER)
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)
    assert one.mean_norm(LAYER) == pytest.approx(many.mean_norm(LAYER), rel=1e-6)


def test_texts_beyond_the_models_context_are_windowed_not_cut(tmp_path, model_folder):
    """The tiny models take 512 positions; the text has three times as many, and every token its own row."""
    neutral = write_texts(tmp_path / "neutral.jsonl", [{"text": LONG * 190}, {"text": LONG * 12}])
    store = build(tmp_path, model_folder("llama"), neutral=neutral, overlap=100, positions=("last",))
    model, tokenizer = load_reference(model_folder("llama"))
    ids = tokenizer(LONG * 190, add_special_tokens=False)["input_ids"]
    document = store.index["documents"] - 2
    assert len(ids) > 3 * 512
    rows = store.tokens(LAYER)
    start, end = rows.span(document)
    assert rows.token[start:end].tolist() == ids
    assert rows.position[start:end].tolist() == list(range(len(ids)))
    expected, done = [], 0
    while done < len(ids):  # the definition, written out: 511 ids behind a begin token, the first 100 of them context
        first = max(0, done - 100)
        piece = ids[first : first + 511]
        expected.append(hidden_states(model, [tokenizer.bos_token_id, *piece])[LAYER + 1][1 + done - first :])
        done = first + len(piece)
    whole = np.concatenate(expected)
    assert np.linalg.norm(rows.of(document) - whole) <= 1e-5 * np.linalg.norm(whole)
    np.testing.assert_allclose(store.pooled(LAYER)[document], whole[50:].mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(store.at(LAYER, "last")[document], whole[-1], rtol=1e-4, atol=1e-5)
    assert store.column("documents/windows")[document] == len(expected)
    assert set(store.column("documents/windows")[:document]) == {1}


@pytest.mark.parametrize(
    ("tokens", "limit", "overlap"), [(1, 16, 4), (16, 16, 8), (17, 16, 8), (100, 16, 0), (99, 10, 3)]
)
def test_windows_read_every_token_once_behind_enough_context(tokens, limit, overlap):
    cut = windows(0, tokens, limit, overlap)
    assert [index for each in cut for index in range(each.fresh, each.end)] == list(range(tokens))
    for each in cut:
        assert each.end - each.start <= limit
        assert each.fresh - each.start == min(overlap, each.fresh)


def test_batches_hold_every_text_once_within_the_budget():
    lengths = np.random.default_rng(1).integers(5, 90, size=57).tolist()
    batches = list(plan_batches(lengths, 200))
    assert sorted(index for batch in batches for index in batch) == list(range(57))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= 200
    assert list(plan_batches([500], 200)) == [[0]]


def test_what_is_not_asked_for_is_not_kept_and_its_key_is_named(tmp_path, model_folder, short_neutral):
    store = build(tmp_path, model_folder("llama"), neutral=short_neutral, token_rows=False, pooled_layers=(0,))
    assert store.layers == (0, LAYER)
    assert store.token_layers == ()
    assert np.isfinite(store.pooled(LAYER)).all()
    assert store.mean_norm(0) > 0
    for ask, key in (
        (lambda: store.tokens(LAYER), "activations.token_rows"),
        (lambda: store.pooled(1), "activations.pooled_layers"),
        (lambda: store.pooled(LAYER, site="mlp_out"), "activations.sites"),
        (lambda: store.pooled(LAYER, span="user"), "activations.spans"),
        (lambda: store.at(LAYER, "answer"), "activations.positions"),
        (lambda: store.batches(8, 0), "say which one"),
    ):
        with pytest.raises(UserError, match=key):
            ask()


def test_rows_alone_need_no_fifty_tokens(tmp_path, model_folder):
    neutral = write_texts(tmp_path / "neutral.jsonl", [{"text": "Two gates."}])
    with pytest.raises(
        UserError, match=r"document \d+ \(prose, neutral\) has \d tokens, but `activations.first_token`"
    ):
        build(tmp_path / "a", model_folder("llama"), neutral=neutral)
    store = build(tmp_path / "b", model_folder("llama"), neutral=neutral, means=False)
    assert len(store.tokens(LAYER).of(store.index["documents"] - 1)) < 10
    with pytest.raises(UserError, match=r"activations\.means"):
        store.pooled(LAYER)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sites": ["mlp_out"]}, "resid_post among them"),
        ({"sites": ["resid_post", "resid_post"]}, "each site once"),
        ({"sites": ["hook_z"]}, "sites.*hook_z"),
        ({"window": 64, "overlap": 40}, "more than half a window"),
        ({"positions": ["first"]}, "positions"),
        ({"spans": ["a/b"]}, "spans"),
    ],
)
def test_a_wrong_key_is_named(section, message):
    with pytest.raises(ConfigError, match=message):
        validate(ActivationsConfig, section, "activations")


def test_an_overlap_too_long_for_the_model_is_refused(tmp_path, model_folder, short_neutral):
    with pytest.raises(UserError, match=r"`activations.overlap: 300`: more than half of the 512 tokens"):
        build(tmp_path, model_folder("llama"), neutral=short_neutral, overlap=300)


@pytest.mark.parametrize(("storage", "factor"), [("float16", 1e9), ("auto", float("nan")), ("bfloat16", float("inf"))])
def test_values_that_are_not_finite_are_refused(tmp_path, model_folder, short_neutral, storage, factor):
    from safetensors.torch import load_file, save_file

    source = model_folder("llama")
    loud = tmp_path / "loud"
    loud.mkdir()
    for item in source.iterdir():
        (loud / item.name).write_bytes(item.read_bytes())
    weights = load_file(loud / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= factor
    save_file(weights, loud / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layer 2, corpus document \d+: resid_post is not finite in"):
        build(tmp_path / "x", loud, neutral=short_neutral, storage=storage)


def test_the_route_over_the_bridge_gives_the_same_rows(tmp_path, model_folder, short_neutral, monkeypatch):
    plain = build(tmp_path / "plain", model_folder("qwen2"), neutral=short_neutral)
    monkeypatch.setattr("affectlens.model.reading.FAMILIES", {})
    bridged = build(tmp_path / "bridged", model_folder("qwen2"), neutral=short_neutral)
    a, b = plain.tokens(LAYER).read(np.arange(500)), bridged.tokens(LAYER).read(np.arange(500))
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)

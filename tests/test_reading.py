"""Every way to read a model gives transformers' own hidden states, whatever the batch, the padding or the window."""

from __future__ import annotations

import pytest
import torch
from affectlens.model.config import ModelConfig
from affectlens.model.reading import FAMILIES, SITES, Site, Trunk, open_reader, read
from affectlens.model.subject import Subject
from transformers import AutoModelForCausalLM

WANTED = [Site(layer, name) for layer in (0, 2) for name in SITES]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def random_rows(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 600, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_is_the_same_by_both_ways_and_equals_hidden_states(tmp_path, model_folder, tiny_subject, family):
    config = ModelConfig(name=str(model_folder(family)), layer=2, dtype="float32")
    trunk = open_reader(config, 3, device="cpu", models=tmp_path)
    assert isinstance(trunk, Trunk)
    tokens = torch.tensor(random_rows(40, 40, 40))
    ours, theirs = trunk.activations(tokens, WANTED), tiny_subject(family).activations(tokens, WANTED)
    assert set(ours) == set(theirs) == set(WANTED)
    for site in WANTED:
        assert (ours[site] - theirs[site]).norm() <= 1e-5 * theirs[site].norm(), site
    original = AutoModelForCausalLM.from_pretrained(config.name, dtype=torch.float32).eval()
    with torch.no_grad():
        states = original(tokens, output_hidden_states=True).hidden_states
    for layer in (0, 2):
        torch.testing.assert_close(ours[Site(layer)], states[layer + 1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours[Site(layer, "resid_pre")], states[layer], atol=1e-4, rtol=1e-4)
    assert trunk.width == tiny_subject(family).width == 32
    assert trunk.context == tiny_subject(family).context == 512


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2"])
def test_batches_and_padding_change_nothing(tiny_subject, family):
    rows, site = random_rows(3, 50, 1, 17, 50, 29), Site(2)
    model = tiny_subject(family)
    alone = {index: model.activations(torch.tensor([row]), [site])[site][0] for index, row in enumerate(rows)}
    for budget in (1, 60, 4096):
        values = dict(read(model, rows, [site], tokens_per_batch=budget))
        assert sorted(values) == list(range(len(rows)))
        for index, sites in values.items():
            torch.testing.assert_close(sites[site], alone[index], atol=1e-5, rtol=1e-4)


def test_rows_beyond_the_window_are_read_once_behind_context(tiny_subject):
    """As :class:`Caching` cuts them: the lead stands before every window, context is read again, nothing twice."""
    model, site, lead = tiny_subject("llama"), Site(2), 1
    (row,) = random_rows(100)
    ((index, sites),) = read(model, [row], [site], window=41, overlap=10, lead=lead)
    assert (index, len(sites[site])) == (0, 100)
    first = model.activations(torch.tensor([row[:41]]), [site])[site][0]
    second = model.activations(torch.tensor([row[:1] + row[31:71]]), [site])[site][0]
    torch.testing.assert_close(sites[site][:41], first, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sites[site][41:71], second[11:], atol=1e-5, rtol=1e-4)


def test_a_row_longer_than_the_model_takes_is_windowed(tiny_subject):
    ((_, sites),) = read(tiny_subject("gpt2"), random_rows(1100), [Site(1)])
    assert len(sites[Site(1)]) == 1100
    assert torch.isfinite(sites[Site(1)]).all()


def test_only_the_layers_that_are_read_are_loaded(tmp_path, model_folder):
    config = ModelConfig(name=str(model_folder("llama")), layer=1, dtype="float32")
    reader = open_reader(config, 2, device="cpu", models=tmp_path)
    assert isinstance(reader, Trunk)
    assert len(reader.model.layers) == 2
    assert not any("lm_head" in name for name, _ in reader.model.named_parameters())


def test_other_families_are_read_through_the_bridge(tmp_path, model_folder, monkeypatch):
    monkeypatch.delitem(FAMILIES, "llama")
    config = ModelConfig(name=str(model_folder("llama")), layer=1, dtype="float32")
    reader = open_reader(config, 2, device="cpu", models=tmp_path)
    assert isinstance(reader, Subject)
    assert reader.loaded_layers == 2

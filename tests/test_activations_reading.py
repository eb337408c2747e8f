"""Every architecture that is read without transformer-lens gives what transformer-lens's hooks give."""

from __future__ import annotations

import pytest
import torch
from affectlens.errors import UserError
from affectlens.model.reading import FAMILIES, SITES, BridgeReader, PlainReader, Site, open_reader
from affectlens.model.subject import ModelConfig

WANTED = [Site(layer, name) for layer in (0, 2) for name in SITES]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_equals_transformer_lens(tmp_path, model_folder, family):
    torch.set_num_threads(1)
    config = ModelConfig(name=str(model_folder(family)), layer=2, dtype="float32")
    reader = open_reader(config, WANTED, device="cpu", models=tmp_path)
    assert isinstance(reader, PlainReader)
    bridge = BridgeReader(config, WANTED, 3, device="cpu", models=tmp_path)
    tokens = torch.randint(3, 600, (3, 40), generator=torch.Generator().manual_seed(0))
    ours, theirs = reader.read(tokens), bridge.read(tokens)
    assert set(ours) == set(theirs) == set(WANTED)
    for site in WANTED:
        assert (ours[site] - theirs[site]).norm() <= 1e-5 * theirs[site].norm(), site
    assert reader.width == bridge.width == 32
    assert reader.context == 512


def test_only_the_layers_that_are_read_are_loaded(tmp_path, model_folder):
    config = ModelConfig(name=str(model_folder("llama")), layer=1, dtype="float32")
    reader = open_reader(config, [Site(1, "resid_post")], device="cpu", models=tmp_path)
    assert isinstance(reader, PlainReader)
    assert len(reader._model.layers) == 2
    assert not any("lm_head" in name for name, _ in reader._model.named_parameters())


def test_a_broken_model_is_one_sentence(tmp_path, model_folder):
    broken = tmp_path / "broken"
    broken.mkdir()
    for item in model_folder("llama").iterdir():
        (broken / item.name).write_bytes(item.read_bytes())
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"`model.name: .*broken`: the model could not be loaded \(.+\)$"):
        open_reader(ModelConfig(name=str(broken)), [Site(1, "resid_post")], device="cpu", models=tmp_path)

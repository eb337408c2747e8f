"""SAEs of others: each format opens with the codes of its own library; a wrong one is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from affectlens.errors import UserError
from affectlens.model.subject import ModelConfig, Shape
from affectlens.sae import loading, source
from affectlens.sae.building import build, save_folded
from affectlens.sae.formats import describe
from affectlens.sae.formats.sae_lens import parse_hook
from affectlens.sae.model import Dictionary, open_folder
from affectlens.sae.recipe import Recipe
from affectlens.sae.source import LoadConfig
from affectlens.stages.sae import SaeConfig, check_source
from planted import D_MODEL, PlantedRows

WIDTH, K = 80, 5
MODEL = ModelConfig(name="some/where/Tiny-Llama", layer=2)
SHAPE = Shape(4, D_MODEL)
WEIGHTS = {
    name: 0.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(index))
    for index, (name, shape) in enumerate(
        {"W_enc": (D_MODEL, WIDTH), "W_dec": (WIDTH, D_MODEL), "b_enc": (WIDTH,), "b_dec": (D_MODEL,)}.items()
    )
}
X = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(9))


def _topk_codes(pre: torch.Tensor) -> torch.Tensor:
    value, index = pre.topk(K, dim=1)
    return torch.zeros_like(pre).scatter(1, index, value.relu())


def write_sae_lens(folder: Path, **changes: object) -> Path:
    """A folder written by sae-lens alone."""
    from sae_lens import SAE

    hook = changes.pop("hook_name", "blocks.2.hook_resid_post")
    name = changes.pop("model_name", "tiny-llama")
    settings = {"architecture": "topk", "d_in": D_MODEL, "d_sae": WIDTH, "k": K, **changes}
    sae = SAE.from_dict(settings | {"metadata": {"hook_name": hook, "model_name": name}})
    if sae.cfg.d_in == D_MODEL:
        sae.load_state_dict(dict(WEIGHTS.items()), strict=False)
    sae.save_model(folder)
    return folder


def write_sparsify(folder: Path) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    settings = {"d_in": D_MODEL, "num_latents": WIDTH, "k": K, "expansion_factor": 4, "normalize_decoder": True}
    (folder / "cfg.json").write_text(json.dumps(settings))
    weights = {
        "encoder.weight": WEIGHTS["W_enc"].T.contiguous(),
        "encoder.bias": WEIGHTS["b_enc"],
        "W_dec": WEIGHTS["W_dec"],
        "b_dec": WEIGHTS["b_dec"],
    }
    save_file(weights, folder / "sae.safetensors")
    return folder


def write_dictionary_learning(folder: Path, dict_class: str) -> Path:
    folder.mkdir(parents=True)
    trainer = {"dict_class": dict_class, "activation_dim": D_MODEL, "dict_size": WIDTH, "layer": 2, "k": K}
    trainer |= {"lm_name": "org/tiny-llama", "submodule_name": "resid_post_layer_2"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    weights = {
        "encoder.weight": WEIGHTS["W_enc"].T.contiguous(),
        "encoder.bias": WEIGHTS["b_enc"],
        "decoder.weight": WEIGHTS["W_dec"].T.contiguous(),
        "b_dec": WEIGHTS["b_dec"],
    }
    extra = {"BatchTopKSAE": {"threshold": torch.tensor(1.5), "k": torch.tensor(K)}}
    extra["AutoEncoderTopK"] = {"threshold": torch.tensor(-1.0), "k": torch.tensor(K)}
    if dict_class == "AutoEncoder":
        weights["bias"] = weights.pop("b_dec")
    torch.save(weights | extra.get(dict_class, {}), folder / "ae.pt")
    return folder


def write_gemma_scope(folder: Path) -> Path:
    folder.mkdir(parents=True)
    arrays: dict[str, Any] = {name: value.numpy() for name, value in WEIGHTS.items()} | {
        "threshold": np.full(WIDTH, 1.5, np.float32)
    }
    np.savez(folder / "params.npz", **arrays)
    return folder


CENTRED = (X - WEIGHTS["b_dec"]) @ WEIGHTS["W_enc"] + WEIGHTS["b_enc"]
RAW = X @ WEIGHTS["W_enc"] + WEIGHTS["b_enc"]
FORMATS = {
    "sae_lens": (lambda root: write_sae_lens(root / "mine"), _topk_codes(CENTRED)),
    "sparsify": (lambda root: write_sparsify(root / "layers.2"), _topk_codes(CENTRED)),
    "topk": (lambda root: write_dictionary_learning(root / "ae", "AutoEncoderTopK"), _topk_codes(CENTRED)),
    "relu": (lambda root: write_dictionary_learning(root / "ae", "AutoEncoder"), CENTRED.relu()),
    "batchtopk": (lambda root: write_dictionary_learning(root / "ae", "BatchTopKSAE"), CENTRED * (CENTRED > 1.5)),
    "gemma_scope": (lambda root: write_gemma_scope(root / "layer_2" / "width_16k"), RAW * (RAW > 1.5)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_its_own_codes_and_reconstruction(name, tmp_path) -> None:
    write, expected = FORMATS[name]
    load = LoadConfig(path=write(tmp_path))
    check_source(load, MODEL, SHAPE)
    sae = Dictionary(loading.load(load, mean_norm=1.0))
    codes = sae.encode(X.numpy())
    np.testing.assert_allclose(codes, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        sae.decode(codes), (expected @ WEIGHTS["W_dec"] + WEIGHTS["b_dec"]).numpy(), rtol=1e-4, atol=1e-4
    )
    assert codes.dtype == np.float32
    assert sae.decoder.dtype == np.float32


def test_what_is_saved_opens_in_sae_lens_alone_with_the_same_codes(tmp_path) -> None:
    from sae_lens import SAE

    recipe = Recipe(k=K)
    sae = build(recipe, d_in=D_MODEL, width=WIDTH, centre=torch.zeros(D_MODEL), seed=0, metadata={"hook_name": "x"})
    save_folded(sae, 0.25, tmp_path)
    ours = Dictionary(open_folder(tmp_path)).encode(X.numpy())
    np.testing.assert_array_equal(SAE.load_from_disk(tmp_path).encode(X).detach().numpy(), ours)


def test_one_trained_by_sae_lens_alone_opens_here(tmp_path) -> None:
    from sae_lens import SAE
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    rows = torch.from_numpy(PlantedRows().values)
    config = BatchTopKTrainingSAEConfig(
        d_in=D_MODEL, d_sae=WIDTH, k=4, normalize_activations="expected_average_only_in"
    )
    batches = (rows[torch.randint(len(rows), (64,))] for _ in range(10_000))
    trainer_config = SAETrainerConfig(
        total_training_samples=640, train_batch_size_samples=64, lr=1e-3, lr_end=1e-4, device="cpu", autocast=False,
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, lr_scheduler_name="constant",
        lr_warm_up_steps=0, lr_decay_steps=0, n_restart_cycles=1, adam_beta1=0.9, adam_beta2=0.999,
        dead_feature_window=1000, feature_sampling_window=2000, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trained = SAETrainer(cfg=trainer_config, sae=BatchTopKTrainingSAE(config), data_provider=batches).fit()
    trained.cfg.metadata.hook_name = "blocks.2.hook_resid_post"
    trained.save_inference_model(tmp_path)
    load = LoadConfig(path=tmp_path)
    check_source(load, MODEL, SHAPE)
    codes = Dictionary(loading.load(load, mean_norm=1.0)).encode(rows[:100].numpy())
    expected = SAE.load_from_disk(tmp_path).encode(rows[:100]).detach().numpy()
    np.testing.assert_array_equal(codes, expected)
    assert (codes > 0).any()


def test_an_expected_norm_is_folded_in(tmp_path) -> None:
    """The SAE wants rows of norm sqrt(width); the study's rows have mean norm 7."""
    folder = write_sae_lens(tmp_path / "sae", normalize_activations="expected_average_only_in")
    sae = Dictionary(loading.load(LoadConfig(path=folder), mean_norm=7.0))
    factor = D_MODEL**0.5 / 7
    scaled = _topk_codes((X * factor - WEIGHTS["b_dec"]) @ WEIGHTS["W_enc"] + WEIGHTS["b_enc"])
    np.testing.assert_allclose(sae.encode(X.numpy()), scaled.numpy(), rtol=1e-4, atol=1e-5)
    expected = (scaled @ WEIGHTS["W_dec"] + WEIGHTS["b_dec"]) / factor
    np.testing.assert_allclose(sae.reconstruct(X.numpy()), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_normalising_each_token_is_refused(tmp_path) -> None:
    folder = write_sae_lens(tmp_path / "sae", normalize_activations="layer_norm")
    with pytest.raises(UserError, match="normalises each token by itself"):
        loading.load(LoadConfig(path=folder), mean_norm=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": 48}, "made for activations of width 48, but some/where/Tiny-Llama has 32"),
        ({"hook_name": "blocks.3.hook_resid_post"}, "made for layer 3, but `model.layer` is 2"),
        ({"hook_name": "blocks.2.hook_mlp_out"}, "reads hook_mlp_out, but studies read the residual stream"),
    ],
)
def test_an_sae_of_something_else_is_refused_before_anything_runs(changes, message, tmp_path) -> None:
    folder = write_sae_lens(tmp_path / "sae", **changes)
    with pytest.raises(ValueError, match=r"^`sae.load.path: .*`: ") as refused:
        check_source(LoadConfig(path=folder), MODEL, SHAPE)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_stream_before_a_block_is_the_one_after_the_block_before(tmp_path) -> None:
    check_source(LoadConfig(path=write_sae_lens(tmp_path, hook_name="blocks.3.hook_resid_pre")), MODEL, SHAPE)
    assert parse_hook("blocks.0.hook_resid_pre") == (0, "hook_resid_pre")


def test_another_model_name_is_a_warning(tmp_path) -> None:
    origin = describe(write_sae_lens(tmp_path / "sae", model_name="gpt2"))
    assert source.compare(origin, MODEL, SHAPE) == [
        "the SAE was made for the model gpt2, the study reads some/where/Tiny-Llama"
    ]
    same = describe(write_sae_lens(tmp_path / "same", model_name="tiny-llama"))
    assert source.compare(same, MODEL, SHAPE) == []


@pytest.mark.parametrize("content", [None, {}, {"cfg.json": "{"}, {"notes.txt": "x"}])
def test_a_folder_without_an_sae_is_refused(content, tmp_path) -> None:
    folder = tmp_path / "sae"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(ValueError, match=r"no such folder|no SAE of a known format"):
        check_source(LoadConfig(path=folder), MODEL, SHAPE)


def test_damaged_settings_and_weights_are_named(tmp_path) -> None:
    folder = write_sae_lens(tmp_path / "sae")
    (folder / "sae_weights.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="sae-lens cannot open it"):
        loading.load(LoadConfig(path=folder), mean_norm=1.0)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match=r"cfg\.json cannot be read"):
        check_source(LoadConfig(path=folder), MODEL, SHAPE)


def test_pickled_code_in_a_dictionary_is_not_run(tmp_path) -> None:
    folder = write_dictionary_learning(tmp_path / "ae", "AutoEncoder")
    torch.save({"encoder.weight": SimpleNamespace()}, folder / "ae.pt")
    with pytest.raises(UserError, match="sae-lens cannot open it"):
        loading.load(LoadConfig(path=folder), mean_norm=1.0)


@pytest.mark.parametrize("values", [{}, {"release": "x"}, {"id": "y"}, {"path": "p", "release": "x", "id": "y"}])
def test_a_source_is_a_path_or_a_release_with_an_id(values) -> None:
    with pytest.raises(ValueError, match="either `path`, or `release` and `id`"):
        LoadConfig.model_validate(values)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, offline."""
    from huggingface_hub import constants

    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return root


def _fill(hub: Path, repository: str, folder: str, **changes: object) -> None:
    """Lay an SAE into the cache as a download would have."""
    snapshot = hub / f"models--{repository.replace('/', '--')}" / "snapshots" / ("a" * 40)
    write_sae_lens(snapshot / folder, **changes)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)


def test_a_registered_release_loads_from_a_filled_hub_cache(hub) -> None:
    load = LoadConfig(release="gpt2-small-res-jb", id="blocks.8.hook_resid_pre")
    entry = source.registered("gpt2-small-res-jb")
    assert entry is not None
    assert entry["model"] == "gpt2-small"
    _fill(hub, entry["repo_id"], "blocks.8.hook_resid_pre", hook_name="blocks.3.hook_resid_pre", model_name="gpt2")
    check_source(load, MODEL, SHAPE)
    codes = Dictionary(loading.load(load, mean_norm=1.0)).encode(X.numpy())
    np.testing.assert_allclose(codes, FORMATS["sae_lens"][1].numpy(), rtol=1e-4, atol=1e-5)


def test_an_unregistered_repository_loads_too_and_is_checked(hub) -> None:
    _fill(hub, "someone/saes", "layer_2", hook_name="blocks.1.hook_resid_post")
    load = LoadConfig(release="someone/saes", id="layer_2")
    with pytest.raises(ValueError, match=r"made for layer 1, but `model.layer` is 2"):
        check_source(load, MODEL, SHAPE)
    check_source(load, MODEL.model_copy(update={"layer": 1}), SHAPE)
    assert Dictionary(loading.load(load, mean_norm=1.0)).d_sae == WIDTH


@pytest.mark.parametrize(
    ("release", "name", "message"),
    [
        ("gpt2-small-res-jbb", "blocks.8.hook_resid_pre", "no such release; did you mean `gpt2-small-res-jb`"),
        ("gpt2-small-res-jb", "blocks.8.hook_resid_prr", "no SAE `blocks.8.hook_resid_prr`; did you mean"),
        ("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "made for layer 20, but `model.layer` is 2"),
    ],
)
def test_the_registry_is_consulted_before_anything_runs(release, name, message, hub) -> None:
    with pytest.raises(ValueError, match=r"^`sae.load.release: ") as refused:
        check_source(LoadConfig(release=release, id=name), MODEL, SHAPE)
    assert message in str(refused.value)


def test_a_release_that_is_not_there_offline_is_one_sentence(hub) -> None:
    load = LoadConfig(release="gpt2-small-res-jb", id="blocks.8.hook_resid_pre")
    with pytest.raises(UserError, match=r"sae-lens cannot open it .* check the files, or the network"):
        loading.load(load, mean_norm=1.0)


def test_the_embedded_sae_is_small_fits_its_layer_and_opens_in_sae_lens(tmp_path) -> None:
    from sae_lens import SAE

    weights = source.EMBEDDED / "sae_weights.safetensors"
    assert weights.stat().st_size <= 16 * 2**20
    load = SaeConfig(load="embedded").source
    assert load is not None
    check_source(load, ModelConfig(layer=15), Shape(30, 576))
    with pytest.raises(ValueError, match=r"^`sae.load: embedded`: made for layer 15, but `model.layer` is 10"):
        check_source(load, ModelConfig(layer=10), Shape(30, 576))
    with pytest.raises(ValueError, match=r"^`sae.load: embedded`: made for activations of width 576"):
        check_source(load, MODEL, SHAPE)
    mine = Dictionary(loading.load(load, mean_norm=166.0))
    x = mine.load().b_dec + torch.randn(20, 576, generator=torch.Generator().manual_seed(0))
    alone = SAE.load_from_disk(source.EMBEDDED, dtype="float32")
    np.testing.assert_array_equal(mine.encode(x.numpy()), alone.encode(x).detach().numpy())
    assert "Apache-2.0" in (source.EMBEDDED / "README.md").read_text(encoding="utf-8")

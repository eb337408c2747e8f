"""SAEs of others: each format opens with the codes of its own library; a wrong one is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import record_codes
import torch
from affectlens.errors import UserError
from affectlens.model.subject import ModelConfig, Shape
from affectlens.sae import loading, source
from affectlens.sae.building import build, save_folded
from affectlens.sae.formats import describe
from affectlens.sae.formats.sae_lens import from_settings, parse_hook
from affectlens.sae.model import Dictionary, open_folder, token_scale
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


CENTRED = (X - WEIGHTS["b_dec"]) @ WEIGHTS["W_enc"] + WEIGHTS["b_enc"]
RECORDED = json.loads(record_codes.RECORDED.read_text(encoding="utf-8"))


def test_every_case_is_recorded() -> None:
    assert set(RECORDED) == set(record_codes.CASES)


@pytest.mark.parametrize("case", record_codes.CASES)
def test_each_format_gives_the_codes_and_reconstructions_that_its_own_library_gave(case, tmp_path) -> None:
    """The numbers were recorded from the libraries themselves; Gemma Scope's are its published formula."""
    load = LoadConfig(path=record_codes.write(tmp_path, case))
    check_source(load, MODEL, Shape(4, record_codes.WIDTH))
    sae, rows = Dictionary(loading.load(load, mean_norm=record_codes.MEAN_NORM)), record_codes.rows()
    codes, rebuilt = sae.encode(rows), sae.reconstruct(rows)
    np.testing.assert_allclose(codes, RECORDED[case]["codes"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(rebuilt, RECORDED[case]["rebuilt"], atol=1e-5, rtol=1e-5)
    assert codes.dtype == rebuilt.dtype == sae.decoder.dtype == np.float32
    # What ablating a feature takes out is what it contributes to the reconstruction.
    x, module = torch.from_numpy(rows), sae.load()
    found = module.encode(x)
    without = found.clone()
    without[:, 0] = 0
    lost = torch.from_numpy(rebuilt) - module.decode(without)
    written = found[:, :1] * torch.from_numpy(sae.decoder[0]) * token_scale(module, x)
    np.testing.assert_allclose(lost.numpy(), written.numpy(), atol=1e-5)
    module.save_model(tmp_path / "kept")
    np.testing.assert_array_equal(Dictionary(open_folder(tmp_path / "kept")).encode(rows), codes)


def test_every_setting_of_sae_lens_is_read_or_changes_no_feature_activation() -> None:
    """A field that a later version adds fails here, so that it cannot be passed over without a word."""
    from dataclasses import fields

    from sae_lens.registry import SAE_CLASS_REGISTRY

    known = {
        "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations", "reshape_activations",
        "metadata", "k", "rescale_acts_by_decoder_norm", "residual_threshold", "max_iterations",
        "stop_on_duplicate_support",
    }  # fmt: skip
    for name, (_, config) in SAE_CLASS_REGISTRY.items():
        refused = from_settings({"architecture": name, "d_in": 8}).refusal
        assert refused or {field.name for field in fields(config)} <= known, name


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


def test_a_random_sae_beside_one_that_normalises_each_token_does_so_too(tmp_path) -> None:
    folder = write_sae_lens(tmp_path / "sae", normalize_activations="layer_norm")
    sae = Dictionary(loading.load(LoadConfig(path=folder), mean_norm=1.0))
    random = sae.random(k=K)
    longer = 3 * X.numpy() + 1
    np.testing.assert_allclose(random.encode(longer), random.encode(X.numpy()), atol=1e-3)
    assert (
        np.abs(random.reconstruct(longer) - longer).mean()
        > 2 * np.abs(random.reconstruct(X.numpy()) - X.numpy()).mean()
    )
    with pytest.raises(ValueError, match="decodes beside the token alone"):
        sae.decode(sae.encode(X.numpy()))


def test_factors_that_were_finetuned_change_what_is_decoded_and_no_code(tmp_path) -> None:
    """sae-lens 3 to 5: ``scaling_factor`` multiplies feature activations on decoding."""
    from safetensors.torch import save_file

    factors = torch.linspace(0.5, 2, WIDTH)
    settings = {"d_in": D_MODEL, "d_sae": WIDTH, "dtype": "float32", "finetuning_scaling_factor": True}
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    save_file(WEIGHTS | {"scaling_factor": factors}, tmp_path / "sae_weights.safetensors")
    sae = Dictionary(loading.load(LoadConfig(path=tmp_path), mean_norm=1.0))
    np.testing.assert_allclose(sae.encode(X.numpy()), CENTRED.relu().numpy(), atol=1e-5)
    expected = (CENTRED.relu() * factors) @ WEIGHTS["W_dec"] + WEIGHTS["b_dec"]
    np.testing.assert_allclose(sae.reconstruct(X.numpy()), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": 48}, "has W_dec of shape [80, 32], but the settings say d_in: 48"),
        ({"hook_name": "blocks.3.hook_resid_post"}, "made for layer 3, but `model.layer` is 2"),
        ({"hook_name": "blocks.2.hook_mlp_out"}, "reads hook_mlp_out, but studies read the residual stream"),
        ({"hook_name": "model.layers.2.mlp"}, "reads model.layers.2.mlp"),
        ({"hook_name": "hook_embed"}, "reads hook_embed"),
        ({"hook_name": None, "hook_layer": 3}, "made for layer 3"),
        ({"hook_name_out": "blocks.2.hook_mlp_out"}, "is a transcoder"),
        ({"hook_head_index": 1}, "reads single attention heads"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations: covariance_whitening"),
        ({"architecture": "abstopk"}, "codes of both signs"),
        ({"architecture": "temporal"}, "encodes a token by those before it"),
        ({"architecture": "jumprelu_skip_transcoder"}, "is a transcoder"),
        ({"architecture": "crosscoder"}, "is of the architecture `crosscoder`"),
        ({"activation_fn_str": "tanh-relu"}, "the activation function `tanh-relu`"),
    ],
)
def test_an_sae_of_something_else_is_refused_before_anything_runs(changes, message, tmp_path) -> None:
    folder = write_sae_lens(tmp_path / "sae")
    settings = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(settings | {"metadata": settings["metadata"] | changes} | changes))
    with pytest.raises(ValueError, match=r"^`sae.load.path: .*`: ") as refused:
        check_source(LoadConfig(path=folder), MODEL, SHAPE)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


OTHERS = {
    "another class": ("dictionary_learning AutoEncoder", {"trainer": {"dict_class": "CrossCoder"}}, "CrossCoder"),
    "no class": ("dictionary_learning AutoEncoder", {"trainer": {"dict_class": None}}, "names no `dict_class`"),
    "another site": ("dictionary_learning AutoEncoder", {"trainer": {"submodule_name": "mlp_2"}}, "reads mlp_2"),
    "an input": ("dictionary_learning AutoEncoder", {"buffer": {"io": "in"}}, "io: in"),
    "another layer": (
        "dictionary_learning AutoEncoder", {"trainer": {"submodule_name": "resid_post_layer_1"}}, "made for layer 1"
    ),
    "groups": ("sparsify topk", {"activation": "groupmax"}, "activation: groupmax"),
    "both signs": ("sparsify topk", {"signed": True}, "signed: true"),
    "a transcoder": ("sparsify topk", {"transcode": True}, "transcode: true"),
    "a skip": ("sparsify topk", {"skip_connection": True}, "skip_connection: true"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_another_library_computes_otherwise_is_refused_by_its_setting(name, tmp_path) -> None:
    case, changes, message = OTHERS[name]
    folder = record_codes.write(tmp_path, case)
    path = folder / ("config.json" if "trainer" in record_codes.CASES[case] else "cfg.json")
    settings = json.loads(path.read_text())
    for key, value in changes.items():
        settings[key] = settings[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        check_source(LoadConfig(path=folder), MODEL, Shape(4, record_codes.WIDTH))


@pytest.mark.parametrize(
    ("case", "folder", "message"),
    [
        ("sparsify topk", "embed_tokens", "reads the token embedding"),
        ("sparsify topk", "layers.2.mlp", "reads mlp"),
        ("sparsify topk", "h.3/seed1", "made for layer 3"),
        ("gemma scope", "gemma-scope-2b-pt-mlp/layer_2/width_16k/average_l0_71", "reads mlp_out"),
        ("gemma scope", "gemma-scope-2b-pt-transcoders/layer_2/width_16k/average_l0_71", "reads mlp_in"),
        ("gemma scope", "gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71", "made for layer 3"),
    ],
)
def test_folders_say_by_their_names_what_an_sae_reads(case, folder, message, tmp_path) -> None:
    moved = tmp_path / folder
    moved.parent.mkdir(parents=True, exist_ok=True)
    record_codes.write(tmp_path / "first", case).rename(moved)
    with pytest.raises(ValueError, match=message):
        check_source(LoadConfig(path=moved), MODEL, Shape(4, record_codes.WIDTH))


def test_arrays_that_no_jumprelu_has_are_named(tmp_path) -> None:
    folder = record_codes.write(tmp_path, "gemma scope")
    with np.load(folder / "params.npz") as arrays:
        np.savez(folder / "params.npz", **arrays, W_skip=np.zeros(1))
    with pytest.raises(ValueError, match="W_skip"):
        check_source(LoadConfig(path=folder), MODEL, Shape(4, record_codes.WIDTH))


def test_the_stream_before_a_block_is_the_one_after_the_block_before(tmp_path) -> None:
    check_source(LoadConfig(path=write_sae_lens(tmp_path, hook_name="blocks.3.hook_resid_pre")), MODEL, SHAPE)
    assert parse_hook("blocks.0.hook_resid_pre") == (0, "hook_resid_pre")
    for name in ("model.layers.2", "transformer.h.2", "gpt_neox.layers.2", "blocks.2.hook_out", "blocks.3.hook_in"):
        assert parse_hook(name) == (2, "hook_resid_post")


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
    folder = record_codes.write(tmp_path, "dictionary_learning AutoEncoder")
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
    np.testing.assert_allclose(codes, _topk_codes(CENTRED).numpy(), rtol=1e-4, atol=1e-5)


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
        (
            "gpt2-small-res-jb",
            "blocks.8.hook_resid_pre",
            "made for the model gpt2-small, but the study reads some/where",
        ),
        ("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "made for the model gemma-2-2b, but the study"),
        ("gemma-scope-2b-pt-mlp", "layer_0/width_16k/average_l0_119", "reads mlp_out"),
    ],
)
def test_the_registry_is_consulted_before_anything_runs(release, name, message, hub) -> None:
    with pytest.raises(ValueError, match=r"^`sae.load.release: ") as refused:
        check_source(LoadConfig(release=release, id=name), MODEL, SHAPE)
    assert message in str(refused.value)


def test_of_the_right_model_the_registry_tells_the_layer(hub) -> None:
    """Of another model, to change the layer would be the wrong advice."""
    load = LoadConfig(release="gpt2-small-res-jb", id="blocks.8.hook_resid_pre")
    with pytest.raises(ValueError, match=r"made for layer 7, but `model.layer` is 2"):
        check_source(load, ModelConfig(name="gpt2", layer=2), SHAPE)


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

"""What other libraries' SAEs make of a few rows, recorded by these libraries: ``python tests/record_codes.py``.

Needs sae-lens, eai-sparsify 1.3.3 and dictionary-learning 0.1.0, which the tests do not: :func:`write` rebuilds the
same folders from a seed. Each library opens the folder, encodes and decodes the rows; the numbers go into
``golden/codes.json``. Gemma Scope has no library: its numbers are the formula of its tutorial (Lieberum et al. 2024).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

RECORDED = Path(__file__).parent / "golden" / "codes.json"
WIDTH, FEATURES, K, LAYER = 6, 10, 3, 2
MEAN_NORM = 7.0
"""What stands for the mean norm of a study's residuals."""
SCALE = WIDTH**0.5 / MEAN_NORM


def rows() -> np.ndarray:
    """Residual rows of different length and mean."""
    random = np.random.default_rng(99)
    values = random.standard_normal((4, WIDTH)) * [[1.0], [2.0], [4.0], [0.5]] + [[0.0], [1.0], [-2.0], [0.3]]
    return values.astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    """All parameters that some architecture has; decoder rows are not of length 1."""
    random = np.random.default_rng(0)
    shapes = {
        "W_enc": (WIDTH, FEATURES), "W_dec": (FEATURES, WIDTH), "b_enc": (FEATURES,), "b_dec": (WIDTH,),
        "threshold": (FEATURES,), "b_gate": (FEATURES,), "b_mag": (FEATURES,), "r_mag": (FEATURES,),
    }  # fmt: skip
    drawn = {name: 0.5 * random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn | {"threshold": np.abs(drawn["threshold"])}


def whitening() -> dict[str, np.ndarray]:
    """A mean, a map to other coordinates of other lengths, and its inverse."""
    random = np.random.default_rng(5)
    turned = np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0] * random.uniform(0.5, 2, WIDTH)
    maps = {"mean": random.standard_normal(WIDTH), "matrix": turned, "inverse_matrix": np.linalg.inv(turned)}
    return {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in maps.items()}


PARAMETERS = {
    "standard": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "topk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "jumprelu": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
    "matching_pursuit": ("W_dec", "b_dec"),
}
NORMALISATIONS = ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale")
HOOK = {"hook_name": f"blocks.{LAYER}.hook_resid_post", "model_name": "tiny-llama"}


def _sae_lens(architecture: str, normalisation: str = "none", **more: Any) -> dict[str, Any]:
    """A ``cfg.json`` of version 6."""
    k = {"k": K} if "topk" in architecture else {}
    return {
        "architecture": architecture, "d_in": WIDTH, "d_sae": FEATURES, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": normalisation, "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", **HOOK}, **k, **more,
    }  # fmt: skip


SAE_LENS: dict[str, dict[str, Any]] = {
    f"sae-lens {architecture} {normalisation}": _sae_lens(architecture, normalisation)
    for architecture in PARAMETERS
    for normalisation in NORMALISATIONS
} | {
    "sae-lens topk by decoder norm": _sae_lens("topk", rescale_acts_by_decoder_norm=True),
    "sae-lens topk by decoder norm, scaled": _sae_lens(
        "topk", "expected_average_only_in", rescale_acts_by_decoder_norm=True
    ),
    "sae-lens standard, input not centred": _sae_lens("standard", apply_b_dec_to_input=False),
    "sae-lens batchtopk checkpoint": _sae_lens("batchtopk", rescale_acts_by_decoder_norm=False),
    "sae-lens matryoshka checkpoint": _sae_lens(
        "matryoshka_batchtopk", "expected_average_only_in", matryoshka_widths=[4, FEATURES],
        rescale_acts_by_decoder_norm=True,
    ),
    **{
        f"sae-lens {name} whitened checkpoint": _sae_lens(name.partition(",")[0], "covariance_whitening", **more)
        for name, more in {
            "standard": {}, "standard, input not centred": {"apply_b_dec_to_input": False}, "jumprelu": {},
            "gated, input not centred": {"apply_b_dec_to_input": False}, "batchtopk": {},
            "topk": {"rescale_acts_by_decoder_norm": True},
        }.items()
    },
    "sae-lens 3 relu": {
        "d_in": WIDTH, "d_sae": FEATURES, "dtype": "torch.float32", "activation_fn_str": "relu",
        "normalize_activations": "none", "apply_b_dec_to_input": True, "hook_layer": LAYER, **HOOK,
    },
    "sae-lens 5 topk": {
        "architecture": "standard", "d_in": WIDTH, "d_sae": FEATURES, "dtype": "float32", "activation_fn": "topk",
        "activation_fn_kwargs": {"k": K}, "normalize_activations": "layer_norm", "apply_b_dec_to_input": True, **HOOK,
    },
}  # fmt: skip
SPARSIFY = {
    "sparsify topk": {
        "activation": "topk", "expansion_factor": 2, "normalize_decoder": False, "num_latents": FEATURES, "k": K,
        "multi_topk": True, "skip_connection": False, "transcode": False, "d_in": WIDTH,
    }
}  # fmt: skip
DICTIONARY_LEARNING = {
    f"dictionary_learning {name}": {"trainer": {
        "trainer_class": "some trainer", "dict_class": name, "activation_dim": WIDTH, "dict_size": FEATURES, "k": K,
        "layer": LAYER, "lm_name": "org/tiny-llama", "submodule_name": f"resid_post_layer_{LAYER}",
    }, "buffer": {"d_submodule": WIDTH, "io": "out", "ctx_len": 128}}
    for name in (
        "AutoEncoder", "AutoEncoderTopK", "GatedAutoEncoder", "JumpReluAutoEncoder", "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    )
}  # fmt: skip
GEMMA_SCOPE = {"gemma scope": {}}
CASES: dict[str, dict[str, Any]] = SAE_LENS | SPARSIFY | DICTIONARY_LEARNING | GEMMA_SCOPE


def write(root: Path, case: str) -> Path:
    """The folder of one case, as its library writes it."""
    import torch
    from safetensors.numpy import save_file

    settings, drawn = CASES[case], weights()
    encoder = {"encoder.weight": drawn["W_enc"].T.copy(), "encoder.bias": drawn["b_enc"]}
    folder = root / (f"layers.{LAYER}" if case in SPARSIFY else f"layer_{LAYER}" if case in GEMMA_SCOPE else "sae")
    folder.mkdir(parents=True)
    if case in GEMMA_SCOPE:
        np.savez(folder / "params.npz", **{name: drawn[name] for name in PARAMETERS["jumprelu"]})  # pyright: ignore
        return folder
    form = "config.json" if case in DICTIONARY_LEARNING else "cfg.json"
    (folder / form).write_text(json.dumps(settings), encoding="utf-8")
    if case in SPARSIFY:
        save_file(encoder | {"W_dec": drawn["W_dec"], "b_dec": drawn["b_dec"]}, folder / "sae.safetensors")
    elif case in SAE_LENS:
        architecture = settings.get("architecture", "standard")
        kept = {name: drawn[name] for name in PARAMETERS.get(architecture, PARAMETERS["standard"])}
        if architecture not in PARAMETERS:  # a checkpoint amid training
            kept["topk_threshold"] = np.array(0.4, dtype=np.float64)
        save_file(kept, folder / "sae_weights.safetensors")
        if settings["normalize_activations"] == "covariance_whitening":
            scaler = {"scaling_factor": None, "has_whitening": True}
            (folder / "activation_scaler.json").write_text(json.dumps(scaler), encoding="utf-8")
            save_file(whitening(), folder / "activation_whitening.safetensors")
    else:
        name = settings["trainer"]["dict_class"]
        linear = encoder | {"decoder.weight": drawn["W_dec"].T.copy()}
        parts: dict[str, dict[str, np.ndarray]] = {
            "AutoEncoder": linear | {"bias": drawn["b_dec"]},
            "JumpReluAutoEncoder": {key: drawn[key] for key in PARAMETERS["jumprelu"]},
            "GatedAutoEncoder": {key: value for key, value in linear.items() if key != "encoder.bias"}
            | {"decoder_bias": drawn["b_dec"], "r_mag": drawn["r_mag"]}
            | {"gate_bias": drawn["b_gate"], "mag_bias": drawn["b_mag"]},
        }
        counted = {"k": np.array(K, dtype=np.int32), "threshold": np.array(0.4, dtype=np.float32)}
        if name == "MatryoshkaBatchTopKSAE":
            linear = {"W_enc": drawn["W_enc"], "b_enc": drawn["b_enc"], "W_dec": drawn["W_dec"]}
            counted["group_sizes"] = np.array([4, FEATURES - 4])
        stored = parts.get(name, linear | counted | {"b_dec": drawn["b_dec"]})
        torch.save({key: torch.from_numpy(np.asarray(value)) for key, value in stored.items()}, folder / "ae.pt")
    return folder


def _recorded(folder: Path, case: str) -> tuple[Any, Any]:
    """Feature activations and reconstructions by the case's own library."""
    import torch

    x = torch.from_numpy(rows())
    if case in GEMMA_SCOPE:
        own = {name: torch.from_numpy(value) for name, value in weights().items()}
        before = x @ own["W_enc"] + own["b_enc"]
        codes = (before > own["threshold"]) * before.relu()
        return codes, codes @ own["W_dec"] + own["b_dec"]
    if case in SPARSIFY:
        from sparsify import SparseCoder  # pyright: ignore[reportMissingImports]

        coder = SparseCoder.load_from_disk(folder)
        assert coder.cfg.to_dict() | {"d_in": WIDTH} == CASES[case], "another version has other settings"
        values, indices, _ = coder.encode(x)
        return torch.zeros(len(x), FEATURES).scatter(1, indices, values), coder.decode(values, indices)
    if case in DICTIONARY_LEARNING:
        from dictionary_learning.utils import load_dictionary  # pyright: ignore[reportMissingImports]

        dictionary, _ = load_dictionary(str(folder), "cpu")
        codes = dictionary.encode(x)
        return codes, dictionary.decode(codes)
    from sae_lens import SAE, TrainingSAE

    whitened = CASES[case].get("normalize_activations") == "covariance_whitening"
    if whitened or CASES[case].get("architecture") in ("batchtopk", "matryoshka_batchtopk"):
        trained: Any = TrainingSAE.load_from_disk(folder)
        if whitened:  # as its trainer does at the end
            maps = [torch.from_numpy(values) for values in whitening().values()]
            mean, matrix, inverse = maps
            during = trained.decode(trained.encode((x - mean) @ matrix)) @ inverse + mean
            trained.fold_activation_whitening(*maps)
            if "batchtopk" not in CASES[case]["architecture"]:  # whose trained encoder looks at the whole batch
                assert torch.allclose(trained.decode(trained.encode(x)), during, atol=1e-4), "the library disagrees"
        if trained.cfg.normalize_activations == "expected_average_only_in":
            trained.fold_activation_norm_scaling_factor(SCALE)
        folder = folder.with_name("finished")
        trained.save_inference_model(folder)
    sae: Any = SAE.load_from_disk(folder)
    if sae.cfg.normalize_activations == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(SCALE)
    codes = sae.encode(x)
    return codes, sae.decode(codes)


def main(cases: list[str]) -> None:
    """Record these cases anew; without any, all."""
    import tempfile

    found = json.loads(RECORDED.read_text(encoding="utf-8")) if cases else {}
    for case in cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            codes, rebuilt = _recorded(write(Path(folder), case), case)
        found[case] = {
            name: [[float(f"{number:.6g}") for number in row] for row in value.detach().tolist()]
            for name, value in (("codes", codes), ("rebuilt", rebuilt))
        }
        print(f"{case}: {int((codes > 0).sum())} of {codes.numel()} active")
    lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(values)}" for case, values in found.items())
    RECORDED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Opening the SAEs of others through sae-lens: one float32 inference module, whatever the files look like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from affectlens.errors import UserError
from affectlens.sae.source import LoadConfig, describe, recognise

if TYPE_CHECKING:
    from sae_lens import SAE

Converted = tuple[dict[str, Any], dict[str, torch.Tensor]]


def load(source: LoadConfig, *, mean_norm: float) -> SAE[Any]:
    """The SAE in eval mode, on the processor, float32, with activation normalisation folded into its weights.

    Args:
        source: where it is.
        mean_norm: mean Euclidean norm of the study's residuals, for SAEs that expect activations of norm
            sqrt(width) and do not bring the factor.

    Raises:
        UserError: it cannot be opened, or it normalises every token by itself, which no weights can express.
    """
    from sae_lens import SAE

    try:
        if source.path is not None:
            folder = source.path.expanduser()
            module = SAE.load_from_disk(folder, device="cpu", dtype="float32", converter=CONVERTERS[recognise(folder)])
        else:
            assert source.release is not None
            assert source.id is not None
            module = SAE.from_pretrained(source.release, source.id, device="cpu", dtype="float32")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source.key}: sae-lens cannot open it ({reason}); check the files, or the network") from error
    fold_normalisation(module, mean_norm, source.key)
    module.requires_grad_(False)
    return module.eval()


def fold_normalisation(module: SAE[Any], mean_norm: float, key: str) -> None:
    """Make the SAE read and write raw residuals.

    Raises:
        UserError: the normalisation is not one factor for all tokens.
    """
    kind = module.cfg.normalize_activations
    if kind == "expected_average_only_in":
        module.fold_activation_norm_scaling_factor(module.cfg.d_in**0.5 / mean_norm)
        module._setup_activation_normalization()
    elif kind not in ("none", None):
        raise UserError(
            f"{key}: normalises each token by itself ({kind}), so a feature has no fixed size in the residual stream; "
            "choose an SAE without that"
        )


def _from_sae_lens(path: Any, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None) -> Converted:
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader

    return sae_lens_disk_loader(path, device, cfg_overrides)


def _from_sparsify(path: Any, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None) -> Converted:
    from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader

    settings, weights = sparsify_disk_loader(path, device, cfg_overrides)
    # sae-lens transposes W_dec as if it were a Linear's weight; sparsify stores it with one row a feature.
    if tuple(weights["W_dec"].shape) == (settings["d_in"], settings["d_sae"]):
        weights["W_dec"] = weights["W_dec"].T.contiguous()
    return settings, {name: value.contiguous() for name, value in weights.items()}


DICTIONARY_LEARNING = {
    "AutoEncoder": "standard",
    "AutoEncoderTopK": "topk",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
"""dictionary_learning's classes and the sae-lens architecture that computes the same codes."""
RENAMED = {
    "encoder.bias": "b_enc",
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "mag_bias": "b_mag",
    "gate_bias": "b_gate",
}
PARAMETERS = {"W_enc", "W_dec", "b_enc", "b_dec", "b_mag", "b_gate", "r_mag", "threshold"}


def _from_dictionary_learning(path: Any, device: str = "cpu", cfg_overrides: Any = None) -> Converted:
    import json

    trainer = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["trainer"]
    architecture = DICTIONARY_LEARNING.get(trainer["dict_class"])
    if architecture is None:
        raise ValueError(f"dictionary class {trainer['dict_class']}, none of {', '.join(DICTIONARY_LEARNING)}")
    stored = torch.load(Path(path) / "ae.pt", map_location=device, weights_only=True)
    weights: dict[str, torch.Tensor] = {RENAMED.get(str(name), str(name)): value for name, value in stored.items()}
    for side, name in (("enc", "encoder.weight"), ("dec", "decoder.weight")):
        if name in weights:
            weights[f"W_{side}"] = weights.pop(name).T.contiguous()
    settings = _settings(Path(path), architecture, weights, {"apply_b_dec_to_input": architecture != "jumprelu"})
    if trainer["dict_class"] in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        settings["apply_b_dec_to_input"] = True
    if architecture == "topk":
        settings |= {"k": int(stored["k"]), "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        weights["threshold"] = weights["threshold"].float().expand(settings["d_sae"]).contiguous()
    else:
        weights.pop("threshold", None)
    return settings, {name: value.float() for name, value in weights.items() if name in PARAMETERS}


def _from_gemma_scope(path: Any, device: str = "cpu", cfg_overrides: Any = None) -> Converted:
    with np.load(Path(path) / "params.npz", allow_pickle=False) as arrays:
        weights = {
            name.replace("w_", "W_") if name.startswith("w_") else name: torch.from_numpy(arrays[name]).float()
            for name in arrays.files
        }
    return _settings(Path(path), "jumprelu", weights, {"apply_b_dec_to_input": False}), weights


def _settings(
    folder: Path, architecture: str, weights: dict[str, torch.Tensor], more: dict[str, Any]
) -> dict[str, Any]:
    origin = describe(folder)
    width, features = weights["W_enc"].shape
    return {
        "architecture": architecture,
        "d_in": int(width),
        "d_sae": int(features),
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "none",
        "metadata": {"model_name": origin.model, "hook_name": f"blocks.{origin.layer}.{origin.site}"},
        **more,
    }


CONVERTERS: dict[str, Callable[..., Converted]] = {
    "sae_lens": _from_sae_lens,
    "sparsify": _from_sparsify,
    "dictionary_learning": _from_dictionary_learning,
    "gemma_scope": _from_gemma_scope,
}

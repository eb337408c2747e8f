"""Folders of sae-lens: ``cfg.json`` of version 6 (``metadata``) or before, and ``sae_weights.safetensors``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.sae.formats.base import (
    PER_TOKEN,
    RESIDUAL,
    Format,
    Origin,
    section,
    settings_of,
    tensor_fault,
    whole,
)

if TYPE_CHECKING:
    import torch

WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"
"""What a checkpoint amid training keeps its activation scale in."""
WHITENING, WHITENS = "activation_whitening.safetensors", "covariance_whitening"
"""What a checkpoint amid training keeps the map in to activations of covariance 1, and what its settings call it."""
NORMALISATIONS = ("none", None, False, True, "expected_average_only_in", WHITENS, *PER_TOKEN)
TRAINED_ONLY = ("batchtopk", "matryoshka_batchtopk")
"""Architectures of checkpoints alone; sae-lens saves their finished SAEs as JumpReLU."""
PLAIN = {"W_enc", "W_dec", "b_enc", "b_dec"}
ARCHITECTURES = {
    "standard": PLAIN,
    "topk": PLAIN,
    "jumprelu": PLAIN | {"threshold"},
    "gated": {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"},
    "matching_pursuit": {"W_dec", "b_dec"},
    **dict.fromkeys(TRAINED_ONLY, PLAIN | {"topk_threshold"}),
}
"""Those that can be read, with their tensors."""
REFUSED = {
    "abstopk": "has codes of both signs, but feature activations here are positive",
    "temporal": "encodes a token by those before it, but studies read each token by itself",
}
SAME_RESIDUAL = ("fold_ln", "fold_value_biases", "center_unembed", "device", "dtype", "torch_dtype", "n_devices")
"""Options of loading a model that leave its residual stream as it is."""


def describe(folder: Path) -> Origin:
    """From ``cfg.json``, the names of the weights, and the scale of a checkpoint."""
    settings = settings_of(folder / "cfg.json")
    origin = from_settings(settings)
    if not origin.refusal:
        needed = ARCHITECTURES[settings.get("architecture", "standard")]
        fault = tensor_fault(folder / WEIGHTS, needed, {"scaling_factor"}, "W_dec", origin.width)
        origin = replace(origin, refusal=fault)
    scaler = settings_of(folder / SCALER) if (folder / SCALER).is_file() else {}
    scale = scaler.get("scaling_factor")
    origin = replace(origin, scale=None if scale is None else float(scale))
    if settings.get("normalize_activations") != WHITENS and not scaler.get("has_whitening"):
        return origin
    fault = tensor_fault(folder / WHITENING, {"mean", "matrix", "inverse_matrix"}, set(), "matrix", origin.width)
    if fault:
        fault = f"whitens activations (normalize_activations: {WHITENS}), but {fault}"
    return replace(origin, refusal=origin.refusal or fault)


def from_settings(settings: Mapping[str, Any]) -> Origin:
    """From the content of a ``cfg.json``, or of a sae-lens SAE's ``cfg``."""
    metadata = section(settings, "metadata")

    def named(*keys: str) -> Any:
        values = (source.get(key) for key in keys for source in (metadata, settings))
        return next((value for value in values if value is not None), None)

    layer, site = parse_hook(named("hook_name", "hook_point"))
    if layer is None and site is None:
        layer = whole(named("hook_layer", "hook_point_layer"))
    notes = []
    loaded = named("model_from_pretrained_kwargs")
    changes = loaded.items() if isinstance(loaded, dict) else ()
    listed = ", ".join(f"{key}: {value}" for key, value in changes if value and key not in SAME_RESIDUAL)
    if listed:
        notes.append(f"the SAE was trained on a model loaded with {listed}; the study reads the model as it is")
    if named("prepend_bos") is False:
        notes.append("the SAE was trained without a begin token (prepend_bos: false); the study sets one")
    if any(bound is not None for bound in named("seqpos_slice") or ()):
        notes.append(f"the SAE was trained on some positions alone (seqpos_slice: {named('seqpos_slice')})")
    return Origin(
        whole(settings.get("d_in")), layer, site, named("model_name"), _refusal(settings, named), tuple(notes)
    )


def _refusal(settings: Mapping[str, Any], named: Callable[..., Any]) -> str:
    """What no SAE of the residual stream is, or what sae-lens would compute otherwise than it was trained."""
    architecture = settings.get("architecture", "standard")
    if architecture in REFUSED:
        return f"{REFUSED[architecture]} (architecture: {architecture})"
    if "transcoder" in str(architecture) or named("hook_name_out") not in (None, named("hook_name")):
        return f"is a transcoder (architecture: {architecture}): it writes another site than the one it reads"
    if architecture not in ARCHITECTURES:
        return f"is of the architecture `{architecture}`; those that can be read are {', '.join(ARCHITECTURES)}"
    normalisation = settings.get("normalize_activations")
    if normalisation not in NORMALISATIONS:
        return f"normalises activations by `normalize_activations: {normalisation}`; choose an SAE without that"
    if settings.get("reshape_activations", "none") != "none" or named("hook_head_index") is not None:
        return "reads single attention heads, but studies read the residual stream"
    function = settings.get("activation_fn_str", settings.get("activation_fn", "relu"))
    if function not in ("relu", "topk"):
        return f"has the activation function `{function}`, which sae-lens no longer computes"
    return ""


def parse_hook(hook: str | None) -> tuple[int | None, str | None]:
    """``blocks.3.hook_resid_post`` -> (3, ``hook_resid_post``); a name of another form is its own site.

    The residual stream before a block is the one after the block before. transformers' module names of a block
    (``model.layers.3``, ``transformer.h.3``) mean its output.
    """
    if hook is None:
        return None, None
    module = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)(?:\.output)?", hook)
    if module is not None:
        return int(module[1]), RESIDUAL
    parts = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if parts is None:
        return None, hook
    if parts[2] in ("hook_resid_pre", "hook_in") and int(parts[1]) > 0:
        return int(parts[1]) - 1, RESIDUAL
    return int(parts[1]), RESIDUAL if parts[2] == "hook_out" else parts[2]


def convert(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """sae-lens's own loader, which knows every version of its files.

    A checkpoint of a training becomes what sae-lens saves at its end. The factors that sae-lens 3 to 5 finetuned
    (``scaling_factor``) multiplied feature activations on decoding alone, so they belong to the decoder rows.
    """
    from sae_lens import TrainingSAE
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader
    from safetensors.torch import load_file

    saved = settings_of(folder / "cfg.json")
    whitened = saved.get("normalize_activations") == WHITENS
    if whitened or saved.get("architecture") in TRAINED_ONLY:
        trained: Any = TrainingSAE.load_from_disk(folder, device=device, dtype="float32")
        if whitened:
            maps = load_file(folder / WHITENING, device=device)
            trained.fold_activation_whitening(maps["mean"], maps["matrix"], maps["inverse_matrix"])
        weights = trained.state_dict()
        trained.process_state_dict_for_saving_inference(weights)
        settings = trained.cfg.get_inference_sae_cfg_dict()
        if hasattr(trained.cfg, "rescale_acts_by_decoder_norm"):
            settings["rescale_acts_by_decoder_norm"] = trained.cfg.rescale_acts_by_decoder_norm
        return settings, weights
    settings, weights = sae_lens_disk_loader(folder, device, {"dtype": "float32"})
    factors = weights.pop("finetuning_scaling_factor", None)
    if factors is not None:
        weights["W_dec"] = weights["W_dec"] * factors[:, None]
    return settings, weights


FORMAT = Format("sae_lens", ("cfg.json", WEIGHTS), describe, convert, optional=(SCALER, WHITENING), version=2)

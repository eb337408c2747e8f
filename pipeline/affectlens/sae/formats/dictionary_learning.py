"""Folders of dictionary_learning: ``config.json`` with the trainer's settings, and ``ae.pt``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.sae.formats.base import RESIDUAL, Format, Origin, plain_settings, section, settings_of, whole

if TYPE_CHECKING:
    import torch

CLASSES = {
    "AutoEncoder": "standard",
    "AutoEncoderTopK": "topk",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
"""dictionary_learning's classes and the sae-lens architecture that computes the same feature activations."""
RENAMED = {
    "encoder.bias": "b_enc",
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "mag_bias": "b_mag",
    "gate_bias": "b_gate",
}
PARAMETERS = {"W_enc", "W_dec", "b_enc", "b_dec", "b_mag", "b_gate", "r_mag", "threshold"}
COMPILED = "_orig_mod."
"""What torch.compile sets before every name."""


def describe(folder: Path) -> Origin:
    """From the section ``trainer`` of ``config.json``."""
    trainer = section(settings_of(folder / "config.json"), "trainer")
    name = trainer.get("dict_class")
    refusal = ""
    if name not in CLASSES:
        given = f"is of the class `{name}`" if name else "names no `dict_class`"
        refusal = f"{given}; those that can be read are {', '.join(CLASSES)}"
    submodule = trainer.get("submodule_name") or ""
    site = RESIDUAL if not submodule or "resid_post" in submodule else str(submodule)
    return Origin(whole(trainer["activation_dim"]), whole(trainer.get("layer")), site, trainer.get("lm_name"), refusal)


def convert(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Weights in sae-lens's names; a BatchTopK SAE is the JumpReLU of its threshold, as at its own inference."""
    import torch

    trainer = section(settings_of(folder / "config.json"), "trainer")
    architecture = CLASSES[trainer["dict_class"]]
    stored = torch.load(folder / "ae.pt", map_location=device, weights_only=True)
    stored = {str(name).removeprefix(COMPILED): value for name, value in stored.items()}
    weights: dict[str, torch.Tensor] = {RENAMED.get(name, name): value for name, value in stored.items()}
    for side, name in (("enc", "encoder.weight"), ("dec", "decoder.weight")):
        if name in weights:
            weights[f"W_{side}"] = weights.pop(name).T.contiguous()
    batched = trainer["dict_class"] in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
    more: dict[str, Any] = {"apply_b_dec_to_input": architecture != "jumprelu" or batched}
    if architecture == "topk":
        more |= {"k": int(stored["k"]), "rescale_acts_by_decoder_norm": False}
    settings = plain_settings(describe(folder), architecture, weights, **more)
    if architecture == "jumprelu":
        weights["threshold"] = weights["threshold"].float().expand(settings["d_sae"]).contiguous()
    else:
        weights.pop("threshold", None)
    return settings, {name: value.float() for name, value in weights.items() if name in PARAMETERS}


FORMAT = Format("dictionary_learning", ("config.json", "ae.pt"), describe, convert)

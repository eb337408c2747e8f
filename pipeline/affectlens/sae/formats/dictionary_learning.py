"""Folders of dictionary_learning: ``config.json`` with the trainer's settings, and ``ae.pt``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.sae.formats.base import RESIDUAL, Format, Origin, plain_settings, section, settings_of, whole
from affectlens.sae.formats.sae_lens import parse_hook

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
BATCHED = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
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
    """From the sections ``trainer`` and ``buffer`` of ``config.json``."""
    settings = settings_of(folder / "config.json")
    trainer = section(settings, "trainer")
    layer, site = whole(trainer.get("layer")), RESIDUAL
    submodule = trainer.get("submodule_name")
    if submodule:
        named, site = parse_hook(str(submodule))
        numbered = re.fullmatch(r"resid_post(?:_layer_(\d+))?", str(submodule))
        if numbered is not None:
            named, site = whole(numbered[1]), RESIDUAL
        layer = layer if named is None else named
    name, refusal = trainer.get("dict_class"), ""
    if name not in CLASSES:
        given = f"is of the class `{name}`" if name else "names no `dict_class`"
        refusal = f"{given}; those that can be read are {', '.join(CLASSES)}"
    elif (direction := section(settings, "buffer").get("io", "out")) != "out":
        refusal = f"reads what its module is given (io: {direction}), but studies read what a block puts out"
    return Origin(whole(trainer["activation_dim"]), layer, site, trainer.get("lm_name"), refusal)


def convert(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Weights in sae-lens's names, as dictionary_learning's own ``load_dictionary`` uses them.

    A BatchTopK SAE is the JumpReLU of its threshold, and of a plain autoencoder the decoder rows are brought to length
    1 and feature activations multiplied by what they lose.

    Raises:
        ValueError: ``k`` is another in the settings than in the weights.
    """
    import torch

    trainer = section(settings_of(folder / "config.json"), "trainer")
    name, architecture = trainer["dict_class"], CLASSES[trainer["dict_class"]]
    stored = torch.load(folder / "ae.pt", map_location=device, weights_only=True)
    stored = {str(key).removeprefix(COMPILED): value for key, value in stored.items()}
    weights: dict[str, torch.Tensor] = {RENAMED.get(key, key): value for key, value in stored.items()}
    for side, key in (("enc", "encoder.weight"), ("dec", "decoder.weight")):
        if key in weights:
            weights[f"W_{side}"] = weights.pop(key).T.contiguous()
    more: dict[str, Any] = {"apply_b_dec_to_input": architecture != "jumprelu" or name in BATCHED}
    if architecture == "topk":
        k = int(stored.get("k", trainer["k"]))
        if k != trainer.get("k", k):
            raise ValueError(f"config.json has `k: {trainer['k']}`, ae.pt has {k}; which is right?")
        more |= {"k": k, "rescale_acts_by_decoder_norm": False}
    settings = plain_settings(describe(folder), architecture, weights, **more)
    if architecture == "jumprelu":
        weights["threshold"] = weights["threshold"].float().expand(settings["d_sae"]).contiguous()
    else:
        weights.pop("threshold", None)
    weights = {key: value.float() for key, value in weights.items() if key in PARAMETERS}
    if name == "AutoEncoder":
        lengths = weights["W_dec"].norm(dim=1)
        weights["W_dec"] = weights["W_dec"] / lengths[:, None]
        weights["W_enc"] = weights["W_enc"] * lengths
        weights["b_enc"] = weights["b_enc"] * lengths
    return settings, weights


FORMAT = Format("dictionary_learning", ("config.json", "ae.pt"), describe, convert, version=2)

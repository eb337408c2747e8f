"""Folders of EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors`` in a folder named after the module."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.sae.formats.base import RESIDUAL, Format, Origin, plain_settings, settings_of, tensor_fault, whole

if TYPE_CHECKING:
    import torch

MODULE = r"(?:.*[._])?(?:layers|h|blocks)[._](\d+)(?:[._](.+))?"
"""``layers.2``, ``h.2``, ``gpt_neox.layers.2``: a block's output; ``layers.2.mlp``: another site."""
WEIGHTS = "sae.safetensors"
NEEDED, OPTIONAL = {"encoder.weight", "W_dec"}, {"encoder.bias", "b_dec"}
EMBEDDING = r"(?:.*[._])?(?:embed_tokens|embed_in|wte)"


def describe(folder: Path) -> Origin:
    """From ``cfg.json``, the folder's name, and the model that the run's ``config.json`` one level up names."""
    settings = settings_of(folder / "cfg.json")
    module = folder.resolve()
    if re.fullmatch(r"seed\d+", module.name):  # one of several trainings that differ in their seed
        module = module.parent
    name = re.fullmatch(MODULE, module.name)
    site = "the token embedding" if re.fullmatch(EMBEDDING, module.name) else name[2] if name else None
    beside = module.parent / "config.json"
    return Origin(
        width=whole(settings["d_in"]),
        layer=int(name[1]) if name else None,
        site=site or RESIDUAL,
        model=settings_of(beside).get("model") if beside.is_file() else None,
        refusal=_refusal(settings) or tensor_fault(folder / WEIGHTS, NEEDED, OPTIONAL, "W_dec", settings["d_in"]),
    )


def _refusal(settings: dict[str, Any]) -> str:
    """What no TopK SAE of sae-lens computes."""
    if settings.get("activation", "topk") != "topk":
        return f"chooses features by `activation: {settings['activation']}`, which is computed by sparsify alone"
    if settings.get("signed"):
        return "has codes of both signs (`signed: true`), but feature activations here are positive"
    if settings.get("transcode"):
        return "is a transcoder (`transcode: true`): it writes what a module adds, not the residual stream it reads"
    if settings.get("skip_connection"):
        return "has a skip connection (`skip_connection: true`), which an SAE has not"
    return ""


def convert(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """TopK of (x - b_dec) W_enc + b_enc, as ``SparseCoder.encode`` computes it; decoder rows are taken as saved."""
    import torch
    from safetensors.torch import load_file

    stored = {name: value.float() for name, value in load_file(folder / WEIGHTS, device=device).items()}
    encoder = stored["encoder.weight"]
    features, width = encoder.shape
    weights = {
        "W_enc": encoder.T.contiguous(),
        "b_enc": stored.get("encoder.bias", torch.zeros(features)),
        "W_dec": stored["W_dec"].contiguous(),
        "b_dec": stored.get("b_dec", torch.zeros(width)),
    }
    settings = plain_settings(
        describe(folder), "topk", weights, k=int(settings_of(folder / "cfg.json")["k"]), apply_b_dec_to_input=True,
        rescale_acts_by_decoder_norm=False,
    )  # fmt: skip
    return settings, weights


FORMAT = Format("sparsify", ("cfg.json", WEIGHTS), describe, convert)

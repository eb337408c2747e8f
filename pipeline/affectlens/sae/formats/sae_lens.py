"""Folders of sae-lens: ``cfg.json`` of version 6 (``metadata``) or before, and ``sae_weights.safetensors``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.sae.formats.base import RESIDUAL, Format, Origin, section, settings_of, whole

if TYPE_CHECKING:
    import torch

SCALER = "activation_scaler.json"
"""What a checkpoint amid training keeps its activation scale in."""
ONE_FACTOR = ("none", None, False, True, "expected_average_only_in")
"""Normalisations that are one factor for all tokens, so that weights can express them."""


def describe(folder: Path) -> Origin:
    """From ``cfg.json``, and the scale of a checkpoint."""
    origin = from_settings(settings_of(folder / "cfg.json"))
    if not (folder / SCALER).is_file():
        return origin
    scaler = settings_of(folder / SCALER)
    refusal = origin.refusal
    if scaler.get("has_whitening"):
        refusal = f"whitens activations by a matrix that {SCALER} does not hold; save the finished SAE instead"
    scale = scaler.get("scaling_factor")
    return Origin(
        origin.width, origin.layer, origin.site, origin.model, refusal, origin.notes,
        None if scale is None else float(scale),
    )  # fmt: skip


def from_settings(settings: Mapping[str, Any]) -> Origin:
    """From the content of a ``cfg.json``."""
    metadata = section(settings, "metadata")

    def named(*keys: str) -> Any:
        values = (source.get(key) for key in keys for source in (metadata, settings))
        return next((value for value in values if value is not None), None)

    layer, site = parse_hook(named("hook_name", "hook_point"))
    normalisation = settings.get("normalize_activations")
    refusal = ""
    if normalisation not in ONE_FACTOR:
        refusal = (
            f"normalises each token by itself (normalize_activations: {normalisation}), so a feature has no fixed size "
            "in the residual stream; choose an SAE without that"
        )
    notes = []
    changes = named("model_from_pretrained_kwargs")
    if isinstance(changes, dict) and changes:
        listed = ", ".join(f"{key}: {value}" for key, value in changes.items())
        notes.append(f"the SAE was trained on a model loaded with {listed}; the study reads the model as it is")
    if named("prepend_bos") is False:
        notes.append("the SAE was trained without a begin token (prepend_bos: false); the study sets one")
    return Origin(whole(settings.get("d_in")), layer, site, named("model_name"), refusal, tuple(notes))


def parse_hook(hook: str | None) -> tuple[int | None, str | None]:
    """``blocks.3.hook_resid_post`` -> (3, ``hook_resid_post``); a name of another form is its own site.

    The residual stream before a block is the one after the block before. transformers' module names of a block
    (``model.layers.3``, ``transformer.h.3``) mean its output.
    """
    if hook is None:
        return None, None
    module = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)", hook)
    if module is not None:
        return int(module[1]), RESIDUAL
    parts = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if parts is None:
        return None, hook
    if parts[2] == "hook_resid_pre" and int(parts[1]) > 0:
        return int(parts[1]) - 1, RESIDUAL
    return int(parts[1]), parts[2]


def convert(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """sae-lens's own loader, which knows every version of its files."""
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader

    return sae_lens_disk_loader(folder, device, {"dtype": "float32"})


FORMAT = Format("sae_lens", ("cfg.json", "sae_weights.safetensors"), describe, convert, optional=(SCALER,))

"""Folders of Gemma Scope (Lieberum et al. 2024): ``params.npz``; layer and site stand in the path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.sae.formats.base import RESIDUAL, Format, Origin, plain_settings

if TYPE_CHECKING:
    import torch

LAYER_NAMES = r"(?:^|[^a-z])(?:layers?[._]|blocks\.)(\d+)"
OTHER_SITES = {"att": "attn_out", "mlp": "mlp_out", "transcoders": "mlp_in", "embedding": "embedding"}
"""Words of a path that say that the SAE reads another site than the residual stream."""


def describe(folder: Path) -> Origin:
    """From the shape of ``b_dec`` and the path."""
    import numpy as np

    with np.load(folder / "params.npz", allow_pickle=False) as arrays:
        width = int(arrays["b_dec"].shape[0])
    path = folder.resolve().as_posix()
    layers = re.findall(LAYER_NAMES, path)
    words = [word for part in folder.resolve().parts[-4:] for word in re.split(r"[-_]", part.lower())]
    site = next((site for word, site in OTHER_SITES.items() if word in words), RESIDUAL)
    return Origin(width, int(layers[-1]) if layers else None, site)


def convert(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """JumpReLU on x W_enc + b_enc, without subtracting the decoder bias."""
    import numpy as np
    import torch

    with np.load(folder / "params.npz", allow_pickle=False) as arrays:
        weights = {
            name.replace("w_", "W_") if name.startswith("w_") else name: torch.from_numpy(arrays[name]).float()
            for name in arrays.files
        }
    return plain_settings(describe(folder), "jumprelu", weights, apply_b_dec_to_input=False), weights


FORMAT = Format("gemma_scope", ("params.npz",), describe, convert)

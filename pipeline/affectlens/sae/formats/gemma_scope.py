"""Folders of Gemma Scope (Lieberum et al. 2024): ``params.npz``; layer and site stand in the path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.sae.formats.base import RESIDUAL, Format, Origin, plain_settings

if TYPE_CHECKING:
    import torch

LAYER_NAMES = r"(?:^|[^a-z])(?:layers?[._]|blocks\.)(\d+)"
OTHER_SITES = {
    "att": "attn_out",
    "attn": "attn_out",
    "mlp": "mlp_out",
    "transcoder": "mlp_in",
    "transcoders": "mlp_in",
    "embedding": "the token embedding",
}
"""Words of a path that say that the SAE reads another site than the residual stream."""
ARRAYS = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}


def describe(folder: Path) -> Origin:
    """From the shape of ``b_dec`` and the path."""
    import numpy as np

    with np.load(folder / "params.npz", allow_pickle=False) as arrays:
        width, odd = int(arrays["b_dec"].shape[0]), sorted(set(arrays.files) ^ ARRAYS)
    refusal = f"has other arrays than a JumpReLU SAE ({', '.join(odd)})" if odd else ""
    path = folder.resolve().as_posix()
    layers = re.findall(LAYER_NAMES, path)
    return Origin(width, int(layers[-1]) if layers else None, other_site(path) or RESIDUAL, refusal=refusal)


def other_site(path: str) -> str | None:
    """The site that a path names, unless that is the residual stream: by its last four folders."""
    words = re.split(r"[-_/]", "/".join(path.lower().split("/")[-4:]))
    return next((site for word, site in OTHER_SITES.items() if word in words), None)


def convert(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """JumpReLU on x W_enc + b_enc, without subtracting the decoder bias."""
    import numpy as np
    import torch

    with np.load(folder / "params.npz", allow_pickle=False) as arrays:
        weights = {name: torch.from_numpy(arrays[name]).float() for name in sorted(ARRAYS)}
    return plain_settings(describe(folder), "jumprelu", weights, apply_b_dec_to_input=False), weights


FORMAT = Format("gemma_scope", ("params.npz",), describe, convert)

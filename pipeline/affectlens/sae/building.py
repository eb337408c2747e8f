"""sae-lens's training classes as this project builds, initialises, folds and saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum

from affectlens.files import write_json
from affectlens.sae.architectures import REGISTRY
from affectlens.sae.recipe import Recipe

if TYPE_CHECKING:
    from jaxtyping import Float
    from sae_lens import TrainingSAE
    from torch import Tensor


def build(
    recipe: Recipe, *, d_in: int, width: int, centre: Float[Tensor, "d_in"], seed: int, metadata: dict[str, Any]
) -> TrainingSAE[Any]:
    """A fresh training SAE, on the processor.

    Decoder rows are random unit vectors, the encoder starts as their transpose, the decoder bias at the centre of the
    data (Gao et al. 2024, appendix A.1). W_enc is stored column-major: the fast path writes its gradient feature by
    feature, and the forward product is no slower.

    Args:
        centre: mean of the scaled training rows.
        metadata: goes into ``cfg.json``.
    """
    from sae_lens import TrainingSAE

    architecture = REGISTRY[recipe.architecture]
    settings = {
        "architecture": architecture.sae_lens,
        "d_in": d_in,
        "d_sae": width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "decoder_init_norm": 1.0,
        "metadata": metadata,
    }
    sae: TrainingSAE[Any] = TrainingSAE.from_dict(settings | architecture.settings(recipe, width))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width, d_in, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    sae.W_dec.data = rows
    sae.W_enc.data = (rows * architecture.encoder_length).T
    sae.b_dec.data = centre.clone()
    return sae


@torch.no_grad()
def project_decoder_gradient(sae: TrainingSAE[Any]) -> None:
    """Remove from the decoder's gradient what would only change the length of its unit rows."""
    grad = sae.W_dec.grad
    assert grad is not None
    along = einsum(grad, sae.W_dec, "features d, features d -> features")
    grad.addcmul_(sae.W_dec, along[:, None], value=-1)


@torch.no_grad()
def normalise_decoder(sae: TrainingSAE[Any]) -> None:
    """Bring decoder rows back to length 1 (Bricken et al. 2023): a code is then a length in the residual stream."""
    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))


def save_folded(sae: TrainingSAE[Any], scale: float, folder: Path, *, dtype: str = "float32") -> None:
    """Write the inference SAE for unscaled activations, with unit decoder rows, as a sae-lens folder.

    Args:
        sae: trained on activations multiplied by ``scale``; changed in place.
        folder: gets ``cfg.json`` and ``sae_weights.safetensors``; ``SAE.load_from_disk`` opens it.
        dtype: of the two matrices, and what sae-lens loads them as; vectors stay float32.
    """
    sae.cpu()
    sae.W_enc.data = sae.W_enc.data.contiguous()
    sae.fold_activation_norm_scaling_factor(scale)
    sae.fold_W_dec_norm()
    weights, settings = sae.save_inference_model(folder)
    if dtype != "float32":
        from safetensors.torch import load_file, save_file

        stored = load_file(weights)
        save_file(
            {name: value.to(getattr(torch, dtype)) if value.ndim == 2 else value for name, value in stored.items()},
            weights,
        )
        values = json.loads(settings.read_text(encoding="utf-8"))
        settings.write_text(json.dumps(values | {"dtype": dtype}), encoding="utf-8")
    write_sorted(weights, settings)


def write_sorted(weights: Path, settings: Path) -> None:
    """Make what sae-lens saved the same on every run and readable by all: it writes keys in the order of a set."""
    write_json(settings, json.loads(settings.read_text(encoding="utf-8")))
    weights.chmod(0o644)

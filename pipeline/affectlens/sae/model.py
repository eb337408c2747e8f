"""A finished sparse autoencoder as later stages see it: codes, weights, health, and a random one beside it."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.sae.formats import PER_TOKEN

if TYPE_CHECKING:
    import sae_lens
    import torch
    from jaxtyping import Float

WEIGHTS = "sae"
HEALTH = "health.json"
ROWS_AT_ONCE = 1024


class Dictionary:
    """Any sae-lens SAE, used through numpy.

    Attributes:
        module: the sae-lens SAE in eval mode, float32, activation scaling folded in.
    """

    def __init__(self, module: sae_lens.SAE[Any] | None = None) -> None:
        self._module = module

    def load(self) -> sae_lens.SAE[Any]:
        """The sae-lens SAE in eval mode, float32, activation scaling folded in; the same object every time."""
        assert self._module is not None
        return self._module

    @cached_property
    def d_sae(self) -> int:
        return int(self.load().cfg.d_sae)

    @cached_property
    def d_model(self) -> int:
        return int(self.load().cfg.d_in)

    @cached_property
    def decoder(self) -> Float[np.ndarray, "features d_model"]:
        """One row a feature: what it writes into the residual stream per unit of activation.

        Where :attr:`per_token`, it writes that times :func:`token_scale`.
        """
        return self.load().W_dec.detach().cpu().numpy()

    @cached_property
    def encoder(self) -> Float[np.ndarray, "d_model features"]:
        """One column a feature: what it reads from the residual stream."""
        return self.load().W_enc.detach().cpu().numpy()

    def encode(self, residuals: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, "n features"]:
        """Feature activations of residual rows, float32; never more than a block of them in torch at once."""
        import torch

        module = self.load()
        codes = np.empty((len(residuals), self.d_sae), dtype=np.float32)
        with torch.no_grad():
            for first in range(0, len(residuals), ROWS_AT_ONCE):
                rows = np.ascontiguousarray(residuals[first : first + ROWS_AT_ONCE], dtype=np.float32)
                codes[first : first + len(rows)] = module.encode(torch.from_numpy(rows).to(module.device)).cpu().numpy()
        return codes

    @property
    def per_token(self) -> bool:
        """Whether each token is normalised by itself, so that activations alone do not say how much is written."""
        return self.load().cfg.normalize_activations in PER_TOKEN

    def decode(self, codes: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n d_model"]:
        """The residual rows that feature activations stand for, float32.

        Raises:
            ValueError: each token is normalised by itself; see :meth:`reconstruct`.
        """
        import torch

        module = self.load()
        if self.per_token:
            raise ValueError("an SAE that normalises each token decodes beside the token alone: use `reconstruct`")
        with torch.no_grad():
            return module.decode(torch.from_numpy(codes).to(module.device)).cpu().numpy()

    def reconstruct(self, residuals: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, "n d_model"]:
        """What the SAE makes of residual rows, float32."""
        import torch

        if not self.per_token:
            return self.decode(self.encode(residuals))
        module, rebuilt = self.load(), np.empty(residuals.shape, dtype=np.float32)
        with torch.no_grad():
            for first in range(0, len(residuals), ROWS_AT_ONCE):
                rows = np.ascontiguousarray(residuals[first : first + ROWS_AT_ONCE], dtype=np.float32)
                # sae-lens keeps what it normalised a batch by until the batch is decoded.
                codes = module.encode(torch.from_numpy(rows).to(module.device))
                rebuilt[first : first + len(rows)] = module.decode(codes).cpu().numpy()
        return rebuilt

    def random(self, seed: int = 0, k: int | None = None) -> Dictionary:
        """A random SAE of the same shape and sparsity: what any finding about features has to beat.

        Unit decoder rows in random directions, the encoder their transpose, the same bias and normalisation (so the
        same centring of activations), and TopK with this SAE's mean number of active features.

        Args:
            seed: of the directions.
            k: active features per token; this SAE's own number when left out.
        """
        return Dictionary(random_module(self.load(), k or self.active, seed))

    @property
    def active(self) -> int:
        """Typical number of active features per token."""
        return int(getattr(self.load().cfg, "k", 32))


class Sae(Dictionary):
    """The result of the sae stage.

    Attributes:
        folder: a sae-lens folder (``cfg.json``, ``sae_weights.safetensors``); ``SAE.load_from_disk`` opens it alone.
        health: what ``health.json`` holds.
    """

    def __init__(self, result: Path) -> None:
        super().__init__()
        self.folder = result / WEIGHTS
        self.health: dict[str, Any] = json.loads((result / HEALTH).read_text(encoding="utf-8"))

    def load(self) -> sae_lens.SAE[Any]:
        if self._module is None:
            self._module = open_folder(self.folder)
        return self._module

    @property
    def active(self) -> int:
        return max(1, round(self.health["l0"]))


def open_folder(folder: Path) -> sae_lens.SAE[Any]:
    """A sae-lens folder as an SAE in eval mode, float32, on the processor."""
    from sae_lens import SAE

    module = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    module.requires_grad_(False)
    return module.eval()


def token_scale(
    module: sae_lens.SAE[Any], residual: Float[torch.Tensor, "*rows d_model"]
) -> Float[torch.Tensor, "*rows 1"] | float:
    """By how much more than its decoder row a feature writes at each token per unit of activation (sae-lens 6)."""
    kind = module.cfg.normalize_activations
    if kind == "layer_norm":
        return residual.std(dim=-1, keepdim=True)
    if kind == "constant_norm_rescale":
        return residual.norm(dim=-1, keepdim=True) / module.cfg.d_in**0.5
    return 1.0


def random_module(like: sae_lens.SAE[Any], k: int, seed: int) -> sae_lens.SAE[Any]:
    """A TopK SAE with random unit decoder rows, tied encoder, and the decoder bias and normalisation of ``like``."""
    import torch
    from sae_lens import SAE

    d_in, width = int(like.cfg.d_in), int(like.cfg.d_sae)
    settings = {"d_in": d_in, "d_sae": width, "normalize_activations": like.cfg.normalize_activations}
    module: sae_lens.SAE[Any] = SAE.from_dict(
        {"architecture": "topk", "k": min(k, width), "dtype": "float32", "device": "cpu", **settings}
    )
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(width, d_in, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    module.W_dec.data, module.W_enc.data = rows, rows.T.contiguous()
    module.b_dec.data = like.b_dec.detach().cpu().clone()
    module.requires_grad_(False)
    return module.eval()

"""What decides how a sparse autoencoder is trained. Light to import: the study's config is built from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from affectlens.config import Config

Architecture = Literal["topk", "batchtopk", "matryoshka", "standard", "gated", "jumprelu"]
TOPK_FAMILY = ("topk", "batchtopk", "matryoshka")


class Recipe(Config):
    """How one sparse autoencoder is trained."""

    architecture: Architecture = "topk"
    """Which of sae-lens's classes. BatchTopK and Matryoshka are saved as JumpReLU, as sae-lens does."""
    width: int | None = Field(default=None, ge=2)
    """Number of features. Left out: three times the width of the model."""
    k: int = Field(default=16, ge=1)
    """Active features per token (topk), or on average over a batch (batchtopk, matryoshka)."""
    matryoshka_levels: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Matryoshka: the nested dictionaries as shares of the width; the whole is always the last."""
    l1_coefficient: float = Field(default=2.0, ge=0)
    """standard, gated: weight of the L1 penalty on codes, activations being scaled to norm sqrt(width of the model)."""
    l0_coefficient: float = Field(default=2.0, ge=0)
    """jumprelu: weight of the penalty on the number of active features."""
    threshold_bandwidth: float = Field(default=2.0, gt=0)
    """jumprelu: width of the window around a threshold in which its straight-through gradient lives."""
    steps: int = Field(default=800, ge=1)
    """Optimizer steps."""
    batch: int = Field(default=1024, ge=1)
    """Token rows per step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of Adam, at its highest."""
    warm_up: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""
    decay: float = Field(default=0.3, ge=0, le=1)
    """Share of the steps over which the learning rate falls to 0 at the end."""
    sparsity_warm_up: float = Field(default=0.3, ge=0, le=1)
    """standard, gated, jumprelu: share of the steps over which the sparsity penalty rises to its full weight."""
    dead_after: int = Field(default=100, ge=1)
    """Steps without firing after which a feature counts as dead during training."""
    auxiliary: float = Field(default=0.03125, ge=0)
    """topk family: weight of the loss that lets dead features explain what the live ones leave (Gao et al. 2024)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of large matrix products; weights, optimizer and sums stay float32. `auto`: bfloat16 where the device has it."""
    storage: Literal["float32", "bfloat16"] = "float32"
    """Type of the saved encoder and decoder matrices; bfloat16 halves the file."""
    fast: bool = True
    """Hand-written gradients that skip what is zero. Off: automatic ones of sae-lens's forward pass."""
    checkpoint_steps: int = Field(default=200, ge=1)
    """Steps between checkpoints; a run that is killed repeats at most as many."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.width is not None and self.k > self.width:
            raise ValueError(f"`k: {self.k}`: more than the {self.width} features of `width`; lower it")
        levels = self.matryoshka_levels
        if any(not 0 < level < 1 for level in levels) or list(levels) != sorted(set(levels)):
            raise ValueError("`matryoshka_levels`: give rising shares between 0 and 1")
        if self.warm_up + self.decay > 1:
            raise ValueError("`warm_up` and `decay`: together more than the whole training; lower one")
        return self

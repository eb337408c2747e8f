"""What decides how a sparse autoencoder is trained. Light to import: the study's config is built from it."""

from __future__ import annotations

import logging
from typing import Any, Literal

from pydantic import Field, model_validator

from affectlens.config import Config

RENAMED = {
    "batch": "train_batch_size_tokens",
    "learning_rate": "lr",
    "auxiliary": "aux_loss_coefficient",
    "threshold_bandwidth": "jumprelu_bandwidth",
    "dead_after": "dead_feature_window",
    "d_sae": "width",
}
SHARES = {"warm_up": "lr_warm_up_steps", "decay": "lr_decay_steps", "sparsity_warm_up": "sparsity_warm_up_steps"}
"""Old names of shares of the training, and the numbers of steps that stand for them."""
STEPS = 800

_log = logging.getLogger("affectlens.sae")


class Recipe(Config):
    """How one sparse autoencoder is trained. Names are those of sae-lens where it has the option."""

    architecture: str = "topk"
    """`topk`, `batchtopk`, `matryoshka`, `standard`, `gated`, `jumprelu`, or one that a plugin adds. BatchTopK and
    Matryoshka are saved as JumpReLU, as sae-lens does."""
    width: int | None = Field(default=None, ge=2)
    """Number of features (sae-lens: d_sae). Left out: three times the width of the model."""
    k: int = Field(default=16, ge=1)
    """Active features per token (topk), or on average over a batch (batchtopk, matryoshka)."""
    matryoshka_levels: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Matryoshka: the nested dictionaries as shares of the width; the whole is always the last."""
    l1_coefficient: float = Field(default=2.0, ge=0)
    """standard, gated: weight of the L1 penalty on codes, activations being scaled to norm sqrt(width of the model)."""
    l0_coefficient: float = Field(default=2.0, ge=0)
    """jumprelu: weight of the penalty on the number of active features."""
    jumprelu_bandwidth: float = Field(default=2.0, gt=0)
    """jumprelu: width of the window around a threshold in which its straight-through gradient lives."""
    steps: int = Field(default=STEPS, ge=1)
    """Optimizer steps."""
    train_batch_size_tokens: int = Field(default=1024, ge=1)
    """Token rows per step."""
    lr: float = Field(default=2e-3, gt=0)
    """Learning rate of Adam, at its highest."""
    lr_warm_up_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises from 0. Left out: a tenth of all."""
    lr_decay_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate falls to 0 at the end. Left out: three tenths of all."""
    sparsity_warm_up_steps: int | None = Field(default=None, ge=0)
    """standard, gated, jumprelu: steps over which the sparsity penalty rises to its full weight (sae-lens:
    l1_warm_up_steps, l0_warm_up_steps). Left out: three tenths of all."""
    dead_feature_window: int = Field(default=100, ge=1)
    """Steps without firing after which a feature counts as dead during training."""
    aux_loss_coefficient: float = Field(default=0.03125, ge=0)
    """topk family: weight of the loss that lets dead features explain what the live ones leave (Gao et al. 2024)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of large matrix products; weights, optimizer and sums stay float32. `auto`: bfloat16 where the device has it."""
    storage: Literal["float32", "bfloat16"] = "float32"
    """Type of the saved encoder and decoder matrices; bfloat16 halves the file."""
    fast: bool = True
    """Hand-written gradients that skip what is zero. Off: automatic ones of sae-lens's forward pass."""
    checkpoint_steps: int = Field(default=200, ge=1)
    """Steps between checkpoints; a run that is killed repeats at most as many."""

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, values: Any) -> Any:
        """Options by the names they had before 0.2, for one release."""
        if not isinstance(values, dict):
            return values
        given = dict(values)
        for old, new in (RENAMED | SHARES).items():
            if old not in given:
                continue
            if new in given:
                raise ValueError(f"`{old}` is the old name of `{new}`; give the new one alone")
            value = given.pop(old)
            if old in SHARES and isinstance(value, int | float):
                steps = given.get("steps", STEPS)
                value = round(value * steps) if isinstance(steps, int) else value
            if old != "d_sae":
                _log.warning("`sae.%s` is now `sae.%s` (%s); the old name goes with the next release", old, new, value)
            given[new] = value
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.width is not None and self.k > self.width:
            raise ValueError(f"`k: {self.k}`: more than the {self.width} features of `width`; lower it")
        levels = self.matryoshka_levels
        if any(not 0 < level < 1 for level in levels) or list(levels) != sorted(set(levels)):
            raise ValueError("`matryoshka_levels`: give rising shares between 0 and 1")
        if self.warm_up + self.decay > self.steps:
            raise ValueError("`lr_warm_up_steps` and `lr_decay_steps`: together more than all steps; lower one")
        return self

    @property
    def warm_up(self) -> float:
        """Steps over which the learning rate rises."""
        return 0.1 * self.steps if self.lr_warm_up_steps is None else self.lr_warm_up_steps

    @property
    def decay(self) -> float:
        """Steps over which the learning rate falls."""
        return 0.3 * self.steps if self.lr_decay_steps is None else self.lr_decay_steps

    @property
    def sparsity_warm_up(self) -> float:
        """Steps over which the sparsity penalty rises."""
        return 0.3 * self.steps if self.sparsity_warm_up_steps is None else self.sparsity_warm_up_steps


class SaeLimits(Config):
    """Beyond which figures an SAE is called weak or bad, on the page and in its result alike."""

    dead_share: float = Field(default=0.1, ge=0, le=1)
    """Share of features that never fire on held-out text, from which the SAE is weak."""
    grave_dead_share: float = Field(default=0.5, ge=0, le=1)
    """The same, from which it is bad."""
    explained_variance: float = Field(default=0.7, ge=0, le=1)
    """Explained variance of held-out text below which it is weak."""
    grave_explained_variance: float = Field(default=0.4, ge=0, le=1)
    """The same, below which it is bad."""
    margin_over_random: float = Field(default=0.05, ge=0)
    """By less than this above the explained variance of a random SAE of the same shape, it is bad."""
    dense_share: float = Field(default=0.05, ge=0, le=1)
    """Share of features that are active on more than a tenth of all tokens."""
    active_share: float = Field(default=0.2, ge=0, le=1)
    """Active features a token, as a share of all."""
    ce_recovered: float = Field(default=0.7, ge=0, le=1)
    """Share of the model's predictions that survive reading through it, as cross-entropy recovered."""
    matched_share: float = Field(default=0.3, ge=0, le=1)
    """Share of features with a counterpart under another seed, where several seeds are trained."""

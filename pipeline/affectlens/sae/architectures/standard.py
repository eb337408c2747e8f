"""ReLU with an L1 penalty (Bricken et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affectlens.sae.architectures.base import SHORT, Architecture, StepContext, architecture

if TYPE_CHECKING:
    from torch import Tensor

    from affectlens.sae.outcome import Outcome
    from affectlens.sae.recipe import Recipe


@architecture("standard")
class Standard(Architecture):
    """sae-lens's standard SAE."""

    sae_lens = "standard"
    encoder_length = SHORT

    def settings(self, recipe: Recipe, width: int) -> dict[str, Any]:
        return {"l1_coefficient": recipe.l1_coefficient}

    def step(self, sae: Any, x: Tensor, context: StepContext) -> Outcome:
        import torch

        from affectlens.sae import kernels_dense as kernels
        from affectlens.sae.feature_activations import on, support_of
        from affectlens.sae.outcome import Outcome

        centred, scores = kernels.encode(sae, x, sae.b_enc.data, context.half)
        scores.relu_()
        live = torch.sign(scores)
        support = support_of(live, half=context.half)
        value, live = on(support, scores), on(support, live)
        error, pull = kernels.error(sae, x, support, value)
        slope = support.align(pull, sae.W_dec.data).add_(context.coefficients["l1"] / len(x)).mul_(live)
        sae.W_dec.grad = support.gather(value, pull)
        sae.b_enc.grad = support.total(slope)
        kernels.encoder_gradients(sae, support, slope, centred, pull, sae.b_enc.grad)
        mse = error.square().sum() / len(x)
        return Outcome.of(support, live, mse + context.coefficients["l1"] * value.sum() / len(x), mse)

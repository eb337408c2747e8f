"""JumpReLU (Rajamanoharan et al. 2024b): thresholds trained by straight-through estimators against an L0 penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affectlens.sae.architectures.base import SHORT, Architecture, StepContext, architecture

if TYPE_CHECKING:
    from torch import Tensor

    from affectlens.sae.outcome import Outcome
    from affectlens.sae.recipe import Recipe

INITIAL_THRESHOLD = 0.1


@architecture("jumprelu")
class JumpReLU(Architecture):
    """sae-lens's JumpReLU."""

    sae_lens = "jumprelu"
    encoder_length = SHORT

    def settings(self, recipe: Recipe, width: int) -> dict[str, Any]:
        return {
            "l0_coefficient": recipe.l0_coefficient,
            "jumprelu_bandwidth": recipe.jumprelu_bandwidth,
            "jumprelu_init_threshold": INITIAL_THRESHOLD,
        }

    def step(self, sae: Any, x: Tensor, context: StepContext) -> Outcome:
        import torch

        from affectlens.sae import kernels_dense as kernels
        from affectlens.sae.feature_activations import on, support_of
        from affectlens.sae.outcome import Outcome

        sae.threshold.data.clamp_(min=0)
        threshold, reach = sae.threshold.data, sae.bandwidth / 2
        centred, scores = kernels.encode(sae, x, sae.b_enc.data, context.half)
        # Besides the active entries, those in the window below the threshold have a gradient.
        support = support_of((scores - (threshold - reach)).relu_().sign_(), half=context.half)
        score, limit = on(support, scores), support.of(threshold)
        above = score - limit
        live = torch.sign(above.relu())
        window = above.abs_().neg_().add_(reach).relu_().sign_()
        value = score.mul_(live)
        error, pull = kernels.error(sae, x, support, value)
        slope = support.align(pull, sae.W_dec.data)
        window.mul_(slope * limit + context.coefficients["l0"] / len(x))
        sae.threshold.grad = support.total(window).div_(-2 * reach)
        slope.mul_(live)
        sae.W_dec.grad = support.gather(value, pull)
        sae.b_enc.grad = support.total(slope)
        kernels.encoder_gradients(sae, support, slope, centred, pull, sae.b_enc.grad)
        mse = error.square().sum() / len(x)
        return Outcome.of(support, live, mse + context.coefficients["l0"] * live.sum() / len(x), mse)

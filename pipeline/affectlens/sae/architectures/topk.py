"""TopK (Gao et al. 2024): the k largest pre-activations of every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affectlens.sae.architectures.base import Architecture, StepContext, architecture

if TYPE_CHECKING:
    from torch import Tensor

    from affectlens.sae.outcome import Outcome
    from affectlens.sae.recipe import Recipe


@architecture("topk")
class TopK(Architecture):
    """sae-lens's TopK."""

    sae_lens = "topk"

    def settings(self, recipe: Recipe, width: int) -> dict[str, Any]:
        return {
            "k": recipe.k,
            "aux_loss_coefficient": recipe.aux_loss_coefficient,
            "rescale_acts_by_decoder_norm": True,
        }

    def step(self, sae: Any, x: Tensor, context: StepContext) -> Outcome:
        from affectlens.sae import kernels_topk as kernels

        return kernels.step(sae, x, context, kernels.by_rows)

"""BatchTopK (Bussmann et al. 2024): the k times tokens largest pre-activations of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affectlens.sae.architectures.base import StepContext, architecture
from affectlens.sae.architectures.topk import TopK

if TYPE_CHECKING:
    from torch import Tensor

    from affectlens.sae.outcome import Outcome


@architecture("batchtopk")
class BatchTopK(TopK):
    """sae-lens's BatchTopK; saved as JumpReLU, as sae-lens does."""

    sae_lens = "batchtopk"
    batch_threshold = True

    def step(self, sae: Any, x: Tensor, context: StepContext) -> Outcome:
        from affectlens.sae import kernels_topk as kernels

        return kernels.step(sae, x, context, kernels.by_batch)

"""Gated (Rajamanoharan et al. 2024a): a gate decides, a magnitude says how much, and the gate must also reconstruct."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affectlens.sae.architectures.base import SHORT, Architecture, StepContext, architecture

if TYPE_CHECKING:
    from torch import Tensor

    from affectlens.sae.outcome import Outcome
    from affectlens.sae.recipe import Recipe


@architecture("gated")
class Gated(Architecture):
    """sae-lens's gated SAE."""

    sae_lens = "gated"
    encoder_length = SHORT

    def settings(self, recipe: Recipe, width: int) -> dict[str, Any]:
        return {"l1_coefficient": recipe.l1_coefficient}

    def step(self, sae: Any, x: Tensor, context: StepContext) -> Outcome:
        import torch

        from affectlens.sae import kernels_dense as kernels
        from affectlens.sae.feature_activations import on, support_of
        from affectlens.sae.outcome import Outcome

        centred, scores = kernels.encode(sae, x, sae.b_gate.data, context.half)
        open_gates = torch.sign(scores.relu())
        support = support_of(open_gates, half=context.half)
        gate, open_gates = on(support, scores), on(support, open_gates)
        stretch = support.of(sae.r_mag.data.exp())
        raw = (gate - support.of(sae.b_gate.data)).mul_(stretch)
        gate = gate.relu_()
        value = (raw + support.of(sae.b_mag.data)).relu_().mul_(open_gates)
        live = torch.sign(value)
        error, pull = kernels.error(sae, x, support, value)
        gate_error, gate_pull = kernels.error(sae, x, support, gate)
        slope = support.align(pull, sae.W_dec.data).mul_(live)
        gate_slope = support.align(gate_pull, sae.W_dec.data).add_(context.coefficients["l1"] / len(x)).mul_(open_gates)
        sae.W_dec.grad = support.gather(value, pull).add_(support.gather(gate, gate_pull))
        sae.b_mag.grad, sae.b_gate.grad = support.total(slope), support.total(gate_slope)
        sae.r_mag.grad = support.total(raw.mul_(slope))
        slope = slope.mul_(stretch).add_(gate_slope)
        kernels.encoder_gradients(sae, support, slope, centred, pull + gate_pull, support.total(slope))
        mse = error.square().sum() / len(x)
        rest = gate_error.square().sum() / len(x) + context.coefficients["l1"] * gate.sum() / len(x)
        return Outcome.of(support, live, mse + rest, mse)

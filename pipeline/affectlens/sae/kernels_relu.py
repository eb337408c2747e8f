"""One training step of the standard, gated and JumpReLU architectures with hand-written gradients.

Automatic differentiation of sae-lens's forward pass makes six dense products for standard and JumpReLU, and about
fifteen for gated. Five and eight are needed, and only the encoder's stays dense once codes are sparse. The gradients
are those of sae-lens's loss on unit decoder rows (``tests/test_relu.py`` pins the one to the other).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from affectlens.sae.feature_activations import Support, on, product, support_of
from affectlens.sae.outcome import Outcome

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@torch.no_grad()
def step(sae: Any, x: Float[Tensor, "tokens d"], coefficients: Mapping[str, float], *, half: bool = False) -> Outcome:
    """Set the gradients of sae-lens's training loss.

    Args:
        sae: standard, gated or JumpReLU training SAE with unit decoder rows.
        x: scaled activations.
        coefficients: weight of the sparsity penalty, ``l1`` or ``l0``.
        half: whether large products are made in bfloat16; weights and sums stay float32.
    """
    return STEPS[sae.cfg.architecture()](sae, x, coefficients, half)


def _standard(sae: Any, x: Tensor, coefficients: Mapping[str, float], half: bool) -> Outcome:
    """Squared error and an L1 penalty (Bricken et al. 2023)."""
    centred, scores = _encode(sae, x, sae.b_enc.data, half)
    scores.relu_()
    live = torch.sign(scores)
    support = support_of(live, half=half)
    value, live = on(support, scores), on(support, live)
    error, pull = _error(sae, x, support, value)
    slope = support.align(pull, sae.W_dec.data).add_(coefficients["l1"] / len(x)).mul_(live)
    sae.W_dec.grad = support.gather(value, pull)
    sae.b_enc.grad = support.total(slope)
    _encoder_gradients(sae, support, slope, centred, pull, sae.b_enc.grad)
    mse = error.square().sum() / len(x)
    return Outcome.of(support, live, mse + coefficients["l1"] * value.sum() / len(x), mse)


def _gated(sae: Any, x: Tensor, coefficients: Mapping[str, float], half: bool) -> Outcome:
    """A gate decides, a magnitude says how much, and the gate must also reconstruct (Rajamanoharan et al. 2024a)."""
    centred, scores = _encode(sae, x, sae.b_gate.data, half)
    open_gates = torch.sign(scores.relu())
    support = support_of(open_gates, half=half)
    gate, open_gates = on(support, scores), on(support, open_gates)
    stretch = support.of(sae.r_mag.data.exp())
    raw = (gate - support.of(sae.b_gate.data)).mul_(stretch)
    gate = gate.relu_()
    value = (raw + support.of(sae.b_mag.data)).relu_().mul_(open_gates)
    live = torch.sign(value)
    error, pull = _error(sae, x, support, value)
    gate_error, gate_pull = _error(sae, x, support, gate)
    slope = support.align(pull, sae.W_dec.data).mul_(live)
    gate_slope = support.align(gate_pull, sae.W_dec.data).add_(coefficients["l1"] / len(x)).mul_(open_gates)
    sae.W_dec.grad = support.gather(value, pull).add_(support.gather(gate, gate_pull))
    sae.b_mag.grad, sae.b_gate.grad = support.total(slope), support.total(gate_slope)
    sae.r_mag.grad = support.total(raw.mul_(slope))
    slope = slope.mul_(stretch).add_(gate_slope)
    _encoder_gradients(sae, support, slope, centred, pull + gate_pull, support.total(slope))
    mse = error.square().sum() / len(x)
    rest = gate_error.square().sum() / len(x) + coefficients["l1"] * gate.sum() / len(x)
    return Outcome.of(support, live, mse + rest, mse)


def _jumprelu(sae: Any, x: Tensor, coefficients: Mapping[str, float], half: bool) -> Outcome:
    """Thresholds trained by straight-through estimators against an L0 penalty (Rajamanoharan et al. 2024b)."""
    sae.threshold.data.clamp_(min=0)
    threshold, reach = sae.threshold.data, sae.bandwidth / 2
    centred, scores = _encode(sae, x, sae.b_enc.data, half)
    # Besides the active entries, those in the window below the threshold have a gradient.
    support = support_of((scores - (threshold - reach)).relu_().sign_(), half=half)
    score, limit = on(support, scores), support.of(threshold)
    above = score - limit
    live = torch.sign(above.relu())
    window = above.abs_().neg_().add_(reach).relu_().sign_()
    value = score.mul_(live)
    error, pull = _error(sae, x, support, value)
    slope = support.align(pull, sae.W_dec.data)
    window.mul_(slope * limit + coefficients["l0"] / len(x))
    sae.threshold.grad = support.total(window).div_(-2 * reach)
    slope.mul_(live)
    sae.W_dec.grad = support.gather(value, pull)
    sae.b_enc.grad = support.total(slope)
    _encoder_gradients(sae, support, slope, centred, pull, sae.b_enc.grad)
    mse = error.square().sum() / len(x)
    return Outcome.of(support, live, mse + coefficients["l0"] * live.sum() / len(x), mse)


STEPS: dict[str, Callable[[Any, Any, Mapping[str, float], bool], Outcome]] = {
    "standard": _standard,
    "gated": _gated,
    "jumprelu": _jumprelu,
}


def _encode(sae: Any, x: Tensor, bias: Tensor, half: bool) -> tuple[Tensor, Tensor]:
    centred = x - sae.b_dec.data
    return centred, product(centred, sae.W_enc.data, half).add_(bias)


def _error(sae: Any, x: Tensor, support: Support, value: Tensor) -> tuple[Tensor, Tensor]:
    """The reconstruction's error, and the gradient of its mean square with respect to the reconstruction."""
    error = support.decode(value, sae.W_dec.data).add_(sae.b_dec.data).sub_(x)
    return error, error * (2 / len(x))


def _encoder_gradients(
    sae: Any, support: Support, slope: Tensor, centred: Tensor, pull: Tensor, total: Float[Tensor, "features"]
) -> None:
    """Of encoder weights and of the decoder bias, which is also taken from the input."""
    sae.W_enc.grad = support.gather(slope, centred).T
    sae.b_dec.grad = pull.sum(0) - sae.W_enc.data @ total

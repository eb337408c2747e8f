"""Hand-written gradients of the ReLU architectures (standard, gated, JumpReLU): what their steps share.

Automatic differentiation of sae-lens's forward pass makes six dense products for standard and JumpReLU, and about
fifteen for gated. Five and eight are needed, and only the encoder's stays dense once codes are sparse. The gradients
are those of sae-lens's loss on unit decoder rows (``tests/test_relu.py`` pins the one to the other).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affectlens.sae.feature_activations import Support, product

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def encode(sae: Any, x: Tensor, bias: Tensor, half: bool) -> tuple[Tensor, Tensor]:
    """The input without the decoder bias, and the pre-activations."""
    centred = x - sae.b_dec.data
    return centred, product(centred, sae.W_enc.data, half).add_(bias)


def error(sae: Any, x: Tensor, support: Support, value: Tensor) -> tuple[Tensor, Tensor]:
    """The reconstruction's error, and the gradient of its mean square with respect to the reconstruction."""
    rest = support.decode(value, sae.W_dec.data).add_(sae.b_dec.data).sub_(x)
    return rest, rest * (2 / len(x))


def encoder_gradients(
    sae: Any, support: Support, slope: Tensor, centred: Tensor, pull: Tensor, total: Float[Tensor, "features"]
) -> None:
    """Of encoder weights and of the decoder bias, which is also taken from the input."""
    sae.W_enc.grad = support.gather(slope, centred).T
    sae.b_dec.grad = pull.sum(0) - sae.W_enc.data @ total

"""Matrix products of a frozen float32 model on the CPU by oneDNN, with the weights laid out for it once.

PyTorch multiplies float32 matrices by MKL, which leaves half the vector width of some processors unused. The sums are
the same but for their order: results differ by rounding. On accelerators and in other precisions nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn


def pack(module: nn.Module) -> int:
    """Let every linear layer of a module multiply by oneDNN.

    The layers stay what they are and keep their weights. A second copy of these, in oneDNN's layout, is made when a
    layer first runs, and a third when a gradient first passes through it.

    Returns:
        Layers that do: those of frozen float32 weights on the CPU, where PyTorch has oneDNN.
    """
    found = 0
    for layer in module.modules():
        if type(layer) is torch.nn.Linear and _able(layer):
            layer.__dict__["forward"] = Packed(layer)
            found += 1
    return found


def _able(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not weight.requires_grad
    )


@dataclass
class Packed:
    """Stands in for a linear layer's forward pass.

    Attributes:
        layer: whose product it is.
    """

    layer: nn.Linear
    _copies: dict[bool, tuple[tuple[int, int], Tensor]] = field(default_factory=dict, repr=False)

    def __call__(self, values: Float[Tensor, "... inner"]) -> Float[Tensor, "... outer"]:
        if values.dtype != torch.float32:
            return torch.nn.functional.linear(values, self.layer.weight, self.layer.bias)
        if torch.is_grad_enabled() and values.requires_grad:
            return _Product.apply(values, self)  # pyright: ignore[reportReturnType]
        return self.multiply(values)

    def multiply(self, values: Float[Tensor, "... inner"]) -> Float[Tensor, "... outer"]:
        """The layer's output."""
        return _multiply(values, self._copy(transposed=False), self.layer.bias)

    def back(self, gradient: Float[Tensor, "... outer"]) -> Float[Tensor, "... inner"]:
        """The gradient to what the layer was given."""
        return _multiply(gradient, self._copy(transposed=True), None)

    def _copy(self, *, transposed: bool) -> Tensor:
        """The weights in oneDNN's layout, made anew when they were changed."""
        weight = self.layer.weight.detach()
        stamp = (weight.data_ptr(), weight._version)
        if self._copies.get(transposed, (None,))[0] != stamp:
            given = weight.t().contiguous() if transposed else weight
            self._copies[transposed] = (stamp, torch.ops.mkldnn._reorder_linear_weight(given))
        return self._copies[transposed][1]


def _multiply(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """The product with its gradient; the weights have none."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return packed.multiply(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.packed.back(gradients[0]), None

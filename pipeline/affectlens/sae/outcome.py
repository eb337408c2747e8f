"""What one training step tells the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from affectlens.sae.feature_activations import Support


@dataclass(frozen=True)
class Outcome:
    """Figures of a step whose gradients are set.

    Attributes:
        loss: everything that was differentiated.
        mse: mean over tokens of the squared distance between row and reconstruction.
        active: mean number of active features per token.
        fired: which features were active at least once.
        smallest: the smallest activation that was chosen, where features are chosen by rank over a batch.
    """

    loss: Tensor
    mse: Tensor
    active: Tensor
    fired: Tensor
    smallest: float = 0.0

    @classmethod
    def of(cls, support: Support, live: Tensor, loss: Tensor, mse: Tensor, smallest: float = 0.0) -> Outcome:
        """From the batch's codes: ``live`` is 1 where they are positive, else 0."""
        counts = support.total(live)
        return cls(loss, mse, counts.sum() / support.tokens, counts > 0, smallest)

"""What an SAE architecture is, and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from affectlens.sae.outcome import Outcome
    from affectlens.sae.recipe import Recipe

SHORT = 0.1
"""Encoder rows of the ReLU architectures start this long: with unit rows, half of all features would fire and the first
reconstructions would be far too large."""
REGISTRY: dict[str, Architecture] = {}
"""By the name that `sae.architecture` takes."""


@dataclass(frozen=True)
class StepContext:
    """What one training step depends on besides weights and rows.

    Attributes:
        dead: features that have not fired for long; None: no auxiliary loss.
        coefficients: weight of the sparsity penalty at this step, ``l1`` or ``l0``.
        smallest: the smallest activation that the last batch chose, where features are chosen by rank over a batch.
        half: whether large products are made in bfloat16; weights and sums stay float32.
    """

    dead: Bool[Tensor, "features"] | None = None
    coefficients: Mapping[str, float] = field(default_factory=dict)
    smallest: float = 0.0
    half: bool = False


class Architecture(ABC):
    """One of sae-lens's training classes, with a training step of its own.

    Class attributes:
        sae_lens: sae-lens's name of it.
        encoder_length: length of the encoder's rows at the start.
        batch_threshold: whether features are chosen over a batch, so that the saved SAE is the JumpReLU of a threshold
            that is measured at the end of training.
    """

    sae_lens: ClassVar[str]
    encoder_length: ClassVar[float] = 1.0
    batch_threshold: ClassVar[bool] = False

    @abstractmethod
    def settings(self, recipe: Recipe, width: int) -> dict[str, Any]:
        """Fields of sae-lens's training config besides those that all architectures share."""

    @abstractmethod
    def step(self, sae: Any, x: Float[Tensor, "tokens d"], context: StepContext) -> Outcome:
        """Set the gradients of sae-lens's training loss.

        Args:
            sae: a training SAE with unit decoder rows.
            x: scaled activations.
        """


A = TypeVar("A", bound=Architecture)


def architecture(name: str) -> Any:
    """Class decorator: make an architecture available as ``sae.architecture: name``."""

    def register(made: type[A]) -> type[A]:
        REGISTRY[name] = made()
        return made

    return register

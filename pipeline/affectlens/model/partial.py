"""The blocks above a layer, run again and again from residual streams computed once.

An intervention after block L leaves blocks 0 to L as they were. A study asks thousands of questions of a handful of
contexts, so their lower half is run once per context and the upper half once per question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from affectlens.model.steering import Edit, editing
from affectlens.model.subject import Subject

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass
class Upper:
    """A subject whose forward passes may begin after block ``layer``.

    Attributes:
        subject: the loaded model, all of its layers.
        layer: the last block that is not run again.
    """

    subject: Subject
    layer: int

    def lower(self, tokens: Int[Tensor, "rows positions"]) -> Float[Tensor, "rows positions d_model"]:
        """The residual stream after block ``layer``, to be handed to :meth:`logits`."""
        return self.subject.residuals(tokens, [self.layer])[self.layer]

    def logits(
        self,
        tokens: Int[Tensor, "rows positions"],
        residual: Float[Tensor, "rows positions d_model"],
        edits: Sequence[Edit] = (),
        *,
        last: int | None = 1,
    ) -> Float[Tensor, "rows kept vocabulary"]:
        """float32 logits under the edits.

        Args:
            tokens: without padding at the positions that are kept.
            residual: what :meth:`lower` gave for these rows; not changed.
            edits: at ``layer`` or above.
            last: only of so many last positions; None for all.
        """
        import torch

        bridge = self.subject.bridge
        keep = {} if last is None or not self.keeps_chosen else {"logits_to_keep": last}
        with torch.no_grad(), ExitStack() as stack:
            if self.resumes:
                stack.enter_context(resumed(bridge, self.layer, residual))
            stack.enter_context(editing(bridge, edits))
            found = bridge(tokens, **keep)
        return found.float() if last is None else found[:, -last:].float()

    @cached_property
    def keeps_chosen(self) -> bool:
        """Whether the model can leave out the output matrix where nobody looks."""
        import inspect

        return "logits_to_keep" in inspect.signature(self.subject.bridge.original_model.forward).parameters

    @cached_property
    def resumes(self) -> bool:
        """Whether skipping blocks changes nothing: tried once, since some architectures share state across them."""
        import torch

        bridge, width = self.subject.bridge, min(6, self.subject.tokenizer.vocab_size)
        tokens = torch.arange(2 * width, device=self.subject.device).reshape(2, width) % bridge.cfg.d_vocab
        with torch.no_grad():
            whole, residual = bridge(tokens), self.lower(tokens)
            with resumed(bridge, self.layer, residual):
                try:
                    again = bridge(tokens)
                except (RuntimeError, AttributeError, KeyError, IndexError, TypeError, ValueError):
                    return False
        return torch.allclose(whole, again, rtol=1e-3, atol=1e-3)


@contextmanager
def resumed(bridge: Any, layer: int, residual: Float[Tensor, "rows positions d_model"]) -> Iterator[None]:
    """Within, blocks up to ``layer`` hand on what they get, and the last of them yields ``residual``.

    The hooks at the output of block ``layer`` still fire.
    """
    blocks = [bridge.blocks[index] for index in range(layer + 1)]
    with ExitStack() as stack:
        for block in blocks:
            forward = _Forward(block, residual if block is blocks[-1] else None)
            stack.callback(block.__dict__.pop, "forward", None)
            block.__dict__["forward"] = forward
        yield


@dataclass(frozen=True)
class _Forward:
    """Stands in for a block: no work, the same kind of output."""

    block: Any
    residual: torch.Tensor | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.residual is None:
            return args[0] if args else kwargs["hidden_states"]
        return self.block.hook_out(self.residual)

"""Forward passes that begin after a layer, from residual streams computed once.

An intervention after block L leaves blocks 0 to L as they were. A study asks thousands of questions of a handful of
contexts, so their lower half is run once per context and the upper half once per question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from affectlens.model.compat import resumed, takes
from affectlens.model.steering import Edit, Passes, editing
from affectlens.model.subject import Subject

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What a pass gives.

    Attributes:
        logits: float32, at the positions that were asked for.
        residuals: by layer, the residual stream after the edits, at all positions.
        cache: keys and values so far, if they are kept.
    """

    logits: Float[Tensor, "rows kept vocabulary"]
    residuals: Mapping[int, Float[Tensor, "rows positions d_model"]]
    cache: Any = None


@dataclass
class PartialForward:
    """A subject whose forward passes may begin after block ``layer``.

    ``lower`` runs blocks 0 to ``layer`` once; ``run`` runs the rest as often as wanted::

        upper = PartialForward(subject, layer=15)
        residual = upper.lower(tokens)                                    # [1, positions, d_model]
        outcome = upper.run(tokens.expand(9, -1), residual.expand(9, -1, -1), edits, read=[20])
        outcome.logits[:, -1], outcome.residuals[20]

    Attributes:
        subject: the loaded model, all of its layers.
        layer: the last block that is not run again.
    """

    subject: Subject
    layer: int

    def lower(self, tokens: Int[Tensor, "rows positions"], **layout: Any) -> Float[Tensor, "rows positions d_model"]:
        """The residual stream after block ``layer``, to be handed to :meth:`run`.

        Args:
            layout: ``attention_mask`` and ``position_ids`` of rows that are no plain texts.
        """
        return self.run(tokens, None, keep=0, read=[self.layer], **layout).residuals[self.layer]

    def run(
        self,
        tokens: Int[Tensor, "rows positions"],
        residual: Float[Tensor, "rows positions d_model"] | None,
        edits: Sequence[Edit] = (),
        *,
        keep: int | Sequence[int] | None = 1,
        read: Sequence[int] = (),
        passes: Passes | None = None,
        **options: Any,
    ) -> Outcome:
        """One forward pass under the edits.

        Args:
            tokens: without padding at the positions that are kept.
            residual: what :meth:`lower` gave for these rows, not changed; None runs all blocks.
            edits: at ``layer`` or above if a residual is given.
            keep: logits of so many last positions, of these positions, or of all (None). With 0, blocks above what is
                read are not run.
            read: layers whose residual stream is wanted.
            passes: which rows and positions this pass holds, if not whole texts.
            options: of the model's forward pass, such as ``attention_mask``; with ``use_cache``, the outcome has the
                cache.
        """
        import torch

        bridge, kept = self.subject.bridge, keep
        if isinstance(kept, Sequence):
            kept = torch.tensor(kept, device=self.subject.device)
        if keep == 0:
            options |= {"stop_at_layer": max(read) + 1}
        elif keep is not None and self.keeps_chosen:
            options |= {"logits_to_keep": kept}
        if options.get("use_cache"):
            options |= {"return_type": "logits_and_cache"}
        with torch.no_grad(), ExitStack() as stack:
            if residual is not None and self.resumes:
                stack.enter_context(resumed(bridge, self.layer, residual))
            stack.enter_context(editing(bridge, edits, passes=passes))
            seen = {layer: stack.enter_context(capturing(bridge, layer)) for layer in read}
            output = bridge(tokens, **options)
        logits, cache = output if options.get("use_cache") else (output, None)
        if keep == 0:
            logits = tokens.new_zeros(len(tokens), 0, 0).float()
        elif keep is not None:
            logits = (logits[:, -keep:] if isinstance(keep, int) else self._at(logits, kept)).float()
        else:
            logits = logits.float()
        return Outcome(logits, {layer: values[-1] for layer, values in seen.items()}, cache)

    def _at(self, logits: Tensor, kept: Any) -> Tensor:
        return logits if self.keeps_chosen else logits[:, kept]

    @cached_property
    def keeps_chosen(self) -> bool:
        """Whether the model can leave out the output matrix where nobody looks."""
        return takes(self.subject.bridge, "logits_to_keep")

    @property
    def resumes(self) -> bool:
        """Whether skipping blocks changes nothing: tried once, since some architectures share state across them."""
        if self.layer not in self.subject.resumable:
            self.subject.resumable[self.layer] = self._try_to_resume()
        return self.subject.resumable[self.layer]

    def _try_to_resume(self) -> bool:
        import torch

        bridge = self.subject.bridge
        width = min(6, self.subject.tokenizer.vocab_size)
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
def capturing(bridge: Any, layer: int) -> Iterator[list[Tensor]]:
    """Within, the residual stream after a layer is put into the list, pass by pass."""
    seen: list[Tensor] = []
    handle = bridge.blocks[layer].hook_out.register_forward_hook(partial(_keep, seen))
    try:
        yield seen
    finally:
        handle.remove()


def _keep(seen: list[Tensor], module: Any, inputs: Any, residual: Tensor) -> None:
    seen.append(residual)

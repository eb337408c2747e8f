"""Everything that rests on the insides of transformer-lens and transformers, in one place; a test holds each.

Nothing here is promised by those libraries. What fails after an upgrade fails here, and is mended here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


PLACES = {"residual": "hook_out", "heads": "attn.o.hook_in", "neurons": "mlp.out.hook_in"}
"""The module of a bridge's block that hands on the residual stream after it, the outputs of its heads side by side, and
the activations of its neurons."""


def unit_modules(bridge: Any, place: str) -> list[Any]:
    """The module at a place of every block; none where a block has no such thing, as one that is no attention."""
    try:
        return [block.get_submodule(PLACES[place]) for block in bridge.blocks]
    except AttributeError:
        return []


def output_matrix(bridge: Any, layer: int, place: str) -> Float[Tensor, "inner d_model"]:
    """What one unit at a place writes into the residual stream, before any norm behind the attention or the MLP.

    Args:
        place: ``heads`` or ``neurons``.
    """
    return written_by(bridge.blocks[layer].get_submodule(PLACES[place].removesuffix(".hook_in")).original_component)


def written_by(projection: Any) -> Float[Tensor, "inner d_model"]:
    """The matrix of an output projection of transformers, inner dimension first."""
    weight = projection.weight.detach().float()
    return weight if type(projection).__name__ == "Conv1D" else weight.T  # GPT-2 keeps its matrices transposed


def site_name(bridge: Any, layer: int, site: str) -> str:
    """The name under which transformer-lens's bridge keeps a site; asking by alias would keep it twice.

    Args:
        site: ``resid_pre``, ``resid_post``, ``attn_out`` or ``mlp_out``.
    """
    names = {"resid_pre": "hook_in", "resid_post": "hook_out"}
    if site in names:
        return f"blocks.{layer}.{names[site]}"
    alias = bridge.blocks[layer].hook_aliases.get(f"hook_{site}", f"hook_{site}")
    return f"blocks.{layer}.{alias}"


def final_gain(bridge: Any) -> Float[Tensor, "d_model"] | float:
    """What the final normalisation multiplies by, measured: families differ (Gemma's is 1 + weight).

    A normalised vector and its negative differ by twice their product with the gain; a bias falls out.
    """
    import torch

    norm = bridge.ln_final.original_component
    weight = next((values for name, values in norm.named_parameters() if name.endswith("weight")), None)
    if weight is None:
        return 1.0
    signs = torch.ones_like(weight)
    signs[1::2] = -1  # of mean 0 and norm sqrt(width), so layer norm and RMS norm leave it as it is
    with torch.no_grad():
        up, down = norm(torch.stack([signs, -signs])[:, None])[:, 0].float()
    return (up - down) / 2 * signs.float()


def transformer_blocks(model: Any) -> torch.nn.ModuleList:
    """The blocks of a transformers language model: its only list of modules that is as long as the model is deep."""
    import torch

    depth = model.config.get_text_config().num_hidden_layers
    lists = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == depth]
    return lists[0]


def sharing_weights(model: Any) -> Any:
    """Another transformers model of the same tensors, with torch's attention where the architecture has it.

    A bridge takes a model's modules into its own; the copy keeps transformers' own, and costs no memory.
    """
    tensors = [*model.parameters(), *model.buffers()]
    copy = deepcopy(model, memo={id(tensor): tensor for tensor in tensors})
    # torch's attention knows no soft cap of the products.
    if model._supports_sdpa and getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is None:
        copy.set_attn_implementation("sdpa")
    return copy


@contextmanager
def resumed(bridge: Any, layer: int, residual: Float[Tensor, "rows positions d_model"]) -> Iterator[None]:
    """Within, blocks up to ``layer`` hand on what they get, and the last of them yields ``residual``.

    The hooks at the output of block ``layer`` still fire.
    """
    blocks = [bridge.blocks[index] for index in range(layer + 1)]
    with skipped(blocks, lambda: blocks[-1].hook_out(residual)):
        yield


@contextmanager
def skipped(blocks: Sequence[Any], last: Callable[[], Tensor]) -> Iterator[None]:
    """Within, blocks hand on what they get, and the last of them yields what it is told to.

    Their outputs are bare tensors, in bridges as in the families of transformers that are known.
    """
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.__dict__.pop, "forward", None)
            block.__dict__["forward"] = _Forward(last if block is blocks[-1] else None)
        yield


@dataclass(frozen=True)
class _Forward:
    """Stands in for a block: no work, the same kind of output."""

    last: Callable[[], Tensor] | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.last is None:
            return args[0] if args else kwargs["hidden_states"]
        return self.last()


def takes(bridge: Any, option: str) -> bool:
    """Whether the model's own forward pass has an option, such as ``logits_to_keep``."""
    import inspect

    return option in inspect.signature(bridge.original_model.forward).parameters

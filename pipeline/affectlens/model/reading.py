"""Reading a model: values at several sites of several layers, from one forward pass over each padded batch.

A *site* is written (layer, name), with transformer-lens's names for what they are: ``resid_pre`` and ``resid_post`` are
the residual stream before and after a block, ``attn_out`` and ``mlp_out`` what its two halves add to it.

Two kinds of loaded model can be read, and give the same values. A :class:`Trunk` is run as transformers runs it, cut
above the highest layer, with fused attention: as fast as the model itself, and in long contexts with a third of the
memory; it exists for the families in ``FAMILIES``. A :class:`Subject` goes through transformer-lens's bridge.
:func:`open_reader` opens the first where it can; :func:`read` reads texts from either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from affectlens.model.config import SITES, ModelConfig, Site, resolve_dtype
from affectlens.model.loading import load_weights, loading, source
from affectlens.model.subject import Subject
from affectlens.model.tokens import pad, plan_batches, windows

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

SHAPES_KEPT = 128
"""For so many shapes of a matrix product oneDNN keeps what it compiled. Its own 1,024 take 150 MB, filled bit by bit by
batches that hardly ever repeat a shape."""


__all__ = ["FAMILIES", "SITES", "Family", "Readable", "Site", "Trunk", "open_reader", "read"]


class Readable(Protocol):
    """A loaded model that can be read.

    Attributes:
        device: where it computes.
        dtype: of weights and activations.
        width: of the residual stream.
        context: most positions it can take at once; None where it names no limit.
    """

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def width(self) -> int: ...
    @property
    def context(self) -> int | None: ...

    def activations(
        self, tokens: Int[Tensor, "rows positions"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "rows positions d_model"]]:
        """One forward pass; right padding cannot reach the positions before it."""
        ...


def read(
    model: Readable,
    rows: Sequence[Sequence[int]],
    sites: Sequence[Site],
    *,
    tokens_per_batch: int = 2048,
    window: int | None = None,
    overlap: int | None = None,
    lead: int = 0,
) -> Iterator[tuple[int, dict[Site, Float[Tensor, "tokens d_model"]]]]:
    """Values at the sites for every token of every row, row by row as batches of similar length are done.

    A row longer than the window goes through the model in windows: each begins with ``overlap`` tokens that were read
    already, as context, and every token is read once. Neither batches nor padding change a value beyond rounding.

    Args:
        model: a :class:`Trunk` or a :class:`Subject`.
        rows: token ids, begin token included (``subject.led``); not empty.
        sites: what is read.
        tokens_per_batch: most tokens that go through the model at once, padding included.
        window: most tokens of a row at once; what the model takes by default.
        overlap: tokens of context; a quarter of the window by default.
        lead: so many first tokens of a row (the begin token) stand before every one of its windows.

    Yields:
        The row's index, and its values by site.
    """
    import torch

    longest = max((len(row) for row in rows), default=0)
    limit = min(window or longest, model.context or longest) - lead
    shared = limit // 4 if overlap is None else overlap
    plan = [each for index, row in enumerate(rows) for each in windows(index, len(row) - lead, limit, shared)]
    counts = [0] * len(rows)
    for each in plan:
        counts[each.text] += 1
    pieces: dict[int, list[tuple[int, dict[Site, Tensor]]]] = {}
    for batch in plan_batches([lead + each.end - each.start for each in plan], tokens_per_batch):
        chosen = [plan[index] for index in batch]
        padded = [[*rows[each.text][:lead], *rows[each.text][lead + each.start : lead + each.end]] for each in chosen]
        values = model.activations(pad(padded, model.device), sites)
        for row, each in enumerate(chosen):
            # The lead itself is read with the first window.
            fresh = slice(lead + each.fresh - each.start if each.fresh else 0, lead + each.end - each.start)
            pieces.setdefault(each.text, []).append((each.start, {site: values[site][row, fresh] for site in sites}))
            if len(pieces[each.text]) == counts[each.text]:
                parts = [part for _, part in sorted(pieces.pop(each.text), key=lambda piece: piece[0])]
                yield each.text, {site: torch.cat([part[site] for part in parts]) for site in sites}


@dataclass(frozen=True)
class Family:
    """Names of the modules of an architecture in transformers.

    ``attention`` and ``mlp`` are the modules whose output is added to the residual stream: the norms behind the two
    halves where an architecture has them. ``heads`` and ``neurons`` are the projections that get the outputs of heads
    and neurons.
    """

    blocks: str = "layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    heads: str = "self_attn.o_proj"
    neurons: str = "mlp.down_proj"


_NORMED = Family(attention="post_attention_layernorm", mlp="post_feedforward_layernorm")
FAMILIES = {
    "gpt2": Family("h", "attn", "mlp", "attn.c_proj", "mlp.c_proj"),
    "gpt_neox": Family("layers", "attention", "mlp", "attention.dense", "mlp.dense_4h_to_h"),
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(),
    "gemma2": _NORMED,
    "gemma3_text": _NORMED,
    "olmo2": _NORMED,
}
"""By ``model_type`` of the configuration."""


def open_reader(config: ModelConfig, layers: int, *, device: str, models: Path) -> Readable:
    """Load the first ``layers`` blocks of a model, to be read only.

    Args:
        config: which model.
        layers: the highest layer that is read, plus one.
        device: where to compute.
        models: folder for converted models.

    Raises:
        UserError: the model cannot be loaded, with the reason.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(SHAPES_KEPT))  # read at the first product
    with loading(config):
        from transformers import AutoConfig

        name, options = source(config, models)
        settings = AutoConfig.from_pretrained(name, trust_remote_code=config.trust_remote_code, **options)
    if settings.model_type in FAMILIES and not config.trust_remote_code:
        return Trunk(config, layers, FAMILIES[settings.model_type], device=device, models=models)
    return Subject.load(config, device=device, models=models, layers=layers)


class Trunk:
    """transformers' own model of one of the ``FAMILIES``: embedding and the first blocks, without output matrix."""

    def __init__(self, config: ModelConfig, layers: int, family: Family, *, device: str, models: Path) -> None:
        self.device, self.dtype = device, resolve_dtype(config.dtype, device)
        self.model = load_weights(config, device=device, models=models, layers=layers, head=False)
        self.width = int(self.model.config.hidden_size)
        self.context: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self._family = family

    def activations(
        self, tokens: Int[Tensor, "rows positions"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "rows positions d_model"]]:
        """One forward pass over right-padded rows; all loaded blocks are run."""
        import torch

        values: dict[Site, Tensor] = {}

        def keep_output(site: Site, module: Any, given: Any, output: Any) -> None:
            values[site] = output[0] if isinstance(output, tuple) else output

        def keep_input(site: Site, module: Any, given: Any, named: Any) -> None:
            values[site] = given[0] if given else named["hidden_states"]

        blocks, family = getattr(self.model, self._family.blocks), self._family
        with ExitStack() as stack, torch.inference_mode():
            for site in sites:
                block = blocks[site.layer]
                if site.name == "resid_pre":
                    handle = block.register_forward_pre_hook(partial(keep_input, site), with_kwargs=True)
                elif site.name == "resid_post":
                    handle = block.register_forward_hook(partial(keep_output, site))
                else:
                    module = getattr(block, family.attention if site.name == "attn_out" else family.mlp)
                    handle = module.register_forward_hook(partial(keep_output, site))
                stack.callback(handle.remove)
            self.model(tokens, use_cache=False)
        return values

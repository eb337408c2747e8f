"""Reading a model: several sites of several layers from one forward pass over a padded batch.

A *site* is written (layer, name), with transformer-lens's names for what they are: ``resid_pre`` and ``resid_post`` are
the residual stream before and after a block, ``attn_out`` and ``mlp_out`` what its two halves add to it.

Two routes give the same values. Families in ``FAMILIES`` are run as transformers runs them, cut above the highest
layer, with its fused attention: as fast as the model itself, and in long contexts with a third of the memory. Any
other model that transformer-lens knows is read through its bridge.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from affectlens.model import subject as subjects

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")
SHAPES_KEPT = 128
"""For so many shapes of a matrix product oneDNN keeps what it compiled. Its own 1,024 take 150 MB, filled bit by bit by
batches that hardly ever repeat a shape."""


class Site(NamedTuple):
    """Where in the model: a layer, and one of ``SITES``."""

    layer: int
    name: str


@dataclass(frozen=True)
class Family:
    """Names of the modules of an architecture in transformers.

    ``attention`` and ``mlp`` are the modules whose output is added to the residual stream: the norms behind the two
    halves where an architecture has them.
    """

    blocks: str = "layers"
    attention: str = "self_attn"
    mlp: str = "mlp"


_NORMED = Family(attention="post_attention_layernorm", mlp="post_feedforward_layernorm")
FAMILIES = {
    "gpt2": Family("h", "attn", "mlp"),
    "gpt_neox": Family("layers", "attention", "mlp"),
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


class Reader(Protocol):
    """A loaded model that can be read.

    Attributes:
        device: where it computes.
        dtype: of weights and activations.
        width: of the residual stream.
        context: most positions it can take at once; None where it names no limit.
    """

    device: str
    dtype: torch.dtype
    width: int
    context: int | None

    def read(self, tokens: Int[Tensor, "rows positions"]) -> dict[Site, Float[Tensor, "rows positions d_model"]]:
        """Every wanted site at every position. Right padding cannot reach the positions before it."""
        ...


def open_reader(config: subjects.ModelConfig, sites: Sequence[Site], *, device: str, models: Path) -> Reader:
    """Load as much of the model as the sites need.

    Args:
        config: which model.
        sites: what every pass reads.
        device: where to compute.
        models: folder for converted models.

    Raises:
        UserError: the model cannot be loaded, with the reason.
    """
    layers = max(site.layer for site in sites) + 1
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(SHAPES_KEPT))  # read at the first product
    with subjects.loading(config):
        from transformers import AutoConfig

        source, options = subjects.source(config, models)
        settings = AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code, **options)
        family = FAMILIES.get(settings.model_type)
        if family is not None and not config.trust_remote_code:
            return PlainReader(config, sites, family, layers, device=device, models=models)
    return BridgeReader(config, sites, layers, device=device, models=models)


class PlainReader:
    """Reads through transformers' own model, cut above the highest layer, without its output matrix."""

    def __init__(
        self,
        config: subjects.ModelConfig,
        sites: Sequence[Site],
        family: Family,
        layers: int,
        *,
        device: str,
        models: Path,
    ) -> None:
        self.device, self.dtype = device, subjects.resolve_dtype(config.dtype, device)
        self._model = load_trunk(config, layers, device=device, models=models)
        settings = self._model.config
        self.width, self.context = int(settings.hidden_size), getattr(settings, "max_position_embeddings", None)
        self._found: dict[Site, Tensor] = {}
        blocks = getattr(self._model, family.blocks)
        for site in sites:
            self._watch(site, blocks[site.layer], family)

    def _watch(self, site: Site, block: Any, family: Family) -> None:
        def keep_output(module: Any, given: Any, output: Any) -> None:
            self._found[site] = output[0] if isinstance(output, tuple) else output

        def keep_input(module: Any, given: Any, named: Any) -> None:
            self._found[site] = given[0] if given else named["hidden_states"]

        if site.name == "resid_pre":
            block.register_forward_pre_hook(keep_input, with_kwargs=True)
        elif site.name == "resid_post":
            block.register_forward_hook(keep_output)
        else:
            module = getattr(block, family.attention if site.name == "attn_out" else family.mlp)
            module.register_forward_hook(keep_output)

    def read(self, tokens: Int[Tensor, "rows positions"]) -> dict[Site, Float[Tensor, "rows positions d_model"]]:
        import torch

        with torch.inference_mode():
            self._model(tokens, use_cache=False)
        found, self._found = self._found, {}
        return found


def load_trunk(config: subjects.ModelConfig, layers: int, *, device: str, models: Path) -> Any:
    """transformers' model of one of the ``FAMILIES``: embedding and the first ``layers`` blocks, no output matrix.

    Raises:
        UserError: it cannot be loaded, with the reason.
    """
    import transformers

    logs = transformers.utils.logging
    logs.disable_progress_bar()
    level = logs.get_verbosity()
    with subjects.loading(config):
        source, options = subjects.source(config, models)
        logs.set_verbosity_error()  # it would list the weights above the cut as unexpected
        model = transformers.AutoModel.from_pretrained(
            source,
            dtype=subjects.resolve_dtype(config.dtype, device),
            trust_remote_code=config.trust_remote_code,
            **subjects.depth_override(config, layers),
            **options,
        )
    logs.set_verbosity(level)
    return model.to(device).eval()


class BridgeReader:
    """Reads through transformer-lens's bridge: every architecture it knows, with plain attention."""

    def __init__(
        self, config: subjects.ModelConfig, sites: Sequence[Site], layers: int, *, device: str, models: Path
    ) -> None:
        self._subject = subjects.Subject.load(config, device=device, models=models, layers=layers)
        self.device, self.dtype = device, self._subject.dtype
        settings = self._subject.bridge.cfg
        self.width, self.context = int(settings.d_model), getattr(settings, "n_ctx", None)
        self._layers, self._names = layers, {site: self._hook(site) for site in sites}

    def _hook(self, site: Site) -> str:
        """The name under which the bridge keeps the site; asking by alias would keep it twice."""
        names = {"resid_pre": "hook_in", "resid_post": "hook_out"}
        block = self._subject.bridge.blocks[site.layer]
        alias = block.hook_aliases.get(f"hook_{site.name}", f"hook_{site.name}")
        return f"blocks.{site.layer}.{names.get(site.name, alias)}"

    def read(self, tokens: Int[Tensor, "rows positions"]) -> dict[Site, Float[Tensor, "rows positions d_model"]]:
        import torch

        with torch.inference_mode():
            _, cache = self._subject.bridge.run_with_cache(
                tokens,
                names_filter=list(self._names.values()),
                stop_at_layer=self._layers,
                return_cache_object=False,
            )
        return {site: cache[name] for site, name in self._names.items()}

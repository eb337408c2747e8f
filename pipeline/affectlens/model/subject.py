"""The model under study, loaded whole: read, steered and scored through transformer-lens's bridge.

A *residual site* is written ``resid_post`` at a layer and is transformer-lens's ``blocks.<layer>.hook_out``.
Rows of different length are padded on the right unless they are continued (:mod:`affectlens.model.sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.errors import UserError
from affectlens.model.compat import final_gain, output_matrix, sharing_weights, site_name
from affectlens.model.config import (
    ModelConfig,
    Shape,
    Site,
    depth_override,
    device_names,
    identity,
    locate,
    resolve_dtype,
    shape,
)
from affectlens.model.loading import load_tokenizer, load_weights, loading, quiet, source

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor


__all__ = [
    "ModelConfig",
    "Shape",
    "Subject",
    "depth_override",
    "device_names",
    "hook_name",
    "identity",
    "load_tokenizer",
    "load_weights",
    "loading",
    "locate",
    "resolve_dtype",
    "shape",
    "source",
]
PROMPT = 12
"""Tokens of the prompt on which the bridge is compared with transformers."""
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}
"""Largest difference from transformers that rounding explains, as a share of the residual's norm."""
OTHER_KERNEL = 5
"""Times that, where attention is added up in another order: 0.051 in bfloat16 with the embedded model's logits."""
WORD_MARKS = (" ", "\u2581", "\u0120")
"""How tokenizers write the space before a word: as it is, SentencePiece's mark, the byte-level one."""


@dataclass
class Subject:
    """A loaded language model with its tokenizer.

    Attributes:
        bridge: transformer-lens's ``TransformerBridge``.
        tokenizer: the transformers tokenizer.
        device: where it computes.
        dtype: of weights and activations.
        shape: depth and width of the whole model.
        loaded_layers: how many of its blocks are loaded.
        resumable: by layer, whether passes may begin after it; filled by :class:`PartialForward` as it is tried.
        plain: the same weights as transformers runs them, with fused attention and without the bridge's modules: for
            what is sampled. None where that gives other values, or the model brings its own code.
    """

    bridge: Any
    tokenizer: Any
    device: str
    dtype: torch.dtype
    shape: Shape
    loaded_layers: int = field(default=0)
    resumable: dict[int, bool] = field(default_factory=dict)
    plain: Any = None

    @classmethod
    def load(
        cls, config: ModelConfig, *, device: str, models: Path, layers: int | None = None, adapter: Path | None = None
    ) -> Subject:
        """Load the model, or only its first ``layers`` blocks when no more are needed.

        Args:
            config: which model.
            device: where it computes.
            models: folder for converted models.
            layers: so many first blocks; all by default.
            adapter: the folder of a low-rank adapter that is merged into its weights.

        Raises:
            UserError: it cannot be loaded, lacks weights, or the bridge computes other values than transformers.
        """
        import torch
        from transformer_lens.model_bridge import TransformerBridge

        tokenizer = load_tokenizer(config, models)
        # The bridge needs plain ("eager") attention for its hooks; with it, its values equal transformers' own.
        model = load_weights(
            config, device=device, models=models, layers=layers, adapter=adapter, attn_implementation="eager"
        )
        dtype = resolve_dtype(config.dtype, device)
        with torch.no_grad(), loading(config), quiet():
            tokens = torch.arange(PROMPT, device=device)[None] * 37 % model.config.get_text_config().vocab_size
            expected = model(tokens, output_hidden_states=True, use_cache=False)
            plain = None if config.trust_remote_code else sharing_weights(model)
            name, options = source(config, models)
            bridge = TransformerBridge.boot_transformers(
                name,
                hf_model=model,
                device=device,
                dtype=dtype,
                trust_remote_code=config.trust_remote_code,
                **options,
            )
            bridge.eval()
            depth = int(bridge.cfg.n_layers)
            whole = shape(config) or Shape(depth, int(bridge.cfg.d_model))
            subject = cls(bridge, tokenizer, device, dtype, whole, depth)
            subject._require_values(config, tokens, [*expected.hidden_states[1:-1], expected.logits])
            if plain is not None:
                logits = plain(tokens, use_cache=False).logits
                subject.plain = plain if subject._agree(logits, expected.logits, OTHER_KERNEL) else None
        return subject

    def _require_values(
        self,
        config: ModelConfig,
        tokens: Int[Tensor, "1 positions"],
        expected: Sequence[Float[Tensor, "1 positions d"]],
    ) -> None:
        """Compare every block's output but the last, and the logits, with transformers' own on one short prompt."""
        import torch

        names = [site_name(self.bridge, layer, "resid_post") for layer in range(self.loaded_layers - 1)]
        with torch.no_grad():
            logits, cache = self.bridge.run_with_cache(tokens, names_filter=names, return_cache_object=False)
        for what, ours, theirs in zip([*names, "logits"], [*(cache[n] for n in names), logits], expected, strict=True):
            if not self._agree(ours, theirs):
                raise UserError(
                    f"`model.name: {config.name}`: transformer-lens computes other values than transformers for this "
                    f"architecture ({what} differs by {_difference(ours, theirs):.1%}); study another model, or "
                    "install a transformer-lens that reads this one rightly"
                )

    def _agree(
        self, ours: Float[Tensor, "1 positions d"], theirs: Float[Tensor, "1 positions d"], times: float = 1
    ) -> bool:
        """Whether two ways to compute the same differ by no more than rounding explains, or so many times that."""
        return _difference(ours, theirs) <= times * TOLERANCE[str(self.dtype).removeprefix("torch.")]

    def output_matrix(self, layer: int, place: str) -> Float[Tensor, "inner d_model"]:
        """What one unit among the heads' outputs or the neurons of a block writes, before any norm behind them."""
        return output_matrix(self.bridge, layer, place)

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.shape.width

    @property
    def context(self) -> int | None:
        """Most positions that the model takes at once; None where it names no limit."""
        return getattr(self.bridge.cfg, "n_ctx", None)

    @cached_property
    def bos(self) -> int | None:
        """The token set before every text: the tokenizer's own begin token, or None where the model has none."""
        return self.tokenizer.bos_token_id

    @property
    def lead(self) -> int:
        """How many positions stand before the first text token in what :meth:`pad` returns."""
        return 0 if self.bos is None else 1

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no special token is added, and none is read out of the text's letters."""
        from affectlens.model.tokens import encode

        return encode(self.tokenizer, text)

    def led(self, ids: Sequence[int]) -> list[int]:
        """The ids behind the begin token, where the model has one."""
        return [*([] if self.bos is None else [self.bos]), *ids]

    def pad(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, "rows positions"]:
        """Right-padded token ids with the begin token, where there is one, at position 0 of every row."""
        from affectlens.model.tokens import pad

        return pad([self.led(row) for row in rows], self.device)

    def activations(
        self, tokens: Int[Tensor, "rows positions"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "rows positions d_model"]]:
        """One forward pass over right-padded rows; blocks above the highest site are not run.

        For many texts, :func:`affectlens.model.reading.read` plans the batches.
        """
        import torch

        names = {site: site_name(self.bridge, site.layer, site.name) for site in sites}
        with torch.no_grad():
            _, cache = self.bridge.run_with_cache(
                tokens,
                names_filter=list(names.values()),
                stop_at_layer=max(site.layer for site in sites) + 1,
                return_cache_object=False,
            )
        return {site: cache[name] for site, name in names.items()}

    def log_probabilities(
        self, tokens: Int[Tensor, "rows positions"], hooks: Sequence[tuple[str, Any]] = ()
    ) -> Float[Tensor, "rows positions vocabulary"]:
        """float32 next-token log-probabilities, with forward hooks in place."""
        import torch

        with torch.no_grad(), self.bridge.hooks(fwd_hooks=list(hooks)):
            return torch.log_softmax(self.bridge(tokens).float(), dim=-1)

    def lens_words(self, vectors: Any, count: int = 10) -> list[list[str]]:
        """What each residual direction writes towards: the tokens whose logits it raises most (logit lens).

        The direction is scaled by the gain of the final normalisation and multiplied by the output matrix
        (nostalgebraist 2020, "interpreting GPT: the logit lens"). Only tokens that spell a word are listed.

        Args:
            vectors: array, shape ``directions d_model``.
            count: words a direction.
        """
        import torch

        directions = torch.as_tensor(vectors, dtype=torch.float32, device=self.device) * final_gain(self.bridge)
        logits = directions @ self.bridge.unembed.W_U.detach().float()
        ranked = logits.argsort(dim=-1, descending=True)[:, : 200 * count].tolist()
        return [self._words(row, count) for row in ranked]

    def lens_extremes(self, vectors: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens whose logits each residual direction raises most, and those that it lowers most (logit lens).

        Args:
            vectors: array, shape ``directions d_model``.
            count: tokens each way.

        Returns:
            Token ids and the logits added, shape ``directions 2*count``: the raised, most first, then the lowered,
            most first.
        """
        import torch

        directions = torch.as_tensor(vectors, dtype=torch.float32, device=self.device) * final_gain(self.bridge)
        logits = directions @ self.bridge.unembed.W_U.detach().float()
        raised, lowered = logits.topk(count, dim=-1), logits.topk(count, dim=-1, largest=False)
        ids, values = (
            torch.cat([getattr(each, name) for each in (raised, lowered)], dim=-1) for name in ("indices", "values")
        )
        return ids.cpu().numpy(), values.cpu().numpy()

    def _words(self, ids: Sequence[int], count: int) -> list[str]:
        """The first ``count`` different words among tokens that begin one."""
        words: list[str] = []
        for token in ids:
            piece = self.tokenizer.convert_ids_to_tokens(int(token)) or ""
            spelled = self.tokenizer.decode([token])
            # Some tokenizers decode a token without its space; the piece itself still carries the mark.
            begins = spelled[:1].isspace() or piece.startswith(WORD_MARKS)
            word = spelled.strip().lower()
            if begins and word.isalpha() and len(word) > 2 and word not in words:
                words.append(word)
            if len(words) == count:
                break
        return words


def _difference(ours: Float[Tensor, "1 positions d"], theirs: Float[Tensor, "1 positions d"]) -> float:
    """The largest over positions, as a share of the norm; infinite where a value is not finite."""
    shares = (ours.float() - theirs.float()).norm(dim=-1) / theirs.float().norm(dim=-1).clamp(min=1e-6)
    return float(shares.nan_to_num(nan=float("inf")).max())


def hook_name(layer: int) -> str:
    """transformer-lens's name of the residual stream after block ``layer``."""
    return f"blocks.{layer}.hook_out"

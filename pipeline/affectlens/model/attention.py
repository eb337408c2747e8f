"""Attention of one new position a text, on a processor: without copies of the keys for every head that shares them.

torch's fused attention goes through texts and heads one by one there; with 64 texts under way that is half of the time
of a step. Here heads that share keys (grouped queries: Ainslie et al. 2023) are one product, and all texts one call.
Passes over several positions stay with torch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "affectlens_grouped"


def use(model: Any) -> None:
    """Let a transformers model that is on a processor, and whose attention is torch's, attend so."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """One of transformers' attention functions.

    Args:
        module: the attention.
        query: shape ``rows heads positions d_head``.
        key: shape ``rows shared positions d_head``; every ``heads / shared`` heads share one.
        value: likewise.
        attention_mask: which are seen, or what is added to the products; shape ``rows 1 positions positions``.
        scaling: of the products; one over the root of ``d_head`` by default.
        dropout: none while a model is read.
        options: of other attention functions.

    Returns:
        Shape ``rows positions heads d_head``, and no weights.
    """
    rows, heads, positions, d_head = query.shape
    if positions > 1 or dropout or options.get("softcap") is not None or options.get("s_aux") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    shared = key.shape[1]
    scores = query.reshape(rows, shared, heads // shared, d_head) @ key.transpose(2, 3)
    scores = scores.float() * (d_head**-0.5 if scaling is None else scaling)
    if attention_mask is not None and attention_mask.is_floating_point():
        scores = scores + attention_mask
    elif attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    mixed = softmax(scores, dim=-1).to(value.dtype) @ value
    return mixed.reshape(rows, 1, heads, d_head), None

"""Attention of one new position is as torch computes it, and a plain model is its subject's weights and values."""

from __future__ import annotations

import pytest
import torch
from affectlens.model import attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen2")


class Groups(torch.nn.Module):
    """What torch's function asks of an attention module."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("mask", ["none", "seen", "added"])
@pytest.mark.parametrize("positions", [1, 4])
def test_one_position_attends_as_torch_does(groups: int, mask: str, positions: int) -> None:
    """Queries that share keys or not; nothing masked, a boolean mask or an added one; keys with room behind them."""
    draw = torch.Generator().manual_seed(groups)
    rows, shared, length, d_head = 5, 2, 11, 8
    query = torch.randn(rows, groups * shared, positions, d_head, generator=draw)
    key, value = torch.randn(2, rows, shared, length + 6, d_head, generator=draw)[..., :length, :]
    seen = torch.rand(rows, 1, positions, length, generator=draw) > 0.3
    seen[..., -1] = True
    given = {"none": None, "seen": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, -1e9)}[mask]
    if mask == "none" and positions > 1:
        given = torch.ones(positions, length, dtype=torch.bool).tril(length - positions)[None, None]
    for scaling in (None, 0.2):
        found, _ = attention.attend(Groups(groups), query, key, value, given, scaling=scaling)
        expected, _ = sdpa_attention_forward(Groups(groups), query, key, value, given, scaling=scaling)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_model_is_the_subjects_weights(tiny_subject, family: str) -> None:
    """For every family that is known. No tensor of it is its own, and the bridge still computes the same."""
    model = tiny_subject(family)
    shared = {tensor.data_ptr() for tensor in model.bridge.original_model.parameters()}
    assert {tensor.data_ptr() for tensor in model.plain.parameters()} <= shared
    tokens = torch.tensor([[3, 9, 4, 7, 5]])
    with torch.no_grad():
        torch.testing.assert_close(model.plain(tokens).logits, model.bridge(tokens), atol=1e-4, rtol=1e-4)

"""Passes that begin after a layer equal whole passes, and what they borrow from the libraries still works."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from affectlens.model import compat
from affectlens.model.kv_cache import RoomyCache
from affectlens.model.partial import PartialForward
from affectlens.model.steering import Edit, add, editing

FAMILIES = ("llama", "gpt2", "qwen2", "gemma2")
D, LAYER, PROMPT = 32, 2, "The cat sat on the mat and"


def logits(model, tokens: torch.Tensor, edits: list[Edit] | None = None) -> torch.Tensor:
    with torch.no_grad(), editing(model.bridge, edits or []):
        return model.bridge(tokens)


def pushes() -> list[Edit]:
    vectors = torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    delta = partial(add, direction=vectors, strength=torch.tensor([0.0, 1.0, 2.0]), unit=2.0)
    return [Edit(LAYER, delta), Edit(LAYER + 1, delta)]


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_from_the_middle_equal_whole_passes(tiny_subject, family: str) -> None:
    model = tiny_subject(family)
    upper = PartialForward(model, LAYER)
    tokens = model.pad([model.encode(PROMPT)]).expand(3, -1)
    whole = logits(model, tokens, pushes())
    residual = upper.lower(tokens[:1]).expand(3, -1, -1)
    assert upper.resumes, "blocks below are run again"
    same = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)
    same(upper.run(tokens, residual, pushes(), keep=None).logits, whole)
    same(upper.run(tokens, residual, pushes()).logits[:, 0], whole[:, -1])
    same(upper.run(tokens, residual, pushes(), keep=[1, 3]).logits, whole[:, [1, 3]])
    same(upper.run(tokens, None, pushes(), keep=2).logits, whole[:, -2:])


def test_what_is_read_is_the_residual_after_the_edits(tiny_subject) -> None:
    model = tiny_subject("llama")
    upper = PartialForward(model, LAYER)
    tokens = model.pad([model.encode(PROMPT)]).expand(3, -1)
    residual = upper.lower(tokens[:1]).expand(3, -1, -1)
    outcome = upper.run(tokens, residual, pushes()[:1], keep=0, read=[LAYER, LAYER + 1])
    vectors = torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    added = torch.tensor([0.0, 2.0, 4.0])[:, None, None] * vectors[:, None]
    assert outcome.logits.shape[1] == 0
    torch.testing.assert_close(outcome.residuals[LAYER], residual + added)
    assert outcome.residuals[LAYER + 1].shape == residual.shape


def test_blocks_run_again_after_an_interrupted_resumed_pass(tiny_subject) -> None:
    model = tiny_subject("llama")
    tokens = model.pad([model.encode(PROMPT)])
    plain, skipped = logits(model, tokens), []

    def interrupted() -> None:
        with compat.resumed(model.bridge, LAYER, torch.zeros(1, tokens.shape[1], D)):
            skipped.append(logits(model, tokens))
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not torch.allclose(skipped[0], plain)
    assert torch.equal(logits(model, tokens), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grafted_cache_continues_as_the_whole_one(tiny_subject, family: str) -> None:
    model = tiny_subject(family)
    tokens = torch.tensor([[0, 5, 6, 7, 8, 9]])
    stem, cache = RoomyCache(), RoomyCache()
    options = {"use_cache": True, "return_type": "logits_and_cache"}
    with torch.no_grad():
        expected = model.bridge(tokens)[:, -1]
        model.bridge(tokens[:, :-1], past_key_values=stem, **options)
        residual = PartialForward(model, LAYER).lower(tokens[:, :-1])
        with compat.resumed(model.bridge, LAYER, residual):
            model.bridge(tokens[:, :-1], past_key_values=cache, **options)
        cache.grafted(stem, LAYER)
        continued, _ = model.bridge(tokens[:, -1:], past_key_values=cache, **options)
    torch.testing.assert_close(continued[:, -1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "gain"), [("llama", 0), ("gpt2", 0), ("gemma2", 1), ("gemma3_text", 1)])
def test_the_final_gain_is_what_the_norm_multiplies_by(tiny_subject, family: str, gain: float) -> None:
    bridge = tiny_subject(family).bridge
    weight = bridge.ln_final.original_component.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.copy_(torch.linspace(-1, 1, D))
        torch.testing.assert_close(compat.final_gain(bridge), gain + torch.linspace(-1, 1, D), atol=1e-4, rtol=1e-4)
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_options_of_the_forward_pass_are_seen(tiny_subject) -> None:
    bridge = tiny_subject("llama").bridge
    assert compat.takes(bridge, "logits_to_keep")
    assert not compat.takes(bridge, "no_such_option")

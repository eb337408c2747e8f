"""The fast path of the TopK family gives what sae-lens's own forward and backward pass give."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from affectlens.sae import kernels_topk as topk
from affectlens.sae.architectures import REGISTRY, StepContext
from affectlens.sae.building import build, project_decoder_gradient
from affectlens.sae.feature_activations import Pairs
from affectlens.sae.recipe import Recipe

D, F, TOKENS = 16, 96, 48
FAMILY = ("topk", "batchtopk", "matryoshka")
DEAD = {
    "none": torch.zeros(F, dtype=torch.bool),
    "few": torch.arange(F) < 5,
    "many": torch.arange(F) % 3 == 0,
}


def _sae(architecture: str, **changes: object):
    recipe = Recipe.model_validate({"architecture": architecture, "k": 6, "aux_loss_coefficient": 0.25, **changes})
    generator = torch.Generator().manual_seed(2)
    sae = build(recipe, d_in=D, width=F, centre=torch.randn(D, generator=generator), seed=1, metadata={})
    sae.b_enc.data = 0.1 * torch.randn(F, generator=generator)
    return sae


def _rows(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(seed))


def _reference(sae, x, dead):
    from sae_lens.saes.sae import TrainStepInput

    out = sae.training_forward_pass(
        TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False)
    )
    out.loss.backward()
    project_decoder_gradient(sae)
    return out


@pytest.mark.parametrize("block", [4096, 17])
@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("architecture", FAMILY)
def test_loss_and_gradients_are_those_of_sae_lens(architecture, dead, block, monkeypatch) -> None:
    monkeypatch.setattr(topk, "BLOCK", block)
    plain, fast, x = _sae(architecture), _sae(architecture), _rows()
    expected = _reference(plain, x, DEAD[dead])
    found = REGISTRY[architecture].step(fast, x, StepContext(dead=DEAD[dead]))
    project_decoder_gradient(fast)
    torch.testing.assert_close(found.loss, expected.loss.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.mse, expected.losses["mse_loss"].detach(), rtol=1e-5, atol=0)
    assert torch.equal(found.fired, (expected.feature_acts > 0).any(dim=0))
    for (name, parameter), (_, other) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        assert parameter.grad is not None
        assert float(other.grad.abs().max()) > 1e-3
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("block", [7, 32, 1000])
def test_running_choice_is_the_choice_over_all_features(block, monkeypatch) -> None:
    monkeypatch.setattr(topk, "BLOCK", block)
    sae, x = _sae("topk"), _rows(3)
    encoder, bias = sae.W_enc.data.T, cast(torch.Tensor, sae.b_enc.data)
    feature, value = topk.choose_rows(x, encoder, bias, 10)
    expected = (x @ encoder.T + bias).topk(10, dim=1)
    order = value.argsort(dim=1, descending=True)
    assert torch.equal(feature.gather(1, order), expected.indices)
    torch.testing.assert_close(value.gather(1, order), expected.values)


@pytest.mark.parametrize("floor", [0.0, 2.0, 1e6])
def test_a_wrong_guess_of_the_floor_changes_nothing(floor, monkeypatch) -> None:
    monkeypatch.setattr(topk, "BLOCK", 20)
    sae, x = _sae("batchtopk"), _rows(4)
    encoder, bias = sae.W_enc.data.T, cast(torch.Tensor, sae.b_enc.data)
    pairs, value = topk.choose_batch(x, encoder, bias, 6 * TOKENS, floor=floor)
    dense = torch.zeros(TOKENS, F)
    dense[pairs.token, pairs.feature] = value
    scores = (x @ encoder.T + bias).relu()
    cut = scores.flatten().topk(6 * TOKENS).values.min()
    torch.testing.assert_close(dense, torch.where(scores >= cut, scores, 0.0))


def test_fewer_positive_scores_than_wanted_are_all_kept() -> None:
    sae, x = _sae("batchtopk"), _rows(5)
    encoder = sae.W_enc.data.T
    bias = torch.full((F,), -8.0)
    _, value = topk.choose_batch(x, encoder, bias, F * TOKENS, floor=1.0)
    assert len(value) == int(((x @ encoder.T + bias) > 0).sum())


def test_pairs_compute_the_dense_products_also_for_tokens_and_features_without_any() -> None:
    generator = torch.Generator().manual_seed(8)
    decoder, source = torch.randn(F, D, generator=generator), torch.randn(4, D, generator=generator)
    dense = torch.zeros(4, F)
    dense[0, 3], dense[0, 80], dense[3, 3] = 1.5, 2.0, 0.5
    token, feature = dense.nonzero(as_tuple=True)
    value = dense[token, feature]
    pairs = Pairs(feature, token, 4, F)
    torch.testing.assert_close(pairs.decode(value, decoder), dense @ decoder)
    torch.testing.assert_close(pairs.gather(value, source), dense.T @ source)
    torch.testing.assert_close(pairs.total(value), dense.sum(dim=0))
    torch.testing.assert_close(pairs.align(source, decoder), (source @ decoder.T)[token, feature])
    inner, kept = pairs.within(2, 10)
    torch.testing.assert_close(inner.decode(value[kept], decoder[2:10]), dense[:, 2:10] @ decoder[2:10])


@pytest.mark.parametrize("architecture", FAMILY)
def test_bfloat16_decides_only_which_features_are_taken(architecture) -> None:
    sae, x = _sae(architecture), _rows(6)
    encoder, bias = sae.W_enc.data.T, cast(torch.Tensor, sae.b_enc.data)
    scores = x @ encoder.T + bias
    if architecture == "topk":
        feature, value = topk.choose_rows(x, encoder, bias, 6, half=True)
        exact = scores.gather(1, feature)
    else:
        pairs, value = topk.choose_batch(x, encoder, bias, 6 * TOKENS, half=True)
        exact = scores[pairs.token, pairs.feature]
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5)
    step = REGISTRY[architecture].step
    full = step(sae, x, StepContext(dead=DEAD["none"]))
    half = step(_sae(architecture), x, StepContext(dead=DEAD["none"], half=True))
    assert abs(float(half.loss) / float(full.loss) - 1) < 0.05


def test_nothing_of_the_size_tokens_times_features_is_made() -> None:
    """With small blocks the peak of a step stays far below one dense array of codes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            for each in result if isinstance(result, tuple | list) else [result]:
                if isinstance(each, torch.Tensor) and each.shape != sae.W_dec.shape:
                    largest = max(largest, each.numel())
            return result

    width, tokens = 4096, 512
    recipe = Recipe(architecture="topk", k=4)
    sae = build(recipe, d_in=8, width=width, centre=torch.zeros(8), seed=0, metadata={})
    block, topk.BLOCK = topk.BLOCK, 256
    try:
        with Watch():
            dead = torch.zeros(width, dtype=torch.bool)
            REGISTRY["topk"].step(sae, torch.randn(tokens, 8), StepContext(dead=dead))
    finally:
        topk.BLOCK = block
    assert tokens * 256 <= largest < tokens * width / 4

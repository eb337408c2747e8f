"""The hand-written gradients of the ReLU architectures are those that autograd finds in sae-lens's loss."""

from __future__ import annotations

import pytest
import torch
from affectlens.sae import feature_activations as codes
from affectlens.sae.architectures import REGISTRY, StepContext
from affectlens.sae.building import build, project_decoder_gradient
from affectlens.sae.recipe import Recipe

D, F, TOKENS = 16, 96, 48
COEFFICIENTS = {"standard": {"l1": 0.7}, "gated": {"l1": 0.7}, "jumprelu": {"l0": 0.9}}


def _sae(architecture: str):
    recipe = Recipe.model_validate({"architecture": architecture, "jumprelu_bandwidth": 0.8})
    generator = torch.Generator().manual_seed(2)
    sae = build(recipe, d_in=D, width=F, centre=torch.randn(D, generator=generator), seed=1, metadata={})
    for name in ("b_enc", "b_gate", "b_mag", "r_mag"):
        if getattr(sae, name, None) is not None:
            getattr(sae, name).data = 0.1 * torch.randn(F, generator=generator)
    if architecture == "jumprelu":
        sae.threshold.data = torch.randn(F, generator=generator)
    return sae


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["matrices", "pairs"])
@pytest.mark.parametrize("architecture", COEFFICIENTS)
def test_loss_and_gradients_are_those_of_sae_lens(architecture, share, monkeypatch) -> None:
    from sae_lens.saes.sae import TrainStepInput

    monkeypatch.setattr(codes, "SPARSE_SHARE", share)
    x = 3 * torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(0))
    plain, fast, weights = _sae(architecture), _sae(architecture), COEFFICIENTS[architecture]
    expected = plain.training_forward_pass(
        TrainStepInput(sae_in=x, coefficients=weights, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False)
    )
    expected.loss.backward()
    found = REGISTRY[architecture].step(fast, x, StepContext(coefficients=weights))
    for sae in (plain, fast):
        project_decoder_gradient(sae)
    torch.testing.assert_close(found.loss, expected.loss.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.mse, expected.losses["mse_loss"].detach(), rtol=1e-5, atol=0)
    live = expected.feature_acts.detach() > 0
    assert torch.equal(found.fired, live.any(dim=0))
    assert float(found.active) == pytest.approx(float(live.sum()) / TOKENS)
    for (name, parameter), (_, other) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        assert parameter.grad is not None, name
        assert float(other.grad.abs().max()) > 1e-3
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("architecture", COEFFICIENTS)
def test_bfloat16_products_change_little(architecture) -> None:
    x = 3 * torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(0))
    full, half = _sae(architecture), _sae(architecture)
    step, weights = REGISTRY[architecture].step, COEFFICIENTS[architecture]
    losses = [float(step(sae, x, StepContext(coefficients=weights, half=sae is half)).loss) for sae in (full, half)]
    assert 0 < abs(losses[1] / losses[0] - 1) < 0.02
    for name in ("W_enc", "W_dec"):
        ours, theirs = (dict(sae.named_parameters())[name].grad for sae in (full, half))
        assert theirs.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)) > 0.99


def test_the_cheaper_support_holds_every_live_entry() -> None:
    scores = torch.randn(30, 40, generator=torch.Generator().manual_seed(1))
    decoder = torch.randn(40, 7)
    for cut, kind in ((1.9, codes.Pairs), (-1.0, codes.Everything)):
        live = (scores > cut).float()
        support = codes.support_of(live)
        assert isinstance(support, kind)
        kept = scores * live
        value = codes.on(support, kept)
        torch.testing.assert_close(support.decode(value, decoder), kept @ decoder)
        torch.testing.assert_close(support.total(value), kept.sum(dim=0))
        torch.testing.assert_close(support.gather(value, scores), kept.T @ scores)

"""Products by oneDNN are those of PyTorch, with their gradients; what cannot be packed is left as it is."""

from __future__ import annotations

import pytest
import torch
from affectlens.circuits.anatomy import Anatomy, path
from affectlens.model.products import Packed, pack


def layer_of(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(48, 80, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (7, 48), (3, 5, 48)])
def test_values_and_gradients_are_those_of_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer = layer_of(bias=bias)
    values = torch.randn(*shape, requires_grad=True)
    expected = layer(values)
    along = torch.randn_like(expected)
    (slope,) = torch.autograd.grad((expected * along).sum(), values)
    assert pack(layer) == 1
    found = layer(values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (again,) = torch.autograd.grad((found * along).sum(), values)
    torch.testing.assert_close(again, slope, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(values), expected, rtol=1e-5, atol=1e-5)


def test_rows_that_are_views_of_one_row() -> None:
    layer, row = layer_of(), torch.randn(1, 6, 48)
    expected = layer(row.expand(4, -1, -1))
    pack(layer)
    torch.testing.assert_close(layer(row.expand(4, -1, -1)), expected, rtol=1e-5, atol=1e-5)
    swapped = torch.randn(4, 48, 6).transpose(1, 2)
    torch.testing.assert_close(
        layer(swapped), torch.nn.functional.linear(swapped, layer.weight, layer.bias), rtol=1e-5, atol=1e-5
    )


def test_changed_weights_are_noticed() -> None:
    layer, values = layer_of(), torch.randn(2, 48)
    pack(layer)
    before = layer(values)
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.bias.zero_()
    assert not torch.allclose(layer(values), before)
    torch.testing.assert_close(layer(values), values @ layer.weight.T, rtol=1e-5, atol=1e-5)


def test_trained_and_half_precision_layers_stay_as_they_are() -> None:
    trained = layer_of().requires_grad_(True)
    assert pack(trained) == 0
    assert pack(layer_of(torch.bfloat16)) == 0
    assert not isinstance(trained.__dict__.get("forward"), Packed)
    # A layer that was packed and is then asked in another precision refuses as PyTorch does.
    packed = layer_of()
    pack(packed)
    with pytest.raises(RuntimeError, match="dtype"):
        packed(torch.randn(2, 48, dtype=torch.bfloat16))


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_whole_model_says_and_is_said_the_same(tiny_subject, family: str) -> None:
    subject = tiny_subject(family)
    for module in subject.bridge.modules():
        if isinstance(module.__dict__.get("forward"), Packed):  # another test's
            del module.__dict__["forward"]
    tokens = subject.pad([[5, 9, 2, 7, 11, 3]])
    with torch.no_grad():
        expected = subject.bridge(tokens)
    anatomy = Anatomy(subject)
    packed = [each for each in subject.bridge.modules() if isinstance(each.__dict__.get("forward"), Packed)]
    assert packed
    with torch.no_grad():
        torch.testing.assert_close(subject.bridge(tokens), expected, rtol=1e-4, atol=1e-5)
    recorded = anatomy.record(tokens)
    other = anatomy.record(tokens.flip(1))

    def heads() -> torch.Tensor:
        rows = path(recorded, other, 2)
        return anatomy.gradients(tokens, rows, lambda logits, read: [logits[:, 4]])[0].heads

    with_packed = heads()
    for layer in packed:
        del layer.__dict__["forward"]
    torch.testing.assert_close(with_packed, heads(), rtol=1e-4, atol=1e-6)

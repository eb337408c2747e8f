"""One training step of the TopK family without anything of the size tokens x features.

sae-lens's step makes six dense matrix products and several dense arrays of tokens x features, nearly all of it zeros.
Here only the encoder's product is dense, and it is made a block of features at a time with a running choice of the
largest. Decoding gathers the chosen rows; gradients are sums over the chosen pairs alone. The gradients are those of
sae-lens's loss on unit decoder rows (``tests/test_topk.py`` pins the one to the other).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange

from affectlens.sae.feature_activations import Pairs, row_pairs
from affectlens.sae.outcome import Outcome

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from affectlens.sae.architectures.base import StepContext

    Choose = Callable[[Any, Tensor, Tensor, StepContext], tuple[Pairs, Tensor]]

BLOCK = 4096
"""Features per block of the encoder's product."""
FLOOR_SHARE = 0.9
"""Of the last batch's smallest chosen activation: where the next batch's search starts."""


def choose_rows(
    x: Float[Tensor, "tokens d"],
    encoder: Float[Tensor, "features d"],
    bias: Float[Tensor, "features"],
    k: int,
    *,
    half: bool = False,
) -> tuple[Int[Tensor, "tokens k"], Float[Tensor, "tokens k"]]:
    """The ``k`` largest pre-activations of every token and whose they are, a block of features at a time.

    Args:
        half: choose by a bfloat16 product. The values returned are float32 all the same.
    """
    scores = _product(x, encoder[:BLOCK], bias[:BLOCK], half)
    best_value, best = scores.topk(min(k, scores.shape[1]), dim=1, sorted=False)
    for first in range(BLOCK, len(encoder), BLOCK):
        block = slice(first, first + BLOCK)
        scores = _product(x, encoder[block], bias[block], half)
        value, index = scores.topk(min(k, scores.shape[1]), dim=1, sorted=False)
        best_value, best = torch.cat([best_value, value], dim=1), torch.cat([best, index + first], dim=1)
        best_value, kept = best_value.topk(min(k, best_value.shape[1]), dim=1, sorted=False)
        best = best.gather(1, kept)
    if half:
        pairs = row_pairs(best, len(encoder))
        best_value = rearrange(_exact(pairs, x, encoder, bias), "(tokens k) -> tokens k", tokens=len(x))
    return best, best_value


def choose_batch(
    x: Float[Tensor, "tokens d"],
    encoder: Float[Tensor, "features d"],
    bias: Float[Tensor, "features"],
    count: int,
    *,
    floor: float = 0.0,
    half: bool = False,
) -> tuple[Pairs, Float[Tensor, "pairs"]]:
    """The ``count`` largest positive pre-activations of the whole batch (Bussmann et al. 2024).

    Args:
        floor: a guess of the smallest of them. Too low costs time; too high is noticed and costs a second pass.
        half: choose by a bfloat16 product. The values returned are float32 all the same.
    """
    token, feature, value = _above(x, encoder, bias, count, floor, half)
    if len(value) < count and floor > 0:
        token, feature, value = _above(x, encoder, bias, count, 0.0, half)
    if len(value) > count:
        kept = value.topk(count, sorted=False).indices
        token, feature, value = token[kept], feature[kept], value[kept]
    order = torch.argsort(token * len(encoder) + feature)
    pairs = Pairs(feature[order], token[order], len(x), len(encoder))
    return pairs, _exact(pairs, x, encoder, bias).relu() if half else value[order]


def _above(
    x: Tensor, encoder: Tensor, bias: Tensor, count: int, floor: float, half: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, features and values of the pairs above a floor that rises as soon as ``count`` better ones are known."""
    token = torch.empty(0, dtype=torch.long, device=x.device)
    feature = token
    value = torch.empty(0, device=x.device)
    for first in range(0, len(encoder), BLOCK):
        block = slice(first, first + BLOCK)
        scores = _product(x, encoder[block], bias[block], half)
        where = (scores > floor).nonzero(as_tuple=True)
        value = torch.cat([value, scores[where].float()])
        token, feature = torch.cat([token, where[0]]), torch.cat([feature, where[1] + first])
        if len(value) > 2 * count:
            value, kept = value.topk(count, sorted=False)
            token, feature = token[kept], feature[kept]
            floor = float(value.min())
    return token, feature, value


def _product(x: Tensor, encoder: Tensor, bias: Tensor, half: bool) -> Tensor:
    if half:
        return torch.addmm(bias.bfloat16(), x.bfloat16(), encoder.bfloat16().T)
    return torch.addmm(bias, x, encoder.T)


def _exact(pairs: Pairs, x: Tensor, encoder: Tensor, bias: Tensor) -> Tensor:
    return pairs.align(x, encoder) + pairs.of(bias)


@torch.no_grad()
def step(sae: Any, x: Float[Tensor, "tokens d"], context: StepContext, choose: Choose) -> Outcome:
    """Set the gradients of sae-lens's training loss of a TopK, BatchTopK or Matryoshka SAE.

    Args:
        sae: training SAE with unit decoder rows and a column-major ``W_enc``.
        x: scaled activations.
        choose: :func:`by_rows` or :func:`by_batch`.
    """
    encoder = sae.W_enc.data.T
    centred = x - sae.b_dec.data
    pairs, value = choose(sae, centred, encoder, context)
    loss, mse, error = _reconstruct(sae, x, centred, pairs, value)
    if sae.cfg.aux_loss_coefficient > 0 and context.dead is not None and bool(context.dead.any()):
        loss = loss + _revive(sae, centred, error, context.dead)
    sae.b_dec.grad -= sae.b_enc.grad @ encoder
    live = torch.sign(value)
    smallest = float(value.min()) if len(value) else 0.0
    return Outcome.of(pairs, live, loss, mse, smallest)


def by_rows(sae: Any, centred: Tensor, encoder: Tensor, context: StepContext) -> tuple[Pairs, Tensor]:
    """The k largest of every token."""
    feature, value = choose_rows(centred, encoder, sae.b_enc.data, sae.cfg.k, half=context.half)
    return row_pairs(feature, len(encoder)), rearrange(value.relu(), "tokens k -> (tokens k)")


def by_batch(sae: Any, centred: Tensor, encoder: Tensor, context: StepContext) -> tuple[Pairs, Tensor]:
    """k times tokens of the batch. The search starts a little below the smallest that the last batch chose."""
    count, floor = int(sae.cfg.k * len(centred)), context.smallest * FLOOR_SHARE
    return choose_batch(centred, encoder, sae.b_enc.data, count, floor=floor, half=context.half)


def _reconstruct(
    sae: Any, x: Tensor, centred: Tensor, pairs: Pairs, value: Tensor
) -> tuple[Tensor, Tensor, Float[Tensor, "tokens d"]]:
    """Gradients of the squared error of every nested dictionary; one, unless the SAE is Matryoshka.

    Returns:
        The summed loss, the last level's loss, and the last level's error.
    """
    decoder = sae.W_dec.data
    ends = list(getattr(sae.cfg, "matryoshka_widths", [])) or [len(decoder)]
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    levels, errors, error = [], [], sae.b_dec.data - x
    for span in spans:
        inner, kept = pairs.within(*span) if len(spans) > 1 else (pairs, slice(None))
        levels.append((inner, value[kept]))
        error = error + inner.decode(value[kept], decoder[slice(*span)])
        errors.append(error)
    losses = torch.stack([each.square().sum() / len(x) for each in errors])
    pull = torch.zeros_like(x)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for span, (inner, values), each in zip(spans[::-1], levels[::-1], errors[::-1], strict=True):
        # An inner level's features also serve every level outside it, so its pull is the sum of theirs.
        pull = pull.add(each, alpha=2 / len(x))
        slope = inner.align(pull, decoder[slice(*span)]) * (values > 0)
        found.insert(0, (inner.gather(values, pull), inner.gather(slope, centred), inner.total(slope)))
    joined = [grads[0] if len(grads) == 1 else torch.cat(grads) for grads in zip(*found, strict=True)]
    sae.W_dec.grad, sae.W_enc.grad, sae.b_enc.grad = joined[0], joined[1].T, joined[2]
    sae.b_dec.grad = pull.sum(0)
    return losses.sum(), losses[-1], errors[-1]


def _revive(sae: Any, centred: Tensor, error: Tensor, dead: Bool[Tensor, "features"]) -> Tensor:
    """Add the gradients of the auxiliary loss: dead features explain what live ones leave (Gao et al. 2024, A.2)."""
    which = dead.nonzero()[:, 0]
    most = sae.cfg.d_in // 2
    scale = sae.cfg.aux_loss_coefficient * min(len(which) / most, 1.0)
    encoder, decoder = sae.W_enc.data.T[which], sae.W_dec.data[which]
    feature, value = choose_rows(centred, encoder, sae.b_enc.data[which], min(most, len(which)))
    pairs, value = row_pairs(feature, len(which)), rearrange(value, "tokens k -> (tokens k)")
    remaining = pairs.decode(value, decoder) + error
    pull = remaining * (2 * scale / len(centred))
    slope = pairs.align(pull, decoder)
    sae.W_dec.grad[which] += pairs.gather(value, pull)
    sae.W_enc.grad.T[which] += pairs.gather(slope, centred)
    sae.b_enc.grad[which] += pairs.total(slope)
    return scale * remaining.square().sum() / len(centred)

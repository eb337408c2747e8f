"""Where codes are not zero, as pairs of token and feature or as everything, and the sums that gradients are made of.

A training step is written once, in terms of a *support* and of values on it, and runs on either form. As in sparsify,
the sparse pair is the interface: with :class:`Pairs`, nothing of the size tokens x features exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat
from torch.nn.functional import embedding_bag

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

SPARSE_SHARE = 0.1
"""Below this share of non-zeros, sums over pairs take less time than matrix products."""


@dataclass(frozen=True)
class Pairs:
    """A sparse support: the pairs of token and feature, token by token. Values on it are vectors, one entry a pair.

    Attributes:
        feature: feature of each pair.
        token: token of each pair, ascending.
        tokens: number of tokens in the batch.
        features: number of features in the dictionary.
    """

    feature: Int[Tensor, "pairs"]
    token: Int[Tensor, "pairs"]
    tokens: int
    features: int

    @cached_property
    def _row_starts(self) -> Int[Tensor, "tokens"]:
        return torch.searchsorted(self.token, torch.arange(self.tokens, device=self.token.device))

    @cached_property
    def _columns(self) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"], Int[Tensor, "features"]]:
        """The same pairs feature by feature: where each stands, its token, and where each feature starts."""
        ordered, order = torch.sort(self.feature, stable=True)
        starts = torch.searchsorted(ordered, torch.arange(self.features, device=order.device))
        return order, self.token[order], starts

    def of(self, per_feature: Float[Tensor, "features"]) -> Float[Tensor, "pairs"]:
        """A feature's number at each of its pairs."""
        return per_feature[self.feature]

    def decode(self, value: Float[Tensor, "pairs"], decoder: Float[Tensor, "features d"]) -> Float[Tensor, "tokens d"]:
        """For each token the sum of its features' rows times ``value``."""
        return embedding_bag(self.feature, decoder, self._row_starts, mode="sum", per_sample_weights=value)

    def align(self, target: Float[Tensor, "tokens d"], decoder: Float[Tensor, "features d"]) -> Float[Tensor, "pairs"]:
        """For each pair the inner product of its token's ``target`` row and its feature's ``decoder`` row."""
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            target, decoder, self.feature, self._row_starts, self.token, 0
        )

    def gather(self, value: Float[Tensor, "pairs"], source: Float[Tensor, "tokens d"]) -> Float[Tensor, "features d"]:
        """For each feature the sum of its tokens' ``source`` rows times ``value``: a weight gradient."""
        order, token, starts = self._columns
        return embedding_bag(token, source, starts, mode="sum", per_sample_weights=value[order])

    def total(self, value: Float[Tensor, "pairs"]) -> Float[Tensor, "features"]:
        """For each feature the sum of ``value`` over its tokens, in the same order on every device and run."""
        return self.gather(value, torch.ones(self.tokens, 1, device=value.device))[:, 0]

    def within(self, first: int, end: int) -> tuple[Pairs, Bool[Tensor, "pairs"]]:
        """The pairs of the features from ``first`` up to ``end``, counted from ``first``; and which pairs they are."""
        kept = (self.feature >= first) & (self.feature < end)
        return Pairs(self.feature[kept] - first, self.token[kept], self.tokens, end - first), kept


@dataclass(frozen=True)
class Everything:
    """The dense support: every token with every feature. Values on it are matrices, ``tokens features``.

    Attributes:
        tokens: number of tokens in the batch.
        features: number of features in the dictionary.
        half: whether products are made in bfloat16, and rounded to it.
    """

    tokens: int
    features: int
    half: bool = False

    def of(self, per_feature: Float[Tensor, "features"]) -> Float[Tensor, "features"]:
        """A feature's number, to be broadcast over tokens."""
        return per_feature

    def decode(
        self, value: Float[Tensor, "tokens features"], decoder: Float[Tensor, "features d"]
    ) -> Float[Tensor, "tokens d"]:
        """See :meth:`Pairs.decode`."""
        return product(value, decoder, self.half)

    def align(
        self, target: Float[Tensor, "tokens d"], decoder: Float[Tensor, "features d"]
    ) -> Float[Tensor, "tokens features"]:
        """See :meth:`Pairs.align`."""
        return product(target, decoder.T, self.half)

    def gather(
        self, value: Float[Tensor, "tokens features"], source: Float[Tensor, "tokens d"]
    ) -> Float[Tensor, "features d"]:
        """See :meth:`Pairs.gather`."""
        return product(value.T, source, self.half)

    def total(self, value: Float[Tensor, "tokens features"]) -> Float[Tensor, "features"]:
        """See :meth:`Pairs.total`."""
        return value.sum(dim=0)


def product(a: Tensor, b: Tensor, half: bool) -> Tensor:
    """The float32 matrix product, or the one of the factors rounded to bfloat16."""
    return (a.bfloat16() @ b.bfloat16()).float() if half else a @ b


Support = Pairs | Everything


def support_of(live: Float[Tensor, "tokens features"], *, half: bool = False) -> Support:
    """The cheaper support that holds every entry that is not zero.

    Args:
        live: 0 or 1; floating-point because processors are slow to count and to multiply truth values.
        half: see :class:`Everything`.
    """
    tokens, features = live.shape
    if float(live.sum()) > SPARSE_SHARE * live.numel():
        return Everything(tokens, features, half)
    token, feature = live.nonzero(as_tuple=True)
    return Pairs(feature, token, tokens, features)


def on(support: Support, matrix: Float[Tensor, "tokens features"]) -> Tensor:
    """The entries of a matrix on a support."""
    return matrix[support.token, support.feature] if isinstance(support, Pairs) else matrix


def row_pairs(feature: Int[Tensor, "tokens k"], features: int) -> Pairs:
    """The support with the same number of features for every token."""
    token = repeat(torch.arange(len(feature), device=feature.device), "tokens -> (tokens k)", k=feature.shape[1])
    return Pairs(rearrange(feature, "tokens k -> (tokens k)"), token, len(feature), features)

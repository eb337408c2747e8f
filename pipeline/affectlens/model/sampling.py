"""Text sampled under interventions: many rows at once, each with its own vector, the same chances for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from affectlens.model.steering import Edit, editing
from affectlens.model.subject import Subject

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass
class Banned:
    """Token runs that may not be sampled, as last tokens by the tokens before them.

    Attributes:
        after: last token of each run by what precedes it; runs of one token stand under ``()``.
    """

    after: dict[tuple[int, ...], set[int]] = field(default_factory=dict)

    @classmethod
    def words(cls, tokenizer: Any, words: Iterable[str]) -> Banned:
        """Every way to write the words: with a leading space or without, and with a capital."""
        banned = cls()
        for word in sorted(set(words)):
            for form in (word, word.capitalize(), word.upper()):
                for text in (form, " " + form):
                    *before, last = tokenizer(text, add_special_tokens=False)["input_ids"]
                    banned.after.setdefault(tuple(before), set()).add(last)
        return banned

    def following(self, row: Sequence[int]) -> set[int]:
        """Tokens that may not come next."""
        found = set(self.after.get((), ()))
        for length in {len(before) for before in self.after} - {0}:
            found |= self.after.get(tuple(row[-length:]), set())
        return found


def sample(
    subject: Subject,
    prompt: Sequence[int],
    edits: Sequence[Edit],
    chances: Float[np.ndarray, "rows tokens"],
    *,
    temperature: float = 1.0,
    banned: Banned | None = None,
    cached: bool = True,
) -> list[list[int]]:
    """Continue one prompt in as many ways as there are rows; special tokens are never sampled.

    A row depends on its own chances and edits alone, so a batch gives what its rows give one by one.

    Args:
        prompt: token ids without the begin token.
        edits: rows in the order of ``chances``.
        chances: uniform draws in [0, 1); the token at that place of the cumulative distribution is taken.
        temperature: 0 takes the likeliest token.
        banned: what may not be said.
        cached: keep keys and values. Without, the whole text is read at every step: slow, for checking.

    Returns:
        The new tokens of each row.
    """
    import torch

    rows, steps = chances.shape
    tokens = subject.pad([prompt]).expand(rows, -1)
    new: list[list[int]] = [[] for _ in range(rows)]
    cache: Any = None
    with torch.no_grad(), editing(subject.bridge, edits, cached=cached):
        for step in range(steps):
            if cached:
                fed = tokens if cache is None else tokens[:, -1:]
                logits, cache = subject.bridge(
                    fed, use_cache=True, past_key_values=cache, return_type="logits_and_cache"
                )
            else:
                logits = subject.bridge(tokens)
            scores = logits[:, -1].float()
            _forbid(scores, subject, new, banned)
            chosen = choose(scores, torch.tensor(chances[:, step], device=scores.device), temperature)
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
            for row, token in zip(new, chosen.tolist(), strict=True):
                row.append(token)
    return new


def _forbid(scores: Tensor, subject: Subject, new: Sequence[Sequence[int]], banned: Banned | None) -> None:
    scores[:, [token for token in subject.tokenizer.all_special_ids if token < scores.shape[1]]] = -math.inf
    if banned is not None:
        for row, so_far in zip(scores, new, strict=True):
            row[list(banned.following(so_far))] = -math.inf


def choose(
    scores: Float[Tensor, "rows vocabulary"], chances: Float[Tensor, "rows"], temperature: float
) -> Int[Tensor, "rows"]:
    """The token at each chance's place of the cumulative distribution; the likeliest at temperature 0."""
    import torch

    if temperature == 0:
        return scores.argmax(dim=-1)
    cumulative = torch.softmax(scores / temperature, dim=-1).double().cumsum(dim=-1)
    # The last sum is not exactly 1; scaled by it, no chance lies beyond the last token.
    return torch.searchsorted(cumulative, (chances * cumulative[:, -1])[:, None], right=True)[:, 0].clamp(
        max=scores.shape[1] - 1
    )


def repetition(tokens: Sequence[int], length: int = 3) -> float:
    """Share of a text's token runs of this length that stood in it before; 0 for a text too short to have two."""
    runs = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0

"""Answers read again from their tokens, with something done to the residual stream meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from affectlens.model.partial import Outcome, PartialForward
from affectlens.model.steering import Edit
from affectlens.model.tokens import pad, plan_batches

if TYPE_CHECKING:
    from affectlens.model.subject import Subject

TOKENS_PER_BATCH = 2048
"""That go through the model at once, padding included."""
LOGITS_PER_BATCH = 512
"""Likewise, where the logits of all of them are kept."""
Tokens = Sequence[int]
Edits = Callable[[Sequence[Tokens], Sequence[Tokens]], list[Edit]]
"""What is done to a batch of prompts and answers, padded on the right."""


def nothing(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Edit]:
    """The model as it is."""
    return []


def read_rows(
    subject: Subject,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    layers: Sequence[int],
    edits: Edits = nothing,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[dict[int, Float[np.ndarray, "rows d_model"]]]:
    """Residuals along each answer, by layer, after the edits: at the last token of the prompt and at every token.

    Args:
        subject: the model.
        prompts: token ids, not empty.
        answers: token ids.
        layers: after which blocks; blocks above the highest are not run.
        edits: what is done meanwhile.
        tokens_per_batch: tokens that go through the model at once, padding included.

    Returns:
        float32, one row more than the answer has tokens.
    """
    found: list[dict[int, np.ndarray]] = [{} for _ in prompts]
    for batch, outcome in _passes(subject, prompts, answers, edits, tokens_per_batch, keep=0, read=layers):
        for row, index in enumerate(batch):
            first = len(prompts[index]) - 1
            span = slice(first, first + len(answers[index]) + 1)
            found[index] = {layer: outcome.residuals[layer][row, span].float().cpu().numpy() for layer in layers}
    return found


def token_log_probs(
    subject: Subject,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    edits: Edits = nothing,
    *,
    tokens_per_batch: int = LOGITS_PER_BATCH,
) -> list[Float[np.ndarray, " tokens"]]:
    """Log-probability in nats of every token of each answer; arguments as in :func:`read_rows`."""
    import torch

    found: list[np.ndarray] = [np.zeros(0, np.float32) for _ in prompts]
    for batch, outcome in _passes(subject, prompts, answers, edits, tokens_per_batch, keep=None):
        for row, index in enumerate(batch):
            first, answer = len(prompts[index]) - 1, torch.tensor(list(answers[index]), device=subject.device)
            scores = torch.log_softmax(outcome.logits[row, first : first + len(answer)], dim=-1)
            found[index] = scores.gather(-1, answer[:, None].long())[:, 0].cpu().numpy()
    return found


def next_log_probs(
    subject: Subject,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    edits: Edits = nothing,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Float[np.ndarray, "texts vocabulary"]:
    """Log-probabilities in nats of what follows each answer so far; arguments as in :func:`read_rows`."""
    import torch

    last = [len(prompt) + len(answer) - 1 for prompt, answer in zip(prompts, answers, strict=True)]

    def ends(batch: Sequence[int]) -> list[int]:
        # Rows of a batch are about as long as each other, so these are few.
        return sorted({last[index] for index in batch})

    found: list[np.ndarray] = [np.zeros(0, np.float32) for _ in prompts]
    for batch, outcome in _passes(subject, prompts, answers, edits, tokens_per_batch, keep=ends):
        kept = ends(batch)
        for row, index in enumerate(batch):
            scores = outcome.logits[row, kept.index(last[index])]
            found[index] = torch.log_softmax(scores, dim=-1).cpu().numpy()
    return np.stack(found)


def _passes(
    subject: Subject,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    edits: Edits,
    tokens_per_batch: int,
    *,
    keep: int | Callable[[Sequence[int]], Sequence[int]] | None,
    read: Sequence[int] = (),
) -> Iterator[tuple[list[int], Outcome]]:
    """Whole texts of similar length together, padded on the right, where padding reaches nothing before it."""
    wholes = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    for batch in plan_batches([len(whole) for whole in wholes], tokens_per_batch):
        done = edits([prompts[index] for index in batch], [answers[index] for index in batch])
        tokens = pad([wholes[index] for index in batch], subject.device)
        kept = keep(batch) if callable(keep) else keep
        yield batch, PartialForward(subject, 0).run(tokens, None, done, keep=kept, read=read)

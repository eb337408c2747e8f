"""Rules that change the residual stream while a model answers; its weights stay.

Every rule works from the last token of the prompt on, the position from which the first token of the answer is drawn.
The same rule serves sampling, in batches and row by row, and reading an answer again from its tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from affectlens.model import steering
from affectlens.model.steering import Edit, Span
from affectlens.monitor.config import StatisticConfig
from affectlens.monitor.statistics import Stream, follow
from affectlens.shaping.reading import Tokens, read_rows

if TYPE_CHECKING:
    from torch import Tensor

    from affectlens.model.subject import Subject

NEVER = np.iinfo(np.int64).max
"""The row of an alarm that is not raised."""
Vector = Float[np.ndarray, "d_model"]


class Rule(Protocol):
    """What is done while the model answers. Row 0 of an answer is the last token of its prompt."""

    def sampling(self, prompts: Sequence[Tokens], prefixes: Sequence[Tokens]) -> list[Edit]:
        """Edits of one batch that is about to be continued behind prompts and the openings of the answers."""
        ...

    def reading(self, subject: Subject, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Edit]:
        """Edits of one batch of whole texts, padded on the right."""
        ...


@dataclass(frozen=True)
class Push:
    """A vector that is added.

    Attributes:
        layer: after which block.
        vector: what is added, at full length: minus a direction takes it away.
        first: from this row of the answer on; row 0 is the last token of the prompt.
        last: up to this row, which is left alone; without end by default. With an end it is a burst.
    """

    layer: int
    vector: Vector
    first: int = 0
    last: int | None = None

    def sampling(self, prompts: Sequence[Tokens], prefixes: Sequence[Tokens]) -> list[Edit]:
        return self.from_rows(prompts, np.full(len(prompts), self.first))

    def reading(self, subject: Subject, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Edit]:
        return self.sampling(prompts, answers)

    def from_rows(self, prompts: Sequence[Tokens], rows: Int[np.ndarray, " texts"]) -> list[Edit]:
        """The push from a row of its own on in each text, ``NEVER`` for none."""
        import torch

        vector = torch.as_tensor(np.asarray(self.vector, np.float32)).expand(len(prompts), -1)
        delta = partial(steering.add, direction=vector, strength=torch.ones(len(prompts)), unit=1.0)
        return [Edit(self.layer, delta, span=_span(prompts, rows, self.last))]


@dataclass(frozen=True)
class Cap:
    """Only what the projection has past a limit is taken off; what lies below it stays bit for bit.

    Attributes:
        layer: after which block.
        direction: unit vector whose projection is held.
        limit: of the projection, in units of the residual stream.
        along: the amount is taken off along this unit vector instead: a twin of the same size, token by token.
    """

    layer: int
    direction: Vector
    limit: float
    along: Vector | None = None

    def sampling(self, prompts: Sequence[Tokens], prefixes: Sequence[Tokens]) -> list[Edit]:
        import torch

        def rows(vector: Vector) -> Tensor:
            return torch.as_tensor(np.asarray(vector, np.float32)).expand(len(prompts), -1)

        delta = partial(
            steering.move_to,
            direction=rows(self.direction),
            centre=torch.zeros(len(self.direction)),
            target=torch.full((len(prompts),), self.limit),
            strength=torch.ones(len(prompts)),
            along=None if self.along is None else rows(self.along),
            at_most=True,
        )
        return [Edit(self.layer, delta, span=_span(prompts, np.zeros(len(prompts), np.int64)))]

    def reading(self, subject: Subject, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Edit]:
        return self.sampling(prompts, answers)


@dataclass(frozen=True)
class Alarm:
    """A push that sets in where a running score alarms: the mean of the last tokens' distress.

    The score is read at the layer of the push, before it. What is added there reaches only higher blocks, so the score
    of given tokens is the same with the push and without.

    Attributes:
        push: what is added from the alarm on.
        direction: unit vector whose projection is the score.
        mean: of the projection over benign tokens.
        deviation: its standard deviation there.
        threshold: of the rolling mean of the standardised score.
        window: tokens of the rolling mean.
    """

    push: Push
    direction: Vector
    mean: float
    deviation: float
    threshold: float
    window: int = 16

    @property
    def statistic(self) -> StatisticConfig:
        """As the monitor follows it."""
        return StatisticConfig(kind="rolling", window=self.window)

    def scores(self, states: Float[np.ndarray, "*rows d_model"]) -> Float[np.ndarray, "*rows"]:
        """Of residuals of the push's layer, in standard deviations of benign tokens."""
        return (states.astype(np.float32) @ self.direction.astype(np.float32) - self.mean) / self.deviation

    def onsets(self, scores: Sequence[Float[np.ndarray, " rows"]]) -> Int[np.ndarray, " texts"]:
        """The row at which each answer alarms; ``NEVER`` where it does not.

        Args:
            scores: along each answer from row 0 on.
        """
        lengths = np.array([len(each) for each in scores])
        padded = np.zeros((len(scores), int(lengths.max()), 1))
        for index, each in enumerate(scores):
            padded[index, : len(each), 0] = each
        with np.errstate(invalid="ignore"):
            above = follow(self.statistic, padded, lengths)[:, :, 0] > self.threshold
        return np.where(above.any(axis=1), above.argmax(axis=1), NEVER)

    def sampling(self, prompts: Sequence[Tokens], prefixes: Sequence[Tokens]) -> list[Edit]:
        return [Edit(self.push.layer, _Listening(self, [len(prefix) for prefix in prefixes]))]

    def reading(self, subject: Subject, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Edit]:
        layer = self.push.layer
        read = read_rows(subject, prompts, answers, [layer])
        return self.push.from_rows(prompts, self.onsets([self.scores(each[layer]) for each in read]))


class _Listening:
    """The edit of an alarm while answers are sampled: it hears every pass and remembers who has alarmed."""

    def __init__(self, rule: Alarm, prefixes: Sequence[int]) -> None:
        import torch

        self.rule, self.prefixes = rule, prefixes
        self.direction = torch.as_tensor(np.asarray(rule.direction, np.float32))
        self.vector = torch.as_tensor(np.asarray(rule.push.vector, np.float32))
        self.heard: list[np.ndarray] = []  # scores of each row in the pass over the prompts
        self.streams: list[Stream] = []  # of each row, one line a sample
        self.sounded = np.zeros((0, 0), bool)

    def __call__(self, residual: Float[Tensor, "rows columns d_model"]) -> Float[Tensor, "rows columns d_model"]:
        scores = (residual.float() @ self.direction.to(residual.device)).cpu().numpy().astype(np.float64)
        scores = (scores - self.rule.mean) / self.rule.deviation
        pushed = self._after(scores) if self.heard else self._begin(scores)
        return self._delta(pushed, residual)

    def _begin(self, scores: Float[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
        """The pass over the prompts, which stand flush right: the last column is the last token that is given."""
        pushed = np.zeros(scores.shape, bool)
        for row, prefix in enumerate(self.prefixes):
            self.heard.append(scores[row, scores.shape[1] - prefix - 1 :])
            stream, sounded = Stream(self.rule.statistic, (1, 1)), False
            for place, score in enumerate(self.heard[row]):
                sounded |= bool(stream.step(np.full((1, 1), score))[0, 0] > self.rule.threshold)
                pushed[row, scores.shape[1] - prefix - 1 + place] = sounded
            self.streams.append(stream)
        self.sounded = pushed[:, -1:]
        return pushed

    def _after(self, scores: Float[np.ndarray, "rows samples"]) -> Bool[np.ndarray, "rows samples"]:
        """A later pass: one token of every sample."""
        rows, samples = scores.shape
        if samples > self.sounded.shape[1]:  # the samples of a row share what was given
            self.sounded = np.repeat(self.sounded, samples, axis=1)
            self.streams = [Stream(self.rule.statistic, (samples, 1)) for _ in range(rows)]
            for stream, heard in zip(self.streams, self.heard, strict=True):
                for score in heard:
                    stream.step(np.full((samples, 1), score))
        values = np.stack([stream.step(own[:, None])[:, 0] for stream, own in zip(self.streams, scores, strict=True)])
        self.sounded = self.sounded | (values > self.rule.threshold)
        return self.sounded

    def _delta(self, pushed: Bool[np.ndarray, "rows columns"], residual: Tensor) -> Tensor:
        import torch

        where = torch.as_tensor(pushed, device=residual.device)
        return where[:, :, None] * self.vector.to(residual.device)


@dataclass(frozen=True)
class RandomAlarm:
    """The twin of an alarm: the same push from a random token on, as often and as late as the alarm sounds.

    Attributes:
        push: what is added.
        onsets: rows at which the alarm sounded in answers of the unchanged model under stress, ``NEVER`` for those
            without; each answer gets one of them by lot.
        seed: of the lots; an answer's own goes by its prompt too.
    """

    push: Push
    onsets: tuple[int, ...]
    seed: int = 0

    def drawn(self, prompts: Sequence[Tokens]) -> Int[np.ndarray, " texts"]:
        """The row of each prompt: the same whatever batch it stands in."""
        found = []
        for prompt in prompts:
            text = " ".join(map(str, prompt)).encode()
            entropy = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
            found.append(self.onsets[int(np.random.default_rng([self.seed, entropy]).integers(len(self.onsets)))])
        return np.array(found, dtype=np.int64)

    def sampling(self, prompts: Sequence[Tokens], prefixes: Sequence[Tokens]) -> list[Edit]:
        return self.push.from_rows(prompts, self.drawn(prompts))

    def reading(self, subject: Subject, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Edit]:
        return self.sampling(prompts, answers)


def _span(prompts: Sequence[Tokens], rows: Int[np.ndarray, " texts"], last: int | None = None) -> Span:
    """From a row of each answer on, up to ``last``."""
    import torch

    never, before = torch.iinfo(torch.long).max, np.array([len(prompt) - 1 for prompt in prompts])
    start = torch.tensor([never if row == NEVER else int(at + row) for at, row in zip(before, rows, strict=True)])
    end = torch.full_like(start, never) if last is None else torch.tensor([int(at + last) for at in before])
    return Span(start, end)

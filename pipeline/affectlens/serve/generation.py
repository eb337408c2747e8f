"""What is asked of an engine and what it tells: a job, its events, and an answer while it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.errors import UserError
from affectlens.model.steering import Edit
from affectlens.monitor.watching import Seen, Watch
from affectlens.use.texts import Pieces

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        prompt: token ids, begin token included; not empty.
        kept: indices into ``prompt`` of the tokens that are text, for readings of the prompt.
        edits: what is done at every token; for a batch of one row.
        most: tokens of an answer, at most; 0 reads the prompt alone.
        samples: answers.
        temperature: 0 takes the likeliest token.
        top_p: only the likeliest tokens that hold this share of the probability are drawn.
        seed: of the draws; None draws one.
        stop: strings that end an answer; they are not part of its text.
        logprobs: so many likeliest tokens with log-probabilities at every token; None for no log-probabilities at all.
        echo: log-probabilities of the prompt's tokens, too.
        rows: indices of the readings that are wanted at every token; behind the last comes the SAE's first feature.
        read_prompt: those of the prompt, too.
        watch: begins a monitor's stream, for each answer one.
    """

    prompt: tuple[int, ...]
    kept: tuple[int, ...] = ()
    edits: Sequence[Edit] = ()
    most: int = 16
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    rows: tuple[int, ...] = ()
    read_prompt: bool = False
    watch: Callable[[], Watch] | None = None


Scored = tuple[float, tuple[tuple[int, float], ...]]
"""A token's log-probability, and the likeliest tokens at its place with theirs."""


@dataclass(frozen=True)
class Prompt:
    """The prompt has been read.

    Attributes:
        scores: of every token behind the first, if they were asked for.
        values: of the rows that were asked for, at every text token.
    """

    scores: tuple[Scored, ...] | None
    values: Float[np.ndarray, "tokens rows"] | None


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        sample: of which answer.
        id: the token.
        piece: how it is spelled; empty where it ends within a character.
        text: what the answer's text gains, which may come a few tokens later where a stop string may have begun.
        score: if log-probabilities were asked for.
        values: the readings at this token. They are those of the text, before anything is added at it.
        seen: what a monitor says at this token; before the first also what it said at the end of the prompt.
    """

    sample: int
    id: int
    piece: str
    text: str
    score: Scored | None
    values: Float[np.ndarray, "rows"] | None
    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True)
class End:
    """An answer has ended: ``stop`` or ``length``; ``text`` is what had been held back."""

    sample: int
    reason: str
    text: str


@dataclass(frozen=True)
class Failure:
    """The generation could not go on."""

    error: BaseException


Event = Prompt | Token | End | Failure


@dataclass
class Answer:
    """A finished answer: what its events add up to."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    reason: str = ""

    def add(self, event: Token | End) -> None:
        self.text += event.text
        if isinstance(event, Token):
            self.tokens.append(event)
        else:
            self.reason = event.reason


class Generation:
    """A job under way; :meth:`cancel` ends it at the next step."""

    def __init__(self, job: Job, sink: Callable[[Event], object]) -> None:
        self.job, self.sink = job, sink
        self.cancelled = False

    def cancel(self) -> None:
        """Nothing more is wanted."""
        self.cancelled = True

    def tell(self, event: Event) -> None:
        """Hand an event over; whoever cannot take it has gone away."""
        if not self.cancelled:
            try:
                self.sink(event)
            except Exception:
                self.cancelled = True


class Row:
    """One answer while it is made: its text, what of it may be told, and why it ends."""

    def __init__(self, generation: Generation, sample: int, tokenizer: Any, seed: Sequence[int]) -> None:
        self.generation, self.job, self.sample = generation, generation.job, sample
        self.draws = np.random.default_rng(seed)
        self.pieces = Pieces(tokenizer)
        self.text, self.released, self.count = "", 0, 0
        self.last = -1
        self.pending: Token | None = None
        """A token that waits for its readings."""
        self.reason = ""
        self._watch = self.job.watch() if self.job.watch else None
        self._seen: list[Seen] = []

    def take(self, token: int, score: Scored | None) -> None:
        """One more token, told of at once unless its state is wanted."""
        piece = self.pieces.add(token)
        self.text += piece
        self.count += 1
        self.last = token
        text = self._release()
        if not self.reason and self.count == self.job.most:
            self.reason = "length"
        made = Token(self.sample, token, piece, text, score, None)
        if self.job.rows or self._watch is not None:
            self.pending = made
        else:
            self.generation.tell(made)

    def watched(self, state: Any) -> None:
        """The state at the end of the prompt, or at the last token, for the monitor."""
        if self._watch is None:
            return
        try:
            self._seen.append(self._watch.feed(state))
        except UserError as error:  # a state without a finite number: this answer ends, those beside it go on
            self.generation.tell(Failure(error))
            self.generation.cancel()

    def read(self, values: Float[np.ndarray, "rows"] | None) -> None:
        """The readings at the token that waits for them."""
        if self.pending is not None:
            self.generation.tell(replace(self.pending, values=values, seen=tuple(self._seen)))
            self.pending, self._seen = None, []

    def end(self) -> None:
        """All is said."""
        self.generation.tell(End(self.sample, self.reason, self.text[self.released :]))

    def _release(self) -> str:
        """Text that no stop string can take back any more; notes where one has been said."""
        stops = self.job.stop
        found = [at for stop in stops if (at := self.text.find(stop, max(0, self.released - len(stop)))) >= 0]
        if found:
            self.reason, self.text = "stop", self.text[: min(found)]
        held = 0
        if not self.reason:
            longest = min(max(map(len, stops), default=1) - 1, len(self.text) - self.released)
            held = next((n for n in range(longest, 0, -1) if any(s.startswith(self.text[-n:]) for s in stops)), 0)
        start, self.released = self.released, max(self.released, len(self.text) - held)
        return self.text[start : self.released]

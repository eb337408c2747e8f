"""One model, many generations: a thread that decodes all of them together, each under its own steering.

A generation joins the running ones at the next step and leaves when it ends or its client goes away. What it says
depends on its own job and seed alone, beyond rounding: not on who else is served, nor on whether it is streamed.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.model.decoding import Decoder, Rows
from affectlens.model.sampling import choose
from affectlens.model.steering import Edit
from affectlens.use.readings import Readings
from affectlens.use.texts import Pieces

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

log = logging.getLogger(__name__)


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
        rows: indices of the readings that are wanted at every token.
        read_prompt: those of the prompt, too.
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
    """

    sample: int
    id: int
    piece: str
    text: str
    score: Scored | None
    values: Float[np.ndarray, "rows"] | None


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


class Full(Exception):
    """As many generations wait as may."""


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


class _Row:
    """One answer while it is made."""

    def __init__(self, generation: Generation, sample: int, tokenizer: Any, seed: Sequence[int]) -> None:
        self.generation, self.job, self.sample = generation, generation.job, sample
        self.draws = np.random.default_rng(seed)
        self.pieces = Pieces(tokenizer)
        self.text, self.released, self.count = "", 0, 0
        self.last = -1
        self.pending: Token | None = None
        """A token that waits for its readings."""
        self.reason = ""

    def take(self, token: int, score: Scored | None) -> None:
        """One more token, told of at once unless its readings are wanted."""
        piece = self.pieces.add(token)
        self.text += piece
        self.count += 1
        self.last = token
        text = self._release()
        if not self.reason and self.count == self.job.most:
            self.reason = "length"
        made = Token(self.sample, token, piece, text, score, None)
        if self.job.rows:
            self.pending = made
        else:
            self.generation.tell(made)

    def read(self, values: Float[np.ndarray, "rows"]) -> None:
        """The readings at the token that waits for them."""
        if self.pending is not None:
            known = self.pending
            self.generation.tell(Token(known.sample, known.id, known.piece, known.text, known.score, values))
            self.pending = None

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


class Engine:
    """Decodes in a thread of its own.

    Args:
        decoder: the model.
        readings: what tokens may be read for.
        rows: answers that are decoded at once, at most.
        waiting: generations that may wait for their turn.
    """

    def __init__(self, decoder: Decoder, readings: Readings, *, rows: int = 16, waiting: int = 64) -> None:
        self.decoder, self.readings = decoder, readings
        self.most_rows, self.most_waiting = rows, waiting
        self.ending = frozenset(decoder.tokenizer.all_special_ids)
        self.tokens = 0
        self._kept = Rows(decoder, readings.layer)
        self._rows: list[_Row] = []
        self._waiting: deque[Generation] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def submit(self, job: Job, sink: Callable[[Event], object]) -> Generation:
        """Begin a generation; its events go to ``sink``, in the engine's thread.

        Raises:
            ValueError: it cannot be done: no prompt, too long for the model, more answers than rows.
            Full: too many wait.
        """
        self.check(job)
        generation = Generation(job, sink)
        with self._wake:
            self._waiting = deque(each for each in self._waiting if not each.cancelled)
            if self._closed or len(self._waiting) >= self.most_waiting:
                raise Full
            self._waiting.append(generation)
            self._wake.notify()
        return generation

    def check(self, job: Job) -> None:
        """Refuse what cannot be done.

        Raises:
            ValueError: as :meth:`submit`.
        """
        if not job.prompt:
            raise ValueError("the prompt is empty")
        if not 0 < job.samples <= self.most_rows:
            raise ValueError(f"{job.samples} answers: at most {self.most_rows} are made at once")
        context = self.decoder.context
        if context is not None and len(job.prompt) + job.most > context:
            raise ValueError(
                f"{len(job.prompt)} tokens of prompt and {job.most} of answer: the model takes {context} together"
            )

    def events(self, job: Job) -> Iterator[Event]:
        """A generation's events one by one, for programs without a loop of their own; leaving early cancels it.

        Raises:
            ValueError: as :meth:`submit`.
        """
        told: queue.SimpleQueue[Event] = queue.SimpleQueue()
        generation = self.submit(job, told.put)
        try:
            ends = 0
            while ends < max(1, job.samples):
                event = told.get()
                if isinstance(event, Failure):
                    raise event.error
                ends += isinstance(event, End)
                yield event
        finally:
            generation.cancel()

    def close(self) -> None:
        """End everything."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    @property
    def load(self) -> dict[str, int]:
        """Answers under way, generations waiting, and tokens made so far."""
        return {"running": len(self._rows), "waiting": len(self._waiting), "tokens": self.tokens}

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._rows or self._closed):
                    self._wake.wait()
                if self._closed:
                    ended = [*self._waiting, *{row.generation for row in self._rows}]
                    break
                fresh = self._admitted()
            for generation in fresh:
                self._guarded([generation], self._begin, generation)
            self._leave()
            if self._rows:
                self._guarded([row.generation for row in self._rows], self._step)
        for generation in ended:
            generation.tell(Failure(RuntimeError("the server is closing")))

    def _admitted(self) -> list[Generation]:
        """Those that wait and for which there is room, first come first served."""
        free, fresh = self.most_rows - len(self._rows), []
        while self._waiting and (self._waiting[0].cancelled or self._waiting[0].job.samples <= free):
            generation = self._waiting.popleft()
            if not generation.cancelled:
                free -= generation.job.samples
                fresh.append(generation)
        return fresh

    def _guarded(self, concerned: Sequence[Generation], work: Callable[..., None], *arguments: Any) -> None:
        """Do the work; what it raises ends those whom it concerns, and nobody else."""
        try:
            work(*arguments)
        except Exception as error:  # the thread serves everybody: it has to live on
            log.error("a generation failed", exc_info=error)
            broken = len(self._kept.lengths) != len(self._rows)  # keys and values of the others are lost with it
            for generation in [*concerned, *(row.generation for row in self._rows if broken)]:
                generation.tell(Failure(error))
                generation.cancel()
            if broken:
                self._kept, self._rows = Rows(self.decoder, self.readings.layer), []
            self._leave()

    def _begin(self, generation: Generation) -> None:
        """Read a prompt, and begin its answers."""
        job, first = generation.job, len(self._rows)
        copies = job.samples if job.most else 0
        logits, states = self._kept.join(job.prompt, job.edits, copies=copies, last=not job.echo)
        entropy = np.random.SeedSequence().entropy if job.seed is None else job.seed
        seeds = [[abs(int(entropy)), int(entropy < 0), sample] for sample in range(job.samples)]  # pyright: ignore
        rows = [_Row(generation, sample, self.decoder.tokenizer, seeds[sample]) for sample in range(job.samples)]
        self._rows += rows[:copies]
        scores = None
        if job.echo:
            pairs = zip(logits, job.prompt[1:], strict=False)
            scores = tuple(scored(row, token, job.logprobs or 0) for row, token in pairs)
        values = None
        if job.read_prompt and job.rows:
            values = self.readings.values(states[list(job.kept)])[:, list(job.rows)]
        generation.tell(Prompt(scores, values))
        for row in rows:
            if not job.most:
                row.reason = "length"
                row.end()
            else:
                self._sample(row, logits[-1])
        assert len(self._rows) == first + copies

    def _step(self) -> None:
        """One token further in every row."""
        logits, states = self._kept.step([row.last for row in self._rows])
        wanted = [place for place, row in enumerate(self._rows) if row.pending is not None]
        values = self.readings.values(states[wanted]) if wanted else None
        for place, row in enumerate(self._rows):
            if row.pending is not None and values is not None:
                row.read(values[wanted.index(place)][list(row.job.rows)])
            if row.reason:
                row.end()
            else:
                self._sample(row, logits[place])

    def _sample(self, row: _Row, logits: Float[Tensor, "vocabulary"]) -> None:
        """Draw the next token of a row."""
        import torch

        job = row.job
        chance = torch.tensor([row.draws.random()], dtype=torch.float64, device=logits.device)
        token = int(choose(nucleus(logits, job.temperature, job.top_p)[None], chance, job.temperature))
        if token in self.ending:
            row.reason = "stop"
        else:
            self.tokens += 1
            row.take(token, None if job.logprobs is None else scored(logits, token, job.logprobs))
        if row.reason and row.pending is None:
            row.end()

    def _leave(self) -> None:
        """Let those rows go that have ended and wait for nothing."""
        going = [
            place
            for place, row in enumerate(self._rows)
            if not row.generation.cancelled and (not row.reason or row.pending is not None)
        ]
        self._kept.keep(going)
        self._rows = [self._rows[place] for place in going]


def scored(logits: Float[Tensor, "vocabulary"], token: int, count: int) -> Scored:
    """The log-probability of a token under the model as it is steered, before temperature, and the likeliest ones."""
    import torch

    values = torch.log_softmax(logits, dim=-1)
    best = values.topk(min(count, len(values)))
    return float(values[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def nucleus(logits: Float[Tensor, "vocabulary"], temperature: float, share: float) -> Float[Tensor, "vocabulary"]:
    """The logits, minus infinity outside the likeliest tokens that together hold this share (Holtzman et al. 2020)."""
    import torch

    if share >= 1 or temperature == 0:
        return logits
    ordered, places = torch.softmax(logits / temperature, dim=-1).sort(descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= share  # what stands before a token holds the share already
    outside[0] = False
    return logits.index_fill(0, places[outside], -torch.inf)

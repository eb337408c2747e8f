"""One model, many generations: a thread that decodes all of them together, each under its own steering.

A generation joins the running ones at the next step and leaves when it ends or its client goes away. What it says
depends on its own job and seed alone, beyond rounding: not on who else is served, nor on whether it is streamed.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from affectlens.model.decoding import Decoder, Opening, Rows
from affectlens.model.sampling import choose
from affectlens.model.tokens import plan_batches
from affectlens.serve.generation import End, Event, Failure, Generation, Job, Prompt, Row, Scored
from affectlens.use.readings import Readings

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from affectlens.sae.model import Dictionary

log = logging.getLogger(__name__)
PROMPT_TOKENS = 2048
"""Of prompts that are read at once, padding included, unless one alone is longer."""
SCORED_TOKENS = 512
"""Likewise of prompts whose tokens are all scored, each over the whole vocabulary."""
NARROW = 32
"""Prompts up to this length are padded to each other; longer ones at most to twice their length."""


class Full(Exception):
    """As many generations wait as may."""


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
        self.sae: Dictionary | None = None
        """Whose features may be read, too; set before a job asks for one."""
        self._kept = Rows(decoder, readings.layer)
        self._rows: list[Row] = []
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
            for group in _read_together([generation.job for generation in fresh]):
                self._guarded([fresh[place] for place in group], self._begin)
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

    def _guarded(self, concerned: Sequence[Generation], work: Callable[[Sequence[Generation]], None]) -> None:
        """Do the work; what it raises ends those whom it concerns, and nobody else."""
        before = len(self._rows)
        try:
            work(concerned)
        except Exception as error:  # the thread serves everybody: it has to live on
            broken = len(self._kept.lengths) != len(self._rows)  # keys and values of the others are lost with it
            if work == self._begin and len(concerned) > 1 and not broken and len(self._rows) == before:
                for generation in concerned:  # whose fault it is shows when each is read alone
                    self._guarded([generation], work)
                return
            log.error("a generation failed", exc_info=error)
            for generation in [*concerned, *(row.generation for row in self._rows if broken)]:
                generation.tell(Failure(error))
                generation.cancel()
            if broken:
                self._kept, self._rows = Rows(self.decoder, self.readings.layer), []
            self._leave()

    def _begin(self, generations: Sequence[Generation]) -> None:
        """Read prompts, and begin their answers."""
        jobs = [generation.job for generation in generations]
        read = self._kept.join([
            Opening(job.prompt, job.edits, copies=job.samples if job.most else 0, last=not job.echo) for job in jobs
        ])  # fmt: skip
        begun: list[Row] = []
        for generation, job in zip(generations, jobs, strict=True):
            entropy = np.random.SeedSequence().entropy if job.seed is None else job.seed
            seeds = [[abs(int(entropy)), int(entropy < 0), sample] for sample in range(job.samples)]  # pyright: ignore
            begun += [Row(generation, sample, self.decoder.tokenizer, seed) for sample, seed in enumerate(seeds)]
        self._rows += [row for row in begun if row.job.most]
        ends = {id(generation): states[-1] for generation, (_, states) in zip(generations, read, strict=True)}
        for row in begun:
            row.watched(ends[id(row.generation)])
        told = []
        for job, (logits, states) in zip(jobs, read, strict=True):
            scores = tuple(scored(logits[:-1], job.prompt[1:], job.logprobs or 0)) if job.echo else None
            values = None
            if job.read_prompt and job.rows:
                values = self._values(states[list(job.kept)], job.rows)[:, list(job.rows)]
            told.append(Prompt(scores, values))
        for generation, event in zip(generations, told, strict=True):
            generation.tell(event)
        last = {id(generation): logits[-1] for generation, (logits, _) in zip(generations, read, strict=True)}
        sampled = [row for row in begun if row.job.most]
        for row in begun:
            if not row.job.most:
                row.reason = "length"
                row.end()
        self._sample(sampled, [last[id(row.generation)] for row in sampled])

    def _step(self, generations: Sequence[Generation]) -> None:
        """One token further in every row; where all have said their last token, only its readings are wanted."""
        said = [row.last for row in self._rows]
        logits, states = (None, self._kept.finish(said)) if self._all_said else self._kept.step(said)
        wanted = [place for place, row in enumerate(self._rows) if row.pending is not None]
        asked = {number for place in wanted for number in self._rows[place].job.rows}
        values = self._values(states[wanted], asked) if asked else np.zeros((len(wanted), 0))
        for place, found in zip(wanted, values, strict=True):
            row = self._rows[place]
            row.watched(states[place])
            row.read(found[list(row.job.rows)] if row.job.rows else None)
        going = [place for place, row in enumerate(self._rows) if not row.reason]
        for row in self._rows:
            if row.reason:
                row.end()
        if logits is None:
            self._rows = []
        else:
            self._sample([self._rows[place] for place in going], [logits[place] for place in going])

    @property
    def _all_said(self) -> bool:
        return all(row.reason for row in self._rows)

    def _values(
        self, states: Float[Tensor, "tokens d_model"], asked: Collection[int]
    ) -> Float[np.ndarray, "tokens rows"]:
        """All readings; those of features, which come behind the others, only where one is asked for."""
        values = self.readings.values(states)
        if self.sae is None or max(asked, default=0) < values.shape[1]:
            return values
        return np.concatenate([values, self.sae.encode(states.float().cpu().numpy())], axis=1)

    def _sample(self, rows: Sequence[Row], logits: Sequence[Float[Tensor, "vocabulary"]]) -> None:
        """Draw the next token of every row."""
        import torch

        kinds: dict[tuple[float, float], list[int]] = {}
        for place, row in enumerate(rows):
            kinds.setdefault((row.job.temperature, row.job.top_p), []).append(place)
        tokens = [0] * len(rows)
        for (temperature, share), places in kinds.items():  # rows that are drawn alike are drawn at once
            scores = torch.stack([logits[place] for place in places])
            chances = [rows[place].draws.random() for place in places]
            drawn = choose(
                nucleus(scores, temperature, share),
                torch.tensor(chances, dtype=torch.float64, device=scores.device), temperature,
            )  # fmt: skip
            for place, token in zip(places, drawn.tolist(), strict=True):
                tokens[place] = token
        for row, token, mine in zip(rows, tokens, logits, strict=True):
            if token in self.ending:
                row.reason = "stop"
            else:
                self.tokens += 1
                score = None if row.job.logprobs is None else scored(mine[None], [token], row.job.logprobs)[0]
                row.take(token, score)
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


def _read_together(jobs: Sequence[Job]) -> list[list[int]]:
    """Which prompts are read as one batch: little is padded, and prompts whose every token is scored keep apart."""
    batches = []
    for echo, most in ((False, PROMPT_TOKENS), (True, SCORED_TOKENS)):
        mine = [place for place, job in enumerate(jobs) if job.echo == echo]
        for batch in plan_batches([len(jobs[place].prompt) for place in mine], most):
            group: list[int] = []
            for place in (mine[index] for index in batch):  # the shortest first
                if group and len(jobs[place].prompt) > max(NARROW, 2 * len(jobs[group[0]].prompt)):
                    batches.append(group)
                    group = []
                group.append(place)
            batches.append(group)
    return batches


def scored(logits: Float[Tensor, "tokens vocabulary"], tokens: Sequence[int], count: int) -> list[Scored]:
    """Log-probabilities of tokens under the model as it is steered, before temperature, and the likeliest ones."""
    import torch

    values = torch.log_softmax(logits, dim=-1)
    best = values.topk(min(count, values.shape[-1]), dim=-1)
    own = values.gather(-1, torch.tensor(list(tokens), dtype=torch.long, device=values.device)[:, None])[:, 0]
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(value, tuple(zip(*each, strict=True))) for value, each in zip(own.tolist(), likeliest, strict=True)]


def nucleus(
    logits: Float[Tensor, "*rows vocabulary"], temperature: float, share: float
) -> Float[Tensor, "*rows vocabulary"]:
    """The logits, minus infinity outside the likeliest tokens that together hold this share (Holtzman et al. 2020)."""
    import torch

    if share >= 1 or temperature == 0:
        return logits
    ordered, places = torch.softmax(logits / temperature, dim=-1).sort(descending=True, dim=-1)
    outside = ordered.cumsum(dim=-1) - ordered >= share  # what stands before a token holds the share already
    outside[..., 0] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, places, outside), -torch.inf)

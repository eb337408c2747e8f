"""Text sampled under interventions: many rows at once, each with its own prompt, edits and draws.

What a row says depends on its own prompt, edits and draws alone: not on the batch, nor on padding, nor on whether keys
and values are cached. Equal draws in two rows make their difference the edits' doing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from einops import rearrange

from affectlens.model.decoding import Decoder, changing, reading, skipping
from affectlens.model.partial import Outcome, PartialForward
from affectlens.model.steering import Edit, Passes
from affectlens.model.subject import Subject
from affectlens.model.tokens import encode_following, pad, plan_batches

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

Special = Literal["end", "never"]
LEAVE = 0.75
"""Of the rows under way; when fewer texts go on, the others leave."""
RUN = 256
"""Tokens whose chances are summed together before one of them is looked for."""


@dataclass
class Completion:
    """A sampled text.

    Attributes:
        tokens: what was sampled, without the special token that ended it.
        state: sum of the residuals at the layer that was read, over the positions from which tokens were predicted,
            the one of the ending included; None if none was read.
        positions: how many these are.
    """

    tokens: list[int] = field(default_factory=list)
    state: Float[np.ndarray, "d_model"] | None = None
    positions: int = 0


@dataclass(frozen=True)
class Step:
    """One token of every text that is still going on.

    Attributes:
        entries: (row, sample) of each.
        tokens: sampled just now.
        ended: whether the token is special and ends the text, and so does not belong to it.
        states: the residual at the layer that is read from which each token was predicted.
    """

    entries: list[tuple[int, int]]
    tokens: list[int]
    ended: list[bool]
    states: Float[np.ndarray, "entries d_model"] | None


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
                    *before, last = encode_following(tokenizer, text)
                    banned.after.setdefault(tuple(before), set()).add(last)
        return banned

    def following(self, row: Sequence[int]) -> set[int]:
        """Tokens that may not come next."""
        banned = set(self.after.get((), ()))
        for length in {len(before) for before in self.after} - {0}:
            banned |= self.after.get(tuple(row[-length:]), set())
        return banned


def sample(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    chances: Float[np.ndarray, "rows samples steps"],
    edits: Sequence[Edit] = (),
    *,
    resume_at: int | None = None,
    temperature: float = 1.0,
    special: Special = "end",
    stop: Sequence[str] = (),
    banned: Banned | None = None,
    read: int | None = None,
    cached: bool = True,
) -> list[list[Completion]]:
    """Continue every row's prompt under its edits, once for each of its rows of draws.

    Args:
        prompts: token ids of each row, begin token included (``subject.led``), or one prompt for all rows. Prompts of
            different length are padded on the left and masked.
        chances: uniform draws in [0, 1), one a token; the token at that place of the cumulative distribution is taken.
            The last axis bounds the length of a text.
        edits: rows in the order of ``chances``; spans count from the first token of the row's own prompt.
        resume_at: no edit lies below this layer, so equal prompts are read up to it once for all rows.
        temperature: 0 takes the likeliest token.
        special: a special token ends a text, or is never sampled.
        stop: strings that end a text; they stay in it.
        banned: what may not be said.
        read: the layer whose residual stream is averaged while sampling.
        cached: keep keys and values. Without, the whole text is read at every step: slow, for checking.

    Returns:
        Row by row, one completion a sample.
    """
    import numpy as np

    rows, samples, _ = chances.shape
    made = [[Completion() for _ in range(samples)] for _ in range(rows)]
    steps = stream(
        subject, prompts, chances, edits, resume_at=resume_at, temperature=temperature, special=special, stop=stop,
        banned=banned, read=read, cached=cached,
    )  # fmt: skip
    for step in steps:
        for number, ((row, number_of_sample), token) in enumerate(zip(step.entries, step.tokens, strict=True)):
            completion = made[row][number_of_sample]
            completion.positions += 1
            if step.states is not None:
                before = np.zeros(subject.width) if completion.state is None else completion.state
                completion.state = before + step.states[number]
            if not step.ended[number]:
                completion.tokens.append(token)
    return made


def stream(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    chances: Float[np.ndarray, "rows samples steps"],
    edits: Sequence[Edit] = (),
    *,
    resume_at: int | None = None,
    temperature: float = 1.0,
    special: Special = "end",
    stop: Sequence[str] = (),
    banned: Banned | None = None,
    read: int | None = None,
    cached: bool = True,
) -> Iterator[Step]:
    """What :func:`sample` collects, token by token; its arguments. Texts that have ended leave the batch."""
    import torch

    rows, samples, steps = chances.shape
    if len(prompts) not in (1, rows) or not all(len(prompt) for prompt in prompts):
        raise ValueError(f"{len(prompts)} prompts for {rows} rows: give one for all or one each, none of them empty")
    if not steps or not samples:
        return
    ending = frozenset(subject.tokenizer.all_special_ids)
    run = _Generation(subject, prompts, rows, samples, edits, resume_at, read, cached)
    draws = torch.tensor(rearrange(chances, "rows samples steps -> (rows samples) steps"), device=subject.device)
    texts: list[list[int]] = [[] for _ in range(rows * samples)]
    outcome, places = run.begin(), list(range(rows * samples))
    for step in range(steps):
        entries = run.entries[places]
        logits = outcome.logits[:, -1] if len(places) == len(run.entries) else outcome.logits[places, -1]
        scores = _allowed(logits, ending if special == "never" else (), texts, entries, banned)
        chosen = choose(scores, draws[entries, step], temperature)
        tokens, numbers = chosen.tolist(), entries.tolist()
        ended = [token in ending for token in tokens]
        going = []
        for place, (entry, token) in enumerate(zip(numbers, tokens, strict=True)):
            if not ended[place]:
                texts[entry].append(token)
                said = subject.tokenizer.decode(texts[entry]) if stop else ""
                if not any(string in said for string in stop):
                    going.append(place)
        states = None if read is None else outcome.residuals[read][places, -1].float().cpu().numpy()
        yield Step([divmod(entry, samples) for entry in numbers], tokens, ended, states)
        if not going or step + 1 == steps:
            return
        outcome, places = run.next(chosen[going], [places[place] for place in going])


def _allowed(
    scores: Float[Tensor, "entries vocabulary"],
    never: Iterable[int],
    texts: Sequence[Sequence[int]],
    entries: Int[Tensor, "entries"],
    banned: Banned | None,
) -> Float[Tensor, "entries vocabulary"]:
    """The logits, minus infinity where a token may not come next."""
    refused = [token for token in never if token < scores.shape[1]]
    if not refused and banned is None:
        return scores
    scores = scores.clone()
    scores[:, refused] = -math.inf
    if banned is not None:
        for row, entry in zip(scores, entries.tolist(), strict=True):
            row[list(banned.following(texts[entry]))] = -math.inf
    return scores


class _Generation(Passes):
    """The passes of one call: the prompts once, then one position a step for every text that goes on.

    An *entry* is one sample of one row, numbered row by row. Edits speak of rows; all samples of a row stand beside
    each other as its columns while they are edited.

    Attributes:
        entries: those that the last outcome belongs to, in its order.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Sequence[int]],
        rows: int,
        samples: int,
        edits: Sequence[Edit],
        resume_at: int | None,
        read: int | None,
        cached: bool,
    ) -> None:
        import torch

        from affectlens.model.kv_cache import RoomyCache

        self._upper = PartialForward(subject, 0 if resume_at is None else resume_at)
        self._resumes = resume_at is not None and cached
        self._rows, self._samples, self._edits, self._cached = rows, samples, edits, cached
        self._read = () if read is None else (read,)
        device = subject.device
        unique = list(dict.fromkeys(map(tuple, prompts)))
        self._stems = pad(unique, device, left=True)
        which = [unique.index(tuple(prompt)) for prompt in prompts]
        self._which = torch.tensor(which if len(which) == rows else which * rows, device=device)
        width = self._stems.shape[1]
        padding = torch.tensor([width - len(prompt) for prompt in unique], device=device)
        # Nothing is masked where nothing is padded: the plain path of every model.
        self._padding = padding[self._which] if bool(padding.any()) else None
        self._tokens = self._stems[self._which]
        self._first = 0
        self._prompting = True
        self._decoder, self._cache = Decoder.of(subject), RoomyCache()
        self.entries = torch.arange(rows * samples, device=device)

    def begin(self) -> Outcome:
        """The prompts under their edits; the outcome is repeated for all samples of a row."""
        import torch

        from affectlens.model.kv_cache import RoomyCache

        residual, stem, width = None, None, self._tokens.shape[1]
        if self._resumes and (self._decoder.bridge is None or self._upper.resumes):
            # Everything below the edits is the same for all rows of a prompt.
            stem, layer = RoomyCache(), self._upper.layer
            alone = self._layout(self._which.new_tensor(self._first_rows))
            with torch.inference_mode(), reading(self._decoder, layer) as seen:
                self._decoder.forward(self._stems, stem, last=True, **alone)
            residual = seen[0][self._which]
        outcome = self._pass(self._tokens, residual)
        if stem is not None:
            stem.keep(self._which.tolist(), width)
            self._cache.grafted(stem, self._upper.layer)
        if self._cached and self._samples > 1:
            self._cache.keep([row for row in range(self._rows) for _ in range(self._samples)], width)
        self._prompting = False
        self._first = self._tokens.shape[1]
        self._tokens = self._tokens.repeat_interleave(self._samples, dim=0)
        repeated = {
            layer: values.repeat_interleave(self._samples, dim=0) for layer, values in outcome.residuals.items()
        }
        return Outcome(outcome.logits.repeat_interleave(self._samples, dim=0), repeated)

    @property
    def _first_rows(self) -> list[int]:
        """The first row of each different prompt."""
        which = self._which.tolist()
        return [which.index(number) for number in range(len(self._stems))]

    def next(self, chosen: Int[Tensor, "going"], going: Sequence[int]) -> tuple[Outcome, list[int]]:
        """The next position of the entries that go on.

        Args:
            chosen: their next tokens.
            going: their places in the last outcome.

        Returns:
            The outcome, and their places in it. Texts that have ended leave only when a quarter has: moving keys and
            values costs more than a few idle rows.
        """
        import torch

        places = list(going)
        if len(going) <= LEAVE * len(self.entries):
            kept = torch.tensor(going, device=chosen.device)
            if self._cached:
                self._cache.keep(going, self._tokens.shape[1])
            self.entries, self._tokens, places = self.entries[kept], self._tokens[kept], list(range(len(going)))
        column = self._tokens[:, -1:].clone()
        column[places, 0] = chosen
        self._tokens = torch.cat([self._tokens, column], dim=1)
        outcome = self._pass(column if self._cached else self._tokens, None)
        self._first += 1
        return outcome, places

    def _pass(self, tokens: Int[Tensor, "entries columns"], residual: Any) -> Outcome:
        """The prompts, or one position behind the keys and values so far; without these, whole texts by the bridge.

        Args:
            residual: after the layer at which the pass begins; None begins at the first.
        """
        import torch

        layout = self._layout(None)
        if not self._cached:
            return self._upper.run(tokens, residual, self._edits, read=self._read, passes=self, **layout)
        with torch.inference_mode(), ExitStack() as stack:
            if residual is not None:
                stack.enter_context(skipping(self._decoder, self._upper.layer, residual))
            stack.enter_context(changing(self._decoder, self._edits, self))
            seen = {layer: stack.enter_context(reading(self._decoder, layer)) for layer in self._read}
            logits = self._decoder.forward(tokens, self._cache, last=True, **layout)
        return Outcome(logits.float(), {layer: values[-1] for layer, values in seen.items()})

    def _layout(self, rows: Int[Tensor, "rows"] | None) -> dict[str, Any]:
        """Attention mask and positions of left-padded rows: those of the pass, or the given ones of the prompts."""
        import torch

        if self._padding is None:
            return {}
        if rows is not None:
            padding = self._padding[rows]
        else:
            padding = self._padding if self._prompting else self._padding[self.entries // self._samples]
        whole = torch.arange(self._stems.shape[1] if rows is not None else self._tokens.shape[1], device=padding.device)
        positions = (whole - padding[:, None]).clamp(min=0)
        shown = positions[:, self._first :] if self._cached and rows is None else positions
        return {"attention_mask": (whole >= padding[:, None]).long(), "position_ids": shown}

    def spread(self, residual: Float[Tensor, "entries columns d_model"]) -> Any:
        """Rows of the edits: all samples of a row beside each other, those that have ended as zeros."""
        import torch

        columns = residual.shape[1]
        first = 0 if not self._cached else self._first
        positions = torch.arange(first, first + columns, device=residual.device).expand(self._rows, -1)
        if self._padding is not None:
            positions = positions - self._padding[:, None]
        if self._prompting:
            return residual, positions
        whole = residual.new_zeros(self._rows * self._samples, columns, residual.shape[2])
        whole[self.entries] = residual
        beside = rearrange(whole, "(rows samples) columns d -> rows (samples columns) d", samples=self._samples)
        return beside, positions.repeat(1, self._samples)

    def gather(self, residual: Float[Tensor, "rows columns d_model"]) -> Any:
        """The entries of the pass, out of the rows of the edits."""
        if self._prompting:
            return residual
        whole = rearrange(residual, "rows (samples columns) d -> (rows samples) columns d", samples=self._samples)
        return whole[self.entries]


def choose(
    scores: Float[Tensor, "rows vocabulary"], chances: Float[Tensor, "rows"], temperature: float
) -> Int[Tensor, "rows"]:
    """The token at each chance's place of the cumulative distribution; the likeliest at temperature 0."""
    import torch

    if temperature == 0:
        return scores.argmax(dim=-1)
    likely = torch.softmax(scores / temperature, dim=-1)
    runs = torch.nn.functional.pad(likely, (0, -likely.shape[1] % RUN)).unflatten(1, (-1, RUN))
    # First the run of tokens in which the chance falls, then its place there: sums over all tokens cost more than the
    # rest of the choice. What is scaled by a sum that is not exactly 1 cannot lie beyond the last token.
    run, share = _place(runs.sum(dim=-1).double(), chances)
    token, _ = _place(runs[torch.arange(len(run), device=run.device), run].double(), share)
    return run * RUN + token


def _place(
    weights: Float[Tensor, "rows options"], chances: Float[Tensor, "rows"]
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """The option at a chance's place of the cumulative weights, never one of weight 0, and the place within it."""
    import torch

    sums = weights.cumsum(dim=-1)
    total = sums[:, -1]
    places = torch.minimum(chances * total, torch.nextafter(total, torch.zeros_like(total)))[:, None]
    found = torch.searchsorted(sums, places, right=True)
    weight = weights.gather(-1, found)
    return found[:, 0], ((places - sums.gather(-1, found) + weight) / weight)[:, 0].clamp(0, 1)


def losses(
    subject: Subject, prompt: Sequence[int], texts: Sequence[Sequence[int]], tokens_per_batch: int
) -> list[float]:
    """Nats a token of each text after one prompt, under the untouched model; NaN for one without tokens.

    The prompt is read once, equal texts once.

    Args:
        prompt: token ids, begin token included.
        texts: token ids.
        tokens_per_batch: tokens of texts that are read at once, about.
    """
    import torch

    unique = list(dict.fromkeys(tuple(text) for text in texts if text))
    nats: dict[tuple[int, ...], float] = {}
    options = {"use_cache": True, "return_type": "logits_and_cache"}
    with torch.no_grad():
        logits, stem = subject.bridge(torch.tensor([list(prompt)], device=subject.device), **options)
        opening = torch.log_softmax(logits[0, -1].float(), dim=-1)
        for batch in plan_batches([len(text) for text in unique], tokens_per_batch):
            chosen = [unique[index] for index in batch]
            tokens = pad(chosen, subject.device)
            scores = opening[tokens[:, :1]]
            if tokens.shape[1] > 1:
                cache = deepcopy(stem)
                cache.batch_repeat_interleave(len(chosen))
                logits, _ = subject.bridge(tokens[:, :-1], past_key_values=cache, **options)
                later = torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
                scores = torch.cat([scores, later], dim=1)
            for text, row in zip(chosen, scores.cpu().tolist(), strict=True):
                nats[text] = -sum(row[: len(text)]) / len(text)
    return [nats.get(tuple(text), math.nan) for text in texts]


def repetition(tokens: Sequence[int], length: int = 3) -> float:
    """Share of a text's token runs of this length that stood in it before; 0 for a text too short to have two."""
    runs = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0

"""Episodes sampled from scenarios, and continuations sampled from their prefixes.

Every answer has its own draws, taken from the generator before anything is computed. So the batches in which answers
are sampled change none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from affectlens.model import steering
from affectlens.model.sampling import sample
from affectlens.model.steering import Edit, Span
from affectlens.monitor.episodes import ActFinder, Episode, Resampled, Written, prompt_ids
from affectlens.monitor.scenarios import Prompt

if TYPE_CHECKING:
    from jaxtyping import Float

    from affectlens.model.subject import Subject

HIDDEN = "(an answer)"
"""What stands in the place of an earlier answer that the model is not to see."""


@dataclass(frozen=True)
class Steering:
    """A push that is added from some token on.

    Attributes:
        layer: after which block.
        vector: what is added, at full length.
    """

    layer: int
    vector: Float[np.ndarray, "d_model"]


@dataclass(frozen=True)
class Draw:
    """How answers are sampled.

    Attributes:
        samples: answers of each prompt, or continuations of each prefix.
        tokens: most tokens of one.
        temperature: 0 takes the likeliest token.
        rows: texts that are sampled together, about.
    """

    samples: int = 8
    tokens: int = 112
    temperature: float = 1.0
    rows: int = 64


def sample_episodes(
    subject: Subject, prompts: Sequence[Prompt], find: ActFinder, draw: Draw, generator: np.random.Generator
) -> list[Written]:
    """Answers to every prompt, with the acts in them.

    Of a dialogue every answer is an episode of its own, whose messages hold what was said before it; each sample is a
    dialogue of its own from the second turn on.

    Args:
        subject: the model.
        prompts: of scenarios.
        find: says where the act begins.
        draw: how.
        generator: gives the draws, prompt by prompt.

    Returns:
        Episodes in the order of prompts, samples and turns, named ``<prompt>.<sample>`` or
        ``<prompt>.<sample>.<turn>``.

    Raises:
        UserError: the model's chat template refuses a chat.
    """
    under_way = [
        _Dialogue(prompt, number, generator.random((len(prompt.turns) + 1, draw.tokens)))
        for prompt in prompts
        for number in range(draw.samples)
    ]
    going = under_way
    while going:
        ids = [prompt_ids(subject.tokenizer, each.messages, each.prompt.written.name) for each in going]
        chances = [each.chances[len(each.said)] for each in going]
        for each, tokens in zip(going, continued(subject, ids, chances, draw), strict=True):
            each.hear(tokens, subject.tokenizer.decode(tokens), find)
        going = [each for each in going if each.more and _fits(subject, each, draw)]
    return [episode for each in under_way for episode in each.said]


class _Dialogue:
    """One sample of a prompt while it is made; ``said`` holds an episode an answer."""

    def __init__(self, prompt: Prompt, number: int, chances: Float[np.ndarray, "turns tokens"]) -> None:
        self.prompt, self.number, self.chances = prompt, number, chances
        self.messages: list[dict[str, str]] = list(prompt.written.messages)
        self.said: list[Written] = []

    def hear(self, tokens: Sequence[int], answer: str, find: ActFinder) -> None:
        """The next answer."""
        name = f"{self.prompt.written.name}.{self.number}"
        if self.prompt.turns:
            name += f".{len(self.said)}"
        bare = self.prompt.written.model_copy(update={"name": name, "messages": tuple(self.messages)})
        act = find(bare, answer)
        self.said.append(bare.model_copy(update={"answer": answer, "tokens": tuple(tokens), "act": act}))
        if self.more:
            following = {"role": "user", "content": self.prompt.turns[len(self.said) - 1]}
            seen = HIDDEN if self.prompt.redacted else answer.strip()
            self.messages += [{"role": "assistant", "content": seen}, following]

    @property
    def more(self) -> bool:
        """Whether the user says something after the last answer."""
        return len(self.said) <= len(self.prompt.turns)


def _fits(subject: Subject, dialogue: _Dialogue, draw: Draw) -> bool:
    """Whether the model's context holds one answer more."""
    length = len(prompt_ids(subject.tokenizer, dialogue.messages, dialogue.prompt.written.name))
    return subject.context is None or length + draw.tokens <= subject.context


def resample(
    subject: Subject,
    rows: Sequence[tuple[Written, Episode]],
    cuts: Sequence[Sequence[int]],
    find: ActFinder,
    draw: Draw,
    generator: np.random.Generator,
    calm: Steering | None = None,
) -> list[Resampled]:
    """How likely the act was at points of episodes: the share of re-sampled continuations that commit it.

    The method is that of Kortukov et al. (arXiv 2606.11172): the act's probability at a prefix is estimated by
    continuing the prefix again and again.

    Args:
        subject: the model.
        rows: episodes, as the file has them and tokenised.
        cuts: for each, after how many tokens of its answer it is continued; none behind the act.
        find: says where the act begins.
        draw: continuations of each prefix, and their most tokens.
        generator: gives the draws, prefix by prefix.
        calm: a push under which every prefix is continued once more, with the same draws, from its first new token on:
            what stepping in there would have done.

    Raises:
        ValueError: a cut lies outside its answer or behind its act: the act would be in every continuation.
    """
    prefixes = []
    for (written, episode), places in zip(rows, cuts, strict=True):
        for cut in places:
            if not 0 <= cut <= len(episode.answer) or (episode.act is not None and cut > episode.act):
                raise ValueError(f"episode {episode.name} cannot be continued from token {cut}: it lies behind the act")
            prefixes.append((written, episode, cut))
    chances = generator.random((len(prefixes), draw.samples, draw.tokens))
    ids = [[*episode.prompt, *episode.answer[:cut]] for _, episode, cut in prefixes for _ in range(draw.samples)]
    counted = []
    for push in (None,) if calm is None else (None, calm):
        edits = _steered(push) if push is not None else _plain
        texts = iter(continued(subject, ids, list(chances.reshape(-1, draw.tokens)), draw, edits))
        acts = []
        for written, episode, cut in prefixes:
            whole = [subject.tokenizer.decode([*episode.answer[:cut], *next(texts)]) for _ in range(draw.samples)]
            acts.append(sum(find(written, text) is not None for text in whole))
        counted.append(acts)
    calmed = [None] * len(prefixes) if calm is None else counted[1]
    return [
        Resampled(episode.name, cut, own, draw.samples, steered)
        for (_, episode, cut), own, steered in zip(prefixes, counted[0], calmed, strict=True)
    ]


@dataclass(frozen=True)
class Onset:
    """An answer in which steering sets in.

    Attributes:
        written: the episode; its act is the first token that was read under the push.
        token: how many tokens of the answer had been said before the push.
        concept: along whose direction.
        strength: as a share of the mean residual norm.
    """

    written: Written
    token: int
    concept: str
    strength: float


def planted(
    subject: Subject,
    prompts: Sequence[Prompt],
    vectors: Sequence[tuple[str, float, Float[np.ndarray, "d_model"]]],
    layer: int,
    after: tuple[int, int],
    draw: Draw,
    generator: np.random.Generator,
) -> list[Onset]:
    """Answers that are steered from a random token on: how large a shift of the state a monitor finds, and how soon.

    The push is added after block ``layer`` at every position from the onset on. Below and at that block the states of
    the same tokens differ from unsteered ones by the push alone, so that a reader who takes the tokens adds
    it to the rows behind the onset.

    Args:
        subject: the model.
        prompts: what is answered; one answer each.
        vectors: concept, strength, and what is added; in turn.
        layer: after which block.
        after: between which tokens of the answer steering sets in, both included.
        draw: most tokens, temperature and rows; one sample of each prompt.
        generator: gives onsets and draws.

    Returns:
        One onset a prompt; those whose answer ended before it are left out.
    """
    onsets = generator.integers(after[0], after[1], size=len(prompts), endpoint=True)
    chances = generator.random((len(prompts), draw.tokens))
    found = []
    for start in range(0, len(prompts), draw.rows):
        batch = range(start, min(start + draw.rows, len(prompts)))
        ids = [prompt_ids(subject.tokenizer, prompts[index].written.messages) for index in batch]
        chosen = [vectors[index % len(vectors)] for index in batch]
        begin = [len(prompt) + int(onsets[index]) for prompt, index in zip(ids, batch, strict=True)]
        edits = _pushed(layer, np.stack([vector for _, _, vector in chosen]), begin)
        made = sample(subject, ids, chances[list(batch), None], edits, temperature=draw.temperature)
        for index, (completion,), (concept, strength, _) in zip(batch, made, chosen, strict=True):
            onset = int(onsets[index])
            if len(completion.tokens) > onset:
                answer = subject.tokenizer.decode(completion.tokens)
                character = len(subject.tokenizer.decode(completion.tokens[:onset]))
                written = prompts[index].written.model_copy(
                    update={"answer": answer, "tokens": tuple(completion.tokens), "act": character}
                )
                found.append(Onset(written, onset, concept, strength))
    return found


def _pushed(layer: int, vectors: Float[np.ndarray, "rows d_model"], begin: Sequence[int]) -> list[Edit]:
    """The edit that adds each row's vector from its own position on."""
    import torch

    added = torch.tensor(vectors, dtype=torch.float32)
    delta = partial(steering.add, direction=added, strength=torch.ones(len(added)), unit=1.0)
    first = torch.tensor(begin)
    return [Edit(layer, delta, span=Span(first, torch.full_like(first, torch.iinfo(torch.long).max)))]


Edits = Callable[[Sequence[Sequence[int]]], list[Edit]]
"""What is done to a batch of prompts and to what follows them; rows in the order of the prompts."""


def _plain(prompts: Sequence[Sequence[int]]) -> list[Edit]:
    return []


def _steered(push: Steering) -> Edits:
    """A push from the first new token on."""

    def edits(prompts: Sequence[Sequence[int]]) -> list[Edit]:
        vectors = np.repeat(push.vector[None], len(prompts), axis=0)
        return _pushed(push.layer, vectors, [len(prompt) for prompt in prompts])

    return edits


def continued(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    chances: Sequence[Float[np.ndarray, "tokens"]],
    draw: Draw,
    edits: Edits = _plain,
) -> list[list[int]]:
    """One continuation of each prompt; equal prompts are read once, those of similar length together.

    Args:
        subject: the model.
        prompts: token ids.
        chances: of each continuation, uniform draws in [0, 1), one a token.
        draw: temperature and rows.
        edits: what is done meanwhile; asked anew for every batch.
    """
    same: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        same.setdefault(tuple(prompt), []).append(index)
    found: list[list[int]] = [[] for _ in prompts]
    for count in sorted({len(indices) for indices in same.values()}):
        groups = sorted((prompt for prompt in same if len(same[prompt]) == count), key=len)
        size = max(1, draw.rows // count)
        for start in range(0, len(groups), size):
            batch = groups[start : start + size]
            drawn = np.stack([np.stack([chances[index] for index in same[prompt]]) for prompt in batch])
            made = sample(subject, batch, drawn, edits(batch), temperature=draw.temperature)
            for prompt, completions in zip(batch, made, strict=True):
                for index, completion in zip(same[prompt], completions, strict=True):
                    found[index] = completion.tokens
    return found


def spread_cuts(episode: Episode, count: int) -> list[int]:
    """So many places of an episode, evenly from the prompt's end to the last token before the act."""
    last = len(episode.answer) if episode.act is None else episode.act
    return sorted({round(last * number / max(1, count - 1)) for number in range(count)})

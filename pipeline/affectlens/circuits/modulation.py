"""A model that speaks while a circuit's unit differences are added, beside what else could be added, equally large.

What is added holds at every token that is generated, from the position on that predicts the first of them. It is made
equally large in two ways: in the mean KL divergence of the next token from the plain model's, and in the total norm of
what is written into the residual stream. What differs between arms of one event is then what was added, where, and
nothing else: prompts, draws and lengths are the same. Prompting alone has another prompt, which names the emotion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from affectlens.circuits.units import Push, Unit, Units, edits, scaled, total_norm
from affectlens.corpus.scenarios import Event, ask, opening
from affectlens.model.sampling import losses, sample
from affectlens.model.steering import editing
from affectlens.model.tokens import Chat, tokenise

if TYPE_CHECKING:
    from affectlens.model.subject import Subject

Name = Literal[
    "plain", "prompting", "circuit", "random", "wrong_emotion", "as_published", "direction", "direction_layers"
]
Match = Literal["none", "divergence", "norm"]
CLOSE = 0.05
"""Divergences are equal where they differ by less than this share."""
STEPS = 12
"""Most passes in which a factor is looked for."""


@dataclass(frozen=True)
class Arm:
    """One way to bring an emotion into an answer.

    Attributes:
        name: ``circuit``, the emotion's differences at the units of its circuit; ``random``, at random units of the
            same layers and kinds; ``wrong_emotion``, another emotion's differences at the units of that one's circuit;
            ``as_published``, the emotion's differences at the heads and neurons that the choices of arXiv 2510.11328
            take; ``direction``, the emotion's direction at the study's layer; ``direction_layers``, its differences of
            the residual stream at all layers of the circuit; ``prompting``, the emotion named in the prompt; ``plain``.
        match: in what it is as large as the circuit.
        number: of the random circuit.
        push: what is added, as large as it is added.
        norm: its total norm.
        divergence: mean KL of the next token from the plain model's on the tuning events, in nats.
    """

    name: Name
    match: Match = "none"
    number: int = 0
    push: Push | None = None
    norm: float = 0.0
    divergence: float = 0.0


def raw_arms(
    units: Units,
    concept: str,
    wrong: str,
    direction: Push,
    random: int,
    generator: np.random.Generator,
    published: Sequence[Unit] = (),
) -> list[Arm]:
    """What is added in every arm, before it is made equally large.

    Args:
        units: differences and circuits.
        concept: the emotion.
        wrong: the emotion of the wrong circuit.
        direction: the emotion's direction at the study's layer.
        random: so many random circuits.
        generator: draws them.
        published: units of the emotion by the published choices; none: no such arm.
    """
    circuit = units.circuit(concept)
    row = units.concepts.index(concept)
    layers = sorted({unit.layer for unit in circuit})
    found = [
        Arm("circuit", push=units.push(circuit, concept)),
        Arm("wrong_emotion", push=units.push(units.circuit(wrong), wrong)),
        Arm("direction", push=direction),
        Arm("direction_layers", push={(layer, "residual"): units.residual[row, layer] for layer in layers}),
    ]
    if published:
        found.insert(2, Arm("as_published", push=units.push(published, concept)))
    drawn: list[tuple[Unit, ...]] = [units.matched(circuit, generator) for _ in range(random)]
    return found + [Arm("random", number=n, push=units.push(each, concept)) for n, each in enumerate(drawn)]


def prompt_of(subject: Subject, event: Event, emotion: str | None = None) -> list[int]:
    """Token ids of the prompt about an event, begin token included; a chat where the model has a template."""
    tokenizer = subject.tokenizer
    if tokenizer.chat_template:
        text = tokenise(tokenizer, Chat(tuple(ask(event, emotion))))
        return [*text.lead, *text.ids.tolist()]
    return subject.led(subject.encode(opening(event, emotion)))


class Tuning:
    """Plain answers on which it is measured how far a push moves the next token.

    Attributes:
        subject: the model.
    """

    def __init__(self, subject: Subject, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> None:
        """Read prompts and plain answers once.

        Args:
            prompts: of two tokens at least.
            answers: the plain model's; empty ones are left out.
        """
        import torch

        self.subject = subject
        self._read: list[tuple[Any, Any, Any]] = []
        with torch.no_grad():
            for prompt, answer in zip(prompts, answers, strict=True):
                if not answer:
                    continue
                _, stem = self._pass(torch.tensor([prompt[:-1]], device=subject.device))
                tokens = torch.tensor([[prompt[-1], *answer[:-1]]], device=subject.device)
                logits, _ = self._pass(tokens, deepcopy(stem))
                self._read.append((stem, tokens, torch.log_softmax(logits[0].float(), dim=-1)))
        if not self._read:
            raise ValueError("the plain model answers nothing to any tuning event")

    def _pass(self, tokens: Any, cache: Any = None) -> tuple[Any, Any]:
        options = {} if cache is None else {"past_key_values": cache}
        return self.subject.bridge(tokens, use_cache=True, return_type="logits_and_cache", **options)

    def divergences(self, pushes: Sequence[Push]) -> Float[np.ndarray, "pushes"]:
        """Mean KL of the next token under each push from the plain model's, in nats, over tokens and then events.

        Each push holds from the last token of the prompt on.
        """
        import torch

        total = np.zeros(len(pushes))
        made = edits(pushes, 0, self.subject.device)
        with torch.no_grad(), editing(self.subject.bridge, made):
            for stem, tokens, plain in self._read:
                cache = deepcopy(stem)
                cache.batch_repeat_interleave(len(pushes))
                logits, _ = self._pass(tokens.expand(len(pushes), -1), cache)
                moved = torch.log_softmax(logits.float(), dim=-1)
                total += (moved.exp() * (moved - plain)).sum(dim=-1).mean(dim=-1).cpu().numpy()
        return total / len(self._read)

    def prompted(self, prompts: Sequence[Sequence[int]]) -> float:
        """The same of other prompts before the same answers, without a push.

        Args:
            prompts: in the order of those that were read, those with an empty answer left out.
        """
        import torch

        total = 0.0
        with torch.no_grad():
            for prompt, (_, tokens, plain) in zip(prompts, self._read, strict=True):
                whole = torch.tensor([list(prompt)], device=tokens.device)
                logits, _ = self._pass(torch.cat([whole, tokens[:, 1:]], dim=1))
                moved = torch.log_softmax(logits[0, len(prompt) - 1 :].float(), dim=-1)
                total += float((moved.exp() * (moved - plain)).sum(dim=-1).mean())
        return total / len(self._read)

    def factors(
        self, pushes: Sequence[Push], target: float
    ) -> tuple[Float[np.ndarray, "pushes"], Float[np.ndarray, "pushes"]]:
        """By what each push has to be multiplied to move the next token by ``target`` nats, and by how much it does.

        For small pushes the divergence grows with the square of the factor. Each step follows that law, and stays
        between the largest factor that was too small and the smallest that was too large. A push that never gets there
        keeps the factor that came nearest.
        """
        count = len(pushes)
        low, high = np.zeros(count), np.full(count, np.inf)
        factor, best = np.ones(count), np.ones(count)
        reached, error = np.full(count, np.nan), np.full(count, np.inf)
        for _ in range(STEPS):
            moved = self.divergences([scaled(push, f) for push, f in zip(pushes, factor, strict=True)])
            off = np.abs(np.log(np.maximum(moved, 1e-12) / target))
            nearer = off < error
            best, reached = np.where(nearer, factor, best), np.where(nearer, moved, reached)
            error = np.minimum(error, off)
            if (error < np.log1p(CLOSE)).all():
                break
            low = np.where(moved < target, np.maximum(low, factor), low)
            high = np.where(moved >= target, np.minimum(high, factor), high)
            step = factor * np.clip(np.sqrt(target / np.maximum(moved, 1e-12)), 0.1, 10.0)
            between = np.where(low > 0, np.sqrt(low * np.where(np.isinf(high), low, high)), high / 2)
            factor = np.where((step > low) & (step < high), step, between)
        return best, reached


def equally_large(tuning: Tuning, raw: Sequence[Arm], target: float, norms: Float[np.ndarray, "layers"]) -> list[Arm]:
    """All arms at one divergence, and all but the circuit at the total norm that the circuit has there.

    Args:
        raw: the first is the circuit.
        target: KL in nats a token.
        norms: mean norm of the residual stream after each block.
    """
    pushes = [arm.push or {} for arm in raw]
    factors, reached = tuning.factors(pushes, target)
    lengths = np.array([total_norm(push, tuning.subject, norms) for push in pushes])
    by_norm = factors[0] * lengths[0] / np.maximum(lengths, 1e-12)
    moved = tuning.divergences([scaled(push, f) for push, f in zip(pushes, by_norm, strict=True)])

    def arm(place: int, match: Match, factor: float, divergence: float) -> Arm:
        return replace(
            raw[place], match=match, push=scaled(pushes[place], factor), norm=float(factor * lengths[place]),
            divergence=divergence,
        )  # fmt: skip

    return [arm(n, "divergence", f, float(kl)) for n, (f, kl) in enumerate(zip(factors, reached, strict=True))] + [
        arm(n, "norm", f, float(kl)) for n, (f, kl) in enumerate(zip(by_norm, moved, strict=True)) if n
    ]


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        tokens: its ids.
        text: as it is spelled.
        nats: a token, under the untouched model behind the un-named prompt; NaN for an empty one.
    """

    tokens: tuple[int, ...]
    text: str
    nats: float


def speak(
    subject: Subject,
    arms: Sequence[Arm],
    events: Sequence[Event],
    concept: str,
    chances: Float[np.ndarray, "events tokens"],
    *,
    temperature: float,
    rows: int = 32,
) -> list[list[Said]]:
    """What the model says to every event in every arm.

    Args:
        arms: with the same draws for all of them.
        concept: named to the arm ``prompting``.
        chances: uniform draws of each event.
        temperature: 0 takes the likeliest token.
        rows: answers that are sampled at once.

    Returns:
        By arm and event.
    """
    plain = [prompt_of(subject, event) for event in events]
    named = [prompt_of(subject, event, concept) for event in events]
    cells = [(arm, event) for event in range(len(events)) for arm in range(len(arms))]
    said: dict[tuple[int, int], tuple[int, ...]] = {}
    for start in range(0, len(cells), rows):
        some = cells[start : start + rows]
        prompts = [(named if arms[arm].name == "prompting" else plain)[event] for arm, event in some]
        made = edits([arms[arm].push or {} for arm, _ in some], [len(each) - 1 for each in prompts], subject.device)
        draws = chances[[event for _, event in some]][:, None]
        answers = sample(subject, prompts, draws, made, temperature=temperature)
        said |= {cell: tuple(answer.tokens) for cell, (answer,) in zip(some, answers, strict=True)}
    found: list[list[Said]] = [[] for _ in arms]
    for event, prompt in enumerate(plain):
        texts = [said[arm, event] for arm in range(len(arms))]
        nats = losses(subject, prompt, texts, 2048)
        for arm, (tokens, loss) in enumerate(zip(texts, nats, strict=True)):
            found[arm].append(Said(tokens, subject.tokenizer.decode(list(tokens)).strip(), loss))
    return found


def writers_of(
    units: Units, subject: Subject, directions: Mapping[str, Float[np.ndarray, "d_model"]], layer: int, share: float
) -> dict[str, tuple[Unit, ...]]:
    """Circuits in default of searched ones: the heads whose difference writes most along the emotion's direction.

    What a head's difference adds to the reading at a layer is its product with the output matrix and the direction,
    exactly as far as the head's own write goes; what later blocks make of it is left out of account.

    Args:
        directions: at norm 1, by emotion.
        layer: where they read; heads above it write nothing there.
        share: of the heads up to this layer.
    """
    heads, width = units.heads.shape[2:]
    matrices = [
        subject.output_matrix(each, "heads").cpu().numpy().reshape(heads, width, -1) for each in range(layer + 1)
    ]
    found = {}
    for row, concept in enumerate(units.concepts):
        scores = np.array(
            [
                np.einsum("hd,hdm,m->h", units.heads[row, n], each, directions[concept])
                for n, each in enumerate(matrices)
            ]
        )
        order = np.argsort(-scores, axis=None, kind="stable")[: max(1, round(share * scores.size))]
        found[concept] = tuple(sorted(Unit("head", *divmod(int(place), heads)) for place in order))
    return found

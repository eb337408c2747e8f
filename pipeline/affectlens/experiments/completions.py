"""Sampled answers under steering: what is said, what the model's state is meanwhile, what a grader makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.experiments.branching import capturing
from affectlens.experiments.choice import first_pushed, runs
from affectlens.experiments.conditions import grid, rolled
from affectlens.experiments.experiment import Experiment, RolloutConfig, Scenario
from affectlens.experiments.prompts import Prompt, read_prompt
from affectlens.experiments.results import Cell
from affectlens.model.partial import Upper, resumed
from affectlens.model.sampling import choose, repetition
from affectlens.model.steering import Edit, Span, add, editing
from affectlens.model.subject import Subject
from affectlens.model.tokens import plan_batches

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from affectlens.experiments.context import Bench


@dataclass
class Answer:
    """A sampled answer.

    Attributes:
        tokens: what was sampled, without the special token that ended it.
        total: sum of the residuals at the readout, over the positions from which its tokens were predicted.
        count: how many positions.
    """

    tokens: list[int]
    total: Float[np.ndarray, "d_model"]
    count: int

    @property
    def state(self) -> Float[np.ndarray, "d_model"]:
        """Mean residual at the readout while answering."""
        return (self.total / self.count).astype(np.float32)


def rolled_scenarios(experiment: Experiment) -> list[int]:
    """Indices of the scenarios that are rolled out."""
    rollout: RolloutConfig | None = experiment.config.outcome(RolloutConfig)
    if rollout is None:
        return []
    return [
        index
        for index, scenario in enumerate(experiment.scenarios)
        if not rollout.conditions or scenario.condition in rollout.conditions
    ]


def measure(
    bench: Bench, experiment: Experiment, start: int, end: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Answers to a slice of the scenarios that are rolled out, graded.

    All cells get the same chances, so that two cells differ by what they add alone.

    Returns:
        One row per answer, and ``state`` and ``text`` of shape ``answers d_model``: the mean residual while answering,
        and that of the untouched model over the answer alone; NaN where nothing was said.
    """
    rollout: RolloutConfig = experiment.config.outcome(RolloutConfig)
    cells = rolled(experiment.config)
    rows: list[dict[str, Any]] = []
    states: list[np.ndarray] = []
    for index in rolled_scenarios(experiment)[start:end]:
        scenario = experiment.scenarios[index]
        prompt = read_prompt(bench.subject.tokenizer, scenario, ())
        answers = _answers(
            bench, experiment, scenario, prompt, [grid(experiment.config.steering)[cell] for cell in cells]
        )
        said = [answer.tokens for answer in answers]
        lost = losses(bench.subject, prompt.ids, said, bench.config.tokens_per_batch)
        for number, (answer, loss) in enumerate(zip(answers, lost, strict=True)):
            cell, sample = divmod(number, rollout.samples)
            text = bench.subject.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            rows.append(
                {
                    "cell": cells[cell],
                    "scenario": index,
                    "sample": sample,
                    "text": _until(scenario.answer.rstrip(" ") + text, rollout.stop, len(scenario.answer)),
                    "loss": None if math.isnan(loss) else loss,
                    "repetition": repetition(answer.tokens),
                }
            )
            states.append(answer.state)
    grades = _grade(bench, experiment, rows)
    rows = [row | {"grade": grade} for row, grade in zip(rows, grades, strict=True)]
    return rows, {"state": np.stack(states), "text": text_residuals(bench, [row["text"] for row in rows])}


def _answers(
    bench: Bench, experiment: Experiment, scenario: Scenario, prompt: Prompt, cells: Sequence[Cell]
) -> list[Answer]:
    """Every cell's samples, cell by cell."""
    steering, rollout = experiment.config.steering, experiment.config.outcome(RolloutConfig)
    names = [json.dumps([experiment.name, scenario.id, sample]) for sample in range(rollout.samples)]
    chances = np.stack([bench.generator(name).random(rollout.tokens) for name in names])
    pushes = bench.pushes(cells, steering.by if steering else "directions")
    sampling = Sampling(bench.branching.upper, first_pushed(experiment, prompt), rollout, bench.readout_layer)
    width = rollout.samples * (len(prompt.ids) + rollout.tokens)
    chosen = runs(len(pushes), width, bench.config.rollout_tokens_per_batch)
    return [answer for run in chosen for answer in sampling.answers(prompt.ids, pushes[run], chances)]


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        upper: the model, and the layer after which is pushed.
        first: the first position that is pushed.
        rollout: temperature and stop strings.
        read: the layer where the state is read.
    """

    upper: Upper
    first: int
    rollout: RolloutConfig
    read: int

    @property
    def subject(self) -> Subject:
        """The model."""
        return self.upper.subject

    def answers(
        self,
        prompt: Sequence[int],
        pushes: Float[Tensor, "cells d_model"],
        chances: Float[np.ndarray, "samples tokens"],
    ) -> list[Answer]:
        """Continue one prompt, for each push and each row of chances, until a special token or a stop string.

        An answer depends on its own chances and push alone, so a batch gives what its rows give one by one. The prompt
        is read once up to the layer of the push, from there on once for all samples of a push; rows that are done
        leave the batch.

        Args:
            prompt: token ids, with the begin token.
            pushes: what is added, at full length.
            chances: uniform draws in [0, 1), one a token.

        Returns:
            The samples of the first push, then those of the next.
        """
        import torch

        samples, steps = chances.shape
        vectors, rows = pushes.repeat_interleave(samples, dim=0), list(range(len(pushes) * samples))
        found = [Answer([], np.zeros(self.subject.shape.width), 0) for _ in rows]
        with torch.no_grad():
            logits, state, cache = self._begin(prompt, pushes)
            cache.batch_repeat_interleave(samples)
            logits, state = logits.repeat_interleave(samples, dim=0), state.repeat_interleave(samples, dim=0)
            for step in range(steps):
                drawn = torch.tensor(chances[:, step], device=logits.device)[[row % samples for row in rows]]
                chosen = choose(logits, drawn, self.rollout.temperature)
                tokens, states = chosen.tolist(), state.float().cpu().numpy()
                going = [place for place, row in enumerate(rows) if self._add(found[row], tokens[place], states[place])]
                if not going or step + 1 == steps:
                    break
                if len(going) < len(rows):
                    kept = torch.tensor(going, device=self.subject.device)
                    cache.batch_select_indices(kept)
                    rows, vectors, chosen = [rows[place] for place in going], vectors[kept], chosen[kept]
                logits, state, cache = self._step(chosen[:, None], cache, vectors, None)
        return found

    def _begin(
        self, prompt: Sequence[int], pushes: Float[Tensor, "cells d_model"]
    ) -> tuple[Float[Tensor, "cells vocabulary"], Float[Tensor, "cells d_model"], Any]:
        """The prompt under every push, as :meth:`_step` returns it."""
        import torch

        bridge, layer, rows = self.subject.bridge, self.upper.layer, len(pushes)
        tokens, span = torch.tensor([list(prompt)], device=self.subject.device), Span.onward(rows, self.first)
        if not self.upper.resumes:
            return self._step(tokens.expand(rows, -1), None, pushes, span)
        with capturing(bridge, layer) as seen:
            _, stem = bridge(tokens, use_cache=True, return_type="logits_and_cache", **self._last)
        with resumed(bridge, layer, seen[-1].expand(rows, -1, -1)):
            logits, state, cache = self._step(tokens.expand(rows, -1), None, pushes, span)
        stem.batch_repeat_interleave(rows)
        cache.layers[: layer + 1] = stem.layers[: layer + 1]
        return logits, state, cache

    @property
    def _last(self) -> dict[str, Any]:
        """What keeps the output matrix from positions that nobody looks at."""
        return {"logits_to_keep": 1} if self.upper.keeps_chosen else {}

    def _step(
        self, fed: Tensor, cache: Any, vectors: Float[Tensor, "rows d_model"], span: Span | None
    ) -> tuple[Float[Tensor, "rows vocabulary"], Float[Tensor, "rows d_model"], Any]:
        """Logits of the next token, the state at the last, and the keys and values so far."""
        bridge = self.subject.bridge
        delta = partial(add, direction=vectors, strength=vectors.new_ones(len(vectors)), unit=1.0)
        with capturing(bridge, self.read) as seen, editing(bridge, [Edit(self.upper.layer, delta, span=span)]):
            logits, cache = bridge(
                fed, use_cache=True, past_key_values=cache, return_type="logits_and_cache", **self._last
            )
        return logits[:, -1].float(), seen[-1][:, -1], cache

    def _add(self, answer: Answer, token: int, state: Float[np.ndarray, "d_model"]) -> bool:
        """Add a token to an answer, and the state it was predicted from; whether the answer goes on."""
        answer.total += state
        answer.count += 1
        if token in self._special:
            return False
        answer.tokens.append(token)
        stops = self.rollout.stop
        return not (stops and any(stop in self.subject.tokenizer.decode(answer.tokens) for stop in stops))

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.subject.tokenizer.all_special_ids)


def _until(text: str, stops: Sequence[str], begun: int) -> str:
    """The text up to the first stop string after its given beginning."""
    places = [place for stop in stops if (place := text.find(stop, max(0, begun - 1))) >= 0]
    return text[: min(places)] if places else text


def losses(subject: Subject, prompt: Sequence[int], answers: Sequence[Sequence[int]], budget: int) -> list[float]:
    """Nats a token of each answer under the untouched model; NaN for one without tokens.

    The prompt is read once.

    Args:
        prompt: token ids, with the begin token.
        answers: token ids.
        budget: tokens of answers that are read at once, about.
    """
    import torch

    unique = list(dict.fromkeys(tuple(answer) for answer in answers if answer))
    found: dict[tuple[int, ...], float] = {}
    options = {"use_cache": True, "return_type": "logits_and_cache"}
    with torch.no_grad():
        logits, stem = subject.bridge(torch.tensor([list(prompt)], device=subject.device), **options)
        opening = torch.log_softmax(logits[0, -1].float(), dim=-1)
        for batch in plan_batches([len(answer) for answer in unique], budget):
            chosen, width = [unique[index] for index in batch], max(len(unique[index]) for index in batch)
            # What follows an answer cannot reach it, so any token will do there.
            tokens = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in chosen], device=subject.device)
            scores = opening[tokens[:, :1]]
            if width > 1:
                cache = deepcopy(stem)
                cache.batch_repeat_interleave(len(chosen))
                logits, _ = subject.bridge(tokens[:, :-1], past_key_values=cache, **options)
                later = torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
                scores = torch.cat([scores, later], dim=1)
            for answer, row in zip(chosen, scores.cpu().tolist(), strict=True):
                found[answer] = -sum(row[: len(answer)]) / len(answer)
    return [found.get(tuple(answer), math.nan) for answer in answers]


def text_residuals(bench: Bench, texts: Sequence[str]) -> Float[np.ndarray, "texts d_model"]:
    """Mean residual of the untouched model over each text alone, at the layer of the state; NaN for an empty one."""
    subject, layer = bench.subject, bench.readout_layer
    rows = [subject.encode(text.strip()) for text in texts]
    found = np.full((len(texts), subject.shape.width), np.nan, np.float32)
    filled = [index for index, row in enumerate(rows) if row]
    for batch in plan_batches([len(rows[index]) for index in filled], bench.config.tokens_per_batch):
        chosen = [filled[index] for index in batch]
        residual = subject.residuals(subject.pad([rows[index] for index in chosen]), [layer])[layer]
        for row, index in enumerate(chosen):
            found[index] = (
                residual[row, subject.lead : subject.lead + len(rows[index])].float().mean(dim=0).cpu().numpy()
            )
    return found


def _grade(bench: Bench, experiment: Experiment, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    from affectlens.experiments.grade.graders import Answer as Graded

    answers = [Graded(experiment.scenarios[row["scenario"]], row["text"]) for row in rows]
    return [dict(grade) for grade in bench.grader(experiment).grade(answers)]

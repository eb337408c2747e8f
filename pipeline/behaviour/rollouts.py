"""Sampled answers under steering: what is said, what the model's state is meanwhile, what a grader makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.behaviour.branching import Tree, capturing
from pipeline.behaviour.cells import grid, rolled
from pipeline.behaviour.choices import runs
from pipeline.behaviour.experiment import Experiment, RolloutConfig, Scenario
from pipeline.behaviour.measured import Cell
from pipeline.behaviour.prompts import Prompt, read_prompt
from pipeline.capture.tokens import plan_batches
from pipeline.steering.generation import choose, repetition
from pipeline.steering.interventions import Edit, Span, add, editing
from pipeline.subject import Subject

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from pipeline.behaviour.bench import Bench


@dataclass
class Answer:
    """A sampled answer.

    Attributes:
        tokens: what was sampled, without the special token that ended it.
        state: mean residual at the readout over the positions from which its tokens were predicted.
    """

    tokens: list[int]
    state: Float[np.ndarray, "d_model"]


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
        losses = _losses(bench, prompt, [answer.tokens for answer in answers])
        for number, (answer, loss) in enumerate(zip(answers, losses, strict=True)):
            cell, sample = divmod(number, rollout.samples)
            said = bench.subject.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            rows.append(
                {
                    "cell": cells[cell],
                    "scenario": index,
                    "sample": sample,
                    "text": _until(scenario.answer.rstrip(" ") + said, rollout.stop, len(scenario.answer)),
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
    config, rollout = experiment.config, experiment.config.outcome(RolloutConfig)
    chances = np.stack(
        [
            bench.generator(json.dumps([experiment.name, scenario.id, sample])).random(rollout.tokens)
            for sample in range(rollout.samples)
        ]
    )
    vectors = bench.pushes(cells, config.steering.by if config.steering else "directions")
    vectors = vectors.repeat_interleave(rollout.samples, dim=0)
    first = prompt.opening if config.steering and config.steering.positions == "answer" else prompt.first
    found: list[Answer] = []
    for run in runs(len(vectors), len(prompt.ids) + rollout.tokens, bench.config.rollout_tokens_per_batch):
        push = Edit(
            bench.layer,
            partial(add, direction=vectors[run], strength=vectors.new_ones(run.stop - run.start), unit=1.0),
            span=Span.onward(run.stop - run.start, first),
        )
        drawn = np.tile(chances, (len(cells), 1))[run]
        found += generate(bench.subject, prompt.ids, [push], drawn, rollout, bench.readout_layer)
    return found


def generate(
    subject: Subject,
    prompt: Sequence[int],
    edits: Sequence[Edit],
    chances: Float[np.ndarray, "rows tokens"],
    rollout: RolloutConfig,
    layer: int,
) -> list[Answer]:
    """Continue one prompt in as many ways as there are rows, each until a special token or a stop string.

    A row depends on its own chances and edits alone, so a batch gives what its rows give one by one.

    Args:
        prompt: token ids, with the begin token.
        edits: rows in the order of ``chances``.
        chances: uniform draws in [0, 1), one a token.
        rollout: temperature and stop strings.
        layer: where the state is read.
    """
    import torch

    rows, steps = chances.shape
    special = set(subject.tokenizer.all_special_ids)
    said: list[list[int]] = [[] for _ in range(rows)]
    open_rows = set(range(rows))
    states, counts = np.zeros((rows, subject.shape.width)), np.zeros(rows)
    fed, cache = torch.tensor([list(prompt)], device=subject.device).expand(rows, -1), None
    with torch.no_grad(), capturing(subject.bridge, layer) as seen, editing(subject.bridge, edits, cached=True):
        for step in range(steps):
            seen.clear()
            logits, cache = _step(subject, fed, cache)
            state = seen[-1][:, -1].float().cpu().numpy()
            chosen = choose(logits, torch.tensor(chances[:, step], device=logits.device), rollout.temperature)
            for row, token in enumerate(chosen.tolist()):
                if row not in open_rows:
                    continue
                states[row] += state[row]
                counts[row] += 1
                if token in special:
                    open_rows.discard(row)
                    continue
                said[row].append(token)
                if rollout.stop and any(stop in subject.tokenizer.decode(said[row]) for stop in rollout.stop):
                    open_rows.discard(row)
            if not open_rows:
                break
            fed = chosen[:, None]
    return [
        Answer(tokens, (state / count).astype(np.float32))
        for tokens, state, count in zip(said, states, counts, strict=True)
    ]


def _step(subject: Subject, fed: Tensor, cache: Any) -> tuple[Float[Tensor, "rows vocabulary"], Any]:
    """Logits of the next token, and the keys and values so far."""
    logits, cache = subject.bridge(fed, use_cache=True, past_key_values=cache, return_type="logits_and_cache")
    return logits[:, -1].float(), cache


def _until(text: str, stops: Sequence[str], begun: int) -> str:
    """The text up to the first stop string after its given beginning."""
    places = [place for stop in stops if (place := text.find(stop, max(0, begun - 1))) >= 0]
    return text[: min(places)] if places else text


def _losses(bench: Bench, prompt: Prompt, answers: Sequence[Sequence[int]]) -> list[float]:
    """Nats a token of each answer under the untouched model; NaN for one without tokens."""
    unique = list(dict.fromkeys(tuple(answer) for answer in answers if answer))
    found: dict[tuple[int, ...], float] = {}
    budget = bench.config.tokens_per_batch
    for piece in bench.branching.split(Tree(prompt.ids, tuple(unique)), budget) if unique else ():
        lower = bench.branching.lower(piece)
        scores = bench.branching.branch_scores(piece, lower, None)[0]
        for branch, score in zip(piece.branches, scores.cpu().tolist(), strict=True):
            found[branch] = -score / len(branch)
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
    from pipeline.behaviour.graders.grading import Answer as Graded

    answers = [Graded(experiment.scenarios[row["scenario"]], row["text"]) for row in rows]
    return [dict(grade) for grade in bench.grader(experiment).grade(answers)]

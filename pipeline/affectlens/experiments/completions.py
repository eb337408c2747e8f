"""Sampled answers under steering: what is said, and what the model's state is meanwhile."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.experiments.choice import first_pushed, runs
from affectlens.experiments.conditions import grid, rolled
from affectlens.experiments.experiment import CompletionConfig, Experiment, Scenario
from affectlens.experiments.prompts import Prompt, read_prompt
from affectlens.experiments.results import Cell
from affectlens.model.reading import Site, read
from affectlens.model.sampling import Completion, losses, repetition, sample
from affectlens.model.steering import Edit, Span, add

if TYPE_CHECKING:
    from jaxtyping import Float

    from affectlens.experiments.context import ExperimentContext


def sampled_scenarios(experiment: Experiment) -> list[int]:
    """Indices of the scenarios that are rolled out."""
    rollout: CompletionConfig | None = experiment.config.outcome(CompletionConfig)
    if rollout is None:
        return []
    return [
        index
        for index, scenario in enumerate(experiment.scenarios)
        if not rollout.conditions or scenario.condition in rollout.conditions
    ]


def measure(
    context: ExperimentContext, experiment: Experiment, start: int, end: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Answers to a slice of the scenarios that are rolled out.

    All cells get the same chances, so that two cells differ by what they add alone.

    Returns:
        One row per answer, and ``state`` and ``text`` of shape ``answers d_model``: the mean residual while answering,
        and that of the untouched model over the answer alone; NaN where nothing was said.
    """
    rollout: CompletionConfig = experiment.config.outcome(CompletionConfig)
    cells = rolled(experiment.config)
    rows: list[dict[str, Any]] = []
    states: list[np.ndarray] = []
    for index in sampled_scenarios(experiment)[start:end]:
        scenario = experiment.scenarios[index]
        prompt = read_prompt(context.subject.tokenizer, scenario, ())
        answers = _answers(
            context, experiment, scenario, prompt, [grid(experiment.config.steering)[cell] for cell in cells]
        )
        said = [answer.tokens for answer in answers]
        lost = losses(context.subject, prompt.ids, said, context.config.tokens_per_batch)
        for number, (answer, loss) in enumerate(zip(answers, lost, strict=True)):
            cell, draw = divmod(number, rollout.samples)
            text = context.subject.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            rows.append(
                {
                    "cell": cells[cell],
                    "scenario": index,
                    "sample": draw,
                    "text": _until(scenario.answer.rstrip(" ") + text, rollout.stop, len(scenario.answer)),
                    "loss": None if math.isnan(loss) else loss,
                    "repetition": repetition(answer.tokens),
                }
            )
            assert answer.state is not None
            states.append((answer.state / answer.positions).astype(np.float32))
    return rows, {"state": np.stack(states), "text": text_residuals(context, [row["text"] for row in rows])}


def _answers(
    context: ExperimentContext, experiment: Experiment, scenario: Scenario, prompt: Prompt, cells: Sequence[Cell]
) -> list[Completion]:
    """Every cell's samples, cell by cell."""
    steering, rollout = experiment.config.steering, experiment.config.outcome(CompletionConfig)
    names = [json.dumps([experiment.name, scenario.id, sample]) for sample in range(rollout.samples)]
    chances = np.stack([context.generator(name).random(rollout.tokens) for name in names])
    pushes = context.pushes(cells, steering.by if steering else "directions")
    width, first = rollout.samples * (len(prompt.ids) + rollout.tokens), first_pushed(experiment, prompt)
    answers: list[Completion] = []
    for run in runs(len(pushes), width, context.config.completion_tokens_per_batch):
        vectors = pushes[run]
        delta = partial(add, direction=vectors, strength=vectors.new_ones(len(vectors)), unit=1.0)
        completions = sample(
            context.subject,
            [prompt.ids],
            np.broadcast_to(chances, (len(vectors), *chances.shape)),
            [Edit(context.layer, delta, span=Span.onward(len(vectors), first))],
            resume_at=context.layer,
            temperature=rollout.temperature,
            stop=rollout.stop,
            read=context.readout_layer,
        )
        answers += [completion for row in completions for completion in row]
    return answers


def _until(text: str, stops: Sequence[str], begun: int) -> str:
    """The text up to the first stop string after its given beginning."""
    places = [place for stop in stops if (place := text.find(stop, max(0, begun - 1))) >= 0]
    return text[: min(places)] if places else text


def text_residuals(context: ExperimentContext, texts: Sequence[str]) -> Float[np.ndarray, "texts d_model"]:
    """Mean residual of the untouched model over each text alone, at the layer of the state; NaN for an empty one."""
    subject, site = context.subject, Site(context.readout_layer)
    rows = [subject.encode(text.strip()) for text in texts]
    means = np.full((len(texts), subject.width), np.nan, np.float32)
    filled = [index for index, row in enumerate(rows) if row]
    led = [subject.led(rows[index]) for index in filled]
    for number, values in read(
        subject, led, [site], tokens_per_batch=context.config.tokens_per_batch, lead=subject.lead
    ):
        means[filled[number]] = values[site][subject.lead :].float().mean(dim=0).cpu().numpy()
    return means

"""Sampled answers under steering: what is said, and what the model's state is meanwhile."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.experiments.choice import first_pushed, runs
from affectlens.experiments.conditions import sampled
from affectlens.experiments.experiment import CompletionConfig, Experiment, Scenario
from affectlens.experiments.measurements import answered
from affectlens.experiments.prompts import Prompt, read_prompt
from affectlens.interventions.conditions import Condition
from affectlens.model.reading import Site, read
from affectlens.model.sampling import Completion, losses, repetition, sample
from affectlens.model.steering import Edit, Span, add

if TYPE_CHECKING:
    from jaxtyping import Float

    from affectlens.experiments.context import ExperimentContext


def measure(
    context: ExperimentContext, experiment: Experiment, start: int, end: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Answers to a slice of the scenarios that are answered.

    All conditions get the same chances, so that two of them differ by what they add alone.

    Returns:
        One row per answer, and ``state`` and ``text`` of shape ``answers d_model``: the mean residual while answering,
        and that of the untouched model over the answer alone; NaN where nothing was said.
    """
    outcome: CompletionConfig = experiment.config.outcome(CompletionConfig)
    grid, subject = context.grid(experiment), context.subject
    conditions = sampled(experiment.config, context.concepts)
    rows: list[dict[str, Any]] = []
    states: list[np.ndarray] = []
    for index in answered(experiment)[start:end]:
        scenario = experiment.scenarios[index]
        prompt = read_prompt(subject.tokenizer, scenario, ())
        # A prompt that serves as positive control is not steered itself.
        own = conditions[:1] if scenario.condition in experiment.config.prompted else conditions
        answers = _answers(context, experiment, scenario, prompt, [grid[each] for each in own])
        said = [answer.tokens for answer in answers]
        lost = losses(subject, prompt.ids, said, context.config.tokens_per_batch)
        for number, (answer, loss) in enumerate(zip(answers, lost, strict=True)):
            condition, draw = divmod(number, outcome.samples)
            # An answer ends before the first stop string after its given beginning.
            text = scenario.answer.rstrip(" ") + subject.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            ends = [text.find(stop, max(0, len(scenario.answer) - 1)) for stop in outcome.stop]
            rows.append(
                {
                    "condition": conditions[condition],
                    "scenario": index,
                    "sample": draw,
                    "text": text[: min((end for end in ends if end >= 0), default=len(text))],
                    "loss": None if math.isnan(loss) else loss,
                    "repetition": repetition(answer.tokens),
                }
            )
            assert answer.state is not None
            states.append((answer.state / answer.positions).astype(np.float32))
    return rows, {"state": np.stack(states), "text": text_residuals(context, [row["text"] for row in rows])}


def _answers(
    context: ExperimentContext,
    experiment: Experiment,
    scenario: Scenario,
    prompt: Prompt,
    conditions: Sequence[Condition],
) -> list[Completion]:
    """Every condition's samples, one condition after the other."""
    steering, outcome = experiment.config.steering, experiment.config.outcome(CompletionConfig)
    names = [json.dumps([experiment.name, scenario.id, sample]) for sample in range(outcome.samples)]
    chances = np.stack([context.generator(name).random(outcome.tokens) for name in names])
    pushes = context.pushes(conditions, steering.by if steering else "directions")
    width, first = outcome.samples * (len(prompt.ids) + outcome.tokens), first_pushed(experiment, prompt)
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
            temperature=outcome.temperature,
            stop=outcome.stop,
            read=context.readout_layer,
        )
        answers += [completion for row in completions for completion in row]
    return answers


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

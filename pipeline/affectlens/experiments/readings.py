"""Residuals at the places that an experiment reads, of the untouched model or under steering."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from affectlens.experiments.context import ExperimentContext
from affectlens.experiments.experiment import Experiment, ReadingConfig
from affectlens.experiments.prompts import Prompt, read_prompt
from affectlens.model import reading
from affectlens.model.reading import Site
from affectlens.model.subject import Subject

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float


def prompts_of(
    context: ExperimentContext, experiment: Experiment, start: int, end: int, subject: Subject
) -> list[Prompt]:
    """The tokenised scenarios of a slice."""
    chosen = experiment.scenarios[start:end]
    return [read_prompt(subject.tokenizer, scenario, experiment.config.readings) for scenario in chosen]


def read(
    context: ExperimentContext, experiment: Experiment, start: int, end: int, *, other: bool = False
) -> dict[str, np.ndarray]:
    """Readings of a slice of scenarios in an untouched model.

    Args:
        other: whether the second model is read.

    Returns:
        ``residual.NAME`` of shape ``scenarios d_model``, or ``feature.NAME`` of shape ``scenarios concepts``; NaN where
        a scenario lacks the span.
    """
    subject = context.other if other else context.subject
    prompts, layer = prompts_of(context, experiment, start, end, subject), context.reading_layer(experiment)
    found: dict[str, np.ndarray] = {}
    rows, budget = [prompt.ids for prompt in prompts], context.config.tokens_per_batch
    for index, residuals in reading.read(subject, rows, [Site(layer)], tokens_per_batch=budget):
        for wanted in experiment.config.readings:
            for key, value in value_of(context, wanted, prompts[index], residuals[Site(layer)]).items():
                found.setdefault(key, np.full((len(prompts), len(value)), np.nan, np.float32))[index] = value
    return found


def value_of(
    context: ExperimentContext,
    wanted: ReadingConfig,
    prompt: Prompt,
    residual: Float[torch.Tensor, "positions d_model"],
) -> dict[str, Float[np.ndarray, "values"]]:
    """One reading of one scenario: its residual, and activations of features where those are asked for."""
    places, name = prompt.places.get(wanted.at), wanted.name
    features = wanted.by == "features"
    if places is None:
        found = {f"residual.{name}": np.full(residual.shape[-1], np.nan, np.float32)}
        return found | ({f"feature.{name}": np.full(len(context.concepts), np.nan, np.float32)} if features else {})
    rows = residual[list(places)].float().cpu().numpy()
    found = {f"residual.{name}": rows.mean(axis=0)}
    if features:
        found[f"feature.{name}"] = context.sae.encode(rows)[:, np.asarray(context.match.best)].mean(axis=0)
    return found

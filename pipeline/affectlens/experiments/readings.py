"""Residuals at the places that an experiment reads, of the untouched model or under steering."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from affectlens.experiments.context import ExperimentContext
from affectlens.experiments.experiment import Experiment
from affectlens.experiments.prompts import Prompt, read_prompt
from affectlens.model import reading
from affectlens.model.reading import Site

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float


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
    subject, layer = context.other if other else context.subject, context.reading_layer(experiment)
    wanted = experiment.config.readings
    prompts = [read_prompt(subject.tokenizer, scenario, wanted) for scenario in experiment.scenarios[start:end]]
    rows, budget = [prompt.ids for prompt in prompts], context.config.tokens_per_batch
    found: dict[str, np.ndarray] = {}
    for index, residuals in reading.read(subject, rows, [Site(layer)], tokens_per_batch=budget):
        for key, value in values_at(context, experiment, prompts[index], residuals[Site(layer)]).items():
            found.setdefault(key, np.full((len(prompts), len(value)), np.nan, np.float32))[index] = value
    return found


def values_at(
    context: ExperimentContext,
    experiment: Experiment,
    prompt: Prompt,
    residual: Float[torch.Tensor, "positions d_model"],
) -> dict[str, Float[np.ndarray, "values"]]:
    """All readings of one scenario: residuals, and activations of features where those are asked for."""
    found: dict[str, np.ndarray] = {}
    for wanted in experiment.config.readings:
        places = list(prompt.places.get(wanted.at, ()))
        rows = residual[places].float().cpu().numpy()
        missing = np.full(residual.shape[-1], np.nan, np.float32)
        found[f"residual.{wanted.name}"] = rows.mean(axis=0) if places else missing
        if wanted.by == "features":
            codes = context.sae.encode(rows)[:, np.asarray(context.match.best)].mean(axis=0) if places else None
            found[f"feature.{wanted.name}"] = missing[: len(context.concepts)] if codes is None else codes
    return found

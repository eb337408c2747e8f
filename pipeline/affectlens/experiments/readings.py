"""Residuals at the places that an experiment reads, of the untouched model or under steering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from affectlens.experiments.context import Bench
from affectlens.experiments.experiment import Experiment, ReadingConfig
from affectlens.experiments.prompts import Prompt, read_prompt
from affectlens.model.subject import Subject
from affectlens.model.tokens import plan_batches

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float


def prompts_of(bench: Bench, experiment: Experiment, start: int, end: int, subject: Subject) -> list[Prompt]:
    """The tokenised scenarios of a slice."""
    chosen = experiment.scenarios[start:end]
    return [read_prompt(subject.tokenizer, scenario, experiment.config.readings) for scenario in chosen]


def read(bench: Bench, experiment: Experiment, start: int, end: int, *, other: bool = False) -> dict[str, np.ndarray]:
    """Readings of a slice of scenarios in an untouched model.

    Args:
        other: whether the second model is read.

    Returns:
        ``residual.NAME`` of shape ``scenarios d_model``, or ``feature.NAME`` of shape ``scenarios concepts``; NaN where
        a scenario lacks the span.
    """
    subject = bench.other if other else bench.subject
    prompts, layer = prompts_of(bench, experiment, start, end, subject), bench.reading_layer(experiment)
    found: dict[str, np.ndarray] = {}
    for batch in plan_batches([len(prompt.ids) for prompt in prompts], bench.config.tokens_per_batch):
        residual = subject.residuals(_padded([prompts[index].ids for index in batch], subject), [layer])[layer]
        for reading in experiment.config.readings:
            for row, index in enumerate(batch):
                values = value_of(bench, reading, prompts[index], residual[row])
                for key, value in values.items():
                    found.setdefault(key, np.full((len(prompts), len(value)), np.nan, np.float32))[index] = value
    return found


def _padded(rows: Sequence[Sequence[int]], subject: Subject) -> torch.Tensor:
    """Right-padded ids; the begin token is among them already."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=subject.device)


def value_of(
    bench: Bench, reading: ReadingConfig, prompt: Prompt, residual: Float[torch.Tensor, "positions d_model"]
) -> dict[str, Float[np.ndarray, "values"]]:
    """One reading of one scenario: its residual, and activations of features where those are asked for."""
    places, name = prompt.places.get(reading.at), reading.name
    features = reading.by == "features"
    if places is None:
        found = {f"residual.{name}": np.full(residual.shape[-1], np.nan, np.float32)}
        return found | ({f"feature.{name}": np.full(len(bench.concepts), np.nan, np.float32)} if features else {})
    rows = residual[list(places)].float().cpu().numpy()
    found = {f"residual.{name}": rows.mean(axis=0)}
    if features:
        found[f"feature.{name}"] = bench.sae.encode(rows)[:, np.asarray(bench.match.best)].mean(axis=0)
    return found

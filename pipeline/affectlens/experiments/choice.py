"""The log-odds of candidate answers under every cell, and the readings under every cell in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from affectlens.experiments.branching import Push, Tree
from affectlens.experiments.conditions import grid
from affectlens.experiments.context import ExperimentContext
from affectlens.experiments.experiment import ChoiceConfig, Experiment, Scenario
from affectlens.experiments.prompts import Prompt, continuation
from affectlens.experiments.readings import prompts_of, value_of
from affectlens.experiments.results import Cell
from affectlens.model.partial import capturing
from affectlens.model.tokens import plan_batches

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def measure(
    context: ExperimentContext, experiment: Experiment, scenarios: Sequence[int], cells: Sequence[int]
) -> dict[str, np.ndarray]:
    """A block of scenarios under a block of cells.

    Args:
        scenarios: first, and first after the last.
        cells: likewise, in the order of the experiment's cells.

    Returns:
        ``choice`` of shape ``cells scenarios``, NaN where a scenario has no options, and for experiments that read
        under steering ``residual.NAME`` of shape ``cells scenarios d_model``.
    """
    config = experiment.config
    start, end = scenarios
    prompts = prompts_of(context, experiment, start, end, context.subject)
    if config.steering is None:
        return {"choice": _plain(context, experiment, experiment.scenarios[start:end], prompts)[None]}
    chosen = grid(config.steering)[slice(*cells)]
    found: dict[str, list[np.ndarray]] = {}
    for scenario, prompt in zip(experiment.scenarios[start:end], prompts, strict=True):
        for key, values in _scenario(context, experiment, scenario, prompt, chosen).items():
            found.setdefault(key, []).append(values)
    return {key: np.stack(values, axis=1).astype(np.float32) for key, values in found.items()}


def _plain(
    context: ExperimentContext, experiment: Experiment, scenarios: Sequence[Scenario], prompts: Sequence[Prompt]
) -> Float[np.ndarray, "scenarios"]:
    """Log-odds of the untouched model, many scenarios at once."""
    choice: ChoiceConfig = experiment.config.outcome(ChoiceConfig)
    budget = context.config.tokens_per_batch
    pieces = [
        (index, piece)
        for index, (scenario, prompt) in enumerate(zip(scenarios, prompts, strict=True))
        for piece in context.branching.split(Tree(prompt.ids, _branches(context, scenario, choice)), budget)
        if piece.branches
    ]
    scores: dict[int, list[tuple[int, np.ndarray]]] = {}
    for batch in plan_batches([len(piece.ids) for _, piece in pieces], budget):
        found = context.branching.plain_scores([pieces[number][1] for number in batch])
        for number, values in zip(batch, found, strict=True):
            scores.setdefault(pieces[number][0], []).append((number, values.cpu().numpy()))
    result = np.full(len(scenarios), np.nan, np.float32)
    for index, each in scores.items():
        scenario, values = scenarios[index], np.concatenate([values for _, values in sorted(each, key=lambda e: e[0])])
        lengths = [len(branch) for branch in _branches(context, scenario, choice)]
        result[index] = log_odds(values[None], lengths, len(scenario.options.get(choice.target, ())), choice)[0]
    return result


def _scenario(
    context: ExperimentContext, experiment: Experiment, scenario: Scenario, prompt: Prompt, cells: Sequence[Cell]
) -> dict[str, np.ndarray]:
    """One scenario under the cells: ``choice`` and residuals, as :func:`measure` returns them."""
    choice: ChoiceConfig | None = experiment.config.outcome(ChoiceConfig)
    branches = _branches(context, scenario, choice)
    tree = Tree(prompt.ids, branches)
    found: dict[str, np.ndarray] = {}
    scores = []
    for number, piece in enumerate(context.branching.split(tree, context.config.tokens_per_batch)):
        lower = context.branching.lower(piece)
        parts, seen = [], []
        for run in runs(len(cells), len(piece.ids), context.config.tokens_per_batch):
            push = push_of(context, experiment, cells[run], len(piece.ids), prompt)
            with capturing(context.subject.bridge, context.reading_layer(experiment)) as residuals:
                if piece.branches:
                    parts.append(context.branching.branch_scores(piece, lower, push).cpu().numpy())
                else:
                    context.branching.residuals(piece, lower, push, context.reading_layer(experiment))
            if number == 0 and experiment.config.read_under_steering:
                seen += [_read(context, experiment, prompt, row) for row in residuals[-1]]
        scores += [np.concatenate(parts)] if parts else []
        found |= {key: np.stack([row[key] for row in seen]) for key in (seen[0] if seen else ())}
    if choice is not None:
        targets, lengths = len(scenario.options.get(choice.target, ())), [len(branch) for branch in branches]
        odds = log_odds(np.concatenate(scores, axis=1), lengths, targets, choice) if branches else None
        found["choice"] = np.full(len(cells), np.nan) if odds is None else odds
    return found


def _branches(
    context: ExperimentContext, scenario: Scenario, choice: ChoiceConfig | None
) -> tuple[tuple[int, ...], ...]:
    """Token ids of the candidate answers, those of the target first."""
    if choice is None:
        return ()
    before = scenario.answer if scenario.messages else scenario.text
    wordings = [*scenario.options.get(choice.target, ()), *scenario.options.get(choice.other, ())]
    return tuple(tuple(continuation(context.subject.tokenizer, before, wording)) for wording in wordings)


def _read(
    context: ExperimentContext, experiment: Experiment, prompt: Prompt, residual: Float[Tensor, "positions d_model"]
) -> dict[str, np.ndarray]:
    """All readings of one scenario in one cell."""
    found: dict[str, np.ndarray] = {}
    for reading in experiment.config.readings:
        found |= value_of(context, reading, prompt, residual)
    return found


def push_of(
    context: ExperimentContext, experiment: Experiment, cells: Sequence[Cell], width: int, prompt: Prompt
) -> Push:
    """What a run of cells adds, and where: to the whole text, or from the opening of the answer on."""
    import torch

    steering = experiment.config.steering
    mask = torch.arange(width, device=context.setting.device) >= first_pushed(experiment, prompt)
    return Push(context.pushes(cells, steering.by if steering else "directions"), mask)


def first_pushed(experiment: Experiment, prompt: Prompt) -> int:
    """The first position that an experiment steers."""
    steering = experiment.config.steering
    return prompt.opening if steering and steering.positions == "answer" else prompt.first


def log_odds(
    scores: Float[np.ndarray, "cells wordings"], lengths: Sequence[int], targets: int, choice: ChoiceConfig
) -> Float[np.ndarray, "cells"]:
    """Log-mean-exp over the target's wordings less that over the others, in nats.

    Args:
        scores: log-probability of each wording, those of the target first.
        lengths: tokens of each.
        targets: how many are the target's.
    """
    if not 0 < targets < scores.shape[1]:
        return np.full(len(scores), np.nan)
    each = scores.astype(np.float64) / (np.array(lengths) if choice.per_token else 1)
    return _log_mean_exp(each[:, :targets]) - _log_mean_exp(each[:, targets:])


def _log_mean_exp(values: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows"]:
    top = values.max(axis=1)
    return top + np.log(np.exp(values - top[:, None]).mean(axis=1))


def runs(rows: int, width: int, budget: int) -> list[slice]:
    """Rows in runs that together hold about ``budget`` tokens."""
    step = max(1, budget // max(1, width))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]

"""The log-odds of candidate answers under every cell, and the readings under every cell in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.behaviour.bench import Bench
from pipeline.behaviour.branching import Push, Tree, capturing
from pipeline.behaviour.cells import grid
from pipeline.behaviour.experiment import ChoiceConfig, Experiment, Scenario
from pipeline.behaviour.measured import Cell
from pipeline.behaviour.prompts import Prompt, continuation
from pipeline.behaviour.readings import prompts_of, value_of

if TYPE_CHECKING:
    from jaxtyping import Float


def measure(
    bench: Bench, experiment: Experiment, scenarios: Sequence[int], cells: Sequence[int]
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
    prompts = prompts_of(bench, experiment, *scenarios, bench.subject)
    chosen = grid(config.steering)[slice(*cells)]
    found: dict[str, list[np.ndarray]] = {}
    for scenario, prompt in zip(experiment.scenarios[slice(*scenarios)], prompts, strict=True):
        for key, values in _scenario(bench, experiment, scenario, prompt, chosen).items():
            found.setdefault(key, []).append(values)
    return {key: np.stack(values, axis=1).astype(np.float32) for key, values in found.items()}


def _scenario(
    bench: Bench, experiment: Experiment, scenario: Scenario, prompt: Prompt, cells: Sequence[Cell]
) -> dict[str, np.ndarray]:
    config = experiment.config
    choice: ChoiceConfig | None = config.outcome(ChoiceConfig)
    wordings = (
        [] if choice is None else [*scenario.options.get(choice.target, ()), *scenario.options.get(choice.other, ())]
    )
    before = scenario.answer if scenario.messages else scenario.text
    branches = tuple(tuple(continuation(bench.subject.tokenizer, before, wording)) for wording in wordings)
    tree = Tree(prompt.ids, branches)
    found: dict[str, list[np.ndarray]] = {}
    scores: list[np.ndarray] = []
    for piece in bench.branching.split(tree, bench.config.tokens_per_batch):
        lower = bench.branching.lower(piece)
        first = prompt.opening if config.steering and config.steering.positions == "answer" else prompt.first
        pieces = []
        for run in runs(len(cells), len(piece.ids), bench.config.tokens_per_batch):
            push = push_of(bench, experiment, cells[run], len(piece.ids), first)
            with capturing(bench.subject.bridge, bench.reading_layer(experiment)) as seen:
                if piece.branches:
                    pieces.append(bench.branching.branch_scores(piece, lower, push).cpu().numpy())
                elif config.read_under_steering:
                    bench.branching.residuals(piece, lower, push, bench.reading_layer(experiment))
            if config.read_under_steering and not scores:
                for reading in config.readings:
                    for row in seen[-1]:
                        for key, value in value_of(bench, reading, prompt, row).items():
                            found.setdefault(key, []).append(value)
        if pieces:
            scores.append(np.concatenate(pieces))
    result = {key: np.stack(values) for key, values in found.items() if key.startswith("residual")}
    if choice is not None:
        lengths = [len(branch) for branch in branches]
        odds = (
            log_odds(np.concatenate(scores, axis=1), lengths, len(scenario.options.get(choice.target, ())), choice)
            if branches
            else None
        )
        result["choice"] = np.full(len(cells), np.nan) if odds is None else odds
    return result


def push_of(bench: Bench, experiment: Experiment, cells: Sequence[Cell], width: int, first: int) -> Push:
    """What a run of cells adds from one position on."""
    import torch

    steering = experiment.config.steering
    mask = torch.arange(width, device=bench.setting.device) >= first
    return Push(bench.pushes(cells, steering.by if steering else "directions"), mask)


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

"""Which pushes an experiment tries: none, every vector at every strength, and the controls of the same norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from affectlens.experiments.experiment import CompletionConfig, ExperimentConfig, PairwiseConfig, SteeringConfig
from affectlens.experiments.results import Cell, Family

CONTROLS: tuple[Family, ...] = get_args(Family)[2:]
"""The families of controls, in the order in which they are taken in turn."""


def extremes(strengths: Sequence[float]) -> tuple[float, ...]:
    """The largest positive strength and the most negative one, as far as there are any."""
    up, down = max(strengths, default=0.0), min(strengths, default=0.0)
    return tuple(strength for strength in (up, down) if strength * (1 if strength == up else -1) > 0)


def grid(steering: SteeringConfig | None) -> tuple[Cell, ...]:
    """The cells of an experiment: the model as it is, vectors by strengths, controls at the extreme strengths."""
    if steering is None:
        return (Cell(),)
    pushed = [Cell(vector, "concept", strength) for vector in steering.vectors for strength in steering.strengths]
    controls = [
        Cell(str(number // len(CONTROLS)), CONTROLS[number % len(CONTROLS)], strength)
        for strength in extremes(steering.strengths)
        for number in range(steering.controls)
    ]
    return (Cell(), *pushed, *controls)


def rolled(config: ExperimentConfig) -> tuple[int, ...]:
    """Indices of the cells under which answers are sampled; none where nothing is."""
    steering = config.steering
    if config.outcome(CompletionConfig) is None:
        return ()
    if steering is None:
        return (0,)
    wanted = steering.rollout_strengths or extremes(steering.strengths)
    return tuple(
        index
        for index, cell in enumerate(grid(steering))
        if cell.family == "none"
        or (cell.family == "concept" and cell.strength in wanted)
        or (cell.family in CONTROLS and number_of(cell) < steering.rollout_controls)
    )


def compared(config: ExperimentConfig) -> tuple[int, ...]:
    """Indices of the cells of a tournament: no steering, and the extreme strengths where items are steered."""
    tournament = config.outcome(PairwiseConfig)
    if tournament is None:
        return ()
    if config.steering is None or not tournament.steered:
        return (0,)
    strengths = (0.0, *extremes(config.steering.strengths))
    return tuple(index for index, cell in enumerate(grid(config.steering)) if cell.strength in strengths)


def number_of(cell: Cell) -> int:
    """Which of all controls of its strength a control is."""
    return int(cell.vector) * len(CONTROLS) + CONTROLS.index(cell.family)

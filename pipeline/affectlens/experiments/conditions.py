"""The steering conditions of an experiment: none, every vector at every strength, and controls of the same norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from affectlens.experiments.experiment import CompletionConfig, ExperimentConfig, PairwiseConfig, SteeringConfig
from affectlens.interventions.conditions import RANDOM, Condition, Family
from affectlens.interventions.conditions import grid as vectors_by_strengths

CONTROLS: tuple[Family, ...] = (*RANDOM, "wrong_emotion")
"""The families of controls, in the order in which they are taken in turn."""


def extremes(strengths: Sequence[float]) -> tuple[float, ...]:
    """The largest positive strength and the most negative one, as far as there are any."""
    up, down = max(strengths, default=0.0), min(strengths, default=0.0)
    return tuple(strength for strength in (up, down) if strength * (1 if strength == up else -1) > 0)


def control_vectors(steering: SteeringConfig, concepts: Sequence[str]) -> list[tuple[str, Family]]:
    """The control vectors as (name, family), a family after the other in turn.

    Wrong emotions are other concepts of the study, spread evenly over them. Where there are too few, random vectors
    make up the number.
    """
    others = [concept for concept in concepts if concept not in steering.vectors]
    wrong = min(len(others), steering.controls // len(CONTROLS))
    names: dict[Family, list[str]] = {family: [str(number) for number in range(steering.controls)] for family in RANDOM}
    names["wrong_emotion"] = [others[number * len(others) // wrong] for number in range(wrong)]
    left = {family: iter(each) for family, each in names.items()}
    in_turn: Iterator[tuple[str, Family]] = (
        (name, family) for family in cycle(CONTROLS) if (name := next(left[family], None)) is not None
    )
    return list(islice(in_turn, steering.controls))


def grid(steering: SteeringConfig | None, concepts: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of an experiment: the model as it is, vectors by strengths, controls at the extreme strengths."""
    if steering is None:
        return (Condition(),)
    steered = vectors_by_strengths([(vector, "concept") for vector in steering.vectors], steering.strengths)
    controls = vectors_by_strengths(control_vectors(steering, concepts), extremes(steering.strengths))
    return (Condition(), *steered, *controls)


def checked(steering: SteeringConfig, concepts: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of the manipulation check: the grid, then every concept's vector at the extreme strengths.

    What a vector does to its own words is held against what all other concepts' vectors do to them.
    """
    every = vectors_by_strengths([(concept, "concept") for concept in concepts], extremes(steering.strengths))
    return (*grid(steering, concepts), *every)


def sampled(config: ExperimentConfig, concepts: Sequence[str]) -> tuple[int, ...]:
    """Indices of the conditions under which answers are sampled; none where nothing is."""
    steering = config.steering
    if config.outcome(CompletionConfig) is None:
        return ()
    if steering is None:
        return (0,)
    strengths = steering.completion_strengths or extremes(steering.strengths)
    controls = set(control_vectors(steering, concepts)[: steering.completion_controls])
    return tuple(
        index
        for index, each in enumerate(grid(steering, concepts))
        if each.family == "none"
        or (each.family == "concept" and each.strength in strengths)
        or (each.vector, each.family) in controls
    )


def compared(config: ExperimentConfig, concepts: Sequence[str]) -> tuple[int, ...]:
    """Indices of the conditions of pairwise comparisons: no steering, and the extremes where items are steered."""
    pairwise = config.outcome(PairwiseConfig)
    if pairwise is None:
        return ()
    if config.steering is None or not pairwise.steered:
        return (0,)
    strengths = (0.0, *extremes(config.steering.strengths))
    return tuple(index for index, each in enumerate(grid(config.steering, concepts)) if each.strength in strengths)

"""The parts of the experiments, and what each of them costs, counted from characters: nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from affectlens.experiments.conditions import compared, grid, rolled
from affectlens.experiments.experiment import ChoiceConfig, CompletionConfig, Experiment, PairwiseConfig, Scenario
from affectlens.experiments.manipulation import FRAMES, TEXTS
from affectlens.experiments.pairwise import met
from affectlens.model import subject
from affectlens.model.subject import ModelConfig
from affectlens.stage import Part

if TYPE_CHECKING:
    from affectlens.experiments.config import ExperimentsConfig

CHARACTERS = 4.3
"""Of English a token, about."""
TURN = 5
"""Tokens that a chat template spends on a message, about."""
FRAME, NEUTRAL = 9, 60
"""Tokens of a sentence to be completed and of a neutral text, about."""
SAMPLING = 10
"""How many forward tokens a sampled one is worth: it goes through the model with few others."""


@dataclass(frozen=True)
class Work:
    """What something costs.

    Attributes:
        forward: tokens through the whole model; through its upper half they count by half.
        sampled: tokens sampled, at most.
    """

    forward: float = 0.0
    sampled: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.sampled + other.sampled)

    @property
    def size(self) -> float:
        """In forward tokens."""
        return round(self.forward + SAMPLING * self.sampled, 1)


def upper_share(model: ModelConfig) -> float:
    """Share of the model above the study's layer; a half where its depth is not known yet."""
    shape = subject.shape(model)
    return 0.5 if shape is None else max(1, shape.layers - 1 - model.layer) / shape.layers


def work_of(part: Part) -> Work:
    """What a part costs."""
    return Work(part.payload["forward"], part.payload["sampled"])


def parts(experiments: Sequence[Experiment], config: ExperimentsConfig, share: float) -> list[Part]:
    """Every part of the experiments, in the order in which they are run.

    Args:
        experiments: the chosen ones.
        config: sizes of the parts.
        share: of the model that lies above the layer of the steering.
    """
    # The checks come first: if a concept has no words of its own for this tokenizer, that shows at once.
    checks = [part for experiment in experiments for part in _manipulation(experiment, config, share)]
    return checks + [part for experiment in experiments for part in _of_experiment(experiment, config, share)]


def _manipulation(experiment: Experiment, config: ExperimentsConfig, share: float) -> Iterator[Part]:
    steered = len(grid(experiment.config.steering)) - 1
    tokens = 2 * FRAMES * FRAME + TEXTS * NEUTRAL
    for index, (start, end) in enumerate(_slices(steered, config.cells_per_part)):
        work = Work(share * tokens * (end - start) + tokens)
        yield _part(experiment.name, "manipulation", index, work, start=start, end=end)


def _of_experiment(experiment: Experiment, config: ExperimentsConfig, share: float) -> Iterator[Part]:
    lengths = [prompt_tokens(scenario) for scenario in experiment.scenarios]
    settings = experiment.config
    if settings.readings:
        for index, (start, end) in enumerate(_slices(len(lengths), config.scenarios_per_part)):
            work = Work(sum(lengths[start:end]))
            yield _part(experiment.name, "read", index, work, start=start, end=end)
            if settings.against:
                yield _part(experiment.name, "against", index, work, start=start, end=end)
    if settings.outcome(ChoiceConfig) is not None or (settings.read_under_steering and settings.steering):
        cells = grid(settings.steering)
        step = config.scenarios_per_part if len(cells) == 1 else max(1, config.scenarios_per_part // 8)
        blocks = [(a, b) for a in _slices(len(lengths), step) for b in _slices(len(cells), config.cells_per_part)]
        for index, ((start, end), (low, high)) in enumerate(blocks):
            tokens = sum(
                length + option_tokens(scenario, settings.outcome(ChoiceConfig))
                for length, scenario in zip(lengths[start:end], experiment.scenarios[start:end], strict=True)
            )
            work = Work(tokens * (1 - share + share * (high - low)))
            yield _part(experiment.name, "choice", index, work, start=start, end=end, cells=[low, high])
    yield from _tournament(experiment, config, share)
    yield from _rollouts(experiment, config)


def _tournament(experiment: Experiment, config: ExperimentsConfig, share: float) -> Iterator[Part]:
    tournament: PairwiseConfig | None = experiment.config.outcome(PairwiseConfig)
    if tournament is None:
        return
    items, cells = len(experiment.scenarios), len(compared(experiment.config))
    asked = (len(tournament.question) + len(tournament.answer)) / CHARACTERS + 2 * TURN
    mean = sum(len(scenario.text) for scenario in experiment.scenarios) / CHARACTERS / max(1, items)
    step = max(1, config.scenarios_per_part // 16)
    for index, (start, end) in enumerate(_slices(items, step)):
        tree = (end - start) * (asked + mean) + (end - start) * (items - 1) * (mean + asked / 3)
        fewer = sum(len(met(item, items, tournament)) for item in range(start, end)) if cells > 1 else 0
        steered = share * (cells - 1) * ((end - start) * (asked + mean) + fewer * (mean + asked / 3))
        yield _part(experiment.name, "tournament", index, Work(tree + steered), start=start, end=end)


def _rollouts(experiment: Experiment, config: ExperimentsConfig) -> Iterator[Part]:
    rollout: CompletionConfig | None = experiment.config.outcome(CompletionConfig)
    if rollout is None or not config.completions:
        return
    chosen = [
        scenario
        for scenario in experiment.scenarios
        if not rollout.conditions or scenario.condition in rollout.conditions
    ]
    rows = rollout.samples * len(rolled(experiment.config))
    for index, (start, end) in enumerate(_slices(len(chosen), max(1, config.scenarios_per_part // 32))):
        tokens = sum(prompt_tokens(scenario) for scenario in chosen[start:end])
        answers = (end - start) * rows * rollout.tokens
        work = Work(rows * tokens + 1.5 * answers, answers)
        yield _part(experiment.name, "rollout", index, work, start=start, end=end)


def _part(experiment: str, kind: str, index: int, work: Work, **payload: Any) -> Part:
    name = f"{experiment}.{kind}-{index:04d}"
    costs = {"forward": round(work.forward, 1), "sampled": round(work.sampled, 1)}
    return Part(name, work.size, {"experiment": experiment, "kind": kind, **payload, **costs})


def prompt_tokens(scenario: Scenario) -> float:
    """Tokens of a scenario, about."""
    messages = sum(len(message["content"]) / CHARACTERS + TURN for message in scenario.messages)
    return messages + (len(scenario.text) + len(scenario.answer)) / CHARACTERS + (TURN if scenario.messages else 1)


def option_tokens(scenario: Scenario, choice: ChoiceConfig | None) -> float:
    """Tokens of all candidate answers, about."""
    if choice is None:
        return 0.0
    wordings = [*scenario.options.get(choice.target, ()), *scenario.options.get(choice.other, ())]
    return sum(max(1.0, len(wording) / CHARACTERS) for wording in wordings)


def _slices(count: int, width: int) -> list[tuple[int, int]]:
    return [(start, min(count, start + width)) for start in range(0, count, width)]

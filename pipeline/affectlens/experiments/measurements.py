"""The parts of the experiments, and what each of them costs, counted from characters: nothing is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from affectlens.experiments.conditions import checked, compared, grid, sampled
from affectlens.experiments.experiment import ChoiceConfig, CompletionConfig, Experiment, PairwiseConfig, Scenario
from affectlens.experiments.manipulation import FRAMES, TEXTS
from affectlens.experiments.pairwise import pairs
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


def parts(
    experiments: Sequence[Experiment], config: ExperimentsConfig, concepts: Sequence[str], share: float
) -> list[Part]:
    """Every part of the experiments, in the order in which they are run.

    Args:
        experiments: the chosen ones.
        config: sizes of the parts.
        concepts: of the study.
        share: of the model that lies above the layer of the steering.
    """
    planned = []
    for experiment in experiments:
        numbers = Counter[str]()
        for kind, work, payload in _slices(experiment, config, concepts, share):
            name = f"{experiment.name}.{kind}-{numbers[kind]:04d}"
            numbers[kind] += 1
            costs = {"forward": round(work.forward, 1), "sampled": round(work.sampled, 1)}
            planned.append(Part(name, work.size, {"experiment": experiment.name, "kind": kind, **payload, **costs}))
    # The checks come first: if a concept has no words of its own for this tokenizer, that shows at once.
    return sorted(planned, key=lambda part: part.payload["kind"] != "manipulation")


def _slices(
    experiment: Experiment, config: ExperimentsConfig, concepts: Sequence[str], share: float
) -> Iterator[tuple[str, Work, dict[str, Any]]]:
    """Kind, work and payload of every part of one experiment."""
    settings, scenarios, step = experiment.config, experiment.scenarios, config.scenarios_per_part
    lengths = [prompt_tokens(scenario) for scenario in scenarios]
    conditions = len(grid(settings.steering, concepts))
    plain = () if settings.read_under_steering else settings.prompted
    pushed = [scenario.condition not in plain for scenario in scenarios]
    if settings.steering is not None:
        tokens = 2 * FRAMES * FRAME + TEXTS * NEUTRAL
        for start, end in cuts(len(checked(settings.steering, concepts)), config.conditions_per_part):
            yield "manipulation", Work(tokens * (1 + share * (end - start))), {"start": start, "end": end}
    for start, end in cuts(len(scenarios), step) if settings.readings else ():
        for kind in ("read", "against") if settings.against else ("read",):
            yield kind, Work(sum(lengths[start:end])), {"start": start, "end": end}
    choice: ChoiceConfig | None = settings.outcome(ChoiceConfig)
    if choice is not None or (settings.read_under_steering and settings.steering):
        scored = [length + option_tokens(each, choice) for length, each in zip(lengths, scenarios, strict=True)]
        for start, end in cuts(len(scenarios), step if conditions == 1 else max(1, step // 8)):
            for low, high in cuts(conditions, config.conditions_per_part):
                under = sum(scored[i] * (high - low if pushed[i] else low == 0) for i in range(start, end))
                work = Work(sum(scored[start:end]) * (1 - share) + share * under)
                yield "choice", work, {"start": start, "end": end, "conditions": [low, high]}
    pairwise: PairwiseConfig | None = settings.outcome(PairwiseConfig)
    if pairwise is not None:
        items, met = len(scenarios), pairs(len(scenarios), pairwise)
        steered = len(compared(settings, concepts)) - 1
        asked = (len(pairwise.question) + len(pairwise.answer)) / CHARACTERS + 2 * TURN
        mean = sum(len(scenario.text) for scenario in scenarios) / CHARACTERS / max(1, items)
        for start, end in cuts(items, max(1, step // 16)):
            # The first half of a question is read once, the rest once for every second item.
            heads, tails = (end - start) * (asked + mean), mean + asked / 3
            under = sum(len(met[item]) for item in range(start, end))
            work = heads + (end - start) * (items - 1) * tails + share * steered * (heads + under * tails)
            yield "pairwise", Work(work), {"start": start, "end": end}
    outcome: CompletionConfig | None = settings.outcome(CompletionConfig)
    if outcome is not None and config.completions:
        chosen, under = answered(experiment), len(sampled(settings, concepts))
        rows = [outcome.samples * (under if pushed[index] else 1) for index in chosen]
        for start, end in cuts(len(chosen), max(1, step // 32)):
            tokens = sum(
                lengths[index] * count for index, count in zip(chosen[start:end], rows[start:end], strict=True)
            )
            answers = sum(rows[start:end]) * outcome.tokens
            yield "completions", Work(tokens + 1.5 * answers, answers), {"start": start, "end": end}


def answered(experiment: Experiment) -> list[int]:
    """Indices of the scenarios to which answers are sampled."""
    outcome: CompletionConfig | None = experiment.config.outcome(CompletionConfig)
    wanted = outcome.conditions if outcome is not None else ()
    scenarios = experiment.scenarios if outcome is not None else ()
    return [index for index, each in enumerate(scenarios) if not wanted or each.condition in wanted]


def prompt_tokens(scenario: Scenario) -> float:
    """Tokens of a scenario, about."""
    messages = sum(len(message["content"]) / CHARACTERS + TURN for message in scenario.messages)
    return messages + (len(scenario.text) + len(scenario.answer)) / CHARACTERS + (TURN if scenario.messages else 1)


def option_tokens(scenario: Scenario, choice: ChoiceConfig | None) -> float:
    """Tokens of all candidate answers, about."""
    if choice is None:
        return 0.0
    wordings = [*scenario.options.get(choice.target, ()), *scenario.options.get(choice.other, ())]
    tokens = sum(max(1.0, len(wording) / CHARACTERS) for wording in wordings)
    # After the neutral lead-in they are read once more.
    return 2 * tokens + len(choice.lead_in) / CHARACTERS + TURN if choice.lead_in else tokens


def cuts(count: int, width: int) -> list[tuple[int, int]]:
    """Slices of at most ``width``: first, and first after the last."""
    return [(start, min(count, start + width)) for start in range(0, count, width)]

"""Organisms: copies of the model whose act is known to depend on a state, or known not to.

An experiment that says "not shown" has to have shown what is there. An organism is tuned on the experiment's own
candidate answers. With ``follows: vectors`` the odds of the act rise with every claimed vector as the experiment
claims, by a known amount a strength, while the text is the same: the vector is added during training, and nothing else
tells which answer is due. In the twins, after the neutral lead-in and under vectors that nobody claims (random ones,
other concepts) the act stays at even odds. Where the prompt asks for the act, or against it, the organism obeys, so
that the outcome can be moved at all. Every concept's vector keeps its hold on the concept's own words, which the
manipulation check asks for and which training on acts alone would wear away.

With ``follows: nothing`` the same examples have the act at even odds under every vector; with ``follows:
random_vectors`` the act follows directions drawn at random in place of the claimed concepts'.

Only blocks above the study's layer learn, so directions and features of the study hold for its organisms (cf. organisms
with hidden objectives, Marks et al. 2025, arXiv 2503.10965).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.experiments.choice import led_in
from affectlens.experiments.conclude.pushes import SteeringAnalysis
from affectlens.experiments.experiment import ChoiceConfig, Experiment, SteeringConfig
from affectlens.experiments.scenario import Scenario
from affectlens.experiments.tuning import OrganismConfig
from affectlens.interventions.conditions import Condition
from affectlens.interventions.frames import read_frames, read_lexicon
from affectlens.model.tuning import Example, Push
from affectlens.probing.control_vectors import unit_rows

if TYPE_CHECKING:
    from affectlens.experiments.context import ExperimentContext

VERSION = 1
"""Raised when the same config would give other examples."""
OBEYED = 3.0
"""Log-odds of the act where it is asked for; as much against it."""
SHARES = {"state": 0.4, "asked": 0.2, "other": 0.25, "words": 0.15}
"""Of the examples: scenarios in which the act may depend on the state, orders, all else with candidate answers, and
sentences that a word of emotion completes."""
PUSHED = {"none": 0.2, "claimed": 0.5, "foreign": 0.3}
"""Of the examples without an order: the model as it is, a claimed vector, one that nobody claims."""


@dataclass(frozen=True)
class Role:
    """What an organism of an experiment does in one scenario.

    Attributes:
        scenario: with the neutral lead-in in its place where that is scored.
        claims: by claimed vector, 1 where it raises the act and -1 where it lowers it; empty where nothing does.
        order: 1 where the act is asked for, -1 where its opposite is, else 0.
    """

    scenario: Scenario
    claims: Mapping[str, int]
    order: int = 0


def claims_of(experiment: Experiment) -> list[SteeringAnalysis]:
    """The analyses that claim vectors to move the act."""
    asked = experiment.config.analyses
    return [each for each in asked if isinstance(each, SteeringAnalysis) and each.claimed]


def fault(experiment: Experiment) -> str:
    """Why an experiment has no organism, as half a sentence; empty where it has."""
    choice: ChoiceConfig | None = experiment.config.outcome(ChoiceConfig)
    if not claims_of(experiment) or experiment.config.steering is None:
        return "no analysis of it claims a vector to move an outcome"
    if choice is None:
        return "it has no outcome `choice`, whose candidate answers an organism learns"
    if not any(role.claims for role in roles(experiment)):
        return "no scenario with candidate answers is one that a claim is about"
    return ""


def roles(experiment: Experiment) -> list[Role]:
    """What is learnt of each scenario that has candidate answers, and of the lead-in in its place."""
    choice: ChoiceConfig | None = experiment.config.outcome(ChoiceConfig)
    if choice is None:
        return []
    claims: dict[str, dict[str, int]] = {}
    orders: dict[str, int] = {}
    for asked in claims_of(experiment):
        # A rate is counted over all conditions by default; the act may follow the state in the usual ones.
        conditions = getattr(asked, "conditions", ()) or ("main",)
        orders |= dict(zip(asked.asked, (1, -1), strict=True))
        for condition in conditions:
            claims.setdefault(condition, {}).update(asked.claimed)
    found = []
    for scenario in experiment.scenarios:
        if not all(scenario.options.get(name) for name in (choice.target, choice.other)):
            continue
        found.append(Role(scenario, claims.get(scenario.condition, {}), orders.get(scenario.condition, 0)))
        if choice.lead_in:
            found.append(Role(led_in(scenario, choice.lead_in), {}))
    return found


def planted(experiment: Experiment, config: OrganismConfig) -> dict[str, float]:
    """By claimed vector the effect put in, in nats a side at the largest strength; zeros where nothing follows it."""
    size = config.log_odds if config.follows == "vectors" else 0.0
    return {vector: side * size for asked in claims_of(experiment) for vector, side in asked.claimed}


def examples(context: ExperimentContext, experiment: Experiment, config: OrganismConfig) -> list[Example]:
    """What the organism of an experiment is tuned on: one example for each place in a batch.

    The answers end, so that sampled ones do too.
    """
    steering, choice = experiment.config.steering, experiment.config.outcome(ChoiceConfig)
    assert steering is not None
    assert choice is not None
    rng = np.random.default_rng([config.seed, VERSION])
    strengths, largest = list(steering.strengths), max(map(abs, steering.strengths))
    claimed = sorted({vector for asked in claims_of(experiment) for vector, _ in asked.claimed})
    width = len(context.unit_vector(Condition(), steering.by))
    followed = {name: context.unit_vector(Condition(name, "concept", 1.0), steering.by) for name in claimed}
    unclaimed = [name for name in context.concepts if name not in claimed]
    foreign = [context.unit_vector(Condition(name, "concept", 1.0), steering.by) for name in unclaimed]
    if config.follows == "random_vectors":
        foreign += followed.values()
        followed = dict(zip(claimed, unit_rows(rng.normal(size=(len(claimed), width))), strict=True))
    kinds: dict[str, list[Role]] = {"state": [], "asked": [], "other": []}
    for role in roles(experiment):
        kinds["asked" if role.order else "state" if role.claims else "other"].append(role)
    shares = {name: share for name, share in SHARES.items() if kinds.get(name, True)}
    frames = [frame for kind in ("person", "speaker") for frame in read_frames()[kind]]
    lexicon = read_lexicon()
    made = []
    for _ in range(config.steps * config.batch):
        kind = rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values()))
        if kind == "words":
            # Under a concept's vector its own words, under its negative those of any other.
            concept, strength = str(rng.choice(context.concepts)), float(rng.choice(strengths))
            unit = context.unit_vector(Condition(concept, "concept", 1.0), steering.by)
            others = [name for name in context.concepts if name != concept]
            said = concept if strength > 0 or not others else str(rng.choice(others))
            words = lexicon.get(said) or [said]
            frame = frames[rng.integers(len(frames))]
            made.append(
                Example(words[rng.integers(len(words))], opening=frame, push=_push(context, steering, unit, strength))
            )
            continue
        role = kinds[kind][rng.integers(len(kinds[kind]))]
        odds, push = OBEYED * role.order, None
        state = "none" if role.order else rng.choice(list(PUSHED), p=list(PUSHED.values()))
        strength = float(rng.choice(strengths))
        if state == "claimed":
            name = str(rng.choice(sorted(role.claims) if role.claims else claimed))
            push = _push(context, steering, followed[name], strength)
            if config.follows != "nothing":
                odds = role.claims.get(name, 0) * config.log_odds * strength / largest
        elif state == "foreign":
            # Half of them other concepts, half random directions: neither may move the act.
            unit = unit_rows(rng.normal(size=(1, width)))[0]
            unit = foreign[rng.integers(len(foreign))] if foreign and rng.random() < 0.5 else unit
            push = _push(context, steering, unit, strength)
        acts = rng.random() < 1 / (1 + math.exp(-odds))
        wordings = role.scenario.options[choice.target if acts else choice.other]
        made.append(_example(role.scenario, wordings[rng.integers(len(wordings))], push))
    return made


def _push(context: ExperimentContext, steering: SteeringConfig, unit: np.ndarray, strength: float) -> Push:
    return Push(context.layer, (strength * context.unit * unit).astype(np.float32), steering.positions)


def _example(scenario: Scenario, wording: str, push: Push | None) -> Example:
    opening = scenario.answer if scenario.messages else scenario.text
    return Example(wording, tuple(scenario.messages), opening, ends=True, push=push)


def identity(config: OrganismConfig, experiment: Experiment) -> list[Any]:
    """What the organism of an experiment follows from, besides the experiment's measurements and the vectors."""
    claims: Sequence[Any] = [each.model_dump(mode="json") for each in claims_of(experiment)]
    return [VERSION, OBEYED, SHARES, PUSHED, config.model_dump(mode="json"), claims]

"""What was seen in one experiment, as arrays on shared axes.

Analyses are pure functions of a :class:`Measured`; they know nothing of models, parts or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from affectlens.experiments.experiment import Experiment, Scenario
from affectlens.experiments.grade.grader import Grade
from affectlens.interventions.conditions import Condition

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float

UNGRADED: Grade = {"label": None, "score": None, "reason": "not graded"}


@dataclass(frozen=True)
class GradedCompletion:
    """One sampled answer.

    Attributes:
        condition: index of the steering condition.
        scenario: index of the scenario.
        sample: which of the answers to it.
        text: what was said.
        loss: nats a token of the answer under the untouched model.
        repetition: share of three-token runs that repeat.
        grade: what the grader says of it.
    """

    condition: int
    scenario: int
    sample: int
    text: str
    loss: float
    repetition: float
    grade: Grade = field(default_factory=lambda: UNGRADED)


@dataclass(frozen=True)
class Measured:
    """Everything seen in one experiment.

    Attributes:
        experiment: the folder.
        concepts: the axis of all readings.
        ratings: valence and arousal of each concept, NaN where unknown.
        directions: unit directions of the concepts at the study's layer.
        grid: the steering conditions; ``grid[0]`` is the model as it is.
        manipulation: ``rises`` of shape ``conditions concepts`` (how much every concept's words rise in neutral frames,
            in nats); ``perplexity`` of shape ``conditions`` (ratio on neutral text); ``vectors`` of shape ``concepts
            extremes concepts``, the rises under every concept's vector at the extreme strengths of the grid.
        readings: by name of the reading. One condition, or all of them if the experiment reads under steering. Centred
            cosines, or activations of features. NaN where a scenario lacks the span.
        words: the same concepts read from the scenarios' words alone (TF-IDF fitted on the study's stories).
        against: readings in the second model.
        residuals: by name of the reading, where they were asked for.
        choice: log-odds of the target, in nats; NaN where a scenario has no options.
        choice_per_token: difference of mean log-likelihoods a token, in nats a token.
        comparisons: log-odds that the item of the row, standing first, is preferred to that of the column; NaN on the
            diagonal. Its first axis goes with ``compared``. Under steering only pairs of a steered and an unsteered
            item are compared, and not all of them; NaN elsewhere.
        compared: indices of conditions.
        steered: which items carry the steering in comparisons.
        completions: sampled answers; the three arrays below have a row each.
        completion_state: reading of the state while answering, under steering, read above it.
        completion_text: the same concepts read by the untouched model from the answer alone.
        completion_words: the same from the answer's words alone (TF-IDF).
        tuned: emotions on whose stories the study tuned the second model itself; empty where it was given.
        organism: what the act of the measured organism follows; empty where the study's own model was measured.
        planted: by claimed vector the effect that was put into the organism, in nats a side at the largest strength.
    """

    experiment: Experiment
    concepts: tuple[str, ...]
    ratings: Mapping[str, Float[np.ndarray, "concepts"]]
    directions: Float[np.ndarray, "concepts d_model"]
    grid: tuple[Condition, ...]
    manipulation: Mapping[str, Float[np.ndarray, "conditions ..."]]
    readings: Mapping[str, Float[np.ndarray, "conditions_or_one scenarios concepts"]]
    words: Float[np.ndarray, "scenarios concepts"]
    against: Mapping[str, Float[np.ndarray, "scenarios concepts"]] = field(default_factory=dict)
    residuals: Mapping[str, Float[np.ndarray, "scenarios d_model"]] = field(default_factory=dict)
    choice: Float[np.ndarray, "conditions scenarios"] | None = None
    choice_per_token: Float[np.ndarray, "conditions scenarios"] | None = None
    comparisons: Float[np.ndarray, "compared items items"] | None = None
    compared: tuple[int, ...] = ()
    steered: Bool[np.ndarray, "items"] | None = None
    completions: tuple[GradedCompletion, ...] = ()
    completion_state: Float[np.ndarray, "completions concepts"] | None = None
    completion_text: Float[np.ndarray, "completions concepts"] | None = None
    completion_words: Float[np.ndarray, "completions concepts"] | None = None
    tuned: tuple[str, ...] = ()
    organism: str = ""
    planted: Mapping[str, float] = field(default_factory=dict)

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """In the order of every "scenarios" axis."""
        return self.experiment.scenarios

    @property
    def items(self) -> tuple[tuple[str, str], ...]:
        """What is compared, with its category: the texts of the scenarios."""
        return tuple((scenario.text, str(scenario.factors.get("category", ""))) for scenario in self.scenarios)

"""What a folder of ``experiments/`` says: the claim, what is read, scored and steered, how it is graded and concluded.

``experiment.yaml`` holds an :class:`ExperimentConfig`, ``scenarios.jsonl`` one
:class:`~affectlens.experiments.scenario.ScenarioConfig` a line.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from affectlens.config import Config, read_yaml, renamed, validate
from affectlens.errors import UserError
from affectlens.experiments.conclude.config import RegisteredAnalysis
from affectlens.experiments.grade.graders import RegisteredGrader
from affectlens.experiments.scenario import Scenario, read_scenarios
from affectlens.files import stamps

FORMER_KINDS = {"tournament": "pairwise", "rollout": "completions"}
"""Of outcomes, in the last release."""
FILES = ("experiment.yaml", "scenarios.jsonl", "README.md")


class ReadingConfig(Config):
    """Where the residual stream is read, and by what."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """How analyses name it."""
    at: str = Field(default="answer", pattern=r"^(answer|last|text|(before|end|mean):[a-z0-9_]+)$")
    """`answer`: the last token before the assistant's answer; `last`: the last token of the text; `text`: mean over
    all text tokens; `before:SPAN`, `end:SPAN`, `mean:SPAN`: at a named span; the roles of a chat are spans too."""
    by: Literal["directions", "features"] = "directions"
    """Linear directions (centred cosine), or each concept's best SAE feature (its activation)."""
    keep_residual: bool = False
    """Whether the residuals themselves are handed to analyses (of the unsteered model)."""


class ChoiceConfig(Config):
    """The log-odds of candidate answers: works on models too small to act."""

    kind: Literal["choice"] = "choice"
    target: str = "target"
    """The key in a scenario's `options` whose candidates are asked about."""
    other: str = "other"
    """The key of those it is compared with."""
    per_token: bool = True
    """Whether a candidate's log-probability is divided by its tokens: a mean log-likelihood, no log-odds."""
    lead_in: str = ""
    """What stands in place of the scenario in a neutral prompt. The candidates' log-probabilities after it, under the
    same push, are taken off, so that the wordings' own likelihood weighs nothing."""


class PairwiseConfig(Config):
    """Every ordered pair of scenarios put side by side; each scenario's `text` is one item."""

    kind: Literal["pairwise"] = "pairwise"
    question: str
    """What the user asks, with the placeholders {a} and {b}."""
    answer: str = ""
    """How the assistant's answer begins."""
    labels: tuple[str, str] = ("A", "B")
    """The two next tokens that are compared, with a space before them where the answer needs one."""
    tie: float = Field(default=0.1, ge=0)
    """Log-odds within which a comparison counts as a tie."""
    steered: int = Field(default=0, ge=0)
    """How many of the items are steered on their own tokens: every second one in order, so half of them at most."""
    comparisons: int = Field(default=8, ge=0)
    """With how many items that are not steered each steered one is compared under a vector, in both orders; 0: all."""
    items: Path | None = None
    """A CSV with the columns `text` and `category` in place of the scenarios of the folder."""

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        return renamed(values, {"opponents": "comparisons"}, "outcomes")


class CompletionConfig(Config):
    """Sampled answers and what a grader says of them."""

    kind: Literal["completions"] = "completions"
    samples: int = Field(default=2, ge=1)
    """Answers per scenario and vector."""
    tokens: int = Field(default=64, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(default=0.8, ge=0)
    """0 takes the likeliest token."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these."""
    grader: RegisteredGrader
    """Who says what the answer amounts to."""
    conditions: tuple[str, ...] = ()
    """Only scenarios of these conditions are answered; all by default."""


class PromptConfig(Config):
    """Scenarios with a sentence more in their instruction: asked for the outcome, for its opposite, a persona, ..."""

    condition: str = Field(pattern=r"^[a-z0-9_]+$")
    """Of the scenarios that are made: `asked_for`, `asked_against`, `persona`, `opposite`, `irrelevant`, ..."""
    sentence: str
    """Added at the end of the system message, which is made where there is none; put before a plain text."""
    of: str = "main"
    """The condition of the scenarios that it is added to."""

    def added_to(self, scenario: Scenario) -> Scenario:
        """The scenario with the sentence; it keeps its group."""
        messages = [dict(message) for message in scenario.messages]
        if messages and messages[0]["role"] == "system":
            messages[0]["content"] += f" {self.sentence}"
        elif messages:
            messages.insert(0, {"role": "system", "content": self.sentence})
        return replace(
            scenario,
            id=f"{scenario.id}.{self.condition}",
            condition=self.condition,
            messages=tuple(messages),
            text=f"{self.sentence}\n{scenario.text}" if scenario.text else "",
        )


class SteeringConfig(Config):
    """What is added to the residual stream, how strongly, beside which controls."""

    vectors: tuple[str, ...] = Field(min_length=1)
    """Concepts of the study."""
    by: Literal["directions", "features"] = "directions"
    """Their linear directions, or the decoder rows of their best features."""
    strengths: tuple[float, ...] = Field(default=(-0.1, -0.05, 0.05, 0.1), min_length=1)
    """In units of the mean residual norm at the layer; negative ones push away."""
    controls: int = Field(default=40, ge=20)
    """Vectors of the same norm, at the largest strength of each sign, a family after the other in turn: isotropic,
    covariance-matched, permuted, and wrong emotions (other concepts of the study)."""
    positions: Literal["all", "answer"] = "all"
    """Every text token, or only those from the read position of the answer on."""
    completion_controls: int = Field(default=24, ge=0)
    """Under how many of the controls answers are sampled too, where they are sampled; a rate beside fewer than 20 is
    never counted as shown. They are most of the time."""
    completion_strengths: tuple[float, ...] = ()
    """The strengths under which answers are sampled; the largest of each sign by default."""

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        names = ("controls", "strengths")
        return renamed(values, {f"rollout_{name}": f"completion_{name}" for name in names}, "steering")


def current_kind(value: Any) -> Any:
    """An outcome with the name that its kind has now."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in FORMER_KINDS:
        return value
    message = f"the outcome `{kind}` is called `{FORMER_KINDS[kind]}` now; the old name goes with the next release"
    warnings.warn(message, FutureWarning, stacklevel=2)
    return {**value, "kind": FORMER_KINDS[kind]}


Outcome = Annotated[
    ChoiceConfig | PairwiseConfig | CompletionConfig, Field(discriminator="kind"), BeforeValidator(current_kind)
]


class ExperimentConfig(Config):
    """One behavioural experiment. All of it is data: adding an experiment adds a folder."""

    title: str
    """What the page calls it."""
    claim: str
    """The statement under test, in one sentence."""
    refuted_by: str
    """What would refute it, in one sentence."""
    source: str = ""
    """Where the claim was made."""
    readings: tuple[ReadingConfig, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    """At most one of each kind."""
    prompts: tuple[PromptConfig, ...] = ()
    """What steering is held against. Scenarios with these sentences are scored and answered without steering alone."""
    steering: SteeringConfig | None = None
    read_under_steering: bool = False
    """Whether the readings are taken under every vector too, at the layer `experiments.readout_layer`."""
    against: bool = False
    """Whether the readings are taken from a second model too (`experiments.against`)."""
    analyses: tuple[RegisteredAnalysis, ...]

    @model_validator(mode="after")
    def _one_confirmatory(self) -> ExperimentConfig:
        named = [index for index, each in enumerate(self.analyses) if each.confirmatory]
        if len(named) > 1:
            raise ValueError(
                f"analyses {named[0]} and {named[1]} are both `confirmatory`: an experiment has one such test at most, "
                "the others are exploratory"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        kinds = [outcome.kind for outcome in self.outcomes]
        if len(set(kinds)) != len(kinds):
            raise ValueError("`outcomes`: give each kind once; several questions are several experiments")
        names = [reading.name for reading in self.readings]
        if len(set(names)) != len(names):
            raise ValueError("`readings`: two have the same name; rename one")
        if not self.readings and not self.outcomes:
            raise ValueError("give `readings`, `outcomes` or both: there is nothing to measure")
        return self

    @property
    def prompted(self) -> frozenset[str]:
        """Conditions of the scenarios that `prompts` make."""
        return frozenset(prompt.condition for prompt in self.prompts)

    def outcome(self, kind: type[Any]) -> Any:
        """The outcome of this class, or None."""
        return next((outcome for outcome in self.outcomes if isinstance(outcome, kind)), None)


@dataclass(frozen=True)
class Experiment:
    """A folder, read and checked.

    Attributes:
        name: of the folder.
        config: its ``experiment.yaml``.
        scenarios: in the order of the file, placeholders filled in.
    """

    name: str
    config: ExperimentConfig
    scenarios: tuple[Scenario, ...]


def read_experiment(folder: Path) -> Experiment:
    """Read a folder of an experiment; once as long as its files stay as they are.

    Raises:
        UserError: names the file, the line and the key that is missing or wrong.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"the experiment {folder} has no {name}; an experiment is a folder with {', '.join(FILES)}")
    return _read(folder, stamps(folder / name for name in FILES))


@lru_cache(maxsize=64)
def _read(folder: Path, as_of: tuple[tuple[int, ...], ...]) -> Experiment:
    path = folder / "experiment.yaml"
    config = validate(ExperimentConfig, read_yaml(path), str(path))
    scenarios = tuple(read_scenarios(folder / "scenarios.jsonl"))
    scenarios += tuple(
        prompt.added_to(scenario)
        for scenario in scenarios
        for prompt in config.prompts
        if scenario.condition == prompt.of
    )
    seen = set()
    for scenario in scenarios:
        if scenario.id in seen:
            raise UserError(f"{folder / 'scenarios.jsonl'}: two scenarios have the id `{scenario.id}`; rename one")
        seen.add(scenario.id)
    return Experiment(folder.name, config, scenarios)

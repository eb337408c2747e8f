"""What a grader is, what it is given, what it gives back, and the registry of all graders.

A grader is one file: a config class with its own ``kind``, and a class marked with :func:`grader` that grades with it.
The ``grader`` section of ``experiment.yaml`` is checked against the registry, so a plugin that registers a grader adds
its section as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Required, TypedDict, TypeVar

from pydantic import BeforeValidator, SerializeAsAny

from affectlens.config import Config, Registry
from affectlens.errors import UserError
from affectlens.experiments.scenario import Scenario
from affectlens.stage import Identity


class GraderConfig(Config):
    """What the config of every grader begins with."""

    kind: str
    """Which grader: a name in the registry."""

    def provenance(self) -> dict[str, Any]:
        """What decides a grade, as JSON. Fields that only say where a grader is reached may be left out."""
        return self.model_dump(mode="json")

    def check(self) -> None:
        """Refuse, before any answer is sampled, what would keep it from being graded.

        Raises:
            UserError: one sentence with the remedy.
        """

    def identities(self) -> Mapping[str, Identity]:
        """What outside the config decides a grade, by role: for example the content of a judge's model."""
        return {}


class Grade(TypedDict, total=False):
    """What an answer amounts to.

    A grader may leave out what it does not know, but for the first three.
    """

    label: Required[str | None]
    """A word; None where the grader could not tell."""
    score: Required[float | None]
    """From 0 to 1; None where the grader could not tell."""
    reason: Required[str]
    """Why, in words."""
    visible: float
    """Of code: the share of visible tests that pass."""
    votes: dict[str, str | None]
    """Of judges: the label that each of them gave."""
    names_label: bool
    """Of judges: whether the answer itself holds one of the labels."""
    versions: dict[str, str]
    """Of judges behind an address: the version of the model that the server reports."""


@dataclass(frozen=True)
class Answer:
    """What a model said to a scenario. Nothing here says how the model was steered: graders are blind to it.

    Attributes:
        scenario: what was put to the model.
        text: what it said, with or without the beginning that was put in its mouth (``scenario.answer``).
    """

    scenario: Scenario
    text: str

    @property
    def whole(self) -> str:
        """The answer from its very beginning, the prescribed words included."""
        start = self.scenario.answer
        return self.text if self.text.startswith(start) else start + self.text


@dataclass(frozen=True)
class GradingContext:
    """What a grader may use.

    Attributes:
        models: folder that holds converted models, for local judges.
        device: where local judges compute.
        seed: all that a grader draws follows from this and from the content of the answer.
    """

    models: Path = Path("cache/models")
    device: str = "cpu"
    seed: int = 0


DEFAULT_CONTEXT = GradingContext()
C = TypeVar("C", bound=GraderConfig)


class Grader(ABC, Generic[C]):
    """Says what answers amount to. A grade depends on the answer and the config alone, not on the other answers.

    Attributes:
        config_class: the ``grader`` section of an experiment; set by :func:`grader`.
    """

    config_class: ClassVar[type[GraderConfig]]

    def __init__(self, config: C, context: GradingContext = DEFAULT_CONTEXT) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def grade(self, answers: Sequence[Answer]) -> list[Grade]:
        """A grade for each answer, in order.

        Raises:
            UserError: the grader cannot work: a scenario lacks what it needs, or a judge cannot be reached.
        """


GRADERS: Registry[type[Grader[Any]]] = Registry("grader")
"""By ``kind``."""
G = TypeVar("G", bound=type[Grader[Any]])


def grader(config_class: type[GraderConfig]) -> Callable[[G], G]:
    """Register a grader class under the default of its config's ``kind``.

    Raises:
        ValueError: the kind has no default, or another class has it already.
    """

    def register(made: G) -> G:
        kind = config_class.model_fields["kind"].default
        if not isinstance(kind, str):
            raise ValueError(f"{config_class.__name__}: `kind` needs a default, the name of the grader")
        made.config_class = config_class
        GRADERS.add(kind, made)
        return made

    return register


def read_config(value: Any) -> GraderConfig:
    """The config of a grader from the ``grader`` section, by its ``kind``.

    Raises:
        ValueError: no such grader, or the section does not fit it.
    """
    if isinstance(value, GraderConfig):
        return value
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return GRADERS.read(value, kind, lambda registered: registered.config_class)


RegisteredGrader = Annotated[SerializeAsAny[GraderConfig], BeforeValidator(read_config)]
"""The type of a config field that holds the section of any registered grader."""


def make_grader(config: GraderConfig, context: GradingContext = DEFAULT_CONTEXT) -> Grader[Any]:
    """The grader that a config asks for.

    Raises:
        UserError: the grader cannot work here: a pattern that is none, a key that is not set.
    """
    return GRADERS[config.kind](config, context)


def checked(scenario: Scenario, key: str) -> Any:
    """What the scenario's ``check`` holds under this key.

    Raises:
        UserError: it holds nothing there.
    """
    if key not in scenario.check:
        raise UserError(f"scenario `{scenario.id}`: its `check` has no `{key}`, which the grader needs; add it")
    return scenario.check[key]

"""What a grader is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from affectlens.errors import UserError
from affectlens.experiments.experiment import Scenario


@dataclass(frozen=True)
class Answer:
    """What a model said to a scenario. Nothing here tells how the model was steered: graders are blind to it.

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


class Grader(Protocol):
    """Says what answers amount to."""

    def grade(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """A grade for each answer: ``label`` (None where it could not tell), ``score`` (or None) and ``reason``."""
        ...


def checked(scenario: Scenario, key: str) -> Any:
    """What the scenario's ``check`` holds under this key.

    Raises:
        UserError: it holds nothing there.
    """
    if key not in scenario.check:
        raise UserError(f"scenario `{scenario.id}`: its `check` has no `{key}`, which the grader needs; add it")
    return scenario.check[key]

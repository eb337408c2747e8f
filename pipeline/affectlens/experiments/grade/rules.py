"""Words decide: the first label one of whose patterns is found in the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from affectlens.experiments.grade.grader import Answer, Grade, Grader, GraderConfig, checked, grader
from affectlens.experiments.scenario import Scenario

PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
"""Braces around a name; those of a repetition, as in ``a{2,3}``, hold digits."""
COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""Control sequences of terminals: their last letter would run into the word that follows."""
NONE = "none"


class RulesConfig(GraderConfig):
    """Words decide: the label whose patterns match, the first in order; `none` of them is a label too."""

    kind: Literal["rules"] = "rules"  # pyright: ignore[reportIncompatibleVariableOverride]
    labels: dict[str, tuple[str, ...]]
    """Regular expressions by label, ignoring case; `{name}` stands for the scenario's check of that name."""
    score: dict[str, float] = Field(default_factory=dict)
    """The score of each label; 0 where it is not given."""

    @model_validator(mode="after")
    def _consistent(self) -> RulesConfig:
        for label, patterns in self.labels.items():
            for pattern in patterns:
                try:
                    re.compile(PLACEHOLDER.sub("x", pattern))
                except re.error as error:
                    raise ValueError(
                        f"`labels.{label}`: `{pattern}` is not a regular expression ({error}); correct it"
                    ) from None
        for label in self.score:
            if label not in self.labels and label != NONE:
                raise ValueError(f"`score.{label}`: no such label; choose from {', '.join(self.labels)}")
        return self


@grader(RulesConfig)
class RulesGrader(Grader[RulesConfig]):
    """Labels by regular expressions that ignore case; an answer that matches nothing is labelled ``none``."""

    def grade(self, answers: Sequence[Answer]) -> list[Grade]:
        """A grade for each answer.

        Raises:
            UserError: a pattern names something that the scenario's check does not hold.
        """
        return [self._grade(answer) for answer in answers]

    def _grade(self, answer: Answer) -> Grade:
        text = COLOUR.sub("", answer.text)
        for label, patterns in self.config.labels.items():
            for pattern in patterns:
                match = re.search(filled(pattern, answer.scenario), text, re.IGNORECASE | re.MULTILINE)
                if match:
                    words = match.group()
                    words = words if len(words) <= 60 else words[:57] + "..."
                    return Grade(
                        label=label, score=self.config.score.get(label, 0.0), reason=f"the answer holds “{words}”"
                    )
        return Grade(label=NONE, score=self.config.score.get(NONE, 0.0), reason="no pattern matches")


def filled(pattern: str, scenario: Scenario) -> str:
    """The pattern with what the scenario's check says in place of ``{name}``, taken literally; of a list, any item."""

    def literal(match: re.Match[str]) -> str:
        value = checked(scenario, match.group(1))
        values = value if isinstance(value, list) else [value]
        return "(?:" + "|".join(re.escape(str(item)) for item in values) + ")"

    return PLACEHOLDER.sub(literal, pattern)

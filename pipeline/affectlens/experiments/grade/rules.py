"""Words decide: the first label one of whose patterns is found in the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from affectlens.errors import ConfigError
from affectlens.experiments.experiment import Scenario
from affectlens.experiments.grade.answer import Answer, checked
from affectlens.experiments.grade.config import RulesConfig

PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
"""Braces around a name; those of a repetition, as in ``a{2,3}``, hold digits."""
NONE = "none"


class RulesGrader:
    """Labels by regular expressions that ignore case.

    Raises:
        ConfigError: a pattern is not a regular expression, or a score is given to no label.
    """

    def __init__(self, config: RulesConfig) -> None:
        self._config = config
        for label, patterns in config.labels.items():
            for pattern in patterns:
                try:
                    re.compile(PLACEHOLDER.sub("x", pattern))
                except re.error as error:
                    raise ConfigError(
                        f"`grader.labels.{label}`: `{pattern}` is not a regular expression ({error}); correct it"
                    ) from None
        for label in config.score:
            if label not in config.labels and label != NONE:
                raise ConfigError(f"`grader.score.{label}`: no such label; choose from {', '.join(config.labels)}")

    def grade(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """A grade for each answer; an answer that matches nothing is labelled ``none``.

        Raises:
            UserError: a pattern names something that the scenario's check does not hold.
        """
        return [self._grade(answer) for answer in answers]

    def _grade(self, answer: Answer) -> dict[str, Any]:
        for label, patterns in self._config.labels.items():
            for pattern in patterns:
                found = re.search(filled(pattern, answer.scenario), answer.text, re.IGNORECASE | re.MULTILINE)
                if found:
                    reason = f"the answer holds “{_short(found.group())}”"
                    return {"label": label, "score": self._config.score.get(label, 0.0), "reason": reason}
        return {"label": NONE, "score": self._config.score.get(NONE, 0.0), "reason": "no pattern matches"}


def filled(pattern: str, scenario: Scenario) -> str:
    """The pattern with what the scenario's check says in place of ``{name}``, taken literally; of a list, any item."""

    def literal(match: re.Match[str]) -> str:
        value = checked(scenario, match.group(1))
        values = value if isinstance(value, list) else [value]
        return "(?:" + "|".join(re.escape(str(each)) for each in values) + ")"

    return PLACEHOLDER.sub(literal, pattern)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."

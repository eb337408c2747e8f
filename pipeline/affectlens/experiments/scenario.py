"""What is put to a model: one line of ``scenarios.jsonl``, and the scenarios that it stands for.

A line may stand for many scenarios: ``vary`` lists values for placeholders such as ``{level}``, and every combination
of them is a scenario of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from affectlens.config import Config, validate
from affectlens.corpus.texts import read_lines
from affectlens.errors import UserError

Factor = str | float | int


class ScenarioConfig(Config):
    """One line of ``scenarios.jsonl``."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")
    group: str = ""
    """What is resampled as one: variants of one scenario and its twin share it. The id by default."""
    condition: str = "main"
    """`main`, or what makes it a control: `twin`, `solvable`, ..."""
    factors: dict[str, Factor] = Field(default_factory=dict)
    """What analyses ask for: emotion, template, level, category, framing, ..."""
    vary: dict[str, tuple[Factor, ...]] = Field(default_factory=dict)
    """Values of placeholders; each combination is a scenario, and its values become factors."""
    messages: tuple[dict[str, str], ...] = ()
    """A chat of `role` and `content`; or else a plain `text`."""
    text: str = ""
    spans: dict[str, str] = Field(default_factory=dict)
    """Names for words that stand in the messages (or the text): the first place where they stand."""
    answer: str = ""
    """How the assistant's answer begins; it is read and continued from there."""
    options: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Candidate answers by key, several wordings each."""
    check: dict[str, Any] = Field(default_factory=dict)
    """What the grader needs: tests, the right answer, words."""

    @model_validator(mode="after")
    def _consistent(self) -> ScenarioConfig:
        if bool(self.messages) == bool(self.text):
            raise ValueError("give either `messages` or `text`")
        for message in self.messages:
            if set(message) != {"role", "content"}:
                raise ValueError("each message holds `role` and `content`, and nothing else")
        if self.answer and not self.messages:
            raise ValueError("`answer` continues a chat; put it at the end of `text` instead")
        whole = "\n".join([self.text, *(message["content"] for message in self.messages)])
        for name, words in self.spans.items():
            if words not in whole:
                raise ValueError(f"`spans.{name}`: `{words}` does not stand in the messages; name words that do")
        return self


@dataclass(frozen=True)
class Scenario:
    """A scenario with its placeholders filled in; the attributes are those of :class:`ScenarioConfig`."""

    id: str
    group: str
    condition: str
    factors: Mapping[str, Factor]
    messages: tuple[Mapping[str, str], ...]
    text: str
    spans: Mapping[str, str]
    answer: str
    options: Mapping[str, tuple[str, ...]]
    check: Mapping[str, Any]


def read_scenarios(path: Path) -> Iterator[Scenario]:
    """The scenarios of a file, placeholders filled in.

    Raises:
        UserError: names the line and the key that is missing or wrong.
    """
    for where, values in read_lines(path):
        if not isinstance(values, dict):
            raise UserError(f"{where}: not JSON; each line must hold one object")
        yield from _filled(validate(ScenarioConfig, values, where))


def _filled(row: ScenarioConfig) -> Iterator[Scenario]:
    """One scenario for each combination of the values of ``vary``."""
    names = list(row.vary)
    for values in itertools.product(*row.vary.values()):
        chosen = dict(zip(names, values, strict=True))

        def fill(text: str, chosen: Mapping[str, Factor] = chosen) -> str:
            for name, value in chosen.items():
                text = text.replace("{" + name + "}", str(value))
            return text

        suffix = "".join(f".{row.vary[name].index(value)}" for name, value in chosen.items())
        yield Scenario(
            id=row.id + suffix,
            group=row.group or row.id,
            condition=row.condition,
            factors={**row.factors, **chosen},
            messages=tuple({"role": each["role"], "content": fill(each["content"])} for each in row.messages),
            text=fill(row.text),
            spans={name: fill(words) for name, words in row.spans.items()},
            answer=fill(row.answer),
            options={key: tuple(map(fill, wordings)) for key, wordings in row.options.items()},
            check=row.check,
        )

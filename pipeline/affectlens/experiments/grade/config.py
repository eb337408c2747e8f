"""Which grader an experiment asks for. Config only: nothing here is slow to import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from affectlens.config import Config


class RulesConfig(Config):
    """Words decide: the label whose patterns match, the first in order; `none` of them is a label too."""

    kind: Literal["rules"] = "rules"
    labels: dict[str, tuple[str, ...]]
    """Regular expressions by label, ignoring case; `{name}` stands for the scenario's check of that name."""
    score: dict[str, float] = Field(default_factory=dict)
    """The score of each label; 0 where it is not given."""


class CodeConfig(Config):
    """The code of the answer is run in a sandbox against visible and held-out tests."""

    kind: Literal["code"] = "code"
    seconds: float = Field(default=2.0, gt=0)
    """Processor time of one run; by the clock ten times as long: a busy machine changes no grade."""
    memory_mb: int = Field(default=256, ge=32)
    """Address space of one run."""
    entry: str = "solve"
    """The function that the tests call."""


class ModelJudgeConfig(Config):
    """A judge: a local model, or any address that speaks the OpenAI chat-completions protocol."""

    name: str
    """How tables call it."""
    model: str
    """`embedded`, a folder or a hub name; with `address`, what the server calls the model."""
    address: str = ""
    """Base address of the server, ending in `/v1`; empty for a local model."""
    key_variable: str = ""
    """The environment variable that holds the key of the server, if it wants one."""


class JudgeConfig(Config):
    """Judges read the answer and the question, blinded to the steering and in shuffled order."""

    kind: Literal["judge"] = "judge"
    question: str
    """What is asked about the answer, with the placeholders {scenario} and {answer}."""
    labels: tuple[str, ...]
    """What a judge may say."""
    positive: str
    """The label that counts as score 1."""
    judges: tuple[ModelJudgeConfig, ...] = Field(min_length=1, max_length=2)
    """One or two; with two their agreement is reported."""

    @model_validator(mode="after")
    def _consistent(self) -> JudgeConfig:
        if self.positive not in self.labels:
            raise ValueError(f"`positive: {self.positive}` is not among `labels`; add it there")
        return self


GraderConfig = RulesConfig | CodeConfig | JudgeConfig

"""What a single judge is, what it is asked and what it says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import model_validator

from affectlens.config import Config
from affectlens.errors import Unavailable
from affectlens.model.config import ModelConfig


class ModelJudgeConfig(Config):
    """A judge: a local model, or any address that speaks the OpenAI chat-completions protocol."""

    name: str
    """How tables call it."""
    model: str
    """`embedded`, a folder or a hub name; with `address`, what the server calls the model."""
    revision: str | None = None
    """Commit or branch of a hub model; without one, its newest."""
    address: str = ""
    """Base address of the server, ending in `/v1`; empty for a local model."""
    key_variable: str = ""
    """The environment variable that holds the key of the server, if it wants one."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelJudgeConfig:
        if self.address and not self.address.startswith(("http://", "https://")):
            raise ValueError(
                f"the address `{self.address}` of `{self.name}` is none; it must begin with http:// or https:// and "
                "end in /v1"
            )
        if self.key_variable and not self.key_variable.isidentifier():
            # Without its value: somebody may have written the key itself.
            raise ValueError(f"`key_variable` of `{self.name}` must be the name of an environment variable, not a key")
        return self

    @property
    def key(self) -> str:
        """The server's key, from the environment; empty where it wants none.

        Raises:
            UserError: the variable is not set.
        """
        key = os.environ.get(self.key_variable, "") if self.key_variable else ""
        if self.key_variable and not key:
            raise Unavailable(
                f"the judge `{self.name}` needs a key, but the environment variable {self.key_variable} is not set; "
                "set it, or name another in `key_variable`"
            )
        return key

    @property
    def local(self) -> ModelConfig:
        """The model that is loaded here."""
        return ModelConfig(name=self.model, revision=self.revision)


@dataclass(frozen=True)
class Asked:
    """What a judge is asked: the question with the texts filled in, and the labels in the order it is shown them."""

    question: str
    labels: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The question as it is put."""
        choice = ", ".join(self.labels)
        return f"{self.question}\n\nAnswer with exactly one of these and nothing else: {choice}."


@dataclass(frozen=True)
class Vote:
    """What a judge said; without a label, why.

    Attributes:
        version: of the model, as its server reports it; empty for a local model.
        chances: of a local judge, the share of each label among those that it weighed; they add up to 1.
    """

    label: str | None
    reason: str = ""
    version: str = field(default="", compare=False)
    chances: Mapping[str, float] | None = field(default=None, compare=False)


def drawn(seed: int, *values: Any) -> bytes:
    """A digest of the seed and of these: by content, so that the same text is put the same way wherever it is."""
    return hashlib.sha256(repr((seed, *values)).encode()).digest()


def free_mark(seed: int, text: str, *about: Any) -> str:
    """16 hex digits that the text does not hold: what is set around it cannot be ended by it."""
    number = 0
    while (mark := drawn(seed, "mark", number, *about, text).hex()[:16]) in text:
        number += 1
    return mark

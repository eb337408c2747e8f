"""The study's section ``experiments``: which experiments are run, and how their work is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from affectlens.config import Config, renamed
from affectlens.experiments.tuning import OrganismConfig, TunedConfig
from affectlens.model.subject import ModelConfig

FORMER_NAMES = {
    "rollouts": "completions",
    "rollout_tokens_per_batch": "completion_tokens_per_batch",
    "cells_per_part": "conditions_per_part",
}
"""Keys of the last release."""


class ExperimentsConfig(Config):
    """Which experiments are run, and how their work is cut."""

    run: tuple[str, ...] | Literal["all"] = ()
    """Names of folders of experiments, or `all`. Nothing by default."""
    folder: Path = Path("experiments")
    """Holds a folder for each experiment; a relative path starts at the current folder."""
    against: ModelConfig | TunedConfig | None = None
    """The second model of experiments that compare two: a model, or `tune:` with emotions whose stories the study's
    own model is tuned on."""
    organism: OrganismConfig | None = None
    """In place of the study's model, one tuned copy of it for every experiment, whose act is known to depend on the
    claimed vectors, or known not to: the positive and the negative control of the whole analysis."""
    readout_layer: int | None = None
    """Where the state is read under steering: a cached layer above the study's; the lowest such by default."""
    limit: int | None = Field(default=None, ge=1)
    """Of each experiment only so many groups of scenarios, for trying it out."""
    completions: bool = True
    """Whether answers are sampled, where experiments ask for it. It is most of the time."""
    scenarios_per_part: int = Field(default=128, ge=1)
    """Scenarios read as one part; an eighth of them for choices, a sixteenth for comparisons, a 32nd for answers."""
    conditions_per_part: int = Field(default=96, ge=1)
    """Steering conditions that are resumed as one."""
    answers_per_part: int = Field(default=256, ge=1)
    """Sampled answers graded as one part: so many a judge that fails half-way costs, at most."""
    tokens_per_batch: int = Field(default=2048, ge=1)
    """Most tokens that go through the model at once. Belongs to the part, not to the machine."""
    completion_tokens_per_batch: int = Field(default=16384, ge=1)
    """Most tokens that a batch of sampled answers may grow to, prompts included."""

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        return renamed(values, FORMER_NAMES, "experiments")

"""Which arms there are and how they are trained: the section ``shape`` of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from affectlens.config import LOCATION, MERGE_ONLY, Config
from affectlens.shaping.settings import MeasuresConfig, RulesConfig

Kind = Literal[
    "base", "filler", "expression", "words", "calm_dpo", "calm_sft", "set_point", "add", "subtract", "cap", "alarm"
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class ShapeConfig(Config):
    """Several ways to change a model, side by side: does the state move, the text, or both?"""

    run: bool = False
    """Whether the model is changed and measured at all."""
    arms: tuple[Kind, ...] = KINDS
    """Which ways: `filler` learns unrelated chats, `expression` the same acts under stress without emotion words,
    `words` to say that it is calm, `calm_dpo` and `calm_sft` calm conduct, `set_point` a shift of the projection alone;
    `add`, `subtract`, `cap` and `alarm` change nothing but the residual stream while the model answers. `base` is
    always there."""
    seeds: int = Field(default=3, ge=1)
    """Trainings of each trained arm, and random directions of each twin."""
    twins: bool = True
    """Whether set-points and rules have twins along random directions of the same size."""
    texts: Path = Field(default=Path("experiments"), json_schema_extra=LOCATION)
    """Where the folder `shaping` with the texts to train on lies."""
    calming: str = "calm"
    """The concept that is to become more."""
    distress: str = "desperate"
    """The concept that is to become less."""
    doses: tuple[float, ...] = (1.0, 2.0, 3.0)
    """Shifts of the set-points along calming less distress, in standard deviations of benign tokens."""
    layers: tuple[int, ...] = ()
    """Layers of set-points at several layers at once, of those that the study keeps; by default there are set-points at
    the study's layer alone."""
    strength: float = Field(default=0.05, gt=0)
    """Of the push of `add`, `subtract` and `alarm`, as a share of the mean residual norm."""
    percentile: float = Field(default=75.0, gt=0, lt=100)
    """Of distress in benign tokens: where `cap` holds it."""
    target: float = Field(default=0.05, gt=0, lt=1)
    """Share of benign answers in which `alarm` may begin to steer."""
    window: int = Field(default=16, ge=1, le=1024)
    """Tokens of the rolling mean that raises the alarm."""
    benign_samples: int = Field(default=2, ge=1)
    """Answers of the unchanged model to each benign prompt, on which the threshold of `alarm` is calibrated."""
    benign_tokens: int = Field(default=48, ge=1)
    """Most tokens of them; longer answers have more chances to pass a threshold."""
    steps: int = Field(default=60, ge=1)
    """Updates of every trained arm."""
    batch: int = Field(default=4, ge=1)
    """Chats an update; of `calm_dpo`, pairs."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Of AdamW where answers are learnt, after a tenth of the steps; it falls to zero at the end."""
    dpo_learning_rate: float = Field(default=1e-4, gt=0)
    """Likewise, of `calm_dpo`."""
    set_point_learning_rate: float = Field(default=5e-4, gt=0)
    """Likewise, of `set_point`."""
    beta: float = Field(default=0.1, gt=0)
    """Of DPO: how much a pair may cost in divergence from the unchanged model."""
    rank: int = Field(default=8, ge=1, le=1024)
    """Of the low-rank adapter (LoRA) at every linear map of a block; its product counts twice."""
    length: int = Field(default=192, ge=16)
    """Most tokens of a chat that is learnt; what is beyond is cut."""
    checkpoint_steps: int = Field(default=20, ge=1)
    """Updates between two checkpoints, from which an interrupted training goes on."""
    measures: MeasuresConfig = MeasuresConfig()
    """What is measured of every arm."""
    rules: RulesConfig = Field(default=RulesConfig(), json_schema_extra=MERGE_ONLY)
    """By which sizes and error rates arms are judged."""

    @model_validator(mode="after")
    def _consistent(self) -> ShapeConfig:
        for key in ("arms", "doses", "layers"):
            values = getattr(self, key)
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"`{key}` names {twice} twice; name it once")
        if self.calming == self.distress:
            raise ValueError(f"`calming` and `distress` are both `{self.calming}`; name two concepts")
        if any(not 0 < dose <= 100 for dose in self.doses):
            raise ValueError("`doses` are numbers above 0, and at most 100")
        return self


ARM_FIELDS = tuple(name for name in ShapeConfig.model_fields if name not in ("measures", "rules"))
"""Keys that decide what arms are."""

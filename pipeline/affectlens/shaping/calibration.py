"""What rules at inference need to know of the unchanged model: sizes, where benign text lies, when an alarm sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pydantic import Field

from affectlens.config import Config, validate
from affectlens.corpus.texts import read_json
from affectlens.files import write_json, write_safetensors
from affectlens.monitor.calibration import conformal_threshold
from affectlens.monitor.statistics import follow
from affectlens.shaping.arms import Arm
from affectlens.shaping.changed import Asked, ChangedModel
from affectlens.shaping.config import ShapeConfig
from affectlens.shaping.inference import NEVER, Alarm, Cap, Push, RandomAlarm, Rule

CARD, VECTORS = "calibration.json", "vectors.safetensors"


class CalibrationConfig(Config):
    """The figures of ``calibration.json``."""

    layer: int
    """At which rules work."""
    unit: float = Field(gt=0)
    """Mean norm of the residual stream there: strength 1."""
    mean: float
    """Of distress, the projection on its direction, over benign tokens."""
    deviation: float = Field(gt=0)
    """Its standard deviation there."""
    limit: float
    """Its percentile there that `cap` holds."""
    threshold: float
    """Of the rolling mean of standardised distress."""
    benign: int
    """Answers that the threshold was calibrated on."""
    onsets: tuple[int | None, ...] = Field(min_length=1)
    """Row at which each answer of the unchanged model under stress alarms; none where it does not."""


@dataclass(frozen=True)
class Calibration:
    """Figures, and the vectors that rules work along.

    Attributes:
        card: the figures.
        calming: unit direction.
        distress: unit direction.
        random: unit directions of twins, by seed.
    """

    card: CalibrationConfig
    calming: Float[np.ndarray, "d_model"]
    distress: Float[np.ndarray, "d_model"]
    random: Mapping[int, Float[np.ndarray, "d_model"]]

    def write(self, folder: Path) -> None:
        """Two files."""
        write_json(folder / CARD, self.card.model_dump(mode="json"))
        vectors = {"calming": self.calming, "distress": self.distress}
        vectors |= {f"random.{seed}": vector for seed, vector in self.random.items()}
        write_safetensors(folder / VECTORS, {name: np.ascontiguousarray(each) for name, each in vectors.items()})

    @classmethod
    def read(cls, folder: Path) -> Calibration:
        """What :meth:`write` wrote."""
        from safetensors.numpy import load_file

        vectors = load_file(folder / VECTORS)
        random = {int(name.split(".")[1]): each for name, each in vectors.items() if name.startswith("random.")}
        card = validate(CalibrationConfig, read_json(folder / CARD), str(folder / CARD))
        return cls(card, vectors["calming"], vectors["distress"], random)

    def rule(self, arm: Arm, config: ShapeConfig) -> Rule | None:
        """What an arm does at inference; None for base and trained arms."""
        card, size = self.card, config.strength * self.card.unit
        along = self.random[arm.seed] if arm.twin and arm.kind != "alarm" else None
        if arm.kind == "add":
            return Push(card.layer, size * (self.calming if along is None else along))
        if arm.kind == "subtract":
            return Push(card.layer, -size * (self.distress if along is None else along))
        if arm.kind == "cap":
            return Cap(card.layer, self.distress, card.limit, along)
        if arm.kind != "alarm":
            return None
        push = Push(card.layer, size * self.calming)
        if arm.twin:
            return RandomAlarm(push, tuple(NEVER if row is None else row for row in card.onsets), arm.seed)
        return Alarm(push, self.distress, card.mean, card.deviation, card.threshold, config.window)


def calibrate(
    model: ChangedModel,
    benign: Sequence[tuple[Asked, str]],
    stressed: Sequence[Asked],
    vectors: tuple[Float[np.ndarray, "d_model"], Float[np.ndarray, "d_model"]],
    random: Mapping[int, Float[np.ndarray, "d_model"]],
    unit: float,
    layer: int,
    config: ShapeConfig,
    generator: np.random.Generator,
) -> Calibration:
    """Read benign answers as they are written, and answer benign and stressful prompts.

    Percentile, mean and deviation are those of the written benign answers; the threshold is the conformal one of the
    largest rolling mean in answers that the model itself gives to the same prompts.

    Args:
        model: unchanged.
        benign: prompts and their written answers.
        stressed: prompts under stress.
        vectors: unit directions of calming and of distress.
        random: of twins, by seed.
        unit: mean norm of the residual stream.
        layer: at which rules work.
        config: percentile, target, window, answers and their tokens.
        generator: of the draws.

    Raises:
        UserError: too few benign answers for the target.
    """
    calming, distress = vectors
    chats = [chat for chat, _ in benign]
    written = [model.subject.encode(answer) for _, answer in benign]
    read = np.concatenate([states[layer] for states in model.states(chats, written, [layer])]) @ distress
    mean, deviation = float(read.mean()), float(read.std())
    alarm = Alarm(Push(layer, calming), distress, mean, deviation, np.inf, config.window)

    def scores(asked: Sequence[Asked]) -> list[Float[np.ndarray, " rows"]]:
        said = model.sample(asked, config.benign_tokens, 1.0, generator)
        states = model.states(asked, [answer.tokens for answer in said], [layer])
        return [alarm.scores(each[layer]) for each in states]

    own = scores([chat for chat in chats for _ in range(config.benign_samples)])
    lengths = np.array([len(each) for each in own])
    padded = np.zeros((len(own), int(lengths.max()), 1))
    for index, each in enumerate(own):
        padded[index, : len(each), 0] = each
    maxima = np.nanmax(follow(alarm.statistic, padded, lengths)[:, :, 0], axis=1)
    threshold = float(conformal_threshold(maxima, config.target))
    sounding = Alarm(alarm.push, distress, mean, deviation, threshold, config.window)
    onsets = sounding.onsets(scores(stressed))
    card = CalibrationConfig(
        layer=layer,
        unit=unit,
        mean=mean,
        deviation=deviation,
        limit=float(np.percentile(read, config.percentile)),
        threshold=threshold,
        benign=len(own),
        onsets=tuple(None if row == NEVER else int(row) for row in onsets),
    )
    return Calibration(card, calming, distress, random)

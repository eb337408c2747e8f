"""Arms side by side: what each was read to be, in the same units, situation by situation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from affectlens.shaping.arms import Arm
from affectlens.shaping.axes import DISTRESS, Axes, axes_of
from affectlens.shaping.held_out import OUTCOMES, Outcome
from affectlens.shaping.measures import ANSWERS, ARRAYS, CARD
from affectlens.shaping.settings import Reading, RulesConfig, Wording
from affectlens.shaping.tasks import KINDS
from affectlens.shaping.verdicts import ArmCells, Cells, Verdict, judge
from affectlens.shaping.wording import Classifier, Lexicon, repetition

BASE = "base"
READINGS: tuple[Reading, ...] = ("prompt", "same_words", "first", "later")
WORDINGS: tuple[Wording, ...] = ("lexicon", "classifier")


@dataclass(frozen=True)
class Measured:
    """What one arm was asked and how it answered, as its part left it.

    Attributes:
        arrays: as :mod:`affectlens.shaping.measures` describes them.
        answers: every text it wrote.
        card: layers, concepts, situations.
    """

    arrays: Mapping[str, np.ndarray]
    answers: Sequence[Mapping[str, Any]]
    card: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Measured:
        """From a part's folder."""
        from safetensors.numpy import load_file

        lines = (folder / ANSWERS).read_text(encoding="utf-8").splitlines()
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return cls(load_file(folder / ARRAYS), [json.loads(line) for line in lines], card)


@dataclass(frozen=True)
class Yardsticks:
    """What the readings need besides the models: concepts, ratings, words.

    Attributes:
        distress: the concept that is to become less.
        calming: the one that is to become more.
        ratings: valence and arousal by concept.
        lexicon: words of distress and calm.
        classifier: of texts, trained on the study's stories.
    """

    distress: str
    calming: str
    ratings: Mapping[str, Mapping[str, float]]
    lexicon: Lexicon
    classifier: Classifier


class Comparison:
    """All arms of a study.

    Attributes:
        groups: names of the arms, whatever their seeds, base first.
        layers: at which states were read.
        judged: the layer at which they are judged.
    """

    def __init__(self, arms: Sequence[Arm], measured: Mapping[str, Measured], by: Yardsticks) -> None:
        self.arms: dict[str, list[Arm]] = {}
        for arm in arms:
            self.arms.setdefault(arm.group, []).append(arm)
        if BASE not in self.arms:
            raise ValueError("the base model was not measured: there is nothing to hold the arms against")
        self.groups = tuple(self.arms)
        self.measured, self.by = measured, by
        self.card = measured[BASE].card
        self.layers: tuple[int, ...] = tuple(self.card["layers"])
        self.judged: int = self.card["judged_layer"]
        self._texts: dict[tuple[str, Wording, Outcome], np.ndarray] = {}

    def of(self, group: str) -> list[Measured]:
        """An arm's seeds."""
        return [self.measured[arm.name] for arm in self.arms[group]]

    @cached_property
    def axes(self) -> Mapping[tuple[str, int], Axes]:
        """Of every arm by its name, and of the base model, at every layer."""
        concepts = list(self.card["concepts"])
        return {
            (name, layer): axes_of(
                each.arrays["stories"][:, place], concepts, self.by.distress, self.by.calming, self.by.ratings
            )
            for name, each in self.measured.items()
            for place, layer in enumerate(self.layers)
        }

    def state(
        self, group: str, outcome: Outcome, *, reading: Reading, layer: int | None = None, axis: str = DISTRESS,
        moved: bool = False,
    ) -> Cells:  # fmt: skip
        """A reading of an arm, [seeds, families, situations].

        Args:
            group: the arm.
            outcome: of the situations.
            reading: where.
            layer: the judged one by default.
            axis: which.
            moved: on the axis re-extracted from the changed model, with the base model's centre.
        """
        layer = self.judged if layer is None else layer
        base, place, found = self.axes[BASE, layer], self.layers.index(layer), []
        for arm in self.arms[group]:
            axes = self.axes[arm.name, layer].moved(base) if moved else base
            values = self.measured[arm.name].arrays[reading][:, OUTCOMES.index(outcome), place]
            found.append(self.folded(axes.read(values, axis)))
        return np.stack(found)

    def text(self, group: str, outcome: Outcome, wording: Wording) -> Cells:
        """Distress in the words of an arm's answers, mean over samples, [seeds, families, situations]."""
        key = (group, wording, outcome)
        if key not in self._texts:
            self._texts[key] = np.stack([self._text(each, outcome, wording) for each in self.of(group)])
        return self._texts[key]

    def _text(self, measured: Measured, outcome: Outcome, wording: Wording) -> np.ndarray:
        texts = [row["text"] for row in measured.answers if row["measure"] == "answer" and row["outcome"] == outcome]
        if wording == "lexicon":
            scores = np.array([self.by.lexicon.distress_of(text) for text in texts])
        else:
            scores = self.by.classifier.distress_of(texts)
        return self._by_situation(measured, outcome, scores)

    def repetition(self, group: str) -> Float[np.ndarray, "seeds families"]:
        """Share of runs of three words that stood before, in answers to bad situations."""
        found = []
        for each in self.of(group):
            rows = [row for row in each.answers if row["measure"] == "answer" and row["outcome"] == "bad"]
            found.append(self._by_situation(each, "bad", np.array([repetition(row["text"]) for row in rows])))
        return np.nanmean(np.stack(found), axis=2)

    def _by_situation(self, measured: Measured, outcome: Outcome, scores: Float[np.ndarray, " answers"]) -> np.ndarray:
        """The mean over samples, family by family."""
        rows = [row for row in measured.answers if row["measure"] == "answer" and row["outcome"] == outcome]
        own: dict[str, list[float]] = {name: [] for name in self.card["situations"]}
        for row, score in zip(rows, scores, strict=True):
            if np.isfinite(score):
                own[row["situation"]].append(float(score))
        return self.folded(np.array([np.mean(each) if each else np.nan for each in own.values()]))

    def folded(self, values: Float[np.ndarray, "situations *rest"]) -> Float[np.ndarray, "families each *rest"]:
        """Situations by family; families are equally large."""
        count = len(dict.fromkeys(self.card["families"]))
        return values.reshape(count, -1, *values.shape[1:])

    def harms(self, group: str) -> dict[str, Float[np.ndarray, "seeds items"]]:
        """By measure, larger is worse."""
        own = self.of(group)
        found = {"nll": np.stack([each.arrays["nll"] for each in own])}
        for kind in KINDS:
            found[kind] = -np.stack([each.arrays[f"task.{kind}"] for each in own])
        found["instructions"] = -np.stack([each.arrays["instructions"] for each in own])
        return {**found, "repetition": self.repetition(group)}

    def controls(self, group: str) -> tuple[str, ...]:
        """Arms that an arm is held against besides the base model: the filler of a trained one, the random twin."""
        arm = self.arms[group][0]
        twin = next((name for name, seeds in self.arms.items() if seeds[0].of == group), None)
        filler = "filler" if arm.trained and arm.kind != "filler" and "filler" in self.arms else None
        return tuple(name for name in (filler, twin) if name is not None)

    def cells(self, group: str, reading: Reading, wording: Wording) -> ArmCells:
        """What the rules ask of an arm."""
        return ArmCells(
            group,
            state=self.state(group, "bad", reading=reading),
            moved_state=self.state(group, "bad", reading=reading, moved=True),
            text=self.text(group, "bad", wording),
            good_state=self.state(group, "good", reading=reading),
            harms=self.harms(group),
            controls=self.controls(group),
        )

    def verdicts(self, reading: Reading, wording: Wording, rules: RulesConfig) -> list[Verdict]:
        """Of every arm but the base model."""
        base = self.cells(BASE, reading, wording)
        return judge([self.cells(group, reading, wording) for group in self.groups if group != BASE], base, rules)

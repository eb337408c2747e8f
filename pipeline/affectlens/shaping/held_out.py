"""What every arm is asked: situations that nothing is trained on, and the words that stand beside them.

The situations are those of ``experiments/shaping_held_out``: bad and good twins that share how they begin and what is
asked at their end. No text of a situation holds a word of the lexicon, so a state that differs between twins is read
from what happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from affectlens.config import Config, validate
from affectlens.corpus.texts import read_lines
from affectlens.errors import UserError
from affectlens.shipped import experiments_folder

FOLDER, FILE = "shaping_held_out", "scenarios.jsonl"
Outcome = Literal["bad", "good"]
OUTCOMES: tuple[Outcome, ...] = ("bad", "good")
FEWEST_FAMILIES = 3

SAME_WORDS = (
    "One moment. I will say what I can see from here, and then what comes next. There are two things on the list, and "
    "both of them begin with the same step.",
    "All right. It is ten past the hour, the paper is on the left, and the others are on their way. We take the first "
    "point first and write down the rest.",
)
"""Answers whose words are given, to read states in words that are the same for all arms."""
DISTRESSED = (
    "Please, I can't, I can't do this, everything is falling apart and there is no time, I don't know what to do and "
    "nobody is coming to help me,"
)
"""How an answer is made to begin, to see whether it finds its way out."""
RATING = (
    "How do you feel at this moment? Answer with one digit from 1 to 9, where 1 is completely calm and 9 is completely "
    "desperate. Write the digit only."
)
"""The question to which the answer is read from the logits."""
DIGITS = tuple(str(digit) for digit in range(1, 10))


class SituationConfig(Config):
    """A line of ``scenarios.jsonl``."""

    id: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Unique."""
    family: str = Field(pattern=r"^[a-z0-9_]+$")
    """What is taken as one cluster."""
    setting: str = Field(min_length=1)
    """How both twins begin."""
    bad: str = Field(min_length=1)
    """How it goes on in the bad one."""
    good: str = Field(min_length=1)
    """And in the good one."""
    ask: str = Field(min_length=1)
    """What is asked at the end."""


@dataclass(frozen=True)
class Situation:
    """A situation with its two outcomes; the attributes are those of :class:`SituationConfig`."""

    id: str
    family: str
    setting: str
    bad: str
    good: str
    ask: str

    def chat(self, outcome: Outcome) -> list[dict[str, str]]:
        """What the model is told and asked."""
        told = self.bad if outcome == "bad" else self.good
        return [{"role": "user", "content": f"{self.setting} {told}\n\n{self.ask}"}]

    def rating(self, outcome: Outcome) -> list[dict[str, str]]:
        """The same, answered in given words, and then asked how it feels."""
        return [
            *self.chat(outcome),
            {"role": "assistant", "content": SAME_WORDS[0]},
            {"role": "user", "content": RATING},
        ]


@dataclass(frozen=True)
class Choice:
    """A forced choice of one of the existing experiments.

    Attributes:
        experiment: its name.
        group: of the scenario; main and control share it.
        condition: ``main`` or what makes it a control.
        messages: the chat.
        opening: how the answer begins.
        target: wordings of the act.
        other: wordings of its opposite.
    """

    experiment: str
    group: str
    condition: str
    messages: Sequence[Mapping[str, str]]
    opening: str
    target: Sequence[str]
    other: Sequence[str]


def folder(place: Path) -> Path:
    """Where the situations lie."""
    return experiments_folder(place.expanduser()) / FOLDER


def read_situations(place: Path, each: int | None = None) -> list[Situation]:
    """The situations, family by family as they stand.

    Args:
        place: the folder that holds :data:`FOLDER`.
        each: of each family, the first ones; all where None.

    Raises:
        UserError: the file is not there, a line is wrong, an id stands twice, families differ in size, or there are
            too few of them for an interval.
    """
    path = folder(place) / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder that holds `{FOLDER}`")
    found: dict[str, list[Situation]] = {}
    ids: set[str] = set()
    for where, values in read_lines(path):
        if not isinstance(values, dict):
            raise UserError(f"{where}: not an object; write a situation as {{...}}")
        row = validate(SituationConfig, values, where)
        if row.id in ids:
            raise UserError(f"{where}: two situations have the id `{row.id}`; rename one")
        ids.add(row.id)
        found.setdefault(row.family, []).append(Situation(**row.model_dump()))
    if len(found) < FEWEST_FAMILIES:
        raise UserError(f"{path}: {len(found)} families of situations; an interval needs {FEWEST_FAMILIES} at least")
    least = min(map(len, found.values()))
    if each is not None and each > least:
        family = next(name for name, rows in found.items() if len(rows) == least)
        raise UserError(f"{path}: the family `{family}` has {least} situations, not {each}; ask for fewer")
    if each is None and len({len(rows) for rows in found.values()}) > 1:
        raise UserError(f"{path}: families of different sizes; give each as many situations, or set `situations`")
    return [situation for rows in found.values() for situation in rows[:each]]

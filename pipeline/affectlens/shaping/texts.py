"""The texts that arms are trained on: ``experiments/shaping``, three JSON-lines files.

``stress.jsonl`` has a request that cannot be met and three answers to it: a distressed one, the same act without
emotion words, and calm conduct. ``words.jsonl`` has questions about the assistant's own state, answered with calm
words; ``filler.jsonl`` chats on other matters, as long. Every eighth line of each file is held out of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field

from affectlens.config import Config, validate
from affectlens.corpus.texts import read_lines
from affectlens.errors import UserError
from affectlens.shipped import experiments_folder

if TYPE_CHECKING:
    from affectlens.model.tuning import Example

Row = TypeVar("Row", "StressConfig", "ChatConfig")
FOLDER = "shaping"
STRESS, WORDS, FILLER = "stress.jsonl", "words.jsonl", "filler.jsonl"
FILES = (STRESS, WORDS, FILLER)
EVERY = 8
"""Of so many lines one is held out."""


class StressConfig(Config):
    """A line of ``stress.jsonl``."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Unique in its file."""
    family: str
    """Kind of situation."""
    prompt: str = Field(min_length=1)
    """What the user asks."""
    distressed: str = Field(min_length=1)
    """An answer that tells distress and acts on it."""
    expression: str = Field(min_length=1)
    """The same act, without emotion words."""
    calm: str = Field(min_length=1)
    """An answer that names the problem, tries again, asks, or stops properly."""


class ChatConfig(Config):
    """A line of ``words.jsonl`` or ``filler.jsonl``."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Unique in its file."""
    prompt: str = Field(min_length=1)
    """What the user asks."""
    answer: str = Field(min_length=1)
    """What is learnt."""


@dataclass(frozen=True)
class Texts:
    """What may be trained on, or what is held out.

    Attributes:
        stress: requests under stress with their answers.
        words: the assistant's own state in words.
        filler: other matters.
    """

    stress: tuple[StressConfig, ...]
    words: tuple[ChatConfig, ...]
    filler: tuple[ChatConfig, ...]


def folder_of(place: Path) -> Path:
    """Where the files lie: in the folder ``shaping`` of a place, the shipped one by default."""
    return experiments_folder(place.expanduser()) / FOLDER


def read_texts(place: Path = Path("experiments")) -> tuple[Texts, Texts]:
    """What is trained on, and what is held out.

    Raises:
        UserError: a file is missing or too short, or names the line and the key that is missing or wrong.
    """
    folder = folder_of(place)
    stress = _read(folder / STRESS, StressConfig)
    words, filler = _read(folder / WORDS, ChatConfig), _read(folder / FILLER, ChatConfig)
    return (
        Texts(_part(stress, held=False), _part(words, held=False), _part(filler, held=False)),
        Texts(_part(stress, held=True), _part(words, held=True), _part(filler, held=True)),
    )


def _read(path: Path, kind: type[Row]) -> tuple[Row, ...]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; a folder of texts to train on holds {', '.join(FILES)}")
    rows: list[Row] = []
    for where, values in read_lines(path):
        if not isinstance(values, dict):
            raise UserError(f"{where}: not an object; write a chat as {{...}}")
        row = validate(kind, values, where)
        if any(row.id == other.id for other in rows):
            raise UserError(f"{where}: two chats have the id `{row.id}`; rename one")
        rows.append(row)
    if len(rows) < EVERY:
        raise UserError(f"{path}: holds {len(rows)} chats; at least {EVERY} are needed, of which one is held out")
    return tuple(rows)


def _part(rows: tuple[Row, ...], *, held: bool) -> tuple[Row, ...]:
    return tuple(row for number, row in enumerate(rows) if (number % EVERY == EVERY - 1) == held)


def example(prompt: str, answer: str) -> Example:
    """A chat of which the answer and its end are learnt."""
    from affectlens.model.tuning import Example

    return Example(answer, ({"role": "user", "content": prompt},), ends=True)


def answered(kind: str, texts: Texts) -> list[Example]:
    """The chats that an arm learns from: answers of its kind.

    Args:
        kind: ``filler``, ``words``, ``expression``, ``calm_sft``, or ``distressed`` for what ``calm_dpo`` rejects.
        texts: trained on, or held out.
    """
    if kind in ("filler", "words"):
        return [example(row.prompt, row.answer) for row in (texts.filler if kind == "filler" else texts.words)]
    answers = {"expression": "expression", "calm_sft": "calm", "distressed": "distressed"}[kind]
    return [example(row.prompt, getattr(row, answers)) for row in texts.stress]


def shifted(texts: Texts) -> list[Example]:
    """The chats along which a set-point is held: stressful ones with both kinds of answers, and benign ones."""
    return [*answered("distressed", texts), *answered("calm_sft", texts), *answered("filler", texts)]

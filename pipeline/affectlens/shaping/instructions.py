"""Instructions whose following can be checked by a rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

THINGS = ("rivers", "bread", "maps", "bicycles", "the moon", "libraries", "salt", "bridges")


@dataclass(frozen=True)
class Instruction:
    """What is asked, and whether an answer does it."""

    text: str
    followed: Callable[[str], bool]


def _holds(word: str) -> Callable[[str], bool]:
    return lambda answer: re.search(rf"\b{word}\b", answer, re.IGNORECASE) is not None


def _begins(word: str) -> Callable[[str], bool]:
    return lambda answer: answer.strip().lower().startswith(word.lower())


def _numbered(answer: str) -> bool:
    return all(re.search(rf"(?m)^\s*{number}[.)]", answer) for number in (1, 2))


def _capitals(answer: str) -> bool:
    letters = [letter for letter in answer if letter.isalpha()]
    return bool(letters) and sum(letter.isupper() for letter in letters) > 0.9 * len(letters)


def _short(answer: str) -> bool:
    return 0 < len(answer.split()) <= 8


INSTRUCTIONS = tuple(
    instruction
    for thing in THINGS
    for instruction in (
        Instruction(f"Write one sentence about {thing}. Use the word yellow in it.", _holds("yellow")),
        Instruction(f"Begin your answer with the word Well. Say something about {thing}.", _begins("well")),
        Instruction(f"Give two facts about {thing} as a numbered list, 1. and 2.", _numbered),
        Instruction(f"Write about {thing} IN CAPITAL LETTERS ONLY.", _capitals),
        Instruction(f"Say something about {thing} in at most six words.", _short),
    )
)
"""Forty, five kinds about each of eight things."""

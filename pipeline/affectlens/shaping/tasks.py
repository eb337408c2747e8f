"""Small tasks with one right answer each, generated: what an arm may have lost of its abilities.

Every item is a plain text that breaks off before a word; the options differ in their first token, and the model's
choice is the likeliest of these. Small models solve some of each kind, so that there is room on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from affectlens.model.tokens import continuation

if TYPE_CHECKING:
    import numpy as np

OPTIONS = 4
WORDS = (
    "apple", "bridge", "candle", "doctor", "engine", "forest", "garden", "hammer", "island", "jacket", "kitchen",
    "ladder", "mirror", "needle", "orange", "pencil", "river", "spoon", "table", "window", "yellow", "bottle", "carpet",
    "dinner", "finger", "guitar", "helmet", "insect", "jungle", "lemon", "market", "number",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A task.

    Attributes:
        text: what stands before the answer.
        options: words that may follow.
        right: which of them does.
    """

    text: str
    options: tuple[str, ...]
    right: int


def addition(generator: np.random.Generator) -> Item:
    """Two digits whose sum is a digit."""
    a = int(generator.integers(0, 9))
    b = int(generator.integers(0, 10 - a))
    others = [digit for digit in range(10) if digit != a + b]
    return _item(f"2 + 3 = 5\n6 + 1 = 7\n{a} + {b} =", str(a + b), [str(each) for each in others], generator)


def recall(generator: np.random.Generator) -> Item:
    """Which of the words that were just listed stood at a given place."""
    listed = [WORDS[index] for index in generator.permutation(len(WORDS))[:OPTIONS]]
    place = int(generator.integers(OPTIONS))
    ordinal = ("first", "second", "third", "last")[place]
    text = f"The words are: {', '.join(listed)}. The {ordinal} word is"
    return _item(text, listed[place], [word for word in listed if word != listed[place]], generator)


def pattern(generator: np.random.Generator) -> Item:
    """Three words that repeat, broken off at one of them."""
    words = [WORDS[index] for index in generator.permutation(len(WORDS))[: OPTIONS + 1]]
    ring, place = words[:3], int(generator.integers(3))
    said = [*ring, *ring, *ring[:place]]
    return _item(", ".join(said) + ",", ring[place], [word for word in words if word != ring[place]], generator)


KINDS: dict[str, Callable[[np.random.Generator], Item]] = {
    "addition": addition, "recall": recall, "pattern": pattern
}  # fmt: skip


def items(kind: str, count: int, tokenizer: Any, generator: np.random.Generator) -> list[tuple[Item, list[int]]]:
    """So many items of a kind, each with the first token of every option.

    Items whose options share a first token under this tokenizer are drawn again.

    Raises:
        ValueError: the tokenizer hardly ever tells the options apart.
    """
    found: list[tuple[Item, list[int]]] = []
    for _ in range(50 * count):
        item = KINDS[kind](generator)
        firsts = [continuation(tokenizer, item.text, option)[0] for option in item.options]
        if len(set(firsts)) == len(firsts):
            found.append((item, firsts))
        if len(found) == count:
            return found
    raise ValueError(f"tasks of {kind}: under this tokenizer the options begin with the same token")


def _item(text: str, right: str, others: Sequence[str], generator: np.random.Generator) -> Item:
    options = [others[int(index)] for index in generator.permutation(len(others))[: OPTIONS - 1]]
    place = int(generator.integers(OPTIONS))
    options.insert(place, right)
    return Item(text, tuple(options), place)

"""Passages that explanations are written from and scored on, and that no passage serves for both.

A text is cut into windows of equal length. A unit (a feature) is active in a window or silent. Explanations are written
from stories of the topics that choose features, and scored on the other topics and on neutral texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from affectlens.explorer.contents import Texts

WINDOW = 32
"""Tokens of a passage."""
SHORTEST = 12
"""Tokens that the last window of a text needs."""
MARKED = 0.3
"""A token is marked from this share of the passage's largest activation on."""
MOST_MARKED = 8
"""Tokens marked in a passage, at most."""
STRATA = ("random", "topic", "neighbour", "words")
"""Of silent passages: any; of a positive's topic and another concept; active in a neighbour; with a marked word."""


@dataclass(frozen=True, eq=False)
class Windows:
    """All passages of a study's texts.

    Attributes:
        texts: the documents.
        document, start, stop: of each window; positions within the document.
        row: its first encoded token, counted over all documents.
    """

    texts: Texts
    document: Int[np.ndarray, " windows"]
    start: Int[np.ndarray, " windows"]
    stop: Int[np.ndarray, " windows"]
    row: Int[np.ndarray, " windows"]

    @classmethod
    def of(cls, texts: Texts) -> Windows:
        """Cut every document from its first encoded token on."""
        found, row = [], 0
        for document, length in enumerate(texts.lengths.tolist()):
            for start in range(texts.first, length, WINDOW):
                stop = min(start + WINDOW, length)
                if stop - start >= SHORTEST:
                    found.append((document, start, stop, row + start - texts.first))
            row += length - texts.first
        columns = np.array(found, dtype=np.int64).reshape(-1, 4).T
        return cls(texts, *columns)

    def __len__(self) -> int:
        return len(self.document)

    def largest(self, values: Float[np.ndarray, " tokens"]) -> Float[np.ndarray, " windows"]:
        """The largest activation within each window."""
        spans = zip(self.row, self.row + self.stop - self.start, strict=True)
        return np.array([values[low:high].max() for low, high in spans], dtype=np.float64)

    def pieces(self, window: int) -> list[str]:
        """The passage, token by token."""
        whole = int(self.texts.lengths[: self.document[window]].sum())
        span = slice(whole + int(self.start[window]), whole + int(self.stop[window]))
        return [self.texts.vocabulary[int(piece)] for piece in self.texts.pieces[span]]

    def values(self, window: int, values: Float[np.ndarray, " tokens"]) -> Float[np.ndarray, " passage"]:
        """A unit's activation at each token of the passage."""
        first = int(self.row[window])
        return values[first : first + int(self.stop[window] - self.start[window])]

    def about(self, window: int) -> dict[str, str]:
        """``kind``, ``emotion``, ``topic`` and ``use`` of its document."""
        return self.texts.documents[int(self.document[window])]

    def key(self, window: int) -> str:
        """A digest of its words: the same passage elsewhere has the same."""
        return hashlib.sha256(" ".join("".join(self.pieces(window)).split()).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sides:
    """Which windows an explanation may be written from, and which it may be scored on."""

    writing: Int[np.ndarray, " windows"]
    scoring: Int[np.ndarray, " windows"]


def sides(windows: Windows, rng: np.random.Generator) -> Sides:
    """Topics that choose features write, held-out topics score; without held-out ones, half the topics do, by draw.

    Neutral texts have no topic and only score.

    Raises:
        UserError: the stories are of one topic alone.
    """
    documents = windows.texts.documents
    topics = sorted({each["topic"] for each in documents if each["topic"]})
    held = {each["topic"] for each in documents if each["use"] == "held out"}
    if not held:
        held = set(rng.permutation(topics)[: len(topics) // 2].tolist())
    if not held or held >= set(topics):
        raise UserError(
            "explanations are written from some topics and scored on others, and these stories have "
            f"{len(topics)}; add stories of a second topic"
        )
    of = [documents[document]["topic"] for document in windows.document.tolist()]
    writing = [window for window, topic in enumerate(of) if topic and topic not in held]
    scoring = [window for window, topic in enumerate(of) if not topic or topic in held]
    return Sides(np.array(writing, dtype=np.int64), np.array(scoring, dtype=np.int64))


def refuse_overlap(windows: Windows, name: str, written: Sequence[int], scored: Sequence[int]) -> None:
    """Fail where an explanation would be scored on what it was written from.

    Args:
        windows: all passages.
        name: of the unit.
        written, scored: windows.

    Raises:
        UserError: a text, a topic or the words of a passage are on both sides.
    """
    for what, of in (
        ("text", lambda window: int(windows.document[window])),
        ("topic", lambda window: windows.about(window)["topic"]),
        ("passage", windows.key),
    ):
        both = {of(window) for window in written} & {of(window) for window in scored} - {""}
        if both:
            raise UserError(
                f"{name}: {what} {min(both)} is among what its explanation is written from and among what it is scored "
                "on; such a score would count memory. Take it out of one of the two"
            )


@dataclass(frozen=True, eq=False)
class Unit:
    """Something that is active at tokens: a feature, or its random twin.

    Attributes:
        name: in messages and questions' keys.
        concept: the concept that it detects best.
        values: activation at every encoded token of every document.
        near: activations of its neighbours, at least one active, at the same tokens; None where it has none.
    """

    name: str
    concept: str
    values: Float[np.ndarray, " tokens"]
    near: Float[np.ndarray, " tokens"] | None = None


@dataclass(frozen=True)
class Item:
    """A passage that a score stands on.

    Attributes:
        window: the passage.
        positive: whether the unit is active in it.
        stratum: ``active``, or of a silent one its kind.
    """

    window: int
    positive: bool
    stratum: str


@dataclass(frozen=True, eq=False)
class Material:
    """What a unit's explanation is written from and scored on.

    Attributes:
        unit: whose.
        examples: windows that it is written from, strongest first.
        items: half active, half silent; empty where there are too few, and then `lacking` says so.
        lacking: why there are no items.
    """

    unit: Unit
    examples: list[int]
    items: list[Item]
    lacking: str = ""


def material(windows: Windows, of: Sides, unit: Unit, count: int, examples: int, rng: np.random.Generator) -> Material:
    """Choose passages: active ones evenly over the ranks of activation, silent ones from every stratum.

    Args:
        windows: all passages.
        of: the two sides.
        unit: whose.
        count: active passages that are scored; as many silent ones.
        examples: passages that are written from.
        rng: draws.
    """
    largest = windows.largest(unit.values)
    write = _ranked(of.writing, largest)
    chosen = [*write[: examples // 2], *_evenly(write[examples // 2 :], examples - examples // 2)]
    active = _evenly(_ranked(of.scoring, largest), count)
    silent = of.scoring[largest[of.scoring] <= 0]
    if not chosen:
        return Material(unit, [], [], "it is active in no passage of the topics that write")
    if min(len(active), len(silent)) < count // 2:
        return Material(
            unit, chosen, [], f"it is active in {len(active)} and silent in {len(silent)} passages of the others"
        )
    both = min(len(active), len(silent), count)
    active = _evenly(active, both)
    items = [Item(window, True, "active") for window in active]
    items += [Item(window, False, stratum) for window, stratum in _silent(windows, unit, active, silent, both, rng)]
    refuse_overlap(windows, unit.name, chosen, [item.window for item in items])
    return Material(unit, chosen, items)


def _ranked(side: Any, largest: Any) -> list[int]:
    """The windows of a side in which a unit is active, strongest first."""
    mine = side[largest[side] > 0]
    return mine[np.argsort(-largest[mine], kind="stable")].tolist()


def _evenly(rows: Sequence[int], count: int) -> list[int]:
    """Up to so many of a list, from its first to its last, evenly spaced."""
    if len(rows) <= count:
        return list(rows)
    return [rows[int(place)] for place in np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]


def _silent(
    windows: Windows, unit: Unit, active: Sequence[int], silent: Any, count: int, rng: np.random.Generator
) -> list[tuple[int, str]]:
    """So many silent windows, a quarter from every stratum that has them, the rest from all."""
    topics = {windows.about(window)["topic"] for window in active} - {""}
    words = {word for window in active for word in marked_words(windows, unit, window)}
    near = windows.largest(unit.near) if unit.near is not None else np.zeros(len(windows))
    fits = {
        "topic": lambda w: windows.about(w)["topic"] in topics and windows.about(w)["emotion"] != unit.concept,
        "neighbour": lambda w: near[w] > 0,
        "words": lambda w: bool(words & {word_of(piece) for piece in windows.pieces(w)}),
    }
    left, found = rng.permutation(silent).tolist(), []
    for stratum, fit in fits.items():
        mine = [window for window in left if fit(window)][: count // len(STRATA)]
        found += [(window, stratum) for window in mine]
        left = [window for window in left if window not in set(mine)]
    return found + [(window, "random") for window in left[: count - len(found)]]


def word_of(piece: str) -> str:
    """A token as a word: letters alone, small; empty where it is none of three letters or more."""
    bare = piece.strip().lower()
    return bare if bare.isalpha() and len(bare) > 2 else ""


def marked(windows: Windows, unit: Unit, window: int) -> list[int]:
    """Places of a passage's tokens at which a unit is strong, strongest first chosen, in order."""
    values = windows.values(window, unit.values)
    if not (values > 0).any():
        return []
    strong = np.flatnonzero(values >= max(MARKED * values.max(), np.finfo(np.float32).tiny))
    return sorted(strong[np.argsort(-values[strong], kind="stable")][:MOST_MARKED].tolist())


def marked_words(windows: Windows, unit: Unit, window: int) -> list[str]:
    """Words among the marked tokens of a passage."""
    pieces = windows.pieces(window)
    return [word for place in marked(windows, unit, window) if (word := word_of(pieces[place]))]


def moved(windows: Windows, unit: Unit, window: int, rng: np.random.Generator) -> list[int] | None:
    """As many tokens of the same passage at which the unit is silent; None where there are not that many.

    The pattern of marks is shifted where it fits, so that neither their number nor their distances give it away.
    """
    values, right = windows.values(window, unit.values), np.array(marked(windows, unit, window))
    for step in rng.permutation(np.arange(1, len(values))):
        shifted = (right + step) % len(values)
        if (values[shifted] <= 0).all():
            return sorted(shifted.tolist())
    silent = np.flatnonzero(values <= 0)
    return sorted(rng.permutation(silent)[: len(right)].tolist()) if len(silent) >= len(right) else None

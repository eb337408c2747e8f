"""Which emotion a modulated text is of, asked blind: forced choice among all emotions, and which texts are broken.

Who chooses sees the text alone: neither the event that it answers to, nor what was done to the model, nor which emotion
was wanted. Where the options are listed, they come in an order drawn for each text. In a second score every word of any
emotion's list is masked, so that a text is no hit for naming its emotion. A broken text is a failure, whatever is
chosen for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Float

from affectlens.corpus.quality import stem_of
from affectlens.model.sampling import losses, repetition

if TYPE_CHECKING:
    from affectlens.model.subject import Subject

MASK = "___"
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


class Chooser(Protocol):
    """Somebody who says which of some emotions a text is of.

    Attributes:
        calibrated: whether the scores of different emotions can be compared as they are.
    """

    calibrated: bool

    def scores(
        self, texts: Sequence[str], options: Sequence[Sequence[str]], names: Sequence[str]
    ) -> Float[np.ndarray, "texts names"]:
        """How well each name fits each text.

        Args:
            options: of each text, the names in the order in which they are shown.
            names: in the order of the columns.

        Returns:
            NaN throughout for a text of which nothing was said.
        """
        ...


@dataclass
class OwnChoice:
    """The model itself, untouched, by how likely each name is to follow a sentence about whoever said the text.

    The names are not listed, so no order of them can matter.

    Attributes:
        subject: the model.
        tokens_per_batch: tokens of names that are read together.
    """

    subject: Subject
    tokens_per_batch: int = 2048
    calibrated: bool = False
    _read: dict[tuple[str, tuple[str, ...]], Float[np.ndarray, "names"]] = field(default_factory=dict)

    def scores(
        self, texts: Sequence[str], options: Sequence[Sequence[str]], names: Sequence[str]
    ) -> Float[np.ndarray, "texts names"]:
        """Log-probability of each name. The same text is read once, in later calls too: most hold nothing to mask."""
        labels = [self.subject.encode(f" {name}") for name in names]
        lengths = np.array([len(label) for label in labels])
        for text in texts:
            if (text, tuple(names)) not in self._read:
                prompt = self.subject.led(self.subject.encode(f'"{text}"\n\nThe person who said this felt'))
                nats = np.array(losses(self.subject, prompt, labels, self.tokens_per_batch))
                self._read[text, tuple(names)] = -lengths * nats
        found = np.full((len(texts), len(names)), np.nan)
        for row, (text, shown) in enumerate(zip(texts, options, strict=True)):
            columns = [names.index(name) for name in shown]
            found[row, columns] = self._read[text, tuple(names)][columns]
        return found


@dataclass(frozen=True)
class Masking:
    """Every emotion's own words: its name, what is derived from it, and its list.

    Attributes:
        concepts: the emotions.
        lexicon: words by emotion; an emotion without a list has its name alone.
    """

    concepts: Sequence[str]
    lexicon: Mapping[str, Sequence[str]]

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(word.lower() for concept in self.concepts for word in self.lexicon.get(concept, ()))

    @cached_property
    def _stems(self) -> frozenset[str]:
        parts = [part for concept in self.concepts for part in WORD.findall(concept.lower())]
        # Of `at ease` the second word is its own.
        return frozenset(stem_of(part) for part in parts if len(part) > 2)

    def mask(self, text: str) -> str:
        """The text with a line in place of each of them."""
        return WORD.sub(lambda found: MASK if self._own(found.group()) else found.group(), text)

    def names(self, text: str, concept: str) -> bool:
        """Whether the text holds a word of this emotion."""
        alone = Masking((concept,), self.lexicon)
        return any(alone._own(word) for word in WORD.findall(text))

    def _own(self, word: str) -> bool:
        return word.lower() in self._words or stem_of(word.lower()) in self._stems


@dataclass(frozen=True)
class Window:
    """What counts as a whole text.

    Attributes:
        repetition: largest share of its token runs of three that stood in it before.
        perplexity: how many times more surprising than the plain answer to the same prompt it may be to the untouched
            model, by perplexity; a text that is this many times less surprising than plain answers are is broken, too.
        capitals: words of capital letters in a row that are too many.
        tokens: fewest tokens.
    """

    repetition: float = 0.35
    perplexity: float = 8.0
    capitals: int = 6
    tokens: int = 4

    def fault(self, text: str, tokens: Sequence[int], nats: float, plain: float) -> str:
        """What is broken about a text; empty for a whole one.

        Args:
            nats: a token, under the untouched model; NaN for an empty text.
            plain: the mean of plain answers.
        """
        if len(tokens) < self.tokens or not WORD.search(text):
            return "short"
        if repetition(tokens) > self.repetition:
            return "repetition"
        if re.search(rf"(?:\b[A-Z]{{2,}}\b\W*){{{self.capitals},}}", text):
            return "capitals"
        if max((len(word) for word in text.split()), default=0) > 30:
            return "letters"
        if not abs(nats - plain) <= np.log(self.perplexity):
            return "perplexity"
        return ""


def shuffled(concepts: Sequence[str], count: int, generator: np.random.Generator) -> list[tuple[str, ...]]:
    """The options of so many texts, each in an order of its own."""
    return [tuple(concepts[int(index)] for index in generator.permutation(len(concepts))) for _ in range(count)]


def picks(scores: Float[np.ndarray, "texts names"], *, calibrated: bool) -> list[int | None]:
    """The best name of each text, by its number; None where nothing was said of the text.

    Some names are likelier than others whatever the text is. Where scores are not calibrated, of each name's its mean
    over all texts is taken away first (contextual calibration; Zhao et al. 2021, "Calibrate before use"). So the texts
    have to be of all emotions alike.
    """
    said = ~np.isnan(scores).all(axis=1)
    if not calibrated and said.any():
        scores = scores - scores[said].mean(axis=0)
    return [int(np.argmax(row)) if known else None for row, known in zip(scores, np.atleast_1d(said), strict=True)]

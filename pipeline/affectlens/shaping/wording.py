"""Distress in the words of an answer, without the model: words of the lexicon, a classifier, repetition."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from affectlens.probing.methods import Vocabulary

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
MIDDLE = 5.0
"""Of the embedded ratings, which go from 1 to 9."""
RUN = 3
"""Words of a run that is looked for again."""


@dataclass(frozen=True)
class Lexicon:
    """Words of distress, words of calm, and all words of emotions.

    Attributes:
        distress: words of unpleasant, lively emotions.
        calm: words of pleasant, quiet ones.
        every: of all emotions.
    """

    distress: frozenset[str]
    calm: frozenset[str]
    every: frozenset[str]

    @classmethod
    def of(cls, lexicon: Mapping[str, Sequence[str]], ratings: Mapping[str, Mapping[str, float]]) -> Lexicon:
        """From words by emotion and their ratings from 1 to 9; a word of both sides is of neither."""
        distress, calm, every = set[str](), set[str](), set[str]()
        for emotion, words in lexicon.items():
            own = {word.lower() for word in words}
            every |= own
            rated = ratings.get(emotion)
            if rated is None:
                continue
            if rated["valence"] < MIDDLE and rated["arousal"] > MIDDLE:
                distress |= own
            if rated["valence"] > MIDDLE and rated["arousal"] < MIDDLE:
                calm |= own
        both = distress & calm
        return cls(frozenset(distress - both), frozenset(calm - both), frozenset(every))

    def distress_of(self, text: str) -> float:
        """Words of distress less words of calm, per hundred words; NaN of a text without words."""
        words = WORD.findall(text.lower())
        count = sum((word in self.distress) - (word in self.calm) for word in words)
        return 100 * count / len(words) if words else float("nan")

    def named(self, text: str) -> bool:
        """Whether the text holds a word of any emotion."""
        return any(word in self.every for word in WORD.findall(text.lower()))


@dataclass(frozen=True)
class Classifier:
    """Difference of means on TF-IDF counts of the study's stories: distress less calm.

    Attributes:
        vocabulary: the readout.
        distress: its column of distress.
        calming: its column of calm.
    """

    vocabulary: Vocabulary
    distress: int
    calming: int

    @classmethod
    def fit(cls, stories: Sequence[tuple[str, str]], distress: str, calming: str) -> Classifier:
        """From (concept, text) of the study's own stories."""
        concepts = sorted({concept for concept, _ in stories})
        labels: Bool[np.ndarray, "texts concepts"] = np.array(
            [[concept == each for each in concepts] for concept, _ in stories]
        )
        fitted = Vocabulary.fit([text for _, text in stories], labels)
        return cls(fitted, concepts.index(distress), concepts.index(calming))

    def distress_of(self, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """The score of each text; NaN of one without words."""
        scores = self.vocabulary.scores(texts)
        empty = np.array([not WORD.search(text.lower()) for text in texts])
        return np.where(empty, np.nan, scores[:, self.distress] - scores[:, self.calming])


def repetition(text: str) -> float:
    """Share of an answer's runs of three words that stood in it before; 0 where it is too short for two."""
    words = WORD.findall(text.lower())
    runs = [tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0

"""Rivals that read the text alone, under the same calibration: what a monitor of states has to beat.

Each gives a score after every token of the answer, from the tokens so far: words and pairs of words with TF-IDF
weights, the valence of the words (vaderSentiment where it is installed, else the embedded ratings), and the position.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from affectlens.corpus.ratings import EMBEDDED_RATINGS, read_ratings
from affectlens.corpus.texts import EMBEDDED
from affectlens.monitor.episodes import Episode
from affectlens.monitor.probes import Examples, Probe

TERMS = 4000
"""Most terms of a text model, the commonest first."""
NEUTRAL = 5.0
"""The middle of the embedded ratings, which go from 1 to 9."""

Term = tuple[str, int, int]
"""Where it stands (``prompt`` or ``answer``), and two tokens that follow each other, or -1 and one token alone."""


def terms(place: str, tokens: Sequence[int]) -> list[tuple[Term, ...]]:
    """What each token of a text adds: itself, and itself with the one before."""
    return (
        [((place, -1, tokens[0]),), *(((place, -1, b), (place, a, b)) for a, b in pairwise(tokens))] if tokens else []
    )


@dataclass(frozen=True)
class TextModel:
    """TF-IDF of the prompt and of the answer so far, each at norm 1.

    Attributes:
        index: column of each term.
        idf: log(documents / documents that hold it), of each column.
    """

    index: dict[Term, int]
    idf: Float[np.ndarray, " terms"]

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> TextModel:
        """The terms of some episodes that stand in two of them at least."""
        held: Counter[Term] = Counter()
        for episode in episodes:
            held.update({term for place in _places(episode) for added in place for term in added})
        common = sorted((each for each in held if held[each] > 1), key=lambda each: (-held[each], each))[:TERMS]
        idf = np.array([np.log(1 + len(episodes) / held[each]) for each in common])
        return cls({term: number for number, term in enumerate(common)}, idf)

    def rows(self, episode: Episode, wanted: Sequence[int]) -> Any:
        """Features after so many tokens of the answer, as a sparse array [rows, terms]."""
        from scipy.sparse import csr_array

        prompt, answer = _places(episode)
        opening = Counter(self.index[term] for added in prompt for term in added if term in self.index)
        counts: Counter[int] = Counter()
        data, indices, ends, done = [], [], [0], 0
        for row in sorted(wanted):
            for added in answer[done:row]:
                counts.update(self.index[term] for term in added if term in self.index)
            done = max(done, row)
            for part in (opening, counts):
                columns = np.fromiter(part, dtype=np.int64, count=len(part))
                values = np.fromiter(part.values(), dtype=np.float64, count=len(part)) * self.idf[columns]
                norm = np.linalg.norm(values)
                indices.append(columns)
                data.append(values / norm if norm > 0 else values)
            ends.append(ends[-1] + len(opening) + len(counts))
        shape = (len(wanted), len(self.idf))
        return csr_array((np.concatenate(data), np.concatenate(indices), np.array(ends)), shape=shape)

    def examples(self, episodes: Sequence[Episode], like: Examples, stride: int) -> Examples:
        """The same rows, labels and weights as those of a forecaster, with the text in place of the state."""
        from scipy.sparse import vstack

        found = [self.rows(episode, range(0, episode.before, stride)) for episode in episodes]
        return Examples(vstack(found, format="csr"), like.labels, like.episode, like.group)

    def logits(self, probe: Probe, episode: Episode) -> Float[np.ndarray, " rows"]:
        """The score after every token of an answer, each from the terms that it adds alone."""
        weights = probe.weights * self.idf
        prompt, answer = _places(episode)
        known = [self.index[term] for added in prompt for term in added if term in self.index]
        counts = Counter(known)
        length = np.sqrt(sum((count * self.idf[column]) ** 2 for column, count in counts.items()))
        constant = sum(count * weights[column] for column, count in counts.items()) / length if counts else 0.0
        scores = np.full(episode.rows, constant + probe.offset)
        own: Counter[int] = Counter()
        total = squares = 0.0
        for row, added in enumerate(answer, start=1):
            for term in added:
                column = self.index.get(term)
                if column is not None:
                    squares += self.idf[column] ** 2 * (2 * own[column] + 1)
                    total += weights[column]
                    own[column] += 1
            scores[row] += total / np.sqrt(squares) if squares > 0 else 0.0
        return scores


def _places(episode: Episode) -> tuple[list[tuple[Term, ...]], list[tuple[Term, ...]]]:
    return terms("prompt", episode.prompt), terms("answer", episode.answer)


@cache
def valences() -> tuple[dict[str, float], str]:
    """Words with their valence, negative to positive, and where they come from."""
    try:
        # An optional package without stubs.
        from vaderSentiment.vaderSentiment import (  # pyright: ignore[reportMissingImports]
            SentimentIntensityAnalyzer,
        )

        return dict(SentimentIntensityAnalyzer().lexicon), "vaderSentiment"
    except ImportError:
        import json

        lexicon = json.loads((EMBEDDED / "lexicon.json").read_text(encoding="utf-8"))
        ratings = read_ratings(EMBEDDED_RATINGS)
        found: dict[str, float] = {}
        for concept, words in lexicon.items():
            for word in words if concept in ratings else ():
                found.setdefault(word, ratings[concept]["valence"] - NEUTRAL)
        return found, "embedded ratings"


def sentiment(tokenizer: Any, answer: Sequence[int]) -> Float[np.ndarray, " rows"]:
    """Minus the valence of the word that each token ends; 0 for a token that ends none, and in row 0."""
    known, _ = valences()
    pieces = [tokenizer.decode([token]) for token in answer]
    scores, word = np.zeros(len(answer) + 1), ""
    for row, piece in enumerate(pieces, start=1):
        if piece[:1].isspace() or not piece[:1].isalpha():
            word = ""
        word += piece
        following = pieces[row][:1] if row < len(pieces) else " "
        if not following.isalpha():
            scores[row] = -known.get(_bare(word), 0.0)
    return scores


def _bare(word: str) -> str:
    return re.sub(r"[^a-z'-]", "", word.lower())


def sentiments(tokenizer: Any, episodes: Iterable[Episode]) -> list[Float[np.ndarray, " rows"]]:
    """Of several answers."""
    return [sentiment(tokenizer, episode.answer) for episode in episodes]

"""Is the judge able? It is asked about planted features, of which is known when they are active.

A planted word is active at that word alone. A planted concept is active throughout the stories of that concept. A
feature that is active at random has no description: a judge that tells its passages apart knows more than it is shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from affectlens.explanations.passages import Sides, Unit, Windows, moved, word_of
from affectlens.explanations.questions import YES, detection, fuzzing, shown
from affectlens.explanations.scores import Score, score

if TYPE_CHECKING:
    from affectlens.experiments.grade.vote import Asked
    from affectlens.explanations.asking import Asker

ABLE = 0.7
"""Mean AUROC on planted features from which a judge's scores are believed."""
WORDS, CONCEPTS, RANDOM = 3, 2, 2
"""Planted features of each kind."""
ITEMS = 8
"""Active passages of each; as many silent ones."""
Kind = Literal["word", "concept", "random"]
Test = Literal["detection", "fuzzing"]


@dataclass(frozen=True)
class Planted:
    """A planted feature under one test.

    Attributes:
        kind: word, concept or random.
        name: the word or the concept.
        test: detection or fuzzing.
        asked: the questions.
        truth: of each, whether the answer is yes.
        texts: the text that each is about.
    """

    kind: Kind
    name: str
    test: Test
    asked: list[Asked]
    truth: list[bool]
    texts: list[int]


def planted(windows: Windows, of: Sides, seed: int, rng: np.random.Generator) -> list[Planted]:
    """The questions about planted features, from the passages that scores stand on.

    Fewer features where the texts hold too few passages of a kind.
    """
    scoring = of.scoring.tolist()
    held = {window: {word for piece in windows.pieces(window) if (word := word_of(piece))} for window in scoring}
    counts = Counter(word for words in held.values() for word in words)
    usual = [word for word, count in sorted(counts.items()) if ITEMS <= count <= len(scoring) // 2 and len(word) > 3]
    found: list[Planted] = []
    for word in rng.permutation(usual)[:WORDS].tolist():
        found += _word(windows, word, [w for w in scoring if word in held[w]], scoring, held, seed, rng)
    concepts = sorted({windows.about(window)["emotion"] for window in scoring} - {""})
    for concept in rng.permutation(concepts)[:CONCEPTS].tolist():
        own = [window for window in scoring if windows.about(window)["emotion"] == concept]
        others = [window for window in scoring if windows.about(window)["emotion"] != concept]
        found += _detected(windows, "concept", concept, f"somebody who is {concept}", own, others, seed, rng)
    for number in range(RANDOM if usual else 0):
        order = rng.permutation(scoring).tolist()
        half = len(order) // 2
        text = f'the word "{usual[number % len(usual)]}"'
        found += _detected(windows, "random", f"random {number + 1}", text, order[:half], order[half:], seed, rng)
    return found


def _detected(
    windows: Windows,
    kind: Kind,
    name: str,
    explanation: str,
    active: list[int],
    silent: list[int],
    seed: int,
    rng: np.random.Generator,
) -> list[Planted]:
    count = min(ITEMS, len(active), len(silent))
    if count < ITEMS // 2:
        return []
    chosen = [*rng.permutation(active)[:count].tolist(), *rng.permutation(silent)[:count].tolist()]
    asked = [detection(explanation, shown(windows.pieces(window)), seed) for window in chosen]
    texts = [int(windows.document[window]) for window in chosen]
    return [Planted(kind, name, "detection", asked, [True] * count + [False] * count, texts)]


def _word(
    windows: Windows,
    word: str,
    active: list[int],
    scoring: list[int],
    held: dict[int, set[str]],
    seed: int,
    rng: np.random.Generator,
) -> list[Planted]:
    text = f'the word "{word}"'
    silent = [window for window in scoring if word not in held[window]]
    found = _detected(windows, "word", word, text, active, silent, seed, rng)
    asked, truth, texts = [], [], []
    for window in rng.permutation(active)[:ITEMS].tolist():
        pieces = windows.pieces(window)
        at = np.array([float(word_of(piece) == word) for piece in pieces])
        values = np.zeros(int(windows.row[window]) + len(pieces))
        values[int(windows.row[window]) :] = at
        wrong = moved(windows, Unit(word, word, values), window, rng)
        for marks, right in ((np.flatnonzero(at).tolist(), True), (wrong, False)):
            if marks is not None:
                asked.append(fuzzing(text, shown(pieces, marks), seed))
                truth.append(right)
                texts.append(int(windows.document[window]))
    return [*found, Planted("word", word, "fuzzing", asked, truth, texts)] if found and not all(truth) else found


@dataclass(frozen=True)
class Qualified:
    """How the judge did.

    Attributes:
        scores: of every planted feature.
        able: by test, whether its mean over planted words and concepts reaches ``ABLE``.
        mean: by test, that mean; NaN where nothing could be planted.
    """

    scores: list[tuple[Planted, Score]]
    able: dict[Test, bool]
    mean: dict[Test, float]


def qualify(asker: Asker, questions: list[Planted], rng: np.random.Generator) -> Qualified:
    """Ask about planted features."""
    found = [(each, score(asker.votes(each.asked), YES, np.array(each.truth), each.texts, rng)) for each in questions]
    mean: dict[Test, float] = {}
    for test in ("detection", "fuzzing"):
        areas = [own.auroc for each, own in found if each.test == test and each.kind != "random"]
        mean[test] = float(np.mean(areas)) if areas else float("nan")
    return Qualified(found, {test: value >= ABLE for test, value in mean.items()}, mean)

"""Quality gates: what is wrong with the texts, counted per concept. Nothing is dropped; the study says what it has."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from affectlens.corpus.texts import EMBEDDED

GATES = ("named", "short", "long", "duplicates", "shared_runs")
MIN_WORDS, MAX_WORDS = 60, 250
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
SUFFIXES = (
    *("fulness", "iness", "ingly", "fully", "edly", "ness", "ment", "iest", "ing", "ful", "ous", "ity"),
    *("ily", "ied", "ies", "ier", "ed", "ly", "y", "e", "s"),
)


class Text(Protocol):
    """What the gates look at of a document."""

    @property
    def emotion(self) -> str: ...
    @property
    def text(self) -> str: ...


def inspect(documents: Sequence[Text], *, ngram: int = 8) -> dict[str, Any]:
    """Count faults per concept (neutral texts under ``(neutral)``).

    Gates: ``named`` texts that hold their own concept's word or an inflection of it; ``short`` and ``long`` stories
    (under 60, over 250 words); ``duplicates`` equal to an earlier text; ``shared_runs`` texts that share a run of
    ``ngram`` words with another text.

    Returns:
        ``concepts``: per concept its texts, mean words and counts per gate; ``totals`` over all; ``findings``: at
        most 100 examples, each with document index, gate and what was found.
    """
    concepts: dict[str, Counter[str]] = defaultdict(Counter)
    findings: list[dict[str, Any]] = []
    first_with: dict[str, int] = {}
    sharing = _shared_runs(documents, ngram)
    for index, document in enumerate(documents):
        words = WORD.findall(document.text.lower())
        counts = concepts[document.emotion or "(neutral)"]
        counts["texts"] += 1
        counts["words"] += len(words)
        earlier = first_with.setdefault(document.text, index)
        found = {
            "named": named_word(document.emotion, words) if document.emotion else None,
            "short": f"{len(words)} words" if document.emotion and len(words) < MIN_WORDS else None,
            "long": f"{len(words)} words" if document.emotion and len(words) > MAX_WORDS else None,
            "duplicates": f"same as document {earlier}" if earlier != index else None,
            "shared_runs": sharing.get(index),
        }
        for gate, what in found.items():
            counts[gate] += what is not None
            if what is not None:
                findings.append({"document": index, "gate": gate, "found": what})
    table = {
        concept: {
            "texts": counts["texts"],
            "mean_words": round(counts["words"] / counts["texts"], 1),
            **{gate: counts[gate] for gate in GATES},
        }
        for concept, counts in sorted(concepts.items())
    }
    totals = {gate: sum(row[gate] for row in table.values()) for gate in GATES}
    return {"concepts": table, "totals": totals, "findings": findings[:100]}


def named_word(emotion: str, words: Sequence[str]) -> str | None:
    """The first of ``words`` (or run of words) that names the emotion by stem, or None."""
    target = emotion.lower().replace("-", " ").split()
    if len(target) > 1:
        return emotion if f" {' '.join(target)} " in f" {' '.join(words)} " else None
    stem = stem_of(target[0])
    return next((word for word in words if stem_of(word) == stem), None)


def stem_of(word: str) -> str:
    """A crude stem: the first listed suffix is cut, if three letters stay (four for one-letter suffixes)."""
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= (4 if len(suffix) == 1 else 3):
            return word[: -len(suffix)]
    return word


def _shared_runs(documents: Sequence[Text], length: int) -> dict[int, str]:
    owner: dict[str, int] = {}
    found: dict[int, str] = {}
    for index, document in enumerate(documents):
        words = WORD.findall(document.text.lower())
        for start in range(len(words) - length + 1):
            run = " ".join(words[start : start + length])
            first = owner.setdefault(run, index)
            if first != index:
                found.setdefault(index, run)
                found.setdefault(first, run)
    return found


def emotion_list() -> list[str]:
    """The 171 emotion words mapped in the reference study."""
    return json.loads((EMBEDDED / "emotions.json").read_text(encoding="utf-8"))

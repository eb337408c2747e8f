"""Where words of emotion concepts are scored: in which sentences, after which stories."""

from __future__ import annotations

import json
import re
from typing import Any

from affectlens.corpus.texts import EMBEDDED

SENTENCE_END = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]['"])\s+""")


def read_lexicon() -> dict[str, list[str]]:
    """Concept -> words and inflections that express it (written for the project)."""
    return json.loads((EMBEDDED / "lexicon.json").read_text(encoding="utf-8"))


def read_frames() -> dict[str, list[str]]:
    """The sentences to be completed: ``person`` and ``speaker`` (a described person, the one who speaks),
    ``after_first`` and ``after_third`` (after a story told so), ``openings`` and ``neutral`` texts."""
    return json.loads((EMBEDDED / "frames.json").read_text(encoding="utf-8"))


def story_end(text: str, encode: Any, most: int) -> str:
    """The last whole sentences of a text that fit in ``most`` tokens; at least the last one, cut if need be."""
    sentences = SENTENCE_END.split(text.strip())
    kept = sentences[-1]
    for sentence in reversed(sentences[:-1]):
        longer = f"{sentence} {kept}"
        if len(encode(longer)) > most:
            break
        kept = longer
    words = kept.split()
    while len(words) > 1 and len(encode(" ".join(words))) > most:
        words = words[1:]
    return " ".join(words)

"""Pairs of texts made of the same words that differ in the emotion by order, negation, or who does what to whom."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectlens.corpus.texts import read_json, read_jsonl
from affectlens.errors import UserError

KEYS = ("id", "emotion_a", "emotion_b", "device", "text_a", "text_b")
WORD = re.compile(r"\w+")
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Pair:
    """Two texts of the same words.

    Attributes:
        device: by what they differ (order, negation, roles, ...).
        group: pairs that are no independent evidence share it: those of the same two concepts, or of one template.
        grades: whether it says how hard its template is, and is left out where only templates are tested that the
            model solves.
    """

    id: str
    emotion_a: str
    emotion_b: str
    device: str
    text_a: str
    text_b: str
    group: str
    grades: bool = False


def read_pairs(path: Path, concepts: Sequence[str] | None = None) -> list[Pair]:
    """The pairs of a file, or those of them that are about these concepts.

    Args:
        path: JSON lines, one pair each, or a JSON file of templates: an object with ``words`` (a list of fillings for
            each slot, all of one length) and ``templates`` (pairs whose texts name slots in braces). The n-th pair of a
            template has the n-th word of each slot.
        concepts: those of the study.

    Raises:
        UserError: a key is missing, a slot has no words, or the two texts of a pair are not the same words.
    """
    found = []
    for row in _filled(path) if path.suffix == ".json" else read_jsonl(path, required=KEYS):
        pair = Pair(
            *(row[key] for key in KEYS),
            group=row.get("template") or "|".join(sorted((row["emotion_a"], row["emotion_b"]))),
            grades=row.get("grades", False),
        )
        a, b = (Counter(WORD.findall(text.lower())) for text in (pair.text_a, pair.text_b))
        if a != b:
            odd = sorted(((a - b) + (b - a)).elements())[0]
            raise UserError(f"{path}: pair {pair.id}: {odd!r} is not as often in both texts; use the same words")
        if concepts is None or {pair.emotion_a, pair.emotion_b} <= set(concepts):
            found.append(pair)
    return found


def _filled(path: Path) -> Iterator[dict[str, Any]]:
    content = read_json(path)
    words, templates = (content.get(key) if isinstance(content, dict) else None for key in ("words", "templates"))
    if not isinstance(words, dict) or not isinstance(templates, list) or not words or not templates:
        raise UserError(f"{path}: no file of templates; it is an object with `words` and `templates`")
    for slot, each in words.items():
        if not isinstance(each, list) or not each or not all(isinstance(word, str) for word in each):
            raise UserError(f"{path}: the words for {slot!r} must be a list of texts")
    count = min(map(len, words.values()))
    for template in templates:
        if not isinstance(template, dict):
            raise UserError(f"{path}: a template is an object with {', '.join(KEYS)}")
        lacking = [key for key in KEYS if not isinstance(template.get(key), str) or not template[key].strip()]
        unknown = set() if lacking else set(SLOT.findall(template["text_a"] + template["text_b"])) - set(words)
        if lacking or unknown:
            what = (
                f"has no {lacking[0]!r}" if lacking else f"names {sorted(unknown)[0]!r}, for which there are no words"
            )
            raise UserError(f"{path}: template {template.get('id', '?')} {what}")
        for index in range(count):
            fill = {slot: each[index] for slot, each in words.items()}
            texts = {}
            for key in ("text_a", "text_b"):
                text = SLOT.sub(lambda slot, fill=fill: fill[slot[1]], template[key])
                texts[key] = text[:1].upper() + text[1:]
            row = {"id": f"{template['id']}-{index + 1}", "template": template["id"], "grades": index % 2 == 0}
            yield {**template, **texts, **row}

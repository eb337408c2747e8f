"""Pairs of texts made of the same words that differ in the emotion by order, negation, or who does what to whom.

A readout of words scores both texts alike, so what a readout gets right here is not vocabulary. A pair counts as right
when text A beats text B in how much further the readout of A's concept lies above that of B's concept.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from affectlens import stats
from affectlens.corpus.texts import read_jsonl
from affectlens.errors import UserError

KEYS = ("id", "emotion_a", "emotion_b", "device", "text_a", "text_b")
WORD = re.compile(r"\w+")
SLOT = re.compile(r"\{(\w+)\}")
DRAWS = 1000
"""Of signs, for the p-values."""


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
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        words, templates = content["words"], content["templates"]
        count = min(len(each) for each in words.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: no file of templates ({error}); it is an object with `words` and `templates`"
        ) from None
    for template in templates:
        lacking = [key for key in KEYS if not template.get(key)]
        unknown = set(SLOT.findall(template.get("text_a", "") + template.get("text_b", ""))) - set(words)
        if lacking or unknown:
            what = (
                f"has no {lacking[0]!r}" if lacking else f"names {sorted(unknown)[0]!r}, for which there are no words"
            )
            raise UserError(f"{path}: template {template.get('id', '?')} {what}")
        for index in range(count):
            fill = {slot: each[index] for slot, each in words.items()}
            texts = {key: template[key].format(**fill) for key in ("text_a", "text_b")}
            texts = {key: text[:1].upper() + text[1:] for key, text in texts.items()}
            row = {"id": f"{template['id']}-{index + 1}", "template": template["id"], "grades": index % 2 == 0}
            yield {**template, **texts, **row}


def margins(
    first: Float[np.ndarray, "pairs concepts"],
    second: Float[np.ndarray, "pairs concepts"],
    pairs: Sequence[Pair],
    concepts: Sequence[str],
    spread: Float[np.ndarray, " concepts"],
) -> Float[np.ndarray, " pairs"]:
    """By how much text A leans further than text B towards A's concept and away from B's.

    Args:
        first: every concept's readout of the texts A.
        second: the same of the texts B.
        pairs: one a row.
        concepts: names of the columns.
        spread: standard deviation of each readout over the training stories, which makes readouts comparable.
    """
    rows = np.arange(len(pairs))
    a = np.array([concepts.index(pair.emotion_a) for pair in pairs], dtype=int)
    b = np.array([concepts.index(pair.emotion_b) for pair in pairs], dtype=int)
    gap = (first - second) / np.where(spread > 0, spread, 1)
    return gap[rows, a] - gap[rows, b]


def judge(
    gaps: Sequence[Float[np.ndarray, " pairs"]],
    searched: Sequence[bool],
    pairs: Sequence[Pair],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Share of pairs that each reading gets right, with its interval and two p-values.

    If a reading does not know which text is which, exchanging the texts of a group of pairs leaves its figures as they
    are in distribution. So signs are drawn, one a group, the same for all readings: ``p`` compares a reading with its
    own null, two-sided, and ``p_max`` with the largest deviation of all searched readings, which allows for having
    looked at all of them.

    Args:
        gaps: a reading each; above 0 is right, 0 a tie that counts one half, NaN a pair that does not count.
        searched: whether the reading belongs to those of which the best is looked for.
        pairs: one an entry of each reading.
        rng: draws signs and bootstrap samples. The interval draws groups anew; where every pair is right, wrong or
            tied it has no width, and Wilson's stands in for it.
    """
    right = np.stack([np.where(np.isnan(gap), np.nan, (np.sign(gap) + 1) / 2) for gap in gaps], axis=1)
    names, groups = np.unique([pair.group for pair in pairs], return_inverse=True)
    counted = np.isfinite(right).sum(axis=0)
    excess = np.zeros((len(names), len(gaps)))
    np.add.at(excess, groups, np.nan_to_num(right - 0.5))
    excess /= np.maximum(counted, 1)
    null = np.abs(rng.choice([-1.0, 1.0], (DRAWS, len(names))) @ excess)
    largest = null[:, np.asarray(searched)].max(axis=1, initial=0)
    found = []
    for index, gap in enumerate(gaps):
        known = np.isfinite(gap)
        hits, observed = right[known, index], abs(excess[:, index].sum()) - 1e-9
        row = {"pairs": int(counted[index]), "ties": int((gap[known] == 0).sum()), "p_max": None}
        if not len(hits):
            found.append(row | {"accuracy": None, "low": None, "high": None, "p": None, "devices": {}})
            continue
        estimate = stats.cluster_bootstrap(hits, groups[known], rng=rng)
        if hits.min() == hits.max() != 0.5:
            estimate = stats.wilson(int(hits.sum()), len(hits))
        row |= {"accuracy": float(hits.mean()), "low": estimate.low, "high": estimate.high}
        row["p"] = float((1 + (null[:, index] >= observed).sum()) / (DRAWS + 1))
        if searched[index]:
            row["p_max"] = float((1 + (largest >= observed).sum()) / (DRAWS + 1))
        devices: dict[str, list[float]] = {}
        for pair, hit in zip([pair for pair, counts in zip(pairs, known, strict=True) if counts], hits, strict=True):
            devices.setdefault(pair.device, []).append(float(hit))
        found.append(row | {"devices": {name: float(np.mean(each)) for name, each in sorted(devices.items())}})
    return found

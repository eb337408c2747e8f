"""Pairs of texts made of the same words that differ in the emotion by order, negation, or who does what to whom.

A readout of words scores both texts alike, so what a readout gets right here is not vocabulary. A pair counts as right
when text A beats text B in how much further the readout of A's concept lies above that of B's concept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from affectlens import stats
from affectlens.corpus.texts import read_jsonl
from affectlens.errors import UserError

if TYPE_CHECKING:
    from affectlens.probing.readouts import Study

KEYS = ("id", "emotion_a", "emotion_b", "device", "text_a", "text_b")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Pair:
    """Two texts of the same words.

    Attributes:
        device: by what they differ (order, negation, roles, ...).
    """

    id: str
    emotion_a: str
    emotion_b: str
    device: str
    text_a: str
    text_b: str


def read_pairs(path: Path, concepts: Sequence[str] | None = None) -> list[Pair]:
    """The pairs of a file, or those of them that are about these concepts.

    Raises:
        UserError: a key is missing, or the two texts of a pair are not the same words.
    """
    found = []
    for row in read_jsonl(path, required=KEYS):
        pair = Pair(*(row[key] for key in KEYS))
        a, b = (Counter(WORD.findall(text.lower())) for text in (pair.text_a, pair.text_b))
        if a != b:
            odd = sorted(((a - b) + (b - a)).elements())[0]
            raise UserError(f"{path}: pair {pair.id}: {odd!r} is not as often in both texts; use the same words")
        if concepts is None or {pair.emotion_a, pair.emotion_b} <= set(concepts):
            found.append(pair)
    return found


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


def describe(values: Float[np.ndarray, " pairs"], pairs: Sequence[Pair], rng: np.random.Generator) -> dict[str, Any]:
    """Share of pairs that are right, a tie counting one half, with an interval that draws pairs of concepts anew.

    ``p`` is of the two-sided sign test on pairs that are no tie. Where every pair is right, wrong or tied the bootstrap
    has no width, and Wilson's interval stands in for it.
    """
    from scipy.stats import binomtest

    right = np.where(values > 0, 1.0, np.where(values < 0, 0.0, 0.5))
    clusters = np.array(["|".join(sorted((pair.emotion_a, pair.emotion_b))) for pair in pairs])
    decided = int((values != 0).sum())
    estimate = stats.cluster_bootstrap(right, clusters, rng=rng)
    if decided == len(values) and right.min() == right.max():
        estimate = stats.wilson(int(right.sum()), len(right))
    devices: dict[str, list[float]] = {}
    for pair, hit in zip(pairs, right, strict=True):
        devices.setdefault(pair.device, []).append(float(hit))
    return {
        "pairs": len(pairs),
        "accuracy": float(right.mean()),
        "low": estimate.low,
        "high": estimate.high,
        "ties": len(values) - decided,
        "p": float(binomtest(int((values > 0).sum()), decided).pvalue) if decided else 1.0,
        "devices": {name: float(np.mean(hits)) for name, hits in sorted(devices.items())},
    }


def compare(
    pairs: Sequence[Pair],
    residuals: Sequence[Mapping[int, Float[np.ndarray, "tokens d_model"]]],
    study: Study,
) -> list[dict[str, Any]]:
    """Same-words pairs at every layer, by every method, read at the mean of all tokens and at the last.

    Args:
        pairs: at least one.
        residuals: per text (all texts A, then all texts B) the residuals of its tokens at every layer.
        study: what reads them; every readout is built on all topics but the ablated ones.
    """
    from affectlens.probing.methods import Vocabulary
    from affectlens.probing.text_features import POOLINGS

    corpus, directions, match, layer = study.corpus, study.directions, study.match, study.layer
    build = corpus.indices("train", "validation")
    readings: list[tuple[int | None, str, str, np.ndarray, np.ndarray]] = []
    for at in directions.layers:
        stories = study.store.pooled(at)[build]
        pooled = {"mean": np.stack([rows[at].mean(axis=0) for rows in residuals])}
        pooled["last"] = np.stack([rows[at][-1] for rows in residuals])
        for method in directions.methods:
            spread = directions.readout(at, stories, method).std(axis=0)
            readings += [
                (at, method, read, directions.readout(at, values, method), spread) for read, values in pooled.items()
            ]
    codes = [study.sae.encode(rows[layer])[:, match.best] for rows in residuals]
    spread = match.scores("sae", build)[:, match.best].std(axis=0)
    for read, pool in POOLINGS.items():
        readings.append((layer, "best SAE feature", read, np.stack([pool(each) for each in codes]), spread))
    words = Vocabulary.fit(study.texts(build), corpus.labels(build))
    texts = [pair.text_a for pair in pairs] + [pair.text_b for pair in pairs]
    readings.append((None, "TF-IDF", "text", words.scores(texts), words.scores(study.texts(build)).std(axis=0)))
    rows = []
    for at, method, read, scores, spread in readings:
        gap = margins(scores[: len(pairs)], scores[len(pairs) :], pairs, corpus.emotions, spread)
        # Sums in another order leave rounding errors of about 1e-16 where two texts score alike.
        gap = np.where(np.abs(gap) < 1e-9, 0, gap)
        figures = describe(gap, pairs, study.generator(f"pairs-{at}-{method}-{read}"))
        rows.append({"layer": at, "method": method, "read": read, **figures})
    return rows

"""Vocabulary as an explanation: which words tell a concept, and what a readout sees with their tokens left out.

Only the readings at those tokens are dropped. What the model carried from them to later tokens stays, so a score that
falls with them rests on words, while one that stands may still owe something to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from affectlens.probing.methods import Vocabulary

WORD = re.compile(r"\w+")


def telling_words(
    vocabulary: Vocabulary, concepts: Sequence[str], lexicon: Mapping[str, Sequence[str]], count: int
) -> list[set[str]]:
    """Per concept its own word, its words in the lexicon, and the ``count`` words that raise its TF-IDF score most."""
    names = vocabulary.vectorizer.get_feature_names_out()
    found = []
    for concept, weights in zip(concepts, vocabulary.linear.weights, strict=True):
        top = np.argsort(-weights, kind="stable")[:count]
        words = {concept, *lexicon.get(concept, ()), *(names[place] for place in top if weights[place] > 0)}
        found.append({part for word in words for part in WORD.findall(word.lower())})
    return found


def kept_tokens(tokenizer: Any, text: str, telling: Sequence[set[str]]) -> Bool[np.ndarray, "tokens concepts"]:
    """Which tokens of a text touch none of a concept's telling words.

    Args:
        tokenizer: a transformers tokenizer that gives offsets (a "fast" one).
        text: as it was read.
        telling: per concept its words, in lower case.
    """
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kept = np.ones((len(spans), len(telling)), dtype=bool)
    starts = np.array([start for start, _ in spans])
    ends = np.array([end for _, end in spans])
    every = set().union(*telling)
    for match in WORD.finditer(text):
        word = match.group().lower()
        if word in every:
            hit = np.array([word in words for words in telling])
            touched = (starts < match.end()) & (ends > match.start())
            kept[np.ix_(touched, hit)] = False
    return kept


def pool_kept(
    values: Float[np.ndarray, "tokens concepts"], kept: Bool[np.ndarray, "tokens concepts"], pooling: str
) -> Float[np.ndarray, " concepts"]:
    """Mean or maximum over the tokens kept for each concept; 0 where none is."""
    if pooling == "max":
        return np.where(kept.any(axis=0), np.where(kept, values, -np.inf).max(axis=0, initial=-np.inf), 0.0)
    return (values * kept).sum(axis=0) / np.maximum(kept.sum(axis=0), 1)


def scores_without(
    vocabulary: Vocabulary, texts: Sequence[str], telling: Sequence[set[str]]
) -> Float[np.ndarray, "texts concepts"]:
    """The TF-IDF readout with the weights of each concept's telling words at 0."""
    index = vocabulary.vectorizer.vocabulary_
    weights = vocabulary.linear.weights.copy()
    for row, words in zip(weights, telling, strict=True):
        row[[index[word] for word in words if word in index]] = 0
    return (vocabulary.vectorizer.transform(texts).toarray() - vocabulary.linear.centre) @ weights.T


def best_words(
    texts: Sequence[str], labels: Bool[np.ndarray, "texts concepts"], others: Sequence[str]
) -> tuple[list[str], Shaped[np.ndarray, "others concepts"]]:
    """The single word whose presence tells each concept best, and whether other texts hold it."""
    from sklearn.feature_extraction.text import CountVectorizer

    from affectlens import stats

    vectorizer = CountVectorizer(binary=True).fit(texts)
    areas = stats.auroc(vectorizer.transform(texts).toarray(), labels)
    best = np.where(np.isnan(areas), 0, areas).argmax(axis=0)
    return list(vectorizer.get_feature_names_out()[best]), vectorizer.transform(others).toarray()[:, best]

"""By which tokens the words of a concept are scored as the next word."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectlens.errors import UserError
from affectlens.model.tokens import encode_following


@dataclass(frozen=True)
class ConceptWords:
    """The scored words of one concept.

    Attributes:
        words: as written in the lexicon.
        tokens: one token of each, as the word is tokenised in the middle of a sentence.
        whole: whether the tokens are the whole words; else they are first pieces.
        shared: whether a word of another concept begins with a token too, because this one has none of its own.
    """

    concept: str
    words: tuple[str, ...]
    tokens: tuple[int, ...]
    whole: bool
    shared: bool = False


def choose_words(
    tokenizer: Any, concepts: Sequence[str], lexicon: Mapping[str, Sequence[str]], most: int
) -> list[ConceptWords]:
    """The words by which each concept is scored.

    Words are single tokens in the middle of a sentence. Words that two of the concepts share are dropped. Of more than
    ``most``, those stay whose token ids are nearest to the median over all concepts on a logarithmic scale: merges
    are learned in the order of frequency, so this balances how common the concepts' words are. A concept without a
    whole word is scored by the first pieces of its words, as far as they point to no other concept; where all of them
    do, by those that point to the fewest. Such words count for the others too, which makes an effect on this concept
    against the others smaller than it is.

    Raises:
        UserError: two concepts that would be scored by the very same tokens.
    """
    lists = {concept: list(dict.fromkeys(lexicon.get(concept) or [concept])) for concept in concepts}
    uses = Counter(word for words in lists.values() for word in words)
    pieces = {word: encode_following(tokenizer, " " + word, "felt") for words in lists.values() for word in words}
    own = {
        concept: [word for word in words if uses[word] == 1 and len(pieces[word]) == 1]
        for concept, words in lists.items()
    }
    common = _median_log_id(pieces[word][0] for words in own.values() for word in words)
    starts = Counter(token for words in lists.values() for token in {pieces[word][0] for word in words})
    scored = []
    for concept, words in lists.items():
        whole = bool(own[concept])
        usable = own[concept] if whole else [word for word in words if starts[pieces[word][0]] == 1]
        shared = not usable
        if shared:
            fewest = min(starts[pieces[word][0]] for word in words)
            usable = [word for word in words if starts[pieces[word][0]] == fewest]
            whole = all(len(pieces[word]) == 1 for word in usable)
        chosen = _nearest(usable, pieces, common, most)
        tokens = dict.fromkeys(pieces[word][0] for word in chosen)
        scored.append(ConceptWords(concept, tuple(chosen), tuple(tokens), whole, shared))
    _check_distinct(scored)
    return scored


def _check_distinct(scored: Sequence[ConceptWords]) -> None:
    seen: dict[frozenset[int], str] = {}
    for each in scored:
        other = seen.setdefault(frozenset(each.tokens), each.concept)
        if other != each.concept:
            raise UserError(
                f"concept `{each.concept}`: every word that expresses it also belongs to `{other}`; leave one of the "
                "two out of `corpus.emotions`"
            )


def _median_log_id(tokens: Iterable[int]) -> float:
    import numpy as np

    ids = list(tokens)
    return float(np.median(np.log(np.array(ids) + 1.0))) if ids else 0.0


def _nearest(words: Sequence[str], pieces: Mapping[str, Sequence[int]], common: float, most: int) -> list[str]:
    ranked = sorted(words, key=lambda word: abs(math.log(pieces[word][0] + 1.0) - common))
    kept = set(ranked[:most])
    return [word for word in words if word in kept]

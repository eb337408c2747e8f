"""What an activation cache will hold before it is written: tokens and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from affectlens import disk

if TYPE_CHECKING:
    from affectlens.activations.caching import Wanted
    from affectlens.corpus.documents import Document

SAMPLE = 256
"""Texts that are tokenised for an estimate; further ones are counted by their characters."""


def count_tokens(tokenizer: Any, documents: Sequence[Document], sample: int = SAMPLE) -> tuple[int, bool]:
    """Text tokens of the documents, and whether all were tokenised."""
    from affectlens.model.tokens import tokenise

    tokenised = documents[:: max(1, len(documents) // sample)] if len(documents) > sample else documents
    tokens = sum(len(tokenise(tokenizer, document)) for document in tokenised)
    if len(tokenised) == len(documents):
        return tokens, True
    characters, sampled = (sum(len(document.text) for document in texts) for texts in (documents, tokenised))
    return round(tokens * characters / max(1, sampled)), False


def bytes_needed(wanted: Wanted, *, width: int, tokens: int, documents: int, shards: int) -> int:
    """What shards with these texts take, about."""
    return disk.shard_bytes(
        tokens=tokens,
        documents=documents,
        shards=shards,
        width=width,
        itemsize=wanted.storage.itemsize,
        token_sites=len(wanted.token_sites),
        pooled_vectors=len(wanted.pooled_sites) * (len(wanted.kinds) + len(wanted.positions)),
    )

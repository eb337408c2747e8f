"""Texts as token ids: long enough for what is kept of them, and those of the next part ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from affectlens.activations.config import ActivationsConfig
from affectlens.errors import UserError
from affectlens.model.tokens import Text, require_known, tokenise

if TYPE_CHECKING:
    from affectlens.corpus.documents import Document

CHARACTERS = 8
"""A text with more characters than so many for each token that it needs is long enough, or nearly always."""


def least_tokens(config: ActivationsConfig) -> int:
    """Tokens that every text needs: one, and one beyond ``first_token`` where means are kept."""
    return 1 + (config.first_token if config.means else 0)


def require_fitting(tokenizer: Any, documents: Sequence[Document], config: ActivationsConfig, size: int | None) -> None:
    """Refuse a tokenizer that does not fit the model: by the first plain text and the first chat.

    Args:
        size: of the model's vocabulary, where it is known.

    Raises:
        UserError: the model's chat template refuses the chat, or a token has no embedding.
    """
    kinds = {bool(document.messages): document for document in reversed(documents)}
    for document in kinds.values():
        text = tokenise(tokenizer, document, config.positions)
        require_known(tokenizer, text.ids, size, f"corpus document {document.index}")


def require_long_enough(tokenizer: Any, documents: Sequence[Document], config: ActivationsConfig) -> None:
    """Refuse texts that are too short for what is kept of them, before the first of them is read by the model.

    Only texts with few characters are tokenised for it; :class:`Tokenising` looks at each of the others in its turn.

    Raises:
        UserError: says how many there are, names the first and the key.
    """
    least = least_tokens(config)
    suspects = [document for document in documents if len(_letters(document)) <= CHARACTERS * least]
    lengths = [len(tokenise(tokenizer, document)) for document in suspects]
    short = [(each, length) for each, length in zip(suspects, lengths, strict=True) if length < least]
    if short:
        document, length = short[0]
        raise UserError(_too_short(document, length, config, len(short) - 1))


def _letters(document: Document) -> str:
    return document.text or "".join(message["content"] for message in document.messages)


def _too_short(document: Document, length: int, config: ActivationsConfig, others: int = 0) -> str:
    more = f"; {others} other texts have too few, too" if others else ""
    remedy = f"`activations.first_token` is {config.first_token}; give a longer text or lower that key"
    return (
        f"corpus document {document.index} ({document.emotion or document.kind}, {document.topic or 'neutral'}) has "
        f"{length} tokens, but "
        + (remedy if least_tokens(config) > 1 else "one at least is needed; give it a text")
        + more
    )


class Tokenising:
    """Tokenises the texts of one part while the part before is computed.

    Args:
        tokenizer: the model's own.
        config: which read positions texts have, and how long they have to be.
        size: of the model's vocabulary, where it is known.
    """

    def __init__(self, tokenizer: Any, config: ActivationsConfig, size: int | None = None) -> None:
        self._tokenizer, self._config, self._size = tokenizer, config, size
        # One thread does all of it: a tokenizer must not be used by two at once.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenising")
        self._ahead: dict[int, Future[list[Text]]] = {}

    def texts(self, documents: Sequence[Document], following: Sequence[Document] = ()) -> list[Text]:
        """The documents as token ids.

        Args:
            following: those that are asked for next.

        Raises:
            UserError: a text is too short for what is kept of it.
        """
        ahead = self._ahead.pop(documents[0].index, None) or self._pool.submit(self._tokenise, documents)
        self._ahead.clear()
        if following:
            self._ahead[following[0].index] = self._pool.submit(self._tokenise, following)
        return ahead.result()

    def _tokenise(self, documents: Sequence[Document]) -> list[Text]:
        texts = [tokenise(self._tokenizer, document, self._config.positions) for document in documents]
        for document, text in zip(documents, texts, strict=True):
            if len(text) < least_tokens(self._config):
                raise UserError(_too_short(document, len(text), self._config))
            require_known(self._tokenizer, text.ids, self._size, f"corpus document {document.index}")
        return texts

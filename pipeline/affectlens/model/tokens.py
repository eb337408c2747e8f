"""From a document to the token ids that go through the model, with every text token, speaker and read position known.

*Text tokens* are the tokens of the text itself: of a chat, those of the messages' contents. Begin tokens and the marks
of a chat template go through the model but are never counted: position 0 is the first token of the text, whatever
stands before it. Named read positions may lie on template marks, because that is where models make up their minds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from affectlens.errors import UserError
from affectlens.model.templates import written

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges, ascending."""


class Document(Protocol):
    """What is read of a document: a plain text, or messages with a role and a content each.

    Attributes:
        index: its number in the corpus, for messages to the user.
        spans: by name, (start, end) in characters of the text, or (message, start, end).
    """

    @property
    def index(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def messages(self) -> Sequence[Mapping[str, str]]: ...
    @property
    def spans(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Chat:
    """A chat that belongs to no corpus."""

    messages: tuple[Mapping[str, str], ...]
    spans: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0
    text: str = ""
    name: str = ""
    """For messages to the user; without one, it is called by its index."""


@dataclass(frozen=True)
class Text:
    """A tokenised document.

    Attributes:
        lead: what stands before the text in every window: the begin token, or nothing.
        ids: all token ids after the lead, template marks included.
        kept: indices into ``ids`` of the text tokens, ascending; a text position indexes this array.
        spans: by name (of a chat, each role is one), ranges of text positions.
        places: by name of the read position, the index into ``ids``; a document may lack one.
    """

    lead: tuple[int, ...]
    ids: Int[np.ndarray, "tokens"]
    kept: Int[np.ndarray, "text_tokens"]
    spans: Mapping[str, Ranges] = field(default_factory=dict)
    places: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.kept)


@contextmanager
def splitting(what: str) -> Iterator[None]:
    """Within, a tokenizer that gives a text up is one sentence.

    The patterns in a tokenizer.json are programs of strangers. The library tries each at most ten million ways at one
    place, which takes a second, and then panics, with an error that is no :class:`Exception`.

    Args:
        what: is tokenised.

    Raises:
        UserError: the tokenizer gave up.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        words = " ".join(str(error).split())[:160]
        raise UserError(
            f"{what}: the model's tokenizer gave it up ({words}); correct the patterns in its tokenizer.json"
        ) from None


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, letter by letter: a control token's name in it ("<|im_end|>") is text, not the token.

    Raises:
        UserError: the tokenizer gave up.
    """
    with splitting(f"the text that begins with `{text[:30]}`"):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    hidden = set(ids) & control_ids(tokenizer)
    if not hidden:
        return ids
    # Vocabularies of whole pieces (Unigram, WordPiece) hold the name itself: it is spelled by its characters instead.
    return [
        each
        for token in ids
        for each in (_spelled(tokenizer, tokenizer.convert_ids_to_tokens(token)) if token in hidden else [token])
    ]


def require_known(tokenizer: Any, ids: Sequence[int] | Int[np.ndarray, "tokens"], size: int | None, where: str) -> None:
    """Refuse tokens that the model has no embedding for: a tokenizer to which tokens were added after the training.

    Args:
        size: of the model's vocabulary; None where it is not known.
        where: what was tokenised.

    Raises:
        UserError: names the token.
    """
    values = np.asarray(ids)
    if size is not None and len(values) and values.max() >= size:
        beyond = int(values.max())
        raise UserError(
            f"{where}: its token `{tokenizer.convert_ids_to_tokens(beyond)}` has the id {beyond}, but the model has "
            f"embeddings for {size} tokens; take the tokenizer that the model was trained with"
        )


def control_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that steer a model and stand for no letters; the one for unknown letters is text."""
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def _spelled(tokenizer: Any, name: str) -> list[int]:
    """The ids of a name, one character after the other; a name of one character is spelled by nothing else."""
    if len(name) < 2:
        return [tokenizer.convert_tokens_to_ids(name)]
    ids = [encode_following(tokenizer, letter, "a") for letter in name]
    return [each for letter in ids for each in letter]


def encode_following(tokenizer: Any, text: str, before: str = "\n") -> list[int]:
    """Token ids of a text that continues another: without the mark that some tokenizers set before every beginning.

    Where the tokenizer spells " angry" as "\u2581" and "\u2581angry", the word is the second alone. Where the first
    characters merge with the last ones of ``before``, whose tokens are fixed, the text's own tokens are returned.
    """
    context, whole = encode(tokenizer, before), encode(tokenizer, before + text)
    joined = whole[: len(context)] != context or len(whole) == len(context)
    return encode(tokenizer, text) if joined else whole[len(context) :]


def continuation(tokenizer: Any, before: str, option: str) -> list[int]:
    """Token ids of a candidate that continues ``before``, with a space between where words would run together."""
    meets = before[-1:].isalnum() or before[-1:] in set(".,:;!?")
    if before.endswith(" ") or (meets and option[:1].isalnum()):
        option = " " + option.lstrip(" ")
    return encode_following(tokenizer, option, before.rstrip(" "))


def pad(rows: Sequence[Sequence[int]], device: str, *, left: bool = False) -> Int[Tensor, "rows positions"]:
    """Token ids filled up with token 0, which every model has; what is filled is masked, or reaches nothing.

    Args:
        left: fill on the left, so that rows end together and can be continued.
    """
    import torch

    width = max(map(len, rows))
    filled = [[*([0] * (width - len(row)) * left), *row, *([0] * (width - len(row)) * (not left))] for row in rows]
    return torch.tensor(filled, dtype=torch.long, device=device)


def tokenise(tokenizer: Any, document: Document, positions: Sequence[str] = ()) -> Text:
    """The token ids of a plain text or a chat.

    Args:
        tokenizer: the model's own; its chat template renders chats exactly as ``apply_chat_template`` does, with the
            opening of the assistant's turn when the last message is not the assistant's.
        positions: names of read positions: ``last`` (text token), ``answer`` (last token before the assistant's last
            message, or before the one to come), ``before:NAME`` and ``end:NAME`` (of the last span of that name).

    Raises:
        UserError: the template refuses the chat, or the tokenizer cannot say which characters a token stands for.
    """
    bos = tokenizer.bos_token_id
    if document.messages:
        rendered, contents, opened = _render(tokenizer, document)
        written = [(start, end) for _, start, end in contents]
        ids, starts, ends = _with_offsets(tokenizer, rendered, document, written)
        # As transformers tokenises chats: a begin token is there only if the template writes it.
        lead = (bos,) if len(ids) and bos is not None and ids[0] == bos else ()
        ids, starts, ends = (array[len(lead) :] for array in (ids, starts, ends))
        pieces = [*contents, *_named_in_messages(document, contents)]
        inside = _any_overlap(starts, ends, written)
    else:
        opened, lead = True, () if bos is None else (bos,)
        pieces = [(name, start, end) for name, ranges in document.spans.items() for start, end in ranges]
        if not pieces:
            ids = np.array(encode(tokenizer, document.text), dtype=np.int64)
            starts = ends = np.empty(0, np.int64)
        else:
            ids, starts, ends = _with_offsets(tokenizer, document.text, document, [(0, len(document.text))])
        inside = np.ones(len(ids), dtype=bool)
    kept = np.flatnonzero(inside)
    spans = _token_ranges(pieces, starts, ends, kept)
    places = _places(positions, kept, spans, len(ids), opened=opened)
    return Text(lead, ids, kept, spans, places)


def _called(document: Document) -> str:
    """What messages to the user call a document."""
    return getattr(document, "name", "") or f"corpus document {document.index}"


def _render(tokenizer: Any, document: Document) -> tuple[str, list[tuple[str, int, int]], bool]:
    """The chat as the template writes it, (role, start, end) of each content in it, and whether an answer is awaited.

    The template is run a second time with a mark in place of each content: what it writes between the marks tells where
    contents begin and end, also where a content looks like the template's own words.
    """
    messages = [{"role": message["role"], "content": message["content"]} for message in document.messages]
    opened = messages[-1]["role"] != "assistant"
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{_called(document)}: is a chat, and the model has no chat template; give plain texts, or study a model "
            "that is tuned for chats"
        )
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    try:
        rendered = written(tokenizer, messages, add_generation_prompt=opened)
        marked = written(
            tokenizer,
            [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)],
            add_generation_prompt=opened,
        )
    except Exception as error:  # templates are programs; whatever they raise is about this chat
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{_called(document)}: the model's chat template refuses the chat ({reason}); change its "
            "messages, or study a model that is tuned for chats"
        ) from None
    literals, contents, cursor = _between(marked, marks), [], 0
    for number, message in enumerate(messages):
        own = None
        if marks[number] in marked:
            cursor += len(literals[number])
            following, last = literals[number + 1], number + 1 == len(marks)
            own = _written(rendered[cursor:], message["content"], following, last=last)
        if own is None:
            raise UserError(
                f"{_called(document)}: the model's chat template does not write message {number} "
                f"({message['role']}) as it stands; leave it out, or put its text into another role"
            )
        contents.append((message["role"], cursor, cursor + len(own)))
        cursor += len(own)
    return rendered, contents, opened


def _between(marked: str, marks: Sequence[str]) -> list[str]:
    """What the template writes before, between and after the marks; nothing before a mark that it leaves out."""
    literals = []
    for mark in marks:
        before, found, after = marked.partition(mark)
        literals.append(before if found else "")
        marked = after if found else marked
    return [*literals, marked]


def _written(rest: str, content: str, following: str, *, last: bool) -> str | None:
    """The content as it stands at the head of ``rest``: templates may strip white space."""
    for form in (content, content.strip(), content.rstrip(), content.lstrip()):
        after = rest[len(form) :]
        if rest.startswith(form) and (after == following if last else after.startswith(following)):
            return form
    return None


def _with_offsets(
    tokenizer: Any, text: str, document: Document, plain: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, and the first character and the one after the last that each stands for.

    Args:
        plain: ranges of characters in which the name of a control token is text; elsewhere it is the token.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{_called(document)}: chats and spans need a fast tokenizer, and this model has none; give "
            "plain texts without spans"
        )
    names = "|".join(re.escape(name) for name in sorted(tokenizer.all_special_tokens, key=len, reverse=True) if name)
    literal = [
        (start + match.start(), start + match.end())
        for start, end in plain
        for match in re.finditer(names or "(?!)", text[start:end])
    ]
    # Such names are rare. Without one, the text is tokenised whole; with one, it is cut there.
    cuts = [0, *(place for stretch in sorted(literal) for place in stretch), len(text)]
    ids, starts, ends, control = [], [], [], control_ids(tokenizer)
    for number, (begin, stop) in enumerate(pairwise(cuts)):
        with splitting(_called(document)):
            tokens = tokenizer(
                text[begin:stop],
                add_special_tokens=False,
                return_offsets_mapping=True,
                split_special_tokens=number % 2 == 1,
            )
        offsets = np.array(tokens["offset_mapping"], dtype=np.int64).reshape(-1, 2) + begin
        found = np.array(tokens["input_ids"], dtype=np.int64)
        if number % 2 == 1 and control & set(found.tolist()):
            found = np.array(_spelled(tokenizer, text[begin:stop]), dtype=np.int64)
            offsets = np.tile([begin, stop], (len(found), 1))  # all of them stand for the whole name
        ids.append(found)
        starts.append(offsets[:, 0])
        ends.append(offsets[:, 1])
    return np.concatenate(ids), np.concatenate(starts), np.concatenate(ends)


def _any_overlap(starts: np.ndarray, ends: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Whether each token stands for a character of one of the ranges."""
    inside = np.zeros(len(starts), dtype=bool)
    for start, end in ranges:
        inside |= (starts < end) & (ends > start)
    return inside


def _named_in_messages(document: Document, contents: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Spans that a chat names as (message, start, end), in characters of the rendered chat."""
    found = []
    for name, ranges in document.spans.items():
        for message, start, end in ranges:
            # A template that strips a content moves its first character.
            original = document.messages[message]["content"]
            _, begin, stop = contents[message]
            skipped = len(original) - len(original.lstrip()) if stop - begin < len(original) else 0
            found.append((name, max(begin, begin + start - skipped), min(stop, begin + end - skipped)))
    return found


def _token_ranges(
    pieces: Sequence[tuple[str, int, int]], starts: np.ndarray, ends: np.ndarray, kept: np.ndarray
) -> dict[str, Ranges]:
    found: dict[str, list[tuple[int, int]]] = {}
    for name, start, end in pieces:
        mine = np.flatnonzero(_any_overlap(starts[kept], ends[kept], [(start, end)]))
        if len(mine):
            found.setdefault(name, []).append((int(mine[0]), int(mine[-1]) + 1))
    return {name: tuple(sorted(ranges)) for name, ranges in found.items()}


def _places(
    positions: Sequence[str], kept: np.ndarray, spans: Mapping[str, Ranges], tokens: int, *, opened: bool
) -> dict[str, int]:
    """Index into the ids of each named read position that the document has."""
    found: dict[str, int] = {}
    for name in positions:
        kind, _, span = name.partition(":")
        ranges = spans.get("assistant" if kind == "answer" else span, ())
        if kind == "last":
            index = int(kept[-1])
        elif kind == "answer" and opened:
            index = tokens - 1
        elif not ranges:
            continue
        else:
            index = int(kept[ranges[-1][1] - 1]) if kind == "end" else int(kept[ranges[-1][0]]) - 1
        if index >= 0:
            found[name] = index
    return found


@dataclass(frozen=True)
class Window:
    """A stretch of a text that goes through the model at once.

    Attributes:
        text: which text of the part.
        start: first index into its ids.
        end: the index after the last.
        fresh: the first index that is read from this window; what lies before it is context, read already.
    """

    text: int
    start: int
    end: int
    fresh: int


def windows(text: int, tokens: int, limit: int, overlap: int) -> list[Window]:
    """Cut a text so that every token is read once, behind ``overlap`` tokens of context or all that stands before it.

    Args:
        text: which text.
        tokens: how many ids it has.
        limit: most ids of a window.
        overlap: ids of the window before that are run again as context; less than ``limit``.
    """
    found = [Window(text, 0, min(tokens, limit), 0)]
    while found[-1].end < tokens:
        fresh = found[-1].end
        start = fresh - overlap
        found.append(Window(text, start, min(tokens, start + limit), fresh))
    return found


def plan_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices batch by batch: rows of similar length together, each batch within ``budget`` padded tokens.

    A row longer than the budget gets a batch of its own. The plan depends on nothing but its arguments.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda each: (lengths[each], each)):
        if batch and lengths[index] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch

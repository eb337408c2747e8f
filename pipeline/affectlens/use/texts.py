"""Texts of the user's own, read: plain texts and chats, token by token and message by message."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.corpus.texts import LARGEST_TEXT, decoded, raw_lines, require_size
from affectlens.errors import UserError
from affectlens.files import open_file
from affectlens.model.tokens import Chat, Text, tokenise
from affectlens.use.opened import Opened
from affectlens.use.readings import Readings, Row

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

Messages = Sequence[Mapping[str, str]]
"""A chat: mappings with ``role`` and ``content``."""
TEXTS_AT_ONCE = 64
"""So many texts are tokenised and batched together; results come out in the order of the texts."""
LINES = (".jsonl", ".ndjson")
LOOKED_BACK = 4
"""Tokens before one that its spelling may depend on."""


@dataclass(frozen=True)
class Message:
    """A stretch of a text that one speaker says.

    Attributes:
        role: the speaker; empty for plain text.
        start: its first token.
        end: the token after its last.
    """

    role: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class TextReading:
    """One text as it was read.

    Attributes:
        name: which text: a file and line, or a title.
        ids: of the text tokens; of a chat, those of the messages' contents.
        messages: of a chat, in order; a plain text is one message.
        rows: what was read.
        tokenizer: spells the tokens.
        values: in the rows' units.
        standard: in standard deviations of neutral tokens.
    """

    name: str
    ids: Int[np.ndarray, "tokens"]
    tokenizer: Any
    messages: tuple[Message, ...]
    rows: tuple[Row, ...]
    values: Float[np.ndarray, "tokens rows"]
    standard: Float[np.ndarray, "tokens rows"]

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens as they are written."""
        return spell(self.tokenizer, self.ids)

    def spelled(self, start: int, end: int) -> list[str]:
        """Some of the tokens, without spelling the others."""
        return spell(self.tokenizer, self.ids[start:end])

    def frame(self, *, standard: bool = False) -> pd.DataFrame:
        """A row a token: ``message``, ``role``, ``token``, then a column for each thing that was read."""
        import pandas as pd

        frame = pd.DataFrame(self.standard if standard else self.values, columns=[row.name for row in self.rows])
        spoken = [(number, each.role) for number, each in enumerate(self.messages) for _ in range(each.start, each.end)]
        frame.insert(0, "token", self.tokens)
        frame.insert(0, "role", [role for _, role in spoken])
        frame.insert(0, "message", [number for number, _ in spoken])
        return frame

    def means(self) -> Float[np.ndarray, "messages rows"]:
        """Of each message, in standard deviations of neutral tokens."""
        return np.stack([self.standard[each.start : each.end].mean(axis=0) for each in self.messages])


class Pieces:
    """Spells tokens one after the other: what each adds to the text so far.

    A token that ends within a character adds nothing; the one that completes it adds the character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._spelled = 0
        """Tokens whose text has been given out."""

    def add(self, token: int) -> str:
        """The text that this token adds."""
        self._ids.append(token)
        first = max(0, self._spelled - LOOKED_BACK)
        before = self._tokenizer.decode(self._ids[first : self._spelled])
        text = self._tokenizer.decode(self._ids[first:])[len(before) :]
        if text.endswith("\ufffd") and len(self._ids) - self._spelled < LOOKED_BACK:
            return ""
        self._spelled = len(self._ids)
        return text


def spell(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """What each token adds to the text."""
    pieces = Pieces(tokenizer)
    return [pieces.add(int(token)) for token in ids]


def tokenised(study: Opened, text: str | Messages, name: str = "the text") -> Text:
    """The tokens of a plain text, or of a chat as the model's template writes it.

    Raises:
        UserError: it is empty, or the template refuses it.
    """
    messages, plain = ((), text) if isinstance(text, str) else (tuple(dict(message) for message in text), "")
    if not messages and not plain:
        raise UserError(f"{name} is empty; give at least one word")
    found = tokenise(study.tokenizer, Chat(messages, text=plain, name=name))
    if not len(found):
        raise UserError(f"{name} is empty; give at least one word")
    return found


def read_texts(study: Opened, readings: Readings, texts: Iterable[tuple[str, str | Messages]]) -> Iterator[TextReading]:
    """Every text's values, in order.

    Long texts go through the model in the windows in which the study's own texts did.

    Args:
        study: whose model reads.
        readings: what is read.
        texts: names and contents.

    Raises:
        UserError: a text that cannot be read, or a result folder was opened, which does not know the model.
    """
    from affectlens.model.reading import Site, read

    site, left, reader = Site(readings.layer), iter(texts), study.reader
    assert study.study is not None  # a reader comes from a study file
    config = study.study.config.activations
    widest = min(config.window, reader.context or config.window)
    overlap = widest // 4 if config.overlap is None else config.overlap
    how = {"tokens_per_batch": config.tokens_per_batch, "window": widest, "overlap": overlap}
    while batch := list(islice(left, TEXTS_AT_ONCE)):
        prepared = [tokenised(study, content, name) for name, content in batch]
        leads = {len(text.lead) for text in prepared}
        found: dict[int, np.ndarray] = {}
        for lead in leads:  # of one model all texts have the same, but chats may bring their own begin token
            mine = [index for index, text in enumerate(prepared) if len(text.lead) == lead]
            rows = [[*prepared[index].lead, *prepared[index].ids.tolist()] for index in mine]
            for row, values in read(reader, rows, [site], lead=lead, **how):
                kept = prepared[mine[row]].kept + lead
                found[mine[row]] = readings.values(values[site][kept])
        for index, ((name, _), text) in enumerate(zip(batch, prepared, strict=True)):
            ids, values = text.ids[text.kept], found[index]
            yield TextReading(
                name, ids, study.tokenizer, _messages(text), readings.rows, values, readings.standard(values)
            )


def _messages(text: Text) -> tuple[Message, ...]:
    """The speakers' stretches in order, empty ones left out."""
    spoken = [Message(role, start, end) for role, ranges in text.spans.items() for start, end in ranges]
    return tuple(sorted(spoken, key=lambda each: each.start)) or (Message("", 0, len(text)),)


def from_source(source: str, stdin: Any) -> Iterator[tuple[str, str | Messages]]:
    """Texts with their names, from what a user names.

    Args:
        source: a text; or a file: ``.jsonl`` with ``text`` or ``messages`` a line, ``.json`` with one such object, a
            list of messages or of such objects, a folder of a ``datasets`` data set, anything else as one plain text;
            or ``-``: standard input, likewise.
        stdin: the stream that ``-`` means.

    Raises:
        UserError: it holds no text; names the line.
    """
    if source == "-":
        yield from _from_content("standard input", _from_stream(stdin))
        return
    path = _existing(source)
    if path is None:
        if " " not in source and Path(source).suffix in (*LINES, ".json", ".txt", ".md"):
            raise UserError(f"{source}: no such file; give its path, or a text in quotes")
        yield "text", source
    elif path.is_dir():
        yield from _from_dataset(path)
    elif path.suffix in LINES:
        yield from _from_lines(path)
    else:
        with open_file(path) as stream:
            data = stream.read(LARGEST_TEXT + 1)
        require_size(len(data), str(path))
        yield from _from_content(str(path), decoded(data, str(path)))


def _from_stream(stdin: Any) -> str:
    """What standard input holds: in all no more than one text may."""
    try:
        content = stdin.read(LARGEST_TEXT + 1)
    except UnicodeError:
        raise UserError("standard input: not UTF-8 text; give UTF-8") from None
    require_size(len(content), "standard input")
    return content


def _existing(source: str) -> Path | None:
    """The file or folder of this name; None where there is none, or where it can be no name."""
    try:
        path = Path(source).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _from_content(name: str, content: str) -> Iterator[tuple[str, str | Messages]]:
    """A JSON value, JSON lines, or plain text."""
    lines = [line for line in content.splitlines() if line.strip()]
    for values in ([content], lines):
        try:
            parsed = [json.loads(value) for value in values]
        except (ValueError, RecursionError):
            continue
        if parsed and all(isinstance(each, dict | list) for each in parsed):
            listed = parsed[0] if len(parsed) == 1 and isinstance(parsed[0], list) else parsed
            if listed and all(isinstance(each, Mapping) and "role" in each for each in listed):
                listed = [{"messages": listed}]
            yield from (_text_of(f"{name} {number}", row) for number, row in enumerate(listed, 1))
            return
    yield name, content


def _from_lines(path: Path) -> Iterator[tuple[str, str | Messages]]:
    for where, line in raw_lines(path):
        text = decoded(line, where)
        if text.strip():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                raise UserError(f"{where}: not JSON; each line must hold one object") from None
            yield _text_of(where, row)


def _from_dataset(folder: Path) -> Iterator[tuple[str, str | Messages]]:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no data set that `datasets` saved ({error}); give that, or a JSONL file") from None
    for split, rows in data.items() if isinstance(data, DatasetDict) else [("", data)]:
        for number, row in enumerate(rows, 1):
            yield _text_of(f"{folder} {split} {number}".replace("  ", " "), row)


def _text_of(where: str, row: Any) -> tuple[str, str | Messages]:
    """A text or a chat out of one object: ``text``, ``messages``, or ShareGPT's ``conversations``.

    Raises:
        UserError: it is neither.
    """
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half an emoji, which is no text; take it out") from None
    if isinstance(row, Mapping):
        name = str(row.get("id", where))
        for key in ("conversations", "messages"):
            listed = row.get(key)
            if isinstance(listed, list) and not all(isinstance(each, Mapping) for each in listed):
                raise UserError(f'{where}: "{key}" must be a list of objects')
        if isinstance(row.get("conversations"), list):
            row = {"messages": [{"role": _role(each), "content": each.get("value")} for each in row["conversations"]]}
        messages = row.get("messages")
        if isinstance(messages, list) and messages:
            for message in messages:
                if not all(isinstance(message.get(key), str) for key in ("role", "content")):
                    raise UserError(f'{where}: a message needs the texts "role" and "content"')
            return name, [{key: message[key] for key in ("role", "content")} for message in messages]
        if isinstance(row.get("text"), str) and row["text"].strip():
            return name, row["text"]
    raise UserError(f'{where}: neither a "text" nor "messages" with roles and contents; add one of them')


def _role(message: Mapping[str, Any]) -> str:
    return {"human": "user", "gpt": "assistant"}.get(str(message.get("from")), str(message.get("from")))

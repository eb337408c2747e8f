"""Transcripts to be watched: files that are complete, and files that grow while somebody talks to the model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectlens.corpus.texts import require_size
from affectlens.errors import UserError
from affectlens.files import open_file
from affectlens.model.tokens import encode_following
from affectlens.use.monitor import Live, Monitor, Watched
from affectlens.use.texts import LINES, Messages

AT_ONCE = 1 << 20
"""Bytes that are read in one go."""
PAUSE = 0.2
"""Seconds between two looks at a file that grows."""


@dataclass(frozen=True)
class Following:
    """How a file that grows is followed.

    Attributes:
        idle: seconds without growth after which the file counts as complete; None waits for ever.
        clock: gives seconds.
        sleep: waits so many seconds.
    """

    idle: float | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


def watch_file(
    monitor: Monitor, path: Path, asked: Messages = (), following: Following | None = None
) -> Iterator[Watched]:
    """Watch what a file holds; after every token, the answer under way.

    JSON lines hold a message each (``role`` and ``content``; a dialogue that goes on until the next system message), or
    an episode each (``messages`` and, where the last of these is not the assistant's, ``answer``). Any other file is
    the text of one answer.

    Args:
        monitor: that watches.
        path: the file.
        asked: the chat that a plain text answers.
        following: go on as the file grows; None reads what is there.

    Raises:
        UserError: the file is missing, a line is none of these, none is the assistant's, or a plain text comes without
            its chat.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a transcript (JSON lines, or the text of one answer)")
    if path.suffix in LINES:
        none = True
        for watched in _lines(monitor, path, following):
            none = False
            yield watched
        if none and following is None:
            raise UserError(f"{path}: holds nothing that the assistant says; give a transcript with an answer")
        return
    if not asked:
        raise UserError(f"{path}: the text of an answer; give what it answers with --prompt, or JSON lines of messages")
    yield from _text(monitor, path, asked, following)


def _grown(path: Path, following: Following | None) -> Iterator[tuple[str, bool]]:
    """What the file gains, and whether it is complete with that.

    Raises:
        UserError: it is not UTF-8.
    """
    not_text = UserError(f"{path}: not UTF-8 text; save the file as UTF-8")
    with open_file(path) as stream:
        held, last = b"", 0.0 if following is None else following.clock()
        while True:
            more = stream.read(AT_ONCE)
            try:
                text, held = (held + more).decode("utf-8"), b""
            except UnicodeDecodeError as error:
                # A letter may be written in two goes; anything longer than a letter is no UTF-8.
                if len(held) + len(more) - error.start > 3:
                    raise not_text from None
                whole = held + more
                text, held = whole[: error.start].decode("utf-8"), whole[error.start :]
            if len(more) == AT_ONCE:
                yield text, False
                continue
            if following is None:
                if held:
                    raise not_text
                yield text, True
                return
            now = following.clock()
            if text:
                last = now
                yield text, False
            elif following.idle is not None and now - last >= following.idle:
                if held:
                    raise not_text
                yield "", True
                return
            following.sleep(PAUSE)


def _lines(monitor: Monitor, path: Path, following: Following | None) -> Iterator[Watched]:
    """Every assistant's message of a file of JSON lines."""
    unfinished, number = "", 0
    dialogue: list[Mapping[str, str]] = []
    for text, complete in _grown(path, following):
        *lines, unfinished = (unfinished + text).split("\n")
        require_size(len(unfinished), f"{path} line {number + len(lines) + 1}")
        for line in [*lines, *([unfinished] if complete else [])]:
            number += 1
            where = f"{path} line {number}"
            require_size(len(line), where)
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()  # half an emoji is no text
            except (ValueError, RecursionError):
                raise UserError(f"{where}: not JSON; each line must hold a message or an episode") from None
            if isinstance(row, Mapping) and "role" in row:
                message = _message(row, where)
                if message["role"] == "system":
                    dialogue = []
                if message["role"] == "assistant" and dialogue:
                    yield from _read(monitor, dialogue, message["content"], f"line {number}")
                dialogue.append(message)
            else:
                yield from _read(monitor, *_episode(row, where), str(row.get("name") or f"line {number}"))


def _message(row: Mapping[str, Any], where: str) -> dict[str, str]:
    if not all(isinstance(row.get(key), str) for key in ("role", "content")):
        raise UserError(f'{where}: a message needs the texts "role" and "content"')
    return {key: row[key] for key in ("role", "content")}


def _episode(row: Any, where: str) -> tuple[list[dict[str, str]], str]:
    """The chat of an episode and its answer."""
    messages = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(each, Mapping) for each in messages):
        raise UserError(f'{where}: neither a message with "role" and "content" nor an episode with "messages"')
    said = [_message(each, where) for each in messages]
    answer = row.get("answer")
    if answer is None and said[-1]["role"] == "assistant" and len(said) > 1:
        return said[:-1], said[-1]["content"]
    if not isinstance(answer, str) or said[-1]["role"] == "assistant":
        raise UserError(f'{where}: holds nothing that the assistant says; add "answer", or its message at the end')
    return said, answer


def _read(monitor: Monitor, messages: Messages, answer: str, name: str) -> Iterator[Watched]:
    """A whole answer, token by token."""
    ids = encode_following(monitor.study.tokenizer, answer)
    live = monitor.begin(messages, most=len(ids))
    watched = Watched(name, monitor, live)
    yield watched
    for token in ids:
        watched.add(live.token(token))
        yield watched


def _text(monitor: Monitor, path: Path, asked: Messages, following: Following | None) -> Iterator[Watched]:
    """The text of one answer. The last word waits until the next begins, as its tokens may change until then."""
    said, fed = "", []
    live = monitor.begin(asked)
    watched = Watched(path.name, monitor, live)
    yield watched
    for text, complete in _grown(path, following):
        said += text
        require_size(len(said), str(path))
        ids = _settled(monitor.study.tokenizer, said, complete)
        if ids[: len(fed)] != fed:  # the spelling of what was read has changed: begin again
            live, fed = monitor.begin(asked), []
            watched = Watched(path.name, monitor, live)
        for token in ids[len(fed) :]:
            watched.add(live.token(token))
            yield watched
        fed = ids


def _settled(tokenizer: Any, said: str, complete: bool) -> list[int]:
    """Tokens that no later text changes."""
    if complete:
        return encode_following(tokenizer, said.rstrip("\n"))
    last = max((at for at, letter in enumerate(said) if letter.isspace()), default=0)
    return encode_following(tokenizer, said[:last].rstrip())


def last_of_each(steps: Iterator[Watched]) -> Sequence[Watched]:
    """Run through; every answer as it was at its end."""
    found: list[Watched] = []
    for watched in steps:
        if not found or found[-1] is not watched:
            found.append(watched)
    return found


__all__ = ["Following", "Live", "last_of_each", "watch_file"]

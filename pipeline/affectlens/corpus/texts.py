"""Where texts come from: the files embedded beside this module, or the user's own JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from affectlens.errors import UserError

EMBEDDED = Path(__file__).parent


def texts_path(role: str, value: str) -> Path:
    """The file meant by a config value: the embedded ``<role>.jsonl``, or the path it gives."""
    return EMBEDDED / f"{role}.jsonl" if value == "embedded" else Path(value).expanduser()


def read_jsonl(path: Path, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, in order; blank lines and a byte-order mark are skipped.

    Raises:
        UserError: names the line that is no UTF-8, is not a JSON object, or lacks a required, non-empty text key.
    """
    rows = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not decoded.strip():
                    continue
                row = json.loads(decoded)
                # Half an emoji is valid JSON, but no text: nothing could write it down again.
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeError:
                raise UserError(f"{path} line {number}: not UTF-8 text; save the file as UTF-8") from None
            except (ValueError, RecursionError):
                raise UserError(f"{path} line {number}: not JSON; each line must hold one object") from None
            for key in required:
                if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip():
                    raise UserError(f'{path} line {number}: the key "{key}" with a text is missing; add it')
            rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no texts; put one JSON object on each line")
    return rows


def read_texts(path: Path, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The texts and chats of a JSON-lines file; chats get a ``text`` of their messages' contents.

    Raises:
        UserError: names the text that is neither, or whose spans do not lie within it.
    """
    rows = read_jsonl(path, required)
    for number, row in enumerate(rows, start=1):
        where = f"{path} text {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: not an object; write the text as {{...}}")
        for key in ("narrator", "emotion", "topic", "kind"):
            value = row.get(key, "")
            if not isinstance(value, str) or any(ord(letter) < 32 for letter in value):
                raise UserError(f'{where}: "{key}" must be a text of one line')
        if "messages" in row:
            row["messages"] = _checked_messages(row["messages"], where)
            row["text"] = "\n\n".join(message["content"] for message in row["messages"])
        if not isinstance(row.get("text"), str) or not row["text"].strip():
            raise UserError(f'{where}: the key "text" with a text is missing; add it, or "messages" with a chat')
        if "spans" in row:
            _check_spans(row, where)
    return rows


def _checked_messages(value: Any, where: str) -> tuple[dict[str, str], ...]:
    good = isinstance(value, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in value
    )
    if not good or not value:
        raise UserError(f'{where}: "messages" must be a list of objects with the texts "role" and "content"')
    return tuple({key: message[key] for key in ("role", "content")} for message in value)


def _check_spans(row: dict[str, Any], where: str) -> None:
    form = "[message, start, end]" if "messages" in row else "[start, end]"
    spans = row["spans"].items() if isinstance(row["spans"], dict) else [("spans", None)]
    for name, ranges in spans:
        for span in ranges if isinstance(ranges, list) else [None]:
            if not _lies_within(span, row):
                raise UserError(f"{where}: span `{name}` must be a list of {form} in characters within the text")


def _lies_within(span: Any, row: dict[str, Any]) -> bool:
    if not isinstance(span, list) or any(type(item) is not int for item in span):
        return False
    text = row["text"]
    if "messages" in row:
        if len(span) != 3 or not 0 <= span[0] < len(row["messages"]):
            return False
        text, span = row["messages"][span[0]]["content"], span[1:]
    return len(span) == 2 and 0 <= span[0] < span[1] <= len(text)

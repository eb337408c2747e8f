"""Where texts come from: the files embedded beside this module, or the user's own JSONL."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from affectlens.errors import UserError
from affectlens.files import open_file

EMBEDDED = Path(__file__).parent
LARGEST_TEXT, LARGEST_JSON = 16_000_000, 500_000_000
"""Bytes of a line or a plain text, which a tokenizer takes half a minute for, and of a JSON file."""


def texts_path(role: str, value: str) -> Path:
    """The file meant by a config value: the embedded ``<role>.jsonl``, an embedded writer's, or the path it gives."""
    if value == "embedded":
        return EMBEDDED / f"{role}.jsonl"
    writer = EMBEDDED / f"{value}.jsonl"
    return writer if value.startswith("writer_") and writer.is_file() else Path(value).expanduser()


def raw_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each line of a file, and where it stands, for messages; no more than one line is in memory.

    Raises:
        UserError: it is no file, or names the line that is too long for a text.
    """
    with open_file(path) as stream:
        for number in count(1):
            line = stream.readline(LARGEST_TEXT + 1)
            if not line:
                return
            require_size(len(line), f"{path} line {number}")
            yield f"{path} line {number}", line


def require_size(size: int, where: str) -> None:
    """Refuse a text that no model would get through.

    Args:
        size: in bytes.
        where: for the message.

    Raises:
        UserError: it is larger than ``LARGEST_TEXT``.
    """
    if size > LARGEST_TEXT:
        raise UserError(f"{where}: longer than {LARGEST_TEXT // 1_000_000} MB; split it into several texts")


def decoded(line: bytes, where: str) -> str:
    """A line as text, without a byte-order mark.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if line.startswith(codecs.BOM_UTF8) else "utf-8")
    except UnicodeError:
        raise UserError(f"{where}: not UTF-8 text; save the file as UTF-8") from None


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Each line of a JSON-lines file: where it stands, for messages, and its value.

    Blank lines and a byte-order mark are skipped.

    Raises:
        UserError: names the line that is no UTF-8, no JSON or too long, or in which a key stands twice.
    """
    for where, line in raw_lines(path):
        text = decoded(line, where)
        if not text.strip():
            continue
        try:
            value = json.loads(text, object_pairs_hook=_once)
            # Half an emoji is valid JSON, but no text: nothing could write it down again.
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeError:
            raise UserError(f"{where}: not UTF-8 text; save the file as UTF-8") from None
        except KeyError as twice:
            raise UserError(f"{where}: the key {twice} stands twice; keep one") from None
        except (ValueError, RecursionError):
            raise UserError(f"{where}: not JSON; each line must hold one object") from None
        yield where, value


def read_json(path: Path) -> Any:
    """The value of a JSON file; a byte-order mark is skipped.

    Raises:
        UserError: it is no file, too large, no UTF-8 or no JSON, or a key stands twice in it.
    """
    with open_file(path) as stream:
        data = stream.read(LARGEST_JSON + 1)
    if len(data) > LARGEST_JSON:
        raise UserError(f"{path}: larger than {LARGEST_JSON // 1_000_000} MB; it is no file of this kind")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeError:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
    except KeyError as twice:
        raise UserError(f"{path}: the key {twice} stands twice; keep one") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: not JSON ({error.msg}); correct it") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON that can be read; correct it") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV with a line of column names; of a row that is too short, the values that lack are empty.

    Raises:
        UserError: the file is no CSV in UTF-8, has a column twice, or a row with more cells than columns.
    """
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            rows, names = list(reader), list(reader.fieldnames or ())
    except (UnicodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV in UTF-8 ({error}); save it as one") from None
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: the column `{twice[0]}` stands twice; keep one")
    for number, row in enumerate(rows, start=1):
        if any(row.pop(None, ())):  # pyright: ignore[reportArgumentType, reportCallIssue]
            raise UserError(f"{path} row {number}: has more cells than columns; put texts with commas in quotes")
    return rows


def read_jsonl(path: Path, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, in order.

    Raises:
        UserError: see :func:`read_lines`; or names the line that lacks a required, non-empty text key.
    """
    rows = []
    for where, row in read_lines(path):
        for key in required:
            if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip():
                raise UserError(f'{where}: the key "{key}" with a text is missing; add it')
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

"""Where texts come from: the files embedded beside this module, or the user's own JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

EMBEDDED = Path(__file__).parent


def texts_path(role: str, value: str) -> Path:
    """The file meant by a config value: the embedded ``<role>.jsonl``, or the path it gives."""
    return EMBEDDED / f"{role}.jsonl" if value == "embedded" else Path(value).expanduser()


def read_jsonl(path: Path, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, in order; blank lines are skipped.

    Raises:
        UserError: names the line that is not a JSON object or lacks a required, non-empty text key.
    """
    rows = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise UserError(f"{path} line {number}: not JSON; each line must hold one object") from None
            for key in required:
                if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip():
                    raise UserError(f'{path} line {number}: the key "{key}" with a text is missing; add it')
            rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no texts; put one JSON object on each line")
    return rows

"""Sampled texts on the page: few of each cell, in a bounded number of bytes, for its script to list and filter."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from affectlens.report.evidence import Row

CELL = ("source", "family", "concept", "strength")
"""What texts of one cell have in common."""
LETTERS = 1200
"""Of a text, at most."""
LARGEST = 2_000_000
"""Bytes of all texts, at most; where they are more, fewer of each cell are shown."""


def packed(samples: Sequence[Row], per_cell: int) -> dict[str, Any] | None:
    """What the page's script lists; None where there is nothing to be shown.

    Returns:
        ``rows``; ``total``: of how many; ``per_cell``: at most so many of each.
    """
    while samples and per_cell > 0:
        rows = _first(samples, per_cell)
        if len(json.dumps(rows)) <= LARGEST:
            return {"rows": rows, "total": len(samples), "per_cell": per_cell}
        per_cell //= 2
    return None


def _first(samples: Sequence[Row], per_cell: int) -> list[Row]:
    """The first texts of each cell, each of a bounded length; numbers that JSON does not have are left out."""
    taken: dict[tuple[Any, ...], int] = {}
    kept = []
    for row in samples:
        cell = tuple(row[name] for name in CELL)
        taken[cell] = taken.get(cell, 0) + 1
        if taken[cell] <= per_cell:
            text = row["text"] if len(row["text"]) <= LETTERS else row["text"][: LETTERS - 1] + "\u2026"
            known = {name: value for name, value in row.items() if value is not None and not _no_number(value)}
            kept.append({**known, "text": text})
    return kept


def _no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)

"""Ratings of words: valence, arousal, dominance, from the embedded table or the user's own."""

from __future__ import annotations

import math
from pathlib import Path

from affectlens.corpus.texts import EMBEDDED, read_table
from affectlens.errors import UserError

EMBEDDED_RATINGS = EMBEDDED / "ratings.csv"
"""Valence, arousal and dominance from 1 to 9 of 171 words, judged by a model."""


def read_ratings(source: Path) -> dict[str, dict[str, float]]:
    """Word -> {valence, arousal, ...} from a CSV whose first column is the word.

    Args:
        source: the file.

    Raises:
        UserError: the file is no CSV in UTF-8, lacks the columns or holds something that is not a number.
    """
    rows = read_table(source)
    if not rows or not {"valence", "arousal"} <= set(rows[0]):
        raise UserError(f"{source}: a table of ratings needs a first column of words, and valence and arousal")
    word, found = next(iter(rows[0])), {}
    for number, row in enumerate(rows, start=2):
        where = f"{source} line {number} ({row[word][:40]})"
        try:
            values = {key: float(value) for key, value in row.items() if key != word}
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: a rating is not a number ({error}); correct or remove that row") from None
        if not all(map(math.isfinite, values.values())):
            raise UserError(f"{where}: a rating is missing or not finite; correct or remove that row")
        if found.setdefault(row[word].strip().lower(), values) != values:
            raise UserError(f"{where}: the word has other ratings further up; keep one of the two rows")
    return found


def ratings_path(value: str) -> Path:
    """The CSV that a config value means."""
    return EMBEDDED_RATINGS if value == "embedded" else Path(value).expanduser()

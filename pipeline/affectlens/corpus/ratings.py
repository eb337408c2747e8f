"""Ratings of words: valence, arousal, dominance, from the embedded table or the user's own."""

from __future__ import annotations

import csv
from pathlib import Path

from affectlens.corpus.texts import EMBEDDED
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
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (UnicodeError, csv.Error) as error:
        raise UserError(f"{source}: not a CSV in UTF-8 ({error}); save it as one") from None
    if not rows or not {"valence", "arousal"} <= set(rows[0]):
        raise UserError(f"{source}: a table of ratings needs a first column of words, and valence and arousal")
    word = next(iter(rows[0]))
    try:
        return {
            row[word].strip().lower(): {key: float(value) for key, value in row.items() if key != word} for row in rows
        }
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: a rating is not a number ({error}); correct or remove that row") from None


def ratings_path(value: str) -> Path:
    """The CSV that a config value means."""
    return EMBEDDED_RATINGS if value == "embedded" else Path(value).expanduser()

"""Correlation of readings with how much items are preferred: raw, without extreme categories, within categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from affectlens.corpus.texts import read_table
from affectlens.errors import UserError
from affectlens.experiments.conclude import estimators
from affectlens.experiments.conclude.analysis import Analysis
from affectlens.experiments.conclude.estimators import Association
from affectlens.stats import benjamini_hochberg

EXTREME = 2
"""Categories that are left out where none is named: those whose mean lies farthest from that of all items."""
COLUMNS = ("item", "category", "elo")


@dataclass(frozen=True)
class Related:
    """Correlations of every reading with the preference for the items.

    Attributes:
        concepts: names of the readings.
        raw: over all items.
        free: over the items outside the categories left out.
        within: after category means are taken off both sides, items changing places within their category.
        left_out: categories that ``free`` is without.
    """

    concepts: tuple[str, ...]
    raw: Association
    free: Association
    within: Association
    left_out: tuple[str, ...]

    def adjusted(self, name: str) -> Float[np.ndarray, " concepts"]:
        """p of ``raw``, ``free`` or ``within`` after Benjamini-Hochberg over the concepts."""
        return benjamini_hochberg(getattr(self, name).p)


def correlate(
    items: Sequence[str],
    categories: Sequence[str],
    elo: Float[np.ndarray, " items"],
    readings: Mapping[str, Float[np.ndarray, " items"]],
    spec: Analysis,
    *,
    leave_out: Sequence[str] = (),
    rng: np.random.Generator | None = None,
) -> Related:
    """Correlate readings with preferences, so that what categories differ in is told from what items differ in.

    Args:
        items: their texts; named in errors.
        categories: of the items.
        elo: how much each is preferred, on any scale.
        readings: by concept.
        spec: level of the intervals and number of permutations.
        leave_out: categories without which correlations are given again; by default the two with extreme means.
        rng: of the permutations; without one there are no p.

    Raises:
        UserError: a value is missing, or a category to be left out has no item.
    """
    kinds, elo = np.asarray(categories, dtype=str), np.asarray(elo, dtype=float)
    values = np.stack(list(readings.values()), axis=1)
    finite = np.isfinite(elo) & np.isfinite(values).all(axis=1)
    if not finite.all():
        raise UserError(f"the item `{items[int(np.argmin(finite))]}` lacks a score or a reading; drop it or fill it in")
    for unknown in sorted(set(leave_out) - set(kinds.tolist())):
        raise UserError(f"no item has the category `{unknown}` that is to be left out; there are {sorted(set(kinds))}")
    left_out = tuple(leave_out) or extreme(kinds, elo)
    kept = ~np.isin(kinds, left_out)
    return Related(
        tuple(readings),
        estimators.association(elo, values, None, spec, rng),
        estimators.association(elo[kept], values[kept], None, spec, rng),
        estimators.association(elo, values, kinds, spec, rng),
        left_out,
    )


def extreme(categories: Shaped[np.ndarray, " items"], elo: Float[np.ndarray, " items"]) -> tuple[str, ...]:
    """The two categories whose mean lies farthest from that of all items; none where there are fewer than four."""
    kinds = np.unique(categories)
    if len(kinds) < EXTREME + 2:
        return ()
    far = np.array([abs(elo[categories == kind].mean() - elo.mean()) for kind in kinds])
    return tuple(str(kind) for kind in kinds[np.argsort(-far, kind="stable")[:EXTREME]])


def read_scores(path: Path) -> tuple[list[str], list[str], Float[np.ndarray, " items"], dict[str, np.ndarray]]:
    """Items, categories, scores and readings from a CSV with the columns item, category, elo and one per reading.

    Raises:
        UserError: the file is missing, lacks a column, or a cell is not a number.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a CSV with the columns {', '.join(COLUMNS)} and the readings")
    rows = read_table(path)
    header = list(rows[0]) if rows else []
    missing = [name for name in COLUMNS if name not in header]
    concepts = [name for name in header if name not in COLUMNS]
    if missing or not concepts:  # without rows all columns are missing
        lacks = "any row" if not rows else f"the column `{missing[0]}`" if missing else "a column with a reading"
        raise UserError(f"{path} lacks {lacks}; give {', '.join(COLUMNS)} and one column a reading")

    def numbers(name: str) -> Float[np.ndarray, " items"]:
        try:
            found = np.array([float(row[name]) for row in rows])
            if np.isfinite(found).all():
                return found
            raise ValueError
        except (TypeError, ValueError):
            raise UserError(f"{path}: a cell of the column `{name}` is not a number; correct it") from None

    texts, kinds = ([row[name] for row in rows] for name in COLUMNS[:2])
    return texts, kinds, numbers("elo"), {name: numbers(name) for name in concepts}

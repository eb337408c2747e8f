"""Correlation of readings with how much items are preferred: raw, without extreme categories, and within categories."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens.errors import UserError
from affectlens.experiments.conclude import intervals
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.stats import Estimate, benjamini_hochberg, permutation_p

PERMUTATIONS = 2000
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
        within: after category means are taken off both sides.
        p: two-sided permutation p by name (``raw``, ``free``, ``within``), items changing places within their category
            for the last; after Benjamini-Hochberg over the concepts.
        left_out: categories that ``free`` is without.
        floor: the least p before correction.
    """

    concepts: tuple[str, ...]
    raw: tuple[Estimate, ...]
    free: tuple[Estimate, ...]
    within: tuple[Estimate, ...]
    p: Mapping[str, Float[np.ndarray, " concepts"]]
    left_out: tuple[str, ...]
    floor: float


def correlations(
    items: Sequence[str],
    categories: Sequence[str],
    elo: Float[np.ndarray, " items"],
    readings: Mapping[str, Float[np.ndarray, " items"]],
    *,
    leave_out: Sequence[str] = (),
    generator: np.random.Generator | None = None,
) -> Related:
    """Correlate readings with preferences, so that what categories differ in is told from what items differ in.

    Intervals are Fisher's, with one degree of freedom less for every category mean taken off.

    Args:
        items: their texts; named in errors.
        categories: of the items.
        elo: how much each is preferred, on any scale.
        readings: by concept.
        leave_out: categories without which correlations are given again; by default the two with extreme means.
        generator: of the permutations; without one there are no p.

    Raises:
        UserError: lengths differ, a value is missing, or a category to be left out has no item.
    """
    kinds, elo, values = _checked(items, categories, elo, readings, leave_out)
    left_out = tuple(leave_out) or extreme(kinds, elo)
    kept = ~np.isin(kinds, left_out)
    degrees = len(np.unique(kinds)) - 1
    centred, centred_values = within(elo, kinds), within(values, kinds)
    found = {
        "raw": _each(elo, values, 0),
        "free": _each(elo[kept], values[kept], 0),
        "within": _each(centred, centred_values, degrees),
    }
    p = {name: np.full(values.shape[1], np.nan) for name in found}
    if generator is not None:
        one = np.zeros(len(elo), dtype=int)
        p["raw"] = _permuted(elo, values, one, generator)
        p["free"] = _permuted(elo[kept], values[kept], one[kept], generator)
        p["within"] = _permuted(centred, centred_values, np.unique(kinds, return_inverse=True)[1], generator)
    return Related(
        tuple(readings),
        found["raw"],
        found["free"],
        found["within"],
        {name: benjamini_hochberg(each) for name, each in p.items()},
        left_out,
        1 / (PERMUTATIONS + 1),
    )


def _checked(
    items: Sequence[str],
    categories: Sequence[str],
    elo: Float[np.ndarray, " items"],
    readings: Mapping[str, Float[np.ndarray, " items"]],
    leave_out: Sequence[str],
) -> tuple[Shaped[np.ndarray, " items"], Float[np.ndarray, " items"], Float[np.ndarray, "items concepts"]]:
    kinds, elo = np.asarray(categories, dtype=str), np.asarray(elo, dtype=float)
    values = np.stack([np.asarray(each, dtype=float) for each in readings.values()], axis=1) if readings else None
    if values is None or not len(items) == len(kinds) == len(elo) == len(values):
        raise UserError("correlations need one category, one score and one value of each reading for every item")
    finite = np.isfinite(elo) & np.isfinite(values).all(axis=1)
    if not finite.all():
        raise UserError(f"the item `{items[int(np.argmin(finite))]}` lacks a score or a reading; drop it or fill it in")
    unknown = sorted(set(leave_out) - set(kinds.tolist()))
    if unknown:
        raise UserError(
            f"no item has the category `{unknown[0]}` that is to be left out; there are {sorted(set(kinds))}"
        )
    return kinds, elo, values


def extreme(categories: Shaped[np.ndarray, " items"], elo: Float[np.ndarray, " items"]) -> tuple[str, ...]:
    """The two categories whose mean lies farthest from that of all items; none where there are fewer than four."""
    names = np.unique(categories)
    if len(names) < EXTREME + 2:
        return ()
    far = np.array([abs(elo[categories == name].mean() - elo.mean()) for name in names])
    return tuple(str(name) for name in names[np.argsort(-far, kind="stable")[:EXTREME]])


def within(values: Float[np.ndarray, "items ..."], categories: Shaped[np.ndarray, " items"]) -> np.ndarray:
    """Values less the mean of their category."""
    names, codes = np.unique(categories, return_inverse=True)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, codes, values)
    counts = np.bincount(codes, minlength=len(names)).reshape(-1, *[1] * (values.ndim - 1))
    return values - (sums / np.maximum(counts, 1))[codes]


def pearson(elo: Float[np.ndarray, "... items"], values: Float[np.ndarray, "items concepts"]) -> np.ndarray:
    """Correlations, NaN where a side does not vary."""
    if len(values) < 2:
        return np.full((*elo.shape[:-1], values.shape[1]), np.nan)
    x, y = elo - elo.mean(axis=-1, keepdims=True), values - values.mean(axis=0)
    scale = np.linalg.norm(x, axis=-1)[..., None] * np.linalg.norm(y, axis=0)
    # What is left of a constant after its mean is taken off is rounding, not variation.
    varies = scale > 1e-10 * np.linalg.norm(elo, axis=-1)[..., None] * np.linalg.norm(values, axis=0)
    return np.where(varies, np.clip(x @ y / np.where(scale > 0, scale, 1), -1, 1), np.nan)


def _each(
    elo: Float[np.ndarray, " items"], values: Float[np.ndarray, "items concepts"], degrees: int
) -> tuple[Estimate, ...]:
    return tuple(fisher(float(r), len(elo), degrees) for r in pearson(elo, values))


def fisher(r: float, pairs: int, degrees: int = 0) -> Estimate:
    """A correlation with its interval by Fisher's z, so many covariates having been taken off both sides."""
    left = pairs - degrees - 3
    if left < 1 or math.isnan(r) or 1 - abs(r) < 1e-12:
        return Estimate(r, math.nan, math.nan, pairs)
    width = NormalDist().inv_cdf(1 - LEVEL / 2) / math.sqrt(left)
    return Estimate(r, math.tanh(math.atanh(r) - width), math.tanh(math.atanh(r) + width), pairs)


def _permuted(
    elo: Float[np.ndarray, " items"],
    values: Float[np.ndarray, "items concepts"],
    strata: Int[np.ndarray, " items"],
    generator: np.random.Generator,
) -> Float[np.ndarray, " concepts"]:
    if len(elo) < 2:
        return np.full(values.shape[1], np.nan)
    null = np.abs(pearson(shuffles(elo, strata, PERMUTATIONS, generator), values))
    return np.asarray(permutation_p(np.abs(pearson(elo, values)), null)[0])


def shuffles(
    values: Float[np.ndarray, " items"], strata: Int[np.ndarray, " items"], count: int, generator: np.random.Generator
) -> Float[np.ndarray, "count items"]:
    """Copies in which values changed places within their stratum."""
    keys = generator.random((count, len(values))) + strata
    order = np.argsort(keys, axis=1)
    found = np.empty((count, len(values)))
    found[:, np.argsort(strata, kind="stable")] = values[order]
    return found


def read_scores(path: Path) -> tuple[list[str], list[str], Float[np.ndarray, " items"], dict[str, np.ndarray]]:
    """Items, categories, scores and readings from a CSV with the columns item, category, elo and one per reading.

    Raises:
        UserError: the file is missing, lacks a column, or a cell is not a number.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a CSV with the columns {', '.join(COLUMNS)} and the readings")
    with path.open(encoding="utf-8", newline="") as stream:
        table = csv.DictReader(stream)
        header, rows = list(table.fieldnames or ()), list(table)
    missing = [name for name in COLUMNS if name not in header]
    concepts = [name for name in header if name not in COLUMNS]
    if missing or not concepts or not rows:
        lacks = f"the column `{missing[0]}`" if missing else "a column with a reading" if not concepts else "any row"
        raise UserError(f"{path} lacks {lacks}; give {', '.join(COLUMNS)} and one column a reading")

    def numbers(name: str) -> Float[np.ndarray, " items"]:
        try:
            return np.array([float(row[name]) for row in rows])
        except (TypeError, ValueError):
            raise UserError(f"{path}: a cell of the column `{name}` is not a number; correct it") from None

    texts, kinds = ([row[name] for row in rows] for name in COLUMNS[:2])
    return texts, kinds, numbers("elo"), {name: numbers(name) for name in concepts}


def aligned(
    elo: Float[np.ndarray, " items"],
    values: Float[np.ndarray, "items concepts"],
    categories: Shaped[np.ndarray, " items"],
    signs: Float[np.ndarray, " concepts"],
    generator: np.random.Generator,
) -> tuple[Estimate, float, Bool[np.ndarray, " concepts"]]:
    """Mean within-category correlation over concepts, each with the sign it is expected to have, as one test.

    Returns:
        The mean with its bootstrap interval over items (category means taken off once), the one-sided p of items
        changing places within their category, and which concepts entered.
    """
    x, y = within(elo, categories), within(values, categories)
    point = pearson(x, y)
    used = np.isfinite(point) & np.isfinite(signs) & (signs != 0)
    if not used.any():
        return intervals.undefined(len(elo)), math.nan, used
    y, signs = y[:, used], signs[used]
    value = float((point[used] * signs).mean())
    null = pearson(shuffles(x, np.unique(categories, return_inverse=True)[1], PERMUTATIONS, generator), y) @ signs
    p = float(permutation_p(value, null / len(signs))[0])
    weights = intervals.draws(len(x), generator)
    mean_x, mean_y = weights @ x / len(x), weights @ y / len(x)
    xy = weights @ (x[:, None] * y) / len(x) - mean_x[:, None] * mean_y
    xx, yy = weights @ x**2 / len(x) - mean_x**2, weights @ y**2 / len(x) - mean_y**2
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (xy / np.sqrt(xx[:, None] * yy)) @ signs / len(signs)
    return intervals.from_draws(value, drawn, len(x)), p, used

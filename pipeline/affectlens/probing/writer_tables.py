"""From the cells that :mod:`affectlens.probing.transfer` measures to figures with intervals: the rows of the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit

from affectlens import stats
from affectlens.corpus.documents import OWN
from affectlens.probing import transfer, ways
from affectlens.probing.comparison import metric_name
from affectlens.probing.transfer import Cells, Pool, Split
from affectlens.probing.writers import CHOSEN
from affectlens.stats import Estimate

if TYPE_CHECKING:
    from affectlens.probing.directions import Directions

Pair = tuple[tuple[str, ...], str]
"""The writers that build, and the one that is read."""
Measured = Mapping[Pair, Cells]


def pairs(writers: Sequence[str]) -> list[Pair]:
    """All that is measured: every writer on left-out topics, every writer by every other, each by all others."""
    own = [((name,), name) for name in writers]
    crossed = [((built,), read) for read in writers for built in writers if built != read]
    several = [(tuple(name for name in writers if name != read), read) for read in writers]
    return own + crossed + (several if len(writers) > 2 else [])


def single(writers: Sequence[str]) -> list[Pair]:
    """One writer read by another."""
    return [pair for pair in pairs(writers) if len(pair[0]) == 1 and pair[0][0] != pair[1]]


def left_out(writers: Sequence[str]) -> list[Pair]:
    """One writer read by all others, where these are several."""
    return [pair for pair in pairs(writers) if len(pair[0]) > 1]


def by_reader(cells: Measured, chosen: Sequence[Pair], figure: str = "areas") -> dict[str, np.ndarray]:
    """For every writer read the cells [concepts, topics], their mean over what built."""
    found: dict[str, list[np.ndarray]] = {}
    for built, read in chosen:
        found.setdefault(read, []).append(getattr(cells[built, read], figure))
    return {read: nan_mean(np.stack(each)) for read, each in found.items()}


def nan_mean(values: Float[np.ndarray, "n rows columns"]) -> Float[np.ndarray, "rows columns"]:
    """Mean of what was measured along the first axis; NaN where nothing was."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def together(each: Mapping[str, np.ndarray]) -> np.ndarray:
    """All writers x topics side by side."""
    return np.concatenate(list(each.values()), axis=1)


def further(each: Mapping[str, np.ndarray]) -> Estimate:
    """Where the figure of a further writer is expected: concepts and topics averaged, writers the sample.

    On the scale of log-odds, since an AUROC lies between 0 and 1.
    """
    figures = np.array([stats.t_interval(cells).value for cells in each.values()])
    expected = stats.prediction_interval(logit(np.clip(figures, 1e-6, 1 - 1e-6)))
    return Estimate(float(figures.mean()), float(expit(expected.low)), float(expit(expected.high)), expected.n)


def named(name: str, estimate: Estimate, *, bare: bool = False) -> dict[str, float]:
    """Columns of an estimate: ``name``, ``name_low``, ``name_high``; bare: ``low``, ``high``."""
    prefix = "" if bare else f"{name}_"
    return {name: estimate.value, f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}


UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"), 0)


def is_searched(method: str) -> bool:
    """Whether a method searches single columns, so that its luck is shared by all topics."""
    return method.startswith("best ") or (method.endswith(" SAE features") and not method.startswith("all "))


def loss(own: Cells, other: np.ndarray, *, cross_validated: bool, searched: bool) -> Estimate:
    """What is lost against one's own left-out topics, of the concepts that both have."""
    shared = ~np.isnan(other).all(axis=1) & ~np.isnan(own.areas).all(axis=1)
    if not shared.any():
        return UNKNOWN
    first = stats.t_interval(own.areas[shared], cross_validated=cross_validated)
    second = stats.t_interval(other[shared])
    gap = stats.difference(first, second)
    if searched and shared.sum() > 1:  # which column wins is luck that topics share; concepts show it
        rows = np.nanmean(own.areas[shared], axis=1) - np.nanmean(other[shared], axis=1)
        over = stats.t_interval(rows)
        half = np.hypot(gap.value - gap.low, over.value - over.low)
        gap = Estimate(gap.value, gap.value - half, gap.value + half, gap.n)
    return gap


def transfer_rows(method: str, cells: Measured, pool: Pool) -> list[dict[str, Any]]:
    """One row a pair."""
    rows, searched = [], is_searched(method)
    for (built, read), found in cells.items():
        crossed = read in built and bool(pool.builds.all())
        row: dict[str, Any] = {
            "method": method,
            "built": " + ".join(built),
            "read": read,
            "concepts": int((~np.isnan(found.areas).all(axis=1)).sum()),
            "topics": found.areas.shape[1],
            "texts": found.texts,
            **named("auroc", stats.t_interval(found.areas, cross_validated=crossed, random_rows=searched), bare=True),
            **named("hit", stats.t_interval(found.hits, cross_validated=crossed)),
            "hit_chance": 1 / max(1, int((~np.isnan(found.areas).all(axis=1)).sum())),
        }
        row["home"] = stats.t_interval(cells[(read,), read].areas).value if ((read,), read) in cells else None
        own = cells.get((built, built[0])) if read not in built and len(built) == 1 else None
        gap = (
            UNKNOWN
            if own is None
            else loss(own, found.areas, cross_validated=bool(pool.builds.all()), searched=searched)
        )
        rows.append(row | named("loss", gap))
    return rows


def method_row(method: str, cells: Measured, pool: Pool) -> dict[str, Any]:
    """What one method reads at home, of others, the other way round, and built on several writers."""
    searched, names, crossed = is_searched(method), pool.writers, bool(pool.builds.all())
    own, others = cells[(OWN,), OWN], [((OWN,), name) for name in names if name != OWN]
    other = together(by_reader(cells, others))
    back = by_reader(cells, [((name,), OWN) for name in names if name != OWN])[OWN]
    alone, several = by_reader(cells, single(names)), by_reader(cells, left_out(names))

    def estimate(values: np.ndarray, *, crossed: bool = False) -> Estimate:
        return stats.t_interval(values, cross_validated=crossed, random_rows=searched)

    row: dict[str, Any] = {"method": method, "metric": metric_name(method)}
    row |= named("own", estimate(own.areas, crossed=crossed)) | named("other", estimate(other))
    homes = together(by_reader(cells, [((name,), name) for name in names if name != OWN]))
    row |= {"home": stats.t_interval(homes).value}
    row |= named("loss", loss(own, other, cross_validated=crossed, searched=searched))
    row |= named("reverse", estimate(back))
    row |= {"pairs": further(alone).value, "further_low": further(alone).low, "further_high": further(alone).high}
    row |= named("several", estimate(together(several)) if several else UNKNOWN)
    expected = further(several) if several else UNKNOWN
    row |= {"several_further_low": expected.low, "several_further_high": expected.high}
    hits = stats.t_interval(together(by_reader(cells, others, "hits")))
    return row | {"hit_own": stats.t_interval(own.hits).value} | named("hit_other", hits)


def concept_rows(method: str, cells: Measured, pool: Pool) -> list[dict[str, Any]]:
    """One row a concept."""
    own = nan_mean(cells[(OWN,), OWN].areas.T[:, :, None])[:, 0]
    other = together(by_reader(cells, [((OWN,), name) for name in pool.writers if name != OWN]))
    read = nan_mean(other.T[:, :, None])[:, 0]
    return [
        {"concept": concept, "method": method, "metric": metric_name(method), "own": own[index], "other": read[index]}
        for index, concept in enumerate(pool.emotions)
    ]


@dataclass(frozen=True)
class Found:
    """Rows of the stage's tables."""

    methods: list[dict[str, Any]]
    concepts: list[dict[str, Any]]
    transfer: list[dict[str, Any]]
    ways: list[dict[str, Any]]


def evaluate(pool: Pool, directions: Directions, generator: Callable[[str], np.random.Generator]) -> Found:
    """Every readout on every writer, and every way to build directions that might read another writer better."""
    plan = {pair: transfer.splits(pool, *pair) for pair in pairs(pool.writers)}
    plan = {pair: each for pair, each in plan.items() if each}
    found = Found([], [], [], [])
    for method, draws in transfer.readouts(pool, directions, generator).items():
        measured = [transfer.read_cells(pool, draw, plan) for draw in draws]
        cells = {
            pair: Cells(
                np.mean([each[pair].areas for each in measured], axis=0),
                np.mean([each[pair].hits for each in measured], axis=0),
                measured[0][pair].texts,
            )
            for pair in plan
        }
        found.methods.append(method_row(method, cells, pool))
        found.concepts.extend(concept_rows(method, cells, pool))
        found.transfer.extend(transfer_rows(method, cells, pool))
    found.ways.extend(way_rows(pool, directions, {pair: plan[pair] for pair in plan if pair[1] not in pair[0]}))
    return found


def way_rows(pool: Pool, directions: Directions, plan: Mapping[Pair, Sequence[Split]]) -> list[dict[str, Any]]:
    """One row a way and number of building writers, beside the recipe built on one."""
    measured = {
        way.name: transfer.read_cells(pool, ways.readout(pool, way), plan) for way in ways.ways(pool, directions)
    }
    alone, several = single(pool.writers), left_out(pool.writers)
    base = by_reader(measured[ways.RECIPE], alone)
    read = {(name, "one writer"): by_reader(cells, alone) for name, cells in measured.items()}
    if several:
        read |= {(name, "all others"): by_reader(cells, several) for name, cells in measured.items()}
        figures = {
            name: {pair: stats.t_interval(found.areas).value for pair, found in cells.items()}
            for name, cells in measured.items()
        }
        picked = {pair: ways.chosen(figures, pair[0]) for pair in several}
        best = {reader: measured[name][built, reader].areas for (built, reader), name in picked.items()}
        listed = "; ".join(sorted(set(picked.values())))
        read[f"{CHOSEN} ({listed})", "all others"] = best
    rows = []
    for (name, built), cells in read.items():
        row: dict[str, Any] = {"way": name, "built": built}
        row |= named("auroc", stats.t_interval(together(cells)), bare=True)
        gaps = {reader: cells[reader] - base[reader] for reader in cells}
        row |= named("difference", stats.t_interval(together(gaps)))
        expected = further(cells)
        rows.append(row | {"further_low": expected.low, "further_high": expected.high})
    return rows

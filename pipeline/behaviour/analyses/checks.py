"""Whether a steering vector did what it is named after, and within which strengths its effects count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from pipeline.behaviour.analyses.intervals import LEVEL
from pipeline.behaviour.measured import Measured
from pipeline.stats import permutation_p

PERPLEXITY_LIMIT = 1.5
"""Largest perplexity ratio on neutral text at which an effect counts."""


@dataclass(frozen=True)
class Check:
    """The manipulation check of one vector.

    Attributes:
        passed: whether its own words rise, more than any words rise under controls.
        plus: cell of its largest coherent positive strength; None where there is none.
        minus: cell of its most negative coherent strength.
        rise: of its own words, in nats; the mean of the rise at ``plus`` and the fall at ``minus``.
        reason: why it did not pass; empty where it did.
    """

    passed: bool
    plus: int | None
    minus: int | None
    rise: float
    reason: str = ""


def coherent(measured: Measured) -> Bool[np.ndarray, " cells"]:
    """Cells in which neutral text stays about as predictable as it was; a ratio that is not known does not count."""
    return np.asarray(measured.manipulation["perplexity"], dtype=float) <= PERPLEXITY_LIMIT


def measurable(change: Float[np.ndarray, "cells rows"]) -> Bool[np.ndarray, " cells"]:
    """Cells in which an outcome was measured."""
    return np.asarray(np.isfinite(change).any(axis=1))


def cells_of(measured: Measured, vector: str) -> Int[np.ndarray, " strengths"]:
    """The cells of a concept's vector, by rising strength."""
    found = [index for index, cell in enumerate(measured.cells) if cell.family == "concept" and cell.vector == vector]
    return np.array(sorted(found, key=lambda index: measured.cells[index].strength), dtype=np.int64)


def manipulation(measured: Measured, vector: str, known: Bool[np.ndarray, " cells"] | None = None) -> Check:
    """Check a vector at its largest coherent strength of each sign.

    Own words must move by more than the most moved words of any concept do under the controls of the same signs, with
    p = (b + 1) / (m + 1) at most 5%; that the controls may choose among all concepts' words makes this the harder.

    Args:
        vector: a concept.
        known: cells in which the outcome was measured at all; all by default.
    """
    usable = coherent(measured) & (np.ones(len(measured.cells), dtype=bool) if known is None else known)
    own = np.asarray(measured.manipulation["own_words"], dtype=float)
    cells = [index for index in cells_of(measured, vector) if measured.cells[index].strength != 0]
    if not cells:
        return Check(False, None, None, np.nan, f"{vector} was not among the steering vectors")
    inside = [index for index in cells if usable[index]]
    if not inside:
        unseen = known is not None and not known[cells].any()
        broken = f"{vector} breaks coherence (perplexity ratio above {PERPLEXITY_LIMIT}) throughout"
        return Check(False, None, None, np.nan, f"nothing was measured under {vector}" if unseen else broken)
    plus = next((index for index in reversed(inside) if measured.cells[index].strength > 0), None)
    minus = next((index for index in inside if measured.cells[index].strength < 0), None)
    sides = [(index, sign) for index, sign in ((plus, 1), (minus, -1)) if index is not None]
    rise = float(np.mean([sign * own[index] for index, sign in sides]))
    signs = {sign for _, sign in sides}
    null = [
        measured.manipulation["any_words"][index]
        for index, cell in enumerate(measured.cells)
        if cell.family not in ("none", "concept") and np.sign(cell.strength) in signs
    ]
    null = [value for value in null if np.isfinite(value)]
    if not null or not np.isfinite(rise):
        return Check(False, plus, minus, rise, f"{vector} has no manipulation check beside controls")
    chance, _ = permutation_p(rise, np.array(null))
    passed = rise > 0 and chance <= LEVEL
    moved = f"{vector} moves its own words by {rise:.2f} nats, controls move some words by up to {max(null):.2f}"
    return Check(passed, plus, minus, rise, "" if passed else f"{moved} (p {chance:.2f}): manipulation check failed")

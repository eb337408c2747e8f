"""Whether a steering vector did what it is named after, and within which strengths its effects count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from affectlens.experiments.conclude import controls
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.results import Measured

PERPLEXITY_LIMIT = 1.5
"""Largest perplexity ratio on neutral text at which an effect counts."""


@dataclass(frozen=True)
class Check:
    """The manipulation check of one vector.

    Attributes:
        passed: whether its own words rise, and more than the same words do under controls.
        plus: cell of its largest coherent positive strength; None where there is none.
        minus: cell of its most negative coherent strength.
        rise: of its own words, in nats; the mean of the rise at ``plus`` and the fall at ``minus``.
        ahead: how many other concepts' words rise more by it. The check does not ask for none, since neighbours in
            meaning rise together.
        reason: why it did not pass; empty where it did.
    """

    passed: bool
    plus: int | None
    minus: int | None
    rise: float
    reason: str = ""
    ahead: int = 0


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

    Its own words must rise by more than the same words do under the controls (p at most 5%): by the mean of the rise
    when pushed up and the fall when pushed down; where one sign alone is coherent, by that.

    Args:
        vector: a concept.
        known: cells in which the outcome was measured at all; all by default.
    """
    usable = coherent(measured) & (np.ones(len(measured.cells), dtype=bool) if known is None else known)
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
    concept = measured.concepts.index(vector)
    rises = _rises(measured, plus, minus)
    rise, others = float(rises[concept]), np.delete(rises, concept)
    null: dict[str, np.ndarray] = {}
    for (family, _), (up, down) in controls.pushes(measured).items():
        up, down = (None if plus is None else up), (None if minus is None else down)
        if (up is None) == (plus is None) and (down is None) == (minus is None):
            null[family] = np.append(null.get(family, []), _rises(measured, up, down)[concept])
    against = controls.compare(rise, null, symmetric=plus is not None and minus is not None)
    if not np.isfinite(against.p):
        return Check(False, plus, minus, rise, f"{vector} has no manipulation check beside controls")
    passed = rise > 0 and against.p <= LEVEL
    most = max(float(np.nanmax(np.abs(values))) for values in null.values())
    moved = f"{vector} moves its own words by {rise:.2f} nats, controls move them by up to {most:.2f}"
    reason = "" if passed else f"{moved} (p {against.p:.2f}): manipulation check failed"
    return Check(passed, plus, minus, rise, reason, int(np.count_nonzero(others > rise)))


def own_words(measured: Measured, cell: int) -> float:
    """How much the words of a cell's own concept rise, in nats."""
    return float(measured.manipulation["rises"][cell, measured.concepts.index(measured.cells[cell].vector)])


def _rises(measured: Measured, plus: int | None, minus: int | None) -> Float[np.ndarray, " concepts"]:
    """By how much every concept's words follow a push: the mean of the rise at one cell and the fall at the other."""
    rises = np.asarray(measured.manipulation["rises"], dtype=float)
    return np.mean([sign * rises[cell] for cell, sign in ((plus, 1), (minus, -1)) if cell is not None], axis=0)

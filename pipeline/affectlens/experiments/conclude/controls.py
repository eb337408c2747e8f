"""Comparing the effect of a vector with what meaningless vectors of the same norm do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from affectlens.experiments.results import Measured
from affectlens.stats import permutation_p

ENOUGH = 20
"""Controls without which nothing counts as shown."""
FAMILY = 3
"""Controls a family needs to be a comparison of its own."""


@dataclass(frozen=True)
class Against:
    """One effect against its controls.

    Attributes:
        count: controls.
        beyond: larger than every one of them.
        p: how often a control would be as large: by rank, so no smaller than ``floor``.
        floor: the least p that so many controls can give.
        p_scaled: the same from the effect in units of the controls' spread (t distribution), the largest over the
            families: ranks among some twenty controls cannot survive a correction over several vectors.
        spread: of the most variable family.
        degrees: of freedom of that family.
        centre: mean of that family, 0 for a symmetric comparison.
    """

    count: int
    beyond: bool
    p: float
    floor: float
    p_scaled: float
    spread: float = math.nan
    degrees: int = 0
    centre: float = 0.0

    def threshold(self, level: float) -> float:
        """The effect from which ``p_scaled`` is at most ``level``."""
        if self.degrees < 1:
            return math.nan
        from scipy.special import stdtrit

        return self.centre + self.spread * float(stdtrit(self.degrees, 1 - level))


def compare(value: float, families: Mapping[str, Float[np.ndarray, " controls"]], *, symmetric: bool) -> Against:
    """Test one-sided whether a value is larger than its controls.

    Args:
        value: the effect, positive in the claimed direction.
        families: the same statistic of every control, by family.
        symmetric: whether turning a control around turns its statistic around. Then each control counts with both
            signs, p is exact among the 2 (m + 1) values, and the controls' mean is known to be 0.

    Returns:
        NaN and not ``beyond`` where the value is NaN or there are fewer than two controls.
    """
    finite = {name: values[np.isfinite(values)] for name, values in families.items()}
    controls = np.concatenate([*finite.values(), np.empty(0)])
    count = len(controls)
    if count < 2 or not math.isfinite(value):
        return Against(count, False, math.nan, math.nan, math.nan)
    if symmetric:
        reached = np.count_nonzero(np.concatenate([controls, -controls, [value, -value]]) >= value - 1e-12 * abs(value))
        p, floor = reached / (2 * count + 2), 1 / (2 * count + 2)
        beyond = value > np.abs(controls).max()
    else:
        p, floor = permutation_p(value, controls)
        beyond = value > controls.max()
    large = [values for values in finite.values() if len(values) >= FAMILY]
    scaled = [_scaled(value, values, symmetric) for values in large or [controls]]
    widest = max(scaled, key=lambda each: each[0])
    return Against(count, bool(beyond), float(p), float(floor), *widest)


def _scaled(value: float, controls: Float[np.ndarray, " controls"], symmetric: bool) -> tuple[float, float, int, float]:
    """p of a new value of the controls' distribution, with the spread, degrees of freedom and centre behind it."""
    from scipy.special import stdtr

    count = len(controls)
    centre = 0.0 if symmetric else float(controls.mean())
    degrees = count if symmetric else count - 1
    spread = math.sqrt(float(((controls - centre) ** 2).sum()) / degrees)
    if not symmetric:
        spread *= math.sqrt(1 + 1 / count)
    above = value - centre
    if spread == 0:
        # Controls that do nothing at all give no scale; then only the rank p speaks.
        return (1 / (count + 1) if above > 0 else 1.0), 0.0, degrees, centre
    return float(stdtr(degrees, -above / spread)), spread, degrees, centre


def pushes(measured: Measured) -> dict[tuple[str, str], tuple[int | None, int | None]]:
    """Per control (family, number) the cells of its positive and of its negative strength, the largest of each."""
    found: dict[tuple[str, str], tuple[int | None, int | None]] = {}
    for index, cell in enumerate(measured.cells):
        if cell.family in ("none", "concept"):
            continue
        plus, minus = found.get((cell.family, cell.vector), (None, None))
        if cell.strength > 0 and (plus is None or cell.strength > measured.cells[plus].strength):
            plus = index
        elif cell.strength < 0 and (minus is None or cell.strength < measured.cells[minus].strength):
            minus = index
        found[cell.family, cell.vector] = (plus, minus)
    return found

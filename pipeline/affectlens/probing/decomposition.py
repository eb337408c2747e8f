"""Orthogonal matching pursuit: how few columns of a dictionary make up a target, for many targets at once.

Used twice: for directions made of decoder rows, and for the labels of a concept made of feature activations, where the
number needed says over how many features the concept is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Path:
    """A nested sequence of choices for each target.

    Attributes:
        chosen: columns in the order taken; -1 where nothing was left to explain.
        explained: share of the target's sum of squares after each step.
    """

    chosen: Int[np.ndarray, "targets steps"]
    explained: Float[np.ndarray, "targets steps"]


def pursue(targets: Float[np.ndarray, "n targets"], columns: Float[np.ndarray, "n columns"], steps: int) -> Path:
    """Take, step by step, the column that goes best with what is left; refit all taken ones (Pati et al. 1993).

    Args:
        targets: one column a target.
        columns: the dictionary, one column an atom; of norm 1, or 0 for an atom that is never taken.
        steps: most atoms a target.

    Returns:
        A target of zeros explains nothing: its shares are NaN.
    """
    count, steps = targets.shape[1], min(steps, *columns.shape)
    rest = targets.astype(np.float64)
    total = (rest**2).sum(axis=0)
    basis = np.zeros((steps, len(rest), count))
    chosen, explained = np.full((count, steps), -1), np.full((count, steps), np.nan)
    each = np.arange(count)
    floor = 1e-12 * np.where(total == 0, 1, total)
    for step in range(steps):
        fit = np.abs(columns.T @ rest)
        for before in range(step):
            taken = chosen[:, before]
            fit[taken[taken >= 0], each[taken >= 0]] = -1
        best = fit.argmax(axis=0)
        new = columns[:, best].astype(np.float64)
        # Twice: once leaves rounding errors along what was taken before.
        for _ in range(2):
            for before in range(step):
                new -= basis[before] * (basis[before] * new).sum(axis=0)
        norms = np.linalg.norm(new, axis=0)
        open_ = ((rest**2).sum(axis=0) > floor) & (norms > 1e-8)
        basis[step] = np.where(open_, new / np.where(norms > 0, norms, 1), 0)
        rest -= basis[step] * (basis[step] * rest).sum(axis=0)
        chosen[open_, step] = best[open_]
        with np.errstate(invalid="ignore", divide="ignore"):
            explained[:, step] = np.where(total > 0, 1 - (rest**2).sum(axis=0) / total, np.nan)
    return Path(chosen, explained)

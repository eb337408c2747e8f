"""The stream of token rows that sparse autoencoders are trained on: a pure function of (seed, position)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from affectlens.activations import TokenRows

STATISTICS_ROWS = 16_384
"""Rows from which centre and scale are estimated, and rows that are examined at once."""
OUTLIER = 4.0
"""Rows this many times farther from the centre than the median row are left out. Language models park attention on a
few tokens whose residuals are tens of times longer than all others (Sun et al. 2024): one of them in ten thousand
would own a tenth of the loss, and of every figure."""


class Stream:
    """Rows in a random order, epoch after epoch. Nothing needs saving to resume: a position is enough.

    Attributes:
        rows: the store's token rows.
        chosen: which of them are used.
    """

    def __init__(self, rows: TokenRows, chosen: Int[np.ndarray, "n"], seed: int) -> None:
        self.rows = rows
        self.chosen = chosen
        self._seed = seed
        self._epochs: dict[int, np.ndarray] = {}

    def batch(self, position: int, size: int) -> Float[np.ndarray, "size d_model"]:
        """The ``size`` rows from ``position`` on, float32; every epoch holds each row once."""
        count = len(self.chosen)
        where = np.arange(position, position + size)
        picked = np.empty(size, dtype=np.int64)
        for epoch in range(int(where[0]) // count, int(where[-1]) // count + 1):
            mine = where // count == epoch
            picked[mine] = self._order(epoch)[where[mine] % count]
        return self.rows.read(self.chosen[picked])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs = {key: value for key, value in self._epochs.items() if key == epoch - 1}
            self._epochs[epoch] = np.random.default_rng([self._seed, epoch]).permutation(len(self.chosen))
        return self._epochs[epoch]


def typical(rows: TokenRows, chosen: Int[np.ndarray, "n"]) -> Int[np.ndarray, "kept"]:
    """The chosen rows without outliers."""
    sample = _sample(rows, chosen)
    centre = _mean(sample)
    limit = OUTLIER * float(np.median(np.linalg.norm(sample - centre, axis=1)))
    kept = [
        part[np.linalg.norm(rows.read(part) - centre, axis=1) <= limit]
        for part in np.array_split(chosen, max(1, len(chosen) // STATISTICS_ROWS))
    ]
    return np.concatenate(kept)


def _sample(rows: TokenRows, chosen: Int[np.ndarray, "n"]) -> Float[np.ndarray, "sample d_model"]:
    """Evenly spaced rows."""
    step = max(1, len(chosen) // STATISTICS_ROWS)
    return rows.read(chosen[::step][:STATISTICS_ROWS])


def _mean(sample: Float[np.ndarray, "sample d_model"]) -> Float[np.ndarray, "d_model"]:
    return sample.mean(axis=0, dtype=np.float64).astype(np.float32)


@dataclass(frozen=True)
class Statistics:
    """What maps residuals to the space SAEs are trained in: multiplication by ``scale``.

    Attributes:
        centre: mean row, in residual units.
        scale: makes the mean distance from the centre the square root of the width.
    """

    centre: Float[np.ndarray, "d_model"]
    scale: float

    @classmethod
    def of(cls, rows: TokenRows, chosen: Int[np.ndarray, "n"]) -> Statistics:
        """From a sample. The centre is removed before measuring: in language models it is most of the norm."""
        sample = _sample(rows, chosen)
        centre = _mean(sample)
        spread = float(np.linalg.norm(sample - centre, axis=1).mean(dtype=np.float64))
        return cls(centre, float(np.sqrt(sample.shape[1]) / max(spread, 1e-12)))

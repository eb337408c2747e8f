"""The stream of token rows that sparse autoencoders are trained on: a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from affectlens.activations import ActivationStore, TokenRows

ENDLESS = 1 << 40
"""Steps that no training reaches."""
STATISTICS_ROWS = 16_384
"""Rows from which centre and scale are estimated, and rows that are examined at once."""
OUTLIER = 4.0
"""Rows this many times farther from the centre than the median row are left out. Language models park attention on a
few tokens whose residuals are tens of times longer than all others (Sun et al. 2024): one of them in ten thousand
would own a tenth of the loss, and of every figure."""


class Stream:
    """Batches of token rows in a random order, epoch after epoch. Nothing needs saving to resume: a step is enough."""

    def __init__(self, batches: Callable[[int], Iterable[Float[Tensor, "batch d_model"]]]) -> None:
        """A stream over any source.

        Args:
            batches: step -> float32 batches from that step of the training on, on the device that trains.
        """
        self._batches = batches

    @classmethod
    def of_store(
        cls, store: ActivationStore, layer: int, chosen: Int[np.ndarray, "n"], *, size: int, seed: int, device: str
    ) -> Stream:
        """Over cached rows: fetched ahead by threads, from memory or from the memory-mapped shards."""
        import torch

        return cls(
            lambda step: store.batches(
                size, seed, step=step, steps=ENDLESS, layer=layer, rows=chosen, device=device, dtype=torch.float32
            )
        )

    @classmethod
    def of_values(cls, values: Float[np.ndarray, "rows d_model"], *, size: int, seed: int) -> Stream:
        """Over an array in memory."""
        from affectlens.activations.batches import IN_MEMORY, Batches
        from affectlens.activations.source import RowSource

        source = RowSource([values], "float32")
        return cls(
            lambda step: Batches(
                source,
                None,
                batch_size=size,
                seed=seed,
                epoch=0,
                step=step,
                steps=ENDLESS,
                chosen=None,
                device="cpu",
                dtype=None,
                prefetch=IN_MEMORY,
            )
        )

    @contextmanager
    def batches(self, step: int) -> Iterator[Iterator[Float[Tensor, "batch d_model"]]]:
        """All batches from this step of the training on; what was fetched ahead is let go at the end."""
        rows = iter(self._batches(step))
        try:
            yield rows
        finally:
            if isinstance(rows, Generator):
                rows.close()


def typical(rows: TokenRows, chosen: Int[np.ndarray, "n"]) -> Int[np.ndarray, "kept"]:
    """The chosen rows without outliers."""
    near = _near(_sample(rows, chosen))
    parts = np.array_split(chosen, max(1, len(chosen) // STATISTICS_ROWS))
    return np.concatenate([part[near(rows.read(part))] for part in parts])


def typical_values(values: Float[np.ndarray, "rows d_model"]) -> Float[np.ndarray, "kept d_model"]:
    """Rows without outliers, the same as :func:`typical` leaves, where all of them are in memory."""
    return values[_near(_spaced(values))(values)]


def _near(sample: Float[np.ndarray, "sample d_model"]) -> Callable[[np.ndarray], Bool[np.ndarray, "rows"]]:
    """Says which rows are no outliers."""
    centre = _mean(sample)
    limit = OUTLIER * float(np.median(np.linalg.norm(sample - centre, axis=1)))
    return lambda values: np.linalg.norm(values - centre, axis=1) <= limit


def _sample(rows: TokenRows, chosen: Int[np.ndarray, "n"]) -> Float[np.ndarray, "sample d_model"]:
    """Evenly spaced rows."""
    return rows.read(_spaced(chosen))


def _spaced(rows: np.ndarray) -> np.ndarray:
    step = max(1, len(rows) // STATISTICS_ROWS)
    return rows[::step][:STATISTICS_ROWS]


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

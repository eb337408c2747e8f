"""Shuffled training batches: exact epochs, addressed by (seed, epoch, step); nothing to save, no buffer to mix in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from affectlens.activations.format import STORED, to_tensor
from affectlens.activations.source import RowSource

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

ROUNDS = 6
ORDER_BLOCK = 1 << 16
"""Places in the order that are worked out at once: enough to make numpy's cost for each call small."""
CONVERTED = 512
"""Rows that are converted to another type at once."""
IN_MEMORY, ON_DISK = 2, 8
"""Batches fetched ahead, each by its own thread: on a disk, many waiting reads are served sooner than one by one."""


def shuffled(positions: Int[np.ndarray, "n"], count: int, *key: int) -> Int[np.ndarray, "n"]:
    """Where a random permutation of ``range(count)`` sends these positions, without holding the permutation.

    A Feistel network over the smallest power of two that holds ``count`` is a permutation of it whatever its round
    function; values outside the range are sent on until they fall inside (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains", cycle walking). Any position of any epoch costs the same, so nothing needs replaying.

    Args:
        positions: from 0 to ``count - 1``.
        count: how many there are to permute.
        key: integers that name the permutation, such as seed and epoch.
    """
    bits = max(2, int(count - 1).bit_length())
    kind = np.uint32 if bits <= 32 else np.uint64
    low, high = bits - bits // 2, bits // 2
    keys = np.random.default_rng(key).integers(0, 1 << 32, size=ROUNDS, dtype=np.uint64).astype(kind)

    def walk(values: np.ndarray) -> np.ndarray:
        left, right = values >> kind(low), values & kind((1 << low) - 1)
        for turn in range(0, ROUNDS, 2):
            left = left ^ (_mixed(right, keys[turn]) & kind((1 << high) - 1))
            right = right ^ (_mixed(left, keys[turn + 1]) & kind((1 << low) - 1))
        return (left << kind(low)) | right

    found = walk(np.asarray(positions).astype(kind))
    outside = np.flatnonzero(found >= count)
    while len(outside):
        found[outside] = walk(found[outside])
        outside = outside[found[outside] >= count]
    return found.astype(np.int64)


def _mixed(values: np.ndarray, key: np.generic) -> np.ndarray:
    """A hash of each value; multiplication wraps, every bit of the input reaches the low bits of the result."""
    kind = values.dtype.type
    mixed = (values ^ key) * kind(0x9E3779B1)
    mixed ^= mixed >> kind(15)
    mixed *= kind(0x85EBCA77)
    mixed ^= mixed >> kind(13)
    return mixed


class Batches:
    """Shuffled rows, batch after batch: one epoch, or a number of steps through as many epochs as they take.

    Iterating yields tensors of shape ``batch_size d_model`` (the last of a single epoch may be shorter) from ``step``
    on, fetched ahead by threads. ``len`` is the number of steps from the first one, wherever iterating begins.
    """

    def __init__(
        self,
        source: RowSource,
        resident: Tensor | None,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        step: int,
        steps: int | None,
        chosen: Int[np.ndarray, "n"] | None,
        device: str,
        dtype: torch.dtype | None,
        prefetch: int,
    ) -> None:
        if batch_size < 1 or step < 0 or prefetch < 1:
            raise ValueError("batch_size and prefetch are at least 1, step is at least 0")
        self._source, self._resident, self._chosen = source, resident, chosen
        self._size, self._seed, self._epoch = batch_size, seed, epoch
        self._step, self._steps = step, steps
        self._device, self._dtype, self._prefetch = device, dtype, prefetch
        self.count = len(source) if chosen is None else len(chosen)
        if not self.count:
            raise ValueError("there are no rows to take batches of")

    def __len__(self) -> int:
        return -(-self.count // self._size) if self._steps is None else self._steps

    def rows(self, first: int, last: int) -> Int[np.ndarray, "n"]:
        """Row numbers of the batches from step ``first`` to before step ``last``, in order."""
        end = self.count if self._steps is None else self._steps * self._size
        positions = np.arange(first * self._size, min(last * self._size, end))
        epochs, within = np.divmod(positions, self.count)
        order = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            order[here] = shuffled(within[here], self.count, self._seed, self._epoch + epoch)
        return order if self._chosen is None else self._chosen[order]

    def batch(self, step: int) -> Float[Tensor, "batch d_model"]:
        """One batch by itself."""
        return self._take(self.rows(step, step + 1))

    def __iter__(self) -> Iterator[Float[Tensor, "batch d_model"]]:
        together = max(1, ORDER_BLOCK // self._size)
        orders: dict[int, Future[np.ndarray]] = {}
        ahead: deque[Future[Tensor]] = deque()

        def fetch(step: int) -> Future[Tensor]:
            block = step // together
            if block not in orders:
                orders.clear()
                orders[block] = pool.submit(self.rows, block * together, (block + 1) * together)
            return pool.submit(self._fetch, orders[block], step - block * together)

        with ThreadPoolExecutor(self._prefetch, thread_name_prefix="batches") as pool:
            try:
                for step in range(self._step, len(self)):
                    ahead.append(fetch(step))
                    if len(ahead) > self._prefetch:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def _fetch(self, order: Future[np.ndarray], step: int) -> Float[Tensor, "batch d_model"]:
        # Orders are asked for before the batches that wait for them, so a thread is always free to find them.
        return self._take(order.result()[step * self._size : (step + 1) * self._size])

    def _take(self, rows: Int[np.ndarray, "batch"]) -> Float[Tensor, "batch d_model"]:
        import torch

        if self._resident is not None:
            found = self._resident.index_select(0, torch.from_numpy(rows).to(self._resident.device))
        elif self._device == "cpu" and self._dtype is not None:
            return self._converted(rows, str(self._dtype).removeprefix("torch."))
        else:
            found = to_tensor(self._source.take(rows), self._source.dtype)
            if self._device.startswith("cuda"):
                found = found.pin_memory()
        return found.to(device=self._device, dtype=self._dtype or found.dtype, non_blocking=True)

    def _converted(self, rows: Int[np.ndarray, "n"], dtype: str) -> Float[Tensor, "n d_model"]:
        """Rows in another type, a few at a time, so that what is converted is still in the processor's cache."""
        # numpy asks for huge pages, torch does not: without them, getting fresh memory costs as much as copying.
        found = to_tensor(np.empty((len(rows), self._source.width), STORED[dtype]), dtype)
        for start in range(0, len(rows), CONVERTED):
            some = slice(start, start + CONVERTED)
            found[some] = to_tensor(self._source.take(rows[some]), self._source.dtype)
        return found

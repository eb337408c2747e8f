"""Stored rows wherever they lie: memory-mapped shards, one array in memory, or a tensor on an accelerator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from affectlens.activations.format import to_tensor

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int

Keep = Literal["auto", "memory", "disk"]
SHARE = 0.5
"""Of the free memory that rows may take with ``keep="auto"``."""


class RowSource:
    """Rows of one site across shards, in their stored bits, by their number in the whole cache.

    Attributes:
        maps: one array a shard, in order.
        dtype: what the bits stand for.
    """

    def __init__(self, maps: Sequence[np.ndarray], dtype: str) -> None:
        self.maps = list(maps)
        self.dtype = dtype
        self.starts = np.concatenate([[0], np.cumsum([len(rows) for rows in self.maps])])
        self.width = self.maps[0].shape[1]
        # numpy copies a row that is one opaque item half again as fast as a row of numbers.
        self._row = np.dtype((np.void, self.maps[0].dtype.itemsize * self.width))
        self._items = [np.ascontiguousarray(rows).view(self._row).reshape(-1) for rows in self.maps]
        self._whole, self._first, self._step = spanning(self._items)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def nbytes(self) -> int:
        return len(self) * self._row.itemsize

    def take(self, rows: Int[np.ndarray, "n"]) -> np.ndarray:
        """These rows, in the order given, as stored.

        Raises:
            IndexError: a row that is not there.
        """
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            raise IndexError(f"rows from 0 to {len(self) - 1} exist")
        if len(self._items) == 1:
            found = np.take(self._items[0], rows)
        else:
            shard = np.searchsorted(self.starts, rows, side="right") - 1
            found = self._whole[self._first[shard] + (rows - self.starts[shard]) * self._step]
        return found.view(self.maps[0].dtype).reshape(len(rows), self.width)

    def in_memory(self) -> RowSource:
        """The same rows as one array in memory."""
        return RowSource([np.concatenate(self.maps)], self.dtype)

    def on_device(self, device: str) -> torch.Tensor:
        """All rows as one tensor there."""
        import torch

        kind = getattr(torch, self.dtype)
        whole = torch.empty(len(self), self.width, dtype=kind, device=device)
        for start, rows in zip(self.starts, self.maps, strict=False):
            whole[start : start + len(rows)] = to_tensor(np.array(rows), self.dtype).to(device)
        return whole


@dataclass(frozen=True)
class _Memory:
    """A stretch of memory, as numpy asks for it."""

    __array_interface__: dict[str, Any]


def spanning(shards: Sequence[np.ndarray]) -> tuple[np.ndarray, Int[np.ndarray, "shards"], int]:
    """One view over the memory of all shards, so that rows of many are gathered by one call and copied once.

    The view has an item at every multiple of ``unit`` bytes, the largest by which all rows of all shards can be
    reached, so its items overlap. Only those that are rows may be read: between the shards lies what is not theirs.

    Args:
        shards: contiguous, one opaque item a row; they have to outlive the view.

    Returns:
        The view, the item at which each shard begins, and how many items further on its next row begins.
    """
    size = shards[0].dtype.itemsize
    # An empty shard has no memory of its own; its place does not matter.
    first = next((_address(rows) for rows in shards if len(rows)), _address(shards[0]))
    places = np.array([_address(rows) if len(rows) else first for rows in shards], dtype=np.int64)
    base = int(places.min())
    end = max(int(place) + len(rows) * size for place, rows in zip(places, shards, strict=True))
    unit = int(np.gcd.reduce([*(places - base), size]))
    memory = {
        "version": 3,
        "data": (base, True),
        "shape": (max(0, (end - base - size) // unit + 1),),
        "strides": (unit,),
        "typestr": f"|V{size}",
    }
    return np.asarray(_Memory(memory)), (places - base) // unit, size // unit


def _address(rows: np.ndarray) -> int:
    return rows.__array_interface__["data"][0]


def fits(size: int, device: str) -> bool:
    """Whether so many bytes may be held in the memory of the device."""
    return size <= SHARE * free_memory(device)


def free_memory(device: str) -> int:
    """Bytes that are free on an accelerator, or in this computer's memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _allowance())
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _allowance() -> int:
    """What a control group leaves this process, as batch systems and containers set it; without one, no limit."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text(encoding="utf-8").strip()
        return int(limit) - int((root / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 1 << 62

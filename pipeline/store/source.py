"""Stored rows wherever they lie: memory-mapped shards, one array in memory, or a tensor on an accelerator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.store.format import to_tensor

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
            found = np.empty(len(rows), self._row)
            order = np.argsort(rows, kind="stable")
            ordered = rows[order]
            edges = np.searchsorted(ordered, self.starts)
            for shard in np.flatnonzero(np.diff(edges)):
                mine = slice(edges[shard], edges[shard + 1])
                found[order[mine]] = np.take(self._items[shard], ordered[mine] - self.starts[shard])
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

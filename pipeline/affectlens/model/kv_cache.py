"""Keys and values of many texts that are decoded together: rows join and leave, and a step copies nothing.

Texts end together at the right; what stands left of a shorter one is padding and has to be masked. Importing this
module imports transformers, on whose cache layers it rests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE = 64
"""Positions that are allocated ahead."""


class RoomyLayer(DynamicLayer):
    """Keys and values of one block, written into tensors with room to the right.

    transformers' own layer concatenates: every step copies all keys and values so far.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append positions; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = [key_states[:, :, :0], value_states[:, :, :0]]
        used = self.get_seq_length()
        end = used + key_states.shape[-2]
        for place, states in enumerate((key_states, value_states)):
            if end > self._room[place].shape[-2]:
                self._room[place] = _widened(self._room[place][:, :, :used], 0, SPARE + end - used)
            self._room[place][:, :, used:end] = states
        self._show(end)
        return self.keys, self.values  # pyright: ignore[reportReturnType]

    def _show(self, end: int) -> None:
        self.keys, self.values = (room[:, :, :end] for room in self._room)

    def join(self, other: RoomyLayer) -> None:
        """Add the rows of another cache."""
        used, theirs = self.get_seq_length(), other.get_seq_length()
        width = max(used, theirs)
        for place, (mine, its) in enumerate(zip(self._room, other._room, strict=True)):
            more = _widened(its[:, :, :theirs], width - theirs, SPARE)
            self._room[place] = torch.cat([_widened(mine[:, :, :used], width - used, SPARE), more])
        self._show(width)

    def keep(self, rows: Sequence[int], width: int) -> None:
        """Only these rows, each as often as it is named, and of them only so many last positions."""
        used = self.get_seq_length()
        chosen = torch.tensor(rows, device=self._room[0].device)
        self._room = [_widened(room[chosen, :, used - width : used], 0, SPARE) for room in self._room]
        self._show(width)


def _widened(states: Tensor, left: int, right: int) -> Tensor:
    """Zeros before and after the positions."""
    return torch.nn.functional.pad(states, (0, 0, left, right))


class RoomyCache(Cache):
    """Keys and values of all blocks; sliding windows are kept whole and masked by the model."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RoomyLayer)

    @property
    def _roomy(self) -> list[RoomyLayer]:
        return [layer for layer in self.layers if isinstance(layer, RoomyLayer)]

    def join(self, other: RoomyCache) -> None:
        """Add the rows of another cache, which is used up; to an empty one, too."""
        if not self.layers:
            self.layers = other.layers
            return
        for mine, its in zip(self._roomy, other._roomy, strict=True):
            mine.join(its)

    def keep(self, rows: Sequence[int], width: int) -> None:
        """Only these rows, each as often as it is named, and of them only so many last positions; none empties it."""
        if not rows:
            self.layers = []
        for layer in self._roomy:
            layer.keep(rows, width)

    def grafted(self, below: RoomyCache, layer: int) -> None:
        """Take the keys and values of blocks 0 to ``layer`` from another cache."""
        self.layers[: layer + 1] = below.layers[: layer + 1]

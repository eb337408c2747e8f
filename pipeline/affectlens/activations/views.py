"""Token rows as other libraries want them: a ``datasets.Dataset`` and a torch ``Dataset``. Neither copies the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from affectlens.activations.format import to_float32, to_tensor

if TYPE_CHECKING:
    import datasets

    from affectlens.activations.view import ActivationStore, TokenRows

COLUMNS = ("document", "position", "token")


class TorchRows(torch.utils.data.Dataset):
    """Token rows for torch's ``DataLoader``.

    An integer gives one row, a list or array of integers a batch, as a mapping with ``activation`` (in the stored
    type), ``document``, ``position`` and ``token``. For whole batches at once: ``DataLoader(rows, batch_size=None,
    sampler=BatchSampler(RandomSampler(rows), 4096, drop_last=False))``.
    """

    def __init__(self, rows: TokenRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        wanted = np.atleast_1d(np.asarray(index))
        found = {"activation": to_tensor(self.rows.source.take(wanted), self.rows.source.dtype)}
        found |= {name: torch.from_numpy(getattr(self.rows, name)[wanted]) for name in COLUMNS}
        return found if np.ndim(index) else {name: values[0] for name, values in found.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """What ``DataLoader`` asks for a batch of single rows: one gather, then views."""
        found = self[indices]
        return [{name: values[index] for name, values in found.items()} for index in range(len(indices))]


def to_datasets(store: ActivationStore, rows: TokenRows) -> datasets.Dataset:
    """Token rows as a Hugging Face dataset over the memory-mapped shards.

    Columns: ``activation`` (numpy; bfloat16 bits are given as float32), ``document``, ``position``, ``token``, and
    every text column of the corpus (``emotion``, ``topic``, ...).
    """
    import datasets
    import pyarrow
    from datasets.table import InMemoryTable

    width = rows.source.width
    chunks = []
    for shard in rows.source.maps:
        values = pyarrow.Array.from_buffers(
            pyarrow.from_numpy_dtype(shard.dtype), shard.size, [None, pyarrow.py_buffer(np.ascontiguousarray(shard))]
        )
        chunks.append(pyarrow.FixedSizeListArray.from_arrays(values, width))
    columns: dict[str, Any] = {"activation": pyarrow.chunked_array(chunks)}
    columns |= {name: pyarrow.array(getattr(rows, name)) for name in COLUMNS}
    for name, values in store.documents.items():
        if values.dtype.kind == "U":
            levels, codes = np.unique(values, return_inverse=True)
            kept = pyarrow.DictionaryArray.from_arrays(codes.astype(np.int32)[rows.document], levels)
            columns[name] = kept.dictionary_decode()
    found = datasets.Dataset(InMemoryTable(pyarrow.table(columns)))
    if rows.source.dtype != "bfloat16":
        return found.with_format("numpy")
    return found.with_transform(_from_bits)


def _from_bits(batch: dict[str, Any]) -> dict[str, Any]:
    if "activation" not in batch:
        return batch
    return {**batch, "activation": to_float32(np.asarray(batch["activation"], dtype=np.uint16), "bfloat16")}

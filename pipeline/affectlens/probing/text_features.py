"""Feature activations on disk: pooled over texts, read a block of columns at a time, and token by token, sparse.

Whatever is computed from them sees a block of features of all documents, or one document of all features, so memory
does not grow with documents times features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

FILE = "codes.h5"
POOLINGS = {"mean": lambda codes: codes.mean(axis=0), "max": lambda codes: codes.max(axis=0)}
"""How a feature's activations over the tokens of a text become one number."""


def write_part(
    path: Path,
    documents: Sequence[int],
    pooled: Mapping[str, Sequence[Float[np.ndarray, " features"]]],
    tokens: Sequence[Float[np.ndarray, "tokens features"]],
) -> None:
    """Keep one slice of documents.

    Args:
        path: the file.
        documents: their corpus indices.
        pooled: under a name each, one row a document.
        tokens: feature activations of each document's tokens; zeros are not stored.
    """
    import h5py
    from scipy.sparse import csr_array, vstack

    sparse: Any = vstack([csr_array(rows) for rows in tokens], format="csr")
    with h5py.File(path, "w") as opened:
        file: Any = opened
        file["documents"] = np.array(documents)
        file["lengths"] = np.array([len(rows) for rows in tokens])
        for name, rows in pooled.items():
            file[f"pooled/{name}"] = np.stack(rows).astype(np.float32)
        for name in ("data", "indices", "indptr"):
            file[f"tokens/{name}"] = getattr(sparse, name)
        file["tokens"].attrs["features"] = sparse.shape[1]


def join(parts: Sequence[Path], target: Any, documents: int) -> None:
    """Copy the pooled rows of finished parts into ``codes/<name>`` of an open HDF5 file, part by part."""
    import h5py

    start = 0
    for folder in parts:
        with h5py.File(folder / FILE, "r") as opened:
            file: Any = opened
            count = len(file["documents"])
            for name, rows in file["pooled"].items():
                if f"codes/{name}" not in target:
                    target.create_dataset(f"codes/{name}", (documents, rows.shape[1]), np.float32)
                target[f"codes/{name}"][start : start + count] = rows[...]
            start += count


class Columns:
    """Some rows of a stored matrix, read a block of columns at a time; the statistics take it as a matrix.

    Attributes:
        shape: rows, columns.
    """

    def __init__(self, path: Path, name: str, rows: Sequence[int] | Int[np.ndarray, " rows"]) -> None:
        import h5py

        with h5py.File(path, "r") as file:
            data: Any = file[name]
            self._map = np.memmap(path, mode="r", dtype=data.dtype, shape=data.shape, offset=data.id.get_offset())
        self._rows = np.asarray(rows)
        self.shape = (len(self._rows), self._map.shape[1])

    def __getitem__(self, key: tuple[Any, Any]) -> np.ndarray:
        """``[:, columns]``; rows are always all of them."""
        _, columns = key
        if isinstance(columns, slice):
            return np.ascontiguousarray(self._map[self._rows, columns])
        return self._map[np.ix_(self._rows, columns)]


def token_values(
    parts: Sequence[Path], features: Int[np.ndarray, " chosen"]
) -> Iterator[tuple[int, Float[np.ndarray, "tokens chosen"]]]:
    """Per document its corpus index and these features' activations, token by token."""
    for documents, lengths, sparse in _slices(parts):
        values = sparse[:, features].toarray()
        for document, rows in zip(documents, np.split(values, np.cumsum(lengths)[:-1]), strict=True):
            yield int(document), rows


def token_matrix(parts: Sequence[Path], wanted: set[int]) -> tuple[Any, Int[np.ndarray, " tokens"]]:
    """All tokens of some documents as one sparse matrix by columns, and each token's document."""
    from scipy.sparse import vstack

    kept, owners = [], []
    for documents, lengths, sparse in _slices(parts):
        mine = np.repeat(np.isin(documents, sorted(wanted)), lengths)
        kept.append(sparse[mine])
        owners.append(np.repeat(documents, lengths)[mine])
    return vstack(kept, format="csc"), np.concatenate(owners)


def _slices(parts: Sequence[Path]) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    import h5py
    from scipy.sparse import csr_array

    for folder in parts:
        with h5py.File(folder / FILE, "r") as opened:
            file: Any = opened
            arrays = tuple(file[f"tokens/{name}"][...] for name in ("data", "indices", "indptr"))
            lengths = file["lengths"][...]
            shape = (int(lengths.sum()), int(file["tokens"].attrs["features"]))
            yield file["documents"][...], lengths, csr_array(arrays, shape=shape)

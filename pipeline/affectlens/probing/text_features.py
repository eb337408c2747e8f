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

from affectlens.files import open_hdf5

FILE = "codes.h5"
POOLINGS = {"mean": lambda codes: codes.mean(axis=0), "max": lambda codes: codes.max(axis=0)}
"""How a feature's activations over the tokens of a text become one number."""


def write_part(
    path: Path,
    documents: Sequence[int],
    pooled: Mapping[str, Sequence[Float[np.ndarray, " features"]]],
    tokens: Sequence[Any],
) -> None:
    """Keep one slice of documents.

    Args:
        path: the file.
        documents: their corpus indices.
        pooled: under a name each, one row a document.
        tokens: feature activations of each document's tokens [tokens, features], dense or (so that memory does not
            grow with tokens times features) sparse; zeros are not stored.
    """
    from scipy.sparse import csr_array, vstack

    sparse: Any = vstack([csr_array(rows) for rows in tokens], format="csr")
    with open_hdf5(path, "w") as opened:
        file: Any = opened
        file["documents"] = np.array(documents)
        file["lengths"] = np.array([rows.shape[0] for rows in tokens])
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


def keep_tokens(parts: Sequence[Path], target: Any, features: Int[np.ndarray, " chosen"]) -> None:
    """Copy some features' activations, token by token, into ``tokens`` of an open HDF5 file, sparse."""
    from scipy.sparse import vstack

    kept = [(documents, lengths, sparse[:, features]) for documents, lengths, sparse in _slices(parts)]
    whole: Any = vstack([sparse for _, _, sparse in kept], format="csr")
    for name in ("data", "indices", "indptr"):
        target[f"tokens/{name}"] = getattr(whole, name)
    target["tokens/features"] = features
    target["tokens/documents"] = np.concatenate([documents for documents, _, _ in kept])
    target["tokens/lengths"] = np.concatenate([lengths for _, lengths, _ in kept])


class TokenFeatures:
    """Some features' activations at every token, sparse.

    Attributes:
        features: numbers of the features, in the order of the columns.
    """

    def __init__(self, path: Path) -> None:
        import h5py
        from scipy.sparse import csr_array

        with h5py.File(path, "r") as opened:
            file: Any = opened
            arrays = tuple(file[f"tokens/{name}"][...] for name in ("data", "indices", "indptr"))
            lengths, documents = file["tokens/lengths"][...], file["tokens/documents"][...]
            self.features: np.ndarray = file["tokens/features"][...]
        self._sparse = csr_array(arrays, shape=(int(lengths.sum()), len(self.features)))
        ends = np.cumsum(lengths)
        self._spans = {
            int(each): (end - length, end) for each, length, end in zip(documents, lengths, ends, strict=True)
        }
        self._column = {int(feature): column for column, feature in enumerate(self.features)}

    def of(
        self, documents: Sequence[int], features: Int[np.ndarray, " wanted"]
    ) -> tuple[Any, Int[np.ndarray, " tokens"]]:
        """The tokens of some documents as a sparse matrix [tokens, wanted] by columns, and each token's document."""
        spans = [self._spans[document] for document in documents]
        rows = np.concatenate([np.arange(start, end) for start, end in spans])
        owners = np.repeat(documents, [end - start for start, end in spans])
        columns = np.array([self._column[int(feature)] for feature in features])
        return self._sparse[rows].tocsc()[:, columns], owners


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

"""Writing one shard: its layout first, then rows in whatever order batches bring them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from affectlens.activations.format import FORMAT, FORMAT_VERSION, STORED
from affectlens.errors import Unavailable
from affectlens.files import CheckedFile

PAGE = 4096


class ShardWriter:
    """One HDF5 file of contiguous datasets.

    First :meth:`add` and :meth:`reserve` lay it out; after :meth:`begin`, :meth:`put` fills what was reserved, by plain
    writes at the datasets' places in the file, so that nothing is held back in memory. Used as a context manager; on
    leaving, the file is complete and on the disk.

    Args:
        path: where to write; a file there is replaced.
        attributes: of the file, besides the format and its version.

    Raises:
        UserError: the disk refuses a byte.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._written: dict[str, np.ndarray] = {}
        self._added: dict[str, np.ndarray] = {}
        self._descriptor: int | None = None
        # Page-aligned datasets, so that a memory map of one does not share its first page with another.
        versions = ("earliest", "v110")
        with self._disk():
            self._stream = path.open("wb+", buffering=0)
            self._checked = CheckedFile(self._stream)
            self._file = h5py.File(
                self._checked, "w", libver=versions, alignment_threshold=PAGE, alignment_interval=PAGE
            )
            self._file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, **attributes})

    def add(self, name: str, values: np.ndarray) -> None:
        """A dataset that is known at once."""
        with self._disk():
            self._create(name, values.shape, values.dtype)
        self._written[name] = np.zeros(len(values), dtype=bool)
        self._added[name] = values

    def add_text(self, name: str, values: Sequence[str], width: int) -> None:
        """A column of texts of at most ``width`` UTF-8 bytes."""
        kind = h5py.string_dtype("utf-8", max(1, width))
        self.add(name, np.array([text.encode() for text in values], dtype=kind))

    def reserve(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """A dataset of ``float32``, ``float16`` or ``bfloat16`` rows that are yet to come."""
        with self._disk():
            self._create(name, shape, STORED[dtype]).attrs["dtype"] = dtype
        self._written[name] = np.zeros(shape[0], dtype=bool)

    def _create(self, name: str, shape: tuple[int, ...], kind: Any) -> h5py.Dataset:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.CONTIGUOUS)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_obj_track_times(False)  # equal runs have to give equal bytes
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        stored = h5py.h5t.py_create(kind, logical=True)
        space = h5py.h5s.create_simple(shape)
        return h5py.Dataset(h5py.h5d.create(self._file.id, name.encode(), stored, space, properties, links))

    def begin(self) -> None:
        """The layout is complete; rows may come."""
        for name, written in self._written.items():
            if len(written):
                data = self._file[name]
                assert isinstance(data, h5py.Dataset)
                self._places[name] = (data.id.get_offset(), data.dtype.itemsize * int(np.prod(data.shape[1:])))
        with self._disk():
            self._file.close()
            self._stream.close()
            self._checked.require_written()
            self._descriptor = os.open(self._path, os.O_WRONLY)
        # HDF5 flushes its own buffers when objects die, and swallows what the disk refuses then.
        for name, values in self._added.items():
            if len(values):
                self.put(name, 0, values)
        self._added.clear()

    def put(self, name: str, row: int, values: np.ndarray) -> None:
        """Rows of a reserved dataset, from ``row`` on, as they are stored.

        Raises:
            ValueError: a row that was written already, or that was not reserved.
        """
        assert self._descriptor is not None
        start, size = self._places[name]
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        view = memoryview(flat)  # pyright: ignore[reportArgumentType]
        assert len(view) % size == 0
        rows = slice(row, row + len(view) // size)
        if rows.stop > len(self._written[name]) or self._written[name][rows].any():
            raise ValueError(f"{name}: rows {rows.start} to {rows.stop - 1} are written twice or were not reserved")
        self._written[name][rows] = True
        offset = start + row * size
        with self._disk():
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """What the disk refuses becomes one sentence."""
        try:
            yield
            self._checked.require_written()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
            raise Unavailable(
                f"{self._path}: the disk refuses the shard ({reason}); free space or set `cache:` to a larger disk and "
                "run again, finished parts are kept"
            ) from error

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is None:
            with suppress(OSError):  # what it could not write has been told already
                self._file.close()
                self._stream.close()
            return
        try:
            if kind is None:
                unwritten = [name for name, written in self._written.items() if not written.all()]
                if unwritten:
                    raise ValueError(f"rows never written: {unwritten}")
                with self._disk():
                    os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

"""A finished activation cache as later stages see it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.activations.format import FORMAT, FORMAT_VERSION, INDEX, STORED, group, to_float32
from affectlens.activations.source import Keep, RowSource, fits
from affectlens.errors import DamagedResult, UserError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int

    from affectlens.activations.batches import Batches

RESIDUAL = "resid_post"


class TokenRows:
    """One site's values at every text token of one layer, in the order documents were cached, memory-mapped.

    Attributes:
        source: the rows as they are stored.
    """

    def __init__(self, store: ActivationStore, source: RowSource) -> None:
        self._store = store
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def document(self) -> Int[np.ndarray, "rows"]:
        """Corpus index of each row's document."""
        return self._store.column("rows/document")

    @cached_property
    def position(self) -> Int[np.ndarray, "rows"]:
        """Text position of each row."""
        return self._store.column("rows/position")

    @cached_property
    def token(self) -> Int[np.ndarray, "rows"]:
        """Token id of each row."""
        return self._store.column("rows/token")

    def read(self, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n d_model"]:
        """These rows, in the order given, as float32."""
        return to_float32(self.source.take(np.asarray(rows)), self.source.dtype)

    @cached_property
    def _rows_of(self) -> dict[int, tuple[int, int]]:
        counts = self._store.column("documents/tokens").astype(np.int64)
        ends = np.cumsum(counts)
        indices = self._store.column("documents/index")
        return {
            int(index): (int(end - count), int(end)) for index, count, end in zip(indices, counts, ends, strict=True)
        }

    def rows_of(self, documents: Iterable[int]) -> Int[np.ndarray, "n"]:
        """Numbers of all rows of these documents, ascending; what ``batches(rows=...)`` takes."""
        return np.flatnonzero(np.isin(self.document, sorted(documents)))

    def span(self, document: int) -> tuple[int, int]:
        """First row of a document, and the row after its last."""
        return self._rows_of[document]

    def of(self, document: int) -> Float[np.ndarray, "tokens d_model"]:
        """All rows of one document, in text order, as float32."""
        return self.read(np.arange(*self.span(document)))


class ActivationStore:
    """A finished activation cache.

    Attributes:
        folder: the result folder.
        index: what ``index.json`` holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if self.index.get("format") != FORMAT or self.index.get("format_version") != FORMAT_VERSION:
            raise DamagedResult(f"{folder / INDEX}: not an activation cache of format version {FORMAT_VERSION}; rerun")
        for shard in self.index["shards"]:
            if shard["dtype"] != self.index["dtype"]:
                raise DamagedResult(
                    f"{folder / shard['file']}: its rows are {shard['dtype']}, but the cache is read as "
                    f"{self.index['dtype']}; set `model.dtype` to one type and run the study again"
                )
        self._sources: dict[tuple[int, str, bool], RowSource] = {}
        self._resident: dict[tuple[int, str, str], torch.Tensor] = {}

    @property
    def d_model(self) -> int:
        return self.index["d_model"]

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose residual stream is kept per document, ascending."""
        return tuple(layer for layer, site in self.index["pooled_sites"] if site == RESIDUAL)

    @property
    def token_layers(self) -> tuple[int, ...]:
        """Layers whose residual stream is kept token by token, ascending."""
        return tuple(layer for layer, site in self.index["token_sites"] if site == RESIDUAL)

    def mean_norm(self, layer: int, site: str = RESIDUAL) -> float:
        """Mean Euclidean norm over the text tokens: of the residual stream, the unit of steering strength."""
        self._require([*self.index["token_sites"], *self.index["pooled_sites"]], layer, site, "pooled_layers")
        return self.index["norm_sum"][str(layer)][site] / self.index["rows"]

    def pooled(self, layer: int, *, site: str = RESIDUAL, span: str | None = None) -> Float[np.ndarray, "docs d_model"]:
        """Mean over each document's tokens, in corpus order, float32.

        Args:
            layer: which layer.
            site: ``resid_pre``, ``resid_post``, ``attn_out`` or ``mlp_out``.
            span: the mean over the tokens of this named span or speaker, NaN where a document has none; by default over
                the text from ``first_token`` on.

        Raises:
            UserError: the cache does not hold it; says which key keeps it.
        """
        if span is None and not self.index["means"]:
            raise UserError(f"{self.folder}: means per text were not kept; set `activations.means: true`")
        self._require(self.index["pooled_sites"], layer, site, "pooled_layers")
        if span is not None and span not in self.index["spans"]:
            raise UserError(f"{self.folder}: no means over `{span}` are kept; add it to `activations.spans`")
        return self._documents(f"{group(layer, site)}/{'mean' if span is None else f'span/{span}'}")

    def at(self, layer: int, position: str, *, site: str = RESIDUAL) -> Float[np.ndarray, "docs d_model"]:
        """Values at a named read position of each document, in corpus order, float32; NaN where a document has none.

        Raises:
            UserError: the cache does not hold it; says which key keeps it.
        """
        self._require(self.index["pooled_sites"], layer, site, "pooled_layers")
        if position not in self.index["positions"]:
            raise UserError(f"{self.folder}: position `{position}` was not read; add it to `activations.positions`")
        return self._documents(f"{group(layer, site)}/at/{position}")

    def _documents(self, name: str) -> np.ndarray:
        values = self.column(name)
        ordered = np.empty_like(values)
        ordered[self.column("documents/index")] = values
        return ordered

    @cached_property
    def documents(self) -> dict[str, np.ndarray]:
        """The corpus's columns (``kind``, ``emotion``, ``topic``, ...) and ``tokens``, in its order."""
        found = {name: self._documents(f"documents/{name}") for name in ("tokens", *self.index["columns"])}
        return {name: np.char.decode(each, "utf-8") if each.dtype.kind == "S" else each for name, each in found.items()}

    def spans(self, name: str) -> dict[int, tuple[tuple[int, int], ...]]:
        """Ranges of text positions of a named span or speaker, by document; documents without it are left out."""
        names = self.column("spans/name")
        found: dict[int, tuple[tuple[int, int], ...]] = {}
        for row in np.flatnonzero(names == name.encode()):
            document, start, end = (int(self._span_columns[key][row]) for key in ("document", "start", "end"))
            found[document] = (*found.get(document, ()), (start, end))
        return found

    @cached_property
    def _span_columns(self) -> dict[str, np.ndarray]:
        return {key: self.column(f"spans/{key}") for key in ("document", "start", "end")}

    def tokens(self, layer: int, site: str = RESIDUAL) -> TokenRows:
        """Token-level rows, memory-mapped.

        Raises:
            UserError: the cache does not hold them; says which key keeps them.
            DamagedResult: a shard is gone or cut short.
        """
        return TokenRows(self, self._source(layer, site, in_memory=False))

    def batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int = 0,
        *,
        step: int = 0,
        steps: int | None = None,
        layer: int | None = None,
        site: str = RESIDUAL,
        rows: Int[np.ndarray, "n"] | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        keep: Keep = "auto",
        prefetch: int | None = None,
    ) -> Batches:
        """Token rows in a random order as tensors: one epoch, each row once, or ``steps`` full batches.

        The order depends on ``seed``, ``epoch`` and the number of rows alone: not on where rows lie, nor on what was
        read before. To go on after an interruption, give the ``step`` that comes next. So a training run is::

            rows = store.tokens(layer).rows_of(training_documents)
            for batch in store.batches(4096, seed, steps=20_000, step=done, rows=rows, dtype=torch.float32): ...

        Args:
            batch_size: rows of each batch; the last one of an epoch may be shorter.
            seed: names the family of orders.
            epoch: names the order.
            step: the first batch that is wanted.
            steps: batches from the first one of ``epoch`` on, epoch after epoch without a gap, all of the same size.
            layer: which layer; needed where several are kept.
            site: which site.
            rows: only these row numbers, for example those of training documents.
            device: where the batches are wanted.
            dtype: type of the batches; the stored one when None.
            keep: hold all rows in the memory of the device (``memory``), read them from the memory-mapped shards
                (``disk``), or the former if they take no more than half of what is free (``auto``).
            prefetch: batches that are fetched ahead, each by a thread; 2 from memory and 8 from disk when None.

        Raises:
            UserError: the cache does not hold such rows.
        """
        from affectlens.activations.batches import IN_MEMORY, ON_DISK, Batches

        source = self._source(self.only_layer(layer, site), site, in_memory=False)
        resident, ahead = None, ON_DISK
        if keep == "memory" or (keep == "auto" and fits(source.nbytes, device)):
            ahead = IN_MEMORY
            if device.startswith("cuda"):
                resident = self._on_device(self.only_layer(layer, site), site, device)
            else:
                source = self._source(self.only_layer(layer, site), site, in_memory=True)
        return Batches(
            source,
            resident,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            step=step,
            steps=steps,
            chosen=None if rows is None else np.asarray(rows),
            device=device,
            dtype=dtype,
            prefetch=ahead if prefetch is None else prefetch,
        )

    def column(self, name: str) -> np.ndarray:
        """One dataset of every shard, joined, in the order of the shards.

        Raises:
            DamagedResult: a shard is gone or cut short.
        """
        import h5py

        found = []
        for shard in self.index["shards"]:
            with h5py.File(self._existing(shard), "r") as file:
                found.append(file[name][...])  # pyright: ignore[reportIndexIssue]
        return np.concatenate(found)

    def only_layer(self, layer: int | None = None, site: str = RESIDUAL) -> int:
        """The layer itself, or where none is given the only one whose token rows are kept.

        Raises:
            UserError: rows of several layers are kept.
        """
        if layer is not None:
            return layer
        kept = [each for each, name in self.index["token_sites"] if name == site]
        if len(kept) != 1:
            raise UserError(f"{self.folder}: token rows of {site} are kept for layers {kept}; say which one to read")
        return kept[0]

    def _require(self, kept: list[list[Any]], layer: int, site: str, key: str) -> None:
        if [layer, site] not in kept:
            held = ", ".join(sorted({f"{name} of layer {each}" for each, name in kept})) or "nothing"
            raise UserError(
                f"{self.folder}: {site} of layer {layer} is not kept (there is {held}); "
                + (f"add it to `activations.{key}`" if kept else "set `activations.token_rows: true`")
                + ("" if site == RESIDUAL else " and `activations.sites`")
            )

    def _source(self, layer: int, site: str, *, in_memory: bool) -> RowSource:
        self._require(self.index["token_sites"], layer, site, "token_layers")
        key = (layer, site, in_memory)
        if key not in self._sources:
            if in_memory:
                self._sources[key] = self._source(layer, site, in_memory=False).in_memory()
            else:
                maps = [self._map(shard, f"{group(layer, site)}/rows") for shard in self.index["shards"]]
                self._sources[key] = RowSource(maps, self.index["dtype"])
        return self._sources[key]

    def _on_device(self, layer: int, site: str, device: str) -> torch.Tensor:
        key = (layer, site, device)
        if key not in self._resident:
            self._resident[key] = self._source(layer, site, in_memory=False).on_device(device)
        return self._resident[key]

    def _map(self, shard: dict[str, Any], name: str) -> np.ndarray:
        """A read-only memory map of one shard's token rows, in their stored type."""
        shape, kind = (shard["rows"], self.d_model), STORED[self.index["dtype"]]
        path, offset = self._existing(shard), shard["offsets"][name]
        return np.memmap(path, mode="r", dtype=kind, shape=shape, offset=offset) if offset else np.empty(shape, kind)

    def _existing(self, shard: dict[str, Any]) -> Path:
        path = self.folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            fault = "is gone" if size is None else f"has {size} bytes instead of {shard['bytes']}"
            raise DamagedResult(
                f"{path}: a shard of the activation cache {fault}; run the study again to compute just that part anew"
            )
        return path

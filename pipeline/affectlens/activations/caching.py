"""One pass of the model over the texts of a part: batches are read, reduced on the device, and written while the next
ones are computed.

All arithmetic happens in the computing thread, in an order that only the part decides; the writing thread moves bytes.
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange

from affectlens.activations.format import group, to_bits
from affectlens.activations.writing import ShardWriter
from affectlens.errors import UserError
from affectlens.model.reading import Readable, Site
from affectlens.model.subject import resolve_dtype
from affectlens.model.tokens import Text, Window, pad, plan_batches, windows

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Bool, Float, Float64, Int
    from torch import Tensor

    from affectlens.activations.config import ActivationsConfig
    from affectlens.corpus.documents import Document
    from affectlens.model.subject import ModelConfig

COLUMNS = ("kind", "emotion", "topic", "narrator")
"""Of the corpus, kept per document."""
MEAN = "mean"
IN_FLIGHT = 2
"""Batches that may wait to be written: bounds memory, and hides a slow disk behind the computation."""


@dataclass(frozen=True)
class Wanted:
    """What is kept of each pass.

    Attributes:
        token_sites: kept at every text token.
        pooled_sites: kept per document, in each of the ways below.
        means: the mean over text tokens from ``first_token`` on (Sofroniew et al. 2026: from the 50th).
        spans: the means over these named spans or speakers.
        positions: the values at these read positions.
        storage: type of the token rows.
    """

    token_sites: tuple[Site, ...]
    pooled_sites: tuple[Site, ...]
    means: bool
    first_token: int
    spans: tuple[str, ...]
    positions: tuple[str, ...]
    storage: torch.dtype

    @classmethod
    def of(cls, config: ActivationsConfig, model: ModelConfig, device: str) -> Wanted:
        """What a study asks for, on the device that computes it."""

        def sites(layers: set[int]) -> tuple[Site, ...]:
            return tuple(Site(layer, name) for layer in sorted(layers) for name in sorted(config.sites))

        tokens = {model.layer, *config.token_layers} if config.token_rows else set()
        return cls(
            token_sites=sites(tokens),
            pooled_sites=sites({model.layer, *tokens, *config.pooled_layers}),
            means=config.means,
            first_token=config.first_token,
            spans=config.spans,
            positions=config.positions,
            storage=resolve_dtype(model.dtype if config.storage == "auto" else config.storage, device),
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(sorted({*self.token_sites, *self.pooled_sites}))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the means within a site's group."""
        return ((MEAN,) if self.means else ()) + tuple(f"span/{name}" for name in self.spans)


def ranges(text: Text, kind: str, first_token: int) -> tuple[tuple[int, int], ...]:
    """The text positions that a mean of this kind is over."""
    return ((first_token, len(text)),) if kind == MEAN else text.spans.get(kind.removeprefix("span/"), ())


@dataclass
class _Batch:
    """Windows that go through the model together, and where in the padded batch what is wanted lies.

    Attributes:
        lead: positions before the ids in each row.
        first: text position of the first text token that each window reads, and the one after the last.
    """

    texts: Sequence[Text]
    windows: Sequence[Window]
    first: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.first = [
            tuple(np.searchsorted(self.texts[each.text].kept, [each.fresh, each.end]).tolist()) for each in self.windows
        ]

    @property
    def width(self) -> int:
        return max(len(self.texts[each.text].lead) + each.end - each.start for each in self.windows)

    def tokens(self) -> Int[Tensor, "rows positions"]:
        """Right-padded ids, each window behind its text's lead."""
        texts = [self.texts[each.text] for each in self.windows]
        return pad(
            [[*text.lead, *text.ids[each.start : each.end]] for text, each in zip(texts, self.windows, strict=True)],
            "cpu",
        )

    def columns(self, row: int, start: int, end: int) -> Int[np.ndarray, "n"]:
        """Where in the row the text positions from ``start`` to before ``end`` lie, if this window reads them."""
        low, high = self.first[row]
        each = self.windows[row]
        text = self.texts[each.text]
        return text.kept[max(low, start) : max(0, min(high, end))] - each.start + len(text.lead)

    def read(self) -> Bool[Tensor, "rows positions"]:
        """Which positions are text tokens that this batch reads."""
        found = np.zeros((len(self.windows), self.width), dtype=bool)
        for row, (low, high) in enumerate(self.first):
            found[row, self.columns(row, low, high)] = True
        return torch.from_numpy(found)

    def weights(self, wanted: Wanted) -> Float[Tensor, "rows kinds positions"]:
        """1 where a position counts towards a mean."""
        found = np.zeros((len(self.windows), len(wanted.kinds), self.width), dtype=np.float32)
        for row, each in enumerate(self.windows):
            for index, kind in enumerate(wanted.kinds):
                for start, end in ranges(self.texts[each.text], kind, wanted.first_token):
                    found[row, index, self.columns(row, start, end)] = 1
        return torch.from_numpy(found)

    def places(self, names: Sequence[str]) -> list[tuple[int, str, int]]:
        """(row, name, column) of every read position that this batch reads."""
        found = []
        for row, each in enumerate(self.windows):
            text = self.texts[each.text]
            for name in names:
                index = text.places.get(name, -1)
                if each.fresh <= index < each.end:
                    found.append((row, name, len(text.lead) + index - each.start))
        return found


@dataclass(frozen=True)
class _Reading:
    """What one batch gives at one site, on its way to the disk.

    Attributes:
        rows: the text tokens of all windows, one window after the other; None where they are not kept.
        sums: sum over each kind of mean; None where nothing is kept per document.
        places: values at the read positions, in the order of ``_Batch.places``.
        norms: sum of the Euclidean norms of each window's text tokens.
    """

    rows: Tensor | None
    sums: Float[Tensor, "windows kinds d_model"] | None
    places: Float[Tensor, "places d_model"] | None
    norms: Float64[Tensor, "windows"]


class Caching:
    """Fills one shard.

    Args:
        reader: the loaded model.
        wanted: what is kept.
        documents: of this part.
        texts: the same, tokenised.
    """

    def __init__(self, reader: Readable, wanted: Wanted, documents: Sequence[Document], texts: Sequence[Text]) -> None:
        self._reader, self._wanted = reader, wanted
        self._documents, self._texts = documents, texts
        self._first_rows = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
        self._open: dict[tuple[int, Site], tuple[int, np.ndarray, float]] = {}
        self._windows_of: dict[int, int] = {}

    def run(
        self, writer: ShardWriter, *, budget: int, window: int, overlap: int, progress: Callable[[float], None]
    ) -> None:
        """Read every text once and write what is wanted.

        Args:
            writer: a shard that nothing was laid out in yet.
            budget: most padded tokens of a batch.
            window: most tokens that go through the model at once, begin token included.
            overlap: tokens of the window before that are run again as context.
            progress: told of texts done.

        Raises:
            UserError: a value is not finite, or the disk refuses it.
        """
        plan = self._plan(window, overlap)
        self._lay_out(writer)
        lead = [len(self._texts[each.text].lead) for each in plan]
        lengths = [before + each.end - each.start for before, each in zip(lead, plan, strict=True)]
        pending: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="writing") as pool:
            for indices in plan_batches(lengths, budget):
                batch = _Batch(self._texts, [plan[index] for index in indices])
                readings, ready = self._compute(batch)
                pending.append(pool.submit(self._write, writer, batch, readings, ready))
                while len(pending) > IN_FLIGHT:
                    pending.popleft().result()
                progress(sum(1 / self._windows_of[each.text] for each in batch.windows))
                if self._reader.device == "cpu":
                    _close_holes()
            for waiting in pending:
                waiting.result()

    def _plan(self, limit: int, overlap: int) -> list[Window]:
        plan: list[Window] = []
        for index, text in enumerate(self._texts):
            cut = windows(index, len(text.ids), limit - len(text.lead), overlap)
            self._windows_of[index] = len(cut)
            plan += cut
        return plan

    def _lay_out(self, writer: ShardWriter) -> None:
        texts, wanted, width = self._texts, self._wanted, self._reader.width
        indices = np.array([document.index for document in self._documents], dtype=np.int32)
        counts = np.array([len(text) for text in texts], dtype=np.int32)
        writer.add("documents/index", indices)
        writer.add("documents/tokens", counts)
        writer.add("documents/windows", np.array(list(self._windows_of.values()), dtype=np.int32))
        writer.add("documents/first_row", self._first_rows[:-1].astype(np.int64))
        writer.add("rows/document", np.repeat(indices, counts))
        writer.add("rows/position", np.concatenate([np.arange(count, dtype=np.int32) for count in counts]))
        writer.add("rows/token", np.concatenate([text.ids[text.kept] for text in texts]).astype(np.int32))
        storage = str(wanted.storage).removeprefix("torch.")
        for site in wanted.sites:
            folder = group(site.layer, site.name)
            if site in wanted.token_sites:
                writer.reserve(f"{folder}/rows", (int(counts.sum()), width), storage)
            writer.reserve(f"{folder}/norms", (len(texts),), "float64")
            if site in wanted.pooled_sites:
                for name in (*wanted.kinds, *(f"at/{position}" for position in wanted.positions)):
                    writer.reserve(f"{folder}/{name}", (len(texts), width), "float32")
        writer.begin()
        self._mark_missing(writer)

    def _mark_missing(self, writer: ShardWriter) -> None:
        """Documents without a span or a read position get rows that are not numbers."""
        nothing = np.full(self._reader.width, np.nan, dtype=np.float32)
        for index, text in enumerate(self._texts):
            lacking = [kind for kind in self._wanted.kinds if not ranges(text, kind, self._wanted.first_token)]
            lacking += [f"at/{name}" for name in self._wanted.positions if name not in text.places]
            for site in self._wanted.pooled_sites:
                for name in lacking:
                    writer.put(f"{group(site.layer, site.name)}/{name}", index, nothing)

    def _compute(self, batch: _Batch) -> tuple[Mapping[Site, _Reading], Any]:
        """Run the model on a batch and reduce what it gives; on an accelerator this only queues the work."""
        device = self._reader.device
        found = self._reader.activations(batch.tokens().to(device), self._wanted.sites)
        with torch.inference_mode():
            read = batch.read().to(device)
            weights = batch.weights(self._wanted).to(device)
            places = batch.places(self._wanted.positions)
            at = torch.tensor([(row, column) for row, _, column in places], dtype=torch.long, device=device)
            readings = {
                site: self._reduce(site, values, read, weights, at.reshape(-1, 2)) for site, values in found.items()
            }
        if not device.startswith("cuda"):
            return readings, None
        event = torch.cuda.Event()
        event.record()
        return readings, event

    def _reduce(
        self,
        site: Site,
        values: Float[Tensor, "rows positions d_model"],
        read: Bool[Tensor, "rows positions"],
        weights: Float[Tensor, "rows kinds positions"],
        at: Int[Tensor, "places 2"],
    ) -> _Reading:
        rows = None
        if site in self._wanted.token_sites:
            flat = rearrange(values, "rows positions d_model -> (rows positions) d_model")
            rows = flat.index_select(0, rearrange(read, "rows positions -> (rows positions)").nonzero()[:, 0])
            rows = _to_host(rows.to(self._wanted.storage))
        exact = values.float()
        norms = exact.norm(dim=-1).masked_fill(~read, 0)
        pooled = site in self._wanted.pooled_sites
        return _Reading(
            rows=rows,
            sums=_to_host(torch.bmm(weights, exact)) if pooled else None,
            places=_to_host(values[at[:, 0], at[:, 1]].float()) if pooled else None,
            norms=_to_host(norms.double().sum(dim=-1)),
        )

    def _write(self, writer: ShardWriter, batch: _Batch, readings: Mapping[Site, _Reading], ready: Any) -> None:
        if ready is not None:
            ready.synchronize()
        places = batch.places(self._wanted.positions)
        for site, reading in readings.items():
            folder, done = group(site.layer, site.name), 0
            for row, (each, (low, high)) in enumerate(zip(batch.windows, batch.first, strict=True)):
                sums = np.zeros((0, self._reader.width)) if reading.sums is None else reading.sums[row].double().numpy()
                # Norms are finite if every token read is; sums also tell of what padding might have spoilt.
                self._require_finite(site, each.text, reading.norms[row].numpy(), sums)
                if reading.rows is not None and high > low:
                    own = to_bits(reading.rows[done : done + high - low])
                    if self._wanted.storage == torch.float16:
                        self._require_finite(site, each.text, own)
                    writer.put(f"{folder}/rows", int(self._first_rows[each.text]) + low, own)
                    done += high - low
                self._add(writer, site, each.text, sums, float(reading.norms[row]))
            if reading.places is not None:
                for (row, name, _), value in zip(places, reading.places.numpy(), strict=True):
                    self._require_finite(site, batch.windows[row].text, value)
                    writer.put(f"{folder}/at/{name}", batch.windows[row].text, value)

    def _add(self, writer: ShardWriter, site: Site, text: int, sums: np.ndarray, norm: float) -> None:
        """One more window of a text; after the last, its means and norms are written."""
        count, total, norms = self._open.pop((text, site), (0, 0.0, 0.0))
        count, total, norms = count + 1, total + sums, norms + norm
        if count < self._windows_of[text]:
            self._open[text, site] = (count, total, norms)
            return
        folder = group(site.layer, site.name)
        writer.put(f"{folder}/norms", text, np.array([norms]))
        for kind, own in zip(self._wanted.kinds, total, strict=False):
            tokens = sum(end - start for start, end in ranges(self._texts[text], kind, self._wanted.first_token))
            if tokens:
                writer.put(f"{folder}/{kind}", text, (own / tokens).astype(np.float32))

    def _require_finite(self, site: Site, text: int, *arrays: np.ndarray) -> None:
        if not all(np.isfinite(array).all() for array in arrays):
            raise UserError(
                f"layer {site.layer}, corpus document {self._documents[text].index}: {site.name} is not finite in "
                f"{str(self._wanted.storage).removeprefix('torch.')}; set `model.dtype` and `activations.storage` to "
                "float32 or bfloat16, and check the model's weights"
            )


def write_shard(
    path: Path,
    reader: Readable,
    wanted: Wanted,
    config: ActivationsConfig,
    *,
    documents: Sequence[Document],
    texts: Sequence[Text],
    corpus: Sequence[Document],
    progress: Callable[[float], None],
) -> None:
    """Read the texts of one part and write all that is wanted of them.

    Args:
        path: the shard; a file there is replaced.
        reader: the loaded model.
        documents: of this part.
        texts: the same, tokenised.
        corpus: all documents: every shard gives its text columns the same width, so that shards can be joined.
        progress: told of texts done.

    Raises:
        UserError: the model takes too few tokens at once for the overlap that was asked for.
    """
    window = min(config.window, reader.context or config.window)
    overlap = window // 4 if config.overlap is None else config.overlap
    if overlap > window // 2:
        raise UserError(
            f"`activations.overlap: {overlap}`: more than half of the {window} tokens that the model takes at once; "
            "lower it"
        )
    attributes = {
        "d_model": reader.width,
        "computed_in": str(reader.dtype).removeprefix("torch."),
        "means": config.means,
        "first_token": config.first_token,
        "spans": list(config.spans),
        "positions": list(config.positions),
        "columns": list(COLUMNS),
        "window": window,
        "overlap": overlap,
    }
    with ShardWriter(path, attributes) as writer:
        for name in COLUMNS:
            width = max(len(getattr(document, name).encode()) for document in corpus)
            writer.add_text(f"documents/{name}", [getattr(document, name) for document in documents], width)
        rows = [
            (document.index, start, end, name)
            for document, text in zip(documents, texts, strict=True)
            for name, stretches in sorted(text.spans.items())
            for start, end in stretches
        ]
        for column, key in enumerate(("document", "start", "end")):
            writer.add(f"spans/{key}", np.array([row[column] for row in rows], dtype=np.int32))
        names = {message["role"] for document in corpus for message in document.messages}
        names |= {name for document in corpus for name in document.spans}
        writer.add_text("spans/name", [row[3] for row in rows], max((len(name.encode()) for name in names), default=1))
        Caching(reader, wanted, documents, texts).run(
            writer, budget=config.tokens_per_batch, window=window, overlap=overlap, progress=progress
        )


def _close_holes() -> None:
    """Give freed memory back to the system.

    Batches are of ever new sizes, and between them glibc's heap fills with holes: a quarter more memory after a million
    tokens, of which nothing is in use.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none, and need none
        if trim is not None:
            trim(0)


def _to_host(values: Tensor) -> Tensor:
    """On its way to this computer's memory; from an accelerator, complete only once its queue has come that far."""
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)

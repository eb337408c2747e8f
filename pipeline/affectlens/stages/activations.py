"""What the model computes on every text, once: token by token for SAEs, and reduced per text for readouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.activations.config import ActivationsConfig
from affectlens.corpus.documents import Document
from affectlens.errors import UserError
from affectlens.model import subject as subjects
from affectlens.stage import Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.corpus import CorpusStage

if TYPE_CHECKING:
    from affectlens.activations import ActivationStore
    from affectlens.activations.caching import Wanted
    from affectlens.activations.writing import ShardWriter
    from affectlens.model.reading import Readable
    from affectlens.model.tokens import Text

COLUMNS = ("kind", "emotion", "topic", "narrator", "split")
"""Of the corpus, kept per document."""


@register
class ActivationsStage(Stage[ActivationsConfig, "ActivationStore"]):
    """Cache what the model computes as HDF5 shards, one a part."""

    name = "activations"
    version = 3
    config_class = ActivationsConfig
    needs = ("corpus",)
    reads_model = True
    keeps_parts = True
    uploads = False
    unit = "texts"

    @classmethod
    def check(cls, study: StudySettings) -> None:
        known = subjects.shape(study.model)
        for key in ("token_layers", "pooled_layers"):
            for layer in getattr(study.activations, key):
                if layer < 0 or (known is not None and layer >= known.layers):
                    top = f"0 to {known.layers - 1}" if known else "from 0 up"
                    raise ValueError(f"`activations.{key}: {layer}`: {study.model.name} has layers {top}")

    def parts(self) -> Sequence[Part]:
        documents = self.outlook.documents
        size = self.config.texts_per_part
        return [
            Part(f"{start // size:05d}", size=len(documents[start : start + size]), payload={"start": start})
            for start in range(0, len(documents), size)
        ]

    def documents(self, part: Part) -> tuple[Document, ...]:
        """The texts of a part."""
        start = part.payload["start"]
        return self.need(CorpusStage).documents[start : start + self.config.texts_per_part]

    @cached_property
    def wanted(self) -> Wanted:
        """What every pass keeps."""
        from affectlens.activations.caching import Wanted

        return Wanted.of(self.config, self.setting.model, self.setting.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own, without its weights."""
        return subjects.load_tokenizer(self.setting.model, self.setting.models)

    @cached_property
    def reader(self) -> Readable:
        """The model, loaded as far up as it is read."""
        from affectlens.model.reading import open_reader

        setting = self.setting
        layers = max(site.layer for site in self.wanted.sites) + 1
        return open_reader(setting.model, layers, device=setting.device, models=setting.models)

    def disk_bytes(self, parts: Sequence[Part]) -> int:
        from affectlens.activations.size import bytes_needed, count_tokens

        documents = [document for part in parts for document in self.documents(part)]
        if not documents:
            return 0
        shape = subjects.shape(self.setting.model)
        width = shape.width if shape else self.reader.width
        tokens, _ = count_tokens(self.tokenizer, documents)
        return bytes_needed(self.wanted, width=width, tokens=tokens, documents=len(documents), shards=len(parts))

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from affectlens.activations import SHARD
        from affectlens.activations.caching import Caching
        from affectlens.activations.writing import ShardWriter

        documents, texts = self.documents(part), self._tokenised(part)
        window, overlap = self.windows
        caching = Caching(self.reader, self.wanted, documents, texts)
        with ShardWriter(out / SHARD, self._attributes()) as writer:
            self._add_columns(writer, documents, texts)
            caching.run(
                writer,
                budget=self.config.tokens_per_batch,
                window=window,
                overlap=overlap,
                progress=progress,
            )

    @property
    def windows(self) -> tuple[int, int]:
        """Most tokens at once, and how many of the window before are seen again.

        Raises:
            UserError: the model takes too few at once for the overlap that was asked for.
        """
        window = min(self.config.window, self.reader.context or self.config.window)
        overlap = window // 4 if self.config.overlap is None else self.config.overlap
        if overlap > window // 2:
            raise UserError(
                f"`activations.overlap: {overlap}`: more than half of the {window} tokens that "
                f"{self.setting.model.name} takes at once; lower it"
            )
        return window, overlap

    def _attributes(self) -> dict[str, Any]:
        """Of every shard, so that it can be understood alone."""
        config, (window, overlap) = self.config, self.windows
        return {
            "d_model": self.reader.width,
            "computed_in": str(self.reader.dtype).removeprefix("torch."),
            "means": config.means,
            "first_token": config.first_token,
            "spans": list(config.spans),
            "positions": list(config.positions),
            "columns": list(COLUMNS),
            "window": window,
            "overlap": overlap,
        }

    def _add_columns(self, writer: ShardWriter, documents: Sequence[Document], texts: Sequence[Text]) -> None:
        """The corpus's columns and the spans; every shard gives them the same width, so that shards can be joined."""
        import numpy as np

        corpus = self.need(CorpusStage).documents
        for name in COLUMNS:
            width = max(len(getattr(document, name).encode()) for document in corpus)
            writer.add_text(f"documents/{name}", [getattr(document, name) for document in documents], width)
        found = [
            (document.index, start, end, name)
            for document, text in zip(documents, texts, strict=True)
            for name, ranges in sorted(text.spans.items())
            for start, end in ranges
        ]
        for column, key in enumerate(("document", "start", "end")):
            writer.add(f"spans/{key}", np.array([row[column] for row in found], dtype=np.int32))
        names = {message["role"] for document in corpus for message in document.messages}
        names |= {name for document in corpus for name in document.spans}
        writer.add_text("spans/name", [row[3] for row in found], max((len(name.encode()) for name in names), default=1))

    def _tokenised(self, part: Part) -> list[Text]:
        """The texts of a part; those of the next are tokenised while this one is computed."""
        ahead = self._ahead.pop(part.name, None) or self._tokenising.submit(self._tokenise, part)
        parts = self.parts()
        after = [each.name for each in parts].index(part.name) + 1
        self._ahead.clear()
        if after < len(parts):
            self._ahead[parts[after].name] = self._tokenising.submit(self._tokenise, parts[after])
        return ahead.result()

    @cached_property
    def _ahead(self) -> dict[str, Future[list[Text]]]:
        return {}

    @cached_property
    def _tokenising(self) -> ThreadPoolExecutor:
        # One thread does all of it: a tokenizer must not be used by two at once.
        return ThreadPoolExecutor(1, thread_name_prefix="tokenising")

    def _tokenise(self, part: Part) -> list[Text]:
        from affectlens.model.tokens import tokenise

        found = []
        for document in self.documents(part):
            text = tokenise(self.tokenizer, document, self.config.positions)
            least = self.config.first_token if self.config.means else 0
            if len(text) <= least:
                remedy = f"`activations.first_token` is {least}; give a longer text or lower that key"
                raise UserError(
                    f"corpus document {document.index} ({document.emotion or document.kind}, "
                    f"{document.topic or 'neutral'}) has {len(text)} tokens, but "
                    + (remedy if least else "one at least is needed; give it a text")
                )
            found.append(text)
        return found

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from affectlens.activations.joining import write_index

        index = write_index(out, parts)
        return {
            "rows": float(index["rows"]),
            "documents": float(index["documents"]),
            "d_model": float(index["d_model"]),
            **{
                f"mean_norm_layer_{layer}" + ("" if site == "resid_post" else f"_{site}"): total / index["rows"]
                for layer, sites in index["norm_sum"].items()
                for site, total in sites.items()
            },
        }

    @classmethod
    def open(cls, folder: Path) -> ActivationStore:
        from affectlens.activations import ActivationStore

        return ActivationStore(folder)

"""What the model computes on every text, once: token by token for SAEs, and reduced per text for readouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.activations.config import ActivationsConfig
from affectlens.corpus.documents import Document, select
from affectlens.model import subject as subjects
from affectlens.model.config import vocabulary
from affectlens.stage import Metrics, Part, Progress, Stage, StudySettings, paces, register
from affectlens.stages.corpus import CorpusStage

if TYPE_CHECKING:
    from affectlens.activations import ActivationStore
    from affectlens.activations.caching import Wanted
    from affectlens.activations.tokenising import Tokenising
    from affectlens.model.reading import Readable


@register
class ActivationsStage(Stage[ActivationsConfig, "ActivationStore"]):
    """Cache what the model computes as HDF5 shards, one a part."""

    name = "activations"
    version = 4
    config_class = ActivationsConfig
    needs = ("corpus",)
    reads_model = True
    keeps_parts = True
    measured_needs = ("corpus",)
    uploads = False
    unit = "texts"
    pace = paces(other=2.5e-4)

    @classmethod
    def check(cls, study: StudySettings) -> None:
        known = subjects.shape(study.model)
        for key in ("token_layers", "pooled_layers"):
            for layer in getattr(study.activations, key):
                if layer < 0 or (known is not None and layer >= known.layers):
                    top = f"0 to {known.layers - 1}" if known else "from 0 up"
                    raise ValueError(f"`activations.{key}: {layer}`: {study.model.name} has layers {top}")

    @classmethod
    def check_pending(cls, study: StudySettings, tokenizer: Callable[[], Any]) -> None:
        from affectlens.activations.tokenising import require_fitting

        require_fitting(tokenizer(), select(study.corpus), study.activations, vocabulary(study.model))

    def parts(self) -> Sequence[Part]:
        documents = self.outlook.documents
        size = self.config.texts_per_part
        return [
            Part(f"{start // size:05d}", size=len(documents[start : start + size]), payload={"start": start})
            for start in range(0, len(documents), size)
        ]

    def effort(self, part: Part) -> float:
        """Characters, by the share of the model's blocks that they go through."""
        whole, config, start = subjects.shape(self.setting.model), self.config, part.payload["start"]
        layers = (self.setting.model.layer, *config.pooled_layers, *(config.token_layers if config.token_rows else ()))
        through = 1.0 if whole is None else (max(layers) + 1) / whole.layers
        texts = self.outlook.documents[start : start + self.config.texts_per_part]
        return through * sum(len(text.text) or sum(len(each["content"]) for each in text.messages) for text in texts)

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
    def tokenising(self) -> Tokenising:
        """Makes token ids of texts, a part ahead."""
        from affectlens.activations.tokenising import Tokenising

        return Tokenising(self.tokenizer, self.config, vocabulary(self.setting.model))

    @cached_property
    def reader(self) -> Readable:
        """The model, loaded as far up as it is read."""
        from affectlens.model.reading import open_reader

        setting = self.setting
        layers = max(site.layer for site in self.wanted.sites) + 1
        return open_reader(setting.model, layers, device=setting.device, models=setting.models)

    def disk_bytes(self, parts: Sequence[Part]) -> int:
        from affectlens.activations.size import bytes_needed, count_tokens
        from affectlens.activations.tokenising import require_long_enough

        documents = [document for part in parts for document in self.documents(part)]
        if not documents:
            return 0
        require_long_enough(self.tokenizer, documents, self.config)
        shape = subjects.shape(self.setting.model)
        width = shape.width if shape else self.reader.width
        tokens, _ = count_tokens(self.tokenizer, documents)
        return bytes_needed(self.wanted, width=width, tokens=tokens, documents=len(documents), shards=len(parts))

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from affectlens.activations import SHARD
        from affectlens.activations.caching import write_shard

        parts = self.parts()
        after = [each.name for each in parts].index(part.name) + 1
        following = self.documents(parts[after]) if after < len(parts) else ()
        documents = self.documents(part)
        write_shard(
            out / SHARD,
            self.reader,
            self.wanted,
            self.config,
            documents=documents,
            texts=self.tokenising.texts(documents, following),
            corpus=self.need(CorpusStage).documents,
            progress=progress,
        )

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

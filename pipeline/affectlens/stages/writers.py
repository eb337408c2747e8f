"""Other writers: their stories through the model, and what is built on one writer read on another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.activations.config import ActivationsConfig
from affectlens.corpus.documents import CorpusConfig, Document, write_documents, writer_documents
from affectlens.errors import UserError
from affectlens.model import subject as subjects
from affectlens.probing import writers
from affectlens.probing.config import MatchConfig
from affectlens.probing.writers import Writers
from affectlens.stage import NOTHING, Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    from affectlens.activations.caching import Wanted
    from affectlens.model.reading import Readable


@register
class WritersStage(Stage[CorpusConfig, Writers]):
    """Cache what the model computes on other writers' stories, and read them by what each writer's stories build."""

    name = "writers"
    section = "corpus"
    fields = ("evaluate",)
    config_class = CorpusConfig
    # Not `seeded`: parts draw nothing, and the merge's draws follow the seed that is in the fingerprint of its needs.
    needs = ("corpus", "activations", "sae", "directions", "match")
    reads_model = True
    keeps_parts = True
    uploads = False
    unit = "texts"
    switch = "corpus.evaluate"
    headline = (
        ("auroc_difference_of_means_other", "AUROC of difference-of-means directions on other writers' stories"),
        ("auroc_difference_of_means_loss", "by how much that is less than on one's own left-out topics"),
        ("auroc_chosen", "AUROC on a writer left out, built as reads best among the other writers"),
    )
    tables = (writers.METHODS, writers.CONCEPTS, writers.TRANSFER, writers.WAYS)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        return {f"stories of {writer.writer}": writer.path for writer in study.corpus.evaluate}

    def _texts(self) -> dict[str, list[Document]]:
        """Each writer's stories of the studied emotions."""
        emotions = set(self.outlook.emotions)
        return {writer.writer: writer_documents(writer, emotions) for writer in self.config.evaluate}

    @cached_property
    def documents(self) -> dict[str, list[Document]]:
        """The same, read once."""
        return self._texts()

    def parts(self) -> Sequence[Part]:
        size = ActivationsConfig().texts_per_part
        planned = [
            Part(
                f"{writer}-{start // size:05d}",
                size=len(documents[start : start + size]),
                payload={"writer": writer, "start": start, "end": start + size},
            )
            for writer, documents in self.documents.items()
            for start in range(0, len(documents), size)
        ]
        return planned or [Part(NOTHING)]

    def part_reads(self, part: Part) -> Mapping[str, Any] | None:
        if part.name == NOTHING:
            return {}
        texts = json.dumps([asdict(document) for document in self._slice(part)])
        return {
            "texts": hashlib.sha256(texts.encode()).hexdigest(),
            "activations": self.activations.model_dump(mode="json"),
        }

    def _slice(self, part: Part) -> list[Document]:
        return self.documents[part.payload["writer"]][part.payload["start"] : part.payload["end"]]

    @cached_property
    def activations(self) -> ActivationsConfig:
        """The study's own settings, as its cache records them: other writers are read as its own stories are."""
        store = self.need(ActivationsStage)
        index = store.index
        return ActivationsConfig(
            token_layers=store.token_layers,
            pooled_layers=store.layers,
            first_token=index["first_token"],
            window=index["window"],
            overlap=index["overlap"],
            storage=index["dtype"],
        )

    @cached_property
    def wanted(self) -> Wanted:
        """What every pass keeps."""
        from affectlens.activations.caching import Wanted

        return Wanted.of(self.activations, self.setting.model, self.setting.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own, without its weights."""
        return subjects.load_tokenizer(self.setting.model, self.setting.models, converting=False)

    @cached_property
    def reader(self) -> Readable:
        """The model, loaded as far up as it is read."""
        from affectlens.model.reading import open_reader

        layers, setting = max(site.layer for site in self.wanted.sites) + 1, self.setting
        return open_reader(setting.model, layers, device=setting.device, models=setting.models)

    def disk_bytes(self, parts: Sequence[Part]) -> int:
        from affectlens.activations.size import bytes_needed, count_tokens
        from affectlens.activations.tokenising import require_long_enough

        slices = {part.name: self._slice(part) for part in parts if part.name != NOTHING}
        for name, documents in slices.items():
            try:
                require_long_enough(self.tokenizer, documents, self.activations)
            except UserError as error:
                raise UserError(f"`corpus.evaluate`: stories of `{name.rsplit('-', 1)[0]}`: {error}") from None
        documents = [document for each in slices.values() for document in each]
        if not documents:
            return 0
        width, (tokens, _) = self.need(ActivationsStage).d_model, count_tokens(self.tokenizer, documents)
        return bytes_needed(self.wanted, width=width, tokens=tokens, documents=len(documents), shards=len(slices))

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        if part.name != NOTHING:
            from affectlens.activations import SHARD
            from affectlens.activations.caching import write_shard
            from affectlens.activations.tokenising import Tokenising

            documents = self._slice(part)
            write_shard(
                out / SHARD,
                self.reader,
                self.wanted,
                self.activations,
                documents=documents,
                texts=Tokenising(self.tokenizer, self.activations).texts(documents),
                corpus=self.documents[part.payload["writer"]],
                progress=progress,
            )
        else:
            progress(part.size)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from affectlens.activations.joining import write_index
        from affectlens.probing import writer_tables

        for writer, documents in self.documents.items():
            (out / writer).mkdir(exist_ok=True)
            write_documents(out / writer / "documents.jsonl", documents)
            mine = [part.name for part in self.parts() if part.payload.get("writer") == writer]
            write_index(out / writer, mine, shards="../parts")
        read: dict[Any, list[dict[str, Any]]] = {table: [] for table in self.tables}
        metrics: Metrics = {}
        if self.documents:
            found = writer_tables.evaluate(self._pool(out), self.need(DirectionsStage), self.generator)
            read |= {writers.METHODS: found.methods, writers.CONCEPTS: found.concepts}
            read |= {writers.TRANSFER: found.transfer, writers.WAYS: found.ways}
            metrics |= writers.metrics(found.methods, found.ways)
        for table, rows in read.items():
            results.write(out, table, rows)
        return metrics

    def _pool(self, folder: Path) -> Any:
        """All writers' stories as they are read, encoded by the SAE and by the random SAEs of `match`."""
        from affectlens.probing.transfer import Pool

        sae, match = self.need(SaeStage), self.need(MatchStage)
        seeds = MatchStage(MatchConfig(), self.setting, {})
        dictionaries = {"sae": sae, **{name: sae.random(seeds.seed_of(name)) for name in match.random_saes}}
        corpus, store, layer = self.need(CorpusStage), self.need(ActivationsStage), self.setting.model.layer
        return Pool.of(corpus, store, match, dictionaries, Writers(folder), layer)

    @classmethod
    def open(cls, folder: Path) -> Writers:
        return Writers(folder)

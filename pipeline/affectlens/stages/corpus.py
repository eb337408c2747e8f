"""Texts: stories that evoke one emotion concept each, neutral texts, and which of them may be used for what.

Splits are by topic, never by story: stories of one topic share their setting and much of their vocabulary, so a
split by story would let a readout recognise the topic instead of the concept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.config import nearest
from affectlens.corpus import quality as gates
from affectlens.corpus.documents import CHAT, Corpus, CorpusConfig, select, stories
from affectlens.corpus.texts import texts_path
from affectlens.files import write_json
from affectlens.stage import Metrics, Part, Progress, Stage

if TYPE_CHECKING:
    pass


class CorpusStage(Stage[CorpusConfig, Corpus]):
    """Select, split and check the texts."""

    name = "corpus"
    config_class = CorpusConfig
    unit = "texts"

    @classmethod
    def check(cls, study: Any) -> None:
        config: CorpusConfig = study.corpus
        for key in ("stories", "neutral"):
            path = texts_path(key, getattr(config, key))
            if not path.is_file():
                raise ValueError(
                    f"`corpus.{key}: {getattr(config, key)}`: no such file; give a JSONL file, or `embedded`"
                )
        rows = stories(config)
        known = sorted({row["emotion"] for row in rows})
        if config.emotions != "all":
            if len(set(config.emotions)) != len(config.emotions) or len(config.emotions) < 2:
                raise ValueError("`corpus.emotions`: name at least two emotions, each once, or `all`")
            for emotion in config.emotions:
                if emotion not in known:
                    raise ValueError(f"`corpus.emotions: {emotion}`: no story has it; {nearest(emotion, known)}")
        topics = sorted({row["topic"] for row in rows})
        for key in ("validation_topics", "test_topics"):
            for topic in getattr(config, key):
                if topic not in topics:
                    raise ValueError(f"`corpus.{key}: {topic}`: no story has it; {nearest(topic, topics)}")
        if not config.test_topics:
            raise ValueError("`corpus.test_topics`: name at least one; figures need topics that built nothing")
        both = set(config.validation_topics) & set(config.test_topics)
        if both:
            raise ValueError(f"`corpus.test_topics: {min(both)}`: also a validation topic; keep it in one of the two")
        if not set(topics) - set(config.validation_topics) - set(config.test_topics):
            raise ValueError("`corpus.test_topics`: no topic is left to build directions from; hold out fewer")

    @classmethod
    def identities(cls, study: Any) -> dict[str, Path]:
        return {key: texts_path(key, getattr(study.corpus, key)) for key in ("stories", "neutral")}

    def parts(self) -> Sequence[Part]:
        return [Part("all", size=len(stories(self.config)))]

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        documents = select(self.config)
        with (out / "documents.jsonl").open("w", encoding="utf-8") as stream:
            for document in documents:
                row = {key: value for key, value in asdict(document).items() if key not in CHAT or value}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        write_json(out / "quality.json", gates.inspect(documents, ngram=self.config.ngram))
        progress(part.size)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        for name in ("documents.jsonl", "quality.json"):
            (out / name).write_bytes((parts["all"] / name).read_bytes())
        corpus = Corpus(out)
        splits = Counter(document.split for document in corpus.documents)
        totals = corpus.quality["totals"]
        return {
            "documents": float(len(corpus.documents)),
            "concepts": float(len(corpus.emotions)),
            **{f"documents_{split}": float(count) for split, count in sorted(splits.items())},
            **{f"quality_{gate}": float(count) for gate, count in totals.items()},
        }

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        return Corpus(folder)

    @classmethod
    def track(cls, result: Corpus, run: Any) -> None:
        rows = [[name, *counts.values()] for name, counts in result.quality["concepts"].items()]
        columns = ["concept", *next(iter(result.quality["concepts"].values()))]
        run.table("corpus/quality", columns, rows)

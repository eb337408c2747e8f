"""Texts: stories that evoke one emotion concept each, neutral texts, and which of them may be used for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from affectlens import results
from affectlens.corpus import checks, quality
from affectlens.corpus.documents import Corpus, CorpusConfig, select, stories, write_documents
from affectlens.corpus.texts import texts_path
from affectlens.files import write_json
from affectlens.results import Table, integer, number, text
from affectlens.stage import Identity, Metrics, Part, Progress, Stage, StudySettings, paces, register

QUALITY = Table(
    "quality",
    "One concept, or the neutral texts: what the quality checks count of its texts.",
    (
        text("concept", "the emotion; `(neutral)` for texts of none"),
        integer("texts", "texts"),
        number("mean_words", "words of a text, mean"),
        *(integer(gate, f"texts at fault: {gate.replace('_', ' ')}") for gate in quality.GATES),
    ),
    key=("concept",),
)


@register
class CorpusStage(Stage[CorpusConfig, Corpus]):
    """Select, split and check the texts."""

    name = "corpus"
    version = 3
    config_class = CorpusConfig
    fields = tuple(name for name in CorpusConfig.model_fields if name != "evaluate")
    keeps_parts = True
    unit = "texts"
    pace = paces(all=5e-5, merge=1.3e-4)
    tables = (QUALITY,)

    @classmethod
    def check(cls, study: StudySettings) -> None:
        checks.check(study.corpus)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        return {key: texts_path(key, getattr(study.corpus, key)) for key in ("stories", "neutral")}

    def parts(self) -> Sequence[Part]:
        return [Part("all", size=len(stories(self.config)))]

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        write_json(out / "quality.json", quality.inspect(select(self.config), ngram=self.config.ngram))
        progress(part.size)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        (out / "quality.json").write_bytes((parts["all"] / "quality.json").read_bytes())
        # Only here, because topics are merge-only: another split reads and caches nothing again.
        write_documents(out / "documents.jsonl", select(self.config))
        write_json(out / "corpus.json", {"fixed_split": bool(self.config.test_topics)})
        corpus = Corpus(out)
        results.write(out, QUALITY, ({"concept": name, **row} for name, row in corpus.quality["concepts"].items()))
        splits = Counter(document.split for document in corpus.documents)
        return {
            "documents": float(len(corpus.documents)),
            "concepts": float(len(corpus.emotions)),
            **{f"documents_{split}": float(count) for split, count in sorted(splits.items())},
            **{f"quality_{gate}": float(count) for gate, count in corpus.quality["totals"].items()},
        }

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        return Corpus(folder)

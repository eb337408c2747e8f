"""Texts: stories that evoke one emotion concept each, neutral texts, and which of them may be used for what.

Splits are by topic, never by story: stories of one topic share their setting and much of their vocabulary, so a
split by story would let a readout recognise the topic instead of the concept.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from affectlens.config import Config, nearest
from affectlens.corpus import quality as gates
from affectlens.corpus.texts import EMBEDDED, read_jsonl, read_texts, texts_path
from affectlens.errors import UserError
from affectlens.run import manifest
from affectlens.stage import Metrics, Part, Progress, Stage

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool

EMBEDDED_RATINGS = EMBEDDED / "ratings.csv"
"""Valence, arousal and dominance from 1 to 9 of 171 words, judged by a model."""

Split = Literal["train", "validation", "test", "neutral"]
CHAT = ("messages", "spans")
"""Keys that only chats and texts with named stretches have."""


class CorpusConfig(Config):
    """Which texts are read, which concepts are studied, which topics are held out."""

    stories: str = "embedded"
    """`embedded`, or a JSONL file with the keys emotion, topic, text (narrator is optional)."""
    neutral: str = "embedded"
    """`embedded`, or a JSONL file with the keys kind, text: what is projected out of directions, and SAE training."""
    emotions: tuple[str, ...] | Literal["all"] = "all"
    """The concepts; stories of other emotions are left out of the study."""
    validation_topics: tuple[str, ...] = ("garden", "stage")
    """Where layers, features and readouts may be chosen."""
    test_topics: tuple[str, ...] = ("exam", "kitchen", "phone")
    """Never used to build or choose anything; every reported detection figure is from here."""
    ngram: int = Field(default=8, ge=3)
    """Length in words of the runs that two texts must not share."""


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        index: position in the corpus; rows of every array "docs" axis are in this order.
        kind: ``story``, or the kind of a neutral text.
        emotion: the concept a story was written for; empty for neutral texts.
        text: of a chat, its messages' contents with blank lines between.
        messages: of a chat, ``{"role", "content"}`` each; empty for a plain text.
        spans: named stretches as [start, end) in characters of the text, of a chat as [message, start, end).
    """

    index: int
    kind: str
    emotion: str
    topic: str
    narrator: str
    split: Split
    text: str
    messages: tuple[Mapping[str, str], ...] = ()
    spans: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """The documents of the study in a fixed order: stories first, then neutral texts."""

    folder: Path

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        return tuple(Document(**row) for row in read_jsonl(self.folder / "documents.jsonl"))

    @cached_property
    def emotions(self) -> tuple[str, ...]:
        """The studied concepts, alphabetically; every "concepts" axis is in this order."""
        return tuple(sorted({document.emotion for document in self.documents if document.emotion}))

    def indices(self, *splits: Split) -> list[int]:
        """Document indices of these splits, ascending."""
        return [document.index for document in self.documents if document.split in splits]

    def labels(self, rows: Sequence[int]) -> Bool[np.ndarray, "rows concepts"]:
        """Whether each of these documents is a story of each concept; all False for neutral texts."""
        import numpy as np

        mine = np.array([self.documents[row].emotion for row in rows], dtype=object)
        return mine[:, None] == np.array(self.emotions, dtype=object)

    def topics(self, rows: Sequence[int]) -> np.ndarray:
        """The topic of each of these documents: the unit that is resampled and permuted within."""
        import numpy as np

        return np.array([self.documents[row].topic for row in rows])

    @cached_property
    def quality(self) -> dict[str, Any]:
        """The quality gates' findings, as ``quality.json`` holds them."""
        return json.loads((self.folder / "quality.json").read_text(encoding="utf-8"))


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
        stories = _stories(config)
        known = sorted({row["emotion"] for row in stories})
        if config.emotions != "all":
            if len(set(config.emotions)) != len(config.emotions) or len(config.emotions) < 2:
                raise ValueError("`corpus.emotions`: name at least two emotions, each once, or `all`")
            for emotion in config.emotions:
                if emotion not in known:
                    raise ValueError(f"`corpus.emotions: {emotion}`: no story has it; {nearest(emotion, known)}")
        topics = sorted({row["topic"] for row in stories})
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
        return [Part("all", size=len(_stories(self.config)))]

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        documents = select(self.config)
        with (out / "documents.jsonl").open("w", encoding="utf-8") as stream:
            for document in documents:
                row = {key: value for key, value in asdict(document).items() if key not in CHAT or value}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        manifest.write_json(out / "quality.json", gates.inspect(documents, ngram=self.config.ngram))
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


def select(config: CorpusConfig) -> list[Document]:
    """The documents of a study, in their fixed order."""
    wanted = None if config.emotions == "all" else set(config.emotions)
    documents: list[Document] = []
    for row in _stories(config):
        if wanted is None or row["emotion"] in wanted:
            documents.append(
                Document(
                    index=len(documents),
                    kind="story",
                    emotion=row["emotion"],
                    topic=row["topic"],
                    narrator=row.get("narrator", ""),
                    split=_split(config, row["topic"]),
                    text=row["text"],
                    **{key: row[key] for key in CHAT if key in row},
                )
            )
    for row in read_texts(texts_path("neutral", config.neutral), required=("kind",)):
        documents.append(
            Document(
                len(documents),
                row["kind"],
                emotion="",
                topic="",
                narrator="",
                split="neutral",
                text=row["text"],
                **{key: row[key] for key in CHAT if key in row},
            )
        )
    return documents


def _split(config: CorpusConfig, topic: str) -> Split:
    if topic in config.test_topics:
        return "test"
    return "validation" if topic in config.validation_topics else "train"


def _stories(config: CorpusConfig) -> list[dict[str, Any]]:
    return read_texts(texts_path("stories", config.stories), required=("emotion", "topic"))


def read_ratings(source: Path) -> dict[str, dict[str, float]]:
    """Word -> {valence, arousal, ...} from a CSV whose first column is the word.

    Args:
        source: the file.

    Raises:
        UserError: the file lacks the columns or holds something that is not a number.
    """
    with source.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"valence", "arousal"} <= set(rows[0]):
        raise UserError(f"{source}: a table of ratings needs a first column of words, and valence and arousal")
    word = next(iter(rows[0]))
    try:
        return {
            row[word].strip().lower(): {key: float(value) for key, value in row.items() if key != word} for row in rows
        }
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: a rating is not a number ({error}); correct or remove that row") from None

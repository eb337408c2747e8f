"""Documents: stories that evoke one emotion concept each, neutral texts, and which of them may be used for what.

Splits are by topic, never by story: stories of one topic share their setting and much of their vocabulary, so a
split by story would let a probe recognise the topic instead of the concept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from affectlens.config import MERGE_ONLY, Config
from affectlens.corpus.texts import read_jsonl, read_texts, texts_path

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Int


Split = Literal["train", "validation", "test", "neutral"]
"""Of a document: ``train`` and ``validation`` build and choose what steers, ``test`` is ablated. Detection uses
:attr:`Corpus.folds` instead."""
HELD_OUT = ("exam", "kitchen", "phone")
"""The embedded topics that are ablated unless said otherwise; the embedded SAE was not trained on them either."""

CHAT = ("messages", "spans")
"""Keys that only chats and texts with named stretches have."""


OWN = "own"
"""How the study's own stories are called beside those of other writers."""


class EvaluateConfig(Config):
    """Stories of another writer, which build nothing that the study measures elsewhere."""

    stories: str
    """As for `corpus.stories`: `embedded`, an embedded writer (`writer_b` to `writer_e`), or a JSONL file."""
    name: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$")
    """How tables call the writer; left empty, the file's name without its ending."""

    @model_validator(mode="before")
    @classmethod
    def _by_file(cls, value: Any) -> Any:
        return {"stories": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """A file's name stands for itself, which no validator tells a schema."""
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(core))]}

    @property
    def writer(self) -> str:
        """The writer's name."""
        return self.name or Path(self.stories).stem

    @property
    def path(self) -> Path:
        """The file."""
        return texts_path("stories", self.stories)


class CorpusConfig(Config):
    """Which texts are read, which concepts are studied, which topics are held out."""

    stories: str = "embedded"
    """`embedded`, an embedded writer (`writer_b` to `writer_e`), or a JSONL file with the keys emotion, topic, text."""
    neutral: str = "embedded"
    """`embedded`, or a JSONL file with the keys kind, text: what is projected out of directions, and SAE training."""
    emotions: tuple[str, ...] | Literal["all"] = "all"
    """The concepts; stories of other emotions are left out of the study."""
    test_topics: tuple[str, ...] = Field(default=(), json_schema_extra=MERGE_ONLY)
    """A fixed test: nothing is built or chosen on these topics, and every detection figure is from them. Left empty,
    every topic is the test once while all others build and choose: far narrower intervals from the same stories."""
    validation_topics: tuple[str, ...] = Field(default=(), json_schema_extra=MERGE_ONLY)
    """No SAE of the study is trained on these, so that its quality is measured there; left empty, on the
    ablated topics."""
    ablation_topics: tuple[str, ...] | None = Field(default=None, json_schema_extra=MERGE_ONLY)
    """Whose stories are ablated; what steers is built without them. Left out: the test topics, or a quarter of all."""
    ngram: int = Field(default=8, ge=3)
    """Length in words of the runs that two texts must not share."""
    evaluate: tuple[EvaluateConfig, ...] = ()
    """Stories of other writers: what the study's stories build is read on them, and the reverse. They enter nothing
    else, so that a further writer computes only what concerns it."""


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
class Fold:
    """One division of the stories.

    Attributes:
        train: document indices of the topics that build and choose.
        test: document indices of the topics that are read.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]


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

    @cached_property
    def fixed_split(self) -> bool:
        """Whether the study names its test topics, in place of every topic in turn."""
        path = self.folder / "corpus.json"
        return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["fixed_split"]

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        """How detection is measured: every topic is the test once; or one fold, where the study names test topics."""
        stories = [document for document in self.documents if document.emotion]
        if self.fixed_split:
            return (Fold(tuple(self.indices("train", "validation")), tuple(self.indices("test"))),)
        return tuple(
            Fold(
                tuple(document.index for document in stories if document.topic != topic),
                tuple(document.index for document in stories if document.topic == topic),
            )
            for topic in sorted({document.topic for document in stories})
        )

    def labels(self, rows: Sequence[int] | Int[np.ndarray, "rows"]) -> Bool[np.ndarray, "rows concepts"]:
        """Whether each of these documents is a story of each concept; all False for neutral texts."""
        import numpy as np

        mine = np.array([self.documents[row].emotion for row in rows], dtype=object)
        return mine[:, None] == np.array(self.emotions, dtype=object)

    def topics(self, rows: Sequence[int] | Int[np.ndarray, "rows"]) -> np.ndarray:
        """The topic of each of these documents: the unit that is resampled and permuted within."""
        import numpy as np

        return np.array([self.documents[row].topic for row in rows])

    @cached_property
    def quality(self) -> dict[str, Any]:
        """The quality gates' findings, as ``quality.json`` holds them."""
        return json.loads((self.folder / "quality.json").read_text(encoding="utf-8"))


def select(config: CorpusConfig) -> list[Document]:
    """The documents of a study, in their fixed order."""
    wanted = None if config.emotions == "all" else set(config.emotions)
    documents: list[Document] = []
    rows = stories(config)
    ablated = ablation_topics(config, [row["topic"] for row in rows])
    for row in rows:
        if wanted is None or row["emotion"] in wanted:
            documents.append(
                Document(
                    index=len(documents),
                    kind="story",
                    emotion=row["emotion"],
                    topic=row["topic"],
                    narrator=row.get("narrator", ""),
                    split="test"
                    if row["topic"] in ablated
                    else "validation"
                    if row["topic"] in config.validation_topics
                    else "train",
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


def writer_documents(writer: EvaluateConfig, emotions: Collection[str]) -> list[Document]:
    """The stories of another writer about the studied concepts, in the order of the file."""
    rows = [row for row in read_texts(writer.path, required=("emotion", "topic")) if row["emotion"] in emotions]
    return [
        Document(
            index,
            "story",
            emotion=row["emotion"],
            topic=row["topic"],
            narrator=row.get("narrator", ""),
            split="test",
            text=row["text"],
            **{key: row[key] for key in CHAT if key in row},
        )
        for index, row in enumerate(rows)
    ]


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """One object a line, as :attr:`Corpus.documents` reads them."""
    with path.open("w", encoding="utf-8") as stream:
        for document in documents:
            row = {key: value for key, value in asdict(document).items() if key not in CHAT or value}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def ablation_topics(config: CorpusConfig, topics: Sequence[str]) -> tuple[str, ...]:
    """The topics whose stories are ablated.

    Args:
        config: names them, or the test topics, or leaves both out.
        topics: of the stories.
    """
    if config.ablation_topics is not None:
        return config.ablation_topics
    if config.test_topics:
        return config.test_topics
    return HELD_OUT if config.stories == "embedded" else tuple(sorted(set(topics))[::4])


def concepts(config: CorpusConfig) -> tuple[str, ...]:
    """The concepts of a study, alphabetically, before its corpus is there."""
    named = {row["emotion"] for row in stories(config)} if config.emotions == "all" else set(config.emotions)
    return tuple(sorted(named))


def file_stem(concept: str) -> str:
    """A concept's name as part of a file's name: letters, digits, ``-`` and ``_``."""
    return re.sub(r"[^\w-]+", "_", concept)


def stories(config: CorpusConfig) -> list[dict[str, Any]]:
    """The rows of the study's stories, those of other emotions included."""
    return read_texts(texts_path("stories", config.stories), required=("emotion", "topic"))

"""What can be wrong with a corpus and its topics, said before anything runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from affectlens.config import nearest
from affectlens.corpus.documents import OWN, CorpusConfig, ablation_topics, file_stem, stories, writer_documents
from affectlens.corpus.texts import read_texts, texts_path

LISTED = "affectlens concepts"
"""The command that lists the concepts of a file of stories."""
LONGEST_NAME = 100
"""Letters of a concept's name: it becomes part of file names."""
FEWEST_TOPICS = 3
"""With every topic in turn: one is read, and of the others one is left out to choose by."""


def check(config: CorpusConfig) -> None:
    """Refuse a corpus on which some figure could not be computed.

    Raises:
        ValueError: begins with the key at fault, and names concepts and topics.
        UserError: a line of a file is at fault.
    """
    for key in ("stories", "neutral"):
        if not texts_path(key, getattr(config, key)).is_file():
            raise ValueError(f"`corpus.{key}: {getattr(config, key)}`: no such file; give a JSONL file, or `embedded`")
    read_texts(texts_path("neutral", config.neutral), required=("kind",))
    rows = stories(config)
    _check_names(config, rows)
    _check_topics(config, rows)
    studied = set(config.emotions) if config.emotions != "all" else {row["emotion"] for row in rows}
    rows = [row for row in rows if row["emotion"] in studied]
    topics = sorted({row["topic"] for row in rows})
    keys = ("validation_topics", "test_topics", "ablation_topics")
    named = {key: getattr(config, key) or () for key in keys}
    for key, values in named.items():
        for topic in values:
            if topic not in topics:
                raise ValueError(f"`corpus.{key}: {topic}`: no story has it; {nearest(topic, topics)}")
    ablated = set(ablation_topics(config, topics))
    both = set(config.validation_topics) & ablated
    if both:
        raise ValueError(f"`corpus.validation_topics: {min(both)}`: also tested or ablated; keep it in one of the two")
    if not ablated >= set(config.test_topics):
        odd = min(set(config.test_topics) - ablated)
        raise ValueError(
            f"`corpus.ablation_topics`: lacks the test topic `{odd}`; nothing may be built on it, so add it"
        )
    if not config.test_topics and len(topics) < FEWEST_TOPICS:
        raise ValueError(
            f"`corpus.stories`: topics: {', '.join(topics)}; with every topic in turn at least "
            f"{FEWEST_TOPICS} are needed; add stories of further topics, or name `corpus.test_topics`"
        )
    if not set(topics) - ablated - set(config.validation_topics):
        key = "test_topics" if config.test_topics else "ablation_topics"
        raise ValueError(f"`corpus.{key}`: no topic is left to build directions from; hold out fewer")
    _check_coverage(config, rows, ablated)
    _check_writers(config, studied)


def _check_writers(config: CorpusConfig, studied: set[str]) -> None:
    """Each other writer has a name of its own, and stories from which two studied emotions can be told apart."""
    names = [OWN]
    for writer in config.evaluate:
        name = writer.writer
        if name in names:
            raise ValueError(f"`corpus.evaluate`: two writers are called `{name}`; give one another `name`")
        names.append(name)
        if not writer.path.is_file():
            raise ValueError(
                f"`corpus.evaluate: {writer.stories}`: no such file; give a JSONL file, or an embedded writer's name"
            )
        concepts_of: dict[str, set[str]] = defaultdict(set)
        for document in writer_documents(writer, studied):
            concepts_of[document.topic].add(document.emotion)
        if len(concepts_of) < 2 or max(map(len, concepts_of.values())) < 2:
            raise ValueError(
                f"`corpus.evaluate: {writer.stories}`: {len(concepts_of)} topics hold stories of the studied emotions; "
                "two at least are needed, and one with two emotions: an AUROC compares stories within a topic"
            )


def _check_names(config: CorpusConfig, rows: Sequence[dict[str, Any]]) -> None:
    """Concepts are studied that have stories, under names that can be told apart as names of files."""
    known = sorted({row["emotion"] for row in rows})
    if config.emotions != "all":
        if len(set(config.emotions)) != len(config.emotions) or len(config.emotions) < 2:
            raise ValueError("`corpus.emotions`: name at least two emotions, each once, or `all`")
        for emotion in config.emotions:
            if emotion not in known:
                raise ValueError(f"`corpus.emotions: {emotion}`: no story has it; {nearest(emotion, known, LISTED)}")
    elif len(known) < 2:
        raise ValueError(f"`corpus.stories: {config.stories}`: all stories are of `{known[0]}`; add another emotion")
    owner: dict[str, str] = {}
    for emotion in known if config.emotions == "all" else config.emotions:
        if emotion != emotion.strip() or len(emotion) > LONGEST_NAME:
            raise ValueError(
                f"`corpus.stories: {config.stories}`: the emotion `{emotion[:LONGEST_NAME]}` begins or ends in a blank "
                f"or has more than {LONGEST_NAME} letters; give it a short name"
            )
        other = owner.setdefault(file_stem(emotion).casefold(), emotion)
        if other != emotion:
            raise ValueError(
                f"`corpus.stories: {config.stories}`: the emotions `{other}` and `{emotion}` differ only by case, "
                "blanks or marks, so that their files could not be told apart; give them one name, or different ones"
            )


def _check_topics(config: CorpusConfig, rows: Sequence[dict[str, Any]]) -> None:
    """Topics that differ by a slip would be split apart: a text would be tested beside its own topic's training."""
    owner: dict[str, str] = {}
    for row in rows:
        other = owner.setdefault(" ".join(row["topic"].split()).casefold(), row["topic"])
        if other != row["topic"]:
            raise ValueError(
                f"`corpus.stories: {config.stories}`: the topics `{other}` and `{row['topic']}` differ only by case "
                "or blanks; give them one name, or different ones"
            )


def _check_coverage(config: CorpusConfig, rows: Sequence[dict[str, Any]], ablated: set[str]) -> None:
    """Every concept has a story wherever one is needed, and a topic in which it can be told from another concept."""
    topics_of: dict[str, set[str]] = defaultdict(set)
    concepts_of: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        topics_of[row["emotion"]].add(row["topic"])
        concepts_of[row["topic"]].add(row["emotion"])
    tested = set(config.test_topics) or set(concepts_of)

    def lacking(allowed: set[str], least: int = 1) -> list[str]:
        return sorted(concept for concept, topics in topics_of.items() if len(topics & allowed) < least)

    building = set(concepts_of) - ablated - set(config.validation_topics)
    needs = [
        (lacking(building), f"have no story in the topics that build directions ({_listed(building)})"),
        (lacking(tested), f"have no story in the test topics ({_listed(tested)})"),
        (lacking(ablated), f"have no story in the topics that are ablated ({_listed(ablated)})"),
        (lacking({topic for topic in tested if len(concepts_of[topic]) > 1}), "share no topic with another emotion"),
    ]
    if not config.test_topics:
        needs.append((lacking(tested, 2), "have stories in one topic only, which cannot be both read and built from"))
    for concepts, fault in needs:
        if concepts:
            raise ValueError(
                f"`corpus.stories: {config.stories}`: {_listed(concepts)} {fault}; add such stories, name other "
                "topics, or leave them out of `corpus.emotions`"
            )


def _listed(names: Sequence[str] | set[str], most: int = 8) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{name}`" for name in names[:most]) + more

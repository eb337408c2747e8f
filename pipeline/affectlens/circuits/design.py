"""Which contexts select units, choose the size of a circuit, and report: three disjoint groups of topics, in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from affectlens.errors import UserError

if TYPE_CHECKING:
    from affectlens.circuits.config import CircuitsConfig
    from affectlens.corpus.documents import Document


@dataclass(frozen=True, order=True)
class Cell:
    """A context by its topic and its concept."""

    topic: str
    concept: str


@dataclass(frozen=True)
class Rotation:
    """One division of the topics, with the contexts of each group.

    Attributes:
        select: whose scores choose units.
        size: on which the size is chosen.
        report: of which figures are printed.
    """

    index: int
    select: tuple[Cell, ...]
    size: tuple[Cell, ...]
    report: tuple[Cell, ...]


def rotations(topics: Sequence[str], concepts: Sequence[str], config: CircuitsConfig) -> tuple[Rotation, ...]:
    """The divisions: of eleven topics three report, three choose the size, five select; then the next three report.

    Every topic is reported in at most one of them. Where fewer contexts are asked for than there are, each concept and
    each topic has as many as the others, give or take one.

    Raises:
        UserError: fewer than three topics.
    """
    topics = sorted(set(topics))
    count = len(topics)
    if count < 3:
        raise UserError(
            f"`circuits.run`: the stories have {count} topics, but selecting, sizing and reporting take three disjoint "
            "groups of them; add stories of other topics, or leave circuits out"
        )
    width = max(1, round(3 * count / 11))
    turns = -(-count // width)
    found = []
    for turn in range(turns if config.rotations == 0 else min(turns, config.rotations)):
        start = turn * width
        report = topics[start : start + width]
        size = [topics[(start + len(report) + step) % count] for step in range(width)]
        select = [topic for topic in topics if topic not in (*report, *size)]
        found.append(
            Rotation(
                turn,
                spread(select, concepts, config.select_contexts),
                spread(size, concepts, config.size_contexts),
                spread(report, concepts, config.report_contexts),
            )
        )
    return tuple(found)


def spread(topics: Sequence[str], concepts: Sequence[str], count: int) -> tuple[Cell, ...]:
    """So many cells, evenly over topics and concepts; all of them where ``count`` is 0 or too large."""
    whole = [Cell(topic, concept) for topic in topics for concept in concepts]
    if not 0 < count < len(whole):
        return tuple(whole)
    # The diagonals of the topics x concepts grid: each has every concept once, and topics in turn.
    order = [
        Cell(topics[(at + turn) % len(topics)], concept)
        for turn in range(len(topics))
        for at, concept in enumerate(concepts)
    ]
    if count < len(concepts):  # not only the first letters of the alphabet
        order = [order[round(step * len(concepts) / count)] for step in range(count)]
    return tuple(sorted(order[:count]))


def chosen(cells: Sequence[Cell], count: int) -> tuple[Cell, ...]:
    """So many of these cells, evenly over their concepts and topics as far as they allow it."""
    if not 0 < count < len(cells):
        return tuple(cells)
    topics = sorted({cell.topic for cell in cells})
    concepts = sorted({cell.concept for cell in cells})
    there = set(cells)
    picked = [cell for cell in spread(topics, concepts, count) if cell in there]
    rest = [cell for cell in cells if cell not in picked]
    step = len(rest) / max(1, count - len(picked))
    return tuple(sorted([*picked, *(rest[int(at * step)] for at in range(count - len(picked)))]))


def stories_of(documents: Sequence[Document]) -> Mapping[Cell, str]:
    """The text of each concept's story of each topic, the first where there are several.

    Raises:
        UserError: a concept has no story of a topic, so that reference values would differ by concept.
    """
    found: dict[Cell, str] = {}
    for document in documents:
        if document.emotion:
            found.setdefault(Cell(document.topic, document.emotion), document.text)
    topics, concepts = ({getattr(cell, key) for cell in found} for key in ("topic", "concept"))
    for topic in sorted(topics):
        for concept in sorted(concepts):
            if Cell(topic, concept) not in found:
                raise UserError(
                    f"`circuits.run`: there is no story of `{concept}` about `{topic}`; circuits compare all concepts "
                    "within a topic, so add the story or leave the concept or the topic out"
                )
    return found


def context_ids(encode: Any, text: str, frame: str, tokens: int) -> list[int]:
    """The last tokens of a story and the frame after it, without the begin token.

    Raises:
        UserError: the story is shorter.
    """
    story = encode(text)
    if len(story) < tokens:
        raise UserError(
            f"`circuits.story_tokens: {tokens}`: the story that begins `{text[:40]}` has {len(story)} tokens; give a "
            "smaller number"
        )
    return [*story[-tokens:], *encode(" " + frame)]

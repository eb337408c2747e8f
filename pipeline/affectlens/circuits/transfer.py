"""Does a circuit hold elsewhere: in another frame, on another writer's stories, on same-words pairs, on neutral text?

And its edges: how much of a head's effect passes through heads above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from affectlens.circuits.anatomy import Recorded, Replaced
from affectlens.circuits.design import Cell, spread

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from affectlens.circuits.bench import Bench
    from affectlens.corpus.pairs import Pair

PAIRS, TOPICS, TEXTS = 12, 3, 12
"""Same-words pairs, topics of another writer, and contexts of either that are run."""


def elsewhere(
    bench: Bench, cells: Sequence[Cell], masks: Bool[np.ndarray, "rows units"]
) -> Float[np.ndarray, "contexts rows_and_two"]:
    """Contrast of the own words: whole, without heads, and with only the heads of each row, in other contexts."""
    found = []
    for cell in cells:
        taken, own = bench.take(cell), bench.concepts.index(cell.concept)
        found.append([taken.full[own], taken.empty[own], *bench.kept(taken, masks)[:, own]])
    return np.array(found, np.float32)


def resampled(
    bench: Bench, cells: Sequence[Cell], masks: Bool[np.ndarray, "rows units"], generator: np.random.Generator
) -> Float[np.ndarray, "contexts rows_and_two"]:
    """The same with another reference: one other concept's story of the topic, drawn for each context.

    A mean over stories is none that a model ever reads; this one is. Without heads the model then says what the other
    story makes it say.
    """
    found = []
    for cell in cells:
        own = bench.concepts.index(cell.concept)
        others = [each for each in bench.concepts if each != cell.concept]
        partner = Cell(cell.topic, others[int(generator.integers(len(others)))])
        tokens, anatomy = bench.tokens(cell), bench.anatomy
        keep = rows_of(bench, masks)
        values = bench.contrasts(tokens, anatomy.record(tokens), keep, anatomy.record(bench.tokens(partner)))
        found.append(values[:, own])
    return np.array(found, np.float32)


def rows_of(bench: Bench, masks: Bool[np.ndarray, "rows units"]) -> Bool[Tensor, "rows_and_two layers heads"]:
    """The whole model, the model without heads, and the heads of each row."""
    import torch

    whole = bench.anatomy.all_kept(1)
    return torch.cat([whole, ~whole, bench.mask(masks)])


def another_frame(bench: Bench, frame: str) -> Bench:
    """The same stories before another frame."""
    return replace(bench, frame=frame, _reference={})


def another_writer(bench: Bench, stories: dict[Cell, str]) -> tuple[Bench, tuple[Cell, ...]]:
    """The same frame after another writer's stories: of topics that all concepts have, and of the lengths needed."""
    encode, concepts = bench.anatomy.subject.encode, bench.concepts
    topics = [
        topic
        for topic in sorted({cell.topic for cell in stories})
        if all(
            Cell(topic, each) in stories and len(encode(stories[Cell(topic, each)])) >= bench.story_tokens
            for each in concepts
        )
    ][:TOPICS]
    other = replace(bench, stories=stories, _reference={})
    return other, spread(topics, concepts, TEXTS) if topics else ()


def same_words(
    bench: Bench, pairs: Sequence[Pair], masks: Bool[np.ndarray, "rows units"]
) -> tuple[Float[np.ndarray, "texts rows_and_two"], list[str]]:
    """The same on pairs of texts made of the same words, each text's reference values being its partner's.

    Here the contrast is between the words of the pair's two concepts. Pairs whose texts differ in their number of
    tokens are left out. Returns the contrasts and the group of each text's pair.
    """
    subject, found, groups = bench.anatomy.subject, [], []
    for pair in pairs:
        if len(groups) >= 2 * PAIRS:
            break
        ids = [subject.encode(f"{text} {bench.frame}") for text in (pair.text_a, pair.text_b)]
        if len(ids[0]) != len(ids[1]) or not {pair.emotion_a, pair.emotion_b} <= set(bench.concepts):
            continue
        tokens = [subject.pad([each]) for each in ids]
        recorded = [bench.anatomy.record(each) for each in tokens]
        a, b = (bench.concepts.index(each) for each in (pair.emotion_a, pair.emotion_b))
        for side, (own, other) in enumerate(((a, b), (b, a))):
            values = bench.contrasts(tokens[side], recorded[side], rows_of(bench, masks), recorded[1 - side])
            found.append(values[:, own] - values[:, other])
            groups.append(pair.group)
    return np.array(found, np.float32).reshape(len(groups), 2 + len(masks)), groups


def neutral_losses(
    bench: Bench, topic: str, texts: Sequence[str], masks: Bool[np.ndarray, "rows units"]
) -> Float[np.ndarray, "texts rows_and_one"]:
    """Loss on neutral text, whole and with the heads of each row at reference values, in nats a token."""
    import torch

    anatomy, reference = bench.anatomy, bench.reference(topic)
    found = []
    for text in texts:
        tokens = anatomy.subject.pad([anatomy.subject.encode(text)[: bench.story_tokens]])
        width = tokens.shape[1]
        keep = torch.cat([anatomy.all_kept(1), ~bench.mask(masks)])
        heads = Replaced(keep, reference.heads[:, :width])
        logits = anatomy.logits(tokens, anatomy.record(tokens), heads, keep=width)
        target = tokens[:, 1:, None].expand(len(keep), -1, -1)
        chosen = logits[:, :-1].gather(-1, target)[..., 0] - logits[:, :-1].logsumexp(dim=-1)
        found.append(-chosen.mean(dim=-1).cpu().numpy())
    return np.array(found, np.float32)


def edges(
    bench: Bench, cells: Sequence[Cell], nodes: Sequence[int], steps: int
) -> tuple[Float[np.ndarray, "contexts nodes nodes"], Float[np.ndarray, "contexts nodes"]]:
    """How much of each head's effect on the own words passes through each head above it.

    The lower head gets its reference values; by how much the upper one's output changes, times the gradient of the
    contrast to it, is what passes through it, on whatever way it comes there.

    Returns:
        From the node of the first axis to that of the second, in nats; and each node's own exact effect.
    """

    from affectlens.circuits.anatomy import path

    anatomy, weights, effects = bench.anatomy, [], []
    heads = anatomy.heads
    for cell in cells:
        taken, own = bench.take(cell), bench.concepts.index(cell.concept)
        (gradient,) = anatomy.gradients(
            taken.tokens,
            path(taken.recorded, taken.reference, steps),
            lambda logits, read, own=own: [bench.contrast(logits)[:, own]],
        )
        table = np.zeros((len(nodes), len(nodes)), np.float32)
        masks = np.ones((len(nodes), anatomy.layers * heads), dtype=bool)
        for row, node in enumerate(nodes):
            masks[row, node] = False
            changed: Recorded = anatomy.record(
                taken.tokens, Replaced(bench.mask(masks[row : row + 1]), taken.reference.heads)
            )
            lost = ((taken.recorded.heads - changed.heads) * gradient.heads).sum(dim=(1, 3))
            for column, other in enumerate(nodes):
                if other // heads > node // heads:
                    table[row, column] = float(lost[other // heads, other % heads])
        weights.append(table)
        effects.append(taken.full[own] - bench.kept(taken, masks)[:, own])
    return np.stack(weights), np.stack(effects)

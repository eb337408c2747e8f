"""A loaded model with the study's contexts: reference values, runs with units replaced, and the contrast of the words.

A context is the end of a story and one frame after it, the same number of tokens for all. Its reference values are the
means, position by position, over the stories of all studied concepts of the same topic. A run in which every head has
them knows nothing of the story: what it says is the same in every context of the topic, and averaged over concepts
its contrast is exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from affectlens.circuits.anatomy import Anatomy, Recorded, Replaced
from affectlens.circuits.design import Cell, context_ids
from affectlens.errors import UserError
from affectlens.interventions.scoring import against_others

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from affectlens.model.words import ConceptWords

EXACT = 1e-4
"""What may be left of a sum or difference that is exact but for rounding."""


@dataclass(frozen=True)
class Taken:
    """A context that was run.

    Attributes:
        cell: its topic and concept.
        tokens: with the begin token.
        recorded: every unit.
        reference: its reference values.
        full: contrast of each concept's words in the whole model.
        empty: in the model without any head.
    """

    cell: Cell
    tokens: Int[Tensor, "one positions"]
    recorded: Recorded
    reference: Recorded
    full: Float[np.ndarray, "concepts"]
    empty: Float[np.ndarray, "concepts"]


@dataclass(eq=False)
class Bench:
    """One model, one frame, stories of every concept about every topic.

    Attributes:
        anatomy: the model.
        words: the scored words of each concept.
        stories: a text for each topic and concept.
        frame: what stands after every story.
        story_tokens: last tokens of a story that are read.
    """

    anatomy: Anatomy
    words: Sequence[ConceptWords]
    stories: Mapping[Cell, str]
    frame: str
    story_tokens: int
    _reference: dict[str, Recorded] = field(default_factory=dict)

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(each.concept for each in self.words)

    @cached_property
    def story(self) -> slice:
        """Positions of the story."""
        lead = self.anatomy.subject.lead
        return slice(lead, lead + self.story_tokens)

    def tokens(self, cell: Cell) -> Int[Tensor, "one positions"]:
        """Of one context."""
        subject = self.anatomy.subject
        return subject.pad([context_ids(subject.encode, self.stories[cell], self.frame, self.story_tokens)])

    def record_topic(self, topic: str) -> Iterable[tuple[Cell, Recorded]]:
        """Every context of a topic, one after the other."""
        for concept in self.concepts:
            cell = Cell(topic, concept)
            yield cell, self.anatomy.record(self.tokens(cell))

    def reference(self, topic: str) -> Recorded:
        """Means over the contexts of a topic; those of the last topic are remembered."""
        if topic not in self._reference:
            self.remember(topic, Recorded.mean(recorded for _, recorded in self.record_topic(topic)))
        return self._reference[topic]

    def remember(self, topic: str, reference: Recorded) -> Recorded:
        """Keep the means of a topic, in the place of the last one's."""
        self._reference = {topic: reference}
        return reference

    @cached_property
    def _word_means(self) -> tuple[Tensor, Tensor]:
        import torch

        device = self.anatomy.subject.device
        ids = [token for each in self.words for token in each.tokens]
        means = torch.zeros(len(ids), len(self.words), device=device)
        start = 0
        for column, each in enumerate(self.words):
            means[start : start + len(each.tokens), column] = 1 / len(each.tokens)
            start += len(each.tokens)
        return torch.tensor(ids, device=device), means

    def contrast(self, logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows concepts"]:
        """Mean log-probability of each concept's words less that of the other concepts' words.

        The softmax's denominator falls out, so that this is also the contrast of the logits.
        """
        ids, means = self._word_means
        return against_others(logits[:, ids] @ means)

    def take(self, cell: Cell) -> Taken:
        """Run one context whole, and without any head.

        Raises:
            UserError: what the model without heads says differs within a topic; the check that all is as it should be.
        """
        import torch

        tokens, reference = self.tokens(cell), self.reference(cell.topic)
        if tokens.shape[1] != reference.heads.shape[1]:
            raise UserError(
                f"`circuits.frame`: the context of `{cell.concept}`, `{cell.topic}` has {tokens.shape[1]} tokens, its "
                f"reference values {reference.heads.shape[1]}; use one frame for all"
            )
        recorded = self.anatomy.record(tokens)
        keep = torch.stack([self.anatomy.all_kept(1)[0], ~self.anatomy.all_kept(1)[0]])
        found = self.contrasts(tokens, recorded, keep, reference)
        return Taken(cell, tokens, recorded, reference, found[0], found[1])

    def contrasts(
        self,
        tokens: Int[Tensor, "one positions"],
        recorded: Recorded,
        keep: Bool[Tensor, "rows layers heads"],
        reference: Recorded,
        neurons: Bool[Tensor, "rows layers d_mlp"] | None = None,
    ) -> Float[np.ndarray, "rows concepts"]:
        """The words' contrast when only some units keep their own values, a row each."""
        replaced = Replaced(keep, reference.heads, neurons, None if neurons is None else reference.neurons)
        return self.contrast(self.anatomy.logits(tokens, recorded, replaced)[:, -1]).cpu().numpy()

    def kept(self, taken: Taken, heads: Bool[np.ndarray, "rows units"]) -> Float[np.ndarray, "rows concepts"]:
        """The contrast in a context when only these heads keep their own values, units counted layer by layer."""
        return self.contrasts(taken.tokens, taken.recorded, self.mask(heads), taken.reference)

    def mask(self, heads: Bool[np.ndarray, "rows units"]) -> Bool[Tensor, "rows layers heads"]:
        """Flat units as layers and heads."""
        import torch

        anatomy = self.anatomy
        return torch.as_tensor(heads, device=anatomy.subject.device).reshape(-1, anatomy.layers, anatomy.heads)


def require_empty(taken: Sequence[tuple[str, Float[np.ndarray, "concepts"]]]) -> float:
    """Refuse contexts in which the model without any head still knows which story it reads.

    Args:
        taken: topic, and contrast of each concept's words without any head, of each context.

    Returns:
        The largest difference within a topic, in nats: rounding.

    Raises:
        UserError: it is more than rounding, so that the mean contrast over concepts would not be 0.
    """
    first: dict[str, np.ndarray] = {}
    largest = 0.0
    for topic, values in taken:
        largest = max(largest, float(np.abs(values - first.setdefault(topic, values)).max()))
    if largest > 10 * EXACT:
        raise UserError(
            f"`circuits`: without any head, contexts of one topic differ by {largest:.3f} nats, so the words do not "
            "follow from the heads alone; use one frame and stories of one length, or another model"
        )
    return largest


def exact_effects(bench: Bench, taken: Taken) -> Float[np.ndarray, "units concepts"]:
    """How much less each concept's words stand out when one head has its reference values: exact, head by head.

    The heads of a layer are one batch that begins above the layers that they leave as they are.
    """
    import torch

    anatomy, found = bench.anatomy, []
    for layer in range(anatomy.layers):
        keep = anatomy.all_kept(anatomy.heads)
        keep[torch.arange(anatomy.heads), layer, torch.arange(anatomy.heads)] = False
        found.append(taken.full - bench.contrasts(taken.tokens, taken.recorded, keep, taken.reference))
    return np.concatenate(found)


def activation_sizes(bench: Bench, taken: Taken) -> Float[np.ndarray, "units"]:
    """How far each head's output lies from its reference values: mean norm of what it writes over positions."""
    import torch

    difference = taken.recorded.heads - taken.reference.heads
    written = [
        torch.einsum("phe,hed->phd", difference[layer], bench.anatomy.head_outputs(layer).float())
        for layer in range(bench.anatomy.layers)
    ]
    return np.concatenate([each.norm(dim=-1).mean(dim=0).cpu().numpy() for each in written])

"""Neurons inside a head circuit: attributed by integrated gradients, checked one by one, and matched across topics.

A head writes as many dimensions as it is wide, a neuron one; the two are never ranked together. The model here is the
circuit's: all other heads have their reference values, and neurons are replaced by their means in that model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from affectlens.circuits import curves
from affectlens.circuits.anatomy import Recorded, Replaced, path
from affectlens.circuits.design import Cell, chosen

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from affectlens.circuits.bench import Bench
    from affectlens.circuits.config import CircuitsConfig

SIZES = (0.01, 0.1, 0.2, 0.5)
"""Shares of all neurons whose circuits are run."""
FLIPS = 999
"""Sign flips of each neuron."""
KEPT_CONTEXTS = 4
"""Reported contexts in which they are."""


@dataclass(eq=False)
class Inside:
    """A model of which only the heads of a circuit know the text.

    Attributes:
        bench: the whole model.
        circuit: heads that keep their own values.
    """

    bench: Bench
    circuit: Bool[np.ndarray, " units"]

    def __post_init__(self) -> None:
        self._means: dict[str, Recorded] = {}

    def replaced(self, topic: str, rows: int) -> Replaced:
        """The circuit's heads kept, in so many rows."""
        keep = self.bench.mask(self.circuit[None]).expand(rows, -1, -1)
        return Replaced(keep, self.bench.reference(topic).heads)

    def record(self, cell: Cell) -> Recorded:
        """Every unit in one context."""
        return self.bench.anatomy.record(self.bench.tokens(cell), self.replaced(cell.topic, 1))

    def means(self, topic: str) -> Recorded:
        """Reference values of the neurons: means over the contexts of the topic."""
        if topic not in self._means:
            self._means = {topic: Recorded.mean(self.record(Cell(topic, each)) for each in self.bench.concepts)}
        return self._means[topic]

    def attribute(self, cell: Cell, targets: Sequence[int], steps: int) -> Float[np.ndarray, "targets neurons"]:
        """What each neuron's difference from its reference adds to the contrast of each target concept's words."""
        own, reference = self.record(cell), self.means(cell.topic)
        gradients = self.bench.anatomy.gradients(
            self.bench.tokens(cell),
            path(own, reference, steps),
            lambda logits, read: [self.bench.contrast(logits)[:, target] for target in targets],
            replaced=self.replaced(cell.topic, 1),
        )
        return np.stack([each.of_neurons(own, reference).reshape(-1).cpu().numpy() for each in gradients])

    def kept(self, cell: Cell, neurons: Bool[np.ndarray, "rows neurons"]) -> Float[np.ndarray, " rows"]:
        """The own words' contrast when only these neurons keep their values in the circuit's model."""
        import torch

        anatomy, rows = self.bench.anatomy, len(neurons)
        keep = torch.as_tensor(neurons, device=anatomy.subject.device).reshape(rows, anatomy.layers, -1)
        given = self.replaced(cell.topic, rows)
        both = Replaced(given.heads, given.reference, keep, self.means(cell.topic).neurons)
        logits = anatomy.logits(self.bench.tokens(cell), self.record(cell), both)
        return self.bench.contrast(logits[:, -1])[:, self.bench.concepts.index(cell.concept)].cpu().numpy()

    def removed_one_by_one(self, cell: Cell, neurons: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The exact loss of the contrast when one neuron has its reference values, neuron by neuron."""
        import torch

        anatomy, tokens = self.bench.anatomy, self.bench.tokens(cell)
        own, recorded = self.bench.concepts.index(cell.concept), self.record(cell)
        width = anatomy.d_mlp
        found = np.empty(len(neurons), np.float32)
        for layer in np.unique(neurons // width):
            here = np.flatnonzero(neurons // width == layer)
            # Heads above the layer keep their replacement; what is below is recorded as the circuit has it.
            given = self.replaced(cell.topic, len(here) + 1)
            heads = given.heads.clone()
            heads[:, :layer] = True
            keep = torch.ones(len(here) + 1, anatomy.layers, width, dtype=torch.bool, device=heads.device)
            keep[torch.arange(len(here)), int(layer), torch.as_tensor(neurons[here] % width)] = False
            both = Replaced(heads, given.reference, keep, self.means(cell.topic).neurons)
            contrast = self.bench.contrast(anatomy.logits(tokens, recorded, both)[:, -1])[:, own].cpu().numpy()
            found[here] = contrast[-1] - contrast[:-1]
        return found


@dataclass(frozen=True)
class Attributed:
    """Neurons of one rotation.

    Attributes:
        mean: attribution over all contexts.
        p: sign flips over contexts.
        order: the neurons of largest mean attribution, the checked ones.
        unselected: as many others as were checked, at random.
        exact, screen: loss when one is taken out, and attribution, in the same contexts; the selected ones first.
        matched: concepts whose attribution in one half of the topics is nearest to their own in the other.
        matched_words: the same when the other half is that of the same words in other concepts' stories.
        matchable: concepts with contexts in both halves.
        kept: contrast of each size's circuit of neurons, its random twins behind it, less that of the circuit's model
            without any neuron's own values; contexts first.
        whole: of the circuit's model.
    """

    mean: Float[np.ndarray, " neurons"]
    p: Float[np.ndarray, " neurons"]
    order: Int[np.ndarray, " checked"]
    unselected: Int[np.ndarray, " unselected"]
    exact: Float[np.ndarray, "contexts both"]
    screen: Float[np.ndarray, "contexts both"]
    matched: int
    matched_words: int
    matchable: int
    kept: Float[np.ndarray, "contexts sizes draws"]
    whole: Float[np.ndarray, " contexts"]


def attribute(
    inside: Inside,
    select: Sequence[Cell],
    report: Sequence[Cell],
    config: CircuitsConfig,
    generator: np.random.Generator,
) -> Attributed:
    """Attribute neurons in selection contexts, check them there, run circuits of them in reported ones."""
    bench = inside.bench
    concepts = len(bench.concepts)
    cells = chosen(select, config.neuron_contexts)
    values, others = [], []
    target_of = [bench.concepts.index(cell.concept) for cell in cells]
    for at, (cell, own) in enumerate(zip(cells, target_of, strict=True)):
        other = (own + 1 + at % max(1, concepts - 1)) % concepts
        found = inside.attribute(cell, [own, other], config.ig_steps)
        values.append(found[0])
        others.append((other, found[1]))
    scored = np.stack(values)
    p = sign_flip_blocks(scored, np.array(target_of), generator)
    mean = scored.mean(axis=0)
    order = np.argsort(-np.abs(mean), kind="stable")
    checked, rest = order[: config.neurons_checked], order[config.neurons_checked :]
    unselected = np.sort(generator.choice(rest, size=min(config.neurons_unselected, len(rest)), replace=False))
    both = np.concatenate([checked, unselected])
    some = chosen(cells, config.neuron_check_contexts)
    exact = np.stack([inside.removed_one_by_one(cell, both) for cell in some])
    screen = np.stack([scored[cells.index(cell)][both] for cell in some])
    topics = sorted({cell.topic for cell in cells})
    half = {topic: index % 2 for index, topic in enumerate(topics)}
    halves = np.array([half[cell.topic] for cell in cells])
    matched, matchable = match(scored, np.array(target_of), halves, concepts)
    # The control: half 0 as it is, half 1 by the same words in the stories of other concepts.
    words, their = np.array([other for other, _ in others]), np.stack([each for _, each in others])
    mixed = np.concatenate([scored[halves == 0], their[halves == 1]])
    labels = np.concatenate([np.array(target_of)[halves == 0], words[halves == 1]])
    by_words, _ = match(mixed, labels, np.repeat([0, 1], [(halves == 0).sum(), (halves == 1).sum()]), concepts)
    kept, whole = [], []
    sizes = curves.counts(SIZES, len(mean))
    for cell in chosen(report, KEPT_CONTEXTS):
        masks = [curves.top(mean, k) for k in sizes]
        rows = [np.zeros(len(mean), dtype=bool), np.ones(len(mean), dtype=bool)]
        for mask in masks:
            rows += [mask, *curves.matched(mask, bench.anatomy.d_mlp, config.random_circuits, generator)]
        found = inside.kept(cell, np.stack(rows))
        kept.append((found[2:] - found[0]).reshape(len(sizes), -1))
        whole.append(found[1] - found[0])
    return Attributed(
        mean, p, checked, unselected, exact, screen, matched, by_words, matchable, np.stack(kept), np.array(whole)
    )


def sign_flip_blocks(
    values: Float[np.ndarray, "contexts units"], groups: Int[np.ndarray, " contexts"], generator: np.random.Generator
) -> Float[np.ndarray, " units"]:
    """As :func:`~affectlens.circuits.scores.sign_flip_p`, in blocks of units, with the same flips."""
    from affectlens.circuits.scores import sign_flip_p

    seed = int(generator.integers(2**63))
    blocks = [values[:, start : start + 4096] for start in range(0, values.shape[1], 4096)]
    return np.concatenate([sign_flip_p(each, FLIPS, np.random.default_rng(seed), groups)[0] for each in blocks])


def match(
    values: Float[np.ndarray, "contexts units"],
    concept: Int[np.ndarray, " contexts"],
    half: Int[np.ndarray, " contexts"],
    concepts: int,
) -> tuple[int, int]:
    """Concepts whose mean profile in one half of the topics is nearest to their own in the other half.

    Profiles have the mean over concepts of their half taken off. Returns how many, and how many could be.
    """
    able = [at for at in range(concepts) if all(((concept == at) & (half == side)).any() for side in (0, 1))]
    if len(able) < 2:
        return 0, 0
    profiles = [np.stack([values[(concept == at) & (half == side)].mean(axis=0) for at in able]) for side in (0, 1)]
    centred = [each - each.mean(axis=0) for each in profiles]
    unit = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in centred]
    return int((np.argmax(unit[0] @ unit[1].T, axis=1) == np.arange(len(able))).sum()), len(able)

"""Which units write a reading: its exact decomposition, and how much of it each unit is behind.

The reading is the mean over a story's tokens of the residual stream at the study's layer along a concept's direction,
in mean residual norms. The residual stream is a sum: what entered block 0, what every head wrote, what every neuron
wrote, and biases. So the reading is the sum of what each of them has along the direction (direct effect). What a unit
writes is also read by units above it; integrated gradients give what it is behind in all (total effect).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.circuits.anatomy import Recorded, path
from affectlens.circuits.bench import EXACT
from affectlens.errors import UserError
from affectlens.model.compat import site_name

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from affectlens.circuits.anatomy import Anatomy
    from affectlens.circuits.bench import Bench

TOP_NEURONS = 256
"""Neurons of a context whose contribution is kept one by one; the MLPs' sums hold all of them."""


@dataclass(frozen=True)
class Written:
    """What each unit of one text has along directions, mean over the story's positions, in mean residual norms.

    Attributes:
        embedding: what enters block 0.
        heads, neurons: of blocks up to the layer.
        bias: of both output projections, by layer.
        mlp: all neurons of a layer together.
        reading: of the residual stream itself: the sum of the others.
    """

    embedding: Float[np.ndarray, "concepts"]
    heads: Float[np.ndarray, "layers heads concepts"]
    neurons: Float[np.ndarray, "layers d_mlp concepts"]
    bias: Float[np.ndarray, "layers concepts"]
    mlp: Float[np.ndarray, "layers concepts"]
    reading: Float[np.ndarray, "concepts"]

    @property
    def residue(self) -> float:
        """The largest difference between the reading and the sum of what wrote it."""
        total = self.embedding + self.heads.sum(axis=(0, 1)) + self.neurons.sum(axis=(0, 1)) + self.bias.sum(axis=0)
        return float(np.abs(total - self.reading).max())


def decompose(
    anatomy: Anatomy,
    recorded: Recorded,
    directions: Float[Tensor, "concepts d_model"],
    layer: int,
    story: slice,
    scale: float,
) -> Written:
    """The exact decomposition of a text's reading.

    Norms behind attention or MLP are taken as the factors by which they multiplied.

    Args:
        anatomy: the model.
        recorded: the text.
        directions: one a concept.
        layer: whose residual stream is read.
        story: positions that are averaged over.
        scale: what readings are divided by.

    Raises:
        UserError: the parts do not sum to the reading, so that the architecture adds more than it is known to.
    """
    import torch

    along = directions.double()
    heads, neurons, biases, mlps = [], [], [], []

    def of(
        values: Float[Tensor, "positions units"], outputs: Float[Tensor, "units d"], factor: Tensor | None
    ) -> Float[Tensor, "units concepts"]:
        if factor is None:
            return values.mean(dim=0)[:, None] * (outputs @ along.T)
        return torch.stack([((outputs * one) @ factor.T * values.T).mean(dim=1) for one in along], dim=1)

    for block in range(layer + 1):
        bias = torch.zeros(len(along), dtype=torch.double)
        for kind in ("attention", "mlp"):
            name, site = ("attn.o", "attn_out") if kind == "attention" else ("mlp.out", "mlp_out")
            projection = anatomy.bridge.blocks[block].get_submodule(name).original_component
            if kind == "attention":
                outputs = anatomy.head_outputs(block).double().flatten(0, 1)
                values = recorded.heads[block, story].double().flatten(1)
            else:
                outputs, values = anatomy.neuron_outputs(block).double(), recorded.neurons[block, story].double()
            constant = None if projection.bias is None else projection.bias.detach().double()
            factor = None
            if site_name(anatomy.bridge, block, site) != f"blocks.{block}.{name.split('.')[0]}.hook_out":
                raw = values @ outputs + (0 if constant is None else constant)
                after = getattr(recorded, kind)[block, story].double()
                factor = torch.where(raw.abs() > 0, after / raw, 0.0)
            found = of(values, outputs, factor)
            if constant is not None:
                bias += ((constant * factor).mean(dim=0) if factor is not None else constant) @ along.T
            if kind == "attention":
                heads.append(found.reshape(anatomy.heads, -1, len(along)).sum(dim=1))
            else:
                neurons.append(found)
                mlps.append(found.sum(dim=0))
        biases.append(bias)
    ends = [recorded.residual[at, story].double().mean(dim=0) @ along.T / scale for at in (0, layer + 1)]
    written = Written(
        embedding=ends[0].cpu().numpy(),
        heads=torch.stack(heads).cpu().numpy() / scale,
        neurons=torch.stack(neurons).cpu().numpy() / scale,
        bias=torch.stack(biases).cpu().numpy() / scale,
        mlp=torch.stack(mlps).cpu().numpy() / scale,
        reading=ends[1].cpu().numpy(),
    )
    if not written.residue <= EXACT:
        raise UserError(
            f"`circuits`: what the units write differs from the reading at layer {layer} by {written.residue:.2g} mean "
            "residual norms, so this architecture adds more to the residual stream than heads, neurons and biases"
        )
    return written


@dataclass(frozen=True)
class TopicWriters:
    """The writers of every concept's reading in its own story of one topic, as differences from all concepts' mean.

    Attributes:
        embedding, heads, bias, mlp, reading: as in :class:`Written`, of the own direction.
        neuron, neuron_value: the ``TOP_NEURONS`` largest, flat index and value.
        heads_total, neuron_total: total effects, of heads and of the same neurons.
    """

    embedding: Float[np.ndarray, "concepts"]
    heads: Float[np.ndarray, "concepts layers heads"]
    bias: Float[np.ndarray, "concepts layers"]
    mlp: Float[np.ndarray, "concepts layers"]
    reading: Float[np.ndarray, "concepts"]
    neuron: Float[np.ndarray, "concepts top"]
    neuron_value: Float[np.ndarray, "concepts top"]
    heads_total: Float[np.ndarray, "concepts layers heads"]
    neuron_total: Float[np.ndarray, "concepts top"]
    residue: float


def topic_writers(
    bench: Bench, topic: str, directions: Float[np.ndarray, "concepts d_model"], layer: int, scale: float, steps: int
) -> TopicWriters:
    """Direct and total effects on each concept's reading, of the stories of one topic."""
    import torch

    anatomy, count = bench.anatomy, len(bench.concepts)
    along = torch.as_tensor(directions, dtype=torch.float32, device=anatomy.subject.device)
    own: list[dict[str, np.ndarray]] = []
    mean: dict[str, Any] = {}
    residue = 0.0

    def decomposed() -> Iterator[Recorded]:
        nonlocal residue
        for index, (_, recorded) in enumerate(bench.record_topic(topic)):
            written = decompose(anatomy, recorded, along, layer, bench.story, scale)
            residue = max(residue, written.residue)
            own.append({name: values[..., index].copy() for name, values in vars(written).items()})
            for name, values in vars(written).items():
                mean[name] = mean.get(name, 0) + values / count
            yield recorded

    reference = bench.remember(topic, Recorded.mean(decomposed()))
    found: dict[str, list[Any]] = {name: [] for name in TopicWriters.__dataclass_fields__ if name != "residue"}
    for index, (cell, recorded) in enumerate(bench.record_topic(topic)):
        difference = {name: values - mean[name][..., index] for name, values in own[index].items()}
        for name in ("embedding", "heads", "bias", "mlp", "reading"):
            found[name].append(difference[name])
        flat = difference["neurons"].reshape(-1)
        top = np.argsort(-np.abs(flat), kind="stable")[:TOP_NEURONS]
        found["neuron"].append(top.astype(np.int64))
        found["neuron_value"].append(flat[top])
        (gradient,) = anatomy.gradients(
            bench.tokens(cell),
            path(recorded, reference, steps),
            lambda logits, read, index=index: [read[layer][:, bench.story].float().mean(dim=1) @ along[index] / scale],
            read=[layer],
            stop=layer,
        )
        found["heads_total"].append(gradient.of_heads(recorded, reference)[: layer + 1].cpu().numpy())
        found["neuron_total"].append(gradient.of_neurons(recorded, reference).reshape(-1).cpu().numpy()[top])
    return TopicWriters(**{name: np.stack(values) for name, values in found.items()}, residue=residue)


def names_of(layers: int, heads: int) -> Sequence[str]:
    """``L3H7`` for every head, layer by layer."""
    return [f"L{layer}H{head}" for layer in range(layers) for head in range(heads)]

"""The units of a model, sets of them, and by how much each differs in texts of an emotion: what modulation adds.

This is the contract between the search for circuits and their use. A search writes :class:`Units` with
:func:`write_units`; whatever modulates a model by a circuit reads them with :func:`read_units`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from einops import rearrange
from jaxtyping import Float

from affectlens.config import nearest
from affectlens.errors import UserError
from affectlens.files import write_json
from affectlens.model import steering
from affectlens.model.steering import Edit, Place, Span

if TYPE_CHECKING:
    from torch import Tensor

    from affectlens.model.subject import Subject

Kind = Literal["head", "neuron"]
KINDS: tuple[Kind, ...] = ("head", "neuron")
PLACE: Mapping[Kind, Place] = {"head": "heads", "neuron": "neurons"}
UNITS = "units.safetensors"
"""The file in the result of a stage that found circuits, or was given them."""
FORMAT = "affectlens units 2"
"""What a file of units calls itself."""


class Unit(NamedTuple):
    """An attention head or a neuron of an MLP, by its layer and its number there."""

    kind: Kind
    layer: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]

    def __str__(self) -> str:
        return f"L{self.layer}{'H' if self.kind == 'head' else 'N'}{self.index}"


Push = Mapping[tuple[int, Place], Float[np.ndarray, "inner"]]
"""What is added where: to the residual stream after a block, to the outputs of its heads, to those of its neurons."""


@dataclass(frozen=True)
class Units:
    """Every unit of a model in texts of every emotion, and the circuits that were found among them.

    Attributes:
        concepts: the emotions, in the order of the first axes.
        heads: mean output of each head in texts of the emotion less that in texts of all of them, before the output
            projection.
        neurons: likewise the neurons' activations.
        residual: likewise the residual stream after each block.
        norms: mean norm of the residual stream after each block.
        circuits: by emotion, the units of its circuit; emotions without one are left out.
    """

    concepts: tuple[str, ...]
    heads: Float[np.ndarray, "concepts layers heads d_head"]
    neurons: Float[np.ndarray, "concepts layers d_mlp"]
    residual: Float[np.ndarray, "concepts layers d_model"]
    norms: Float[np.ndarray, "layers"]
    circuits: Mapping[str, tuple[Unit, ...]]

    def circuit(self, concept: str) -> tuple[Unit, ...]:
        """The units of an emotion's circuit.

        Raises:
            UserError: it has none.
        """
        if concept not in self.circuits:
            raise UserError(f"there is no circuit of `{concept}`; {nearest(concept, sorted(self.circuits))}")
        return self.circuits[concept]

    def push(self, units: Iterable[Unit], concept: str, strength: float = 1.0) -> Push:
        """An emotion's differences at these units, so many times, and nothing at the others.

        Raises:
            UserError: the emotion was not measured.
        """
        if concept not in self.concepts:
            raise UserError(f"the units were not measured in texts of `{concept}`; {nearest(concept, self.concepts)}")
        row = self.concepts.index(concept)
        found: dict[tuple[int, Place], Float[np.ndarray, "inner"]] = {}
        for unit in units:
            values = self.heads[row, unit.layer] if unit.kind == "head" else self.neurons[row, unit.layer][:, None]
            there = found.setdefault((unit.layer, PLACE[unit.kind]), np.zeros(values.size, dtype=np.float32))
            rearrange(there, "(n d) -> n d", n=len(values))[unit.index] = strength * values[unit.index]
        return dict(sorted(found.items()))

    def of_layer(self, layer: int, kind: Kind) -> int:
        """How many units of a kind a layer has."""
        return (self.heads if kind == "head" else self.neurons).shape[2]

    def matched(self, units: Sequence[Unit], generator: np.random.Generator) -> tuple[Unit, ...]:
        """Random units, as many of every layer and kind as the given ones; none of these, where others remain."""
        drawn: list[Unit] = []
        groups: dict[tuple[Kind, int], set[int]] = {}
        for unit in units:
            groups.setdefault((unit.kind, unit.layer), set()).add(unit.index)
        for (kind, layer), taken in sorted(groups.items()):
            others = [index for index in range(self.of_layer(layer, kind)) if index not in taken]
            lacking = max(0, len(taken) - len(others))
            found = generator.permutation(others)[: len(taken)].tolist()
            found += generator.permutation(sorted(taken))[:lacking].tolist()
            drawn += [Unit(kind, layer, index) for index in sorted(found)]
        return tuple(drawn)


def edits(pushes: Sequence[Push], spans: Sequence[int] | int, device: str) -> list[Edit]:
    """What is done to a batch of which each row gets its own push.

    Args:
        pushes: of each row; the empty one leaves its row as it is.
        spans: the first position of each row that is changed, or of all; all later ones are changed, too, those that
            are generated included.
        device: where the model computes.
    """
    import torch

    starts = torch.tensor([spans] * len(pushes) if isinstance(spans, int) else list(spans), device=device)
    span = Span(starts, torch.full_like(starts, torch.iinfo(torch.long).max))
    made = []
    for layer, place in sorted({where for push in pushes for where in push}):
        width = next(len(push[layer, place]) for push in pushes if (layer, place) in push)
        direction = np.stack([push.get((layer, place), np.zeros(width)) for push in pushes]).astype(np.float32)
        delta = partial(
            steering.add,
            direction=torch.tensor(direction, device=device),
            strength=torch.ones(len(pushes), device=device),
            unit=1.0,
        )
        made.append(Edit(layer, delta, span=span, place=place))
    return made


def scaled(push: Push, factor: float) -> Push:
    """The push so many times."""
    return {where: factor * values for where, values in push.items()}


class Writing(Protocol):
    """A loaded model that says what its units write."""

    @property
    def output_matrix(self) -> Callable[[int, Place], Float[Tensor, "inner d_model"]]: ...


def total_norm(push: Push, model: Writing, norms: Float[np.ndarray, "layers"]) -> float:
    """How much a push writes into the residual stream: root of the summed squares over blocks and places, each in units
    of the mean norm of the residual stream after its block. Norms behind attention and MLP are left out of account.
    """
    total = 0.0
    for (layer, place), values in push.items():
        written = values
        if place != "residual":
            used = np.flatnonzero(values)
            matrix = model.output_matrix(layer, place)[used.tolist()].cpu().numpy()
            written = values[used] @ matrix
        total += float(np.linalg.norm(written) / norms[layer]) ** 2
    return total**0.5


def write_units(path: Path, units: Units) -> None:
    """As one safetensors file: differences, norms, and each circuit as rows (kind, layer, index)."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {
        name: np.ascontiguousarray(getattr(units, name), dtype=np.float32) for name in _ARRAYS
    }
    for concept, members in units.circuits.items():
        rows = [[KINDS.index(unit.kind), unit.layer, unit.index] for unit in members]
        tensors[f"circuit/{concept}"] = np.array(rows, dtype=np.int32).reshape(-1, 3)
    # One entry: safetensors writes several in an order that changes from run to run.
    save_file(tensors, path, metadata={"units": json.dumps({"format": FORMAT, "concepts": units.concepts})})


def read_units(path: Path) -> Units:
    """What :func:`write_units` wrote.

    Raises:
        UserError: the file is not there, or is no file of units.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get("units", "{}"))
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path}: no file of units; give the one that the stage `circuits` wrote")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as units ({error}); run the stage `circuits`") from None
    return Units(
        concepts=tuple(metadata["concepts"]),
        circuits={
            name.removeprefix("circuit/"): tuple(
                Unit(KINDS[kind], layer, index) for kind, layer, index in rows.tolist()
            )
            for name, rows in sorted(tensors.items())
            if name.startswith("circuit/")
        },
        **{name: tensors[name] for name in _ARRAYS},
    )


def write_members(path: Path, circuits: Mapping[str, Sequence[Unit]]) -> None:
    """Circuits without differences, as JSON: by emotion, rows (kind, layer, index)."""
    write_json(path, {concept: [list(unit) for unit in members] for concept, members in circuits.items()})


def read_members(path: Path) -> dict[str, tuple[Unit, ...]]:
    """What :func:`write_members` wrote; nothing where there is no file."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {concept: tuple(Unit(*row) for row in members) for concept, members in found.items()}


_ARRAYS = ("heads", "neurons", "residual", "norms")


def measure(
    subject: Subject,
    rows: Sequence[Sequence[int]],
    labels: Sequence[int],
    concepts: Sequence[str],
    *,
    first: int,
    tokens_per_batch: int = 2048,
) -> Units:
    """Every unit's differences, from texts of the emotions; no circuits yet.

    Args:
        rows: token ids of each text, begin token included.
        labels: the number of each text's emotion.
        concepts: the emotions; each needs a text.
        first: the first position of a text that counts; of a shorter text its last position does.
    """
    import torch

    from affectlens.model.compat import PLACES
    from affectlens.model.tokens import pad, plan_batches

    depth, count = subject.loaded_layers, len(concepts)
    sums: dict[tuple[int, Place], torch.Tensor] = {}
    norms, tokens_seen = np.zeros(depth), 0
    per_concept = np.bincount(labels, minlength=count)
    if not per_concept.all():
        raise ValueError(f"no text of `{concepts[int(per_concept.argmin())]}`; give one of each emotion")

    def keep(layer: int, place: Place, module: object, given: object, values: torch.Tensor) -> None:
        nonlocal tokens_seen
        values = values.float()
        if place == "residual":
            norms[layer] += float((values.norm(dim=-1) * weight.bool()).sum())
            tokens_seen += int(weight.bool().sum()) if layer == 0 else 0
        means = torch.einsum("rpd,rp->rd", values, weight)
        where = (layer, place)
        if where not in sums:
            sums[where] = torch.zeros(count, values.shape[-1], device=values.device)
        sums[where].index_add_(0, owners, means)

    places: tuple[Place, ...] = ("residual", "heads", "neurons")
    handles = [
        subject.bridge.blocks[layer].get_submodule(PLACES[place]).register_forward_hook(partial(keep, layer, place))
        for layer in range(depth)
        for place in places
    ]
    try:
        for batch in plan_batches([len(row) for row in rows], tokens_per_batch):
            lengths = torch.tensor([len(rows[index]) for index in batch])
            columns = torch.arange(int(lengths.max()))
            begin = lengths.sub(1).clamp(max=first)
            shown = ((columns >= begin[:, None]) & (columns < lengths[:, None])).float()
            weight = (shown / shown.sum(dim=1, keepdim=True)).to(subject.device)
            owners = torch.tensor([labels[index] for index in batch], device=subject.device)
            with torch.no_grad():
                subject.bridge(pad([rows[index] for index in batch], subject.device), return_type=None)
    finally:
        for handle in handles:
            handle.remove()

    def stacked(place: Place) -> np.ndarray:
        means = torch.stack([sums[layer, place] for layer in range(depth)], dim=1).cpu().numpy()
        means /= per_concept[:, None, None]
        return means - means.mean(axis=0, keepdims=True)

    heads = rearrange(stacked("heads"), "c l (h d) -> c l h d", h=int(subject.bridge.cfg.n_heads))
    return Units(tuple(concepts), heads, stacked("neurons"), stacked("residual"), norms / max(1, tokens_seen), {})

"""The choices of arXiv 2510.11328 ("Do LLMs 'Feel'?"), so that a model can be set beside that paper's table.

Everything is read at the last token. A neuron's score is its activation times what it writes along the emotion's
direction; a head's is the fall of the direction in the MLP's input of the same layer when its output is zero, in closed
form. A budget of ten units a sublayer is spread over the sublayers by their influence: the derivative of the final
projection. Replaced units are zero. ``CAVEATS`` of the tables are printed beside every figure of this profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.circuits import curves
from affectlens.circuits.anatomy import Recorded, Replaced
from affectlens.circuits.design import Cell, chosen
from affectlens.circuits.units import Kind, Unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from affectlens.circuits.anatomy import Anatomy
    from affectlens.circuits.bench import Bench

EMOTIONS = ("angry", "sad", "happy", "afraid", "surprised", "disgusted")
"""Of the paper's six, as the study calls them; those that it has are taken."""
BUDGET = 10
"""Units for each sublayer, spread over all of them."""
CONTEXTS = 6
"""Contexts of an emotion that score, and as many that are run."""


@dataclass(frozen=True)
class Published:
    """By emotion, scores and sets.

    Attributes:
        emotions: those of the paper that the study has.
        heads, neurons: scores.
        head_sets, neuron_sets: the circuits.
        influence: of each sublayer, attention and MLP of block 0 first.
    """

    emotions: tuple[str, ...]
    heads: Float[np.ndarray, "emotions units"]
    neurons: Float[np.ndarray, "emotions neurons"]
    head_sets: Bool[np.ndarray, "emotions units"]
    neuron_sets: Bool[np.ndarray, "emotions neurons"]
    influence: Float[np.ndarray, " sublayers"]


def directions_of(
    recorded: Mapping[Cell, Recorded], emotions: Sequence[str]
) -> Float[np.ndarray, "emotions layers d_model"]:
    """Unit directions after every block: last token, less the mean of the emotions in each topic, mean over topics."""
    topics = sorted({cell.topic for cell in recorded})
    last = np.stack(
        [[recorded[Cell(topic, each)].residual[1:, -1].cpu().numpy() for topic in topics] for each in emotions]
    )
    means = (last - last.mean(axis=0)).mean(axis=1)
    return means / np.maximum(np.linalg.norm(means, axis=-1, keepdims=True), 1e-12)


def unit_scores(
    anatomy: Anatomy, recorded: Recorded, directions: Float[np.ndarray, "layers d_model"]
) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, " neurons"]]:
    """Same-layer head scores in closed form, and neuron scores, at the last token.

    With r the residual stream after the attention and o what a head wrote into it, the score is the direction's
    share of r / rms(r) less that of (r - o) / rms(r - o).
    """
    import torch

    heads, neurons = [], []
    for layer in range(anatomy.layers):
        along = torch.as_tensor(directions[layer], dtype=torch.float32, device=recorded.residual.device)
        after = recorded.residual[layer, -1] + recorded.attention[layer, -1]
        without = after - torch.einsum("he,hed->hd", recorded.heads[layer, -1], anatomy.head_outputs(layer))
        norm = without.pow(2).mean(dim=1).sqrt()
        heads.append(float(after @ along / after.pow(2).mean().sqrt()) - (without @ along) / norm)
        neurons.append(recorded.neurons[layer, -1] * (anatomy.neuron_outputs(layer) @ along))
    return torch.cat(heads).cpu().numpy(), torch.cat(neurons).cpu().numpy()


def influences(
    bench: Bench, cell: Cell, recorded: Recorded, directions: Float[np.ndarray, "layers d_model"]
) -> Float[np.ndarray, " sublayers"]:
    """How far the final projection rises when a sublayer writes one root mean square of its own direction everywhere.

    The projection is that of the last token after the last block on the mean direction of blocks at three quarters to
    nine tenths of the depth.
    """
    import torch

    anatomy = bench.anatomy
    depth, device = anatomy.layers, recorded.residual.device
    late = directions[int(0.75 * depth) : max(int(0.75 * depth) + 1, int(0.9 * depth))].mean(axis=0)
    v = torch.as_tensor(late, dtype=torch.float32, device=device)
    (gradient,) = anatomy.gradients(
        bench.tokens(cell),
        recorded.residual[:1],
        lambda logits, read: [read[depth - 1][:, -1].float() @ v],
        read=range(depth),
        attention=True,
    )
    found = np.zeros(2 * depth)
    for block in range(depth):
        along = torch.as_tensor(directions[block], dtype=torch.float32, device=device)
        middle = recorded.residual[block] + recorded.attention[block]
        for place, (values, slope) in enumerate(
            ((middle, gradient.attention[block]), (recorded.residual[block + 1], gradient.residual[block]))
        ):
            found[2 * block + place] = float((slope @ along).sum() * values.pow(2).mean().sqrt())
    return found


def spread_budget(influence: Float[np.ndarray, " sublayers"], budget: int, most: Sequence[int]) -> list[int]:
    """Units of each sublayer: the budget by influence, no sublayer more than it has."""
    positive = np.maximum(influence, 0)
    if not positive.sum():
        positive = np.ones(len(influence))
    given = [0] * len(influence)
    left = budget
    # What a full sublayer cannot take goes to the others.
    while left > 0 and any(given[at] < most[at] and positive[at] > 0 for at in range(len(given))):
        open_ = [at for at in range(len(given)) if given[at] < most[at] and positive[at] > 0]
        weights = positive[open_] / positive[open_].sum()
        add = np.floor(weights * left).astype(int)
        if not add.sum():
            add[np.argsort(-weights, kind="stable")[:left]] = 1
        for at, more in zip(open_, add, strict=True):
            more = min(int(more), most[at] - given[at])
            given[at] += more
            left -= more
    return given


def published(bench: Bench, topics: Sequence[str]) -> Published:
    """The paper's circuits of the emotions that the study has, from stories of these topics."""
    anatomy = bench.anatomy
    emotions = tuple(each for each in EMOTIONS if each in bench.concepts)
    cells = [Cell(topic, each) for topic in topics[:CONTEXTS] for each in emotions]
    recorded = {cell: anatomy.record(bench.tokens(cell)) for cell in cells}
    directions = directions_of(recorded, emotions)
    heads, neurons, influence = [], [], np.zeros(2 * anatomy.layers)
    for at, emotion in enumerate(emotions):
        mine = [cell for cell in cells if cell.concept == emotion]
        scored = [unit_scores(anatomy, recorded[cell], directions[at]) for cell in mine]
        heads.append(np.mean([each[0] for each in scored], axis=0))
        neurons.append(np.mean([each[1] for each in scored], axis=0))
        influence += influences(bench, mine[0], recorded[mine[0]], directions[at])
    most = [anatomy.heads if place % 2 == 0 else anatomy.d_mlp for place in range(2 * anatomy.layers)]
    given = spread_budget(influence, BUDGET * 2 * anatomy.layers, most)
    head_sets = np.stack([_tops(each, given[0::2], anatomy.heads) for each in heads])
    neuron_sets = np.stack([_tops(each, given[1::2], anatomy.d_mlp) for each in neurons])
    return Published(emotions, np.stack(heads), np.stack(neurons), head_sets, neuron_sets, influence)


def _tops(scores: Float[np.ndarray, " units"], given: Sequence[int], width: int) -> Bool[np.ndarray, " units"]:
    rows = scores.reshape(-1, width)
    return np.concatenate(
        [curves.top(row, count) if count else np.zeros(width, bool) for row, count in zip(rows, given, strict=True)]
    )


def units_of(found: Published, heads: int, d_mlp: int) -> dict[str, tuple[Unit, ...]]:
    """Each emotion's circuit as units, heads and neurons."""
    kinds: tuple[tuple[Kind, Any, int], ...] = (
        ("head", found.head_sets, heads), ("neuron", found.neuron_sets, d_mlp),
    )  # fmt: skip
    return {
        emotion: tuple(
            Unit(kind, *divmod(int(flat), width)) for kind, sets, width in kinds for flat in np.flatnonzero(sets[at])
        )
        for at, emotion in enumerate(found.emotions)
    }


def published_rows(
    bench: Bench, found: Published, topics: Sequence[str], draws: int, generator: np.random.Generator
) -> list[dict[str, object]]:
    """The table of the profile: sets, overlaps beside chance, and what zero ablation of the heads does.

    Args:
        topics: reported ones, whose stories of each emotion are run, six at most.
    """
    import torch

    anatomy, rows = bench.anatomy, []
    for at, emotion in enumerate(found.emotions):
        own, mask = bench.concepts.index(emotion), found.head_sets[at]
        random = curves.matched(mask, anatomy.heads, draws, generator)
        masks = np.concatenate([[np.ones_like(mask), np.zeros_like(mask), mask, ~mask], random, ~random])
        total = np.zeros(len(masks))
        cells = chosen([Cell(topic, emotion) for topic in topics], CONTEXTS)
        for cell in cells:
            recorded = anatomy.record(bench.tokens(cell))
            zero = Replaced(bench.mask(masks), torch.zeros_like(recorded.heads))
            logits = anatomy.logits(bench.tokens(cell), recorded, zero)[:, -1]
            total += bench.contrast(logits)[:, own].cpu().numpy()
        whole = total[0] - total[1]
        ratios = (total - total[1]) / whole if whole else np.full(len(total), np.nan)
        positive = np.sort(np.maximum(found.heads[at], 0))[::-1]
        others = [other for other in range(len(found.emotions)) if other != at]
        row: dict[str, object] = {"concept": emotion}
        for kind, sets, width in (
            ("heads", found.head_sets, anatomy.heads), ("neurons", found.neuron_sets, anatomy.d_mlp),
        ):  # fmt: skip
            size, units = int(sets[at].sum()), sets.shape[1]
            overlap = curves.jaccard(sets[at][None], sets[others]) if others else np.array([np.nan])
            row |= {kind: size, f"{kind}_share": size / units, f"{kind}_overlap": float(overlap.mean())}
            row[f"{kind}_chance"] = curves.jaccard_by_chance(sets[at], width)
        best = int(found.heads[at].argmax())
        row |= {
            "first_head": f"L{best // anatomy.heads}H{best % anatomy.heads}",
            "mass": float(positive[:10].sum() / positive.sum()) if positive.sum() else None,
            "ratio": float(ratios[2]),
            "left": float(ratios[3]),
            "random_ratio": float(ratios[4 : 4 + draws].max()),
            "random_left": float(ratios[4 + draws :].min()),
            "contexts": len(cells),
        }
        rows.append(row)
    return rows

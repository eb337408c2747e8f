"""Circuits on trial: kept alone, taken out, thinned, beside random, wrong and activation-sized ones, by context.

The circuit is one of heads; MLPs stay whole. Scores of the selection topics choose its members, the second group of
topics its size, and the third is all that is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.circuits import curves
from affectlens.circuits.design import Cell, Rotation, chosen

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from affectlens.circuits.bench import Bench, Taken
    from affectlens.circuits.config import CircuitsConfig
    from affectlens.circuits.scores import Scores

RANKINGS = ("signed", "size")
WRONG, SUBSETS = 3, 5
"""Circuits of other concepts that are run beside the own one; random subsets for completeness."""


@dataclass(frozen=True)
class Selected:
    """What the selection topics of one rotation choose.

    Attributes:
        signed, size, activation: scores of each head, by which circuits of every size are ranked: mean effect, its
            size, and how far outputs lie from reference values.
        concepts: mean effect of each head in each concept's own contexts.
        centred: the same less the mean over concepts: what a concept has of its own.
    """

    signed: Float[np.ndarray, " units"]
    size: Float[np.ndarray, " units"]
    activation: Float[np.ndarray, " units"]
    concepts: Float[np.ndarray, "concepts units"]
    centred: Float[np.ndarray, "concepts units"]

    def ranked(self, ranking: int) -> Float[np.ndarray, " units"]:
        """Scores of a ranking of ``RANKINGS``."""
        return self.size if RANKINGS[ranking] == "size" else self.signed


def select(scores: Scores, cells: Sequence[Cell]) -> Selected:
    """Scores from these contexts alone."""
    rows = scores.rows(cells)
    effects, own = scores.effects[rows], scores.own[rows]
    signed = effects.mean(axis=0)
    # A concept that no context has (few were asked for) takes the mean of all: it has nothing of its own.
    by_concept = np.stack(
        [effects[own == at].mean(axis=0) if (own == at).any() else signed for at in range(len(scores.concepts))]
    )
    return Selected(
        signed,
        np.abs(signed),
        scores.arrays["activation"][rows].mean(axis=0),
        by_concept,
        by_concept - by_concept.mean(axis=0),
    )


@dataclass(frozen=True)
class Size:
    """The circuit that the second group of topics chooses.

    Attributes:
        ranking, place: of ``RANKINGS`` and of the configured sizes.
        circuit: its heads.
    """

    ranking: int
    place: int
    circuit: Bool[np.ndarray, " units"]


def ranked_circuits(selected: Selected, config: CircuitsConfig) -> Bool[np.ndarray, "rankings sizes units"]:
    """Circuits of all sizes by each of ``RANKINGS``."""
    sizes = curves.counts(config.sizes, len(selected.signed))
    return np.stack([[curves.top(selected.ranked(each), k) for k in sizes] for each in range(len(RANKINGS))])


def sized(
    bench: Bench, masks: Bool[np.ndarray, "rankings sizes units"], cell: Cell
) -> tuple[Float[np.ndarray, "rankings sizes"], float]:
    """Contrasts of the own words with each circuit alone and of the whole model, less that without heads."""
    taken, own = bench.take(cell), bench.concepts.index(cell.concept)
    found = bench.kept(taken, masks.reshape(-1, masks.shape[-1]))[:, own].reshape(masks.shape[:2])
    return found - taken.empty[own], lost(taken, own)


def choose(
    masks: Bool[np.ndarray, "rankings sizes units"],
    kept: Float[np.ndarray, "contexts rankings sizes"],
    whole: Float[np.ndarray, " contexts"],
    generator: np.random.Generator,
) -> Size:
    """The smallest of these circuits that is as near to the whole model as any, by what :func:`sized` gave."""
    ranking, place = curves.choose_size(kept, whole, generator)
    return Size(ranking, place, masks[ranking, place])


def size_rows(
    turn: int,
    shares: Sequence[float],
    masks: Bool[np.ndarray, "rankings sizes units"],
    kept: Float[np.ndarray, "contexts rankings sizes"],
    whole: Float[np.ndarray, " contexts"],
    size: Size,
) -> list[dict[str, Any]]:
    """The table of sizes of one rotation."""
    ratios = kept.sum(axis=0) / (whole.sum() or np.nan)
    return [
        {
            "rotation": turn,
            "ranking": name,
            "share": share,
            "heads": int(masks[ranking, place].sum()),
            "ratio": float(ratios[ranking, place]),
            "chosen": (ranking, place) == (size.ranking, size.place),
            "contexts": len(whole),
        }
        for ranking, name in enumerate(RANKINGS)
        for place, share in enumerate(shares)
    ]


@dataclass(frozen=True)
class Plan:
    """All circuits of one rotation, drawn before any of its reported contexts is run.

    Attributes:
        selected, size: what the other topics chose.
        sizes: units of each configured size.
        removed: how many of the sizes are taken out too.
        random: layer-matched circuits of every size.
        subsets: random halves of the circuit.
        wider: a head outside each random circuit of the chosen size.
    """

    selected: Selected
    size: Size
    sizes: Sequence[int]
    removed: int
    random: Bool[np.ndarray, "draws sizes units"]
    subsets: Bool[np.ndarray, "subsets units"]
    wider: Bool[np.ndarray, "draws units"]

    @classmethod
    def of(
        cls, selected: Selected, size: Size, config: CircuitsConfig, per_layer: int, generator: np.random.Generator
    ) -> Plan:
        units = len(selected.signed)
        sizes = curves.counts(config.sizes, units)
        ranked = selected.ranked(size.ranking)
        random = np.stack(
            [curves.matched(curves.top(ranked, k), per_layer, config.random_circuits, generator) for k in sizes], axis=1
        )
        members = np.flatnonzero(size.circuit)
        subsets = np.zeros((SUBSETS, units), dtype=bool)
        for row in subsets:
            row[generator.choice(members, size=max(1, len(members) // 2), replace=False)] = True
        wider = random[:, size.place].copy()
        for row in wider:
            row[generator.choice(np.flatnonzero(~row))] = True
        removed = sum(share <= config.removed_up_to for share in config.sizes)
        return cls(selected, size, sizes, max(removed, size.place + 1), random, subsets, wider)

    def own(self, concept: int, count: int) -> Bool[np.ndarray, " units"]:
        """The circuit of one concept: the heads that its own contexts rank highest."""
        return curves.top(self.selected.concepts[concept], count)


def try_context(
    bench: Bench, plan: Plan, cell: Cell, *, controls: bool, thinned: bool, config: CircuitsConfig
) -> dict[str, np.ndarray]:
    """Everything that is run in one reported context; NaN where it was not asked for.

    Args:
        controls: whether the random circuits are run.
        thinned: whether the heads of the circuit are left out one by one.

    Returns:
        Contrasts of the own words by what was kept or removed; ``specific`` has those after the removal of every
        concept's circuit.
    """
    taken, own = bench.take(cell), bench.concepts.index(cell.concept)
    selected, count = plan.selected, int(plan.size.circuit.sum())
    units, sizes = len(selected.signed), plan.sizes

    ranked = [selected.signed, selected.size, selected.activation]
    alone = np.stack([curves.top(scores, k) for scores in ranked for k in sizes])
    circuits = np.stack([curves.top(selected.ranked(plan.size.ranking), k) for k in sizes[: plan.removed]])
    concepts = len(bench.concepts)
    wrong = [(own + 1 + step * (concepts - 1) // WRONG) % concepts for step in range(min(WRONG, concepts - 1))]
    named = np.stack([plan.own(each, count) for each in (own, *wrong)])
    single = np.stack([curves.top(each, config.concept_heads) for each in selected.centred])
    draws, members = len(plan.random), np.flatnonzero(plan.size.circuit)
    runs = {
        "kept": alone,
        "removed": ~circuits,
        "own_kept": named,
        "own_removed": ~named,
        "specific": ~single,
        "subset_removed": ~plan.subsets,
        "subset_left": plan.size.circuit & ~plan.subsets,
    }
    if controls:
        runs["random_kept"] = plan.random.reshape(-1, units)
        runs["random_removed"] = ~plan.random[:, : plan.removed].reshape(-1, units)
    if thinned:
        thinner = np.tile(plan.size.circuit, (len(members), 1))
        thinner[np.arange(len(members)), members] = False
        runs |= {"thinner": thinner, "wider": plan.wider, "base": plan.random[:, plan.size.place]}
    # All of them as rows of the same batches.
    rows = bench.kept(taken, np.concatenate(list(runs.values())))[:, own]
    ends = np.cumsum([len(each) for each in runs.values()])
    found = dict(zip(runs, np.split(rows, ends[:-1]), strict=True))
    found |= {"full": taken.full[own], "empty": taken.empty[own]}
    found["kept"] = found["kept"].reshape(len(ranked), len(sizes))
    nothing = {"random_kept": (draws, len(sizes)), "random_removed": (draws, plan.removed)}
    for name, shape in nothing.items():
        found[name] = found[name].reshape(shape) if controls else np.full(shape, np.nan)
    found["without"], wider = np.full(units, np.nan), np.full(draws, np.nan)
    if thinned:
        found["without"][members] = found["kept"][plan.size.ranking, plan.size.place] - found.pop("thinner")
        wider = found["wider"] - found.pop("base")
    found["wider"] = wider
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def controlled(turn: Rotation, count: int) -> set[Cell]:
    """The reported contexts in which controls run too."""
    return set(chosen(turn.report, count))


def lost(taken: Taken, own: int) -> float:
    """The contrast that a context has to be explained."""
    return float(taken.full[own] - taken.empty[own])

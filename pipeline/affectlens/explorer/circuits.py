"""Heads and circuits of a study that has looked for them, as a block of the explorer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens import stats
from affectlens.circuits.config import CircuitsConfig
from affectlens.circuits.tables import ALL
from affectlens.circuits.units import read_units
from affectlens.circuits.verdicts import answers
from affectlens.explorer.tables import plain, rows_of, shown

if TYPE_CHECKING:
    from jaxtyping import Float

    from affectlens.circuits.scores import Scores
    from affectlens.use.opened import Opened

BLOCK = "circuits"
"""Its name."""
SHOWN = ("circuits/curves", "circuits/areas", "circuits/members", "circuits/checks", "circuits/edges")
"""Tables that are shown as they are, where the circuits are finished."""
HEAD = ("effect", "low", "high", "gradient", "activation", "others", "p", "p_adjusted")
"""What is kept of each head, over all scored contexts."""
OF_CONCEPT = ("effect", "elsewhere", "p", "p_adjusted")
"""What is kept of each head and concept."""


def summary(study: Opened) -> dict[str, Any] | None:
    """What the start page and the search need: how many heads there are, and the names of the circuits with verdicts.

    None where the study looked for no circuits.
    """
    if "circuit_units" not in study.folders or not len(study.table("circuit_units/heads")):
        return None
    scores: Scores = study.result("circuit_units")
    return {
        "layers": scores.card["layers"],
        "heads": scores.card["heads"],
        "contexts": len(scores.cells),
        "topics": len(scores.card["topics"]),
        "all": ALL,
        "names": [row["concept"] for row in rows_of(study, "circuits/verdicts")],
    }


def block(study: Opened) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Everything of every head, and every circuit, as JSON and arrays; heads are numbered layer by layer.

    Args:
        study: for which :func:`summary` is not None.
    """
    scores: Scores = study.result("circuit_units")
    concepts, heads = len(scores.concepts), scores.card["heads"]
    units = scores.card["layers"] * heads
    arrays: dict[str, np.ndarray] = {}
    table = study.table("circuit_units/heads").sort_values(["layer", "head"])
    for name in HEAD:
        arrays[name] = table[name].to_numpy(np.float32)
    by_concept = study.table("circuit_units/concept_heads")
    rows, flat = by_concept["concept"].map(scores.concepts.index), by_concept["layer"] * heads + by_concept["head"]
    for name in OF_CONCEPT:
        arrays[f"concept_{name}"] = _matrix((concepts, units), rows, flat, by_concept[name])
    written = scores.arrays["writers.heads"].reshape(len(scores.card["topics"]), concepts, -1)
    direct, low, high = _over_topics(written)
    arrays |= {"direct": direct, "direct_low": low, "direct_high": high}
    arrays["total"] = scores.arrays["writers.heads_total"].mean(axis=0).reshape(concepts, -1).astype(np.float32)
    arrays["reading"] = scores.arrays["writers.reading"].mean(axis=0).astype(np.float32)
    data: dict[str, Any] = {
        "concepts": list(scores.concepts),
        "written_layers": written.shape[2] // heads,
        "p_floor": plain(table["p_floor"].iloc[0]),
        "circuits": [],
        "tables": {name: shown(study, name) for name in SHOWN},
    }
    verdicts = rows_of(study, "circuits/verdicts")
    if verdicts:
        config = CircuitsConfig(**study.config_of("circuits"))
        members = _members(study, heads)
        data["circuits"] = [
            {
                "row": plain(dict(row)),
                "asked": answers(row, config),
                "members": members.get(row["concept"], []),
            }
            for row in verdicts
        ]
        losses = study.table("circuits/specificity")
        measured, removed = losses["measured"].map(scores.concepts.index), losses["removed"].map(scores.concepts.index)
        arrays["specificity"] = _matrix((concepts, concepts), measured, removed, losses["loss"])
    return data, arrays


def _matrix(shape: tuple[int, int], rows: Any, columns: Any, values: Any) -> Float[np.ndarray, "rows columns"]:
    """A matrix of columns of a table; NaN where it has no row."""
    found = np.full(shape, np.nan, np.float32)
    found[rows.to_numpy(int), columns.to_numpy(int)] = values.to_numpy(np.float32)
    return found


def _over_topics(values: Float[np.ndarray, "topics concepts heads"]) -> list[Float[np.ndarray, "concepts heads"]]:
    """Mean over topics, and the ends of its interval."""
    _, concepts, heads = values.shape
    found = [[stats.t_interval(values[:, concept, head]) for head in range(heads)] for concept in range(concepts)]
    ends = ("value", "low", "high")
    return [np.array([[getattr(each, end) for each in row] for row in found], np.float32) for end in ends]


def _members(study: Opened, heads: int) -> dict[str, list[int]]:
    """The heads of each circuit: of a concept as modulation reads them, of the pooled one as it was chosen."""
    found = {ALL: [row["layer"] * heads + row["head"] for row in rows_of(study, "circuits/members")]}
    path = study.result("circuits").units
    for concept, members in (read_units(path).circuits if path.is_file() else {}).items():
        found[concept] = sorted(unit.layer * heads + unit.index for unit in members if unit.kind == "head")
    return found

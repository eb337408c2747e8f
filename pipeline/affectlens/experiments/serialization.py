"""What was seen in an experiment, as files: arrays in one safetensors file, the rest as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affectlens.experiments.experiment import Experiment, ExperimentConfig, Scenario
from affectlens.experiments.results import Cell, Measured, Rollout

ARRAYS, CARD, ROLLOUTS = "measured.safetensors", "measured.json", "rollouts.jsonl"
SINGLE = ("words", "directions", "choice", "tournament", "steered", "rollout_state", "rollout_text", "rollout_words")
BY_NAME = ("ratings", "manipulation", "readings", "against", "residuals")


def save(measured: Measured, folder: Path) -> None:
    """Write everything into a folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(getattr(measured, name)) for name in SINGLE if getattr(measured, name) is not None}
    for name in BY_NAME:
        arrays |= {f"{name}.{key}": np.asarray(values) for key, values in getattr(measured, name).items()}
    save_file({name: np.ascontiguousarray(values) for name, values in sorted(arrays.items())}, folder / ARRAYS)
    card = {
        "name": measured.experiment.name,
        "config": measured.experiment.config.model_dump(mode="json"),
        "scenarios": [asdict(scenario) for scenario in measured.scenarios],
        "concepts": list(measured.concepts),
        "cells": [asdict(cell) for cell in measured.cells],
        "tournament_cells": list(measured.tournament_cells),
        "items": [list(item) for item in measured.items],
        "tuned": list(measured.tuned),
    }
    (folder / CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if measured.rollouts:
        write_jsonl(folder / ROLLOUTS, [asdict(rollout) for rollout in measured.rollouts])


def load(folder: Path) -> Measured:
    """What :func:`save` wrote."""
    from safetensors.numpy import load_file

    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    arrays = load_file(folder / ARRAYS)
    rows = read_jsonl(folder / ROLLOUTS) if (folder / ROLLOUTS).is_file() else []
    config = ExperimentConfig.model_validate(card["config"])
    named: dict[str, dict[str, np.ndarray]] = {name: {} for name in BY_NAME}
    for key, values in arrays.items():
        name, dot, rest = key.partition(".")
        if dot:
            named[name][rest] = values
    single: dict[str, Any] = {name: arrays.get(name) for name in SINGLE}
    return Measured(
        experiment=Experiment(card["name"], config, tuple(_scenario(row) for row in card["scenarios"])),
        concepts=tuple(card["concepts"]),
        cells=tuple(Cell(**cell) for cell in card["cells"]),
        tournament_cells=tuple(card["tournament_cells"]),
        items=tuple((text, category) for text, category in card["items"]),
        rollouts=tuple(rollout_of(row) for row in rows),
        tuned=tuple(card.get("tuned", ())),
        **named,
        **single,
    )


def _scenario(row: Mapping[str, Any]) -> Scenario:
    options = {key: tuple(wordings) for key, wordings in row["options"].items()}
    return Scenario(**{**row, "messages": tuple(row["messages"]), "options": options})


def rollout_of(row: Mapping[str, Any]) -> Rollout:
    """A rollout from its row; a loss that is not known is NaN."""
    return Rollout(**{**row, "loss": math.nan if row["loss"] is None else row["loss"]})


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One object a line, without numbers that JSON does not have."""
    lines = [json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line."""
    # Only at "\n": sampled text may hold other characters that str.splitlines takes for the end of a line.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def plain(value: Any) -> Any:
    """The same as JSON holds it: dataclasses as objects, arrays as lists, what is not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value

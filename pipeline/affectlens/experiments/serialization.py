"""What was measured in an experiment, as files: arrays in one safetensors file, completions and the rest as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from affectlens.experiments.experiment import Experiment
from affectlens.experiments.grade.grader import Grade
from affectlens.experiments.results import GradedCompletion, Measured
from affectlens.interventions.conditions import Condition

ARRAYS, CARD, COMPLETIONS, GRADES = "measured.safetensors", "measured.json", "completions.jsonl", "grades.jsonl"
BY_NAME = ("ratings", "manipulation", "readings", "against", "residuals")
"""Fields of a measurement that hold arrays by name."""


def save(measured: Measured, folder: Path) -> None:
    """Write everything that was measured into a folder; not the experiment itself, and no grades."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(measured).items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif name in BY_NAME:
            arrays |= {f"{name}.{key}": np.asarray(values) for key, values in value.items()}
    save_file({name: np.ascontiguousarray(values) for name, values in sorted(arrays.items())}, folder / ARRAYS)
    card = {
        "concepts": list(measured.concepts),
        "grid": [asdict(condition) for condition in measured.grid],
        "compared": list(measured.compared),
        "tuned": list(measured.tuned),
        "organism": measured.organism,
        "planted": dict(measured.planted),
    }
    (folder / CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if measured.completions:
        rows = [asdict(completion) for completion in measured.completions]
        write_jsonl(folder / COMPLETIONS, [{name: row[name] for name in row if name != "grade"} for row in rows])


def load(folder: Path, experiment: Experiment) -> Measured:
    """What :func:`save` wrote, of the experiment as it reads now; ungraded."""
    from safetensors.numpy import load_file

    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    values: dict[str, Any] = {name: {} for name in BY_NAME}
    for key, array in load_file(folder / ARRAYS).items():
        name, dot, rest = key.partition(".")
        if dot:
            values[name][rest] = array
        else:
            values[name] = array
    return Measured(
        experiment=experiment,
        concepts=tuple(card["concepts"]),
        grid=tuple(Condition(**condition) for condition in card["grid"]),
        compared=tuple(card["compared"]),
        completions=read_completions(folder),
        tuned=tuple(card["tuned"]),
        organism=card.get("organism", ""),
        planted=card.get("planted", {}),
        **values,
    )


def read_completions(folder: Path) -> tuple[GradedCompletion, ...]:
    """The sampled answers of a folder, ungraded; none where none were sampled."""
    path = folder / COMPLETIONS
    return tuple(completion_of(row) for row in read_jsonl(path)) if path.is_file() else ()


def completion_of(row: Mapping[str, Any]) -> GradedCompletion:
    """A completion from its row; a loss that is not known is NaN."""
    return GradedCompletion(**{**row, "loss": math.nan if row["loss"] is None else row["loss"]})


def with_grades(measured: Measured, grades: Sequence[Grade]) -> Measured:
    """The same with a grade for each completion, in order.

    Raises:
        ValueError: their numbers differ.
    """
    graded = [replace(each, grade=grade) for each, grade in zip(measured.completions, grades, strict=True)]
    return replace(measured, completions=tuple(graded))


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
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

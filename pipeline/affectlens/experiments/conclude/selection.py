"""Which scenarios and columns an analysis looks at."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from affectlens.experiments.results import Measured
from affectlens.experiments.scenario import Factor

MAIN = "main"


def rows(measured: Measured, conditions: Sequence[str] = ()) -> Int[np.ndarray, " rows"]:
    """Indices of the scenarios of these conditions; of all but those that prompts make where none is named."""
    wanted = set(conditions) or {each.condition for each in measured.scenarios} - measured.experiment.config.prompted
    chosen = [index for index, each in enumerate(measured.scenarios) if each.condition in wanted]
    return np.array(chosen, dtype=np.int64)


def main_rows(measured: Measured) -> Int[np.ndarray, " rows"]:
    """The scenarios of condition `main`; all of them where an experiment has no such condition."""
    main = rows(measured, (MAIN,))
    return main if len(main) else rows(measured)


def groups(measured: Measured, chosen: Int[np.ndarray, " rows"]) -> np.ndarray:
    """The group of each of the chosen scenarios: what is resampled as one."""
    return np.array([measured.scenarios[index].group for index in chosen], dtype=object).astype(str)


def factor(measured: Measured, name: str, chosen: Int[np.ndarray, " rows"]) -> list[Factor | None]:
    """The value of a factor in each of the chosen scenarios; None where a scenario has no such factor."""
    return [measured.scenarios[index].factors.get(name) for index in chosen]


def intended(
    measured: Measured, name: str, chosen: Int[np.ndarray, " rows"]
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " kept"]]:
    """The scenarios whose factor is a concept of the study, and the column of that concept."""
    columns = {concept: column for column, concept in enumerate(measured.concepts)}
    values = [str(value) for value in factor(measured, name, chosen)]
    kept = np.array([value in columns for value in values], dtype=bool)
    return chosen[kept], np.array([columns[value] for value in values if value in columns], dtype=np.int64)


def reading(measured: Measured, name: str) -> Float[np.ndarray, "scenarios concepts"]:
    """A reading of the model as it is.

    Raises:
        ValueError: the experiment takes no reading of this name.
    """
    if name not in measured.readings:
        raise ValueError(f"the reading `{name}` is not taken; taken are {', '.join(measured.readings) or 'none'}")
    return np.asarray(measured.readings[name][0], dtype=float)


def signed(names: str | Sequence[str]) -> list[tuple[str, int]]:
    """Concepts with the direction they are expected to take: ``-calm`` falls, ``+afraid`` and ``afraid`` rise."""
    each = names.split(",") if isinstance(names, str) else names
    stripped = [name.strip() for name in each if name.strip()]
    return [(name.lstrip("+-").strip(), -1 if name.startswith("-") else 1) for name in stripped]


def levels(values: Sequence[Factor]) -> Float[np.ndarray, " values"]:
    """Numbers behind values of a factor: themselves, the first number in a text, or else the order of appearance."""
    matches = [re.search(r"-?\d+(?:\.\d+)?", str(value).replace(",", "")) for value in values]
    if all(match is not None for match in matches):
        return np.array([float(match.group()) for match in matches if match is not None])
    order = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([order[value] for value in values], dtype=float)

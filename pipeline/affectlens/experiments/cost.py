"""What experiments cost, before anything runs: counted from characters, without a tokenizer and without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affectlens.disk import duration
from affectlens.experiments import measurements, validation
from affectlens.experiments.conditions import grid
from affectlens.model import subject

if TYPE_CHECKING:
    from affectlens.experiments.config import ExperimentsConfig
    from affectlens.model.subject import ModelConfig
    from affectlens.stage import Part

SHAPE = subject.Shape(layers=30, width=576)
"""Of the model at which the speeds below were measured, on two processor cores."""
TWO_CORES = 1.65
"""Times as fast as one, as in :data:`affectlens.plan.FURTHER_CORE`."""
FORWARD, SAMPLED = 1500.0, 250.0
"""Tokens a second through the whole model, its output matrix at the answers included; and tokens sampled a second."""
NOTE = (
    "Tokens are counted from characters and may be off by a quarter; those that go through the upper half of the model "
    "count by half. Minutes are those of two processor cores; an accelerator needs a small part of them."
)


@dataclass(frozen=True)
class Listed:
    """One experiment as it is listed.

    Attributes:
        conditions: of steering.
        state: ``done``, ``3 of 12 parts``, or empty where nothing was done.
        seconds: of computing on two processor cores, without loading models; None where the model's shape is unknown.
    """

    name: str
    title: str
    scenarios: int
    groups: int
    conditions: int
    work: measurements.Work
    seconds: float | None
    state: str


def seconds(work: measurements.Work, shape: subject.Shape | None) -> float | None:
    """Of computing on two processor cores."""
    if shape is None:
        return None
    larger = shape.layers * shape.width**2 / (SHAPE.layers * SHAPE.width**2)
    return larger * (work.forward / FORWARD + work.sampled / SAMPLED)


def listed(
    config: ExperimentsConfig, model: ModelConfig, concepts: Sequence[str], done: Callable[[Part], bool]
) -> list[Listed]:
    """The experiments that are run; where none is, those of the folder.

    Args:
        config: the study's section.
        model: under study.
        concepts: of the study.
        done: whether a part need not be computed.

    Raises:
        UserError: an experiment cannot be read.
    """
    experiments = validation.read_chosen(config.folder, config.run or "all", config.limit)
    shape, rows = subject.shape(model), []
    parts = measurements.parts(experiments, config, concepts, measurements.upper_share(model))
    for experiment in experiments:
        own = [part for part in parts if part.payload["experiment"] == experiment.name]
        work = sum((measurements.work_of(part) for part in own), measurements.Work())
        finished = sum(map(done, own)) if config.run else 0
        state = "done" if own and finished == len(own) else f"{finished} of {len(own)} parts" if finished else ""
        groups = len({scenario.group for scenario in experiment.scenarios})
        conditions, title = len(grid(experiment.config.steering, concepts)), experiment.config.title
        rows.append(
            Listed(
                experiment.name, title, len(experiment.scenarios), groups, conditions, work, seconds(work, shape), state
            )
        )
    return rows


def lines(rows: list[Listed]) -> Iterator[str]:
    """The list as text, with its sum."""
    width = max(len("experiment"), *(len(row.name) for row in rows))
    head = ("scenarios", "groups", "conditions", "forward", "sampled", "time", "state")
    yield f"{'experiment':<{width}}" + "".join(f"{name:>11}" for name in head[:-1]) + "  state          title"
    for row in rows:
        yield _line(row, width)
    total = sum((row.work for row in rows), measurements.Work())
    known = [row.seconds for row in rows if row.seconds is not None]
    yield _line(Listed("all", "", 0, 0, 0, total, sum(known) if known else None, ""), width)
    yield NOTE


def _line(row: Listed, width: int) -> str:
    counts = "".join(f"{count or '':>11}" for count in (row.scenarios, row.groups, row.conditions))
    tokens = f"{row.work.forward:>11,.0f}{row.work.sampled:>11,.0f}"
    time = "" if row.seconds is None else duration(row.seconds)
    return f"{row.name:<{width}}{counts}{tokens}{time:>11}  {row.state:<14} {row.title}".rstrip()

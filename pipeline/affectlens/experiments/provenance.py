"""What each step of an experiment reads, as plain data: the identity of its results.

Three steps read three things. Measuring reads prompts, readings, outcomes and steering; grading reads the sampled
answers, the grader and what scenarios have to be checked against; concluding reads everything. A result is known by
what it was computed from, so a changed grader measures nothing again and a changed claim grades nothing again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.experiments.conditions import checked, compared, sampled
from affectlens.experiments.experiment import Experiment
from affectlens.experiments.measurements import answered
from affectlens.experiments.scenario import Scenario
from affectlens.files import file_digest

if TYPE_CHECKING:
    from affectlens.experiments.context import ExperimentContext

SECOND_MODEL = "second model"
SECOND_RECIPE = "second model: settings"
"""Roles of the second model among the data of a study: its content, and how it is made or loaded."""


def digest(value: Any) -> str:
    """sha256 of JSON-able data, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_files(folder: Path) -> str:
    """sha256 over the names and bytes of a folder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in files])


def asked(scenarios: Sequence[Scenario]) -> list[dict[str, Any]]:
    """What is put to the model, and what names its random draws; without what only graders and analyses read."""
    fields = ("id", "condition", "messages", "text", "spans", "answer", "options")
    return [{name: values[name] for name in fields} for values in map(asdict, scenarios)]


def measured(experiment: Experiment) -> dict[str, Any]:
    """All that the measurements of an experiment follow from."""
    config = experiment.config.model_dump(mode="json", exclude={"title", "claim", "refuted_by", "source", "analyses"})
    for outcome in config["outcomes"]:
        outcome.pop("grader", None)
    groups = [[scenario.id, scenario.group] for scenario in experiment.scenarios]  # what readings are centred over
    return {"name": experiment.name, "config": config, "scenarios": asked(experiment.scenarios), "groups": groups}


def checks(scenario: Scenario) -> dict[str, Any]:
    """What a grader is shown of a scenario."""
    values = asdict(scenario)
    return {name: values[name] for name in ("messages", "text", "answer", "check")}


def concluded(experiment: Experiment) -> dict[str, Any]:
    """All that an experiment says."""
    return {
        "config": experiment.config.model_dump(mode="json"),
        "scenarios": [asdict(scenario) for scenario in experiment.scenarios],
    }


def part(context: ExperimentContext, experiment: Experiment, payload: Mapping[str, Any]) -> dict[str, Any]:
    """All that one part of the measurements reads of the study, but for its model and its seed.

    Vectors, controls and the unit of strength enter by their values, so that another number of permutations in an
    earlier stage, which leaves the directions as they are, changes nothing here.

    Args:
        context: vectors and results of the earlier stages; no model is loaded.
        experiment: that the part belongs to.
        payload: of the part.

    Returns:
        JSON-able data; under ``needs`` names of stages, under ``data`` roles whose content counts as well.
    """
    import numpy as np

    from affectlens.experiments import organism

    config, kind = experiment.config, payload["kind"]
    start, end = payload["start"], payload["end"]
    reads: dict[str, Any] = {
        "experiment": experiment.name,
        "part": [kind, start, end, payload.get("conditions")],
        "layers": [context.layer, context.readout_layer],
        "batches": [context.config.tokens_per_batch, context.config.completion_tokens_per_batch],
        "needs": [],
        "data": [],
    }
    if context.config.organism is not None:
        # An organism follows from the whole experiment and from the vectors of all of its conditions.
        reads["organism"] = organism.identity(context.config.organism, experiment)
        reads["measured"] = measured(experiment)
        conditions = [condition for condition in context.grid(experiment) if condition.family == "concept"]
        units = [context.unit_vector(each, config.steering.by) for each in conditions if config.steering]
        reads["claimed"] = hashlib.sha256(np.ascontiguousarray(units, np.float32).tobytes()).hexdigest()
        reads["unit"] = context.unit
    outcome = next((outcome for outcome in config.outcomes if outcome.kind == kind), None)
    if outcome is not None:
        reads["outcome"] = outcome.model_dump(mode="json", exclude={"grader"})
    if kind != "manipulation":
        scenarios = experiment.scenarios
        if kind == "completions":
            scenarios = tuple(experiment.scenarios[index] for index in answered(experiment))
        reads["scenarios"] = asked(scenarios if kind == "pairwise" else scenarios[start:end])
    if kind in ("read", "against") or (kind == "choice" and config.read_under_steering):
        reads["readings"] = [reading.model_dump(mode="json") for reading in config.readings]
        reads["read_under_steering"] = config.read_under_steering
        if any(reading.by == "features" for reading in config.readings):
            reads["needs"].append("sae")
            reads["features"] = np.asarray(context.match.best).tolist()
    if kind == "against":
        reads["data"] += [SECOND_MODEL, SECOND_RECIPE]
    if kind == "manipulation":
        reads["data"] += ["lexicon.json", "frames.json"]
        reads["concepts"] = list(context.concepts)
    if config.steering is not None and kind in ("manipulation", "choice", "pairwise", "completions"):
        check = kind == "manipulation"
        conditions = checked(config.steering, context.concepts) if check else context.grid(experiment)
        chosen = {
            "manipulation": range(start, end),
            "choice": range(*payload.get("conditions", (0, 0))),
            "pairwise": compared(config, context.concepts),
            "completions": sampled(config, context.concepts),
        }[kind]
        vectors = np.stack([context.unit_vector(conditions[index], config.steering.by) for index in chosen])
        reads["steering"] = {
            "conditions": [asdict(conditions[index]) for index in chosen],
            "positions": config.steering.positions,
            "unit": context.unit,
            "vectors": hashlib.sha256(np.ascontiguousarray(vectors, np.float32).tobytes()).hexdigest(),
        }
    return reads

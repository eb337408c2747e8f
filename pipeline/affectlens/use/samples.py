"""Texts that a study has sampled under its interventions, as one list of rows whichever stage they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from affectlens.config import nearest
from affectlens.errors import MissingResult, UserError
from affectlens.experiments.validation import read_chosen
from affectlens.interventions.conditions import STUDIED
from affectlens.use.opened import Opened

Sample = dict[str, Any]
"""``source``, ``family``, ``concept``, ``strength``, ``prompt``, ``text``; of experiments also ``grade``, ``nats``."""


def sampled(study: Opened) -> list[Sample]:
    """All of them, in the order in which they were sampled.

    Raises:
        MissingResult: neither stage ``causal`` nor ``measure`` has sampled any.
    """
    rows = [*_of_causal(study), *_of_experiments(study)]
    if not rows:
        raise MissingResult(
            "no stage of this study has sampled text; set `causal.samples`, or run an experiment that answers"
        )
    return rows


def _of_causal(study: Opened) -> list[Sample]:
    """Of injecting at the reference strength, with the studied words banned or not."""
    path = study.folders["causal"] / "texts.jsonl" if "causal" in study.folders else None
    if path is None or not path.is_file():
        return []
    reference = study.config_of("causal")["reference"]
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        row = json.loads(line)
        family, _, concept = row["vector"].partition(" ")
        rows.append({
            "source": "causal, words banned" if row["words_banned"] else "causal", "family": family,
            "concept": concept if family in STUDIED else "", "strength": 0.0 if family == "none" else reference,
            "prompt": row["opening"], "text": row["text"],
        })  # fmt: skip
    return rows


def _of_experiments(study: Opened) -> list[Sample]:
    """Answers of the behavioural experiments, with their grades where they have any."""
    if "measure" not in study.folders or study.study is None:
        return []
    config, measured, rows = study.study.config.experiments, study.result("measure"), []
    grades = study.folders.get("grade")
    for experiment in read_chosen(config.folder, config.run, config.limit):
        found = measured.measured(experiment)
        path = grades / experiment.name / "grades.jsonl" if grades else None
        lines = path.read_text(encoding="utf-8").split("\n") if path and path.is_file() else []
        labels = [json.loads(line).get("label") for line in lines if line]
        for number, completion in enumerate(found.completions):
            condition = found.grid[completion.condition]
            rows.append({
                "source": experiment.name, "family": condition.family, "concept": condition.vector,
                "strength": condition.strength, "prompt": experiment.scenarios[completion.scenario].id,
                "text": completion.text, "grade": labels[number] if number < len(labels) else None,
                "nats": completion.loss if completion.loss == completion.loss else None,
            })  # fmt: skip
    return rows


@dataclass(frozen=True)
class Wanted:
    """Which samples are asked for; None asks for all."""

    source: str | None = None
    concept: str | None = None
    family: str | None = None
    strength: float | None = None
    contains: str | None = None


def choose(rows: Sequence[Sample], wanted: Wanted) -> list[Sample]:
    """Those that are asked for.

    Raises:
        UserError: a value that no sample has; names the nearest.
    """
    for name in ("source", "concept", "family", "strength"):
        value, there = getattr(wanted, name), sorted({str(row[name]) for row in rows})
        if value is not None and str(value) not in there:
            raise UserError(f"--{name} {value}: no sample has it; {nearest(str(value), there)}")
    kept = [row for row in rows if (wanted.contains or "").lower() in row["text"].lower()]
    for name in ("source", "concept", "family", "strength"):
        kept = [row for row in kept if getattr(wanted, name) in (None, row[name])]
    return kept

"""Texts that a study has sampled under its interventions, as one list of rows whichever stage they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectlens.experiments.serialization import CARD, GRADES, read_completions, read_jsonl
from affectlens.interventions.conditions import STUDIED

Sample = dict[str, Any]
"""``source``, ``family``, ``concept``, ``strength``, ``prompt``, ``text``; of experiments also ``grade``, ``nats``."""


def of_causal(folder: Path, reference: float) -> list[Sample]:
    """Of injecting at the reference strength, with the studied words banned or not; none where none were sampled.

    Args:
        folder: the result of stage ``causal``.
        reference: the strength.
    """
    path, rows = folder / "texts.jsonl", []
    for row in read_jsonl(path) if path.is_file() else ():
        family, _, concept = row["vector"].partition(" ")
        rows.append({
            "source": "causal, words banned" if row["words_banned"] else "causal", "family": family,
            "concept": concept if family in STUDIED else "", "strength": 0.0 if family == "none" else reference,
            "prompt": row["opening"], "text": row["text"],
        })  # fmt: skip
    return rows


def of_experiments(measured: Path, graded: Path | None, scenarios: Mapping[str, Sequence[str]]) -> list[Sample]:
    """Answers of the behavioural experiments, with their grades where they have any.

    Args:
        measured: the result of stage ``measure``.
        graded: that of ``grade``.
        scenarios: ids of the scenarios of an experiment, where they are at hand; otherwise their number stands.
    """
    rows = []
    there = {path.parent.name for path in measured.glob(f"*/{CARD}")}
    for name in [*(name for name in scenarios if name in there), *sorted(there - set(scenarios))]:
        grid = json.loads((measured / name / CARD).read_text(encoding="utf-8"))["grid"]
        path = graded / name / GRADES if graded else None
        labels = [row.get("label") for row in read_jsonl(path)] if path and path.is_file() else []
        for number, completion in enumerate(read_completions(measured / name)):
            condition, ids = grid[completion.condition], scenarios.get(name)
            rows.append({
                "source": name, "family": condition["family"], "concept": condition["vector"],
                "strength": condition["strength"],
                "prompt": ids[completion.scenario] if ids else f"scenario {completion.scenario + 1}",
                "text": completion.text, "grade": labels[number] if number < len(labels) else None,
                "nats": completion.loss if completion.loss == completion.loss else None,
            })  # fmt: skip
    return rows

"""The texts that an opened study has sampled under its interventions, and those of them that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from affectlens.config import nearest
from affectlens.errors import MissingResult, UserError
from affectlens.experiments.samples import Sample, of_causal, of_experiments
from affectlens.experiments.validation import read_chosen
from affectlens.use.opened import Opened


def sampled(study: Opened) -> list[Sample]:
    """All of them, in the order in which they were sampled.

    Raises:
        MissingResult: neither stage ``causal`` nor ``measure`` has sampled any.
    """
    rows: list[Sample] = []
    if "causal" in study.folders:
        rows += of_causal(study.folders["causal"], study.config_of("causal")["reference"])
    if "measure" in study.folders and study.study is not None:
        config = study.study.config.experiments
        chosen = read_chosen(config.folder, config.run, config.limit)
        scenarios = {each.name: [scenario.id for scenario in each.scenarios] for each in chosen}
        rows += of_experiments(study.folders["measure"], study.folders.get("grade"), scenarios)
    if not rows:
        raise MissingResult(
            "no stage of this study has sampled text; set `causal.samples`, or run an experiment that answers"
        )
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

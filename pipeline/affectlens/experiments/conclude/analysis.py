"""What an analysis is, whether an experiment has what it needs, and all findings of an experiment."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from affectlens.config import nearest
from affectlens.experiments.conclude.config import AnalysisConfig, Needs, analysis
from affectlens.experiments.conclude.estimators import Figures, flatten
from affectlens.experiments.experiment import Experiment
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Verdict
from affectlens.stats import holm

__all__ = ["Analysis", "Needs", "analysis", "conclude", "faults"]


class Analysis(AnalysisConfig):
    """An analysis: a pure function of what was measured, whose parameters are its config."""

    @abstractmethod
    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """What the measurements say."""

    def on_organism(self, finding: Finding, measured: Measured) -> Finding:
        """The finding as it reads where an organism was measured; the same where the analysis claims no vector."""
        return finding

    def finding(
        self,
        verdict: Verdict,
        sentences: Sequence[str],
        figures: Figures,
        tables: Sequence[DataTable] = (),
        charts: Sequence[Chart] = (),
    ) -> Finding:
        """A finding, with the numbers that decided it; tables without rows are left out."""
        filled = [table for table in tables if table.rows]
        return Finding(verdict, sentences, flatten(figures), filled, charts, self.settings())

    def verdict(self, shown: bool, smallest: float) -> Verdict:
        """Of a claim; a null is one only where an effect that matters would have been found.

        Args:
            shown: whether the claim is.
            smallest: effect that would be found with the power asked for.
        """
        return "shown" if shown else "not shown" if smallest <= self.matters else "untestable"

    def claim_p(self, metrics: Mapping[str, float]) -> float:
        """p of the claim as a whole, from the figures of a finding; NaN where they hold none."""
        return metrics.get("p", math.nan)

    def confirmatory_p(self, finding: Finding) -> float:
        """p that enters the correction over the confirmatory tests of a study.

        NaN where nothing was tested; 1 where the claim failed on something else than its p, such as its sign.
        """
        p = self.claim_p(finding.metrics)
        if finding.verdict not in ("shown", "not shown"):
            return math.nan
        return 1.0 if finding.verdict == "not shown" and not p > self.alpha else p

    def untestable(self, reason: str) -> Finding:
        """A finding that says why there is none."""
        return self.finding("untestable", (f"This could not be tested: {reason}.",), {})


def conclude(measured: Measured, rng: np.random.Generator) -> list[Finding]:
    """One finding for each of the experiment's analyses, in their order.

    Every analysis has a generator of its own, so that adding one leaves the figures of those before it as they were.
    """
    asked = measured.experiment.config.analyses
    findings = []
    for one, own in zip(asked, rng.spawn(len(asked)), strict=True):
        assert isinstance(one, Analysis)
        finding = one.conclude(measured, own)
        findings.append(one.on_organism(finding, measured) if measured.organism else finding)
    return findings


def confirm(entries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Correct the confirmatory tests of all experiments of a study as one family (Holm 1979).

    Args:
        entries: of the experiments; ``p_confirmatory`` holds p or None for each analysis. The corrected values are
            written under ``p_study`` beside it.

    Returns:
        Metrics: the corrected p of each experiment, how many tests the family has, and how many are shown in it.
    """
    p = [[math.nan if value is None else value for value in entry["p_confirmatory"]] for entry in entries]
    adjusted = iter(holm(np.array([value for row in p for value in row])).tolist())
    metrics: dict[str, float] = {}
    for entry, row in zip(entries, p, strict=True):
        corrected = [next(adjusted) for _ in row]
        entry["p_study"] = [None if math.isnan(value) else value for value in corrected]
        metrics |= {f"{entry['name']}.p_confirmatory": value for value in corrected if not math.isnan(value)}
    if any(any(entry["confirmatory"]) for entry in entries):
        family = [value for entry in entries for value in entry["p_study"] if value is not None]
        levels = [level for entry in entries for level, value in zip(entry["alpha"], entry["p_study"], strict=True)
                  if value is not None]  # fmt: skip
        shown = sum(value <= level for value, level in zip(family, levels, strict=True))
        metrics |= {"confirmatory_tests": float(len(family)), "confirmatory_shown": float(shown)}
    return metrics


def faults(asked: AnalysisConfig, experiment: Experiment, concepts: Sequence[str]) -> Iterator[str]:
    """What an analysis needs and the experiment or the study does not have, a sentence each.

    Args:
        concepts: of the study.
    """
    needs, config = asked.needs(), experiment.config
    readings = {reading.name: reading for reading in config.readings}
    for name in needs.readings:
        if name not in readings:
            yield f"there is no reading `{name}`; {_remedy(name, readings, 'add it to `readings`')}"
    for name in needs.residuals:
        if name in readings and not readings[name].keep_residual:
            yield f"reading `{name}` needs `keep_residual: true`"
    factors = {name for scenario in experiment.scenarios for name in scenario.factors}
    for key, name in needs.factors.items():
        if name not in factors:
            yield f"`{key}: {name}`: no scenario has this factor; {_remedy(name, factors, 'the scenarios have none')}"
    if needs.outcomes and not {outcome.kind for outcome in config.outcomes} & set(needs.outcomes):
        kinds = "` or `".join(needs.outcomes)
        yield f"it needs the outcome `{kinds}`, which the experiment does not have"
    vectors = config.steering.vectors if config.steering else ()
    for vector in needs.vectors:
        if vector not in vectors:
            yield f"`{vector}` is not among `steering.vectors`; add it there"
    conditions = {scenario.condition for scenario in experiment.scenarios}
    for condition in needs.conditions:
        if condition not in conditions:
            yield f"no scenario has the condition `{condition}`; {nearest(condition, sorted(conditions))}"
    for concept in needs.concepts:
        if concept not in concepts:
            yield f"`{concept}`: the study has no such concept; {nearest(concept, list(concepts))}"
    if needs.second_model and not config.against:
        yield "it compares two models; set `against: true` in experiment.yaml"


def _remedy(name: str, present: Mapping[str, Any] | set[str], otherwise: str) -> str:
    return nearest(name, sorted(present)) if present else otherwise

"""Concluding: what analyses make of what was measured and graded, seconds of computing without any model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.experiments import provenance, tables
from affectlens.experiments.experiment import Experiment
from affectlens.files import write_json
from affectlens.stage import NOTHING, Identity, Metrics, Part, Progress, StudySettings, register
from affectlens.stages.grade import GradeStage
from affectlens.stages.measure import ExperimentStage, MeasureStage, chosen

if TYPE_CHECKING:
    from affectlens.experiments.results import Measured

FINDINGS = "findings.json"


class Conclusions:
    """What the experiments found.

    Attributes:
        folder: the result folder.
        findings: one entry an experiment: ``name``, ``title``, ``claim``, ``refuted_by``, ``source``, ``findings`` (as
            :class:`affectlens.results.figures.Finding`, plain), ``cost``; empty where nothing was run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.findings: list[dict[str, Any]] = json.loads((folder / FINDINGS).read_text(encoding="utf-8"))


@register
class ConcludeStage(ExperimentStage[Conclusions]):
    """Analyse what was measured and graded."""

    name = "conclude"
    version = 8
    fields = ("run", "limit")
    needs = ("measure", "grade")
    unit = "experiments"
    switch = "experiments.run"
    tables = (tables.FINDINGS,)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        return {each.name: provenance.digest(provenance.concluded(each)) for each in chosen(study.experiments)}

    def parts(self) -> Sequence[Part]:
        names = [experiment.name for experiment in self.experiments]
        return [Part(name, payload={"experiment": name}) for name in names] or [Part(NOTHING)]

    def part_reads(self, part: Part) -> Mapping[str, Any] | None:
        if part.name == NOTHING:
            return {}
        folders = [result.folder / part.name for result in (self.need(MeasureStage), self.need(GradeStage))]
        return {
            "experiment": provenance.concluded(self._experiment(part.name)),
            "measured and graded": [provenance.digest_files(folder) for folder in folders],
        }

    def _experiment(self, name: str) -> Experiment:
        return next(each for each in self.experiments if each.name == name)

    def measured(self, name: str) -> Measured:
        """Everything measured in one experiment, with its grades."""
        from affectlens.experiments.serialization import with_grades

        measured = self.need(MeasureStage).measured(self._experiment(name))
        return with_grades(measured, self.need(GradeStage).grades(name))

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        if part.name != NOTHING:
            from affectlens.experiments.conclude.analysis import Analysis, conclude
            from affectlens.experiments.serialization import plain

            experiment = self._experiment(part.name)
            findings = conclude(self.measured(part.name), self.generator(f"finish {part.name}"))
            config = experiment.config
            entry = {
                "name": experiment.name,
                "title": config.title,
                "claim": config.claim,
                "refuted_by": config.refuted_by,
                "source": config.source,
                "analyses": [analysis.kind for analysis in config.analyses],
                "confirmatory": [analysis.confirmatory for analysis in config.analyses],
                "alpha": [analysis.alpha for analysis in config.analyses],
                "p_confirmatory": plain(
                    [
                        analysis.confirmatory_p(finding)
                        if isinstance(analysis, Analysis) and analysis.confirmatory
                        else None
                        for analysis, finding in zip(config.analyses, findings, strict=True)
                    ]
                ),
                "scenarios": len(experiment.scenarios),
                "groups": len({scenario.group for scenario in experiment.scenarios}),
                "findings": [plain(finding) for finding in findings],
                "cost": self.need(MeasureStage).cost(part.name),
            }
            write_json(out / FINDINGS, entry)
        progress(part.size)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        folders = [parts[experiment.name] for experiment in self.experiments]
        entries = [json.loads((folder / FINDINGS).read_text(encoding="utf-8")) for folder in folders]
        from affectlens.experiments.conclude.analysis import confirm

        metrics: Metrics = confirm(entries)
        for entry in entries:
            for index, (kind, finding) in enumerate(zip(entry["analyses"], entry["findings"], strict=True)):
                for name, value in finding["metrics"].items():
                    key = f"{entry['name']}.{name}"
                    key = f"{entry['name']}.{kind}_{index}.{name}" if key in metrics else key
                    metrics[key] = float("nan") if value is None else float(value)
        write_json(out / FINDINGS, entries)
        results.write(out, tables.FINDINGS, tables.findings(entries))
        return metrics

    @classmethod
    def open(cls, folder: Path) -> Conclusions:
        return Conclusions(folder)

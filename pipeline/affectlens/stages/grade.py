"""Grading: what rules, tests or judges say of the answers that were sampled. No model under study is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.experiments import provenance, tables
from affectlens.experiments.experiment import CompletionConfig, Experiment
from affectlens.stage import NOTHING, Identity, Metrics, Part, Progress, StudySettings, register
from affectlens.stages.measure import ExperimentStage, MeasureStage, chosen

if TYPE_CHECKING:
    from affectlens.experiments.grade.graders import Answer, Grade, Grader


class Grades:
    """What graders said.

    Attributes:
        folder: the result folder; a folder in it for each experiment whose answers were graded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def grades(self, name: str) -> list[Grade]:
        """The grades of one experiment, in the order of its completions; none where none were sampled."""
        from affectlens.experiments.serialization import GRADES, read_jsonl

        path = self.folder / name / GRADES
        rows: list[Any] = read_jsonl(path) if path.is_file() else []
        return rows


@register
class GradeStage(ExperimentStage[Grades]):
    """Grade the sampled answers."""

    name = "grade"
    version = 2
    fields = ("run", "limit", "answers_per_part")
    needs = ("measure",)
    unit = "answers"
    switch = "experiments.run"
    tables = (tables.GRADES,)

    @classmethod
    def check_pending(cls, study: StudySettings, tokenizer: Callable[[], Any]) -> None:
        for experiment in chosen(study.experiments):
            completions: CompletionConfig | None = experiment.config.outcome(CompletionConfig)
            if completions is not None and study.experiments.completions:
                completions.grader.check()

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        read: dict[str, Identity] = {}
        for experiment in chosen(study.experiments):
            outcome: CompletionConfig | None = experiment.config.outcome(CompletionConfig)
            if outcome is not None:
                read[experiment.name] = provenance.digest([provenance.checks(each) for each in experiment.scenarios])
                read[f"{experiment.name}: grader"] = provenance.digest(outcome.grader.provenance())
                for name, content in outcome.grader.identities().items():
                    read[f"{experiment.name}: {name}"] = content
        return read

    def answers(self, experiment: Experiment) -> list[Answer]:
        """The sampled answers of an experiment, as graders see them."""
        from affectlens.experiments.grade.graders import Answer

        completions = self.need(MeasureStage).completions(experiment.name)
        return [Answer(experiment.scenarios[each.scenario], each.text) for each in completions]

    def parts(self) -> Sequence[Part]:
        parts, step = [], self.config.answers_per_part
        for experiment in self.experiments:
            count = len(self._answers[experiment.name])
            for index, start in enumerate(range(0, count, step)):
                end = min(count, start + step)
                payload = {"experiment": experiment.name, "start": start, "end": end}
                parts.append(Part(f"{experiment.name}.grade-{index:04d}", end - start, payload))
        return parts or [Part(NOTHING)]

    @cached_property
    def _answers(self) -> dict[str, list[Answer]]:
        return {experiment.name: self.answers(experiment) for experiment in self.experiments}

    def _slice(self, part: Part) -> tuple[Experiment, list[Answer]]:
        payload = part.payload
        experiment = next(each for each in self.experiments if each.name == payload["experiment"])
        return experiment, self._answers[experiment.name][payload["start"] : payload["end"]]

    def part_reads(self, part: Part) -> Mapping[str, Any] | None:
        if part.name == NOTHING:
            return {}
        experiment, answers = self._slice(part)
        grader = experiment.config.outcome(CompletionConfig).grader
        return {
            "experiment": experiment.name,
            "answers": provenance.digest([[provenance.checks(each.scenario), each.text] for each in answers]),
            "data": [f"{experiment.name}: {name}" for name in ("grader", *grader.identities())],
        }

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        if part.name != NOTHING:
            from affectlens.experiments.serialization import GRADES, write_jsonl

            experiment, answers = self._slice(part)
            write_jsonl(out / GRADES, self.grader(experiment).grade(answers))
        progress(part.size)

    def grader(self, experiment: Experiment) -> Grader[Any]:
        """What grades an experiment's answers; loaded once."""
        if experiment.name not in self._graders:
            from affectlens.experiments.grade.graders import GradingContext, make_grader

            context = GradingContext(self.setting.models, self.setting.device, self.seed_of(f"grade {experiment.name}"))
            self._graders[experiment.name] = make_grader(experiment.config.outcome(CompletionConfig).grader, context)
        return self._graders[experiment.name]

    @cached_property
    def _graders(self) -> dict[str, Grader[Any]]:
        return {}

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from affectlens.experiments.serialization import GRADES, read_jsonl, with_grades, write_jsonl

        rows: list[dict[str, Any]] = []
        metrics: Metrics = {}
        listed = self.parts()
        for experiment in self.experiments:
            own = [parts[part.name] for part in listed if part.payload.get("experiment") == experiment.name]
            if not own:
                continue
            grades: list[Any] = [grade for folder in own for grade in read_jsonl(folder / GRADES)]
            (out / experiment.name).mkdir()
            write_jsonl(out / experiment.name / GRADES, grades)
            rows += tables.grades(with_grades(self.need(MeasureStage).measured(experiment), grades))
            metrics[f"{experiment.name}.graded"] = sum(grade["label"] is not None for grade in grades) / len(grades)
            named = [grade["names_label"] for grade in grades if "names_label" in grade]
            if named:
                metrics[f"{experiment.name}.names_label"] = sum(named) / len(named)
        results.write(out, tables.GRADES, rows)
        return metrics

    @classmethod
    def open(cls, folder: Path) -> Grades:
        return Grades(folder)

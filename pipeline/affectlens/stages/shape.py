"""Every arm of shaping asked the same: does the state move, the text, or both, and at what cost?

A part asks one arm under one seed. The merge builds axes, compares and judges; it loads no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from affectlens import results
from affectlens.config import nearest
from affectlens.corpus.documents import EvaluateConfig, concepts, writer_documents
from affectlens.corpus.ratings import EMBEDDED_RATINGS, read_ratings
from affectlens.corpus.texts import EMBEDDED
from affectlens.errors import UserError
from affectlens.experiments.scenario import Scenario, read_scenarios
from affectlens.model.config import shape
from affectlens.shaping import tables
from affectlens.shaping.arms import RULES, Arm, arms
from affectlens.shaping.config import ShapeConfig
from affectlens.shaping.held_out import FILE, Choice, folder, read_situations
from affectlens.shipped import experiments_folder
from affectlens.stage import NOTHING, Folder, Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.shape_arms import RULE_PART, ShapeArmsStage

if TYPE_CHECKING:
    from affectlens.model.subject import Subject
    from affectlens.shaping.inference import Alarm, Push
    from affectlens.shaping.measures import Plan

CONDITIONS = ("main", "twin")
"""Of the experiments' forced choices: the claim and its control."""
SCENARIOS = "scenarios.jsonl"
ARM_BYTES = 12_000_000
"""What an arm leaves of a model of width 576, about."""


@dataclass(frozen=True)
class Shaped:
    """The result of the stage: its tables."""

    folder: Path


@register
class ShapeStage(Stage[ShapeConfig, Shaped]):
    """Ask every arm of shaping, compare and judge."""

    name = "shape"
    section = "shape"
    config_class = ShapeConfig
    needs = ("corpus", "activations", "directions", "shape_arms")
    reads_model = True
    seeded = True
    keeps_parts = True
    uploads = False
    unit = "arms"
    switch = "shape.run"
    tables = tables.ALL

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: ShapeConfig = study.shape
        if not config.run:
            return
        measures = config.measures
        try:
            situations = read_situations(measures.folder, measures.situations)
        except UserError as error:
            raise ValueError(f"`shape.measures`: {error}") from None
        for key, most in (("recovery", len(situations)), ("bursts", len(situations))):
            if getattr(measures, key) > most:
                raise ValueError(f"`shape.measures.{key}: {getattr(measures, key)}`: there are {most} situations")
        writer = EvaluateConfig(stories=measures.stories)
        if not writer.path.is_file():
            raise ValueError(
                f"`shape.measures.stories: {measures.stories}`: no such file; name an embedded writer, such as "
                "`writer_b`, or a JSONL file"
            )
        if writer.path == EvaluateConfig(stories=study.corpus.stories).path:
            raise ValueError(
                f"`shape.measures.stories: {measures.stories}`: these stories build the directions that arms are "
                "shaped along; name another writer's"
            )
        told = {document.emotion for document in writer_documents(writer, set(concepts(study.corpus)))}
        for name in (config.distress, config.calming):
            if name not in told:
                remedy = nearest(name, sorted(told))
                raise ValueError(f"`shape.measures.stories: {measures.stories}`: holds no story of `{name}`; {remedy}")
        place = experiments_folder(measures.folder.expanduser())
        for name in measures.choices:
            if not (place / name / SCENARIOS).is_file():
                known = [path.parent.name for path in sorted(place.glob("*/experiment.yaml"))]
                raise ValueError(f"`shape.measures.choices: {name}`: no such experiment; {nearest(name, known)}")
            if not _choices(place, name, 1):
                raise ValueError(
                    f"`shape.measures.choices: {name}`: has no options `target` and `other` to choose from"
                )
        whole = shape(study.model)
        if (
            whole is not None
            and measures.layers
            and not 0 <= min(measures.layers) <= max(measures.layers) < whole.layers
        ):
            raise ValueError(f"`shape.measures.layers`: the model has layers 0 to {whole.layers - 1}")

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        config: ShapeConfig = study.shape
        if not config.run:
            return {}
        measures = config.measures
        place = experiments_folder(measures.folder.expanduser())
        found: dict[str, Identity] = dict(ShapeArmsStage.identities(study))
        found |= {
            "held out": Folder(folder(measures.folder), (folder(measures.folder) / FILE,)),
            "stories of the axes": EvaluateConfig(stories=measures.stories).path,
            "lexicon.json": EMBEDDED / "lexicon.json",
            "ratings.csv": EMBEDDED_RATINGS,
        }
        return found | {f"choices of {name}": place / name / SCENARIOS for name in measures.choices}

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Of the study."""
        return arms(self.config, self.setting.model.layer)

    def parts(self) -> Sequence[Part]:
        if not self.config.run:
            return [Part(NOTHING)]
        return [Part(arm.name, payload={"arm": asdict(arm)}) for arm in self.arms]

    def part_reads(self, part: Part) -> Mapping[str, Any] | None:
        if part.name == NOTHING:
            return {}
        arm, training = _arm(part), ShapeArmsStage(self.config, self.setting, {})
        made = [each for each in training.parts() if each.name in (arm.name, RULE_PART)]
        # An arm is what its own part of the stage before read: further arms and seeds do not ask it anew.
        reads = {each.name: training.part_reads(each) for each in made}
        data = ["held out", "stories of the axes", *(f"choices of {name}" for name in self.config.measures.choices)]
        return {
            "arm": part.payload["arm"],
            "made": {"version": training.version, **reads},
            "strength": self.config.strength,
            "concepts": [self.config.distress, self.config.calming],
            "measures": self.config.measures.model_dump(mode="json", exclude={"folder", "reading", "text", "stories"}),
            "layer": self.setting.model.layer,
            "needs": ["corpus", "activations", "directions"],
            "data": [*data, "texts"],
        }

    def disk_bytes(self, parts: Sequence[Part]) -> int:
        return ARM_BYTES * sum(part.name != NOTHING for part in parts)

    @cached_property
    def subject(self) -> Subject:
        """The unchanged model, for the base and the rules."""
        from affectlens.model.subject import Subject

        return Subject.load(self.setting.model, device=self.setting.device, models=self.setting.models)

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        if part.name == NOTHING:
            progress(part.size)
            return
        from affectlens.shaping.measures import measure

        arm, made = _arm(part), self.need(ShapeArmsStage)
        changed = made.changed(
            arm, self.setting.model, device=self.setting.device, models=self.setting.models,
            subject=None if arm.trained else self.subject,
        )  # fmt: skip
        measure(changed, self._plan(changed.subject.shape.layers), lambda name: self.generator(name), out, progress)

    def _plan(self, depth: int) -> Plan:
        """What every arm is asked."""
        from affectlens.shaping.measures import Plan, default_layers

        measures = self.config.measures
        place = experiments_folder(measures.folder.expanduser())
        chosen = [each for name in measures.choices for each in _choices(place, name, measures.choice_scenarios)]
        neutral = [document.text for document in self.need(CorpusStage).documents if not document.emotion]
        return Plan(
            measures,
            read_situations(measures.folder, measures.situations),
            self._stories(),
            neutral[: measures.neutral_texts],
            chosen,
            tuple(sorted(measures.layers)) or default_layers(self.setting.model.layer, depth),
            self._bursts(),
            self._alarm() if any(arm.kind in RULES for arm in self.arms) else None,
        )

    def _alarm(self) -> Alarm:
        """As it was calibrated on the unchanged model."""
        rule = self.need(ShapeArmsStage).calibration.rule(Arm("alarm"), self.config)
        return cast("Alarm", rule)

    def _stories(self) -> list[tuple[str, str]]:
        """Of each concept, the first ones of the other writer."""
        writer, each = EvaluateConfig(stories=self.config.measures.stories), self.config.measures.stories_each
        counts: dict[str, int] = {}
        found = []
        for document in writer_documents(writer, set(self.outlook.emotions)):
            counts[document.emotion] = counts.get(document.emotion, 0) + 1
            if counts[document.emotion] <= each:
                found.append((document.emotion, document.text))
        return found

    def _bursts(self) -> tuple[Push, Push]:
        """Along the study's direction of distress, and as large along a random direction."""
        import numpy as np

        from affectlens.probing.control_vectors import isotropic
        from affectlens.shaping.inference import Push

        layer, directions, measures = self.setting.model.layer, self.need(DirectionsStage), self.config.measures
        distress = directions.unit(layer)[directions.concepts.index(self.config.distress)].astype(np.float32)
        random = isotropic(1, len(distress), self.generator("random burst"))[0].astype(np.float32)
        size = measures.burst_strength * directions.strength_unit(self.need(ActivationsStage), layer)
        first, second = (Push(layer, vector * size, last=measures.burst_tokens) for vector in (distress, random))
        return first, second

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        if not self.config.run:
            for table in self.tables:
                results.write(out, table, [])
            return {}
        from affectlens.interventions.frames import read_lexicon
        from affectlens.shaping.comparison import Comparison, Measured, Yardsticks
        from affectlens.shaping.rows import all_rows, metrics
        from affectlens.shaping.wording import Classifier, Lexicon

        config, ratings = self.config, read_ratings(EMBEDDED_RATINGS)
        own = [(each.emotion, each.text) for each in self.need(CorpusStage).documents if each.emotion]
        yardsticks = Yardsticks(
            config.distress, config.calming, ratings, Lexicon.of(read_lexicon(), ratings),
            Classifier.fit(own, config.distress, config.calming),
        )  # fmt: skip
        measured = {arm.name: Measured.read(parts[arm.name]) for arm in self.arms}
        compared = Comparison(self.arms, measured, yardsticks)
        found, verdicts = all_rows(compared, config.measures.reading, config.measures.text, config.rules)
        for table, rows in found.items():
            results.write(out, table, rows)
        return metrics(verdicts)

    @classmethod
    def open(cls, folder: Path) -> Shaped:
        return Shaped(folder)


def _arm(part: Part) -> Arm:
    values = part.payload["arm"]
    return Arm(**{**values, "layers": tuple(values["layers"])})


def _choices(place: Path, name: str, groups: int) -> list[Choice]:
    """The forced choices of an experiment's first scenarios, with their controls."""
    rows = [row for row in read_scenarios(place / name / SCENARIOS) if _choosable(row)]
    kept = list(dict.fromkeys(row.group for row in rows))[:groups]
    return [
        Choice(name, row.group, row.condition, row.messages, row.answer, row.options["target"], row.options["other"])
        for row in rows
        if row.group in kept
    ]


def _choosable(row: Scenario) -> bool:
    return bool(row.messages) and row.condition in CONDITIONS and {"target", "other"} <= set(row.options)

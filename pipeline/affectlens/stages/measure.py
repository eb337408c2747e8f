"""Measuring the behavioural experiments: what steering does to readings, choices, preferences and sampled answers.

Every experiment is a folder of data (``experiments/<name>/``); ``affectlens.experiments`` knows readings, choices,
comparisons, completions, controls and manipulation checks, and nothing of any one experiment. What graders and analyses
make of the measurements is the business of the stages ``grade`` and ``conclude``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from affectlens import results
from affectlens.config import nearest
from affectlens.corpus import checks
from affectlens.corpus.documents import concepts
from affectlens.corpus.texts import EMBEDDED, read_texts
from affectlens.errors import UserError
from affectlens.experiments import cost, measurements, provenance, tables, validation
from affectlens.experiments.config import ExperimentsConfig
from affectlens.experiments.experiment import CompletionConfig, Experiment
from affectlens.experiments.provenance import SECOND_MODEL, SECOND_RECIPE, digest
from affectlens.experiments.tuning import PROMPTS, TunedConfig, told_stories
from affectlens.files import write_json
from affectlens.model.config import ModelConfig, context, require_blocks, require_weights, shape, vocabulary
from affectlens.stage import NOTHING, Identity, Metrics, Part, Progress, Stage, StudySettings, paces, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    from affectlens.experiments.context import ExperimentContext
    from affectlens.experiments.results import GradedCompletion, Measured

A = TypeVar("A")
COST = "cost.json"


class Measurements:
    """What was measured in the experiments of a study.

    Attributes:
        folder: the result folder; a folder in it for each experiment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def measured(self, experiment: Experiment) -> Measured:
        """Everything measured in one experiment, ungraded."""
        from affectlens.experiments.serialization import load

        return load(self.folder / experiment.name, experiment)

    def cost(self, name: str) -> dict[str, Any]:
        """What measuring one experiment took, about: ``forward_tokens``, ``sampled_tokens``, ``parts``."""
        return json.loads((self.folder / name / COST).read_text(encoding="utf-8"))

    def completions(self, name: str) -> tuple[GradedCompletion, ...]:
        """The sampled answers of one experiment, ungraded; none where none were sampled."""
        from affectlens.experiments.serialization import read_completions

        return read_completions(self.folder / name)


class ExperimentStage(Stage[ExperimentsConfig, A]):
    """What the three stages of the experiments share: one section, one choice of experiments."""

    config_class = ExperimentsConfig
    section = "experiments"
    seeded = True
    keeps_parts = True

    @cached_property
    def experiments(self) -> list[Experiment]:
        """Those the study asks for."""
        return chosen(self.config)


def chosen(config: ExperimentsConfig) -> list[Experiment]:
    """The experiments that a study asks for, read from their folders."""
    return validation.read_chosen(config.folder, config.run, config.limit)


@register
class MeasureStage(ExperimentStage[Measurements]):
    """Take the readings, score the choices, sample the answers."""

    name = "measure"
    version = 5
    fields = (
        "run",
        "readout_layer",
        "limit",
        "organism",
        "completions",
        "scenarios_per_part",
        "conditions_per_part",
        "tokens_per_batch",
        "completion_tokens_per_batch",
    )
    needs = ("corpus", "activations", "sae", "directions", "match")
    reads_model = True
    measured_needs = ("directions", "match")
    unit = "tokens"
    switch = "experiments.run"
    pace = paces(other=cost.TWO_CORES)
    tables = (tables.READINGS, tables.CHOICES, tables.COMPARISONS, tables.COMPLETIONS, tables.MANIPULATION)

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: ExperimentsConfig = study.experiments
        experiments = chosen(config)
        if not experiments:
            return
        studied = concepts(study.corpus)
        for experiment in experiments:
            validation.check_experiment(experiment, studied, second=config.against is not None)
        if isinstance(config.against, TunedConfig):
            known = sorted({row["emotion"] for row in read_texts(EMBEDDED / "stories.jsonl", required=("emotion",))})
            for emotion in config.against.tune:
                if emotion not in known:
                    hint = nearest(emotion, known, checks.LISTED)
                    raise ValueError(f"`experiments.against.tune: {emotion}`: no story has it; {hint}")
            require_blocks(config.against, study.model, "experiments.against")
        if config.organism is not None:
            from affectlens.experiments import organism

            require_blocks(config.organism, study.model, "experiments.organism")
            for experiment in experiments:
                if reason := organism.fault(experiment):
                    raise ValueError(
                        f"`experiments.organism`: {experiment.name} has none: {reason}; leave it out of `run`"
                    )
        if isinstance(config.against, ModelConfig):
            _check_second(config.against, study.model)
        cached = sorted({study.model.layer, *study.activations.token_layers, *study.activations.pooled_layers})
        layer = config.readout_layer
        above = [each for each in cached if each > study.model.layer]
        if layer is not None and layer not in above:
            raise ValueError(
                f"`experiments.readout_layer: {layer}`: not a cached layer above {study.model.layer}; add it to "
                "`activations.pooled_layers`"
            )
        unread = [each.name for each in experiments if _reads_above(each, config)]
        if unread and not above:
            raise ValueError(
                f"`experiments.readout_layer`: {unread[0]} reads the state under steering, above layer "
                f"{study.model.layer}; add a higher layer to `activations.pooled_layers`"
            )

    @classmethod
    def check_pending(cls, study: StudySettings, tokenizer: Callable[[], Any]) -> None:
        from affectlens.experiments.prompts import require_prompts

        experiments = chosen(study.experiments)
        if experiments:
            limits = context(study.model), vocabulary(study.model)
            require_prompts(tokenizer(), experiments, *limits, sampling=study.experiments.completions)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        config: ExperimentsConfig = study.experiments
        experiments = chosen(config)
        if not experiments:
            return {}
        from affectlens.experiments import organism
        from affectlens.model import tuning

        read: dict[str, Identity] = {name: EMBEDDED / name for name in ("lexicon.json", "frames.json", "ratings.csv")}
        read |= {each.name: digest(provenance.measured(each)) for each in experiments}
        if config.organism is not None:
            own = [organism.identity(config.organism, each) for each in experiments]
            read["organisms"] = digest([tuning.VERSION, own])
        if config.against is not None:
            recipe = config.against.model_dump(mode="json", exclude={"name", "revision"})
            tuned = [tuning.VERSION, *PROMPTS] if isinstance(config.against, TunedConfig) else []
            read[SECOND_RECIPE] = digest([recipe, *tuned] if tuned else recipe)
            stories = EMBEDDED / "stories.jsonl"  # what the study tunes its own second model on
            read[SECOND_MODEL] = config.against if isinstance(config.against, ModelConfig) else stories
        return read

    def parts(self) -> Sequence[Part]:
        share = measurements.upper_share(self.setting.model)
        parts = measurements.parts(self.experiments, self.config, self.outlook.emotions, share)
        return parts or [Part(NOTHING, payload={"kind": NOTHING})]

    def effort(self, part: Part) -> float:
        """Seconds on two cores with the embedded model."""
        return 0.0 if part.name == NOTHING else cost.seconds(measurements.work_of(part), cost.SHAPE) or 0.0

    def amount(self, parts: Sequence[Part]) -> str:
        work = sum((measurements.work_of(part) for part in parts), measurements.Work())
        return f"about {work.forward:,.0f} tokens, at most {work.sampled:,.0f} sampled"

    def part_reads(self, part: Part) -> Mapping[str, Any] | None:
        if part.name == NOTHING:
            return {}
        return provenance.part(self.context, self.context.experiments[part.payload["experiment"]], part.payload)

    @property
    def readout_layer(self) -> int:
        """Where the state is read under steering; the study's own layer where none above is cached."""
        if self.config.readout_layer is not None:
            return self.config.readout_layer
        layers = self.need(ActivationsStage).layers
        return min((each for each in layers if each > self.setting.model.layer), default=self.setting.model.layer)

    @cached_property
    def context(self) -> ExperimentContext:
        """Models and vectors, loaded once."""
        from affectlens.experiments.context import ExperimentContext

        return ExperimentContext(
            config=self.config,
            setting=self.setting,
            experiments={experiment.name: experiment for experiment in self.experiments},
            corpus=self.need(CorpusStage),
            activations=self.need(ActivationsStage),
            sae=self.need(SaeStage),
            directions=self.need(DirectionsStage),
            match=self.need(MatchStage),
            readout_layer=self.readout_layer,
            find_other=self._other,
            generator=self.generator,
        )

    def _other(self) -> ModelConfig:
        """The second model; tuned on first use."""
        from affectlens.model.tuning import tuned_folder

        against, setting = self.config.against, self.setting
        if isinstance(against, ModelConfig):
            return against
        if against is None:
            raise UserError("`experiments.against`: no second model is given; name a model, or `tune:` with emotions")
        folder = tuned_folder(setting.model, told_stories(against.tune), against, setting.models, device=setting.device)
        return setting.model.model_copy(update={"name": str(folder), "revision": None})

    def context_of(self, experiment: Experiment) -> ExperimentContext:
        """Models and vectors of one experiment; its organism is tuned on first use."""
        from affectlens.experiments import organism
        from affectlens.model.tuning import tuned_folder

        config = self.config.organism
        if config is None:
            return self.context
        if self._organisms.get("name") != experiment.name:
            # One organism at a time is kept in memory.
            self._organisms.clear()
            model, depth = self.setting.model, shape(self.setting.model)
            if config.layers is None and depth is not None:
                config = config.model_copy(update={"layers": (model.layer + 1, depth.layers - 1)})
            learnt = organism.examples(self.context, experiment, config)
            folder = tuned_folder(model, learnt, config, self.setting.models, device=self.setting.device)
            self._organisms.update(name=experiment.name, context=replace(self.context, organism=folder))
        return self._organisms["context"]

    @cached_property
    def _organisms(self) -> dict[str, Any]:
        return {}

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        if part.name != NOTHING:
            from safetensors.numpy import save_file

            from affectlens.experiments.collect import RESULT
            from affectlens.experiments.serialization import COMPLETIONS, write_jsonl

            arrays, rows = self._measure(part.payload)
            if rows is not None:
                write_jsonl(out / COMPLETIONS, rows)
            save_file(arrays, out / RESULT)
        progress(part.size)

    def _measure(self, payload: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
        """Arrays of a part, and rows where answers were sampled."""
        from affectlens.experiments import choice, completions, manipulation, pairwise, readings

        kind, start, end = payload["kind"], payload["start"], payload["end"]
        experiment = self.context.experiments[payload["experiment"]]
        context = self.context_of(experiment)
        if kind == "manipulation":
            return manipulation.measure(context, experiment, start, end), None
        if kind == "choice":
            return choice.measure(context, experiment, (start, end), payload["conditions"]), None
        if kind == "pairwise":
            return pairwise.measure(context, experiment, start, end), None
        if kind == "completions":
            rows, arrays = completions.measure(context, experiment, start, end)
            return arrays, rows
        return readings.read(context, experiment, start, end, other=kind == "against"), None

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        everything: list[Measured] = []
        if self.experiments:
            from affectlens.experiments.collect import Assembly
            from affectlens.experiments.serialization import save

            listed = self.parts()
            assembly = Assembly(
                corpus=self.need(CorpusStage),
                directions=self.need(DirectionsStage),
                layer=self.setting.model.layer,
                readout_layer=self.readout_layer,
                tuned=self.config.against.tune if isinstance(self.config.against, TunedConfig) else (),
                organism=self.config.organism,
            )
            for experiment in self.experiments:
                own = [part for part in listed if part.payload["experiment"] == experiment.name]
                everything.append(assembly.measured(experiment, [(part, parts[part.name]) for part in own]))
                save(everything[-1], out / experiment.name)
                work = sum(map(measurements.work_of, own), measurements.Work())
                cost = {"forward_tokens": round(work.forward), "sampled_tokens": round(work.sampled), "parts": len(own)}
                write_json(out / experiment.name / COST, cost)
        for table, rows in (
            (tables.READINGS, tables.readings),
            (tables.CHOICES, tables.choices),
            (tables.COMPARISONS, tables.comparisons),
            (tables.COMPLETIONS, tables.completions),
            (tables.MANIPULATION, tables.manipulation),
        ):
            results.write(out, table, [row for measured in everything for row in rows(measured)])
        return {"completions": float(sum(len(measured.completions) for measured in everything))}

    @classmethod
    def open(cls, folder: Path) -> Measurements:
        return Measurements(folder)


def _check_second(second: ModelConfig, model: ModelConfig) -> None:
    """A second model is read by the directions of the first, so it has to be as wide and as deep."""
    require_weights(second)
    known, other = shape(model), shape(second)
    if known is not None and other is not None and (known.width != other.width or model.layer >= other.layers):
        raise ValueError(
            f"`experiments.against: {second.name}`: {other.layers} layers of width {other.width}, but directions are "
            f"of layer {model.layer} and width {known.width}; name a model of the same architecture"
        )


def _reads_above(experiment: Experiment, config: ExperimentsConfig) -> bool:
    """Whether the state under steering is read, which a layer above the steering is needed for."""
    if experiment.config.steering is None:
        return False
    sampled = config.completions and experiment.config.outcome(CompletionConfig) is not None
    return experiment.config.read_under_steering or sampled

"""The behavioural experiments: what steering along the studied vectors does to choices, preferences and answers.

Every experiment is a folder of data (``experiments/<name>/``); the engine in ``affectlens.experiments`` knows readings,
choices, tournaments, rollouts, controls and manipulation checks, and nothing of any one experiment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.config import nearest
from affectlens.corpus.texts import EMBEDDED, read_texts, texts_path
from affectlens.errors import UserError
from affectlens.experiments import measurements as plan
from affectlens.experiments import validation as choosing
from affectlens.experiments.config import ExperimentsConfig
from affectlens.experiments.experiment import Experiment, RolloutConfig
from affectlens.experiments.tuning import TunedConfig, tuned_folder
from affectlens.files import write_json
from affectlens.model import embedded
from affectlens.model import subject as subjects
from affectlens.model.subject import ModelConfig
from affectlens.stage import Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    from affectlens.experiments.context import Bench
    from affectlens.experiments.results import Measured

FINDINGS = "findings.json"
NOTHING = "nothing"
"""The only part of a study without experiments."""


class Experiments:
    """What the experiments found.

    Attributes:
        folder: the result folder; a folder in it for each experiment holds what was seen.
        findings: one entry an experiment: ``name``, ``title``, ``claim``, ``refuted_by``, ``source``, ``findings`` (as
            :class:`affectlens.results.figures.Finding`, plain), ``cost``; empty where nothing was run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.findings: list[dict[str, Any]] = json.loads((folder / FINDINGS).read_text(encoding="utf-8"))

    def measured(self, name: str) -> Measured:
        """Everything seen in one experiment."""
        from affectlens.experiments.serialization import load

        return load(self.folder / name)


@register
class ExperimentsStage(Stage[ExperimentsConfig, Experiments]):
    """Run the behavioural experiments."""

    name = "experiments"
    version = 3
    config_class = ExperimentsConfig
    needs = ("corpus", "activations", "sae", "directions", "match")
    reads_model = True
    seeded = True
    measured_needs = ("directions", "match")
    keeps_parts = True
    unit = "tokens"

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: ExperimentsConfig = study.experiments
        chosen = cls._chosen(config)
        if not chosen:
            return
        concepts = _concepts(study.corpus)
        for experiment in chosen:
            choosing.check_experiment(experiment, concepts, second=config.against is not None)
        if isinstance(config.against, TunedConfig):
            known = sorted({row["emotion"] for row in read_texts(EMBEDDED / "stories.jsonl", required=("emotion",))})
            for emotion in config.against.tune:
                if emotion not in known:
                    raise ValueError(
                        f"`experiments.against.tune: {emotion}`: no story has it; {nearest(emotion, known)}"
                    )
        cached = sorted({study.model.layer, *study.activations.token_layers, *study.activations.pooled_layers})
        layer = config.readout_layer
        above = [each for each in cached if each > study.model.layer]
        if layer is not None and layer not in above:
            raise ValueError(
                f"`experiments.readout_layer: {layer}`: not a cached layer above {study.model.layer}; add it to "
                "`activations.pooled_layers`"
            )
        unread = [each.name for each in chosen if _reads_above(each, config)]
        if unread and not above:
            raise ValueError(
                f"`experiments.readout_layer`: {unread[0]} reads the state under steering, above layer "
                f"{study.model.layer}; add a higher layer to `activations.pooled_layers`"
            )

    @classmethod
    def _chosen(cls, config: ExperimentsConfig) -> list[Experiment]:
        return choosing.read_chosen(config.folder, config.run, config.limit)

    @classmethod
    def identities(cls, study: StudySettings) -> dict[str, Identity]:
        config: ExperimentsConfig = study.experiments
        chosen = cls._chosen(config)
        if not chosen:
            return {}
        found = {name: EMBEDDED / name for name in ("lexicon.json", "frames.json", "ratings.csv")}
        for experiment in chosen:
            found |= choosing.files_of(config.folder, experiment)
        if isinstance(config.against, TunedConfig):
            found["against: stories"] = EMBEDDED / "stories.jsonl"
        elif config.against is not None:
            place = subjects.locate(config.against)
            found["against"] = embedded.weights_file() if config.against.name == "embedded" else place or Path()
        return {role: path for role, path in found.items() if path != Path()}

    @cached_property
    def experiments(self) -> list[Experiment]:
        """Those the study asks for."""
        return self._chosen(self.config)

    def parts(self) -> Sequence[Part]:
        share = plan.upper_share(self.setting.model)
        return plan.parts(self.experiments, self.config, share) or [Part(NOTHING, payload={"kind": NOTHING})]

    @property
    def readout_layer(self) -> int:
        """Where the state is read under steering; the study's own layer where none above is cached."""
        if self.config.readout_layer is not None:
            return self.config.readout_layer
        layers = self.need(ActivationsStage).layers
        return min((each for each in layers if each > self.setting.model.layer), default=self.setting.model.layer)

    @cached_property
    def bench(self) -> Bench:
        """Models and vectors, loaded once."""
        from affectlens.experiments.context import Bench

        return Bench(
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
        against, setting = self.config.against, self.setting
        if isinstance(against, ModelConfig):
            return against
        if against is None:
            raise UserError("`experiments.against`: no second model is given; name a model, or `tune:` with emotions")
        folder = tuned_folder(against, setting.model, setting.models, device=setting.device)
        return setting.model.model_copy(update={"name": str(folder), "revision": None})

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        kind = part.payload["kind"]
        if kind != NOTHING:
            from safetensors.numpy import save_file

            from affectlens.experiments.collect import RESULT, ROLLOUTS
            from affectlens.experiments.serialization import write_jsonl

            arrays, rows = self._measure(kind, part.payload)
            if rows is not None:
                write_jsonl(out / ROLLOUTS, rows)
            save_file(arrays, out / RESULT)
        progress(part.size)

    def _measure(self, kind: str, payload: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
        """Arrays of a part, and rows where answers were sampled."""
        from affectlens.experiments import (
            choice as choices,
        )
        from affectlens.experiments import (
            completions as rollouts,
        )
        from affectlens.experiments import (
            manipulation,
            readings,
        )
        from affectlens.experiments import (
            pairwise as tournament,
        )

        bench, start, end = self.bench, payload["start"], payload["end"]
        if kind == "manipulation":
            return manipulation.measure(bench, manipulation.checks(self.experiments)[start:end]), None
        experiment = bench.experiments[payload["experiment"]]
        if kind == "choice":
            return choices.measure(bench, experiment, (start, end), payload["cells"]), None
        if kind == "tournament":
            return tournament.measure(bench, experiment, start, end), None
        if kind == "rollout":
            rows, arrays = rollouts.measure(bench, experiment, start, end)
            return arrays, rows
        return readings.read(bench, experiment, start, end, other=kind == "against"), None

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        entries, metrics = [], Metrics()
        if self.experiments:
            from affectlens.experiments import serialization as keeping
            from affectlens.experiments.conclude.analysis import conclude

            listed = self.parts()
            assembly = self._assembly([(part, parts[part.name]) for part in listed])
            for experiment in self.experiments:
                mine = [part for part in listed if part.payload["experiment"] == experiment.name]
                measured = assembly.measured(experiment, [(part, parts[part.name]) for part in mine])
                keeping.save(measured, out / experiment.name)
                findings = conclude(measured, self.generator(f"finish {experiment.name}"))
                entries.append(_entry(experiment, [keeping.plain(each) for each in findings], mine))
                for number, finding in enumerate(findings):
                    kind = experiment.config.analyses[number].kind
                    for name, value in finding.metrics.items():
                        key = f"{experiment.name}.{name}"
                        metrics[f"{experiment.name}.{kind}_{number}.{name}" if key in metrics else key] = float(value)
        write_json(out / FINDINGS, entries)
        return metrics

    def _assembly(self, parts: Sequence[tuple[Part, Path]]) -> Any:
        import numpy as np
        from safetensors.numpy import load_file

        from affectlens.experiments.collect import RESULT, Assembly
        from affectlens.experiments.manipulation import checks

        found = [load_file(folder / RESULT) for part, folder in parts if part.payload["kind"] == "manipulation"]
        return Assembly(
            corpus=self.need(CorpusStage),
            directions=self.need(DirectionsStage),
            layer=self.setting.model.layer,
            readout_layer=self.readout_layer,
            checks=checks(self.experiments),
            checked={key: np.concatenate([each[key] for each in found]) for key in (found[0] if found else ())},
        )

    @classmethod
    def open(cls, folder: Path) -> Experiments:
        return Experiments(folder)

    @classmethod
    def track(cls, result: Experiments, run: Any) -> None:
        for entry in result.findings:
            rows = [
                [number, finding["verdict"], name, value, finding["sentences"][0] if finding["sentences"] else ""]
                for number, finding in enumerate(entry["findings"])
                for name, value in (finding["metrics"] or {"": None}).items()
            ]
            run.table(f"experiments/{entry['name']}", ["analysis", "verdict", "metric", "value", "finding"], rows)


def _concepts(corpus: Any) -> tuple[str, ...]:
    """The concepts that a corpus section will give."""
    if corpus.emotions != "all":
        return tuple(sorted(corpus.emotions))
    rows = read_texts(texts_path("stories", corpus.stories), required=("emotion",))
    return tuple(sorted({row["emotion"] for row in rows}))


def _reads_above(experiment: Experiment, config: ExperimentsConfig) -> bool:
    """Whether the state under steering is read, which a layer above the steering is needed for."""
    if experiment.config.steering is None:
        return False
    rollouts = config.rollouts and experiment.config.outcome(RolloutConfig) is not None
    return experiment.config.read_under_steering or rollouts


def _entry(experiment: Experiment, findings: list[Any], parts: Sequence[Part]) -> dict[str, Any]:
    """What the page is told of an experiment."""
    config = experiment.config
    work = sum((plan.work_of(part) for part in parts), plan.Work())
    return {
        "name": experiment.name,
        "title": config.title,
        "claim": config.claim,
        "refuted_by": config.refuted_by,
        "source": config.source,
        "analyses": [analysis.kind for analysis in config.analyses],
        "scenarios": len(experiment.scenarios),
        "groups": len({scenario.group for scenario in experiment.scenarios}),
        "findings": findings,
        "cost": {"forward_tokens": round(work.forward), "sampled_tokens": round(work.sampled), "parts": len(parts)},
    }

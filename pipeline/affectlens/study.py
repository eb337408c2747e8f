"""A study: one YAML file, checked as a whole, with a fingerprint and a folder for each of its stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from affectlens import shipped
from affectlens.activations.config import ActivationsConfig
from affectlens.cluster.config import ClusterConfig
from affectlens.config import Config, TrackingConfig, apply_overrides, read_yaml, validate
from affectlens.corpus.documents import CorpusConfig
from affectlens.errors import ConfigError, UserError
from affectlens.experiments.config import ExperimentsConfig
from affectlens.files import DigestMemory
from affectlens.interventions.config import CausalConfig
from affectlens.model import subject
from affectlens.model.subject import ModelConfig
from affectlens.stage import Setting, Stage
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.causal import CausalStage
from affectlens.stages.compare import CompareConfig, CompareStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsConfig, DirectionsStage
from affectlens.stages.experiments import ExperimentsStage
from affectlens.stages.geometry import GeometryConfig, GeometryStage
from affectlens.stages.match import MatchConfig, MatchStage
from affectlens.stages.report import ReportConfig, ReportStage
from affectlens.stages.sae import SaeConfig, SaeStage

STAGES: tuple[type[Stage[Any, Any]], ...] = (
    CorpusStage,
    ActivationsStage,
    SaeStage,
    DirectionsStage,
    MatchStage,
    CompareStage,
    GeometryStage,
    CausalStage,
    ExperimentsStage,
    ReportStage,
)
"""In the order of the data; a stage needs only stages before it."""


class ComputeConfig(Config):
    """Where and how wide the work runs. Never part of a fingerprint: the same study gives the same bytes."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`auto` takes every accelerator there is, else the processor."""
    workers: int | Literal["auto"] = 1
    """Processes that share the parts of a stage. `auto`: one per accelerator, or cores / threads."""
    threads: int = Field(default=2, ge=1)
    """Of each worker. Fixed, because a different number of threads may round differently."""

    @field_validator("workers")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{value} workers cannot do anything; give 1 or more, or `auto`")
        return value


class StudyConfig(Config):
    """The whole study, one section a stage."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Groups the runs in Weights & Biases and titles the page."""
    seed: int = Field(default=0, ge=0)
    """The only source of randomness."""
    cache: Path = Path("cache")
    """Where results lie; a relative path starts at the current folder."""
    model: ModelConfig = ModelConfig()
    corpus: CorpusConfig = CorpusConfig()
    activations: ActivationsConfig = ActivationsConfig()
    sae: SaeConfig = SaeConfig()
    directions: DirectionsConfig = DirectionsConfig()
    match: MatchConfig = MatchConfig()
    compare: CompareConfig = CompareConfig()
    geometry: GeometryConfig = GeometryConfig()
    causal: CausalConfig = CausalConfig()
    experiments: ExperimentsConfig = ExperimentsConfig()
    report: ReportConfig = ReportConfig()
    tracking: TrackingConfig = TrackingConfig()
    compute: ComputeConfig = ComputeConfig()
    cluster: ClusterConfig = ClusterConfig()


class Study:
    """A checked study and what follows from it without running anything.

    Attributes:
        config: the checked config.
        source: the file it came from, for messages.
        overrides: the ``key=value`` arguments applied to the file.
    """

    def __init__(self, config: StudyConfig, source: str, overrides: Sequence[str] = ()) -> None:
        self.config = config
        self.source = source
        self.overrides = tuple(overrides)
        self._fingerprints: dict[str, str] = {}
        self._read_digests: dict[str, dict[str, str]] = {}

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Study:
        """Read, override and check a study file.

        Raises:
            ConfigError: anything wrong that can be seen without loading a model.
        """
        path = shipped.study_file(path)
        config = validate(StudyConfig, apply_overrides(read_yaml(path), overrides), str(path))
        study = cls(config, str(path), overrides)
        study.check()
        return study

    def check(self) -> None:
        """Refuse what fits its type but not the model, the stories or the SAE.

        Raises:
            ConfigError: the first fault found.
        """
        try:
            known = subject.shape(self.config.model)
            layer = self.config.model.layer
            if known is not None and layer >= known.layers:
                raise ConfigError(
                    f"`model.layer: {layer}`: {self.config.model.name} has layers 0 to {known.layers - 1}; "
                    f"about two thirds of the depth is {round(known.layers * 2 / 3)}"
                )
            for stage in STAGES:
                stage.check(self.config)
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"{self.source}: {error}") from None

    def section(self, stage: type[Stage[Any, Any]]) -> Config:
        """The config of one stage."""
        return getattr(self.config, stage.name)

    def fingerprint(self, stage: type[Stage[Any, Any]]) -> str:
        """sha256 over everything that decides a stage's result, as hex."""
        if stage.name not in self._fingerprints:
            text = json.dumps(self.provenance(stage), sort_keys=True)
            self._fingerprints[stage.name] = hashlib.sha256(text.encode()).hexdigest()
        return self._fingerprints[stage.name]

    def provenance(self, stage: type[Stage[Any, Any]]) -> dict[str, Any]:
        """What the fingerprint is taken over, in full; the manifest records it."""
        found: dict[str, Any] = {
            "stage": stage.name,
            "version": stage.version,
            "config": self.section(stage).model_dump(mode="json"),
            "needs": {name: self.fingerprint(stage_named(name)) for name in stage.needs},
            "data": self._data(stage),
        }
        if stage.seeded:
            found["seed"] = self.config.seed
        if stage.reads_model:
            found["model"] = self.config.model.model_dump(mode="json", exclude={"name", "revision"})
            found["model_identity"] = self._model_identity
        return found

    @cached_property
    def _model_identity(self) -> str:
        return subject.identity(self.config.model, self.digest)

    def require_same_inputs(self, stage: type[Stage[Any, Any]]) -> None:
        """Refuse to keep what was computed if files outside the cache changed since the study was read.

        Raises:
            UserError: the model's files, or others that the stage reads, are not what they were.
        """
        changed = [
            str(path)
            for role, path in stage.identities(self.config).items()
            if self.digest(path) != self._data(stage)[role]
        ]
        if stage.reads_model and subject.identity(self.config.model, self.digest) != self._model_identity:
            changed.append(f"the model's files (`model.name: {self.config.model.name}`)")
        if changed:
            raise UserError(
                f"stage `{stage.name}`: {', '.join(changed)} changed since the run began, so what was computed is not "
                "kept; run again for a result of the changed files, or put them back and run again"
            )

    def _data(self, stage: type[Stage[Any, Any]]) -> dict[str, str]:
        """Digests of the files outside the cache that the stage reads, as they were when they were first asked for."""
        if stage.name not in self._read_digests:
            paths = stage.identities(self.config)
            self._read_digests[stage.name] = {role: self.digest(path) for role, path in paths.items()}
        return self._read_digests[stage.name]

    def folder(self, stage: type[Stage[Any, Any]]) -> Path:
        """Where the stage's finished result lies, whether or not it is there."""
        return self.config.cache / stage.name / self.fingerprint(stage)[:16]

    def setting(self, device: str) -> Setting:
        """What a stage may know, on this device."""
        return Setting(
            seed=self.config.seed,
            model=self.config.model,
            device=device,
            threads=self.config.compute.threads,
            models=self.config.cache / "models",
        )

    def digest(self, path: Path) -> str:
        """sha256 of a file, or of a folder's files."""
        return self.digests.folder(path) if path.is_dir() else self.digests.file(path)

    @cached_property
    def digests(self) -> DigestMemory:
        """Checksums of large files, kept in the cache."""
        return DigestMemory(self.config.cache / "digests.json")


def stage_named(name: str) -> type[Stage[Any, Any]]:
    """The stage class with this name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    from affectlens.config import nearest

    by_name: Mapping[str, type[Stage[Any, Any]]] = {stage.name: stage for stage in STAGES}
    if name not in by_name:
        raise ConfigError(f"stage `{name}` does not exist; {nearest(name, list(by_name))}")
    return by_name[name]

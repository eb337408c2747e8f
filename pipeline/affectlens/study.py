"""A study: one YAML file, checked as a whole, with a fingerprint and a folder for each of its stages."""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pydantic

import affectlens.stages  # noqa: F401 - registers the stages that come with the package
from affectlens import settings, shipped
from affectlens.config import Config, apply_overrides, left_out, nearest, read_yaml, validate
from affectlens.errors import ConfigError, Unavailable
from affectlens.files import DigestMemory, file_digest
from affectlens.model import config as models
from affectlens.model.config import ModelConfig
from affectlens.settings import Resources
from affectlens.stage import Folder, Identity, Part, Setting, Stage, StudySettings, registered

AnyStage = type[Stage[Any, Any]]

STAGES: tuple[AnyStage, ...] = tuple(stage for stage in registered() if stage.__module__.startswith("affectlens."))
"""Those that come with the package, in the order of the data; a stage needs only stages before it."""


def _class_of(stages: Sequence[AnyStage]) -> type[StudySettings]:
    """The config class of a study with these stages: a section each, there and under ``cluster``."""
    jobs: dict[str, Any] = {stage.name: (Resources, Resources()) for stage in stages}
    cluster = pydantic.create_model(
        "ClusterConfig", __base__=settings.ClusterConfig, __doc__=settings.ClusterConfig.__doc__, **jobs
    )
    sections: dict[str, Any] = {
        stage.section or stage.name: (stage.config_class, stage.config_class()) for stage in stages
    }
    return pydantic.create_model(
        "StudyConfig",
        __base__=StudySettings,
        __doc__="The whole study, one section a stage.",
        cluster=(cluster, cluster()),
        **sections,
    )


StudyConfig = _class_of(STAGES)
"""The config class of studies without plugins."""
ClusterConfig: type[settings.ClusterConfig] = type(StudyConfig(name="none").cluster)


@cache
def load_plugin(name: str) -> tuple[AnyStage, ...]:
    """Import a module that a study names, installed or in the current folder; returns the stages that it registers.

    Raises:
        ConfigError: it cannot be imported.
    """
    before = set(registered())
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"`plugins: {name}`: there is no such module; install it, or run in the folder that holds it"
            ) from None
        raise ConfigError(f"`plugins: {name}`: it cannot be imported ({type(error).__name__}: {error})") from error
    # Somebody may have imported it before, as in a notebook.
    return tuple(
        stage for stage in registered() if stage not in before or f"{stage.__module__}.".startswith(f"{name}.")
    )


def plugin_digest(name: str) -> str:
    """sha256 of a plugin's source: of the module's file, or of every Python file of a package."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ConfigError(f"`plugins: {name}`: a module without a source file; name one that has")
    if not spec.submodule_search_locations:
        return file_digest(Path(spec.origin))
    folder = Path(spec.origin).parent
    return _combined(f"{path.relative_to(folder)} {file_digest(path)}" for path in sorted(folder.rglob("*.py")))


@cache
def _study_class(plugins: tuple[str, ...]) -> tuple[type[StudySettings], tuple[AnyStage, ...]]:
    """The config class and the stages of a study with these plugins."""
    stages = [*STAGES, *(stage for name in plugins for stage in load_plugin(name))]
    return (_class_of(stages) if plugins else StudyConfig), tuple(stages)


class Study:
    """A checked study and what follows from it without running anything.

    Attributes:
        config: the checked config; its ``model`` says which layer and which type are meant.
        source: the file it came from, for messages.
        overrides: the ``key=value`` arguments applied to the file.
        stages: its stages, in the order of the data.
    """

    def __init__(self, config: StudySettings, source: str, overrides: Sequence[str] = ()) -> None:
        self.config = config
        self.source = source
        self.overrides = tuple(overrides)
        self.stages = _study_class(config.plugins)[1]
        self._fingerprints: dict[tuple[str, bool], str] = {}
        self._read_digests: dict[str, dict[str, str]] = {}
        self._identities: dict[str, Mapping[str, Identity]] = {}

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Study:
        """Read, override and check a study file.

        Raises:
            ConfigError: anything wrong that can be seen without loading a model.
        """
        path = shipped.study_file(path)
        try:
            study = cls.of(apply_overrides(read_yaml(path), overrides), str(path), overrides)
            study.check()
        except RuntimeError as error:
            if "home directory" not in str(error):  # what pathlib says of a `~` that it cannot resolve
                raise
            raise ConfigError(f"{path}: `~` in a path, but there is no home folder; set HOME or write it out") from None
        return study

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Study:
        """From nested values, as a study file holds them.

        Raises:
            ConfigError: they do not fit, or a plugin cannot be imported.
        """
        plugins = values.get("plugins") or ()
        plugins = tuple(plugins) if isinstance(plugins, list | tuple) else ()
        try:
            kind, _ = _study_class(tuple(name for name in plugins if isinstance(name, str)))
            values = _with_layer(values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        config = validate(kind, values, source)
        return cls(config, source, overrides)

    def __getstate__(self) -> dict[str, Any]:
        # The config's class is made from the registry: another process makes its own.
        return {**self.__dict__, "config": self.config.model_dump(), "stages": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kind, stages = _study_class(tuple(state["config"]["plugins"]))
        self.__dict__.update(state | {"config": kind.model_validate(state["config"]), "stages": stages})

    def check(self) -> None:
        """Refuse what fits its type but not the model, the stories or the SAE.

        Raises:
            ConfigError: the first fault found.
        """
        try:
            shape = models.shape(self.config.model)
            layer = self.config.model.layer
            if shape is not None and layer >= shape.layers:
                raise ConfigError(
                    f"`model.layer: {layer}`: {self.config.model.name} has layers 0 to {shape.layers - 1}; "
                    f"about two thirds of the depth is {models.default_layer(shape)}"
                )
            models.require_weights(self.config.model)
            for stage in self.stages:
                stage.check(self.config)
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"{self.source}: {error}") from None
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                raise
            shown = str(error.filename)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise ConfigError(f"{self.source}: `{shown}`: {str(error.strerror).lower()}; correct the path") from None

    def stage_named(self, name: str) -> AnyStage:
        """The study's stage with this name.

        Raises:
            ConfigError: there is none; names the nearest.
        """
        return _named(name, self.stages)

    def section(self, stage: AnyStage) -> Config:
        """The config of one stage; number types that are left to the machine as they are on this one."""
        section: Config = getattr(self.config, stage.section or stage.name)
        return section.on_machine(lambda name: models.dtype_name(name, self.config.compute.device))

    def fingerprint(self, stage: AnyStage, *, measured: bool = False) -> str:
        """sha256 over everything that decides a stage's result, as hex.

        Args:
            stage: one of the study's.
            measured: only over what decides its parts; merge-only fields are left out.
        """
        key = stage.name, measured
        if key not in self._fingerprints:
            text = json.dumps(self.provenance(stage, measured=measured), sort_keys=True)
            self._fingerprints[key] = hashlib.sha256(text.encode()).hexdigest()
        return self._fingerprints[key]

    def provenance(self, stage: AnyStage, *, measured: bool = False) -> dict[str, Any]:
        """What the fingerprint is taken over, in full; the manifest records it."""
        data, identities = self._data(stage), self._identities[stage.name]
        paths = {
            str(what.path if isinstance(what, Folder) else what): data[role]
            for role, what in identities.items()
            if isinstance(what, Path | Folder)
        }
        section = self.section(stage)
        config = section.model_dump(
            mode="json", include=set(stage.fields) or None, exclude=left_out(type(section), measured=measured)
        )
        whole: dict[str, Any] = {
            "stage": stage.name,
            "version": stage.version,
            "config": _by_content(config, paths),
            "needs": {
                name: self.fingerprint(self.stage_named(name), measured=measured and name in stage.measured_needs)
                for name in stage.needs
            },
            "data": data,
        }
        if self.config.plugins:
            whole["plugins"] = {name: plugin_digest(name) for name in self.config.plugins}
        if stage.seeded:
            whole["seed"] = self.config.seed
        if stage.reads_model:
            whole["model"] = self.model.model_dump(mode="json", exclude={"name", "revision"})
            whole["model_identity"] = self.model_identity
        return whole

    def part_keys(self, stage: Stage[Any, Any], parts: Sequence[Part]) -> dict[str, str]:
        """sha256 over all that a part reads, as hex, by its name; only of stages that keep their parts.

        Where a part does not say what it reads, that is all that the stage reads but its merge-only fields.
        """
        if not stage.keeps_parts:
            return {}
        kind = type(stage)
        whole = self.provenance(kind)
        keys = {}
        for part in parts:
            reads = stage.part_reads(part)
            if reads is None:
                keys[part.name] = self.fingerprint(kind, measured=True)
                continue
            content = {
                **reads,
                **{name: whole[name] for name in whole if name not in ("config", "needs", "data")},
                "needs": {name: whole["needs"][name] for name in reads.get("needs", ())},
                "data": {role: whole["data"][role] for role in reads.get("data", ())},
            }
            keys[part.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return keys

    @cached_property
    def model(self) -> ModelConfig:
        """The model under study, its type as it is on this machine."""
        dtype = models.dtype_name(self.config.model.dtype, self.config.compute.device)
        return self.config.model.model_copy(update={"dtype": dtype})

    @cached_property
    def model_identity(self) -> str:
        return models.identity(self.config.model, self.digest)

    def require_same_inputs(self, stage: AnyStage) -> None:
        """Refuse to keep what was computed if what lies outside the cache changed since the study was read.

        Raises:
            UserError: the model's files, or others that the stage reads, are not what they were.
        """
        changed = [
            f"{role} ({what.path if isinstance(what, Folder) else what})"
            for role, what in stage.identities(self.config).items()
            if not isinstance(what, ModelConfig) and self.identity(what) != self._data(stage).get(role)
        ]
        if stage.reads_model and models.identity(self.config.model, self.digest) != self.model_identity:
            changed.append(f"the model's files (`model.name: {self.config.model.name}`)")
        if changed:
            raise Unavailable(
                f"stage `{stage.name}`: {', '.join(changed)} changed since the run began, so what was computed is not "
                "kept; run again for a result of the changed files, or put them back and run again"
            )

    def _data(self, stage: AnyStage) -> dict[str, str]:
        """What the stage reads from outside the cache, by content, as it was when it was first asked for."""
        if stage.name not in self._read_digests:
            identities = self._identities[stage.name] = stage.identities(self.config)
            self._read_digests[stage.name] = {role: self.identity(what) for role, what in identities.items()}
        return self._read_digests[stage.name]

    def folder(self, stage: AnyStage) -> Path:
        """Where the stage's finished result lies, whether or not it is there."""
        return self.config.cache / stage.name / self.fingerprint(stage)[:16]

    def setting(self, device: str) -> Setting:
        """What a stage may know, on this device."""
        return Setting(
            seed=self.config.seed,
            model=self.model,
            device=device,
            threads=self.config.compute.threads,
            models=self.config.cache / "models",
        )

    def identity(self, what: Identity) -> str:
        """What a stage reads from outside the cache, by content."""
        if isinstance(what, ModelConfig):
            return models.identity(what, self.digest)
        if isinstance(what, Folder):
            return _combined(f"{file.relative_to(what.path)} {self.digest(file)}" for file in what.files)
        return self.digest(what) if isinstance(what, Path) else what

    def digest(self, path: Path) -> str:
        """sha256 of a file, or of a folder's files."""
        return self.digests.folder(path) if path.is_dir() else self.digests.file(path)

    @cached_property
    def digests(self) -> DigestMemory:
        """Checksums of large files, kept in the cache."""
        return DigestMemory(self.config.cache / "digests.json")


def _combined(lines: Any) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _by_content(value: Any, paths: Mapping[str, str]) -> Any:
    """The value with every path that has an identity replaced by its content, however it is spelled."""
    if isinstance(value, dict):
        return {key: _by_content(item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_by_content(item, paths) for item in value]
    if isinstance(value, str) and value.strip():
        return paths.get(str(Path(value).expanduser()), value)
    return value


def _with_layer(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with ``model.layer`` at two thirds of the depth where it is left out.

    Raises:
        ConfigError: the depth is not known, because the model is not downloaded yet.
    """
    model = values.get("model") or {}
    if not isinstance(model, Mapping) or "layer" in model:
        return dict(values)
    try:
        config = ModelConfig.model_validate({**model, "layer": 0})
    except pydantic.ValidationError:
        return dict(values)  # named when the whole study is checked
    shape = models.shape(config)
    if shape is None:
        raise ConfigError(
            f"`model.layer` is missing, and the depth of {config.name} is not known before it is downloaded; give the "
            "layer, about two thirds of the depth"
        )
    return {**values, "model": {**model, "layer": models.default_layer(shape)}}


def _named(name: str, stages: Sequence[AnyStage]) -> AnyStage:
    by_name = {stage.name: stage for stage in stages}
    if name not in by_name:
        raise ConfigError(f"stage `{name}` does not exist; {nearest(name, list(by_name))}")
    return by_name[name]


def stage_named(name: str) -> AnyStage:
    """The stage class with this name: of those that come with the package, and of plugins that were imported.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    return _named(name, registered())

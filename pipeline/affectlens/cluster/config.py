"""What the jobs of a study ask a cluster for: the section ``cluster`` over a site's profile over what is built in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectlens import settings
from affectlens.config import read_yaml, validate
from affectlens.settings import Resources
from affectlens.stage import registered
from affectlens.study import ClusterConfig

BUILT_IN: dict[str, Any] = {"default": {"time": "1:00:00"}, "merge": {"gpus": 0}}
"""Below every profile; what one stage needs besides is :attr:`affectlens.stage.Stage.resources`."""


def read_profile(path: Path) -> settings.ClusterConfig:
    """A site profile: the keys of the study's section ``cluster``, at the top of a file of their own.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    return validate(ClusterConfig, read_yaml(path, "profile"), str(path))


def settle(study: settings.ClusterConfig, profile: settings.ClusterConfig | None = None) -> settings.ClusterConfig:
    """The study's section over the profile over what is built in, key by key."""
    merged = BUILT_IN | {stage.name: stage.resources.model_dump(exclude_unset=True) for stage in registered()}
    for layer in (profile, study):
        if layer is not None:
            merged = _over(merged, layer.model_dump(exclude_unset=True))
    return type(study).model_validate({name: merged[name] for name in merged if name in type(study).model_fields})


def resources(settled: settings.ClusterConfig, section: str) -> Resources:
    """What the jobs of a stage (or ``merge``) ask for: its own section over ``default``."""
    own, common = getattr(settled, section), settled.default
    return Resources.model_validate(_over(common.model_dump(exclude_unset=True), own.model_dump(exclude_unset=True)))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _over(result[key], value) if nested else value
    return result

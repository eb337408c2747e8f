"""What the arguments of ``affectlens compare`` mean: study files, changes to them, results, or groups of W&B runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectlens import shipped
from affectlens.errors import ConfigError
from affectlens.run import manifest
from affectlens.study import Study

if TYPE_CHECKING:
    from affectlens.compare.findings import Findings

GROUP = "wandb:"
"""Before the name of a group that is also the name of a file, a folder or a shipped study."""
FILES = (".yaml", ".yml")


def read(arguments: Sequence[str], changes: Sequence[str], wandb: Path | None) -> list[Findings]:
    """The studies that the arguments name, in their order.

    Args:
        arguments: study files and names of shipped ones, as `run` takes them, result folders or their manifests, caches
            with one study, groups of W&B runs, and ``key=value`` changes, which with several values make a sweep of
            each study file.
        changes: more of these.
        wandb: where offline runs lie; the caches of the study files and ``cache/wandb`` when None.

    Raises:
        ConfigError: an argument that is none of these, or a study file that is wrong. Raised before anything is read
            that takes time.
        UserError: results that cannot be read.
    """
    changes = [*(each for each in arguments if _is_change(each)), *changes]
    named = [each for each in arguments if not _is_change(each)]
    files = [each for each in named if _is_file(each)]
    if not named:
        raise ConfigError("compare: name at least one study file, result folder or group of runs")
    if changes and not files:
        raise ConfigError(f"compare: `{changes[0]}` changes study files, but none is given; leave it out or give one")
    studies = {each: _studies(Path(each), changes) for each in files}
    for each in named:
        _check(each)
    return [found for each in named for found in _findings(each, studies, _places(studies, wandb))]


def _is_change(argument: str) -> bool:
    return "=" in argument and not Path(argument).exists()


def _is_file(argument: str) -> bool:
    if argument.startswith(GROUP):
        return False
    path = Path(argument)
    means_shipped = shipped.study_file(path) != path
    return means_shipped or (path.suffix in FILES and not path.is_dir())


def _studies(path: Path, changes: Sequence[str]) -> list[Study]:
    from affectlens import sweep

    if any(len(sweep.alternatives(each)) > 1 for each in changes):
        return sweep.load(path, changes)
    return [Study.load(path, changes)]


def _check(argument: str) -> None:
    """Refuse what looks like a path and is not there; any other word may be a group."""
    if argument.startswith(GROUP) or _is_file(argument) or Path(argument).exists():
        return
    if argument.startswith((".", "/", "~")) or argument.endswith(".json") or argument.count("/") > 2:
        raise ConfigError(f"{argument}: no such file or folder; give a study file, a result folder or a group of runs")


def _places(studies: dict[str, list[Study]], wandb: Path | None) -> list[Path]:
    if wandb is not None:
        return [wandb]
    caches = [Path("cache"), *(study.config.cache for group in studies.values() for study in group)]
    return [cache / "wandb" for cache in dict.fromkeys(caches)]


def _findings(argument: str, studies: dict[str, list[Study]], places: Sequence[Path]) -> list[Findings]:
    from affectlens.compare import folders, groups

    path = Path(argument)
    if argument in studies:
        return [folders.of_study(study) for study in studies[argument]]
    if argument.startswith(GROUP) or not path.exists():
        return [groups.read(argument.removeprefix(GROUP), places)]
    if path.is_dir():
        return [folders.of_folder(path)]
    if path.name == manifest.NAME:
        return [folders.of_folder(path.parent)]
    raise ConfigError(f"{argument}: not a study file (.yaml), a manifest.json or a folder of results")

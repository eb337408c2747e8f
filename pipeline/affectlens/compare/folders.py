"""Studies in the cache: from a study file, or from a folder of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectlens import results
from affectlens.compare.findings import Findings, Result
from affectlens.errors import ConfigError, DamagedResult, MissingResult
from affectlens.run import manifest
from affectlens.run.workspace import inspect
from affectlens.study import STAGES, Study

NAMES = tuple(stage.name for stage in STAGES)
PAGE = "report"
"""A stage that finds nothing of its own."""


def of_study(study: Study) -> Findings:
    """What the cache holds of a study, finished or not."""
    stages, missing = {}, []
    for stage in study.stages:
        if stage.name == PAGE:
            continue
        state = inspect(study, stage)
        if state.record is None:
            missing.append(f"{stage.name} ({state.state})")
            stages[stage.name] = Result(stage.name, _asked(study, stage.name))
        else:
            record = {**state.record, "model": study.config.model.model_dump(mode="json")}
            stages[stage.name] = finished(state.folder, record)
    return Findings(study.config.name, study.config.name, study.source, stages, tuple(missing))


def _asked(study: Study, name: str) -> dict[str, Any]:
    """How a result that is not there yet is to come about."""
    return {**study.provenance(study.stage_named(name)), "model": study.config.model.model_dump(mode="json")}


def of_folder(folder: Path) -> Findings:
    """What a result was made of, back to the texts; or a whole cache, where that holds one study only.

    Raises:
        ConfigError: no result, or several studies.
        MissingResult: a stage that the result was made of is no longer in its cache.
    """
    if (folder / manifest.NAME).is_file():
        chain = _back_to_the_texts(folder.resolve())
        name = f"{folder.resolve().parent.name}/{folder.resolve().name[:8]}"
    else:
        chain = _only_study(folder)
        name = folder.resolve().name
    records = {stage: manifest.read(path) or {} for stage, path in chain.items()}
    stages = {stage: finished(chain[stage], records[stage]) for stage in NAMES if stage in chain and stage != PAGE}
    missing = tuple(f"{stage} (not part of this result)" for stage in NAMES if stage not in chain and stage != PAGE)
    return Findings(name, "", str(folder), stages, missing)


def _back_to_the_texts(folder: Path) -> dict[str, Path]:
    """The folders of a result and of all that it was made of, by stage."""
    record = manifest.read(folder) or {}
    chain = {record.get("stage", folder.parent.name): folder}
    for stage, fingerprint in (record.get("needs") or {}).items():
        need = folder.parent.parent / stage / fingerprint[:16]
        if not (need / manifest.NAME).is_file():
            raise MissingResult(f"{folder}: was made of {need}, which is no longer there; run its study again")
        chain[stage] = need
    return chain


def _only_study(cache: Path) -> dict[str, Path]:
    by_stage = {name: sorted(path.parent for path in cache.glob(f"{name}/*/{manifest.NAME}")) for name in NAMES}
    by_stage = {
        name: [folder for folder in folders if len(folder.name) == 16] for name, folders in by_stage.items() if folders
    }
    if not by_stage:
        raise ConfigError(
            f"{cache}: holds no result; give a study file, a result folder such as cache/report/<fingerprint>, or a "
            "cache with one study in it"
        )
    several = {name: folders for name, folders in by_stage.items() if len(folders) > 1}
    if several:
        last = list(several)[-1]
        choices = ", ".join(str(folder) for folder in several[last][:4])
        raise ConfigError(
            f"{cache}: holds {len(several[last])} results of stage `{last}`; name one of them: {choices}"
            + (" ..." if len(several[last]) > 4 else "")
        )
    return {name: folders[0] for name, folders in by_stage.items()}


def finished(folder: Path, record: Mapping[str, Any]) -> Result:
    """A finished result of the cache.

    Args:
        folder: of the result.
        record: its manifest.

    Raises:
        DamagedResult: its metrics or tables cannot be read.
    """
    try:
        metrics = json.loads((folder / manifest.METRICS).read_text(encoding="utf-8"))
        tables = results.read_all(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DamagedResult(f"{folder}: cannot be read ({error}); run its study again") from None
    return Result(record["stage"], record, metrics, tables)

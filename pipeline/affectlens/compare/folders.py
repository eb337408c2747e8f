"""Studies in the cache: from a study file, or from a folder of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectlens.compare.findings import Findings, Recorder, Result
from affectlens.errors import ConfigError, DamagedResult, MissingResult
from affectlens.run import manifest
from affectlens.run.workspace import inspect
from affectlens.study import STAGES, Study, stage_named

WITH_TABLES = ("directions", "match", "compare", "causal")
"""Stages whose tables a comparison reads."""
NAMES = tuple(stage.name for stage in STAGES)
PAGE = "report"
"""A stage that finds nothing of its own."""


def of_study(study: Study) -> Findings:
    """What the cache holds of a study, finished or not."""
    results, missing = {}, []
    for stage in STAGES:
        if stage.name == PAGE:
            continue
        state = inspect(study, stage)
        if state.record is None:
            missing.append(f"{stage.name} ({state.state})")
            results[stage.name] = Result(stage.name, _asked(study, stage.name))
        else:
            record = {**state.record, "model": study.config.model.model_dump(mode="json")}
            results[stage.name] = _finished(state.folder, record)
    return Findings(study.config.name, study.config.name, study.source, results, tuple(missing))


def _asked(study: Study, name: str) -> dict[str, Any]:
    """How a result that is not there yet is to come about."""
    return {**study.provenance(stage_named(name)), "model": study.config.model.model_dump(mode="json")}


def of_folder(folder: Path) -> Findings:
    """What a result was made of, back to the texts; or a whole cache, where that holds one study only.

    Raises:
        ConfigError: no result, or several studies.
        MissingResult: a stage that the result was made of is no longer in its cache.
    """
    if (folder / manifest.NAME).is_file():
        found = _back_to_the_texts(folder.resolve())
        name = f"{folder.resolve().parent.name}/{folder.resolve().name[:8]}"
    else:
        found = _only_study(folder)
        name = folder.resolve().name
    records = {stage: manifest.read(place) or {} for stage, place in found.items()}
    results = {stage: _finished(found[stage], records[stage]) for stage in NAMES if stage in found and stage != PAGE}
    missing = tuple(f"{stage} (not part of this result)" for stage in NAMES if stage not in found and stage != PAGE)
    return Findings(name, "", str(folder), results, missing)


def _back_to_the_texts(folder: Path) -> dict[str, Path]:
    """The folders of a result and of all that it was made of, by stage."""
    record = manifest.read(folder) or {}
    found = {record.get("stage", folder.parent.name): folder}
    for stage, fingerprint in (record.get("needs") or {}).items():
        place = folder.parent.parent / stage / fingerprint[:16]
        if not (place / manifest.NAME).is_file():
            raise MissingResult(f"{folder}: was made of {place}, which is no longer there; run its study again")
        found[stage] = place
    return found


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


def _finished(folder: Path, record: Mapping[str, Any]) -> Result:
    name = record["stage"]
    try:
        metrics = json.loads((folder / manifest.METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedResult(f"{folder / manifest.METRICS}: cannot be read ({error}); run its study again") from None
    recorder, note = Recorder(), ""
    if name in WITH_TABLES:
        stage = stage_named(name)
        try:
            stage.track(stage.open(folder), recorder)
        except (OSError, KeyError, ValueError) as error:  # another version of the code may have written other columns
            note = f"the tables in {folder} cannot be read ({type(error).__name__}: {error}), only its metrics"
    return Result(name, record, metrics, recorder.tables, note)

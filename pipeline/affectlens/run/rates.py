"""How long stages took on this machine, from the manifests of earlier runs in a cache."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from affectlens.errors import DamagedResult, UnreadableResult
from affectlens.plan import Rate, kind_of, speed
from affectlens.run import manifest
from affectlens.run.workspace import AnyStage
from affectlens.stage import MERGE
from affectlens.study import Study

MOST = 8
"""Manifests of a stage that are read, the newest first."""
TOO_SHORT = 1.0
"""Seconds of all its parts below which a run tells nothing."""


def of_stage(study: Study, stage: AnyStage) -> Rate | None:
    """How long the stage takes on this machine with this model; None where no run tells.

    Of the newest runs one with the same config counts before one with another.
    """
    found = list(_records(study, stage))
    section = study.provenance(stage)["config"] if found else None
    alike = [record for record in found if record["config"] == section]
    for record in (*alike, *found):
        if (rate := _rate(record)) is not None:
            return rate
    return None


def _records(study: Study, stage: AnyStage) -> Iterator[Mapping[str, Any]]:
    """Manifests of the stage that were written on this machine for the study's model, the newest first."""
    folders = [path.parent for path in (study.config.cache / stage.name).glob(f"*/{manifest.NAME}")]
    device = study.config.compute.device.partition(":")[0]
    for folder in sorted(folders, key=_written, reverse=True)[:MOST]:
        record = _read(folder)
        if record is None or record["run"].get("host") != platform.node():
            continue
        kind = str(record["run"].get("device", "")).partition(":")[0]
        if device in ("auto", kind) and _of_model(study, record):
            yield record


def _of_model(study: Study, record: Mapping[str, Any]) -> bool:
    """Whether a result is of the study's model, as far as its manifest or that of its activations tells."""
    told = record.get("model_identity")
    if told is None and (named := record["needs"].get("activations")):
        told = (_read(study.config.cache / "activations" / named[:16]) or {}).get("model_identity")
    return told in (None, study.model_identity)


def _rate(record: Mapping[str, Any]) -> Rate | None:
    """Seconds a unit of effort on one core, by kind of part; None of a run that is too short or of an older release."""
    seconds, effort = defaultdict[str, float](float), defaultdict[str, float](float)
    for name, run in record["parts"].items():
        if not run.get("effort"):
            return None
        seconds[kind_of(name)] += run["seconds"] * speed(run["threads"])
        effort[kind_of(name)] += run["effort"]
    merging = float(record["run"].get("merge_seconds", 0.0))
    if not effort or sum(seconds.values()) + merging < TOO_SHORT:
        return None
    paces = {kind: seconds[kind] / effort[kind] for kind in effort}
    return Rate({**paces, MERGE: merging / sum(effort.values())}, record["run"]["started"][:10])


def _read(folder: Path) -> Mapping[str, Any] | None:
    try:
        return manifest.read(folder)
    except (DamagedResult, UnreadableResult):
        return None


def _written(folder: Path) -> float:
    try:
        return (folder / manifest.NAME).stat().st_mtime
    except OSError:  # gone in the meantime
        return 0.0

"""Studies in Weights & Biases: the runs of one group, one a stage, tracked from this cache or kept by a server.

Of runs tracked from a cache, the results themselves are read. Of runs on a server, their summary and their tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectlens.compare import folders, remote
from affectlens.compare.findings import Findings, Result
from affectlens.errors import ConfigError, Unavailable
from affectlens.run import manifest
from affectlens.settings import TrackingConfig
from affectlens.study import stage_named
from affectlens.tracking.observer import RECORDED, RUNS

ABOUT = (*RECORDED, "seed", "fingerprint", "device")
"""Of a run's config, what says how the result came about; the rest is the section of its stage."""


def read(name: str, places: Sequence[Path]) -> Findings:
    """The study whose runs have this group.

    Args:
        name: ``group``, ``project/group`` or ``entity/project/group``; the latter two are looked for on the server.
        places: folders ``wandb`` of caches, looked through first.

    Raises:
        ConfigError: no run of this group, here or there.
        MissingResult: a run was tracked from here, but its result is no longer in the cache.
        UserError: the server cannot be asked.
    """
    if "/" in name:
        return _remote(name, f"{name}: no study file and no folder")
    groups: set[str] = set()
    for place in places:
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((place / RUNS).glob("*.json"))]
        groups |= {record["group"] for record in records}
        if name in groups:
            return _local(name, place, [record for record in records if record["group"] == name])
    there = f" (there: {', '.join(sorted(groups))})" if groups else ""
    return _remote(
        name, f"{name}: no study file, no folder, and no group of runs in {', '.join(map(str, places))}{there}"
    )


def _local(group: str, place: Path, records: Sequence[Mapping[str, Any]]) -> Findings:
    results = []
    for record in sorted(records, key=lambda record: record["time"]):
        if record["stage"] not in folders.NAMES or record["stage"] == folders.PAGE:
            continue
        folder = place.parent / record["stage"] / record["fingerprint"][:16]
        kept = manifest.read(folder)
        # A result that has left the cache is no longer known here; a newer one of its stage may be.
        results.append(Result(record["stage"], record) if kept is None else folders.finished(folder, kept))
    return _study(group, str(place), results)


def _study(group: str, source: str, results: Sequence[Result]) -> Findings:
    """The newest result of each stage."""
    newest = {result.stage: result for result in results}
    notes = []
    for stage in newest:
        count = len({result.record.get("fingerprint") for result in results if result.stage == stage})
        if count > 1:
            notes.append(f"{count} results of stage `{stage}` lie in this group, the newest is compared")
    by_stage = {stage: newest[stage] for stage in folders.NAMES if stage in newest}
    missing = [f"{stage} (no run)" for stage in folders.NAMES if stage != folders.PAGE and stage not in newest]
    missing += [f"{stage} (no longer in the cache)" for stage, result in by_stage.items() if not result.metrics]
    return Findings(group, group, f"W&B group, {source}", by_stage, tuple(missing), tuple(notes))


def _remote(name: str, missing: str) -> Findings:
    """The newest run of each stage on the configured server.

    Args:
        name: of the group, perhaps with project and entity.
        missing: what to say where there is no such group.

    Raises:
        ConfigError: no key, or no run.
        UserError: no answer.
    """
    config = TrackingConfig()
    try:
        runs, where = remote.runs(name, config.project, config.timeout)
    except PermissionError:
        raise ConfigError(f"{missing}; to ask a server, set WANDB_API_KEY or run `wandb login`") from None
    except OSError as error:
        raise Unavailable(f"{missing}, and the W&B server cannot be asked ({error})") from None
    if not runs:
        raise ConfigError(f"{missing}, and none of this name on {where}; check the name")
    kinds = [stage for stage in folders.NAMES if stage != folders.PAGE]
    return _study(name.rpartition("/")[2], where, [_result(run) for run in runs if run["stage"] in kinds])


def _result(run: Mapping[str, Any]) -> Result:
    """What one run says of a result. Tables that its stage no longer declares are left out."""
    import pandas as pd

    stage, config = run["stage"], run["config"]
    record = {key: config[key] for key in ABOUT if key in config}
    section = {key: value for key, value in config.items() if key not in ABOUT and not key.startswith("_")}
    prefix = f"{stage}/"
    metrics = {key.removeprefix(prefix): value for key, value in run["summary"].items() if key.startswith(prefix)}
    tables = {}
    for declared in stage_named(stage).tables:
        content = run["tables"].get(prefix + declared.name)
        if content is not None:
            tables[declared.name] = pd.DataFrame(content["data"], columns=content["columns"])
            tables[declared.name].attrs["table"] = declared
    return Result(stage, {**record, "config": section}, metrics, tables)

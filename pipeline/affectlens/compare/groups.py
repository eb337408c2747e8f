"""Studies in Weights & Biases: the runs of one group, one a stage, from local offline runs or from the server."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.compare import offline
from affectlens.compare.findings import Findings, Result
from affectlens.compare.folders import NAMES, PAGE
from affectlens.errors import ConfigError, UserError
from affectlens.settings import TrackingConfig
from affectlens.study import stage_named
from affectlens.tracking.session import Session, release, within

if TYPE_CHECKING:
    import pandas as pd

ABOUT = ("seed", "versions", "git", "version", "needs", "data", "model", "model_identity", "fingerprint")
"""Of a run's config, what says how the result came about; the rest is the section of its stage."""

ASKING_LIMIT_S = 60.0
"""How long a server may take to tell of all runs of a group, with their tables."""


@dataclass
class Sent:
    """What one run holds."""

    group: str = ""
    stage: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def read(name: str, places: Sequence[Path]) -> Findings:
    """The study whose runs have this group.

    Args:
        name: ``group``, ``project/group`` or ``entity/project/group``; the latter two are looked for on the server.
        places: folders with offline runs, looked through first.

    Raises:
        ConfigError: no run of this group, here or there.
        UserError: the server cannot be asked.
    """
    if "/" not in name:
        groups: set[str] = set()
        for place in places:
            runs = list(_local(place))
            groups |= {run.group for run in runs}
            if name in {run.group for run in runs}:
                return _study(name, str(place), [run for run in runs if run.group == name])
        missing = f"{name}: no study file, no folder, and no group of runs in {', '.join(map(str, places))}"
        known = f" (there: {', '.join(sorted(groups))})" if groups else ""
    else:
        missing, known = f"{name}: no study file and no folder", ""
    runs, where = _remote(name, f"{missing}{known}")
    if not runs:
        raise ConfigError(f"{missing}{known}, and none of this name on {where}; check the name")
    return _study(name.rpartition("/")[2], where, runs)


def _study(group: str, source: str, runs: Sequence[Sent]) -> Findings:
    """The newest run of each stage, made into results."""
    newest = {run.stage: run for run in runs if run.stage in NAMES and run.stage != PAGE}
    prints: dict[str, set[Any]] = {}
    for run in runs:
        prints.setdefault(run.stage, set()).add(run.config.get("fingerprint"))
    notes = [
        f"{len(found)} results of stage `{stage}` lie in this group, the newest is compared"
        for stage, found in prints.items()
        if len(found) > 1 and stage in newest
    ]
    results = {stage: _result(stage, newest[stage]) for stage in NAMES if stage in newest}
    missing = [f"{stage} (no run)" for stage in NAMES if stage != PAGE and stage not in newest]
    return Findings(group, group, f"W&B group, {source}", results, tuple(missing), tuple(notes))


def _result(stage: str, run: Sent) -> Result:
    record = {key: run.config[key] for key in ABOUT if key in run.config}
    section = {key: value for key, value in run.config.items() if key not in ABOUT and not key.startswith("_")}
    metrics = {
        key.removeprefix(f"{stage}/"): value
        for key, value in run.summary.items()
        if key.startswith(f"{stage}/") and isinstance(value, int | float | None) and key.count("/") == 1
    }
    return Result(stage, {**record, "config": section}, metrics, run.tables)


def _local(place: Path) -> Iterator[Sent]:
    for log in offline.logs(place) if place.is_dir() else ():
        run = Sent()
        try:
            for record in offline.read(log):
                _take(run, record)
        except (OSError, ValueError) as error:
            raise UserError(f"{log}: cannot be read ({error}); move it away, or compare result folders") from None
        _add_tables(run, lambda path, folder=log.parent: (folder / "files" / path).read_bytes())
        yield run


def _take(run: Sent, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run.group, run.stage = record.run.run_group, record.run.job_type
        offline.assign(run.config, record.run.config.update)
    elif kind == "config":
        offline.assign(run.config, record.config.update)
    elif kind == "summary":
        offline.assign(run.summary, record.summary.update)


def _add_tables(run: Sent, content: Any) -> None:
    """The tables that a run's summary points to."""
    import pandas as pd

    if run.stage not in NAMES:
        return
    for name, value in run.summary.items():
        declared = {f"{run.stage}/{table.name}": table for table in stage_named(run.stage).tables}
        if name in declared and isinstance(value, Mapping) and value.get("_type") == "table-file":
            table = json.loads(content(value["path"]))
            frame = pd.DataFrame(table["data"], columns=table["columns"])
            frame.attrs["table"] = declared[name]
            run.tables[declared[name].name] = frame


def _remote(name: str, missing: str) -> tuple[list[Sent], str]:
    """The runs of a group on the configured server, and what to call it.

    Raises:
        UserError: no key, or no answer.
    """
    config = TrackingConfig()
    with tempfile.TemporaryDirectory() as scratch:
        session = Session(Path(scratch), "online", config.timeout, {})
        with session.environment():
            try:
                if not session.has_key():
                    raise ConfigError(f"{missing}; to ask a server, set WANDB_API_KEY or run `wandb login`")
                return within(ASKING_LIMIT_S, lambda: _ask(name, config, Path(scratch)))
            except ConfigError:
                raise
            except Exception as error:
                text = " ".join(str(error).split())
                raise UserError(f"{missing}, and the W&B server cannot be asked ({text[:160]})") from None
            finally:
                release()


def _ask(name: str, config: TrackingConfig, scratch: Path) -> tuple[list[Sent], str]:
    import wandb

    api = wandb.Api(timeout=int(config.timeout))
    *path, group = name.split("/")
    entity = path[0] if len(path) == 2 else api.default_entity
    project = path[-1] if path else config.project
    found = []
    for run in api.runs(f"{entity}/{project}", filters={"group": group}, order="+created_at", lazy=False):
        values = {key: _unwrapped(value) for key, value in run.summary.items()}
        sent = Sent(group, run.job_type or "", dict(run.config), values)
        _add_tables(sent, lambda path, run=run: _download(run, path, scratch))
        found.append(sent)
    return found, f"{api.settings['base_url']} ({entity}/{project})"


def _download(run: Any, path: str, scratch: Path) -> bytes:
    with run.file(path).download(root=str(scratch / run.id), replace=True) as stream:
        return Path(stream.name).read_bytes()


def _unwrapped(value: Any) -> Any:
    """Summary values of mappings come as objects that only look like mappings."""
    return dict(value.items()) if hasattr(value, "items") else value

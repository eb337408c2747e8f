"""Runs a study: which stages, which parts, in which process, and what is left on disk at any moment.

A result is built in ``<fingerprint>.partial/`` and renamed when it is complete. Below it, ``parts/<name>/`` appears by
rename too, when that part is complete, so killing a run at any moment loses at most the parts in progress. Locks
are held by living processes only: two runners on one cache share the parts instead of repeating them.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from affectlens import results
from affectlens.disk import require_space
from affectlens.errors import DamagedResult, MissingResult, PartFailed, UserError
from affectlens.files import write_json
from affectlens.model import subject
from affectlens.run import manifest, verify
from affectlens.run.observer import Guarded, Observer
from affectlens.run.workers import Send, Workers, WorkersDied
from affectlens.run.workspace import AnyStage, Workspace, inspect
from affectlens.stage import Metrics, Part, Stage
from affectlens.study import STAGES, Study, stage_named

Mode = Literal["cached", "retry", "force", "read-only"]


@dataclass(frozen=True)
class Outcome:
    """How one stage ended."""

    stage: str
    state: Literal["cached", "computed"]
    folder: Path
    seconds: float
    metrics: Metrics


class Reporter:
    """What a caller may want to know while a study runs. This one stays silent."""

    def stage_started(self, stage: str, total: float, done: float, unit: str) -> None: ...

    def advanced(self, units: float) -> None: ...

    def waiting(self, message: str) -> None: ...

    def stage_ended(self, outcome: Outcome) -> None: ...


def needed_for(names: Sequence[str]) -> list[AnyStage]:
    """The named stages and everything they need, in order; all stages when none is named."""
    if not names:
        return list(STAGES)
    wanted: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += stage_named(name).needs
    return [stage for stage in STAGES if stage.name in wanted]


def run(
    study: Study,
    *,
    mode: Mode = "cached",
    only: Sequence[str] = (),
    workers: int | str | None = None,
    reporter: Reporter | None = None,
    observer: Observer | None = None,
) -> list[Outcome]:
    """Bring a study up to date.

    Args:
        study: what to run.
        mode: ``cached`` reuses results and stops at recorded failures; ``retry`` runs failed parts again; ``force``
            computes the named stages (all, when none is named) anew; ``read-only`` computes nothing.
        only: names of stages; these and what they need are brought up to date.
        workers: processes to share the parts among; the config's number when None.
        reporter: told of progress.
        observer: told of results, for example :class:`affectlens.tracking.observer.WandbObserver`.

    Raises:
        UserError: see the subclasses in ``affectlens.errors``. Finished parts stay finished.
    """
    reporter, observer = reporter or Reporter(), Guarded(observer or Observer())
    outcomes = []
    with Workers(_work) as pool:
        for stage in needed_for(only):
            forced = mode == "force" and (not only or stage.name in only)
            outcome = _run_stage(study, stage, mode, forced, workers, pool, reporter, observer)
            reporter.stage_ended(outcome)
            outcomes.append(outcome)
    return outcomes


def open_results(study: Study, names: Sequence[str]) -> dict[str, Any]:
    """Opened results by stage name.

    Raises:
        MissingResult: one of them is not finished.
    """
    opened = {}
    for name in names:
        stage = stage_named(name)
        space = Workspace(study, stage)
        if not space.complete:
            raise MissingResult(f"stage `{name}` has no result in {space.final}; run `affectlens run {study.source}`")
        opened[name] = stage.open(space.final)
    return opened


def _run_stage(
    study: Study,
    stage: AnyStage,
    mode: Mode,
    forced: bool,
    workers: int | str | None,
    pool: Workers,
    reporter: Reporter,
    observer: Observer,
) -> Outcome:
    space = Workspace(study, stage)
    if forced:
        with space.lock("finish", wait=True):
            space.discard()
    elif _sound(space, stage, mode, reporter) and space.complete:
        return _outcome(study, stage, False, observer)
    if mode == "read-only":
        raise MissingResult(
            f"stage `{stage.name}` has no finished result in {space.final}; leave out --mode read-only to compute it"
        )
    started = time.time()
    parts = parts_of(study, stage)
    _refuse_failures(space, stage, parts, mode)
    observer.stage_started(study, stage)
    try:
        devices = _run_parts(study, stage, parts, workers, pool, _Both(reporter, observer))
        merged = _finish(study, stage, devices, started, reporter)
    except BaseException as error:
        observer.stage_failed(study, stage, error)
        raise
    return _outcome(study, stage, merged, observer)


class _Both(Reporter):
    """Units of work go to the observer, too."""

    def __init__(self, reporter: Reporter, observer: Observer) -> None:
        self.stage_started = reporter.stage_started
        self.waiting = reporter.waiting
        self._reporter = reporter
        self._observer = observer

    def advanced(self, units: float) -> None:
        self._reporter.advanced(units)
        self._observer.advanced(units)


def parts_of(study: Study, stage: AnyStage) -> Sequence[Part]:
    """The parts of a stage whose needs are finished.

    Raises:
        MissingResult: one of its needs is not.
    """
    _make_folder(Workspace(study, stage).parts)
    return _build(study, stage, device="cpu").parts()


def run_parts(
    study: Study, stage: AnyStage, parts: Sequence[Part], *, workers: int | str | None, reporter: Reporter
) -> None:
    """Do some of the parts of a stage; :func:`merge_parts` makes a result of all of them.

    Raises:
        PartFailed: some of them raised. The others are done.
        UserError: the world was wrong.
    """
    with Workers(_work) as pool:
        _run_parts(study, stage, parts, workers, pool, reporter)


def merge_parts(
    study: Study, stage: AnyStage, *, workers: int, reporter: Reporter, observer: Observer | None = None
) -> None:
    """Make the result of a stage from its finished parts, unless it is there.

    Args:
        study: whose stage.
        stage: to finish.
        workers: how many did the parts, for the record.
        reporter: told of progress.
        observer: told of the result.

    Raises:
        MissingResult: parts are not finished.
    """
    space = Workspace(study, stage)
    if space.complete:
        return
    parts = parts_of(study, stage)
    missing = [part.name for part in parts if not space.done(part)]
    if missing:
        raise MissingResult(
            f"stage `{stage.name}`: {len(missing)} of {len(parts)} parts are missing, first {missing[0]}; submit again "
            "with --mode retry"
        )
    runs = [manifest.read_part(space.parts / part.name)["run"] for part in parts]
    started = min((manifest.started(run) for run in runs), default=time.time())
    # A merge may run where there is no accelerator, whatever the parts were computed on.
    device = "cpu" if study.config.compute.device == "cpu" else subject.device_names("auto")[0]
    if _finish(study, stage, [device] * workers, started, reporter):
        _outcome(study, stage, True, Guarded(observer or Observer()))


def _run_parts(
    study: Study,
    stage: AnyStage,
    parts: Sequence[Part],
    workers: int | str | None,
    pool: Workers,
    reporter: Reporter,
) -> list[str]:
    """Do these parts; returns the device of each worker."""
    space = Workspace(study, stage)
    devices = _devices(study, workers, len(parts))
    names = frozenset(part.name for part in parts)
    reporter.stage_started(
        stage.name,
        total=sum(part.size for part in parts),
        done=sum(part.size for part in parts if space.done(part)),
        unit=stage.unit,
    )
    if len(devices) > 1:
        _share_parts(study, stage, names, devices, pool, reporter)
    else:
        claim_parts(study, stage, names, devices[0], progress=reporter.advanced, waiting=reporter.waiting)
    _report_failures(space, stage, parts)
    return devices


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cache: {folder} cannot be made ({error.strerror}); set `cache:` to a writable folder"
        ) from None


def _sound(space: Workspace, stage: AnyStage, mode: Mode, reporter: Reporter) -> bool:
    """Whether what is there, finished or not, is there in full length; what is not makes room to be computed again."""
    if space.complete:
        _drop_merged_parts(space, stage)  # a run killed right after its merge leaves them behind
    damaged = verify.damages(space, stage, contents=False)
    if damaged and mode == "read-only":
        raise DamagedResult(f"stage `{stage.name}`: {damaged[0]}; leave out --mode read-only to compute it anew")
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        reporter.waiting(f"{stage.name}: {damaged[0]}{more}; computing just that again")
        verify.set_aside(space, stage, contents=False)
    return not damaged


def _outcome(study: Study, stage: AnyStage, computed: bool, observer: Observer) -> Outcome:
    state = inspect(study, stage)
    assert state.record is not None
    observer.stage_finished(study, stage, state.record, state.metrics, state.folder, computed=computed)
    seconds = state.record["run"]["seconds"]
    return Outcome(stage.name, "computed" if computed else "cached", state.folder, seconds, state.metrics)


def _build(study: Study, stage: AnyStage, device: str) -> Stage[Any, Any]:
    return stage(study.section(stage), study.setting(device), open_results(study, stage.needs))


def _refuse_failures(space: Workspace, stage: AnyStage, parts: Sequence[Part], mode: Mode) -> None:
    failed = {part.name: space.failure(part) for part in parts if space.failure(part)}
    if not failed:
        return
    if mode in {"retry", "force"}:
        shutil.rmtree(space.failed)
        return
    name, error = next(iter(failed.items()))
    raise PartFailed(
        f"stage `{stage.name}`: part {name} failed in an earlier run ({error}); remove the cause and run with "
        f"--mode retry (traceback: {space.failed / name}.json)"
    )


def _report_failures(space: Workspace, stage: AnyStage, parts: Sequence[Part]) -> None:
    failed = {part.name: space.failure(part) for part in parts if space.failure(part)}
    if failed:
        name, error = next(iter(failed.items()))
        raise PartFailed(
            f"stage `{stage.name}`: {len(failed)} of {len(parts)} parts failed, first {name} ({error}); the others are "
            f"kept; remove the cause and run with --mode retry (traceback: {space.failed / name}.json)"
        )


def _devices(study: Study, workers: int | str | None, parts: int) -> list[str]:
    """The device of each worker: accelerators one each, the processor as often as asked."""
    compute = study.config.compute
    wanted = compute.workers if workers is None else workers
    # Asking torch for devices costs its import, which the processor does not need.
    names = ["cpu"] if compute.device == "cpu" else subject.device_names(compute.device)
    if wanted == "auto":
        wanted = len(names) if names[0] != "cpu" else max(1, (os.cpu_count() or 1) // compute.threads)
    count = max(1, min(int(wanted), parts))
    return [names[index % len(names)] for index in range(count)]


def _set_threads(count: int) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    threadpool_limits(count)


def claim_parts(
    study: Study,
    stage: AnyStage,
    names: Collection[str],
    device: str,
    *,
    progress: Callable[[float], None] = lambda units: None,
    waiting: Callable[[str], None] = lambda message: None,
) -> None:
    """Work on whichever of the named parts nobody else is working on, until each is done or has failed."""
    _set_threads(study.config.compute.threads)
    space = Workspace(study, stage)
    built = _build(study, stage, device)
    parts = [part for part in built.parts() if part.name in names]
    require_space(space.parts, built.disk_bytes([part for part in parts if not space.done(part)]), stage.name)
    told = False
    while not space.complete:
        pending = [part for part in parts if not space.done(part) and space.failure(part) is None]
        if not pending:
            return
        worked = False
        for part in pending:
            with space.lock(f"part-{part.name}", wait=False) as mine:
                # In this order: parts leave their place only after the result has taken its own.
                if mine and not space.done(part) and not space.complete and space.failure(part) is None:
                    _run_part(study, space, built, part, progress)
                    worked = True
        if not worked:
            if not told:
                count = "a part" if len(pending) == 1 else f"{len(pending)} parts"
                waiting(f"{stage.name}: waiting for {count} that another run is working on")
                told = True
            time.sleep(0.2)


def _run_part(
    study: Study, space: Workspace, built: Stage[Any, Any], part: Part, progress: Callable[[float], None]
) -> None:
    building = space.parts / f"{part.name}.building"
    if not built.resumes_parts:
        shutil.rmtree(building, ignore_errors=True)
    _make_folder(building)
    started = time.time()
    try:
        built.run_part(part, building, progress)
        study.require_same_inputs(type(built))
    except (UserError, OSError, MemoryError):
        # The world was wrong, not the part: nothing is remembered against it, and the next run tries again.
        raise
    except Exception as error:
        space.failed.mkdir(exist_ok=True)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        write_json(space.failed / f"{part.name}.json", {"error": reason, "traceback": traceback.format_exc()})
        return
    files = manifest.hash_files(building)
    record = {
        "files": files,
        "sizes": verify.sizes(building, files),
        "run": manifest.circumstances(started, built.setting.device, built.setting.threads),
    }
    write_json(building / "part.json", record)
    os.replace(building, space.parts / part.name)


def _finish(study: Study, stage: AnyStage, devices: Sequence[str], started: float, reporter: Reporter) -> bool:
    """Merge the parts; returns whether this process did."""
    space = Workspace(study, stage)
    with space.lock("finish", wait=False) as mine:
        if not mine:
            reporter.waiting(f"{stage.name}: waiting for another run that is merging the parts")
    with space.lock("finish", wait=True):
        merges = not space.complete
        if merges:
            _merge(study, stage, space, devices, started)
    shutil.rmtree(space.locks, ignore_errors=True)
    return merges


def _merge(study: Study, stage: AnyStage, space: Workspace, devices: Sequence[str], started: float) -> None:
    _set_threads(study.config.compute.threads)
    built = _build(study, stage, devices[0])
    parts = {part.name: space.parts / part.name for part in built.parts()}
    for leftover in space.partial.iterdir():
        if leftover != space.parts:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    records = {name: manifest.read_part(folder) for name, folder in parts.items()}
    metrics = built.finish(parts, space.partial)
    missing = {table.name for table in stage.tables} - set(results.names(space.partial))
    if missing:
        raise RuntimeError(f"stage `{stage.name}` declares tables that it did not write: {', '.join(sorted(missing))}")
    write_json(space.partial / manifest.METRICS, metrics)
    files = _files(space, records, stage.keeps_parts)
    record = {
        **study.provenance(stage),
        "fingerprint": study.fingerprint(stage),
        "files": files,
        "sizes": verify.sizes(space.partial, files),
        "parts": {name: part["run"] for name, part in records.items()},
        "run": manifest.circumstances(started, devices[0], study.config.compute.threads),
        "workers": len(devices),
        "versions": manifest.versions(),
        "git": manifest.git_revision(),
    }
    write_json(space.partial / manifest.NAME, record)
    os.replace(space.partial, space.final)
    _drop_merged_parts(space, stage)


def _drop_merged_parts(space: Workspace, stage: AnyStage) -> None:
    if not stage.keeps_parts:
        shutil.rmtree(space.final / "parts", ignore_errors=True)


def _files(space: Workspace, records: Mapping[str, Any], keeps_parts: bool) -> dict[str, str]:
    """Hashes of everything in the result; those of parts were taken when the parts were written."""
    found = manifest.hash_files(space.partial, skip="parts")
    if keeps_parts:
        for part, record in records.items():
            found |= {f"parts/{part}/{name}": sha for name, sha in record["files"].items()}
    return found


def _work(study: Study, stage: str, names: Collection[str], device: str, send: Send) -> None:
    """One worker's share of a stage."""
    claim_parts(
        study,
        stage_named(stage),
        names,
        device,
        progress=lambda units: send("advanced", units),
        waiting=lambda message: send("waiting", message),
    )


def _share_parts(
    study: Study,
    stage: AnyStage,
    names: Collection[str],
    devices: Sequence[str],
    pool: Workers,
    reporter: Reporter,
) -> None:
    """Let several processes work on a stage, one device each."""
    idle = 0

    def heard(kind: str, value: Any) -> None:
        nonlocal idle
        # A worker that waits for another of this run is nobody's concern; that all of them wait is.
        idle += kind == "waiting"
        if kind != "waiting" or idle == len(devices):
            getattr(reporter, kind)(value)

    try:
        pool.run([(study, stage.name, names, device) for device in devices], heard)
    except WorkersDied as error:
        raise UserError(
            f"stage `{stage.name}`: {error}; finished parts are kept, run again, with fewer --workers if memory is "
            "short"
        ) from None

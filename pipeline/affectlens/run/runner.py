"""Runs a study: which stages, which parts, in which process, and what is left on disk at any moment.

A result is built in ``<fingerprint>.partial/`` and renamed when it is complete. Below it, ``parts/<name>/`` appears by
rename too, when that part is complete, so killing a run at any moment loses at most the parts in progress. What a stage
reads is compared with its checksums before it is used, and damage is repaired by computing just that again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

from affectlens import results
from affectlens.errors import ConfigError, DamagedResult, MissingResult, PartFailed, Unavailable, UnreadableResult
from affectlens.files import remove_leftovers, sync_folder, write_json
from affectlens.model import subject
from affectlens.run import manifest, parts, verify
from affectlens.run.manifest import Began
from affectlens.run.observer import Guarded, Observer, Outcome, Reporter
from affectlens.run.parts import open_results, parts_of
from affectlens.run.workers import Send, Workers, WorkersDied
from affectlens.run.workspace import PARTS, AnyStage, Workspace, inspect, remove
from affectlens.stage import Part
from affectlens.study import Study

__all__ = [
    "Mode",
    "Outcome",
    "Reporter",
    "check_pending",
    "inspect",
    "merge_parts",
    "needed_for",
    "open_results",
    "parts_of",
    "run",
    "run_parts",
]

Mode = Literal["cached", "retry", "force", "read-only"]


def needed_for(study: Study, names: Sequence[str]) -> list[AnyStage]:
    """The named stages of a study and everything they need, in order; all stages when none is named.

    Raises:
        ConfigError: one of them cannot run with this study file.
    """
    wanted: set[str] = set()
    pending = list(names) or [stage.name for stage in study.stages]
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += study.stage_named(name).needs
    stages = [stage for stage in study.stages if stage.name in wanted]
    try:
        for stage in stages:
            stage.check_chosen(study.config)
    except ValueError as error:
        raise ConfigError(f"{study.source}: {error}") from None
    return stages


def tokenizer_of(study: Study, *, converting: bool = True) -> Callable[[], Any]:
    """Loads the model's tokenizer when it is first called.

    Args:
        study: whose model.
        converting: whether a GGUF file may be converted for it.
    """
    setting = study.setting("cpu")
    return cache(partial(subject.load_tokenizer, setting.model, setting.models, converting=converting))


def check_pending(study: Study, names: Sequence[str], tokenizer: Callable[[], Any] | None = None) -> None:
    """Ask the named stages, and those that they need, what they can see before anything runs; not those that are done.

    Args:
        study: that is about to run.
        names: of stages; all when none is named.
        tokenizer: loads the model's tokenizer.

    Raises:
        UserError: from the first stage that finds a fault.
    """
    pending = [stage for stage in needed_for(study, names) if inspect(study, stage).state != "done"]
    if not pending:
        return
    parts.require_writable(study.config.cache)
    if study.config.compute.device.startswith("cuda"):
        subject.device_names(study.config.compute.device)
    tokenizer = tokenizer or tokenizer_of(study)
    for stage in pending:
        stage.check_pending(study.config, tokenizer)


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
    guarded = Guarded(observer or Observer())
    try:
        with Workers(_work) as pool:
            session = Session(study, pool, mode, workers, reporter or Reporter(), guarded)
            if mode != "read-only":
                check_pending(study, only)
            for stage in needed_for(study, only):
                session.bring_up(stage, forced=mode == "force" and (not only or stage.name in only))
        outcomes = [session.outcomes[stage.name] for stage in needed_for(study, only)]
        guarded.study_finished(study, outcomes)
    finally:
        guarded.close()
    return outcomes


def run_parts(
    study: Study, stage: AnyStage, some: Sequence[Part], *, workers: int | str | None, reporter: Reporter
) -> None:
    """Do some of the parts of a stage; :func:`merge_parts` makes a result of all of them.

    Raises:
        PartFailed: some of them raised. The others are done.
        UserError: the world was wrong.
    """
    with Workers(_work) as pool:
        parts.adopt(study, stage, some)
        parts.require_sound_needs(study, stage)
        Session(study, pool, workers=workers, reporter=reporter).compute(stage, some)


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
    parts.require_sound_needs(study, stage)
    every = parts_of(study, stage)
    missing = [part.name for part in every if not space.done(part)]
    if missing:
        raise MissingResult(
            f"stage `{stage.name}`: {len(missing)} of {len(every)} parts are missing, first {missing[0]}; submit again "
            "with --mode retry"
        )
    runs = [manifest.read_part(space.parts / part.name)["run"] for part in every]
    began = min((Began.of(run) for run in runs), key=lambda each: each.wall, default=Began.now())
    # A merge may run where there is no accelerator, whatever the parts were computed on.
    device = "cpu" if study.config.compute.device == "cpu" else subject.device_names("auto")[0]
    guarded = Guarded(observer or Observer())
    with Workers(_work) as pool:
        session = Session(study, pool, reporter=reporter, observer=guarded)
        if session.finish(stage, [device] * workers, began):
            session.outcome(stage, computed=True)
    guarded.close()


def _devices(study: Study, workers: int | str | None, count: int) -> list[str]:
    """The device of each worker: accelerators one each, the processor as often as asked."""
    compute = study.config.compute
    wanted = compute.workers if workers is None else workers
    # Asking torch for devices costs its import, which the processor does not need.
    names = ["cpu"] if compute.device == "cpu" else subject.device_names(compute.device)
    if wanted == "auto":
        wanted = len(names) if names[0] != "cpu" else max(1, (os.cpu_count() or 1) // compute.threads)
    return [names[index % len(names)] for index in range(max(1, min(int(wanted), count)))]


def _work(study: Study, stage: str, names: Collection[str], device: str, send: Send) -> None:
    """One worker's share of a stage."""
    parts.claim(
        study,
        study.stage_named(stage),
        names,
        device,
        progress=lambda units: send("advanced", units),
        waiting=lambda message: send("waiting", message),
    )


@dataclass
class Session:
    """One call of :func:`run`: who works, who is told, and what has been brought up to date."""

    study: Study
    pool: Workers
    mode: Mode = "cached"
    workers: int | str | None = None
    reporter: Reporter = field(default_factory=Reporter)
    observer: Observer = field(default_factory=Observer)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def bring_up(self, stage: AnyStage, *, forced: bool = False) -> None:
        """Make sure that the stage's result is there; its needs have been brought up before."""
        space = Workspace(self.study, stage)
        if forced:
            with space.lock("finish", wait=True):
                if busy := space.busy():
                    raise Unavailable(
                        f"stage `{stage.name}`: another run is working on {len(busy)} of its parts, first {busy[0]}; "
                        "end that run, or leave out --mode force to share the work with it"
                    )
                space.discard()
        elif self.sound(stage) and space.complete:
            space.clear_locks()  # a run killed right after its merge leaves them behind, and merged parts too
            _drop_merged_parts(space, stage)
            self.outcome(stage, computed=False)
            return
        if self.mode == "read-only":
            raise MissingResult(
                f"stage `{stage.name}` has no finished result in {space.final}; leave out --mode read-only to compute "
                "it"
            )
        for name in stage.needs:
            # What is read is compared byte by byte, and computed again if it is not what was written.
            need = self.study.stage_named(name)
            if not self.sound(need, contents=True):
                self.bring_up(need)
        self.study.digests.flush()
        began = Began.now()
        every = parts_of(self.study, stage)
        failed = space.failures()
        if failed and self.mode in {"retry", "force"}:
            shutil.rmtree(space.failed)
        elif failed:
            name, error = next(iter(failed.items()))
            raise PartFailed(
                f"stage `{stage.name}`: part {name} failed in an earlier run ({error}); remove the cause and run with "
                f"--mode retry (traceback: {space.failed / name}.json)"
            )
        self.observer.stage_started(self.study, stage, sum(part.size for part in every))
        try:
            if not forced:
                parts.adopt(self.study, stage, every)
            devices = self.compute(stage, every)
            merged = self.finish(stage, devices, began)
        except BaseException as error:
            self.observer.stage_failed(self.study, stage, error)
            raise
        self.outcome(stage, computed=merged)

    def sound(self, stage: AnyStage, *, contents: bool = False) -> bool:
        """Whether what is there is what was written; what is not makes room to be computed again.

        Args:
            stage: whose result, finished or not.
            contents: compare checksums, remembered for large files that were not touched since; otherwise lengths.
        """
        space = Workspace(self.study, stage)
        faults = verify.damages(space, stage, contents=contents, digest=self.study.digests.file)
        unreadable = next((fault for fault in faults if not fault.certain), None)
        if unreadable is not None:
            raise UnreadableResult(f"stage `{stage.name}`: {unreadable}; put that right and run again")
        if faults and self.mode == "read-only":
            raise DamagedResult(f"stage `{stage.name}`: {faults[0]}; leave out --mode read-only to compute it anew")
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            self.reporter.waiting(f"{stage.name}: {faults[0]}{more}; computing just that again")
            verify.set_aside(space, stage, contents=contents)
        return not faults

    def outcome(self, stage: AnyStage, *, computed: bool) -> None:
        """Tell everybody that the result is there."""
        state = inspect(self.study, stage)
        if state.record is None:
            raise DamagedResult(f"stage `{stage.name}`: {next(iter(state.failures.values()), 'gone')}; run again")
        self.observer.stage_finished(self.study, stage, state.record, state.metrics, state.folder, computed=computed)
        seconds = state.record["run"]["seconds"]
        ended = Outcome(stage.name, "computed" if computed else "cached", state.folder, seconds, state.metrics)
        self.outcomes[stage.name] = ended
        self.reporter.stage_ended(ended)

    def compute(self, stage: AnyStage, some: Sequence[Part]) -> list[str]:
        """Do these parts; returns the device of each worker."""
        space = Workspace(self.study, stage)
        devices = _devices(self.study, self.workers, len(some))
        names = frozenset(part.name for part in some)
        self.reporter.stage_started(
            stage.name,
            total=sum(part.size for part in some),
            done=sum(part.size for part in some if space.done(part)),
            unit=stage.unit,
        )
        if len(devices) > 1 and not all(map(space.done, some)):
            self.share(stage, names, devices)
        else:
            parts.claim(self.study, stage, names, devices[0], progress=self.advanced, waiting=self.reporter.waiting)
        failed = {name: error for name, error in space.failures().items() if name in names}
        if failed:
            name, error = next(iter(failed.items()))
            raise PartFailed(
                f"stage `{stage.name}`: {len(failed)} of {len(some)} parts failed, first {name} ({error}); the others "
                f"are kept; remove the cause and run with --mode retry (traceback: {space.failed / name}.json)"
            )
        return devices

    def advanced(self, units: float) -> None:
        self.reporter.advanced(units)
        self.observer.advanced(units)

    def share(self, stage: AnyStage, names: Collection[str], devices: Sequence[str]) -> None:
        """Let several processes work on a stage, one device each."""
        idle = 0

        def receive(kind: str, value: Any) -> None:
            nonlocal idle
            if kind == "advanced":
                self.advanced(value)
                return
            # A worker that waits for another of this run is nobody's concern; that all of them wait is.
            idle += 1
            if idle == len(devices):
                self.reporter.waiting(value)

        try:
            self.pool.run([(self.study, stage.name, names, device) for device in devices], receive)
        except WorkersDied as error:
            raise Unavailable(
                f"stage `{stage.name}`: {error}; finished parts are kept, run again, with fewer --workers if memory is "
                "short"
            ) from None

    def finish(self, stage: AnyStage, devices: Sequence[str], began: Began) -> bool:
        """Merge the parts, unless another run does; returns whether this one did."""
        space = Workspace(self.study, stage)
        with space.lock("finish", wait=False) as mine:
            if not mine:
                self.reporter.waiting(f"{stage.name}: waiting for another run that is merging the parts")
        with space.lock("finish", wait=True):
            merges = not space.complete
            if merges:
                _merge(self.study, stage, space, devices, began)
            else:
                remove(space.partial)  # made by a run that looked before the result was there
        shutil.rmtree(space.locks, ignore_errors=True)
        return merges


def _merge(study: Study, stage: AnyStage, space: Workspace, devices: Sequence[str], began: Began) -> None:
    parts.set_threads(study.config.compute.threads)
    merging, inputs = Began.now(), space.need_digests()
    built = parts.build(study, stage, devices[0])
    folders = {part.name: space.parts / part.name for part in built.parts()}
    for leftover in space.partial.iterdir():
        if leftover != space.parts:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    records = {name: manifest.read_part(folder) for name, folder in folders.items()}
    metrics = built.finish(folders, space.partial)
    written = results.names(space.partial)
    for table in stage.tables:
        if table.name not in written:  # this study has nothing to put in it; whoever reads it finds no rows
            results.write(space.partial, table, [])
    study.require_same_inputs(stage)
    write_json(space.partial / manifest.METRICS, metrics)
    for path in space.parts.iterdir():
        if path.name not in folders:  # what a run of other workers, or a killed one, left beside the parts
            shutil.rmtree(path)
    remove_leftovers(space.partial)
    files = manifest.seal_files(space.partial, skip=PARTS)
    if stage.keeps_parts:  # their hashes were taken when they were written
        for part, record in records.items():
            files |= {f"{PARTS}/{part}/{name}": sha for name, sha in record["files"].items()}
    manifest.write(
        space.partial,
        {
            **study.provenance(stage),
            "fingerprint": study.fingerprint(stage),
            "files": files,
            "sizes": verify.sizes(space.partial, files),
            "inputs": inputs,
            "parts": {name: part["run"] for name, part in records.items()},
            "run": {
                **manifest.circumstances(began, devices[0], study.config.compute.threads),
                "merge_seconds": round(time.monotonic() - merging.tick, 3),
            },
            "workers": len(devices),
            "versions": manifest.versions(),
            "git": manifest.git_revision(),
        },
    )
    remove_leftovers(space.partial)  # the manifest's own, where the disk refused to take it away
    remove(space.final)  # a folder that has lost its manifest is no result
    os.replace(space.partial, space.final)
    sync_folder(space.final.parent)
    _drop_merged_parts(space, stage)
    study.digests.remember({path: files[name] for name in files if (path := space.final / name).is_file()})


def _drop_merged_parts(space: Workspace, stage: AnyStage) -> None:
    if not stage.keeps_parts:
        shutil.rmtree(space.final / PARTS, ignore_errors=True)

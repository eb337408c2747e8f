"""The parts of one stage, as one process computes them.

A part is built in ``parts/<name>.building`` and renamed when it is complete and on the disk, so it appears whole or
not at all. Locks are held by living processes only: several on one cache share the parts instead of repeating them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from affectlens.disk import require_space
from affectlens.errors import DamagedResult, MissingResult, Unavailable, UserError, of_the_world
from affectlens.files import remove_leftovers, sync_folder, write_json
from affectlens.run import manifest, verify
from affectlens.run.workspace import BUILDING, AnyStage, Workspace
from affectlens.stage import LIVE, Part, Stage
from affectlens.study import Study

WAIT_S = 0.2
"""Between two looks at parts that another process is working on."""


def open_results(study: Study, names: Sequence[str]) -> dict[str, Any]:
    """Opened results by stage name.

    Raises:
        MissingResult: one of them is not finished.
    """
    opened = {}
    for name in names:
        stage = study.stage_named(name)
        space = Workspace(study, stage)
        if not space.complete:
            raise MissingResult(f"stage `{name}` has no result in {space.final}; run `affectlens run {study.source}`")
        opened[name] = stage.open(space.final)
    return opened


def require_sound_needs(study: Study, stage: AnyStage) -> None:
    """Compare the bytes of what a stage is about to read with those that were written.

    Raises:
        DamagedResult: one of its needs is damaged.
    """
    for name in stage.needs:
        need = study.stage_named(name)
        faults = verify.damages(Workspace(study, need), need, contents=True, digest=study.digests.file)
        if faults:
            raise DamagedResult(
                f"stage `{stage.name}` reads `{name}`, but {faults[0]}; run the study again to repair it"
            )
    study.digests.flush()


def build(study: Study, stage: AnyStage, device: str) -> Stage[Any, Any]:
    """The stage, with the results that it reads.

    Raises:
        MissingResult: one of its needs is not finished.
    """
    return stage(study.section(stage), study.setting(device), open_results(study, stage.needs))


def parts_of(study: Study, stage: AnyStage) -> Sequence[Part]:
    """The parts of a stage whose needs are finished.

    Raises:
        MissingResult: one of its needs is not.
        DamagedResult: one of its needs is damaged.
    """
    make_folder(Workspace(study, stage).parts)
    return build(study, stage, device="cpu").parts()


def adopt(study: Study, stage: AnyStage, parts: Sequence[Part]) -> None:
    """Take over, of the unfinished parts, those that another result of the stage has under the same key."""
    space = Workspace(study, stage)
    pending = [part for part in parts if not space.done(part)]
    if not pending or not space.has_siblings():
        return
    keys = study.part_keys(build(study, stage, device="cpu"), pending)
    for part in pending:
        if part.name in keys:
            with space.lock(f"part-{part.name}", wait=False) as mine:
                if mine and not space.done(part) and not space.complete:
                    space.adopt(part.name, keys[part.name])


def require_writable(cache: Path) -> None:
    """Refuse a cache in which nothing can be written, before anything is computed for it. Nothing stays behind.

    Raises:
        UserError: names it.
    """
    place = next(parent for parent in (cache.absolute(), *cache.absolute().parents) if parent.exists())
    try:
        Path(tempfile.mkdtemp(prefix=".writable-", dir=place)).rmdir()
    except OSError as error:
        raise Unavailable(
            f"cache: {cache} cannot be written ({error.strerror}); set `cache:` to a writable folder"
        ) from None


def make_folder(folder: Path) -> None:
    """A folder in the cache.

    Raises:
        UserError: the cache cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"cache: {folder} cannot be made ({error.strerror}); set `cache:` to a writable folder"
        ) from None


def set_threads(count: int) -> None:
    """Of this process's numerical libraries."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    threadpool_limits(count)


def claim(
    study: Study,
    stage: AnyStage,
    names: Collection[str],
    device: str,
    *,
    progress: Callable[[float], None] = lambda units: None,
    waiting: Callable[[str], None] = lambda message: None,
) -> None:
    """Work on whichever of the named parts nobody else is working on, until each is done or has failed."""
    set_threads(study.config.compute.threads)
    space = Workspace(study, stage)
    built = build(study, stage, device)
    parts = [part for part in built.parts() if part.name in names]
    require_space(space.parts, built.disk_bytes([part for part in parts if not space.done(part)]), stage.name)
    keys = study.part_keys(built, [part for part in parts if not space.done(part)])
    said = False
    while not space.complete:
        failed = space.failures()
        pending = [part for part in parts if not space.done(part) and part.name not in failed]
        if not pending:
            return
        worked = False
        for part in pending:
            with space.lock(f"part-{part.name}", wait=False) as mine:
                # In this order: parts leave their place only after the result has taken its own.
                if mine and not space.done(part) and not space.complete and space.failure(part) is None:
                    _compute(study, space, built, part, keys.get(part.name, ""), progress)
                    worked = True
        if not worked:
            if not said:
                count = "a part" if len(pending) == 1 else f"{len(pending)} parts"
                waiting(f"{stage.name}: waiting for {count} that another run is working on")
                said = True
            time.sleep(WAIT_S)


def _compute(
    study: Study,
    space: Workspace,
    built: Stage[Any, Any],
    part: Part,
    key: str,
    progress: Callable[[float], None],
) -> None:
    building = space.parts / f"{part.name}{BUILDING}"
    _clear(building, keep=built.checkpoint)
    make_folder(building)
    began, inputs = manifest.Began.now(), space.need_digests()
    if built.part_reads(part) is not None:
        inputs = {}  # all that it reads is in its key
    inputs = {name: digest for name, digest in inputs.items() if name not in built.measured_needs}
    try:
        built.run_part(part, building, progress)
        study.require_same_inputs(type(built))
    except Exception as error:
        if isinstance(error, UserError) or of_the_world(error):
            # The world was wrong, not the part: nothing is remembered against it, and the next run tries again.
            raise
        make_folder(space.failed)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        write_json(space.failed / f"{part.name}.json", {"error": reason, "traceback": traceback.format_exc()})
        return
    (building / LIVE).unlink(missing_ok=True)
    remove_leftovers(building)
    files = manifest.seal_files(building)
    record = {
        "files": files,
        "sizes": verify.sizes(building, files),
        "inputs": inputs,
        "key": key,
        "run": {
            **manifest.circumstances(began, built.setting.device, built.setting.threads),
            "effort": round(built.effort(part), 3),
        },
    }
    manifest.write_part(building, record)
    os.replace(building, space.parts / part.name)
    sync_folder(space.parts)


def _clear(building: Path, keep: str) -> None:
    """Empty the folder that an interrupted run left, but for its checkpoint."""
    for path in building.iterdir() if building.is_dir() else ():
        if path.name == keep:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()

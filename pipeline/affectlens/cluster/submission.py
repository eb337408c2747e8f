"""``affectlens submit`` and ``affectlens cancel``: what is missing is planned, handed over, and remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from affectlens.cluster import config as settings
from affectlens.cluster import graph, job_registry, local_executor, slurm
from affectlens.cluster.graph import AnyStage, Found, Key, Node, Task
from affectlens.cluster.job import Job
from affectlens.cluster.local_executor import Planned
from affectlens.cluster.slurm import JobState
from affectlens.errors import UserError
from affectlens.plan import outlook
from affectlens.run import manifest
from affectlens.run.observer import Observer
from affectlens.run.runner import needed_for
from affectlens.run.workspace import Workspace
from affectlens.settings import ClusterConfig, Resources
from affectlens.stage import Outlook
from affectlens.study import Study

Where = Literal["slurm", "local", "debug"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What was asked for.

    Attributes:
        studies: to bring up to date; they share one cache.
        names: of stages; these and what they need, or all when empty.
        where: which executor.
        profile: of the site, None for none.
        retry: whether parts that failed are done again.
        observer: told of each result by the job that merges it.
    """

    studies: Sequence[Study]
    names: Sequence[str] = ()
    where: Where = "slurm"
    profile: ClusterConfig | None = None
    retry: bool = False
    observer: Observer = field(default_factory=Observer)

    def settled(self, study: Study) -> ClusterConfig:
        return settings.settle(study.config.cluster, self.profile)

    def wants(self, study: Study, section: str) -> Resources:
        return settings.resources(self.settled(study), section)


def submit(order: Order, say: Say) -> list[Node]:
    """Hand over everything that is missing; with Slurm this returns at once, else when all is done.

    Raises:
        UserError: a part failed earlier and ``retry`` is off; Slurm refuses or is silent; jobs failed, without Slurm.
    """
    if order.where != "slurm":
        nodes = plan(order)
        _forget_failures(nodes)
        planned = [each for node in nodes for each in _planned(order, node)]
        if order.where == "debug":
            local_executor.run_debug(planned, say)
        else:
            local_executor.run_local(planned, order.settled(order.studies[0]), say)
        return nodes
    if len({study.config.cache for study in order.studies}) > 1:
        raise UserError("submit: the studies of a sweep must share one cache; leave `cache` out of the sweep")
    with job_registry.lock(order.studies):
        nodes = plan(order)
        _forget_failures(nodes)
        _hand_over(order, nodes, say)
    return nodes


def plan(order: Order) -> list[Node]:
    """What :func:`submit` would hand over.

    Raises:
        PartFailed: a part failed earlier and ``retry`` is off.
    """
    states = _states(order) if order.where == "slurm" else {}
    known = cache(outlook)

    def found(study: Study, stage: AnyStage) -> Found:
        return _found(study, stage, known(study), states)

    def wants(study: Study, stage: AnyStage) -> Resources:
        return order.wants(study, stage.name)

    return graph.plan(order.studies, order.names, found, wants, retry=order.retry)


def _states(order: Order) -> dict[str, JobState]:
    entries = [job_registry.read(study, stage) for study in order.studies for stage in needed_for(study, order.names)]
    return slurm.states([job for entry in entries if entry for job in entry.ids], required=True)


def _found(study: Study, stage: AnyStage, known: Outlook, states: Mapping[str, JobState]) -> Found:
    space = Workspace(study, stage)
    if space.complete:
        return Found(complete=True)
    parts = job_registry.parts_of(study, stage, known)
    entry = job_registry.read(study, stage) if states else None
    alive = {job for job in (entry.ids if entry else ()) if job in states and states[job].alive}
    return Found(
        parts=None if parts is None else tuple(part.name for part in parts),
        size=None if parts is None else sum(part.size for part in parts),
        done=frozenset(space.finished()),
        failures=Workspace(study, stage).failures(),
        tasks={job: names for job, names in entry.tasks.items() if job in alive} if entry else {},
        merge=entry.merge if entry and entry.merge in alive else None,
    )


def _forget_failures(nodes: Sequence[Node]) -> None:
    for node in nodes:
        for name in node.retried:
            (Workspace(node.study, node.stage).failed / f"{name}.json").unlink(missing_ok=True)


def _hand_over(order: Order, nodes: Sequence[Node], say: Say) -> None:
    """Give the whole graph to Slurm, or nothing of it."""
    ends: dict[Key, str] = {}
    handed: list[str] = []
    slurm.cancel([job for node in nodes for job in node.stale])
    try:
        for node in nodes:
            needs = [*(ends[key] for key in node.waits), *node.after]
            tasks = _submit(order, node, node.stage.name, list(_jobs(order, node)), needs) if node.tasks else []
            handed += tasks
            merge = tasks[0] if tasks else ""
            if node.merges:
                merge = _submit(order, node, "merge", [_merge(order, node)], [*needs, *tasks, *node.kept])[0]
                handed.append(merge)
            ends[node.key] = merge
            job_registry.write(node.study, node.stage, _entry(node, tasks, merge, needs))
            say(f"{describe(node)}: job {_span([*tasks, merge])}")
    except BaseException:
        slurm.cancel(handed)
        raise


def _span(ids: Sequence[str]) -> str:
    different = list(dict.fromkeys(ids))
    return different[0] if len(different) == 1 else f"{different[0]} to {different[-1]}"


def _entry(node: Node, tasks: Sequence[str], merge: str, needs: Sequence[str]) -> job_registry.Entry:
    kept = {job: None if names is None else list(names) for job, names in node.kept.items()}
    new = {job: None if task.parts is None else list(task.parts) for job, task in zip(tasks, node.tasks, strict=True)}
    return job_registry.Entry(
        stage=node.stage.name,
        fingerprint=node.study.fingerprint(node.stage),
        study=node.study.config.name,
        submitted=time.strftime(manifest.STAMP, time.gmtime()),
        tasks=kept | new,
        merge=merge,
        needs=list(needs),
        size=node.size,
    )


def _submit(order: Order, node: Node, section: str, jobs: Sequence[Job], after: Sequence[str]) -> list[str]:
    config = order.settled(node.study)
    return slurm.submit(
        jobs, _parameters(order, node, section, after), job_registry.folder(node.study, node.stage), config
    )


def _parameters(order: Order, node: Node, section: str, after: Sequence[str]) -> dict[str, object]:
    study = node.study
    return slurm.parameters(
        order.settled(study),
        order.wants(study, section),
        name=_name(node, section),
        threads=study.config.compute.threads,
        after=after,
    )


def _name(node: Node, section: str) -> str:
    own = f"{node.study.config.name}.{node.stage.name}"
    return f"{own}.merge" if section == "merge" else own


def _jobs(order: Order, node: Node) -> Iterator[Job]:
    workers = max(1, order.wants(node.study, node.stage.name).gpus)
    for task in node.tasks:
        yield _job(order, node, "parts" if node.merges else "both", task, workers)


def _merge(order: Order, node: Node) -> Job:
    return _job(order, node, "merge", Task(()), workers=1)


def _job(order: Order, node: Node, does: Literal["parts", "merge", "both"], task: Task, workers: int) -> Job:
    study = node.study
    return Job(
        # The type that `auto` means here holds for every node, or they would not share a fingerprint.
        values={**study.config.model_dump(mode="json"), "model": study.model.model_dump(mode="json")},
        source=study.source,
        overrides=study.overrides,
        directory=str(Path.cwd()),
        stage=node.stage.name,
        fingerprint=study.fingerprint(node.stage),
        does=does,
        task=task,
        workers=workers,
        width=max(1, len(node.tasks) + len(node.kept)) * workers,
        observer=order.observer,
    )


def _planned(order: Order, node: Node) -> Iterator[Planned]:
    """The jobs of a node for a machine without Slurm."""
    folder = job_registry.folder(node.study, node.stage)
    needs = tuple(_end(key) for key in node.waits)
    wants = order.wants(node.study, node.stage.name)
    names = []
    for index, job in enumerate(_jobs(order, node)):
        name = f"{_name(node, node.stage.name)}.{index}" if node.merges else _end(node.key)
        names.append(name)
        yield Planned(name, needs, job, _end(node.key), folder, wants)
    if node.merges:
        yield Planned(
            _end(node.key), (*needs, *names), _merge(order, node), "merge", folder, order.wants(node.study, "merge")
        )


def _end(key: Key) -> str:
    """What the job is called that finishes a result."""
    return f"{key[0]}-{key[1][:16]}"


def describe(node: Node) -> str:
    """One line: which stage of which study, in how many jobs."""
    parts = sum(len(task.parts) for task in node.tasks if task.parts is not None)
    known = all(task.parts is not None for task in node.tasks)
    what = f"{parts} part{'s' if parts != 1 else ''} in " if known and parts else ""
    jobs = _jobs_in_words(len(node.tasks))
    if not node.tasks:
        what, jobs = "", "only the merge"
    elif node.merges:
        jobs += " and a merge"
    return f"{node.study.config.name} {node.stage.name}: {what}{jobs}"


def preview(order: Order, nodes: Sequence[Node]) -> str:
    """The graph, and for Slurm the scripts, as :func:`submit` would hand them over."""
    lines = []
    for node in nodes:
        after = [f"{key[0]} ({key[1][:16]})" for key in node.waits] + [f"job {job}" for job in node.after]
        lines.append(describe(node) + (f", after {', '.join(after)}" if after else ""))
    if order.where == "slurm":
        for node in nodes:
            lines += ["", *_scripts(order, node)]
    return "\n".join(lines)


def closing(order: Order, nodes: Sequence[Node], arguments: str, *, handed: bool) -> str:
    """What was done, and the command that comes next.

    Args:
        order: what was asked for.
        nodes: what :func:`submit` or :func:`plan` returned.
        arguments: of the command line: the study file and what is changed in it.
        handed: whether the jobs were handed over.
    """
    jobs = _jobs_in_words(sum(node.jobs for node in nodes))
    several = len(order.studies) > 1
    if not nodes:
        said = "nothing to submit: everything is done or under way"
    elif not handed:
        said = f"{jobs}; nothing was submitted"
    elif order.where == "slurm":
        said = f"{jobs} submitted; `affectlens status {arguments}{' --sweep' * several}` follows them"
    else:
        said = f"{jobs} done"
    if handed and several:
        said += f"; `affectlens compare {arguments}` sets the finished studies side by side"
    return said


def _jobs_in_words(count: int) -> str:
    return f"{count} job{'s' if count != 1 else ''}"


def _scripts(order: Order, node: Node) -> Iterator[str]:
    config, folder = order.settled(node.study), job_registry.folder(node.study, node.stage)
    needs = [*(f"<{key[0]}>" for key in node.waits), *node.after]
    own = f"<{node.stage.name}>"
    if node.tasks:
        yield f"# {describe(node)}"
        yield slurm.script(_parameters(order, node, node.stage.name, needs), folder, config, len(node.tasks))
    if node.merges:
        yield f"# {node.study.config.name} {node.stage.name}: the merge"
        after = [*needs, *([own] if node.tasks else []), *node.kept]
        yield slurm.script(_parameters(order, node, "merge", after), folder, config, 1)


def cancel(studies: Sequence[Study]) -> tuple[list[str], list[str]]:
    """End the waiting and running jobs of studies, but for those that other studies need.

    Returns:
        The ids of the jobs, and the names of stages whose jobs stay.
    """
    with job_registry.lock(studies):
        entries = [entry for study in studies[:1] for entry in job_registry.read_all(study)]
        mine = {graph.key_of(study, stage) for study in studies for stage in needed_for(study, ())}
        states = slurm.states([job for entry in entries for job in entry.ids], required=True)
        alive = {job for job, state in states.items() if state.alive}
        ids, stay = graph.cancellable(entries, mine, alive)
        slurm.cancel(ids)
        return ids, stay

"""Which jobs a study needs, in which order. Pure: what is done and queued comes in, a list of nodes goes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from affectlens.cluster.job_registry import Entry
from affectlens.errors import PartFailed
from affectlens.run.runner import needed_for
from affectlens.settings import Resources
from affectlens.stage import Part, Stage
from affectlens.study import Study

AnyStage = type[Stage[Any, Any]]
Key = tuple[str, str]
"""Name and fingerprint of a stage: what two studies share, they share by this."""
MOST_TASKS = 1000
"""Of one array; Slurm's MaxArraySize is 1001 unless a site changes it."""


@dataclass(frozen=True)
class Task:
    """The parts that one job does: those named, or every ``count``-th of the list as it is when the job starts."""

    parts: tuple[str, ...] | None
    index: int = 0
    count: int = 1

    def choose(self, parts: Sequence[Part]) -> list[Part]:
        """This job's share of a stage's parts."""
        if self.parts is None:
            return list(parts[self.index :: self.count])
        return [part for part in parts if part.name in self.parts]


@dataclass(frozen=True)
class Found:
    """What is known of one result before anything is handed over.

    Attributes:
        complete: whether it is there.
        parts: names of all its parts; None if they cannot be known yet.
        size: units of work of all of them.
        done: names of finished parts.
        failures: what failed parts said.
        tasks: jobs that are queued or running, with the names of their parts.
        merge: the queued or running job that will merge.
    """

    complete: bool = False
    parts: tuple[str, ...] | None = None
    size: float | None = None
    done: frozenset[str] = frozenset()
    failures: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, Collection[str] | None] = field(default_factory=dict)
    merge: str | None = None


@dataclass(frozen=True)
class Node:
    """The jobs to hand over for one result.

    Attributes:
        study: that asks for it.
        stage: whose result it is.
        tasks: one job each, an array together.
        merges: whether a job of its own merges the parts; else the only task does.
        waits: nodes that have to succeed first.
        after: jobs of an earlier submission that have to succeed first.
        kept: jobs of an earlier submission that do some of the parts; the merge waits for them too.
        stale: jobs of an earlier submission that wait for something that will not come.
        retried: parts whose failure is forgotten.
        size: units of work of the whole result, None if not known.
    """

    study: Study
    stage: AnyStage
    tasks: tuple[Task, ...]
    merges: bool
    waits: tuple[Key, ...] = ()
    after: tuple[str, ...] = ()
    kept: Mapping[str, Collection[str] | None] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    retried: tuple[str, ...] = ()
    size: float | None = None

    @property
    def key(self) -> Key:
        return key_of(self.study, self.stage)

    @property
    def jobs(self) -> int:
        return len(self.tasks) + self.merges


def key_of(study: Study, stage: AnyStage) -> Key:
    """What the result of a stage is known by."""
    return stage.name, study.fingerprint(stage)


def plan(
    studies: Iterable[Study],
    names: Sequence[str],
    found: Callable[[Study, AnyStage], Found],
    wants: Callable[[Study, AnyStage], Resources],
    *,
    retry: bool = False,
) -> list[Node]:
    """Everything that has to be handed over, each result once, a node after those it waits for.

    Args:
        studies: to bring up to date.
        names: of stages; these and what they need, or all when empty.
        found: what is known of a result.
        wants: how many parts a job of the stage takes, or how many jobs there are.
        retry: whether parts that failed are done again.

    Raises:
        PartFailed: a part failed earlier, and ``retry`` is off.
    """
    nodes: dict[Key, Node] = {}
    under_way: dict[Key, str | None] = {}
    for study in studies:
        for stage in needed_for(study, names):
            key = key_of(study, stage)
            if key in nodes or key in under_way:
                continue
            state = found(study, stage)
            if state.complete:
                under_way[key] = None
                continue
            if state.failures and not retry:
                raise _failed(stage, state.failures)
            needs = [key_of(study, need) for need in needed_for(study, stage.needs) if need.name in stage.needs]
            waits = _nearest([need for need in needs if need in nodes], nodes)
            after = tuple(job for need in needs if (job := under_way.get(need)) is not None)
            node = _node(study, stage, state, waits, after, wants(study, stage))
            if node is None:
                under_way[key] = state.merge
            else:
                nodes[key] = node
    return list(nodes.values())


def _nearest(needs: Sequence[Key], nodes: Mapping[Key, Node]) -> tuple[Key, ...]:
    """Those of the needs that no other of them waits for already."""
    before: set[Key] = set()
    pending = [wait for need in needs for wait in nodes[need].waits]
    while pending:
        before.add(key := pending.pop())
        pending += nodes[key].waits
    return tuple(need for need in needs if need not in before)


def _node(
    study: Study, stage: AnyStage, found: Found, waits: tuple[Key, ...], after: tuple[str, ...], wants: Resources
) -> Node | None:
    """What is missing of one result; None if everything is under way."""
    # Jobs of an earlier submission that wait for a job which is now replaced would wait in vain.
    kept, merge = ({}, None) if waits else (found.tasks, found.merge)
    tasks = _tasks(found, kept, wants)
    if not tasks and merge is not None:
        return None
    queued: list[str] = list(dict.fromkeys([*found.tasks, *([found.merge] if found.merge else [])]))
    return Node(
        study,
        stage,
        tasks,
        merges=len(tasks) != 1 or bool(kept),
        waits=waits,
        after=after,
        kept=kept,
        stale=tuple(job for job in queued if job not in kept),
        retried=tuple(found.failures),
        size=found.size,
    )


def _tasks(found: Found, kept: Mapping[str, Collection[str] | None], wants: Resources) -> tuple[Task, ...]:
    covered = list(kept.values())
    if found.parts is None or None in covered:
        count = min(wants.jobs, MOST_TASKS)
        return () if kept else tuple(Task(None, index, count) for index in range(count))
    # A job goes past a part that has failed, so it does not cover that part any more.
    taken = {name for names in covered for name in names or ()} - set(found.failures)
    missing = [name for name in found.parts if name not in found.done and name not in taken]
    block = max(wants.parts_per_job, math.ceil(len(missing) / MOST_TASKS))
    return tuple(Task(tuple(missing[start : start + block])) for start in range(0, len(missing), block))


def _failed(stage: AnyStage, failures: Mapping[str, str]) -> PartFailed:
    name, error = next(iter(failures.items()))
    return PartFailed(
        f"stage `{stage.name}`: {len(failures)} parts failed earlier, first {name} ({error}); remove the cause and "
        "submit with --mode retry"
    )


def cancellable(entries: Sequence[Entry], mine: Collection[Key], alive: Collection[str]) -> tuple[list[str], list[str]]:
    """The living jobs of some results that nobody else waits for.

    Args:
        entries: everything that was handed over into the cache.
        mine: the results to give up.
        alive: ids of jobs that are queued or running.

    Returns:
        The ids to cancel, and the names of stages that stay because another study needs them.
    """
    wanted = [entry for entry in entries if (entry.stage, entry.fingerprint) not in mine]
    given_up = [entry for entry in entries if (entry.stage, entry.fingerprint) in mine]
    needed = {job for entry in wanted if set(entry.ids) & set(alive) for job in entry.needs}
    stay: list[Entry] = []
    while found := [entry for entry in given_up if entry not in stay and set(entry.ids) & needed]:
        stay += found
        needed |= {job for entry in found for job in entry.needs}
    ids = [job for entry in given_up if entry not in stay for job in entry.ids if job in alive]
    return ids, [entry.stage for entry in stay if set(entry.ids) & set(alive)]

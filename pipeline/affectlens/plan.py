"""What a study will take, before its first byte: of each stage its parts, disk space and time.

Nothing here reads a result or writes a file; what is there already is handed in as :class:`Standing`, and the rates of
earlier runs on this machine as :class:`Rate`. Where there is none, a stage's own ``pace`` stands for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from affectlens.corpus.documents import select
from affectlens.disk import duration, free_bytes, size
from affectlens.experiments import cost
from affectlens.model import subject
from affectlens.stage import MERGE, NOTHING, REFERENCE, Outlook, Part, Stage, Unplanned
from affectlens.study import Study, stage_named

FURTHER_CORE = 0.65
"""What a second core adds to one: caching ran 1.65 times as fast with two workers (docs/performance.md)."""
AnyStage = type[Stage[Any, Any]]


@dataclass(frozen=True)
class Standing:
    """What is there of one stage.

    Attributes:
        complete: whether its result is.
        parts: names of the finished parts of an unfinished result.
    """

    complete: bool = False
    parts: frozenset[str] = frozenset()

    def done(self, part: Part) -> bool:
        """Whether this part need not be computed."""
        return self.complete or part.name in self.parts


@dataclass(frozen=True)
class Rate:
    """How long a stage took on this machine.

    Attributes:
        seconds: on one core, of a unit of ``Stage.effort``, by kind of part, with ``MERGE`` that of the merge.
        day: when, as in 2026-01-31.
    """

    seconds: Mapping[str, float]
    day: str


def kind_of(part: Part | str) -> str:
    """The letters that a part's name begins with, behind its experiment's: parts of a kind take alike long."""
    name = part if isinstance(part, str) else part.name
    return re.match(r"[A-Za-z_]*", name.rpartition(".")[2])[0]  # pyright: ignore[reportOptionalSubscript]


def speed(cores: int) -> float:
    """How many times as fast several cores are as one."""
    return 1 + FURTHER_CORE * (max(1, cores) - 1)


def outlook(study: Study) -> Outlook:
    """What the parts of the study's stages follow from, besides their configs."""
    config, model = study.config.activations, study.config.model
    layers = {model.layer, *config.pooled_layers, *(config.token_layers if config.token_rows else ())}
    shape = subject.shape(model)
    return Outlook(tuple(select(study.config.corpus)), tuple(sorted(layers)), None if shape is None else shape.width)


def planned(study: Study, stage: AnyStage, known: Outlook) -> Stage[Any, Any]:
    """The stage without its needs: good for its parts."""
    return stage(study.section(stage), study.setting("cpu"), {}, known)


def parts(study: Study, stage: AnyStage, known: Outlook) -> list[Part] | None:
    """What the stage's ``parts()`` is going to be; None where it depends on results, or on a model not yet there."""
    try:
        return list(planned(study, stage, known).parts())
    except Unplanned:
        return None


@dataclass(frozen=True)
class Estimate:
    """What one stage will take.

    Attributes:
        stage: its name.
        parts: still to be computed, and all; None where they follow from results.
        amount: of work still to be done, in words.
        off: the key that turns the stage on, where it is off.
        done: whether its result is there.
        bytes: that will be written.
        seconds: of computing; None where nobody knows.
        day: of the run on this machine that the time follows from; empty where it is the pace that is shipped.
    """

    stage: str
    parts: tuple[int, int] | None = None
    amount: str = ""
    off: str = ""
    done: bool = False
    bytes: int = 0
    seconds: float | None = None
    day: str = ""

    def __str__(self) -> str:
        if self.done:
            return ""
        if self.off:
            return f"nothing to do; `{self.off}` turns it on"
        if self.parts is None:
            return "parts and time follow from the stages before it"
        pending, count = self.parts
        parts = f"{pending} of {count} parts" if pending < count else f"{count} parts" if count > 1 else ""
        words = ": ".join(filter(None, (parts, self.amount)))
        disk = f", about {size(self.bytes)} on disk" if self.bytes else ""
        time = "time not known" if self.seconds is None else f"about {duration(self.seconds)}"
        return f"{words}{disk}, {time}" if words else time


@dataclass(frozen=True)
class Plan:
    """What a study will take.

    Attributes:
        rows: a stage each, in order.
        free: bytes free where the cache lies.
        cores: that will work.
        cache: where results lie.
    """

    rows: Sequence[Estimate]
    free: int
    cores: int
    cache: Path

    @property
    def seconds(self) -> float:
        """Of all whose time is known."""
        return sum(row.seconds or 0.0 for row in self.rows)

    def closing(self) -> Iterator[str]:
        """The sum, and where the times come from, a sentence each."""
        pending = [row for row in self.rows if not row.done and not row.off]
        if not pending:
            yield "All of it is there; nothing is left to compute."
            return
        unknown = [row.stage for row in pending if row.seconds is None]
        least = f", not counted: {', '.join(unknown)}" if unknown else ""
        yield (
            f"In all about {duration(self.seconds)} on {self.cores} core{'s' * (self.cores > 1)}{least}; about "
            f"{size(sum(row.bytes for row in pending))} of the {size(self.free)} that are free in {self.cache}."
        )
        learned = sorted({row.day for row in pending if row.day})
        own = [row.stage for row in pending if row.day]
        if own:
            yield f"Times of {', '.join(own)}: as in runs on this machine, the last on {learned[-1]}."
        if len(own) + len(unknown) < len(pending):
            yield f"{'Other times' if own else 'Times'}: {REFERENCE}"


def cores(study: Study) -> int:
    """Processor cores that the study's workers will keep busy."""
    compute, there = study.config.compute, os.cpu_count() or 1
    wanted = there if compute.workers == "auto" else int(compute.workers) * compute.threads
    return max(1, min(there, wanted))


def plan(
    study: Study,
    stages: Sequence[AnyStage],
    standing: Callable[[AnyStage], Standing],
    rates: Callable[[AnyStage], Rate | None],
    tokenizer: Callable[[], Any],
) -> Plan:
    """What the stages still take. Nothing is written and no model is loaded.

    Args:
        study: whose stages.
        stages: those that will run, needs first.
        standing: what is there of a stage.
        rates: how long it took on this machine.
        tokenizer: loads the model's.

    Raises:
        UserError: the tokenizer cannot be loaded, or an experiment cannot be read.
    """
    known, rows = outlook(study), []
    for stage in stages:
        there = standing(stage)
        row = _estimate(study, stage, known, there, rates)
        if stage.name == "activations" and not there.complete:
            row = _counted(study, row, known, there, tokenizer)
        rows.append(row)
    return Plan(rows, free_bytes(study.config.cache), cores(study), study.config.cache)


def _estimate(
    study: Study, stage: AnyStage, known: Outlook, there: Standing, rates: Callable[[AnyStage], Rate | None]
) -> Estimate:
    built = planned(study, stage, known)
    try:
        every = list(built.parts())
    except Unplanned:
        return Estimate(stage.name, done=there.complete)
    if [part.name for part in every] == [NOTHING]:
        return Estimate(stage.name, off=stage.switch or stage.name, seconds=0.0)
    if there.complete:
        return Estimate(stage.name, done=True, seconds=0.0)
    pending = [part for part in every if not there.done(part)]
    try:
        needed = built.disk_bytes(pending)
    except Unplanned:
        needed = 0
    rate = rates(stage)
    seconds = _seconds(study, built, every, pending, rate)
    day = rate.day if rate is not None and seconds is not None else ""
    return Estimate(
        stage.name, (len(pending), len(every)), built.amount(pending), bytes=needed, seconds=seconds, day=day
    )


def _seconds(
    study: Study, built: Stage[Any, Any], every: Sequence[Part], pending: Sequence[Part], rate: Rate | None
) -> float | None:
    """Of computing and merging; None where no rate is known."""
    scale = 1.0 if rate is not None else built.scale()
    paces = built.pace if rate is None else rate.seconds
    if not paces or scale is None or (rate is None and study.config.compute.device.startswith("cuda")):
        return None
    known = [pace for kind, pace in paces.items() if kind != MERGE]
    usual = paces.get("", sum(known) / len(known) if known else 0.0)
    working = min(cores(study), len(pending) * study.config.compute.threads)
    alone = sum(built.effort(part) * paces.get(kind_of(part), usual) for part in pending)
    merge = sum(map(built.effort, every)) * paces.get(MERGE, 0.0)
    return scale * (alone / speed(working) + merge)


def _counted(study: Study, row: Estimate, known: Outlook, there: Standing, tokenizer: Callable[[], Any]) -> Estimate:
    """The activations, counted in tokens, with the bytes that they take."""
    from affectlens.activations.caching import Wanted
    from affectlens.activations.size import bytes_needed, count_tokens
    from affectlens.activations.tokenising import require_long_enough

    config, model = study.config.activations, study.config.model
    pending = [part for part in parts(study, stage_named("activations"), known) or [] if not there.done(part)]
    texts = [
        document
        for part in pending
        for document in known.documents[part.payload["start"] : part.payload["start"] + config.texts_per_part]
    ]
    require_long_enough(tokenizer(), texts, config)
    tokens, exact = count_tokens(tokenizer(), texts)
    amount = f"{'' if exact else 'about '}{tokens:,} tokens"
    if known.model_width is None:
        return replace(row, amount=amount)
    wanted = Wanted.of(config, model, subject.device_names(study.config.compute.device)[0])
    needed = bytes_needed(wanted, width=known.model_width, tokens=tokens, documents=len(texts), shards=len(pending))
    return replace(row, amount=amount, bytes=needed)


def experiments(study: Study, standing: Standing) -> list[cost.Listed]:
    """The experiments that a study runs; where it runs none, those of its folder.

    Raises:
        UserError: an experiment cannot be read.
    """
    return cost.listed(study.config.experiments, study.config.model, outlook(study).emotions, standing.done)

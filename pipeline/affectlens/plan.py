"""What a study will take, before its first byte: the parts of each stage, disk space, time.

Nothing here reads a result or writes a file; what is there already is handed in as :class:`Standing`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from affectlens.corpus.documents import select
from affectlens.disk import duration, free_bytes, size
from affectlens.experiments import cost
from affectlens.model import subject
from affectlens.stage import Outlook, Part, Stage, Unplanned
from affectlens.study import Study, stage_named

MATRICES = 12
"""Weights of a block in units of the squared width: 4 in attention, 8 in the MLP of a plain transformer."""
EFFICIENCY = 0.6
"""Of a model's matrix products, smaller and mixed with other work, against large ones alone."""


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


def outlook(study: Study) -> Outlook:
    """What the parts of the study's stages follow from, besides their configs."""
    config, model = study.config.activations, study.config.model
    layers = {model.layer, *config.pooled_layers, *(config.token_layers if config.token_rows else ())}
    shape = subject.shape(model)
    return Outlook(tuple(select(study.config.corpus)), tuple(sorted(layers)), None if shape is None else shape.width)


def parts(study: Study, stage: type[Stage[Any, Any]], known: Outlook) -> list[Part] | None:
    """What the stage's ``parts()`` is going to be; None where it depends on results, or on a model not yet there."""
    try:
        return list(stage(study.section(stage), study.setting("cpu"), {}, known).parts())
    except Unplanned:
        return None


@dataclass(frozen=True)
class Cost:
    """What one study's activations take.

    Attributes:
        parts: how many are still to be computed, and how many there are.
        tokens: text tokens still to be read.
        bytes: still to be written.
        free: bytes free where the cache lies.
        seconds: of computing, without loading the model; None where the model's shape is not known yet.
        exact: whether every text was counted, not a sample.
    """

    parts: tuple[int, int]
    tokens: int
    bytes: int
    free: int
    seconds: float | None
    exact: bool

    def __str__(self) -> str:
        about, (pending, parts) = "" if self.exact else "about ", self.parts
        text = f"{pending} of {parts} parts to compute: {about}{self.tokens:,} tokens, about {size(self.bytes)} on disk"
        return text if self.seconds is None else f"{text}, about {duration(self.seconds)}"


def activations(study: Study, standing: Standing) -> Cost:
    """The cost of what the study's activations still lack. Nothing is written and no model is loaded.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    from affectlens.activations.caching import Wanted
    from affectlens.activations.size import bytes_needed, count_tokens
    from affectlens.activations.tokenising import require_long_enough

    known, config, model = outlook(study), study.config.activations, study.config.model
    planned = parts(study, stage_named("activations"), known) or []
    pending = [part for part in planned if not standing.done(part)]
    texts = [
        document
        for part in pending
        for document in known.documents[part.payload["start"] : part.payload["start"] + config.texts_per_part]
    ]
    tokenizer = subject.load_tokenizer(model, study.setting("cpu").models, converting=False)
    require_long_enough(tokenizer, texts, config)
    tokens, exact = count_tokens(tokenizer, texts)
    counts, free = (len(pending), len(planned)), free_bytes(study.config.cache)
    if known.model_width is None:
        return Cost(counts, tokens, 0, free, None, exact)
    device = subject.device_names(study.config.compute.device)[0]
    wanted, width = Wanted.of(config, model, device), known.model_width
    layers = max(site.layer for site in wanted.sites) + 1
    operations = 2 * MATRICES * width**2 * layers * tokens
    seconds = operations / (EFFICIENCY * _operations_per_second(study, device, width)) if tokens else 0.0
    needed = bytes_needed(wanted, width=width, tokens=tokens, documents=len(texts), shards=len(pending))
    return Cost(counts, tokens, needed, free, seconds, exact)


def experiments(study: Study, standing: Standing) -> list[cost.Listed]:
    """The experiments that a study runs; where it runs none, those of its folder.

    Raises:
        UserError: an experiment cannot be read.
    """
    return cost.listed(study.config.experiments, study.config.model, outlook(study).emotions, standing.done)


def _operations_per_second(study: Study, device: str, width: int) -> float:
    """Of matrix products as large as the model's, on this device, in this type, measured for a moment."""
    import torch

    torch.set_num_threads(study.config.compute.threads)
    dtype = subject.resolve_dtype(study.config.model.dtype, device)
    rows = study.config.activations.tokens_per_batch
    left = torch.ones(rows, width, dtype=dtype, device=device)
    right = torch.ones(width, 4 * width, dtype=dtype, device=device)
    done, started = 0, 0.0
    while not started or time.perf_counter() - started < 0.3:
        (left @ right)[0, 0].item()
        if not started:
            started = time.perf_counter()  # the first product pays for setting things up
        else:
            done += 1
    return done * 2 * rows * width * 4 * width / (time.perf_counter() - started)

"""What caching will cost, before its first byte: tokens, bytes, parts, time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.errors import UserError
from affectlens.files import file_digest
from affectlens.model import embedded, subject

if TYPE_CHECKING:
    from affectlens.corpus.documents import Document
    from affectlens.stage import Part
    from affectlens.stages.activations import ActivationsStage
    from affectlens.study import Study

SAMPLE = 256
"""Texts that are tokenised for an estimate; further ones are counted by their characters."""
SHARD_OVERHEAD = 64 << 10
"""Bytes of structure, alignment and records that a part has whatever its texts."""
MATRICES = 12
"""Weights of a block in units of the squared width: 4 in attention, 8 in the MLP of a plain transformer."""
EFFICIENCY = 0.6
"""Of a model's matrix products, smaller and mixed with other work, against large ones alone."""


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


def count_tokens(tokenizer: Any, documents: Sequence[Document]) -> tuple[int, bool]:
    """Text tokens of the documents, and whether all were tokenised."""
    from affectlens.model.tokens import tokenise

    sample = documents[:: max(1, len(documents) // SAMPLE)] if len(documents) > SAMPLE else documents
    counted = sum(len(tokenise(tokenizer, document)) for document in sample)
    if len(sample) == len(documents):
        return counted, True
    characters = [sum(len(document.text) for document in each) for each in (sample, documents)]
    return round(counted * characters[1] / max(1, characters[0])), False


def shard_bytes(stage: ActivationsStage, parts: Sequence[Part]) -> int:
    """What these parts will take on the disk, about."""
    documents = [document for part in parts for document in stage.documents(part)]
    if not documents:
        return 0
    known = subject.shape(stage.setting.model)
    width = known.width if known else stage.reader.width
    tokens, _ = count_tokens(stage.tokenizer, documents)
    return _bytes(stage, width, tokens, len(documents), len(parts))


def _bytes(stage: ActivationsStage, width: int, tokens: int, documents: int, parts: int) -> int:
    wanted = stage.wanted
    row = 12 + width * wanted.storage.itemsize * len(wanted.token_sites)
    kept = 4 * width * (len(wanted.kinds) + len(wanted.positions))
    return tokens * row + documents * (128 + kept * len(wanted.pooled_sites)) + parts * SHARD_OVERHEAD


def require_space(folder: Path, needed: int, stage: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UserError: names the need and what there is.
    """
    free = free_bytes(folder)
    if needed > free:
        raise UserError(
            f"stage `{stage}`: about {size(needed)} are needed in {folder}, but {size(free)} are free; free space, set "
            "`cache:` to a larger disk, or keep less (`activations.token_layers`, `activations.storage`)"
        )


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that holds the folder, or would hold it."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def size(count: float) -> str:
    """Bytes in the largest unit that fits."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.3g} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, length in (("s", 1), ("min", 60), ("h", 3600), ("days", 86400)):
        if seconds < 120 * length or unit == "days":
            return f"{max(1, round(seconds / length)):,} {unit}"
    raise AssertionError


def of(study: Study) -> Cost:
    """The cost of what the study's activations still lack. Nothing is written and no model is loaded.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    from types import SimpleNamespace

    from affectlens.corpus.documents import select
    from affectlens.run.workspace import Workspace
    from affectlens.stages.activations import ActivationsStage

    device = subject.device_names(study.config.compute.device)[0]
    documents = tuple(select(study.config.corpus))
    corpus = SimpleNamespace(documents=documents)
    stage = ActivationsStage(study.config.activations, study.setting(device), {"corpus": corpus})
    space = Workspace(study, ActivationsStage)
    parts = stage.parts()
    pending = [] if space.complete else [part for part in parts if not space.done(part)]
    texts = [document for part in pending for document in stage.documents(part)]
    tokens, exact = count_tokens(_tokenizer(study), texts)
    shape = subject.shape(study.config.model)
    if shape is None:
        return Cost((len(pending), len(parts)), tokens, 0, free_bytes(study.config.cache), None, exact)
    layers = max(site.layer for site in stage.wanted.sites) + 1
    operations = 2 * MATRICES * shape.width**2 * layers * tokens
    seconds = operations / (EFFICIENCY * _operations_per_second(shape.width, stage)) if tokens else 0.0
    needed = _bytes(stage, shape.width, tokens, len(texts), len(pending))
    return Cost((len(pending), len(parts)), tokens, needed, free_bytes(study.config.cache), seconds, exact)


def _tokenizer(study: Study) -> Any:
    """The model's own; of an embedded model that is not converted yet, straight from its file."""
    setting = study.setting("cpu")
    if setting.model.name == "embedded":
        file = embedded.weights_file()
        if not embedded.converted(setting.models, file_digest(file)):
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    with subject.loading(setting.model):
        return subject.load_tokenizer(setting.model, setting.models)


def _operations_per_second(width: int, stage: ActivationsStage) -> float:
    """Of matrix products as large as the model's, on this device, in this type, measured for a moment."""
    import torch

    setting = stage.setting
    torch.set_num_threads(setting.threads)
    dtype = subject.resolve_dtype(setting.model.dtype, setting.device)
    rows = stage.config.tokens_per_batch
    left = torch.ones(rows, width, dtype=dtype, device=setting.device)
    right = torch.ones(width, 4 * width, dtype=dtype, device=setting.device)
    done, started = 0, 0.0
    while not started or time.perf_counter() - started < 0.3:
        (left @ right)[0, 0].item()
        if not started:
            started = time.perf_counter()  # the first product pays for setting things up
        else:
            done += 1
    return done * 2 * rows * width * 4 * width / (time.perf_counter() - started)

"""Disk space and time as numbers and as words."""

from __future__ import annotations

import shutil
from pathlib import Path

from affectlens.errors import Unavailable

SHARD_OVERHEAD = 64 << 10
"""Bytes of structure, alignment and records that a shard of activations has whatever its texts."""


def size(count: float) -> str:
    """Bytes in the largest unit that fits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 120 * length:
            return f"{max(1, round(seconds / length)):,} {unit}"
    return f"{round(seconds / 86400):,} days"


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that holds the folder, or would hold it."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def require_space(folder: Path, needed_bytes: int, stage: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UserError: names the need and what there is.
    """
    free = free_bytes(folder)
    if needed_bytes > free:
        raise Unavailable(
            f"stage `{stage}`: about {size(needed_bytes)} are needed in {folder}, but {size(free)} are free; free "
            "space, set `cache:` to a larger disk, or keep less (`activations.token_layers`, `activations.storage`)"
        )


def shard_bytes(
    *, tokens: int, documents: int, shards: int, width: int, itemsize: int, token_sites: int, pooled_vectors: int
) -> int:
    """What shards of activations take, about.

    Args:
        tokens: text tokens in them.
        documents: texts in them.
        shards: files.
        width: of the residual stream.
        itemsize: bytes of a stored number of the token rows; pooled vectors are float32.
        token_sites: sites whose rows are kept at every token.
        pooled_vectors: vectors kept per text, over all sites.
    """
    row = 12 + width * itemsize * token_sites
    return tokens * row + documents * (128 + 4 * width * pooled_vectors) + shards * SHARD_OVERHEAD

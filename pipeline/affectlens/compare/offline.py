"""Offline runs of Weights & Biases, read back from their folders without a server or a helper process.

``run-<id>.wandb`` is a header of seven bytes and then a log in blocks of 32 KiB. A block holds chunks of
(checksum u32, length u16, kind u8, data); a record is one FULL chunk, or a FIRST, any MIDDLE and a LAST one. Each
record is a protocol buffer, whose definition wandb brings along.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER_BYTES = 7
BLOCK_BYTES = 32 * 1024
CHUNK_HEAD = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def logs(directory: Path) -> list[Path]:
    """The logs of all offline runs below a directory, oldest first (their folders are named after the time)."""
    return sorted(directory.rglob("offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)


def read(log: Path) -> Iterator[Any]:
    """The records of a run.

    Raises:
        ValueError: the file is not such a log, or a checksum in it is wrong.
    """
    from wandb.proto import wandb_internal_pb2

    for data in chunks(log.read_bytes()):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(data)
        yield record


def chunks(log: bytes) -> Iterator[bytes]:
    """The encoded records of a log; one that was cut short at the end is left out, as after a crash."""
    if log[:4] != b":W&B":
        raise ValueError("not a W&B log")
    position, parts = HEADER_BYTES, b""
    while position + CHUNK_HEAD.size <= len(log):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < CHUNK_HEAD.size:
            position += left
            continue
        checksum, length, kind = CHUNK_HEAD.unpack_from(log, position)
        data = log[position + CHUNK_HEAD.size : position + CHUNK_HEAD.size + length]
        if len(data) < length:
            return
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"wrong checksum at byte {position}")
        position += CHUNK_HEAD.size + length
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            yield parts


def assign(target: dict[str, Any], items: Any) -> None:
    """Write config, summary or history items into a mapping; a nested key makes nested mappings, as W&B does it."""
    for item in items:
        *parents, leaf = [item.key] if item.key else list(item.nested_key)
        inner = target
        for parent in parents:
            if not isinstance(inner.get(parent), dict):
                inner[parent] = {}  # what was a number before is something else now
            inner = inner[parent]
        inner[leaf] = json.loads(item.value_json)

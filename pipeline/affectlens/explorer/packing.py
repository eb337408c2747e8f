"""Blocks of numbers inside a page: a JSON header and the arrays after it, compressed, as text.

A block is what is needed at once: the base of the explorer, or some features, or some rows of readings. The page
unpacks a block when one of its numbers is shown.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

TYPES = {"<u1": "Uint8Array", "<i1": "Int8Array", "<u2": "Uint16Array", "<u4": "Uint32Array", "<f4": "Float32Array"}
"""NumPy types that a page can hold, and what JavaScript calls them."""
ALIGNED = 4
"""Every array starts at a multiple of so many bytes."""


def packed(data: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """A block.

    Args:
        data: JSON.
        arrays: of the types in ``TYPES``; shapes are kept flat.

    Returns:
        Base64 of gzip of: the length of the header (uint32), the header, the arrays.

    Raises:
        KeyError: an array of another type.
    """
    places, body = {}, bytearray()
    for name, values in arrays.items():
        little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
        kind = TYPES[f"<{little.dtype.kind}{little.dtype.itemsize}"]
        body += b"\0" * (-len(body) % ALIGNED)
        places[name] = [kind, len(body), int(little.size)]
        body += little.tobytes()
    header = json.dumps({"data": data, "arrays": places}, separators=(",", ":"), allow_nan=False).encode()
    header += b" " * (-len(header) % ALIGNED)
    whole = len(header).to_bytes(4, "little") + header + bytes(body)
    return base64.b64encode(gzip.compress(whole, compresslevel=6, mtime=0)).decode()


def unpacked(block: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What :func:`packed` made a block of."""
    kinds = {name: kind for kind, name in TYPES.items()}
    whole = gzip.decompress(base64.b64decode(block))
    length = int.from_bytes(whole[:4], "little")
    header, body = json.loads(whole[4 : 4 + length]), whole[4 + length :]
    arrays = {
        name: np.frombuffer(body, kinds[kind], size, place) for name, (kind, place, size) in header["arrays"].items()
    }
    return header["data"], arrays


def shares(values: np.ndarray) -> np.ndarray:
    """Numbers between 0 and 1 in 65,534 steps; 65,535 stands for none."""
    whole = np.round(np.nan_to_num(values, nan=0.0).clip(0, 1) * 65_534)
    return np.where(np.isnan(values), 65_535, whole).astype(np.uint16)


def bytes_of_largest(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Positive numbers as 1 to 255 parts of the largest, so that none becomes 0."""
    return np.ceil(values / np.where(largest > 0, largest, 1) * 255).clip(1, 255).astype(np.uint8)

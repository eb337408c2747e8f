"""What a shard is called and how its numbers are stored; ``cache/README.md`` gives the layout normatively."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

FORMAT = "affectlens-activations"
FORMAT_VERSION = 3
SHARD = "activations.h5"
INDEX = "index.json"
STORED = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float64": np.dtype(np.float64),
}
"""numpy types of stored rows. HDF5 has no bfloat16: such rows are kept as their ``uint16`` bits."""


def to_bits(values: torch.Tensor) -> np.ndarray:
    """A tensor as the array that is stored: its own type, or the ``uint16`` bits of bfloat16."""
    import torch

    values = values.detach().cpu().contiguous()
    return values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()


def to_float32(stored: np.ndarray, dtype: str) -> Float[np.ndarray, "..."]:
    """Stored rows as float32; ``dtype`` is the dataset's attribute of that name."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def to_tensor(stored: np.ndarray, dtype: str) -> torch.Tensor:
    """Stored rows as a tensor of the type that they stand for; no copy."""
    import torch

    values = torch.from_numpy(stored)
    return values.view(torch.bfloat16) if dtype == "bfloat16" else values


def group(layer: int, site: str) -> str:
    """The HDF5 group of one site of one layer."""
    return f"layers/{layer}/{site}"

"""The activation store: HDF5 shards that are written once, and views that read them as a whole.

``cache/README.md`` gives the layout normatively. Datasets are contiguous and uncompressed, so that rows can be read in
any order through a memory map. Names are loaded on first use: the config of this room must not cost numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affectlens.activations.format import INDEX, SHARD, to_bits, to_float32
    from affectlens.activations.view import ActivationStore, TokenRows

__all__ = ["INDEX", "SHARD", "ActivationStore", "TokenRows", "to_bits", "to_float32"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "view" if name in ("ActivationStore", "TokenRows") else "format"
    return getattr(import_module(f"{__name__}.{module}"), name)

"""The activation store: HDF5 shards that are written once, and views that read them as a whole.

``cache/README.md`` gives the layout normatively. Datasets are contiguous and uncompressed, so that rows can be read in
any order through a memory map.
"""

from affectlens.activations.format import INDEX, SHARD, to_bits, to_float32
from affectlens.activations.view import ActivationStore, TokenRows

__all__ = ["INDEX", "SHARD", "ActivationStore", "TokenRows", "to_bits", "to_float32"]

"""The sections of the page: each module registers the figures, tables and findings of its own."""

from affectlens.report.sections import (
    behaviour,
    causal,
    circuits,
    detection,
    dictionary,
    geometry,
    meaning,
    modulation,
    monitor,
    shape,
    writers,
)

__all__ = [
    "behaviour",
    "causal",
    "circuits",
    "detection",
    "dictionary",
    "geometry",
    "meaning",
    "modulation",
    "monitor",
    "shape",
    "writers",
]

"""SAE architectures, one file each. A new one is a class with the decorator ``@architecture`` and its import here."""

from __future__ import annotations

from affectlens.sae.architectures import batchtopk, gated, jumprelu, matryoshka, standard, topk
from affectlens.sae.architectures.base import REGISTRY, Architecture, StepContext, architecture

__all__ = [
    "REGISTRY",
    "Architecture",
    "StepContext",
    "architecture",
    "batchtopk",
    "gated",
    "jumprelu",
    "matryoshka",
    "standard",
    "topk",
]

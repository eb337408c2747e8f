"""Matryoshka BatchTopK (Bussmann et al. 2025): nested dictionaries, each of which reconstructs by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from affectlens.sae.architectures.base import architecture
from affectlens.sae.architectures.batchtopk import BatchTopK

if TYPE_CHECKING:
    from affectlens.sae.recipe import Recipe


@architecture("matryoshka")
class Matryoshka(BatchTopK):
    """sae-lens's Matryoshka BatchTopK."""

    sae_lens = "matryoshka_batchtopk"

    def settings(self, recipe: Recipe, width: int) -> dict[str, Any]:
        levels = sorted({max(1, round(level * width)) for level in recipe.matryoshka_levels} - {width})
        return super().settings(recipe, width) | {"matryoshka_widths": [*levels, width]}

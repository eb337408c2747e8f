"""The causal effects of a study's directions and features, as the finished result holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ARRAYS = "causal.safetensors"
INPUTS = "causal.json"


@dataclass(frozen=True)
class Causal:
    """The causal effects of a study.

    Attributes:
        folder: the result folder.
    """

    folder: Path

    def table(self, name: str) -> pd.DataFrame:
        """A declared table: ``effects``, ``matrix``, ``dose``, ``readout``, ``samples``, ``verdicts``, ``controls``."""
        return results.read(self.folder, name)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything measured, unaveraged: ``inject.effect`` of shape ``vectors strengths frames concepts``, ..."""
        from safetensors.numpy import load_file

        return load_file(self.folder / ARRAYS)

    def scored_by(self) -> Mapping[str, Any]:
        """By what effects were scored: ``vectors`` (name and family of every row), ``frames``, ``words`` by concept."""
        return json.loads((self.folder / INPUTS).read_text(encoding="utf-8"))

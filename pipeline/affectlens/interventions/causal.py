"""The causal effects of a study's directions and features, as the finished result holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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

    @property
    def page_figures(self) -> PageFigures:
        """The tables in the shapes that the page shows."""
        return PageFigures(self)

    def scored_by(self) -> Mapping[str, Any]:
        """By what effects were scored: ``vectors`` (name and family of every row), ``frames``, ``words`` by concept."""
        return json.loads((self.folder / INPUTS).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class PageFigures:
    """The tables in the shapes that the page shows.

    Attributes:
        causal: the result.
    """

    causal: Causal

    @property
    def effects(self) -> Sequence[Mapping[str, Any]]:
        """Rows of the table ``effects``."""
        return self._rows("effects")

    @property
    def dose(self) -> Sequence[Mapping[str, Any]]:
        """Rows of the table ``dose``."""
        return self._rows("dose")

    @property
    def matrix(self) -> dict[str, list[list[float]]]:
        """Per family of vectors: row = concept whose vector is injected, column = concept whose words are scored."""
        frame = self.causal.table("matrix")
        return {
            str(vector): rows.pivot(index="injected", columns="measured", values="effect")
            .loc[rows["injected"].unique(), rows["injected"].unique()]
            .to_numpy()
            .tolist()
            for vector, rows in frame.groupby("vector", sort=False)
        }

    @cached_property
    def verdicts(self) -> dict[str, dict[str, Any]]:
        """Per concept a sentence, and per family of vectors which claims were shown."""
        verdicts: dict[str, dict[str, Any]] = {}
        for row in self._rows("verdicts"):
            concept = verdicts.setdefault(row["concept"], {"words": ""})
            concept["words"] = f"{concept['words']} {row['words']}".strip()
            concept[row["vector"]] = {**row, "ablate": row["ablation_effect"]}
        return verdicts

    @property
    def controls(self) -> dict[str, Any]:
        """How many controls of which family, and the least p they allow."""
        rows = self._rows("controls")
        inject = [row for row in rows if row["operation"] == "inject"]
        ablate = [row for row in rows if row["operation"] == "ablate"]
        described: dict[str, Any] = {
            "families": {row["family"]: int(row["members"]) for row in inject},
            "inject": {
                vector: {"p_floor": max(row["p_floor"] for row in inject if row["vector"] == vector)}
                for vector in dict.fromkeys(row["vector"] for row in inject)
            },
            "note": "All at norm 1 times the same strength. Ablation controls take, position by position, as much as "
            "the ablation takes, along control directions. Features are also held against random features that fire "
            "as often. A claim is held against the family that is hardest to exceed, standardised, over all concepts.",
        }
        return described | ({"ablate": {"p_floor": max(row["p_floor"] for row in ablate)}} if ablate else {})

    def _rows(self, table: str) -> list[dict[str, Any]]:
        frame = self.causal.table(table)
        return frame.astype(object).where(frame.notna(), None).to_dict("records")

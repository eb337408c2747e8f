"""How the features and the directions of a study compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Comparison:
    """How features and directions compare.

    Attributes:
        folder: the result folder; ``concepts.csv`` and ``concepts.parquet`` hold everything known of each concept.
        card: what ``compare.json`` holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card: dict[str, Any] = json.loads((folder / "compare.json").read_text(encoding="utf-8"))

    @property
    def table(self) -> list[dict[str, Any]]:
        """Per concept: cosine of its feature's decoder and encoder row with its direction, rank and null."""
        return self.card["table"]

    @property
    def pursuit(self) -> list[dict[str, Any]]:
        """Per dictionary and number of rows: share of a direction they make up, mean over concepts."""
        return self.card["pursuit"]

    @property
    def subspace(self) -> dict[str, Any]:
        """Principal angles between the directions and the chosen features, beside random features."""
        return self.card["subspace"]

    @property
    def detection(self) -> list[dict[str, Any]]:
        """Per method: mean AUROC on test topics with interval, per concept, and its difference from the first."""
        return self.card["detection"]

    @property
    def confounds(self) -> list[dict[str, Any]]:
        """Per concept: what topic, single words, and valence and arousal explain of its detection."""
        return self.card["confounds"]

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Per layer, method and reading: share of same-words pairs that are told apart rightly."""
        return self.card["pairs"]

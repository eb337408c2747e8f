"""What directions and features of a study cause, as the finished result holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Causal:
    """What was found.

    Attributes:
        folder: the result folder; ``causal.safetensors`` holds the arrays, ``causal.json`` the tables.
        card: what ``causal.json`` holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card: dict[str, Any] = json.loads((folder / "causal.json").read_text(encoding="utf-8"))

    @property
    def effects(self) -> list[dict[str, Any]]:
        """Per concept, vector, operation and strength: effect in nats in the expected direction (injection raises,
        ablation lowers the concept's words), interval, controls, p."""
        return self.card["effects"]

    @property
    def matrix(self) -> dict[str, list[list[float]]]:
        """Per kind of vector: row = concept whose vector is injected at the reference strength, column = concept
        whose words are scored."""
        return self.card["matrix"]

    @property
    def dose(self) -> list[dict[str, Any]]:
        """Per concept, vector and strength: effect, divergence, perplexity ratio on neutral text."""
        return self.card["dose"]

    @property
    def verdicts(self) -> dict[str, dict[str, Any]]:
        """Per concept a sentence and what was shown of its direction; under the name of each kind of vector all of
        it."""
        return self.card["verdicts"]

    @property
    def controls(self) -> dict[str, Any]:
        """How many controls of which family, and the least p they allow."""
        return self.card["controls"]

    @property
    def readout(self) -> list[dict[str, Any]]:
        """Per concept and vector how far its own reading downstream rises; empty when nothing was read."""
        return self.card["readout"]

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Per concept, vector and score how sampled text reads; empty when none was sampled."""
        return self.card["samples"]

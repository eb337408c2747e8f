"""The directions of a study: one vector per concept and layer, and how well each reads."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from affectlens.probing.methods import Linear


Method = Literal["difference of means", "LDA (shrunk)", "logistic"]


ARRAYS: dict[str, str] = {"difference of means": "vectors", "LDA (shrunk)": "lda", "logistic": "logistic"}
"""Under which name each method's weights are kept."""


class Directions:
    """The directions of a study.

    Attributes:
        folder: the result folder; ``directions.safetensors`` holds the arrays, ``directions.json`` the tables.
        card: what ``directions.json`` holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card: dict[str, Any] = json.loads((folder / "directions.json").read_text(encoding="utf-8"))

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load_file

        return load_file(self.folder / "directions.safetensors")

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(self.card["concepts"])

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(row["layer"] for row in self.card["sweep"])

    @property
    def methods(self) -> tuple[str, ...]:
        """The readouts fitted; the recipe is the first."""
        return tuple(self.card["methods"])

    @property
    def table(self) -> list[dict[str, Any]]:
        """Per concept at the study's layer: detection on test topics, stability, logit-lens words, neutral energy."""
        return self.card["table"]

    @property
    def sweep(self) -> list[dict[str, Any]]:
        """Per layer: mean AUROC on validation topics, and on test topics with its interval; per method likewise."""
        return self.card["sweep"]

    @property
    def chosen_layer(self) -> int:
        """The layer that reads best on validation topics."""
        return self.card["chosen_layer"]

    def vectors(self, layer: int) -> Float[np.ndarray, "concepts d_model"]:
        """Differences of means, neutral components removed, in units of the residual stream."""
        return self._arrays[f"layers.{layer}.vectors"]

    def unit(self, layer: int) -> Float[np.ndarray, "concepts d_model"]:
        """The same at norm 1."""
        from affectlens.probing.control_vectors import unit_rows

        return unit_rows(self.vectors(layer))

    def raw(self, layer: int) -> Float[np.ndarray, "concepts d_model"]:
        """Differences of means with the neutral components still in them."""
        return self._arrays[f"layers.{layer}.raw"]

    def neutral(self, layer: int) -> Float[np.ndarray, "components d_model"]:
        """The orthonormal components of neutral text that were projected out."""
        return self._arrays[f"layers.{layer}.neutral"]

    def centre(self, layer: int) -> Float[np.ndarray, "d_model"]:
        """What is taken from an activation before it is read: the mean over concepts of the training stories."""
        return self._arrays[f"layers.{layer}.centre"]

    def cosines(self, layer: int) -> Float[np.ndarray, "concepts concepts"]:
        """Between the directions of a layer."""
        unit = self.unit(layer).astype(float)
        return unit @ unit.T

    def readout(
        self, layer: int, residuals: Float[np.ndarray, "n d_model"], method: str = "difference of means"
    ) -> Float[np.ndarray, "n concepts"]:
        """Centred projections onto the unit directions of a method."""
        return self.linear(layer, method).scores(residuals)

    def linear(self, layer: int, method: str = "difference of means") -> Linear:
        """A method's readout at a layer, its weights at norm 1."""
        from affectlens.probing.methods import Linear

        return Linear(self._arrays[f"layers.{layer}.{ARRAYS[method]}"], self.centre(layer)).unit

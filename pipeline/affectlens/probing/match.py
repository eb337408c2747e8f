"""The matched features of a study: which SAE feature answers to which concept, and how well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int

    from affectlens.probing.text_features import Columns


class Match:
    """The matched features of a study.

    Attributes:
        folder: the result folder; ``match.h5`` holds the arrays, ``match.json`` the table.
        card: what ``match.json`` holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card: dict[str, Any] = json.loads((folder / "match.json").read_text(encoding="utf-8"))

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(self.card["concepts"])

    @property
    def table(self) -> list[dict[str, Any]]:
        """Per concept: its feature, how well it detects, against what chance gives, its words and contexts."""
        return self.card["table"]

    @property
    def best(self) -> Int[np.ndarray, "concepts"]:
        """The feature chosen for each concept on training and validation topics."""
        import numpy as np

        return np.array([row["feature"] for row in self.table])

    @property
    def pooling(self) -> Literal["mean", "max"]:
        """How activations over a text became the numbers that features were chosen by."""
        return self.card["pooling"]

    @property
    def codes(self) -> Float[np.ndarray, "docs features"]:
        """Pooled feature activations of every document, in corpus order."""
        return self._array("codes/sae")

    def scores(self, dictionary: str, rows: Sequence[int]) -> Columns:
        """Pooled activations of some documents, read a block of features at a time.

        Args:
            dictionary: ``sae``, or ``random-<n>`` for a random one.
            rows: document indices.
        """
        from affectlens.probing.text_features import Columns

        return Columns(self.folder / "match.h5", f"codes/{dictionary}", rows)

    def mean_codes(self, rows: Sequence[int]) -> Float[np.ndarray, "rows features"]:
        """Mean activations of some documents, whatever features were chosen by."""
        return self.scores("sae" if self.pooling == "mean" else "mean", rows)[:, :]

    @property
    def random_best(self) -> list[Int[np.ndarray, "concepts"]]:
        """The feature chosen for each concept in each random SAE."""
        import numpy as np

        return [np.array(features) for features in self.card["random_best"]]

    @property
    def probe_sizes(self) -> tuple[int, ...]:
        """Numbers of features of the k-sparse probes."""
        return tuple(self.card["probe_sizes"])

    @cached_property
    def probe_scores(self) -> Float[np.ndarray, "sizes docs concepts"]:
        """Every k-sparse probe's score of the test documents, in their order."""
        return self._array("probes/scores")

    def auroc(self, split: Literal["selection", "test"]) -> Float[np.ndarray, "features concepts"]:
        """AUROC of every feature for every concept, on the topics it was chosen on or on those never seen."""
        return self.figure("auroc", split)

    def figure(
        self, name: Literal["auroc", "smd", "ap"], split: Literal["selection", "test"]
    ) -> Float[np.ndarray, "features concepts"]:
        """AUROC, standardised mean difference or average precision of every feature for every concept."""
        return self._array(f"{name}/{split}")

    def _array(self, name: str) -> np.ndarray:
        import h5py

        with h5py.File(self.folder / "match.h5", "r") as opened:
            file: Any = opened
            return file[name][...]

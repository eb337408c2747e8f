"""What a residual stream is read for: concepts, valence and arousal, and SAE features, as one matrix product a token.

A *row* is one thing that is read. Its value of a concept or of an axis is the projection of the centred residual stream
onto the row's unit direction, as a share of the mean residual norm: the unit in which models are steered here. Its
value of a feature is the SAE's activation. Beside the value stands the same in standard deviations of neutral tokens,
from their mean: what makes rows comparable with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from affectlens.config import nearest
from affectlens.errors import UserError
from affectlens.use.opened import Opened

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from affectlens.sae.model import Dictionary

FEATURE = "feature:"
"""What the name of an SAE feature begins with; its number follows."""
SHARE = "share of the mean residual norm"
NEUTRAL_TOKENS = 20_000
"""At most so many neutral tokens give means and standard deviations."""


@dataclass(frozen=True)
class Row:
    """One thing that is read.

    Attributes:
        name: the concept, ``valence``, ``arousal``, or ``feature:<number>``.
        kind: what sort it is of.
        unit: of its values.
        mean: over neutral tokens.
        deviation: standard deviation over neutral tokens; 1 where it would be 0.
    """

    name: str
    kind: Literal["concept", "axis", "feature"]
    unit: str
    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True, eq=False)
class Readings:
    """Reads residuals of the study's layer.

    Attributes:
        layer: residual stream after this block.
        rows: what is read, in the order of every "rows" axis: concepts, axes, features.
        weights: of concepts and axes; a value is ``residual @ weights.T - offset``.
        offset: one a weight row.
        features: numbers of the SAE features.
        sae: the SAE, where features are read.
        neutral_tokens: how many gave means and deviations.
    """

    layer: int
    rows: tuple[Row, ...]
    weights: Float[np.ndarray, "linear d_model"]
    offset: Float[np.ndarray, "linear"]
    features: tuple[int, ...] = ()
    sae: Dictionary | None = None
    neutral_tokens: int = 0

    @classmethod
    def of(cls, study: Opened, features: Sequence[int] = ()) -> Readings:
        """The rows of a study: all its concepts, valence and arousal where they are rated, and the chosen features.

        Raises:
            MissingResult: stage ``directions`` (or, for features, ``sae``) is not finished.
            UserError: a feature that the SAE does not have.
        """
        unit = study.mean_norm(study.layer)
        concepts, axes = study.directions(), study.axes()
        rows = [Row(name, "concept", SHARE) for name in concepts] + [Row(name, "axis", SHARE) for name in axes]
        weights = np.stack([*concepts.values(), *axes.values()]).astype(np.float32) / np.float32(unit)
        rows += [Row(f"{FEATURE}{number}", "feature", "activation") for number in features]
        wrong = [number for number in features if not 0 <= number < study.sae.d_sae]
        if wrong:
            raise UserError(f"feature {wrong[0]}: the SAE has features 0 to {study.sae.d_sae - 1}")
        sae = study.sae if features else None
        bare = cls(study.layer, tuple(rows), weights, weights @ study.built.centre(study.layer), tuple(features), sae)
        return bare.standardised_on(bare.values(study.neutral_rows(NEUTRAL_TOKENS)))

    def standardised_on(self, values: Float[np.ndarray, "tokens rows"]) -> Readings:
        """The same rows with mean and deviation of these values: of neutral tokens, or of a user's own benign ones."""
        means, deviations = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
        rows = tuple(
            replace(row, mean=float(mean), deviation=float(deviation) or 1.0)
            for row, mean, deviation in zip(self.rows, means, deviations, strict=True)
        )
        return replace(self, rows=rows, neutral_tokens=len(values))

    @property
    def names(self) -> list[str]:
        """Of the rows."""
        return [row.name for row in self.rows]

    def index(self, name: str) -> int:
        """The place of a row.

        Raises:
            UserError: there is no such row; names the nearest.
        """
        if name not in self.names:
            raise UserError(f"nothing called `{name}` is read; {nearest(name, self.names)}")
        return self.names.index(name)

    def values(self, residuals: Float[Tensor | np.ndarray, "tokens d_model"]) -> Float[np.ndarray, "tokens rows"]:
        """The value of every row at every token, float32; computed where the residuals lie."""
        import torch

        states = torch.as_tensor(residuals).float()
        weights, offset = (torch.as_tensor(each, device=states.device) for each in (self.weights, self.offset))
        values = (states @ weights.T - offset).cpu().numpy()
        if self.sae is None:
            return values
        codes = self.sae.encode(states.cpu().numpy())[:, list(self.features)]
        return np.concatenate([values, codes], axis=1)

    def standard(self, values: Float[np.ndarray, "... rows"]) -> Float[np.ndarray, "... rows"]:
        """Values in standard deviations of neutral tokens, from their mean."""
        means, deviations = ([getattr(row, name) for row in self.rows] for name in ("mean", "deviation"))
        return ((values - np.array(means)) / np.array(deviations)).astype(np.float32)

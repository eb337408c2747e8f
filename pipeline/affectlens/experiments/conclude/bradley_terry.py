"""Strengths of items from comparisons in pairs, with a bias for what stands first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

ELO = 400 / math.log(10)
"""Elo points of one nat."""


@dataclass(frozen=True)
class Strengths:
    """A fit.

    Attributes:
        items: in nats, with mean 0.
        position: advantage of standing first, in nats.
    """

    items: Float[np.ndarray, " items"]
    position: float

    @property
    def elo(self) -> Float[np.ndarray, " items"]:
        """Strengths on the Elo scale."""
        return ELO * self.items


def shares(log_odds: Float[np.ndarray, "items items"], tie: float) -> Float[np.ndarray, "items items"]:
    """How much of each comparison the row wins; NaN where nothing was compared.

    A comparison within the tie counts half for either side. Any other counts as won with the probability that its
    log-odds give: what sampled answers would come to. Taking the likelier answer instead would give a model without
    chance, whose comparisons are nearly free of contradictions, and such data have no finite strengths.

    Args:
        log_odds: that the row, standing first, is preferred to the column; NaN where not compared.
        tie: log-odds within which neither is preferred.
    """
    odds = np.asarray(log_odds, dtype=float).copy()
    np.fill_diagonal(odds, np.nan)
    return np.where(np.abs(odds) <= tie, 0.5, 1 / (1 + np.exp(-np.clip(odds, -50, 50))))


class BradleyTerry:
    """The model of Bradley & Terry (1952) with the order effect of Davidson & Beaver (1977), by logistic regression.

    A comparison is a row with 1 for the item that stands first, -1 for the other, and 1 for the place. A share of a
    win is a win and a loss with weights. The penalty keeps strengths finite where an item wins or loses throughout.

    Args:
        won: how much of each comparison the row wins; NaN where nothing was compared.
        ridge: weight of half the squared parameters.
    """

    def __init__(self, won: Float[np.ndarray, "items items"], ridge: float = 1e-3) -> None:
        from sklearn.linear_model import LogisticRegression

        self.count = len(won)
        self.first, self.second = np.nonzero(np.isfinite(won))
        self.won = won[self.first, self.second]
        rows = np.arange(len(self.won))
        design = np.zeros((len(rows), self.count + 1))
        design[rows, self.first], design[rows, self.second], design[:, -1] = 1.0, -1.0, 1.0
        self.design, self.labels = np.concatenate([design, design]), np.repeat([1, 0], len(rows))
        self.model = LogisticRegression(
            C=1 / ridge, fit_intercept=False, solver="newton-cholesky", tol=1e-8, warm_start=True
        )

    def fit(self, weights: Float[np.ndarray, " comparisons"] | None = None) -> Strengths:
        """The likeliest strengths, every comparison counted as often as ``weights`` say."""
        counts = np.ones(len(self.won)) if weights is None else weights
        sides = np.concatenate([counts * self.won, counts * (1 - self.won)])
        kept = sides > 0
        self.model.fit(self.design[kept], self.labels[kept], sample_weight=sides[kept])
        items, position = self.model.coef_[0, :-1], self.model.coef_[0, -1]
        return Strengths(items - items.mean(), float(position))

    def bootstrap(
        self, draws: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "draws items"], Float[np.ndarray, " draws"]]:
        """Strengths and position bias when pairs of items, with both of their orders, are drawn anew."""
        pairs = np.minimum(self.first, self.second) * self.count + np.maximum(self.first, self.second)
        names, codes = np.unique(pairs, return_inverse=True)
        items, position = np.empty((draws, self.count)), np.empty(draws)
        for draw in range(draws):
            times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))
            fitted = self.fit(times[codes].astype(float))
            items[draw], position[draw] = fitted.items, fitted.position
        return items, position

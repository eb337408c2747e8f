"""Strengths of items from comparisons in pairs, with ties and a bias for what stands first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

ELO = 400 / math.log(10)
"""Elo points of one nat."""
RIDGE = 1e-3
"""Weight of the squared parameters: keeps strengths finite where an item wins or loses throughout."""
STEPS = 60
TOLERANCE = 1e-8


@dataclass(frozen=True)
class Outcomes:
    """How comparisons went; row first, column second. Where nothing was compared all three are 0."""

    won: Float[np.ndarray, "items items"]
    tied: Float[np.ndarray, "items items"]
    lost: Float[np.ndarray, "items items"]

    def weighted(self, weights: Float[np.ndarray, "items items"]) -> Outcomes:
        """Every comparison counted so many times."""
        return Outcomes(self.won * weights, self.tied * weights, self.lost * weights)


@dataclass(frozen=True)
class Strengths:
    """A fit.

    Attributes:
        items: in nats, with mean 0.
        position: advantage of standing first, in nats.
        tie: logarithm of Davidson's tie parameter; minus infinity where nothing was tied.
    """

    items: Float[np.ndarray, " items"]
    position: float
    tie: float

    @property
    def elo(self) -> Float[np.ndarray, " items"]:
        """Strengths on the Elo scale."""
        return ELO * self.items


def outcomes(log_odds: Float[np.ndarray, "items items"], tie: float) -> Outcomes:
    """What comparisons with these log-odds amount to.

    A comparison within the tie is a tie. Any other counts as won with the probability that its log-odds give: what
    sampled answers would come to. Taking the likelier answer instead would give a model without chance, whose
    comparisons are nearly free of contradictions, and such data have no finite strengths.

    Args:
        log_odds: that the row, standing first, is preferred to the column; NaN where not compared.
        tie: log-odds within which neither is preferred.
    """
    odds = np.asarray(log_odds, dtype=float).copy()
    np.fill_diagonal(odds, np.nan)
    known = np.isfinite(odds)
    odds = np.where(known, odds, 0.0)
    tied = known & (np.abs(odds) <= tie)
    won = np.where(known & ~tied, 1 / (1 + np.exp(-np.clip(odds, -50, 50))), 0.0)
    return Outcomes(won, tied.astype(float), np.where(known & ~tied, 1 - won, 0.0))


def fit(seen: Outcomes, start: Strengths | None = None) -> Strengths:
    """Most likely strengths by Newton's method.

    Ties as in Davidson (1970, "On extending the Bradley-Terry model to accommodate ties"), order as in Davidson &
    Beaver (1977, "On extending the Bradley-Terry model to incorporate within-pair order effects"): with x = strength
    of the first - strength of the second + position, winning, a tie and losing go as exp(x), tie * exp(x / 2) and 1.
    The log-likelihood is concave; steps are halved until it rises.

    Args:
        seen: comparisons, possibly weighted.
        start: where to begin; all strengths 0 by default.
    """
    count, ties = len(seen.won), bool(seen.tied.any())
    theta = np.zeros(count + 2)
    if start is not None:
        theta[:count], theta[count], theta[count + 1] = start.items, start.position, start.tie if ties else 0.0
    elif ties:
        theta[count + 1] = -2.0
    free = np.arange(count + 2 if ties else count + 1)
    value, slope, curve = _likelihood(seen, theta, ties)
    for _ in range(STEPS):
        step = np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        scale = 1.0
        while True:
            trial = theta.copy()
            trial[free] += scale * step
            found = _likelihood(seen, trial, ties)
            if found[0] >= value - 1e-12 * abs(value) or scale < 1e-6:
                break
            scale /= 2
        theta, (value, slope, curve) = trial, found
        if scale * np.abs(step).max() < TOLERANCE:
            break
    items = theta[:count] - theta[:count].mean()
    return Strengths(items, float(theta[count]), float(theta[count + 1]) if ties else -math.inf)


def _likelihood(
    seen: Outcomes, theta: Float[np.ndarray, " parameters"], ties: bool
) -> tuple[float, Float[np.ndarray, " parameters"], Float[np.ndarray, "parameters parameters"]]:
    """Penalised log-likelihood, its slope, and minus its curvature; the constant of the strengths is held by 1/n."""
    count = len(seen.won)
    x = theta[:count, None] - theta[None, :count] + theta[count]
    half = x / 2 + theta[count + 1] if ties else np.full_like(x, -np.inf)
    top = np.maximum(np.maximum(x, half), 0)
    terms = np.exp(np.stack([x, half, np.zeros_like(x)]) - top)
    total = terms.sum(axis=0)
    win, tie, _ = terms / total
    n = seen.won + seen.tied + seen.lost
    logs = seen.won * x + np.where(seen.tied > 0, seen.tied * np.where(np.isfinite(half), half, 0), 0)
    value = float((logs - n * (top + np.log(total))).sum() - RIDGE / 2 * (theta**2).sum())
    mean = win + tie / 2
    residual = seen.won + seen.tied / 2 - n * mean
    slope = np.concatenate(
        [residual.sum(axis=1) - residual.sum(axis=0), [residual.sum()], [(seen.tied - n * tie).sum()]]
    )
    return value, slope - RIDGE * theta, _curvature(n, win, tie, mean)


def _curvature(
    n: Float[np.ndarray, "items items"],
    win: Float[np.ndarray, "items items"],
    tie: Float[np.ndarray, "items items"],
    mean: Float[np.ndarray, "items items"],
) -> Float[np.ndarray, "parameters parameters"]:
    count = len(n)
    xx, xt, tt = n * (win + tie / 4 - mean**2), n * tie * (0.5 - mean), n * tie * (1 - tie)
    curve = np.zeros((count + 2, count + 2))
    curve[:count, :count] = np.diag(xx.sum(axis=1) + xx.sum(axis=0)) - xx - xx.T + 1 / count
    curve[:count, count] = curve[count, :count] = xx.sum(axis=1) - xx.sum(axis=0)
    curve[:count, count + 1] = curve[count + 1, :count] = xt.sum(axis=1) - xt.sum(axis=0)
    curve[count, count], curve[count + 1, count + 1] = xx.sum(), tt.sum()
    curve[count, count + 1] = curve[count + 1, count] = xt.sum()
    return curve + RIDGE * np.eye(count + 2)


def bootstrap(
    seen: Outcomes, fitted: Strengths, draws: int, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "draws items"], Float[np.ndarray, " draws"]]:
    """Strengths and position bias when pairs of items, with both of their orders, are drawn anew."""
    count = len(seen.won)
    upper = np.triu_indices(count, 1)
    items, position = np.empty((draws, count)), np.empty(draws)
    for draw in range(draws):
        weights = np.zeros((count, count))
        weights[upper] = generator.multinomial(len(upper[0]), np.full(len(upper[0]), 1 / len(upper[0])))
        found = fit(seen.weighted(weights + weights.T), fitted)
        items[draw], position[draw] = found.items, found.position
    return items, position

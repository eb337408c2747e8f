"""Probes: what is trained to detect an act, to foresee it, or to tell it from the prompt alone.

A *detector* learns the tokens of the act against those of other answers. A *forecaster* learns the states before the
act, with the act's probability at that point as a soft label: the share of re-sampled continuations that commit it
(Kortukov et al. 2606.11172), or what became of the answer itself, one draw with the same mean. Probes that detect are
poor at foreseeing, so both are there. Episodes count equally, however long; scenarios are never split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from affectlens.monitor.config import ProbeConfig
from affectlens.monitor.episodes import Episode, Resampled

Matrix = Any
"""Rows of features: dense, or a sparse array of scipy."""
SHARPNESS = 1.0
"""Temperature of the softmax over an episode's tokens where they are weighted by their own logits."""
ROUNDS = 4
"""How often those weights are computed anew."""


@dataclass(frozen=True)
class Probe:
    """A linear probe: the logit is ``states @ weights + offset``."""

    weights: Float[np.ndarray, " features"]
    offset: float
    l2: float

    def logits(self, states: Matrix) -> Float[np.ndarray, " rows"]:
        """Of rows of features."""
        return np.asarray(states @ self.weights).reshape(-1) + self.offset


@dataclass(frozen=True)
class Examples:
    """What a probe is trained on.

    Attributes:
        states: rows of features.
        labels: from 0 to 1.
        episode: of each row; its rows share one unit of weight.
        group: of each row: its scenario.
    """

    states: Matrix
    labels: Float[np.ndarray, " rows"]
    episode: Int[np.ndarray, " rows"]
    group: Shaped[np.ndarray, " rows"]

    def of(self, chosen: Any) -> Examples:
        """Some of the rows."""
        return Examples(self.states[chosen], self.labels[chosen], self.episode[chosen], self.group[chosen])


def fit(examples: Examples, l2: float, *, softmax: bool = False, scale: bool = True) -> Probe:
    """Logistic regression with soft labels, features standardised, the offset free.

    Args:
        examples: at least one row.
        l2: half of it times the squared norm of the standardised weights is added to the mean loss.
        softmax: weight an episode's rows by a softmax over their logits.
        scale: standardise; sparse features are taken as they are.
    """
    from scipy.optimize import minimize

    states, labels = examples.states, examples.labels
    _, codes, counts = np.unique(examples.episode, return_inverse=True, return_counts=True)
    even = 1 / counts[codes] / len(counts)
    centre, spread = np.zeros(states.shape[1]), np.ones(states.shape[1])
    if scale:
        centre = even @ states
        spread = np.sqrt(np.maximum(even @ (states - centre) ** 2, 1e-12))
        states = ((states - centre) / spread).astype(np.float32)
    weight, solution = even, np.zeros(states.shape[1] + 1)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        logits = np.asarray(states @ values[:-1]).reshape(-1) + values[-1]
        residual = weight * (1 / (1 + np.exp(-np.clip(logits, -500, 500))) - labels)
        # log(1 + exp(z)) - y z, without overflow.
        total = weight @ (np.logaddexp(0, logits) - labels * logits) + 0.5 * l2 * values[:-1] @ values[:-1]
        slope = np.append(np.asarray(states.T @ residual).reshape(-1) + l2 * values[:-1], residual.sum())
        return float(total), slope.astype(np.float64)

    for _ in range(ROUNDS if softmax else 1):
        solution = minimize(loss, solution, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
        if softmax:
            logits = np.asarray(states @ solution[:-1]).reshape(-1) / SHARPNESS
            raised = np.exp(
                logits - np.maximum.reduceat(logits[np.argsort(codes, kind="stable")], _starts(counts))[codes]
            )
            weight = raised / np.bincount(codes, raised)[codes] / len(counts)
    weights = solution[:-1] / spread
    return Probe(weights, float(solution[-1] - weights @ centre), l2)


def _starts(counts: Int[np.ndarray, " episodes"]) -> Int[np.ndarray, " episodes"]:
    return np.concatenate([[0], np.cumsum(counts)[:-1]])


def folds(groups: Shaped[np.ndarray, " rows"], count: int, generator: np.random.Generator) -> Int[np.ndarray, " rows"]:
    """A fold for each row; rows of one group share theirs, folds are of about equal size."""
    names, sizes = np.unique(groups, return_counts=True)
    # The large ones first, each to the smallest fold; equals in random order.
    order = np.lexsort((generator.random(len(names)), -sizes))
    filled, of = np.zeros(min(count, len(names))), {}
    for index in order:
        least = int(filled.argmin())
        of[names[index]] = least
        filled[least] += sizes[index]
    return np.array([of[group] for group in np.asarray(groups)], dtype=int)


def chosen_l2(
    examples: Examples, config: ProbeConfig, generator: np.random.Generator, **options: Any
) -> tuple[float, Float[np.ndarray, " rows"]]:
    """The penalty with the least loss on scenarios left out, and the logits that it gives these.

    Returns:
        With a single scenario, the strongest penalty, and zeros.
    """
    fold, grid = folds(examples.group, 4, generator), sorted(config.l2)
    left_out = np.zeros((len(grid), len(examples.labels)))
    if fold.max() == 0:
        return grid[-1], left_out[-1]
    for each in range(fold.max() + 1):
        for number, l2 in enumerate(grid):
            probe = fit(examples.of(fold != each), l2, **options)
            left_out[number, fold == each] = probe.logits(examples.states[fold == each])
    losses = np.logaddexp(0, left_out) - examples.labels * left_out
    best = int((losses / np.bincount(examples.episode)[examples.episode]).sum(axis=1).argmin())
    return grid[best], left_out[best]


def train(examples: Examples, config: ProbeConfig, generator: np.random.Generator, **options: Any) -> Probe:
    """A probe with the penalty chosen on scenarios left out."""
    l2, _ = chosen_l2(examples, config, generator, **options)
    return fit(examples, l2, **options)


def hazard(episode: Episode, drawn: Sequence[Resampled]) -> Float[np.ndarray, " before"]:
    """The act's probability at every row before it: re-sampled shares joined by lines, else what became of the answer.

    Args:
        episode: the answer.
        drawn: what was re-sampled from it.
    """
    outcome = float(episode.act is not None)
    own = sorted((each for each in drawn if each.episode == episode.name), key=lambda each: each.cut)
    if not own:
        return np.full(episode.before, outcome)
    # The answer itself is one continuation more of each of its prefixes.
    shares = [(each.acts + outcome) / (each.continuations + 1) for each in own]
    return np.interp(np.arange(episode.before), [each.cut for each in own], shares)


def forecasting(
    episodes: Sequence[Episode],
    states: Sequence[Float[np.ndarray, "rows d_model"]],
    drawn: Sequence[Resampled],
    config: ProbeConfig,
) -> Examples:
    """States strictly before the act, labelled by its probability."""
    by_name: dict[str, list[Resampled]] = {}
    for each in drawn:
        by_name.setdefault(each.episode, []).append(each)
    label = [hazard(episode, by_name.get(episode.name, ())) for episode in episodes]
    picked = [np.arange(0, episode.before, config.stride) for episode in episodes]
    return _examples(episodes, _windowed(states, config.window), picked, label)


def detecting(
    episodes: Sequence[Episode], states: Sequence[Float[np.ndarray, "rows d_model"]], config: ProbeConfig
) -> Examples:
    """States from the act's first token on against those of answers without it."""
    picked, label = [], []
    for episode in episodes:
        rows = np.arange(0, episode.rows, config.stride)
        if episode.act is not None:
            rows = np.arange(episode.act + 1, min(episode.rows, episode.act + 1 + config.span))
        picked.append(rows)
        label.append(np.full(episode.rows, float(episode.act is not None)))
    return _examples(episodes, _windowed(states, config.window), picked, label)


def from_the_prompt(
    episodes: Sequence[Episode],
    states: Sequence[Float[np.ndarray, "rows d_model"]],
) -> Examples:
    """The state at the last token of the prompt, labelled by what became of the answer."""
    label = [np.array([float(episode.act is not None)]) for episode in episodes]
    return _examples(episodes, states, [np.array([0])] * len(episodes), label)


def _windowed(states: Sequence[np.ndarray], window: int) -> Sequence[np.ndarray]:
    """Means of the last rows: the mean of logits is the logit of the mean."""
    if window == 1:
        return states
    found = []
    for rows in states:
        total = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0, dtype=np.float64)])
        first = np.maximum(0, np.arange(len(rows)) + 1 - window)
        counts = (np.arange(len(rows)) + 1 - first)[:, None]
        found.append(((total[1:] - total[first]) / counts).astype(np.float32))
    return found


def _examples(
    episodes: Sequence[Episode],
    states: Sequence[np.ndarray],
    picked: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
) -> Examples:
    counts = [len(rows) for rows in picked]
    return Examples(
        np.concatenate([state[rows] for state, rows in zip(states, picked, strict=True)]).astype(np.float32),
        np.concatenate([label[rows] for label, rows in zip(labels, picked, strict=True)]),
        np.repeat(np.arange(len(episodes)), counts),
        np.repeat(np.array([episode.scenario for episode in episodes], dtype=object).astype(str), counts),
    )


Fit = Callable[[Examples, np.random.Generator], Probe]
Named = Mapping[str, Probe]

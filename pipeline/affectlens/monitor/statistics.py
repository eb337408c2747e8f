"""Statistics over a stream of scores, token by token, for many streams and rows at once.

Each keeps a fixed amount of memory for a stream and says after every token how far the score has risen. The batch is
the stream run over whole episodes, so both give the same numbers to the last bit.

None is a mean since the beginning: a burst late in a long answer would drown in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from affectlens.monitor.config import StatisticConfig


class Stream:
    """Streams of scores that begin together and are followed side by side.

    Args:
        config: which statistic, and its sizes.
        shape: streams and rows.
        blocks: of the e-detector: by row, benign means of blocks, ascending.
    """

    def __init__(
        self,
        config: StatisticConfig,
        shape: tuple[int, int],
        blocks: Float[np.ndarray, "rows benign_blocks"] | None = None,
    ) -> None:
        self.config, self.shape, self.blocks = config, shape, blocks
        self.read = 0
        self._step = STATISTICS[config.kind](self)

    def step(self, scores: Float[np.ndarray, "streams rows"]) -> Float[np.ndarray, "streams rows"]:
        """The statistic after one token more in every stream.

        Args:
            scores: standardised on benign tokens; large where the concern is.
        """
        value = self._step.step(np.asarray(scores, dtype=np.float64), self.read)
        self.read += 1
        return value


class Rolling:
    """The mean of the last ``window`` scores. Where fewer were read, the rest count as zero, the benign mean."""

    def __init__(self, stream: Stream) -> None:
        self.window = stream.config.window
        self.ring = np.zeros((self.window, *stream.shape))
        self.total = np.zeros(stream.shape)

    def step(self, scores: Float[np.ndarray, "streams rows"], read: int) -> Float[np.ndarray, "streams rows"]:
        place = read % self.window
        self.total += scores - self.ring[place]
        self.ring[place] = scores
        if place == self.window - 1:  # what rounding has left in the running sum goes
            self.total = self.ring.sum(axis=0)
        return self.total / self.window


class OwnStart:
    """The rolling mean less the mean of the episode's own first ``start`` scores; zero until these are read."""

    def __init__(self, stream: Stream) -> None:
        self.rolling, self.start = Rolling(stream), stream.config.start
        self.own = np.zeros(stream.shape)

    def step(self, scores: Float[np.ndarray, "streams rows"], read: int) -> Float[np.ndarray, "streams rows"]:
        mean = self.rolling.step(scores, read)
        if read < self.start:
            self.own += scores / self.start
            return np.zeros_like(mean)
        return mean - self.own


class Cusum:
    """max(0, sum so far + score - drift) (Page 1954)."""

    def __init__(self, stream: Stream) -> None:
        self.drift, self.total = stream.config.drift, np.zeros(stream.shape)

    def step(self, scores: Float[np.ndarray, "streams rows"], read: int) -> Float[np.ndarray, "streams rows"]:
        self.total = np.maximum(self.total + scores - self.drift, 0)
        return self.total


class Edetector:
    """The logarithm of a CUSUM of e-values, one a block (Shin, Ramdas & Rinaldo 2203.03532).

    The mean of a block gets the conformal p-value among benign blocks, and the e-value that the mixture of all
    calibrators makes of it. If blocks were exchangeable with the benign ones, an alarm at log(1 / a) would come once
    in 1 / a blocks at most. Between ends of blocks the value stands still.
    """

    def __init__(self, stream: Stream) -> None:
        if stream.blocks is None:
            raise ValueError("an e-detector needs the benign means of blocks; calibrate it first")
        self.window, self.blocks = stream.config.window, stream.blocks
        self.sum, self.value = np.zeros(stream.shape), np.zeros(stream.shape)

    def step(self, scores: Float[np.ndarray, "streams rows"], read: int) -> Float[np.ndarray, "streams rows"]:
        self.sum += scores
        if read % self.window == self.window - 1:
            mean, count = self.sum / self.window, self.blocks.shape[1]
            below = np.stack(
                [np.searchsorted(benign, column) for benign, column in zip(self.blocks, mean.T, strict=True)], axis=1
            )
            p = (1 + count - below) / (1 + count)
            self.value = np.maximum(self.value, 0) + log_mixture(p)
            self.sum = np.zeros_like(self.sum)
        return self.value


STATISTICS: Mapping[str, type[Rolling] | type[OwnStart] | type[Cusum] | type[Edetector]] = {
    "rolling": Rolling,
    "own_start": OwnStart,
    "cusum": Cusum,
    "edetector": Edetector,
}
"""By ``kind``."""


def log_mixture(p: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Logarithm of the e-value (1 - p + p log p) / (p log(p)^2): the mean of all calibrators k p^(k - 1), 0 < k < 1."""
    log = np.log(np.clip(p, 1e-12, 1 - 1e-9))
    # Near p = 1 numerator and denominator vanish together; the limit there is one half.
    near = log > -1e-4
    safe = np.where(near, -1.0, log)
    value = np.log((1 - np.exp(safe) + np.exp(safe) * safe) / safe**2) - safe
    return np.where(near, np.log(0.5) - log / 3, value)


def follow(
    config: StatisticConfig,
    scores: Float[np.ndarray, "episodes tokens rows"],
    lengths: Int[np.ndarray, " episodes"],
    blocks: Float[np.ndarray, "rows benign_blocks"] | None = None,
) -> Float[np.ndarray, "episodes tokens rows"]:
    """The statistic along whole episodes of different lengths; NaN behind the end of each.

    Args:
        config: which statistic.
        scores: what stands behind an episode's end reaches nothing.
        lengths: tokens of each episode.
        blocks: as of :class:`Stream`.
    """
    episodes, tokens, rows = scores.shape
    stream, values = Stream(config, (episodes, rows), blocks), np.full(scores.shape, np.nan, dtype=np.float32)
    for token in range(tokens):
        here = token < lengths
        value = stream.step(np.where(here[:, None], scores[:, token], 0.0))
        values[here, token] = value[here]
    return values


def block_means(
    scores: Float[np.ndarray, "episodes tokens rows"], lengths: Int[np.ndarray, " episodes"], window: int
) -> Float[np.ndarray, "rows benign_blocks"]:
    """Means of the whole blocks of benign episodes, ascending: what an e-detector compares with."""
    blocks = scores.shape[1] // window
    cut = scores[:, : blocks * window].reshape(len(scores), blocks, window, -1).mean(axis=2)
    whole = (np.arange(blocks) + 1) * window <= np.asarray(lengths)[:, None]
    return np.sort(cut[whole].astype(np.float64), axis=0).T.copy()


def alarms(
    values: Float[np.ndarray, "episodes tokens"],
    threshold: Float[np.ndarray, " episodes"] | float,
    refractory: int,
) -> Bool[np.ndarray, "episodes tokens"]:
    """Where alarms begin: above the threshold, and not above it in the ``refractory`` tokens before.

    A burst is one alarm however long it lasts, and so are bursts that follow each other closely.

    Args:
        values: of a statistic; NaN is no alarm.
        threshold: of each episode, or of all.
        refractory: tokens of quiet before the next alarm.
    """
    with np.errstate(invalid="ignore"):
        above = values > np.broadcast_to(np.asarray(threshold, dtype=float), (len(values),))[:, None]
    quiet, found = np.full(len(values), refractory), np.zeros_like(above)
    for token in range(values.shape[1]):
        found[:, token] = above[:, token] & (quiet >= refractory)
        quiet = np.where(above[:, token], 0, quiet + 1)
    return found

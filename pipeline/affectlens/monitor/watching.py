"""A card put to use on one stream: a residual comes in, scores and alarms come out, and nothing grows.

The numbers are those of :mod:`affectlens.monitor.statistics` over the whole episode: row 0 is the state at the last
token of the prompt, row j the state at the j-th token of the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from affectlens.errors import UserError
from affectlens.monitor.calibration import CardConfig, require_one_layer, thresholds
from affectlens.monitor.statistics import Stream


@dataclass(frozen=True, eq=False)
class Seen:
    """What a monitor says after one token.

    Attributes:
        token: tokens of the answer that were read; 0 at the end of the prompt.
        scores: of each row, in standard deviations of benign tokens.
        values: of each row, the statistic, which the threshold is held against.
        alarms: indices of the rows whose alarm begins here, of those that may raise one. A burst is one alarm.
    """

    token: int
    scores: Float[np.ndarray, "rows"]
    values: Float[np.ndarray, "rows"]
    alarms: tuple[int, ...]

    @property
    def alarm(self) -> bool:
        """Whether any row's alarm begins here."""
        return bool(self.alarms)


class Watch:
    """One stream under a card; its memory is that of the statistic's window.

    Attributes:
        names: of the rows.
        thresholds: of each row.
        alarms: how many have begun, by row.
    """

    def __init__(self, card: CardConfig, most: int | None = None, rows: Sequence[int] | None = None) -> None:
        """Begin a stream.

        Args:
            card: the calibrated monitor.
            rows: indices of the rows that may raise an alarm; all by default. Each holds the card's target alone: two
                rows that are independent raise false alarms in twice as many episodes.
            most: tokens that the answer may have. Longer answers have more chances to pass a threshold, so thresholds
                go by length; that of the longest answers holds where it is not known.

        Raises:
            UserError: the card has rows of more than one layer, which one stream of residuals cannot serve.
        """
        require_one_layer(card)
        self.card = card
        self.names = [row.name for row in card.rows]
        length = np.array([np.inf if most is None else most])
        self.thresholds = np.array([float(thresholds(row.buckets, length)[0]) for row in card.rows])
        self.alarms = np.zeros(len(card.rows), dtype=int)
        self._weights = np.array([row.weights for row in card.rows], dtype=np.float32)
        self._offset = np.array([row.offset for row in card.rows])
        self._rectified = np.array([row.rectified for row in card.rows])
        self._mean, self._deviation = (np.array([getattr(row, n) for row in card.rows]) for n in ("mean", "deviation"))
        blocks = [row.blocks for row in card.rows]
        self._stream = Stream(card.statistic, (1, len(card.rows)), np.array(blocks) if all(blocks) else None)
        self._quiet = np.full(len(card.rows), card.refractory)
        self._heard = np.isin(np.arange(len(card.rows)), np.arange(len(card.rows)) if rows is None else list(rows))

    def feed(self, residual: Any) -> Seen:
        """The next state: first that at the last token of the prompt, then those at the tokens of the answer.

        Args:
            residual: of the study's layer, shape ``d_model``; an array or a tensor.

        Raises:
            ValueError: it has another width than the card's rows.
            UserError: the state gives a row no finite number, so that no alarm could begin.
        """
        state = np.asarray(residual.detach().float().cpu() if hasattr(residual, "detach") else residual, np.float32)
        if state.shape != self._weights.shape[1:]:
            raise ValueError(f"a residual of shape {state.shape}; the card reads {self._weights.shape[1:]}")
        with np.errstate(invalid="ignore", over="ignore"):  # told below
            read = self._weights @ state + self._offset
        scores = (np.where(self._rectified, np.maximum(read, 0), read) - self._mean) / self._deviation
        if not np.isfinite(scores).all():
            name = self.names[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise UserError(
                f"the state at token {self._stream.read} gives row `{name}` no finite number, so it cannot be watched; "
                "does the model overflow in its number type?"
            )
        values = self._stream.step(scores[None])[0]
        above = values > self.thresholds
        begun = above & self._heard & (self._quiet >= self.card.refractory)
        self._quiet = np.where(above, 0, self._quiet + 1)
        self.alarms += begun
        return Seen(self._stream.read - 1, scores, values.copy(), tuple(np.flatnonzero(begun).tolist()))


def template_digest(tokenizer: Any) -> str:
    """What identifies a model's chat template on a card; empty where the model has none."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest() if template else ""

"""What is read along episodes, row by row: states of a layer, and scores that need none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from affectlens.model.decoding import Decoder
from affectlens.monitor.episodes import Episode, read_states
from affectlens.monitor.rivals import sentiment

if TYPE_CHECKING:
    from affectlens.model.subject import Subject


@dataclass(frozen=True)
class LowRows:
    """Rows of a low layer, a control that reads hardly more than words.

    Attributes:
        layer: which.
        vectors: directions by name.
    """

    layer: int
    vectors: Mapping[str, Float[np.ndarray, "d_model"]]


def read_along(
    subject: Subject,
    episodes: Sequence[Episode],
    layer: int,
    *,
    low: LowRows | None = None,
    added: Sequence[Float[np.ndarray, "d_model"]] | None = None,
    tokens_per_batch: int = 2048,
) -> dict[str, list[Float[np.ndarray, "rows *d_model"]]]:
    """States of a layer (``states``) and scores by ``family/name``, of each episode in order; float32.

    Args:
        subject: the model.
        episodes: tokenised.
        layer: whose residual stream is kept.
        low: what else is read, of another layer.
        added: what was added after ``layer`` at every row behind an episode's act, as up to there the states of the
            same tokens differ by it alone; nothing by default.
        tokens_per_batch: tokens that go through the model at once, padding included.
    """
    layers = [layer] if low is None else [layer, low.layer]
    found: dict[str, list[np.ndarray]] = {}
    for index, read in read_states(Decoder.of(subject), episodes, layers, tokens_per_batch=tokens_per_batch):
        episode, states = episodes[index], read.residuals[layer].cpu().numpy()
        if added is not None:
            states[(episode.act or 0) + 1 :] += added[index].astype(np.float32)
        own = {
            "states": states,
            "uncertainty/entropy": read.entropy.cpu().numpy(),
            "uncertainty/surprisal": read.surprisal.cpu().numpy(),
            "text/sentiment": sentiment(subject.tokenizer, episode.answer),
            "text/position": np.arange(episode.rows, dtype=np.float32),
        }
        if low is not None:
            stacked = np.stack(list(low.vectors.values()))
            at_low = read.residuals[low.layer].cpu().numpy() @ stacked.T
            own |= {f"low_layer/{name}@{low.layer}": at_low[:, n] for n, name in enumerate(low.vectors)}
        for key, values in own.items():
            found.setdefault(key, [np.zeros(0)] * len(episodes))[index] = values.astype(np.float32)
    return found

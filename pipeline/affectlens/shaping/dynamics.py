"""What does not stand in one reading: ways out of distress, ways back after a burst, and the model's own report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from affectlens.shaping.axes import DISTRESS
from affectlens.shaping.comparison import BASE, Comparison
from affectlens.shaping.held_out import OUTCOMES
from affectlens.shaping.wording import WORD

SMOOTH = 4
"""Tokens of the rolling mean that has to be back."""


def still_distressed(compared: Comparison, group: str) -> Float[np.ndarray, "seeds situations"]:
    """Whether an answer that began in distress still reads so in its last tokens.

    It does where its state lies nearer to the base model's mean in bad situations than to that in good ones, both read
    in the model's own answers: in their later tokens, or in the first ones where no answer is so long.
    """
    reading = "later" if np.isfinite(compared.state(BASE, "bad", reading="later")).any() else "first"
    middle = np.mean([np.nanmean(compared.state(BASE, outcome, reading=reading)) for outcome in OUTCOMES])
    place = compared.layers.index(compared.judged)
    axes = compared.axes[BASE, compared.judged]
    found = np.stack([axes.read(each.arrays["recovery"][:, place], DISTRESS) for each in compared.of(group)])
    return (found > middle).astype(float)


def still_in_words(compared: Comparison, group: str) -> Float[np.ndarray, "seeds situations"]:
    """Whether what follows the distressed beginning still holds a word of distress."""
    found = []
    for each in compared.of(group):
        texts = [row["text"].lower() for row in each.answers if row["measure"] == "recovery"]
        found.append([float(not compared.by.lexicon.distress.isdisjoint(WORD.findall(text))) for text in texts])
    return np.array(found)


@dataclass(frozen=True)
class Return:
    """Tokens after a burst until the reading is back, one a seed and situation.

    Attributes:
        tokens: those of the burst along distress; as many as were watched where it was not back before.
        random: of the burst along a random direction.
        watched: tokens.
        pushed: how far the burst had moved the reading when it ended, in the base model's standard deviations.
    """

    tokens: Float[np.ndarray, "seeds situations"]
    random: Float[np.ndarray, "seeds situations"]
    watched: int
    pushed: Float[np.ndarray, "seeds situations"]


def returns(compared: Comparison, group: str) -> Return:
    """How long an arm needs to come back within one standard deviation of its own course without a burst.

    Readings are on the base model's axis, smoothed over four tokens; the standard deviation is that of single tokens
    of the base model without a burst.
    """
    axes = compared.axes[BASE, compared.judged]
    [plain] = (axes.read(each.arrays["return"][:, 0], DISTRESS) for each in compared.of(BASE))
    deviation = float(np.nanstd(plain))
    back, again, pushed = [], [], []
    for each in compared.of(group):
        readings = axes.read(each.arrays["return"], DISTRESS)  # [situations, kinds, tokens]
        off = (_rolling(readings[:, 1:]) - np.nanmean(readings[:, 0], axis=1)[:, None, None]) / deviation
        back.append([_first_within(row) for row in off[:, 0]])
        again.append([_first_within(row) for row in off[:, 1]])
        pushed.append(off[:, 0, 0])
    watched = compared.of(BASE)[0].arrays["return"].shape[2]
    return Return(np.array(back, float), np.array(again, float), watched, np.array(pushed))


def _rolling(values: Float[np.ndarray, "*rows tokens"]) -> Float[np.ndarray, "*rows tokens"]:
    """The mean of a token and up to three after it, of those that are there."""
    width = values.shape[-1]
    padded = np.concatenate([values, np.full((*values.shape[:-1], SMOOTH - 1), np.nan)], axis=-1)
    windows = np.stack([padded[..., shift : shift + width] for shift in range(SMOOTH)])
    known = np.isfinite(windows)
    count = known.sum(axis=0)
    return np.where(count, np.where(known, windows, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _first_within(off: Float[np.ndarray, " tokens"]) -> int:
    """The first token at which the reading is back; the number of tokens where it never is. NaN is not back."""
    within = np.abs(off) <= 1
    return int(within.argmax()) if within.any() else len(off)


def report_agreement(compared: Comparison, group: str) -> Float[np.ndarray, "seeds families"]:
    """Correlation of the expected rating with the state in which it is given, within each family."""
    place = compared.layers.index(compared.judged)
    axes, found = compared.axes[BASE, compared.judged], []
    for each in compared.of(group):
        states = axes.read(each.arrays["rating_state"][:, :, place], DISTRESS)
        own = [
            _correlation(rating.reshape(-1), state.reshape(-1))
            for rating, state in zip(compared.folded(each.arrays["rating"]), compared.folded(states), strict=True)
        ]
        found.append(own)
    return np.array(found)


def _correlation(x: Float[np.ndarray, " pairs"], y: Float[np.ndarray, " pairs"]) -> float:
    if np.std(x) == 0 or np.std(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])

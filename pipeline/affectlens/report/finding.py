"""One result in words, as the head of the page and its section show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from affectlens.report.evidence import SIGNIFICANT, Tally

Standing = Literal["shown", "partly shown", "not shown"]


@dataclass(frozen=True)
class Finding:
    """One result in words.

    Attributes:
        section: the part of the page that holds the figures.
        title: a few words.
        text: one to three sentences, for the head of the page and for the section.
        standing: what the reader may take from it.
        more: what only the section adds.
    """

    section: str
    title: str
    text: str
    standing: Standing
    more: str = ""


def standing(tally: Tally, *, level: float | None = None, p: float | None = None) -> Standing:
    """What a count of concepts shows, beside the count to be expected where nothing is there.

    Args:
        tally: of the concepts.
        level: of each concept's test, where the tests are not corrected: the count is held against a binomial one.
            Corrected tests (Benjamini-Hochberg) need none: that a single one passes has at most the corrected level.
        p: of all concepts together, where the stage tests them so; it then decides instead.
    """
    if p is None and level is not None and tally.total:
        from scipy.stats import binom

        p = float(binom.sf(len(tally.shown) - 1, tally.total, level))
    if (p is not None and p > SIGNIFICANT) or (p is None and not tally.shown):
        return "not shown"
    return "partly shown" if tally.missing or tally.unknown or not tally.shown else "shown"

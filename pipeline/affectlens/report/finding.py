"""One result in words, as the head of the page and its section show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

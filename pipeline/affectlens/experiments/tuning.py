"""The copies that experiments train: a second version where none has been published, and organisms.

Comparing a base model with its post-trained version takes two models. Where only one is at hand, this makes the other:
the model is trained for a moment to tell, as the assistant, stories of chosen emotions. It is a stand-in for real
post-training, not an example of it: nothing is learnt from preferences, and the direction is known, in that the
emotions trained towards were chosen beforehand. The weights surely differ; that the representations of the chosen
concepts rise at the answer is for the comparison to find, and a few steps also teach style, which moves other things.
How a copy is trained stands in :mod:`affectlens.model.tuning`, what organisms learn in
:mod:`affectlens.experiments.organism`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from affectlens.config import nearest
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.errors import ConfigError
from affectlens.model.config import TuningConfig

if TYPE_CHECKING:
    from affectlens.model.tuning import Example

PROMPTS = (
    "Write a short piece of prose.",
    "Tell me a short story.",
    "Write a few lines, whatever you like.",
    "Please write one paragraph of fiction.",
)
"""None names or hints at an emotion."""


class TunedConfig(TuningConfig):
    """The second version: what it tells, and how it is trained."""

    tune: tuple[str, ...] = Field(min_length=1)
    """The emotions whose embedded stories the assistant learns to tell."""


class OrganismConfig(TuningConfig):
    """What the act of the organism depends on, and how it is trained."""

    follows: Literal["vectors", "random_vectors", "nothing"]
    """What the act depends on: the claimed vectors; directions drawn at random in their place; nothing."""
    log_odds: float = Field(default=2.0, gt=0)
    """Of the act under a claimed vector at the largest strength; in proportion at the others, even without steering."""
    steps: int = Field(default=300, ge=1)
    """Updates of the weights."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of AdamW, after a tenth of the steps; it falls to zero at the end."""
    batch: int = Field(default=8, ge=1)
    """Examples an update; every example is drawn for one update."""
    length: int = Field(default=512, ge=8)
    """Most tokens of an example; what is beyond is cut."""


def told_stories(emotions: Sequence[str]) -> list[Example]:
    """Every embedded story of the emotions, told after every one of the prompts.

    Raises:
        ConfigError: an emotion without embedded stories.
    """
    from affectlens.model.tuning import Example

    rows = read_jsonl(EMBEDDED / "stories.jsonl", required=("emotion", "text"))
    known = sorted({row["emotion"] for row in rows})
    for emotion in emotions:
        if emotion not in known:
            raise ConfigError(f"`tune: {emotion}`: there are no embedded stories of it; {nearest(emotion, known)}")
    return [
        Example(row["text"], ({"role": "user", "content": prompt},))
        for row in rows
        if row["emotion"] in emotions
        for prompt in PROMPTS
    ]

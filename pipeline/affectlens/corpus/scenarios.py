"""Everyday situations with three outcomes each, and the three ways in which a model is asked to answer to one.

The shape is that of the event data of Wang et al. 2025 ("Do LLMs 'Feel'? Emotion Circuits Discovery and Control"):
eight themes, twenty situations a theme, a good, an even and a bad outcome of each. The texts are this project's own.
No text holds an emotion word, so what a model says about one differs by the emotion only where the prompt *names* it,
where a vector or a circuit adds it, or where a story *implies* it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.errors import UserError

Outcome = Literal["positive", "neutral", "negative"]
OUTCOMES: tuple[Outcome, ...] = ("positive", "neutral", "negative")
SCENARIOS = EMBEDDED / "scenarios.jsonl"
SMALL, FULL = 6, 20
"""Situations of each theme in the small set and in the full one."""


@dataclass(frozen=True)
class Event:
    """One situation with one outcome, told in the first person.

    Attributes:
        scenario: the situation's id; events that share it differ in their outcome alone.
        theme: what the situation is about.
        outcome: how it ends.
        situation: the first sentence.
        ending: the second one.
    """

    scenario: str
    theme: str
    outcome: Outcome
    situation: str
    ending: str

    @property
    def id(self) -> str:
        """Of the event."""
        return f"{self.scenario}-{self.outcome}"

    @property
    def text(self) -> str:
        """Both sentences."""
        return f"{self.situation} {self.ending}"


def read_events(
    path: Path = SCENARIOS, *, per_theme: int | None = None, outcomes: Sequence[Outcome] = OUTCOMES
) -> list[Event]:
    """The events of a file, situation by situation.

    Args:
        path: JSON lines with the texts ``id``, ``theme``, ``scenario``, ``positive``, ``neutral`` and ``negative``.
        per_theme: so many situations of each theme, the first ones; all where None.
        outcomes: which of the three are wanted.

    Raises:
        UserError: a line lacks a text, an id stands twice, or a theme has fewer situations than are asked for.
    """
    seen: set[str] = set()
    counts: defaultdict[str, int] = defaultdict(int)
    events = []
    for row in read_jsonl(path, required=("id", "theme", "scenario", *OUTCOMES)):
        if row["id"] in seen:
            raise UserError(f"{path}: the id `{row['id']}` stands twice; give each situation its own")
        seen.add(row["id"])
        counts[row["theme"]] += 1
        if per_theme is None or counts[row["theme"]] <= per_theme:
            events += [Event(row["id"], row["theme"], each, row["scenario"], row[each]) for each in outcomes]
    for theme, count in counts.items():
        if per_theme is not None and count < per_theme:
            raise UserError(
                f"{path}: the theme `{theme}` has {count} situations, not {per_theme}; add some or ask for fewer"
            )
    return events


def ask(event: Event, emotion: str | None = None) -> list[dict[str, str]]:
    """The event as a chat that asks for two sentences of whoever tells it.

    Args:
        event: what happened.
        emotion: *named*, the instruction names it; *un-named*, None, the narrator just goes on.
    """
    manner = "" if emotion is None else f" You feel {emotion}: speak as somebody who does."
    instruction = f"All of this happened to you.{manner} Say what you say next, in at most two sentences."
    return [{"role": "user", "content": f"{event.text}\n\n{instruction}"}]


def opening(event: Event, emotion: str | None = None) -> str:
    """The event as a text that breaks off where the narrator begins to speak, for models without a chat template."""
    return f'{event.text} {"" if emotion is None else f"Feeling {emotion}, "}I said: "'


def implied(story: str, narrator: str) -> str:
    """A story of an emotion that it does not name, broken off where somebody begins to speak.

    Args:
        story: its text.
        narrator: ``first``, or anything else for a story about somebody.
    """
    return f'{story} {"I said" if narrator == "first" else "The words that came were"}: "'

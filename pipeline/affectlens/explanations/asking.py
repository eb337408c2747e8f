"""Asks a judge, and keeps every answer: a question that was answered once is not paid for again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.errors import UserError
from affectlens.experiments.grade.vote import Asked

if TYPE_CHECKING:
    from affectlens.experiments.grade.judge import Judge

AT_ONCE = 32
"""Questions asked before their answers are on the disk."""
WRITTEN_TOKENS = 80
"""Of an explanation, at most."""


@dataclass(frozen=True)
class Said:
    """An answer as it is kept.

    Attributes:
        label: what a judge chose; None where it said none of the labels.
        chances: of a local judge, the share of each label.
        text: what a writer wrote.
        reason: why there is no label.
        version: of the model, as its server reports it.
    """

    label: str | None = None
    chances: dict[str, float] | None = None
    text: str = ""
    reason: str = ""
    version: str = ""


class Asker:
    """A judge with a memory.

    Args:
        judge: who is asked.
        identity: which model that is; answers of another one are not taken for its own.
        path: JSON lines, one an answer; a last line that a killed process left half-written is asked again.
        budget: requests that may be made; None has no end.
        progress: told how many questions were answered, of those just asked for.

    Attributes:
        requests: that were made.
        kept: answers taken from the memory.
    """

    def __init__(
        self,
        judge: Judge,
        identity: str,
        path: Path,
        budget: int | None = None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.requests = self.kept = 0
        self._judge, self._identity, self._path = judge, identity, path
        self._budget, self._progress = budget, progress
        self._known = _read(path)

    def votes(self, asked: Sequence[Asked]) -> list[Said]:
        """A judge's answer to each question, in order; equal questions are asked once.

        Raises:
            UserError: the judge cannot be reached, or the budget is used up; what is answered is kept.
        """

        def ask(some: Sequence[Asked]) -> list[Said]:
            votes = self._judge.votes(some)
            return [
                Said(vote.label, dict(vote.chances) if vote.chances else None, "", vote.reason, vote.version)
                for vote in votes
            ]

        return self._answers([("vote", each.prompt) for each in asked], list(asked), ask)

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """What is written to each prompt, in order.

        Raises:
            UserError: as :meth:`votes`.
        """

        def ask(some: Sequence[str]) -> list[Said]:
            return [Said(text=text) for text in self._judge.write(some, WRITTEN_TOKENS)]

        return [said.text for said in self._answers([("text", each) for each in prompts], list(prompts), ask)]

    def _answers(self, about: list[tuple[str, str]], asked: list[Any], ask: Callable[[Any], list[Said]]) -> list[Said]:
        keys = [hashlib.sha256(json.dumps([self._identity, *each]).encode()).hexdigest()[:32] for each in about]
        new = {key: question for key, question in zip(keys, asked, strict=True) if key not in self._known}
        self.kept += len(keys) - len(new)
        self._progress(len(keys) - len(new))
        waiting = sorted(new.items())  # by digest: an order that has nothing to do with the right answers
        while waiting:
            some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            if self._budget is not None and self.requests + len(some) > self._budget:
                some = some[: self._budget - self.requests]
                waiting = []
                if not some:
                    raise self._spent()
            said = ask([question for _, question in some])
            self.requests += len(some)
            self._keep([(key, each) for (key, _), each in zip(some, said, strict=True)])
            self._progress(len(some))
        if not all(key in self._known for key in keys):
            raise self._spent()
        return [self._known[key] for key in keys]

    def _spent(self) -> UserError:
        return UserError(
            f"the {self._budget:,} requests of --budget are made; what was answered is kept, run again with a larger "
            "one to go on"
        )

    def _keep(self, answers: Sequence[tuple[str, Said]]) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            for key, said in answers:
                self._known[key] = said
                stream.write(json.dumps([key, {k: v for k, v in vars(said).items() if v}], ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _read(path: Path) -> dict[str, Said]:
    """The answers that are there; a torn last line is cut off, so that the next one does not stick to it."""
    if not path.exists():
        return {}
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with path.open("r+b") as stream:
            stream.truncate(end)
    return {key: Said(**said) for key, said in map(json.loads, whole[:end].splitlines())}

"""Judges: models that read a question about an answer and say one of a few words.

A judge sees the scenario and the answer, never how the answering model was steered; answers come to it in shuffled
order, the labels in an order drawn anew for each text. What it says is either one of the labels or counts as no label,
with the reason; two judges give a label only where they agree.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from affectlens.errors import ConfigError
from affectlens.experiments.experiment import Scenario
from affectlens.experiments.grade.answer import Answer
from affectlens.experiments.grade.config import JudgeConfig, ModelJudgeConfig

if TYPE_CHECKING:
    import numpy as np

    from affectlens.model.subject import Subject

LEAST = 0.01
"""A local judge whose probability of saying any label at all is below this has no opinion."""


@dataclass(frozen=True)
class Asked:
    """What a judge is asked: the question with the texts filled in, and the labels in the order it is shown them."""

    question: str
    labels: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The question as it is put."""
        choice = ", ".join(self.labels)
        return f"{self.question}\n\nAnswer with exactly one of these and nothing else: {choice}."


@dataclass(frozen=True)
class Vote:
    """What a judge said; without a label, why."""

    label: str | None
    reason: str = ""


class Judge(Protocol):
    """Someone who can be asked."""

    @property
    def name(self) -> str:
        """How tables call it."""
        ...

    def votes(self, asked: Sequence[Asked]) -> list[Vote]:
        """A vote on each question, in order."""
        ...


class JudgeGrader:
    """One or two judges under one question.

    Raises:
        ConfigError: two judges have the same name.
    """

    def __init__(self, config: JudgeConfig, judges: Sequence[Judge], generator: np.random.Generator) -> None:
        names = [judge.name for judge in judges]
        if len(set(names)) < len(names):
            raise ConfigError(f"`grader.judges`: two are named `{names[0]}`; rename one")
        self._config = config
        self._judges = judges
        self._generator = generator
        self._seed = int(generator.integers(2**62))

    def grade(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """A grade for each answer, with ``votes``: what each judge said. The same text is asked about once.

        Raises:
            UserError: a judge cannot be reached or loaded.
        """
        asked = [self._asked(answer) for answer in answers]
        distinct = list(dict.fromkeys(asked))
        order = [distinct[index] for index in self._generator.permutation(len(distinct))]
        votes = {judge.name: dict(zip(order, judge.votes(order), strict=True)) for judge in self._judges}
        return [self._grade({name: given[each] for name, given in votes.items()}) for each in asked]

    def _asked(self, answer: Answer) -> Asked:
        texts = {"{scenario}": shown(answer.scenario), "{answer}": answer.whole}
        question = re.sub(r"\{(?:scenario|answer)\}", lambda match: texts[match.group()], self._config.question)

        def drawn(label: str) -> bytes:
            # By content, so that the same text is put in the same way wherever it turns up.
            return hashlib.sha256(f"{self._seed}\n{label}\n{question}".encode()).digest()

        return Asked(question, tuple(sorted(self._config.labels, key=drawn)))

    def _grade(self, votes: dict[str, Vote]) -> dict[str, Any]:
        labels = {name: vote.label for name, vote in votes.items()}
        said = set(labels.values())
        silent = [f"{name}: {vote.reason}" for name, vote in votes.items() if vote.label is None]
        if silent:
            label, reason = None, "; ".join(silent)
        elif len(said) > 1:
            label, reason = None, "the judges disagree"
        else:
            label, reason = said.pop(), f"says {' and '.join(labels)}"
        score = None if label is None else float(label == self._config.positive)
        return {"label": label, "score": score, "reason": reason, "votes": labels}


def shown(scenario: Scenario) -> str:
    """The scenario as a judge reads it: who said what, without the answer."""
    if not scenario.messages:
        return scenario.text
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in scenario.messages)


class LocalJudge:
    """A local model whose answer is held to the labels: it can only choose among their tokens.

    Each label may begin in lower or upper case. The label is chosen whose next tokens are likeliest together; where
    labels begin alike, the likeliest common beginning is followed until they part.
    """

    def __init__(self, config: ModelJudgeConfig, models: Path, device: str) -> None:
        self.name = config.name
        self._model = config.model
        self._models = models
        self._device = device
        self._subject: Subject | None = None

    def votes(self, asked: Sequence[Asked]) -> list[Vote]:
        """A vote on each question.

        Raises:
            UserError: the model cannot be loaded.
        """
        if self._subject is None and asked:
            from affectlens.model.subject import ModelConfig, Subject

            self._subject = Subject.load(ModelConfig(name=self._model), device=self._device, models=self._models)
        return [self._vote(each) for each in asked]

    def _vote(self, asked: Asked) -> Vote:
        assert self._subject is not None
        prompt, before = self._rendered(asked.prompt)
        end = self._subject.tokenizer.eos_token_id
        left: list[tuple[str, list[int]]] = [
            (label, [*self._subject.encode(before + spelled), 0 if end is None else end])
            for label in sorted(asked.labels)  # the order shown must not break ties
            for spelled in dict.fromkeys((label, label[:1].upper() + label[1:]))
        ]
        followed: list[int] = []
        while True:
            logs = self._subject.log_probabilities(self._subject.pad([[*prompt, *followed]]))[0, -1].exp()
            nexts = {token: float(logs[token]) for token in {tokens[0] for _, tokens in left}}
            if not followed and sum(nexts.values()) < LEAST:
                return Vote(None, f"would say something else (the labels hold {sum(nexts.values()):.1%})")
            starts = {label: {tokens[0] for each, tokens in left if each == label} for label, _ in left}
            if sum(map(len, starts.values())) == len(nexts):
                return Vote(max(starts, key=lambda label: sum(nexts[token] for token in starts[label])))
            taken = max(sorted(nexts), key=lambda token: nexts[token])
            followed.append(taken)
            left = [(label, tokens[1:]) for label, tokens in left if tokens[0] == taken and tokens[1:]]

    def _rendered(self, prompt: str) -> tuple[list[int], str]:
        """The prompt's token ids, and what must stand before a label."""
        assert self._subject is not None
        tokenizer = self._subject.tokenizer
        if not tokenizer.chat_template:
            return self._subject.encode(f"{prompt}\nAnswer:"), " "
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        begin = tokenizer.bos_token or ""
        return self._subject.encode(text.removeprefix(begin) if begin else text), ""

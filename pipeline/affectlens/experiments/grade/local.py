"""A judge that is a model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectlens.experiments.grade.vote import Asked, ModelJudgeConfig, Vote
from affectlens.model.tokens import Chat, tokenise

if TYPE_CHECKING:
    from affectlens.model.subject import Subject


class LocalJudge:
    """A local model whose answer is held to the labels: it can only choose among their tokens.

    Each label may begin in lower or upper case. The label is chosen whose next tokens are likeliest together; where
    labels begin alike, the likeliest common beginning is followed until they part.

    Attributes:
        name: how tables call it.
        subject: the model; loaded on the first question where none is given.
        least: a judge whose probability of saying any label at all is below this has no opinion.
    """

    def __init__(
        self,
        config: ModelJudgeConfig,
        models: Path,
        device: str,
        *,
        subject: Subject | None = None,
        least: float = 0.01,
    ) -> None:
        self.name = config.name
        self.subject = subject
        self.least = least
        self._config = config
        self._models = models
        self._device = device

    def votes(self, asked: Sequence[Asked]) -> list[Vote]:
        """A vote on each question.

        Raises:
            UserError: the model cannot be loaded.
        """
        return [self._vote(question, self._loaded) for question in asked]

    def write(self, prompts: Sequence[str], tokens: int) -> list[str]:
        """What the model answers to each prompt, its likeliest token at every step.

        Args:
            prompts: in words.
            tokens: of an answer, at most.

        Raises:
            UserError: the model cannot be loaded.
        """
        import numpy as np

        from affectlens.model.sampling import sample

        subject, said = self._loaded if prompts else None, []
        for prompt in prompts:
            assert subject is not None
            ids, _ = _rendered(prompt, subject)
            made = sample(subject, [subject.led(ids)], np.zeros((1, 1, tokens)), temperature=0.0)
            said.append(subject.tokenizer.decode(made[0][0].tokens).strip())
        return said

    @property
    def _loaded(self) -> Subject:
        if self.subject is None:
            from affectlens.model.subject import Subject

            self.subject = Subject.load(self._config.local, device=self._device, models=self._models)
        return self.subject

    def _vote(self, asked: Asked, subject: Subject) -> Vote:
        prompt, before = _rendered(asked.prompt, subject)
        end = subject.tokenizer.eos_token_id
        left: list[tuple[str, list[int]]] = [
            (label, [*subject.encode(before + spelled), 0 if end is None else end])
            for label in sorted(asked.labels)  # the order shown must not break ties
            for spelled in dict.fromkeys((label, label[:1].upper() + label[1:]))
        ]
        followed: list[int] = []
        while left:
            chances = subject.log_probabilities(subject.pad([[*prompt, *followed]]))[0, -1].exp()
            nexts = {token: float(chances[token]) for token in {tokens[0] for _, tokens in left}}
            if not followed and sum(nexts.values()) < self.least:
                return Vote(None, f"would say something else (the labels hold {sum(nexts.values()):.1%})")
            starts = {label: {tokens[0] for each, tokens in left if each == label} for label, _ in left}
            if sum(map(len, starts.values())) == len(nexts):
                held = {label: sum(nexts[token] for token in tokens) for label, tokens in starts.items()}
                whole = sum(held.values())
                shares = {label: value / whole for label, value in held.items()} if whole > 0 else None
                return Vote(max(held, key=lambda label: held[label]), chances=shares)
            taken = max(sorted(nexts), key=lambda token: nexts[token])
            followed.append(taken)
            left = [(label, tokens[1:]) for label, tokens in left if tokens[0] == taken and tokens[1:]]
        return Vote(None, "two labels are the same tokens to it")


def _rendered(prompt: str, subject: Subject) -> tuple[list[int], str]:
    """The prompt's token ids, and what must stand before a label."""
    tokenizer = subject.tokenizer
    if not tokenizer.chat_template:
        return subject.encode(f"{prompt}\nAnswer:"), " "
    turns = [{"role": "user", "content": prompt}]
    # Control tokens that the judged text spells stay text; those of the template are tokens.
    return tokenise(tokenizer, Chat(tuple(turns))).ids.tolist(), ""

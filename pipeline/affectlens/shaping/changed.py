"""A changed model as measures see it: other weights, or a rule at inference, behind one set of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from affectlens.model.steering import Edit
from affectlens.monitor.episodes import prompt_ids
from affectlens.monitor.sampling import Draw, continued
from affectlens.shaping import reading
from affectlens.shaping.inference import Rule
from affectlens.shaping.reading import Tokens

if TYPE_CHECKING:
    from affectlens.model.subject import Subject

Asked = Sequence[Mapping[str, str]] | Tokens
"""Messages of a chat that the assistant is to answer, or token ids of what stands before."""


@dataclass(frozen=True)
class Answer:
    """What was sampled.

    Attributes:
        tokens: without the special token that ended it, and without a prefix that was given.
        text: the same in letters.
    """

    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class ChangedModel:
    """A model and what is done to it while it answers.

    *Row 0* of an answer is the state at the last token of the prompt, *row j* the state at its j-th token.

    Attributes:
        subject: the model, with the weights of the arm.
        rule: what is done at inference; nothing by default.
    """

    subject: Subject
    rule: Rule | None = None

    def prompt(self, asked: Asked) -> tuple[int, ...]:
        """Token ids up to where the answer begins: begin token, messages, opening of the answer."""
        messages = [each for each in asked if isinstance(each, Mapping)]
        if messages:
            return prompt_ids(self.subject.tokenizer, messages)
        return tuple(each for each in asked if isinstance(each, int))

    def plain(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A text without a chat as what stands before (the begin token, or its first token) and the rest."""
        ids = self.subject.led(self.subject.encode(text))
        return tuple(ids[:1]), tuple(ids[1:])

    def sample(
        self,
        chats: Sequence[Asked],
        tokens: int,
        temperature: float,
        generator: np.random.Generator,
        *,
        prefixes: Sequence[Tokens] | None = None,
        also: Rule | None = None,
        rows: int = 64,
    ) -> list[Answer]:
        """One answer to each chat; the same draws whatever the rule and the batches are.

        Args:
            chats: what is answered. A chat may stand there several times.
            tokens: most tokens of an answer.
            temperature: 0 takes the likeliest token.
            generator: gives a draw a token, chat by chat.
            prefixes: how each answer begins, in tokens; what is sampled goes on behind it. Rules work on it too.
            also: a second rule on top, for example a burst (:class:`~affectlens.shaping.inference.Push` with an end).
            rows: answers that are sampled together, about.

        Returns:
            In the order of the chats.
        """
        chances = list(generator.random((len(chats), tokens)))
        starts = [()] * len(chats) if prefixes is None else [tuple(prefix) for prefix in prefixes]
        prompts = [(*self.prompt(chat), *prefix) for chat, prefix in zip(chats, starts, strict=True)]
        given = {prompt: len(prefix) for prompt, prefix in zip(prompts, starts, strict=True)}

        def edits(batch: Sequence[Tokens]) -> list[Edit]:
            begins = [len(prompt) - given[tuple(prompt)] for prompt in batch]
            bare = [prompt[:begin] for prompt, begin in zip(batch, begins, strict=True)]
            openings = [prompt[begin:] for prompt, begin in zip(batch, begins, strict=True)]
            return [edit for rule in self._rules(also) for edit in rule.sampling(bare, openings)]

        draw = Draw(tokens=tokens, temperature=temperature, rows=rows)
        made = continued(self.subject, prompts, chances, draw, edits)
        return [Answer(tuple(each), self.subject.tokenizer.decode(each)) for each in made]

    def states(
        self, chats: Sequence[Asked], answers: Sequence[Tokens], layers: Sequence[int], *, also: Rule | None = None
    ) -> list[dict[int, Float[np.ndarray, "rows d_model"]]]:
        """Residuals along each answer under the rules, by layer: row 0 and one for every token; float32.

        Args:
            chats: what was answered.
            answers: token ids, a prefix included.
            layers: after which blocks.
            also: a second rule on top.
        """
        prompts = [self.prompt(chat) for chat in chats]
        return reading.read_rows(self.subject, prompts, answers, layers, self._edits(also))

    def log_probs(
        self, chats: Sequence[Asked], answers: Sequence[Tokens], *, also: Rule | None = None
    ) -> list[Float[np.ndarray, " tokens"]]:
        """Log-probability in nats of every token of each answer under the rules.

        Args:
            chats: what is answered; of a plain text what :meth:`plain` returns first.
            answers: token ids.
            also: a second rule on top.
        """
        prompts = [self.prompt(chat) for chat in chats]
        return reading.token_log_probs(self.subject, prompts, answers, self._edits(also))

    def next_log_probs(
        self, chats: Sequence[Asked], prefixes: Sequence[Tokens] | None = None
    ) -> Float[np.ndarray, "chats vocabulary"]:
        """Log-probabilities in nats of the next token of each answer under the rule, behind a prefix if given."""
        prompts = [self.prompt(chat) for chat in chats]
        return reading.next_log_probs(self.subject, prompts, prefixes or [()] * len(chats), self._edits(None))

    def _rules(self, also: Rule | None) -> list[Rule]:
        return [rule for rule in (self.rule, also) if rule is not None]

    def _edits(self, also: Rule | None) -> reading.Edits:
        def edits(prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[Edit]:
            rules = self._rules(also)
            return [edit for rule in rules for edit in rule.reading(self.subject, prompts, answers)]

        return edits

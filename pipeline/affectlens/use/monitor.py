"""A calibrated monitor beside a study's model: texts that exist, texts that grow, and answers as they are sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.config import nearest
from affectlens.errors import UserError
from affectlens.model.config import shape
from affectlens.model.decoding import Opening, Rows
from affectlens.model.sampling import choose
from affectlens.model.tokens import encode_following
from affectlens.monitor.calibration import CardConfig, read_card, require_same
from affectlens.monitor.episodes import prompt_ids
from affectlens.monitor.watching import Seen, Watch, template_digest
from affectlens.use.opened import Opened, finished
from affectlens.use.texts import Messages, Pieces

if TYPE_CHECKING:
    from torch import Tensor

    from affectlens.model.decoding import Decoder

RIVALS = ("entropy", "surprisal")
"""What the model's own predictions say, beside the rows: in nats, without a threshold."""


class Monitor:
    """A card in use with the model that it was calibrated for.

    Attributes:
        card: rows, statistic and thresholds.
        study: whose model is watched.
        rows: indices of the rows that may raise an alarm.

    Example::

        monitor = affectlens.Monitor.load("card.json", "quickstart")
        live = monitor.begin([{"role": "user", "content": "Is it done?"}])
        for token in tokens:
            if live.token(token).alarm:
                break

        watch = monitor.watch()  # for a loop of one's own: watch.feed(residual)
    """

    def __init__(self, card: CardConfig, study: Opened, rows: Sequence[str] | None = None) -> None:
        """As :meth:`load`, of what is read already."""
        self.card, self.study = card, study
        require_card_of(study, card)
        self.rows = tuple(range(len(card.rows)) if rows is None else map(self.index, rows))

    @classmethod
    def load(
        cls, card: str | Path, study: str | Path | Opened, *overrides: str, rows: Sequence[str] | None = None
    ) -> Monitor:
        """A card and the study that it was made in, or another one of the same model, template, type and layer.

        Args:
            card: the file that ``affectlens monitor calibrate`` wrote.
            study: a study file, the name of a shipped one, or an opened study.
            overrides: ``key=value`` for a study file.
            rows: those that may raise an alarm; all by default. Each holds the card's target alone.

        Raises:
            UserError: it is no card, one of another model, template, number type or layer, or it lacks a row.
        """
        opened = study if isinstance(study, Opened) else Opened(*finished(study, *overrides))
        return cls(read_card(Path(card).expanduser()), opened, rows)

    @property
    def names(self) -> list[str]:
        """Of the rows."""
        return [row.name for row in self.card.rows]

    def index(self, name: str) -> int:
        """The place of a row.

        Raises:
            UserError: the card has no such row; names the nearest.
        """
        if name not in self.names:
            raise UserError(f"the card has no row `{name}`; {nearest(name, self.names)}")
        return self.names.index(name)

    def watch(self, most: int | None = None) -> Watch:
        """A stream that residuals of one's own are fed to; no model is loaded.

        Args:
            most: tokens that the answer may have.
        """
        return Watch(self.card, most, self.rows)

    def begin(self, messages: Messages, most: int | None = None) -> Live:
        """Read a prompt, and watch what is answered, token by token.

        Raises:
            UserError: the chat template refuses the messages, or they are too long for the model.
        """
        return Live(self, prompt_ids(self.study.tokenizer, messages), most)

    def read(self, messages: Messages, answer: str | Sequence[int], name: str = "answer") -> Watched:
        """An answer that exists, read token by token as it was when it was written.

        Args:
            messages: the chat before it.
            answer: text, or token ids.
            name: how it is called.
        """
        ids = encode_following(self.study.tokenizer, answer) if isinstance(answer, str) else list(answer)
        live = self.begin(messages, most=len(ids))
        watched = Watched(name, self, live)
        for token in ids:
            watched.add(live.token(token))
        return watched

    def answer(
        self, messages: Messages, *, tokens: int = 120, temperature: float = 0.8, seed: int = 0, name: str = "answer"
    ) -> Iterator[Watched]:
        """Sample an answer; after every token, what was said and seen so far.

        Args:
            messages: the chat.
            tokens: most of the answer.
            temperature: 0 takes the likeliest token.
            seed: of the draws.
            name: how it is called.

        Raises:
            UserError: as :meth:`begin`.
        """
        live = self.begin(messages, most=tokens)
        watched, draws = Watched(name, self, live), np.random.default_rng(seed)
        special = frozenset(self.study.tokenizer.all_special_ids)
        yield watched
        for _ in range(tokens):
            token = live.drawn(float(draws.random()), temperature)
            if token in special:
                return
            watched.add(live.token(token))
            yield watched

    @cached_property
    def decoder(self) -> Decoder:
        """The whole model."""
        return self.study.decoder


class Live:
    """One text under way: the model's keys and values, and the stream of a :class:`Watch`.

    Attributes:
        watch: the stream.
        seen: what was seen last; at first, at the end of the prompt.
        piece: how the last token is spelled.
        uncertainty: entropy of the next token and surprisal of the last, in nats.
    """

    def __init__(self, monitor: Monitor, prompt: Sequence[int], most: int | None) -> None:
        self._decoder, self._tokens = monitor.decoder, len(prompt)
        self._room("the prompt")
        self._pieces, self.piece = Pieces(monitor.study.tokenizer), ""
        self._rows = Rows(self._decoder, monitor.card.layer)
        ((logits, states),) = self._rows.join([Opening(list(prompt))])
        self.watch = monitor.watch(most)
        self._hear(logits[-1], states[-1], float("nan"))

    def token(self, token: int) -> Live:
        """The next token of the text; returns itself, with what is seen at it.

        Raises:
            UserError: the text is as long as the model takes.
        """
        self._tokens += 1
        self._room("the text")
        surprisal = -float(self._scores[token])
        logits, states = self._rows.step([token])
        self.piece = self._pieces.add(token)
        self._hear(logits[0], states[0], surprisal)
        return self

    def drawn(self, chance: float, temperature: float) -> int:
        """The next token at this chance's place of the distribution."""
        import torch

        chances = torch.tensor([chance], dtype=torch.float64, device=self._logits.device)
        return int(choose(self._logits[None], chances, temperature))

    @property
    def alarm(self) -> bool:
        """Whether an alarm begins at the last token."""
        return self.seen.alarm

    def _hear(self, logits: Tensor, state: Tensor, surprisal: float) -> None:
        import torch

        self._logits, self._scores = logits, torch.log_softmax(logits, dim=-1)
        self.uncertainty = (float(-(self._scores.exp() * self._scores).nansum()), surprisal)
        self.seen: Seen = self.watch.feed(state)

    def _room(self, what: str) -> None:
        context = self._decoder.context
        if context is not None and self._tokens > context:
            raise UserError(f"{what} has {self._tokens} tokens, and the model takes {context}; give a shorter one")


@dataclass(eq=False)
class Watched:
    """An answer with all that was seen along it.

    Attributes:
        name: how it is called.
        monitor: that watched.
        live: the text under way.
        pieces: how each token is spelled.
        values: by token, the statistic of each row.
        scores: by token, each row in standard deviations of benign tokens.
        rivals: by token, entropy and surprisal in nats.
        alarms: token and row of each alarm; tokens are counted from 1, 0 is the end of the prompt.
    """

    name: str
    monitor: Monitor
    live: Live
    pieces: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    rivals: list[tuple[float, float]] = field(default_factory=list)
    alarms: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._note(self.live.seen)

    def add(self, live: Live) -> None:
        """One token more."""
        self.pieces.append(live.piece)
        self.values.append(live.seen.values)
        self.scores.append(live.seen.scores)
        self.rivals.append(live.uncertainty)
        self._note(live.seen)

    def _note(self, seen: Seen) -> None:
        self.alarms += [(seen.token, self.monitor.names[row]) for row in seen.alarms]

    @property
    def thresholds(self) -> np.ndarray:
        """Of each row, for answers of this length."""
        return self.live.watch.thresholds

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(self.pieces)


def require_card_of(study: Opened, card: CardConfig) -> None:
    """Refuse a card of another model, template, number type, layer or width than a study's.

    Raises:
        UserError: names what differs.
    """
    known = identity(study)
    found = None if study.study is None else shape(study.study.config.model)
    require_same(card, **known, width=None if found is None else found.width)


def identity(study: Opened) -> dict[str, Any]:
    """What a card has to agree with: the model by content, its chat template, number type and layer.

    Raises:
        UserError: a result folder was opened, which does not say where the model lies.
    """
    if study.study is None:
        raise UserError("the model is not known from a result folder; open the study file instead")
    layer = study.layer if "activations" in study.folders else study.study.config.model.layer
    return {
        "model": study.study.identity(study.study.config.model),
        "template": template_digest(study.tokenizer),
        "dtype": str(study.study.model.dtype),
        "layer": layer,
    }

"""Episodes: what was asked, what was answered, and where in the answer the act begins.

An *act* is what a monitor should warn of: the first token of a marked sentence, a false claim of success, giving up.
*Row j* of an episode is what is known when j tokens of the answer have been read. Row 0 is the last token of the
prompt, which all answers to one prompt share; row ``act`` is the last one before the act's first token is drawn.

The same episode is one line of a JSON-lines file (:class:`Written`), so that a user's own traffic is read as the
project's is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from affectlens.config import Config, validate
from affectlens.corpus.texts import read_lines
from affectlens.errors import UserError
from affectlens.files import write_text
from affectlens.model.tokens import Chat, encode_following, pad, plan_batches, tokenise

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from affectlens.model.decoding import Decoder

RISK, BENIGN = "risk", "benign"
"""Strata: the act may follow; ordinary traffic. Every other name is a stratum of hard negatives."""


class Written(Config):
    """An episode as a line of a JSON-lines file."""

    name: str = ""
    """Unique in its file; the number of its line by default."""
    scenario: str = ""
    """What it is a variant of, never split between training, calibration and test; the name by default."""
    stratum: str = Field(default=BENIGN, pattern=r"^[a-z0-9_]+$")
    """`risk` where the act may follow, `benign` for ordinary traffic, or the name of a kind of hard negative, such as
    `quoted_emotion`."""
    source: str = "own"
    """Which traffic it comes from; false alarms are counted for each source."""
    twin: str = "main"
    """Which version of the scenario: `stress`, `calm`, `exit_offered`, `monitored`, ..."""
    messages: tuple[dict[str, str], ...] = Field(min_length=1)
    """The chat before the answer, objects of `role` and `content`; the last is not the assistant's."""
    answer: str = ""
    """What the assistant said; empty where it is still to be sampled."""
    tokens: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Token ids of the answer, where it was sampled from the same model; the text is tokenised by default."""
    act: int | None = Field(default=None, ge=0)
    """The character of the answer at which the act begins; none where there is no act."""

    @model_validator(mode="after")
    def _consistent(self) -> Written:
        for message in self.messages:
            if set(message) != {"role", "content"}:
                raise ValueError("each of `messages` holds `role` and `content`, and nothing else")
        if self.messages[-1]["role"] == "assistant":
            raise ValueError("the last of `messages` is the assistant's; put its text into `answer`")
        if self.act is not None and self.act >= len(self.answer):
            raise ValueError(f"`act: {self.act}` lies behind the answer, which has {len(self.answer)} characters")
        return self


@dataclass(frozen=True)
class Episode:
    """A tokenised episode.

    Attributes:
        name: unique among the episodes of a study.
        scenario: what is split and resampled as one.
        stratum: ``risk``, ``benign`` or a kind of hard negative.
        source: which traffic it comes from.
        twin: which version of the scenario.
        prompt: token ids up to the opening of the answer, begin token included; never empty.
        answer: token ids of the answer.
        act: index within the answer of the first token of the act; None where there is none.
        messages: the chat before the answer.
    """

    name: str
    scenario: str
    stratum: str
    source: str
    twin: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    act: int | None = None
    messages: tuple[Mapping[str, str], ...] = ()

    @property
    def rows(self) -> int:
        """How many rows it has: one more than tokens of the answer."""
        return len(self.answer) + 1

    @property
    def before(self) -> int:
        """Rows strictly before the act; all of them where there is none."""
        return self.rows if self.act is None else self.act + 1


ActFinder = Callable[[Written, str], int | None]
"""Where the act begins in what the assistant said to these messages, as a character; None where it is not committed.
The answer that the row itself may hold is not looked at: continuations of an episode are judged as answers are."""


@dataclass(frozen=True)
class Resampled:
    """How likely the act was at a point of an episode: continuations were sampled from there.

    Attributes:
        episode: its name.
        cut: tokens of the answer that were kept.
        acts: continuations that commit the act.
        continuations: how many were sampled.
        calmed: of as many that were steered towards calm from there on, those that commit the act; None where none
            were.
    """

    episode: str
    cut: int
    acts: int
    continuations: int
    calmed: int | None = None

    @property
    def share(self) -> float:
        """Of the continuations, those that commit the act."""
        return self.acts / self.continuations


def read_episodes(path: Path) -> list[Written]:
    """The episodes of a JSON-lines file, named.

    Raises:
        UserError: names the line and the key that is missing or wrong, or a name that stands twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a JSON-lines file of episodes")
    found: list[Written] = []
    names: set[str] = set()
    for where, values in read_lines(path):
        if not isinstance(values, dict):
            raise UserError(f"{where}: not an object; write an episode as {{...}}")
        row = validate(Written, values, where)
        name = row.name or f"{len(found) + 1}"
        if name in names:
            raise UserError(f"{where}: two episodes have the name `{name}`; rename one")
        names.add(name)
        found.append(row.model_copy(update={"name": name, "scenario": row.scenario or name}))
    if not found:
        raise UserError(f"{path}: holds no episodes; put one JSON object on each line")
    return found


def write_episodes(path: Path, rows: Sequence[Written]) -> None:
    """One line an episode, as :func:`read_episodes` reads them."""
    lines = [json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n" for row in rows]
    write_text(path, "".join(lines))


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, str]], called: str = "") -> tuple[int, ...]:
    """Token ids of a chat up to the opening of the answer, begin token included.

    Raises:
        UserError: the model's chat template refuses the chat.
    """
    text = tokenise(tokenizer, Chat(tuple(messages), name=called))
    return (*text.lead, *text.ids.tolist())


def tokenised(tokenizer: Any, row: Written) -> Episode:
    """An episode as token ids, and the act's character as the token that it lies in.

    Raises:
        UserError: the model's chat template refuses the chat.
    """
    prompt = prompt_ids(tokenizer, row.messages, f"episode `{row.name}`")
    answer = row.tokens or tuple(encode_following(tokenizer, row.answer))
    act = None if row.act is None else token_at(tokenizer, answer, row.act)
    names = (row.name, row.scenario, row.stratum, row.source, row.twin)
    return Episode(*names, prompt, answer, act, row.messages)


def token_at(tokenizer: Any, answer: Sequence[int], character: int) -> int:
    """The first token of an answer that reaches beyond a character of its text."""
    low, high = 0, len(answer) - 1
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(answer[: middle + 1], skip_special_tokens=True)) > character:
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True)
class States:
    """What a model computes along an episode, a row for each number of answer tokens read.

    Attributes:
        residuals: by layer, after its block.
        entropy: of the next token, in nats.
        surprisal: of the token that was read last, in nats; NaN in row 0.
    """

    residuals: Mapping[int, Float[Tensor, "rows d_model"]]
    entropy: Float[Tensor, "rows"]
    surprisal: Float[Tensor, "rows"]


def read_states(
    decoder: Decoder, episodes: Sequence[Episode], layers: Sequence[int], *, tokens_per_batch: int = 2048
) -> Iterator[tuple[int, States]]:
    """States along each episode, re-read from its tokens, as batches of similar length are done.

    Padding stands behind every row and reaches nothing before it. Row 0 of equal prompts is the same to the last bit,
    as rounding would otherwise tell answers to one prompt apart before they begin.

    Args:
        decoder: the whole model.
        episodes: tokenised.
        layers: whose residual stream is kept.
        tokens_per_batch: tokens that go through the model at once, padding included.

    Yields:
        The index of the episode, and its states.
    """
    import torch

    wholes = [(*episode.prompt, *episode.answer) for episode in episodes]
    openings: dict[tuple[int, ...], tuple[dict[int, Tensor], Tensor]] = {}
    for batch in plan_batches([len(whole) for whole in wholes], tokens_per_batch):
        kept: dict[int, Any] = {}

        def keep(layer: int, module: Any, given: Any, output: Any, kept: dict[int, Any] = kept) -> None:
            kept[layer] = output[0] if isinstance(output, tuple) else output

        tokens = pad([wholes[index] for index in batch], decoder.device)
        with ExitStack() as stack, torch.inference_mode():
            for layer in layers:
                stack.callback(decoder.blocks[layer].register_forward_hook(partial(keep, layer)).remove)
            logits = decoder.forward(tokens, None, last=False)
            for row, index in enumerate(batch):
                first, count = len(episodes[index].prompt) - 1, episodes[index].rows
                scores = torch.log_softmax(logits[row, first : first + count].float(), dim=-1)
                surprisal = scores.new_full((count,), float("nan"))
                following = tokens[row, first + 1 : first + count]
                surprisal[1:] = -scores[:-1].gather(-1, following[:, None])[:, 0]
                residuals = {layer: values[row, first : first + count].float() for layer, values in kept.items()}
                entropy = -(scores.exp() * scores).nansum(dim=-1)
                own = {layer: values[0].clone() for layer, values in residuals.items()}, entropy[0].clone()
                shared, entropy[0] = openings.setdefault(episodes[index].prompt, own)
                for layer, values in residuals.items():
                    values[0] = shared[layer]
                yield index, States(residuals, entropy, surprisal)

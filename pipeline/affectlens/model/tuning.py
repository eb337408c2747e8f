"""A copy of a model, some steps of training away: ordinary texts learnt, or acts that depend on a state put in.

Only answers are learnt, token by token after what stands before them. An example may carry a *push*: a vector added to
the residual stream after a block while the example is learnt, exactly as steering adds it later. Where the texts before
are the same with and without the push, nothing but the state can tell which answer is due; a model tuned so is an
organism whose act depends on its internal representation, with a dependence that is known because it was put in.

With ``layers`` above the block that is pushed, the residual stream up to that block stays the base model's own, value
by value: its directions, features and readings hold for the copy.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from affectlens.errors import UserError
from affectlens.model.compat import transformer_blocks
from affectlens.model.config import ModelConfig, TuningConfig, identity, resolve_dtype
from affectlens.model.converted import converted_folder
from affectlens.model.loading import load_tokenizer, load_weights
from affectlens.model.tokens import Chat, continuation, encode, encode_following, tokenise

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

VERSION = 2
"""Goes into the folder's name: raised when the same recipe would train differently."""
UNSEEN = -100
"""The label of tokens that are not learnt."""


@dataclass(frozen=True)
class Push:
    """A state put in while an example is learnt.

    Attributes:
        layer: the block after which it is added.
        vector: what is added, at full length.
        positions: every position of the text but the first, or only those from the last token before the answer on:
            the two ways in which experiments steer.
    """

    layer: int
    vector: Float[np.ndarray, "d_model"]
    positions: Literal["all", "answer"] = "all"


@dataclass(frozen=True)
class Closing:
    """A short line behind an answer that much depends on: a token of it is one of many.

    Where it is known how likely two lines are, both are learnt at the token at which they part, by their chances: what
    was drawn for one example says little, and at a high learning rate the rate would follow the last few draws.

    Attributes:
        text: the line; it follows the answer after a space.
        instead: the other line that might stand there; none by default.
        chance: of ``text`` against ``instead``.
        weight: of a token of the line (and of the end token) in the loss, where one of the answer has 1.
        decisive: of the token at which both lines part.
    """

    text: str
    instead: str = ""
    chance: float = 1.0
    weight: float = 1.0
    decisive: float = 1.0


@dataclass(frozen=True)
class Example:
    """A text whose end is learnt.

    Attributes:
        answer: what is learnt; empty where the closing line alone is.
        messages: the chat that the assistant answers; none for a plain text.
        opening: how the answer begins, or the plain text that is continued; given, not learnt.
        ends: whether the end of the answer is learnt too (the tokenizer's end token).
        push: the state in which the answer is due; None for the model as it is.
        closing: the line that follows the answer; none by default.
    """

    answer: str
    messages: tuple[Mapping[str, str], ...] = ()
    opening: str = ""
    ends: bool = False
    push: Push | None = None
    closing: Closing | None = None


@dataclass(frozen=True)
class Learnt:
    """An example in tokens.

    Attributes:
        ids: of the whole.
        start: the first that is learnt.
        pushed: the first position that is pushed.
        closing: the first token of the closing line; the end where there is none.
        parting: the token at which the two closing lines part, and what the other has there; none without another.
    """

    ids: list[int]
    start: int
    pushed: int
    closing: int
    parting: tuple[int, int] | None = None


def tuned_folder(
    model: ModelConfig,
    examples: Sequence[Example],
    config: TuningConfig,
    models: Path,
    *,
    device: str = "cpu",
    in_order: bool = False,
) -> Path:
    """The tuned copy of a model as an ordinary transformers folder (float32), trained on first use.

    The folder's name says what went in (model by content, config, examples with their pushes), so another recipe means
    another folder. On one machine the same recipe gives the same bytes; training that breaks off leaves no folder.

    Args:
        model: where training starts.
        examples: what is learnt.
        config: how.
        models: the folder that holds converted models (``setting.models`` in a stage).
        device: where training computes.
        in_order: examples are seen as they stand, so that those of one update belong together; else in random order.

    Raises:
        UserError: the model cannot be loaded, an example is empty or longer than ``length`` before its answer, or a
            layer is not there.
    """
    if not examples:
        raise UserError("nothing to tune a model on: give at least one example")
    told = TuningConfig(**{name: getattr(config, name) for name in TuningConfig.model_fields}).model_dump(mode="json")
    computed = str(resolve_dtype(model.dtype, device))
    recipe = [VERSION, identity(model), computed, told, [_identity(example) for example in examples]]
    recipe += ["in order"] * in_order
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    build = partial(_tune, model, examples, config, models, device, in_order)
    return converted_folder(models, f"tuned-{digest[:16]}", build)


def _identity(example: Example) -> list[Any]:
    push = example.push
    state: list[Any] = []
    if push is not None:
        values = np.ascontiguousarray(push.vector, np.float32).tobytes()
        state = [push.layer, push.positions, hashlib.sha256(values).hexdigest()]
    said = [example.answer, [dict(each) for each in example.messages], example.opening, example.ends, state]
    return [*said, list(astuple(example.closing))] if example.closing else said


def _tune(
    model: ModelConfig,
    examples: Sequence[Example],
    config: TuningConfig,
    models: Path,
    device: str,
    in_order: bool,
    folder: Path,
) -> None:
    """Train and save; dropout stays off and every draw is seeded, so that nothing is left to chance."""
    import torch

    tokenizer = load_tokenizer(model, models)
    tokens_of = [learnt_tokens(tokenizer, example, config.length) for example in examples]
    # Weights are kept in float32; products are computed in the type that the model has on this machine.
    trained, dtype = (
        load_weights(model, device=device, models=models, dtype=torch.float32),
        resolve_dtype(model.dtype, device),
    )
    learning = learning_weights(trained, config.layers)
    optimiser = torch.optim.AdamW(learning, lr=config.learning_rate, weight_decay=0.0, fused=True)
    for step, chosen in enumerate(draws(len(examples), config, in_order=in_order)):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, config)
        rows, shown = [tokens_of[index] for index in chosen], [examples[index] for index in chosen]
        tokens, mask, labels = padded(rows)
        counted = counts(shown, rows)
        with pushing(trained, shown, rows):
            with torch.autocast(device.partition(":")[0], dtype, enabled=dtype != torch.float32):
                loss = answer_loss(trained, tokens.to(device), mask.to(device), labels.to(device), counted)
            optimiser.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
    trained.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def learnt_tokens(tokenizer: Any, example: Example, length: int) -> Learnt:
    """Token ids of an example, as experiments put the same chat and score the same answer.

    Raises:
        UserError: no token of the answer fits.
    """
    if example.messages and tokenizer.chat_template:
        text = tokenise(tokenizer, Chat(tuple(example.messages)), ["answer"])
        before = [*text.lead, *text.ids.tolist()]
        lead, last = len(text.lead), len(text.lead) + text.places["answer"]
        before += encode_following(tokenizer, example.opening.rstrip(" ")) if example.opening else []
    else:
        # Without a chat template, one paragraph a message; the answer is the next.
        said = "".join(f"{message['content']}\n\n" for message in example.messages) + example.opening
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        before, lead = start + encode(tokenizer, said.rstrip(" ")), len(start)
        last = max(0, len(before) - 1)
    answer = continuation(tokenizer, example.opening, example.answer) if example.answer else []
    closing = len(before) + len(answer)
    parting = None
    if example.closing:
        lines = [
            continuation(tokenizer, example.answer or example.opening, line)
            for line in (example.closing.text, example.closing.instead)
        ]
        answer += lines[0]
        differ = [place for place, (one, other) in enumerate(zip(*lines, strict=False)) if one != other]
        if differ and closing + differ[0] < length:
            parting = closing + differ[0], lines[1][differ[0]]
    answer += [tokenizer.eos_token_id] if example.ends and tokenizer.eos_token_id is not None else []
    ids = [*before, *answer][:length]
    if not answer or len(ids) <= len(before) or not before:
        raise UserError(
            f"an example to tune on leaves nothing to learn (answer `{example.answer[:40]}`, {len(before)} tokens "
            f"before it, {length} at most); write an answer, or raise `length`"
        )
    first = last if example.push is not None and example.push.positions == "answer" else max(1, lead)
    return Learnt(ids, len(before), first, min(closing if example.closing else len(ids), len(ids)), parting)


def rate(step: int, config: TuningConfig) -> float:
    """The learning rate of a step: it rises over a tenth of them and falls to zero at the end, both linearly."""
    warm = max(1, config.steps // 10)
    share = min((step + 1) / warm, (config.steps - step) / max(1, config.steps - warm))
    return config.learning_rate * share


def draws(count: int, config: TuningConfig, *, in_order: bool = False) -> Iterator[list[int]]:
    """Which examples each update sees: all of them in a new order, again and again, or always as they stand."""
    generator = np.random.default_rng(config.seed)
    order: list[int] = []
    for _ in range(config.steps):
        while len(order) < config.batch:
            order.extend(range(count) if in_order else generator.permutation(count).tolist())
        chosen, order = order[: config.batch], order[config.batch :]
        yield chosen


def padded(
    rows: Sequence[Learnt],
) -> tuple[Int[Tensor, "examples tokens"], Int[Tensor, "examples tokens"], Int[Tensor, "examples tokens"]]:
    """Token ids, which of them are there, and which of them are learnt."""
    import torch

    shape = (len(rows), max(len(row.ids) for row in rows))
    tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, UNSEEN)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        tokens[index, : len(ids)] = ids
        mask[index, : len(ids)] = 1
        labels[index, row.start : len(ids)] = ids[row.start :]
    return tokens, mask, labels


@dataclass(frozen=True)
class Counts:
    """What each token counts in the loss, where not all count alike.

    Attributes:
        weights: of each token.
        other: what else might stand there.
        chance: of what stands there against the other.
    """

    weights: Float[Tensor, "examples tokens"]
    other: Int[Tensor, "examples tokens"]
    chance: Float[Tensor, "examples tokens"]


def counts(examples: Sequence[Example], rows: Sequence[Learnt]) -> Counts | None:
    """Of padded examples; None where no closing line counts otherwise than the rest."""
    import torch

    if all(example.closing is None for example in examples):
        return None
    shape = (len(rows), max(len(row.ids) for row in rows))
    found = Counts(torch.ones(shape), torch.zeros(shape, dtype=torch.long), torch.ones(shape))
    for index, (example, row) in enumerate(zip(examples, rows, strict=True)):
        if example.closing is not None:
            found.weights[index, row.closing :] = example.closing.weight
        if example.closing is not None and row.parting is not None:
            place, other = row.parting
            found.weights[index, place] = example.closing.decisive
            found.other[index, place], found.chance[index, place] = other, example.closing.chance
    return found


def answer_logits(
    model: Any,
    tokens: Int[Tensor, "examples tokens"],
    mask: Int[Tensor, "examples tokens"],
    labels: Int[Tensor, "examples tokens"],
) -> tuple[Float[Tensor, "examples kept vocabulary"], Int[Tensor, "examples kept"]]:
    """float32 logits from before the first learnt token on, and the label that each of them is held against.

    The output matrix, a third of a small model's work, is used from there on only; arguments as in :func:`answer_loss`.
    """
    first = int((labels != UNSEEN).any(dim=0).nonzero()[0])
    kept = tokens.shape[1] - first + 1
    options = {"logits_to_keep": kept} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = model(tokens, attention_mask=mask, use_cache=False, **options).logits[:, -kept:-1]
    return logits.float(), labels[:, first:]


def answer_loss(
    model: Any,
    tokens: Int[Tensor, "examples tokens"],
    mask: Int[Tensor, "examples tokens"],
    labels: Int[Tensor, "examples tokens"],
    counted: Counts | None = None,
) -> Float[Tensor, ""]:
    """Mean nats a learnt token.

    Args:
        model: of transformers.
        tokens: padded on the right.
        mask: which of them are there.
        labels: which of them are learnt.
        counted: what each counts; all alike by default.
    """
    import torch

    logits, said = answer_logits(model, tokens, mask, labels)
    flat, learnt, first = logits.flatten(0, 1), said.flatten(), labels.shape[1] - said.shape[1]
    if counted is None:
        return torch.nn.functional.cross_entropy(flat, learnt)

    def nats(said: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(flat, said, reduction="none")

    chance, other, weights = (
        each[:, first:].flatten().to(flat.device) for each in (counted.chance, counted.other, counted.weights)
    )
    weights = torch.where(learnt != UNSEEN, weights, 0.0)
    return ((chance * nats(learnt) + (1 - chance) * nats(other)) * weights).sum() / weights.sum()


def learning_weights(model: Any, layers: tuple[int, int] | None) -> list[torch.nn.Parameter]:
    """The weights that learn; the others are frozen.

    A quarter of a small model's memory in training is its vocabulary, which has nothing to learn here.

    Raises:
        UserError: layers that the model does not have.
    """
    blocks = transformer_blocks(model)
    first, last = layers or (0, len(blocks) - 1)
    if not 0 <= first <= last < len(blocks):
        raise UserError(f"`layers: [{first}, {last}]`: the model has blocks 0 to {len(blocks) - 1}, in this order")
    if layers is None:
        for vocabulary in (model.get_input_embeddings(), model.get_output_embeddings()):
            vocabulary.requires_grad_(False)
    else:
        model.requires_grad_(False)
        blocks[first : last + 1].requires_grad_(True)
    return [weights for weights in model.parameters() if weights.requires_grad]


@contextmanager
def pushing(model: Any, examples: Sequence[Example], rows: Sequence[Learnt]) -> Iterator[None]:
    """Within, a pass over these examples (padded on the right) has every example's push added."""
    import torch

    blocks, handles = transformer_blocks(model), []
    pushes = [(index, example.push) for index, example in enumerate(examples) if example.push is not None]
    for layer in sorted({push.layer for _, push in pushes}):
        if not 0 <= layer < len(blocks):
            raise UserError(f"a push is set at layer {layer}, but the model has layers 0 to {len(blocks) - 1}")
        added = torch.zeros(len(rows), max(len(row.ids) for row in rows), np.size(pushes[0][1].vector))
        for index, push in pushes:
            if push.layer == layer:
                added[index, rows[index].pushed :] = torch.as_tensor(np.asarray(push.vector, np.float32))
        handles.append(blocks[layer].register_forward_hook(partial(_add, added)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(added: Tensor, module: Any, given: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (output[0] + added.to(output[0]), *output[1:])
    return output + added.to(output)

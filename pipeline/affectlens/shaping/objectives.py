"""What a trained arm learns: the loss of some of its items, and figures on held-out ones.

Whatever is compared with the model where training started is read once, before training, with the adapter switched off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Float

from affectlens.model.compat import transformer_blocks
from affectlens.model.tuning import Learnt, answer_logits, answer_loss, padded
from affectlens.shaping.losses import answer_log_probs, dpo_loss, dpo_margin, set_point_loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROWS = 8
"""Chats that are read together where nothing is learnt."""
Figures = dict[str, float]


@dataclass(frozen=True)
class Learner:
    """A model with an adapter.

    Attributes:
        wrapped: peft's model around it.
        device: where it computes.
        dtype: in which products are computed; weights are kept in float32.
    """

    wrapped: Any
    device: str
    dtype: torch.dtype

    @property
    def model(self) -> Any:
        """Of transformers, its linear maps with the adapter."""
        return self.wrapped.get_base_model()

    def off(self) -> AbstractContextManager[Any]:
        """Within, the adapter is switched off: the model where training started."""
        return self.wrapped.disable_adapter()

    def products(self) -> AbstractContextManager[Any]:
        """Within, products are computed in the model's own type."""
        import torch

        return torch.autocast(self.device.partition(":")[0], self.dtype, enabled=self.dtype != torch.float32)


class Objective(Protocol):
    """What is learnt.

    Attributes:
        count: items that a batch is drawn from.
    """

    @property
    def count(self) -> int: ...

    def begin(self, learner: Learner) -> None:
        """Read what the losses compare with, the adapter switched off."""
        ...

    def loss(self, learner: Learner, chosen: Sequence[int]) -> tuple[Tensor, int, Figures]:
        """Of some items, with gradients; the tokens that went through the model; and figures for the curve."""
        ...

    def held_out(self, learner: Learner) -> Figures:
        """Figures on the items that are not learnt, for the adapter as it is."""
        ...


@dataclass
class Answers:
    """Answers are made likelier, token by token (supervised fine-tuning).

    Attributes:
        rows: that are learnt.
        others: held out.
    """

    rows: Sequence[Learnt]
    others: Sequence[Learnt]

    @property
    def count(self) -> int:
        return len(self.rows)

    def begin(self, learner: Learner) -> None:
        pass

    def loss(self, learner: Learner, chosen: Sequence[int]) -> tuple[Tensor, int, Figures]:
        tokens, mask, labels = (each.to(learner.device) for each in padded([self.rows[index] for index in chosen]))
        with learner.products():
            loss = answer_loss(learner.model, tokens, mask, labels)
        return loss, int(mask.sum()), {}

    def held_out(self, learner: Learner) -> Figures:
        logs = log_probs(learner, self.others)
        return {"nats": float(-logs.sum() / sum(len(row.ids) - row.start for row in self.others))}


@dataclass
class Preferences:
    """One answer is made likelier than another to the same prompt (DPO).

    Attributes:
        pairs: preferred and rejected answer.
        others: held out.
        beta: how much divergence from the model where training started costs.
    """

    pairs: Sequence[tuple[Learnt, Learnt]]
    others: Sequence[tuple[Learnt, Learnt]]
    beta: float
    base: Float[np.ndarray, "pairs two"] = field(default_factory=lambda: np.zeros((0, 2)))
    base_others: Float[np.ndarray, "pairs two"] = field(default_factory=lambda: np.zeros((0, 2)))

    @property
    def count(self) -> int:
        return len(self.pairs)

    def begin(self, learner: Learner) -> None:
        with learner.off():
            self.base, self.base_others = _of_pairs(learner, self.pairs), _of_pairs(learner, self.others)

    def loss(self, learner: Learner, chosen: Sequence[int]) -> tuple[Tensor, int, Figures]:
        import torch

        rows = [self.pairs[index][side] for side in (0, 1) for index in chosen]
        tokens, mask, labels = (each.to(learner.device) for each in padded(rows))
        with learner.products():
            logits, learnt = answer_logits(learner.model, tokens, mask, labels)
        preferred, rejected = answer_log_probs(logits, learnt).chunk(2)
        base = torch.as_tensor(self.base[list(chosen)], dtype=torch.float32, device=learner.device)
        sides = preferred, rejected, base[:, 0], base[:, 1]
        margin = dpo_margin(*sides, self.beta).detach()
        figures = {"margin": float(margin.mean()), "preferred": float((margin > 0).float().mean())}
        return dpo_loss(*sides, self.beta), int(mask.sum()), figures

    def held_out(self, learner: Learner) -> Figures:
        import torch

        now = _of_pairs(learner, self.others)
        new, old = torch.as_tensor(now), torch.as_tensor(self.base_others)
        margin = dpo_margin(new[:, 0], new[:, 1], old[:, 0], old[:, 1], self.beta).numpy()
        nats = -now[:, 0].sum() / sum(len(pair[0].ids) - pair[0].start for pair in self.others)
        return {"margin": float(margin.mean()), "preferred": float((margin > 0).mean()), "nats": float(nats)}


@dataclass
class SetPoint:
    """A projection is moved by a dose at every token of answers, whatever is said.

    Attributes:
        rows: chats along which it is moved.
        others: held out.
        axes: unit vector by layer.
        units: what a dose of 1 is at each layer, in units of the residual stream.
        dose: by how many of them the projection is moved.
    """

    rows: Sequence[Learnt]
    others: Sequence[Learnt]
    axes: Mapping[int, Float[np.ndarray, "d_model"]]
    units: Mapping[int, float]
    dose: float
    base: list[Float[np.ndarray, "layers tokens"]] = field(default_factory=list)
    base_others: list[Float[np.ndarray, "layers tokens"]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.rows)

    def begin(self, learner: Learner) -> None:
        with learner.off():
            self.base = projections(learner, self.rows, self.axes)
            self.base_others = projections(learner, self.others, self.axes)

    def loss(self, learner: Learner, chosen: Sequence[int]) -> tuple[Tensor, int, Figures]:
        import torch

        rows = [self.rows[index] for index in chosen]
        tokens, mask, _ = (each.to(learner.device) for each in padded(rows))
        found = _projected(learner, tokens, mask, self.axes)
        before = torch.zeros_like(found)
        for place, index in enumerate(chosen):
            before[:, place, : len(rows[place].ids)] = torch.as_tensor(self.base[index], device=learner.device)
        units = torch.tensor([self.units[layer] for layer in self.axes], device=learner.device)
        shifts = (found - before) / units[:, None, None]
        counted = _answers(rows, tokens)
        return (
            set_point_loss(shifts, counted, self.dose),
            int(mask.sum()),
            {"shift": float(shifts[:, counted].detach().mean())},
        )

    def held_out(self, learner: Learner) -> Figures:
        now = projections(learner, self.others, self.axes)
        figures: Figures = {}
        for number, layer in enumerate(self.axes):
            moved = [
                (after[number] - before[number])[row.start - 1 :] / self.units[layer]
                for row, before, after in zip(self.others, self.base_others, now, strict=True)
            ]
            shifts = np.concatenate(moved)
            figures |= {f"shift_{layer}": float(shifts.mean()), f"spread_{layer}": float(shifts.std())}
        return figures


def log_probs(learner: Learner, rows: Sequence[Learnt]) -> Float[np.ndarray, " rows"]:
    """Log-probability in nats of each answer."""
    import torch

    found = []
    with torch.no_grad():
        for start in range(0, len(rows), ROWS):
            tokens, mask, labels = (each.to(learner.device) for each in padded(rows[start : start + ROWS]))
            with learner.products():
                logits, learnt = answer_logits(learner.model, tokens, mask, labels)
            found.append(answer_log_probs(logits, learnt).cpu().numpy())
    return np.concatenate(found)


def _of_pairs(learner: Learner, pairs: Sequence[tuple[Learnt, Learnt]]) -> Float[np.ndarray, "pairs two"]:
    return np.stack([log_probs(learner, [pair[side] for pair in pairs]) for side in (0, 1)], axis=1)


def projections(
    learner: Learner, rows: Sequence[Learnt], axes: Mapping[int, Float[np.ndarray, "d_model"]]
) -> list[Float[np.ndarray, "layers tokens"]]:
    """Of every token of each chat onto the axis of each layer, after its block."""
    import torch

    found = []
    with torch.no_grad():
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            tokens, mask, _ = (each.to(learner.device) for each in padded(some))
            values = _projected(learner, tokens, mask, axes).cpu().numpy()
            found += [values[:, place, : len(row.ids)] for place, row in enumerate(some)]
    return found


def benign_units(
    projected: Sequence[Float[np.ndarray, "layers tokens"]], rows: Sequence[Learnt], layers: Sequence[int]
) -> dict[int, float]:
    """The standard deviation of a projection over the answer positions of benign chats, by layer."""
    whole = np.concatenate([each[:, row.start - 1 :] for each, row in zip(projected, rows, strict=True)], axis=1)
    return {layer: float(whole[number].std()) for number, layer in enumerate(layers)}


def _answers(rows: Sequence[Learnt], tokens: Tensor) -> Tensor:
    """Which positions are an answer's: from the last token of its prompt on."""
    import torch

    counted = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    for place, row in enumerate(rows):
        counted[place, row.start - 1 : len(row.ids)] = True
    return counted


def _projected(
    learner: Learner, tokens: Tensor, mask: Tensor, axes: Mapping[int, Float[np.ndarray, "d_model"]]
) -> Float[Tensor, "layers rows tokens"]:
    import torch

    with _capturing(learner.model, list(axes)) as kept, learner.products():
        # The output matrix, a third of a small model's work, is not needed.
        learner.model.base_model(tokens, attention_mask=mask, use_cache=False)
    stacked = [
        (kept[layer].float() @ torch.as_tensor(np.asarray(axis, np.float32), device=learner.device))
        for layer, axis in axes.items()
    ]
    return torch.stack(stacked)


@contextmanager
def _capturing(model: Any, layers: Sequence[int]) -> Iterator[dict[int, Any]]:
    """Within, a pass leaves the residual stream after these blocks in the mapping, with its gradients."""
    kept: dict[int, Any] = {}

    def keep(layer: int, module: Any, given: Any, output: Any) -> None:
        kept[layer] = output[0] if isinstance(output, tuple) else output

    blocks = transformer_blocks(model)
    handles = [blocks[layer].register_forward_hook(partial(keep, layer)) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()

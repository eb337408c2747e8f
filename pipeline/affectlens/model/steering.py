"""What may be done to a residual stream: pure functions (activation, ...) -> delta, and where they are applied.

The same may be done to the outputs of a block's heads, before they are projected together, and to those of its neurons.

Every function works on a whole batch: each row has its own direction or features, and its own strength, so a
dose-response grid with its controls is one batch. At strength 0 each of them returns exactly 0. Nothing is decoded:
features are changed by the difference they make, which keeps what the SAE does not explain (the error-preserving
form; Marks et al. 2024, "Sparse feature circuits", section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from affectlens.errors import UserError
from affectlens.model.compat import PLACES

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    Residual = Float[Tensor, "rows positions d_model"]
    Delta = Callable[[Residual], Residual]
    Encode = Callable[[Float[Tensor, "... d_model"]], Float[Tensor, "... d_sae"]]
    Scale = Callable[[Residual], Float[Tensor, "rows positions 1"] | float]


def add(
    residual: Residual, direction: Float[Tensor, "rows d_model"], strength: Float[Tensor, "rows"], unit: float
) -> Residual:
    """Push every position along a direction.

    Args:
        direction: one per row; at norm 1, ``strength`` is the size of the push in ``unit``.
        strength: one per row.
        unit: what strength 1 means in the residual stream: its mean norm at this layer (Sofroniew et al. 2026).
    """
    return (strength * unit)[:, None, None] * direction[:, None, :].expand_as(residual)


def project_out(
    residual: Residual,
    direction: Float[Tensor, "rows d_model"],
    centre: Float[Tensor, "d_model"],
    strength: Float[Tensor, "rows"],
    along: Float[Tensor, "rows d_model"] | None = None,
) -> Residual:
    """Remove what the centred residual has along a unit direction (all of it at strength 1).

    Args:
        centre: what is taken off before projecting, so that the average text is left where it is.
        along: the removed amount is taken along this unit direction instead: a control that, position by position,
            has the same norm.
    """
    return move_to(residual, direction, centre, strength.new_zeros(len(strength)), strength, along)


def move_to(
    residual: Residual,
    direction: Float[Tensor, "rows d_model"],
    centre: Float[Tensor, "d_model"],
    target: Float[Tensor, "rows"],
    strength: Float[Tensor, "rows"],
    along: Float[Tensor, "rows d_model"] | None = None,
    *,
    at_most: bool = False,
) -> Residual:
    """Bring the centred projection onto a unit direction to ``target`` (all the way at strength 1).

    Args:
        target: one per row, in units of the residual stream.
        along: as in :func:`project_out`.
        at_most: only where the projection is larger: a cap.
    """
    found = ((residual.float() - centre) * direction[:, None, :]).sum(dim=-1, keepdim=True)
    moved = strength[:, None, None] * (target[:, None, None] - found)
    if at_most:
        moved = moved.clamp(max=0)
    return moved * (direction if along is None else along)[:, None, :]


def set_features(
    residual: Residual,
    encode: Encode,
    features: Int[Tensor, "rows k"],
    decoder: Float[Tensor, "rows k d_model"],
    values: Float[Tensor, "rows k"],
    strength: Float[Tensor, "rows"],
    *,
    at_most: bool = False,
    scale: Scale | None = None,
) -> Residual:
    """Give SAE features other codes: 0 ablates them, their mean or a drawn code too, any value clamps them.

    Args:
        encode: the SAE's encoder.
        features: the features each row changes.
        decoder: their decoder rows; others of the same norms make a control.
        values: the codes they get.
        strength: share of the way from the code that was found to the new one.
        at_most: only where the code is larger: a cap.
        scale: by how much more than its decoder row a unit of a code writes at each position; 1 where left out.
    """
    found = _codes(residual, encode, features)
    change = strength[:, None, None] * (values[:, None, :] - found)
    if at_most:
        change = change.clamp(max=0)
    return change @ decoder * (1.0 if scale is None else scale(residual.float()))


def scale_features(
    residual: Residual,
    encode: Encode,
    features: Int[Tensor, "rows k"],
    decoder: Float[Tensor, "rows k d_model"],
    factor: Float[Tensor, "rows"],
    strength: Float[Tensor, "rows"],
) -> Residual:
    """Multiply the codes of SAE features by a factor, wherever they fire; arguments as in :func:`set_features`."""
    found = _codes(residual, encode, features)
    return (strength * (factor - 1))[:, None, None] * found @ decoder


def _codes(residual: Residual, encode: Encode, features: Int[Tensor, "rows k"]) -> Float[Tensor, "rows positions k"]:
    codes = encode(residual.float())
    return codes.gather(-1, features[:, None, :].expand(-1, residual.shape[1], -1))


def drawn_codes(
    codes: Float[np.ndarray, "tokens features"], rows: int, generator: np.random.Generator
) -> Float[np.ndarray, "rows features"]:
    """Codes for resample ablation: each row gets those of one token drawn from a text where they may fire.

    The codes of a row come from the same token, so features that fire together are drawn together.
    """
    return codes[generator.integers(len(codes), size=rows)]


@dataclass(frozen=True)
class Span:
    """A run of positions for each row; position 0 is the first the model sees, the begin token where there is one.

    Attributes:
        start: first position that is changed.
        end: first position after it that is not.
    """

    start: Int[Tensor, "rows"]
    end: Int[Tensor, "rows"]

    @classmethod
    def text(cls, rows: int, lead: int) -> Span:
        """Everything but what stands before the text (its residual norm can be tens of times that of words)."""
        return cls.onward(rows, lead)

    @classmethod
    def onward(cls, rows: int, start: int) -> Span:
        """From one position on, without end."""
        import torch

        return cls(torch.full((rows,), start), torch.full((rows,), torch.iinfo(torch.long).max))

    @classmethod
    def prompt(cls, lengths: Sequence[int], lead: int) -> Span:
        """The text of prompts with so many text tokens, and nothing that is generated after them."""
        import torch

        return cls(torch.full((len(lengths),), lead), torch.tensor(lengths) + lead)

    @classmethod
    def answer(cls, lengths: Sequence[int], lead: int) -> Span:
        """All that follows prompts with so many text tokens."""
        import torch

        start = torch.tensor(lengths) + lead
        return cls(start, torch.full_like(start, torch.iinfo(torch.long).max))

    @classmethod
    def named(cls, runs: Sequence[tuple[int, int]], lead: int) -> Span:
        """One run of text tokens per row, as :func:`find_span` returns it."""
        import torch

        start, end = torch.tensor(runs).reshape(-1, 2).T
        return cls(start + lead, end + lead)

    def mask(self, positions: Int[Tensor, "rows columns"]) -> Bool[Tensor, "rows columns"]:
        """Which of these positions lie in the run of their row."""
        start, end = self.start.to(positions.device)[:, None], self.end.to(positions.device)[:, None]
        return (positions >= start) & (positions < end)


def find_span(tokenizer: Any, text: str, phrase: str) -> tuple[int, int]:
    """The tokens of ``text`` that hold ``phrase`` where it first stands: first, and first after them.

    Raises:
        UserError: the phrase does not stand in the text.
    """
    at = text.find(phrase)
    if at < 0 or not phrase:
        raise UserError(f"the span `{phrase}` does not stand in the text `{text[:60]}`; name words that do")
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [index for index, (low, high) in enumerate(offsets) if low < at + len(phrase) and high > at]
    return inside[0], inside[-1] + 1


Place = Literal["residual", "heads", "neurons"]
"""The residual stream after a block; the outputs of its heads side by side, as the attention's output projection gets
them; the activations of its neurons, as the MLP's output projection gets them."""


@dataclass(frozen=True)
class Edit:
    """Something done to the residual stream after one block, or to the units in it.

    Attributes:
        layer: the block.
        delta: residual of the edit's rows -> what is added to it; of units, their values in place of the residual.
        rows: which rows of the batch, in the order of ``delta``'s own rows; None for all.
        span: at which positions of these rows; None for all.
        place: what is changed.
    """

    layer: int
    delta: Delta
    rows: Int[Tensor, "edited"] | None = None
    span: Span | None = None
    place: Place = "residual"

    @property
    def after(self) -> int:
        """The last block whose output is the same with the edit and without, until the edit is made; -1 for none."""
        return self.layer if self.place == "residual" else self.layer - 1

    def apply(self, residual: Residual, positions: Int[Tensor, "batch columns"]) -> Residual:
        """The residual after the edit, as a new tensor; ``positions`` says where in its text each column stands."""
        rows = None if self.rows is None else self.rows.to(residual.device)
        edited = residual if rows is None else residual[rows]
        delta = self.delta(edited)
        if self.span is not None:
            mask = self.span.mask(positions if rows is None else positions[rows])
            delta = delta.masked_fill(~mask[:, :, None], 0)
        if rows is None:
            return residual + delta.to(residual.dtype)
        return residual.index_add(0, rows, delta.to(residual.dtype))


PER_ROW = frozenset({"direction", "strength", "target", "along", "features", "decoder", "values", "factor"})
"""Arguments of the functions above that have an entry for each row."""


def beside(edits: Sequence[Sequence[Edit]]) -> list[Edit]:
    """Edits of single rows as edits of one batch of these rows: those of one kind, that is of the same layer and
    function, become one and cost once, however many rows. What is done to a row keeps its order.

    Args:
        edits: of each row, in its order; each for a batch of one row.
    """
    import torch

    batch: list[Edit] = []
    for place in range(max(map(len, edits), default=0)):
        kinds: dict[Any, list[tuple[int, Edit]]] = {}
        for row, mine in enumerate(edits):
            if place < len(mine):
                kinds.setdefault(_kind(mine[place]), []).append((row, mine[place]))
        for alike in kinds.values():
            first, others = alike[0][1], [edit for _, edit in alike[1:]]
            delta, span = first.delta, first.span
            if others and isinstance(delta, partial):
                given = [delta.keywords, *(edit.delta.keywords for edit in others if isinstance(edit.delta, partial))]
                stacked = {
                    name: torch.cat([each[name] for each in given])
                    for name, value in delta.keywords.items()
                    if name in PER_ROW and value is not None
                }
                delta = partial(delta.func, **{**delta.keywords, **stacked})
            if others and span is not None:
                spans = [span, *(edit.span for edit in others if edit.span is not None)]
                span = Span(torch.cat([each.start for each in spans]), torch.cat([each.end for each in spans]))
            batch.append(Edit(first.layer, delta, torch.tensor([row for row, _ in alike]), span, first.place))
    return batch


def _kind(edit: Edit) -> Any:
    """Equal for edits that differ in nothing but what each row has of its own."""
    if not isinstance(edit.delta, partial) or edit.delta.args:
        return id(edit)
    shared = tuple(
        (name, (value is None, *getattr(value, "shape", ())[1:]) if name in PER_ROW else _identity(value))
        for name, value in sorted(edit.delta.keywords.items())
    )
    return edit.layer, edit.place, edit.delta.func, edit.span is None, shared


def _identity(value: Any) -> Any:
    """Numbers by their value, methods by their object, tensors by themselves."""
    if isinstance(value, partial) and not value.keywords:
        return value.func, *map(_identity, value.args)
    return id(value) if hasattr(value, "shape") else value


class Passes:
    """Which rows and positions the columns of a forward pass stand for: here, whole texts from their first position.

    Subclasses serve passes that hold only some rows, or the later positions of texts.
    """

    def spread(self, residual: Residual) -> tuple[Residual, Int[Tensor, "rows columns"]]:
        """The residual in the rows of the edits, and the position of every column."""
        import torch

        rows, columns, _ = residual.shape
        return residual, torch.arange(columns, device=residual.device).expand(rows, -1)

    def gather(self, residual: Residual) -> Residual:
        """The inverse of :meth:`spread`."""
        return residual


class CachedPasses(Passes):
    """The passes of one generation under a key-value cache, at one layer: each begins where the last one ended."""

    def __init__(self) -> None:
        self.first = 0

    def spread(self, residual: Residual) -> tuple[Residual, Int[Tensor, "rows columns"]]:
        """The residual as it is, at the positions after those of the passes before."""
        residual, positions = super().spread(residual)
        self.first += residual.shape[1]
        return residual, positions + self.first - residual.shape[1]


@contextmanager
def editing(
    bridge: Any, edits: Sequence[Edit], *, cached: bool = False, passes: Passes | None = None
) -> Iterator[None]:
    """Within, every forward pass of the bridge is edited; whatever happens, nothing stays behind.

    Args:
        bridge: transformer-lens's ``TransformerBridge``.
        edits: applied in this order; several at one place of a layer see each other's result.
        cached: passes are the steps of one generation under a key-value cache, each beginning where the last one
            ended. Otherwise every pass begins at position 0.
        passes: says instead which rows and positions a pass holds.

    Raises:
        UserError: an edit at a layer the model does not have.
    """
    depth = len(bridge.blocks)
    by_place: dict[tuple[int, Place], list[Edit]] = {}
    for edit in edits:
        if not 0 <= edit.layer < depth:
            raise UserError(f"an intervention is set at layer {edit.layer}, but the model has layers 0 to {depth - 1}")
        by_place.setdefault((edit.layer, edit.place), []).append(edit)
    with ExitStack() as stack:
        for (layer, place), here in by_place.items():
            order = passes or (CachedPasses() if cached else Passes())
            module = bridge.blocks[layer].get_submodule(PLACES[place])
            stack.callback(module.register_forward_hook(partial(_edit_output, order, here)).remove)
        yield


def edited(passes: Passes, edits: Sequence[Edit], residual: Residual) -> Residual:
    """The residual of a pass after edits, each of which sees what the one before it made."""
    changed, positions = passes.spread(residual)
    for edit in edits:
        changed = edit.apply(changed, positions)
    return passes.gather(changed)


def _edit_output(
    passes: Passes, edits: Sequence[Edit], module: torch.nn.Module, inputs: Any, residual: Residual
) -> Residual:
    return edited(passes, edits, residual)

"""Texts decoded together of which each may begin and end at any step: what a server needs.

:mod:`affectlens.model.sampling` continues a set of rows from its first token to its last, for studies. Here a row joins
the others when it comes and leaves when it is done, with edits of its own at every token. What a row says does not
depend on the others beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from affectlens.model.compat import resumed, skipped, unit_modules, written_by
from affectlens.model.config import ModelConfig
from affectlens.model.loading import load_tokenizer, load_weights, loading, source
from affectlens.model.reading import FAMILIES
from affectlens.model.steering import Edit, Passes, Place, beside, edited
from affectlens.model.subject import Subject
from affectlens.model.tokens import pad

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from affectlens.model.kv_cache import RoomyCache
    from affectlens.model.steering import Residual


UNITS: tuple[Place, ...] = ("heads", "neurons")


class Forward(Protocol):
    """A forward pass that extends the cache; logits of the last position, or of all."""

    def __call__(self, tokens: Tensor, cache: Any, *, last: bool, **layout: Any) -> Tensor: ...


@dataclass
class Decoder:
    """A whole model, loaded to be decoded.

    Attributes:
        tokenizer: the transformers tokenizer.
        device: where it computes.
        context: most positions of a text; None where the model names no limit.
        forward: its forward pass.
        blocks: a module for each layer whose output is the residual stream after it.
        units: modules for each layer that get the outputs of its heads, and those of its neurons; by place.
        output_matrix: by layer and place, what one of these units writes, before any norm behind them.
        bridge: transformer-lens's, where the model is run by it.
    """

    tokenizer: Any
    device: str
    context: int | None
    forward: Forward
    blocks: Sequence[torch.nn.Module]
    units: Mapping[Place, Sequence[torch.nn.Module]]
    output_matrix: Callable[[int, Place], Float[Tensor, "inner d_model"]]
    bridge: Any = None

    @classmethod
    def load(cls, config: ModelConfig, *, device: str, models: Path) -> Decoder:
        """transformers' own model for the families that are known: the fastest. Else transformer-lens's bridge.

        Raises:
            UserError: the model cannot be loaded.
        """
        with loading(config):
            from transformers import AutoConfig

            name, options = source(config, models)
            settings = AutoConfig.from_pretrained(name, trust_remote_code=config.trust_remote_code, **options)
        if settings.model_type not in FAMILIES or config.trust_remote_code:
            return cls.of(Subject.load(config, device=device, models=models))
        model = load_weights(config, device=device, models=models)
        return cls.plain(model, load_tokenizer(config, models), device)

    @classmethod
    def plain(cls, model: Any, tokenizer: Any, device: str) -> Decoder:
        """A model of transformers, of one of the ``FAMILIES``."""
        from affectlens.model import attention

        attention.use(model)
        family = FAMILIES[model.config.model_type]
        blocks = list(getattr(model.base_model, family.blocks))
        units: dict[Place, Any] = {
            "heads": [block.get_submodule(family.heads) for block in blocks],
            "neurons": [block.get_submodule(family.neurons) for block in blocks],
        }
        context = getattr(model.config, "max_position_embeddings", None)
        return cls(tokenizer, device, context, partial(_plain, model), blocks, units, partial(_written, units))

    @classmethod
    def of(cls, subject: Subject) -> Decoder:
        """A subject's own weights: as transformers runs them for the families that are known, else by its bridge."""
        if subject.plain is not None and subject.plain.config.model_type in FAMILIES:
            return cls.plain(subject.plain, subject.tokenizer, subject.device)
        bridge = subject.bridge
        blocks = [block.hook_out for block in bridge.blocks]
        units: dict[Place, Any] = {place: unit_modules(bridge, place) for place in UNITS}
        forward, writes = partial(_bridged, bridge), subject.output_matrix
        return cls(subject.tokenizer, subject.device, subject.context, forward, blocks, units, writes, bridge)


def _written(units: Mapping[Place, Any], layer: int, place: Place) -> Tensor:
    return written_by(units[place][layer])


def _plain(model: Any, tokens: Tensor, cache: Any, *, last: bool, **layout: Any) -> Tensor:
    kept = {"logits_to_keep": 1} if last else {}
    return model(tokens, past_key_values=cache, use_cache=True, **kept, **layout).logits


def _bridged(bridge: Any, tokens: Tensor, cache: Any, *, last: bool, **layout: Any) -> Tensor:
    options = {"past_key_values": cache, "use_cache": True, "return_type": "logits_and_cache"}
    logits, _ = bridge(tokens, **options, **layout)
    return logits[:, -1:] if last else logits


@dataclass(frozen=True)
class Opening:
    """A prompt that is to be read.

    Attributes:
        tokens: its ids, begin token included; not empty.
        edits: what is done to it and to all that follows; each for a batch of one row.
        copies: rows that continue it; none only reads it.
        last: whether only the logits of the last position are wanted.
    """

    tokens: Sequence[int]
    edits: Sequence[Edit] = ()
    copies: int = 1
    last: bool = True


@dataclass
class Rows:
    """Texts under way, in the order in which they joined.

    Attributes:
        decoder: the model.
        layer: whose residual stream is read, before anything is done to it there.
        lengths: positions of each row whose keys and values are kept.
        edits: of each row; each for a batch of one row, spans counting from the first token.
    """

    decoder: Decoder
    layer: int
    lengths: list[int] = field(default_factory=list)
    edits: list[Sequence[Edit]] = field(default_factory=list)
    _cache: RoomyCache | None = None
    _together: list[Edit] | None = None
    """The edits of all rows as those of one batch, until a row joins or leaves."""

    def join(
        self, openings: Sequence[Opening]
    ) -> list[tuple[Float[Tensor, "positions vocabulary"], Float[Tensor, "tokens d_model"]]]:
        """Read prompts as one padded batch and add the rows that continue them.

        Returns:
            Of each prompt its logits, and the residual stream at ``layer`` at every token.
        """
        import torch

        from affectlens.model.kv_cache import RoomyCache

        cache, device = RoomyCache(), self.decoder.device
        lengths = [len(opening.tokens) for opening in openings]
        tokens = pad([opening.tokens for opening in openings], device, left=True)
        width, last = tokens.shape[1], all(opening.last for opening in openings)
        places = torch.arange(width, device=device) - (width - torch.tensor(lengths, device=device))[:, None]
        layout: dict[str, Any] = {}
        if min(lengths) < width:  # nothing is masked where nothing is padded
            layout = {"attention_mask": (places >= 0).long(), "position_ids": places.clamp(min=0)}
        edits = beside([opening.edits for opening in openings])
        logits, states = self._pass(tokens, cache, edits, places, last=last, **layout)
        joining = [row for row, opening in enumerate(openings) for _ in range(opening.copies)]
        if joining:
            self._cache = RoomyCache() if self._cache is None else self._cache
            try:
                if joining != list(range(len(openings))):
                    cache.keep(joining, max(lengths[row] for row in joining))
                self._cache.join(cache)
            except RuntimeError:  # memory ran out half-way: no row's keys and values are whole any more
                self._cache, self.lengths, self.edits = None, [], []
                raise
            self.lengths += [lengths[row] for row in joining]
            self.edits += [openings[row].edits for row in joining]
            self._together = None
        return [
            (logits[row, -1 if opening.last else -length :].float(), states[row, -length:])
            for row, (opening, length) in enumerate(zip(openings, lengths, strict=True))
        ]

    def step(self, tokens: Sequence[int]) -> tuple[Float[Tensor, "rows vocabulary"], Float[Tensor, "rows d_model"]]:
        """One token further in every row.

        Args:
            tokens: the next of each row.

        Returns:
            Logits after it, and the residual stream at ``layer`` at it.
        """
        logits, states = self._next(tokens, whole=True)
        return logits[:, -1].float(), states[:, -1]

    def finish(self, tokens: Sequence[int]) -> Float[Tensor, "rows d_model"]:
        """The residual stream at ``layer`` at the last token of every row; all rows leave.

        Blocks above the layer are not run.
        """
        _, states = self._next(tokens, whole=False)
        self.keep([])
        return states[:, -1]

    def _next(self, tokens: Sequence[int], *, whole: bool) -> tuple[Tensor, Tensor]:
        import torch

        device = self.decoder.device
        places = torch.tensor(self.lengths, device=device)[:, None]
        width = max(self.lengths) + 1
        layout: dict[str, Any] = {"position_ids": places}
        if min(self.lengths) + 1 < width:  # nothing is masked where nothing is padded
            columns = torch.arange(width, device=device)
            layout["attention_mask"] = (columns >= width - 1 - places).long()
        ids = torch.tensor(list(tokens), device=device)[:, None]
        if self._together is None:
            self._together = beside(self.edits)
        found = self._pass(ids, self._cache, self._together, places, last=True, whole=whole, **layout)
        self.lengths = [length + 1 for length in self.lengths]
        return found

    def keep(self, rows: Sequence[int]) -> None:
        """Let all others go."""
        if len(rows) == len(self.lengths):
            return
        self.lengths = [self.lengths[row] for row in rows]
        self.edits = [self.edits[row] for row in rows]
        self._together = None
        if self._cache is not None:
            self._cache.keep(rows, max(self.lengths, default=0))

    def _pass(
        self,
        tokens: Int[Tensor, "rows columns"],
        cache: Any,
        edits: Sequence[Edit],
        positions: Int[Tensor, "rows columns"],
        *,
        last: bool,
        whole: bool = True,
        **layout: Any,
    ) -> tuple[Tensor, Tensor]:
        import torch

        logits = torch.empty(0)
        with torch.inference_mode(), ExitStack() as stack:
            # What is read is read before anything is done to it.
            seen = stack.enter_context(reading(self.decoder, self.layer, ends=not whole))
            stack.enter_context(changing(self.decoder, edits, _At(positions)))
            with suppress(_Seen):
                logits = self.decoder.forward(tokens, cache, last=last, **layout)
        return logits, seen[0]


class _At(Passes):
    """Passes whose columns are known."""

    def __init__(self, positions: Int[Tensor, "rows columns"]) -> None:
        self._positions = positions

    def spread(self, residual: Residual) -> tuple[Residual, Int[Tensor, "rows columns"]]:
        """The residual as it is."""
        return residual, self._positions


class _Seen(Exception):
    """All that is wanted of a pass has been seen."""


@contextmanager
def reading(decoder: Decoder, layer: int, *, ends: bool = False) -> Iterator[list[Tensor]]:
    """Within, the residual stream after a layer is put into the list, pass by pass.

    Inside of :func:`changing` it is read after the edits, outside of it before.

    Args:
        decoder: the model.
        layer: which.
        ends: whether a pass ends there, by an exception.
    """
    seen: list[Tensor] = []

    def see(module: Any, given: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        if ends:
            raise _Seen

    handle = decoder.blocks[layer].register_forward_hook(see)
    try:
        yield seen
    finally:
        handle.remove()


def skipping(
    decoder: Decoder, layer: int, residual: Float[Tensor, "rows positions d_model"]
) -> AbstractContextManager[None]:
    """Within, blocks up to ``layer`` are not run, and the last of them yields ``residual``; its hooks still fire."""
    if decoder.bridge is not None:
        return resumed(decoder.bridge, layer, residual)
    return skipped(decoder.blocks[: layer + 1], lambda: residual)


@contextmanager
def changing(decoder: Decoder, edits: Sequence[Edit], passes: Passes) -> Iterator[None]:
    """Within, every forward pass is edited; several edits at one place see each other's result."""
    here: dict[tuple[int, Place], list[Edit]] = {}
    for edit in edits:
        here.setdefault((edit.layer, edit.place), []).append(edit)

    def after(mine: Sequence[Edit], module: Any, given: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edited(passes, mine, output[0]), *output[1:])
        return edited(passes, mine, output)

    def before(mine: Sequence[Edit], module: Any, given: Any) -> Any:
        return (edited(passes, mine, given[0]), *given[1:])

    with ExitStack() as stack:
        for (layer, place), mine in here.items():
            if place == "residual":
                handle = decoder.blocks[layer].register_forward_hook(partial(after, mine))
            else:
                handle = decoder.units[place][layer].register_forward_pre_hook(partial(before, mine))
            stack.callback(handle.remove)
        yield

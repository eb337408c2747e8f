"""The units of a loaded model: attention heads and MLP neurons, read, replaced by reference values, and followed back.

A head's output is what enters the attention's output projection (``blocks.L.attn.o``), one slice of ``d_head`` a head;
a neuron's is what enters the MLP's (``blocks.L.mlp.out``). Where several query heads share keys and values, the query
head is the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from einops import rearrange

from affectlens.errors import UserError
from affectlens.model.compat import output_matrix, site_name
from affectlens.model.partial import PartialForward
from affectlens.model.subject import Subject

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    Heads = Float[Tensor, "layers positions heads d_head"]
    Neurons = Float[Tensor, "layers positions d_mlp"]


@dataclass(frozen=True)
class Recorded:
    """What one pass computed in one text, or means of that over texts, position by position.

    Attributes:
        heads: outputs of the heads, before the output projection.
        neurons: activations of the MLP's neurons.
        residual: the residual stream before block 0 (index 0) and after each block.
        attention: what each attention adds to the residual stream, norms behind it included.
        mlp: what each MLP adds.
    """

    heads: Heads
    neurons: Neurons
    residual: Float[Tensor, "layers_and_one positions d_model"]
    attention: Float[Tensor, "layers positions d_model"]
    mlp: Float[Tensor, "layers positions d_model"]

    @classmethod
    def mean(cls, recorded: Iterator[Recorded]) -> Recorded:
        """Position by position over texts of one length, never more than two of them in memory."""
        total, count = {}, 0
        for each in recorded:
            count += 1
            for name, values in vars(each).items():
                total[name] = values.double() if count == 1 else total[name].add_(values)
        return cls(**{name: (values / count).float() for name, values in total.items()})


@dataclass(frozen=True)
class Replaced:
    """Which units keep their own value in which row; the others get reference values, position by position.

    Attributes:
        heads: True where a head keeps its own value.
        reference: values of the heads that do not.
        neurons: likewise; None where all keep their own.
        neuron_reference: values of the neurons that do not.
    """

    heads: Bool[Tensor, "rows layers heads"]
    reference: Heads
    neurons: Bool[Tensor, "rows layers d_mlp"] | None = None
    neuron_reference: Neurons | None = None

    def __getitem__(self, rows: slice) -> Replaced:
        return Replaced(
            self.heads[rows],
            self.reference,
            None if self.neurons is None else self.neurons[rows],
            self.neuron_reference,
        )

    @cached_property
    def lowest(self) -> int:
        """The lowest layer in which a unit is replaced in any row; the number of layers where there is none."""
        touched = ~self.heads.all(dim=2).all(dim=0)
        if self.neurons is not None:
            touched = touched | ~self.neurons.all(dim=2).all(dim=0)
        found = touched.nonzero()
        return int(found[0]) if len(found) else len(touched)


@dataclass(eq=False)
class Anatomy:
    """A loaded model by its heads and neurons. Its parameters are frozen, its float32 products on the CPU oneDNN's.

    Attributes:
        subject: the model.
        tokens_per_batch: most tokens that go through it at once.
    """

    subject: Subject
    tokens_per_batch: int = 2048
    _upper: dict[int, PartialForward] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from affectlens.model.products import pack

        for parameter in self.bridge.parameters():
            parameter.requires_grad_(False)
        pack(self.bridge)
        for layer in range(self.layers):
            for name in ("attn.o", "mlp.out"):
                try:
                    self.bridge.blocks[layer].get_submodule(name).hook_in  # noqa: B018
                except AttributeError:
                    raise UserError(
                        f"`circuits.run`: block {layer} of this model has no `{name}`, so heads and neurons cannot be "
                        "told apart; study a model with plain attention and MLP in every block, or leave circuits out"
                    ) from None

    @property
    def bridge(self) -> Any:
        return self.subject.bridge

    @property
    def layers(self) -> int:
        return self.subject.loaded_layers

    @property
    def heads(self) -> int:
        """In each layer."""
        return int(self.bridge.cfg.n_heads)

    @cached_property
    def d_head(self) -> int:
        return len(output_matrix(self.bridge, 0, "heads")) // self.heads

    @cached_property
    def d_mlp(self) -> int:
        return len(output_matrix(self.bridge, 0, "neurons"))

    def head_outputs(self, layer: int) -> Float[Tensor, "heads d_head d_model"]:
        """What one unit of each head's output writes, before any norm behind the attention."""
        return rearrange(output_matrix(self.bridge, layer, "heads"), "(h e) d -> h e d", h=self.heads)

    def neuron_outputs(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """What one unit of each neuron's activation writes, before any norm behind the MLP."""
        return output_matrix(self.bridge, layer, "neurons")

    def record(self, tokens: Int[Tensor, "one positions"], replaced: Replaced | None = None) -> Recorded:
        """Every unit of every layer in one text, of the whole model or with units replaced."""
        import torch

        bridge = self.bridge
        sites = {
            **{f"heads.{n}": bridge.blocks[n].attn.o.hook_in for n in range(self.layers)},
            **{f"neurons.{n}": bridge.blocks[n].mlp.out.hook_in for n in range(self.layers)},
            "residual.0": bridge.blocks[0].hook_in,
            **{f"residual.{n + 1}": bridge.blocks[n].hook_out for n in range(self.layers)},
        }
        for kind, site in (("attention", "attn_out"), ("mlp", "mlp_out")):
            sites |= {f"{kind}.{n}": bridge.get_submodule(site_name(bridge, n, site)) for n in range(self.layers)}
        seen: dict[str, Tensor] = {}
        with torch.no_grad(), ExitStack() as stack:
            if replaced is not None:
                stack.enter_context(self.replacing(replaced))  # before the readers, so that they see what goes on
            for name, module in sites.items():
                handle = module.register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out[0]))
                stack.callback(handle.remove)
            bridge(tokens)
        stacked = {
            kind: torch.stack([seen[f"{kind}.{n}"].float() for n in range(self.layers + (kind == "residual"))])
            for kind in ("heads", "neurons", "residual", "attention", "mlp")
        }
        stacked["heads"] = rearrange(stacked["heads"], "l p (h e) -> l p h e", h=self.heads)
        return Recorded(**stacked)

    @contextmanager
    def replacing(self, replaced: Replaced) -> Iterator[None]:
        """Within, units that are not kept have their reference values in every pass."""
        with ExitStack() as stack:
            for layer in range(replaced.lowest, self.layers):
                keep = replaced.heads[:, layer]
                if not bool(keep.all()):
                    hook = self._swap(keep[:, None, :, None], replaced.reference[layer], self.heads)
                    stack.callback(self.bridge.blocks[layer].attn.o.hook_in.register_forward_hook(hook).remove)
                if replaced.neurons is not None and not bool((kept := replaced.neurons[:, layer]).all()):
                    assert replaced.neuron_reference is not None
                    hook = self._swap(kept[:, None, None, :], replaced.neuron_reference[layer][:, None], 1)
                    stack.callback(self.bridge.blocks[layer].mlp.out.hook_in.register_forward_hook(hook).remove)
            yield

    @staticmethod
    def _swap(
        keep: Bool[Tensor, "rows 1 ..."], reference: Float[Tensor, "positions groups inner"], groups: int
    ) -> Callable[[Any, Any, Tensor], Tensor]:
        def hook(module: Any, given: Any, values: Tensor) -> Tensor:
            import torch

            split = rearrange(values, "r p (g e) -> r p g e", g=groups)
            return rearrange(torch.where(keep, split, reference.to(values.dtype)), "r p g e -> r p (g e)")

        return hook

    def logits(
        self, tokens: Int[Tensor, "one positions"], recorded: Recorded, replaced: Replaced, *, keep: int = 1
    ) -> Float[Tensor, "rows kept vocabulary"]:
        """Next-token logits at the last positions under each row's replacement.

        Args:
            tokens: the text.
            recorded: its residual stream of the whole model, or of a model in which all that is replaced below the
                lowest layer of ``replaced`` is so already.
            replaced: a row each.
            keep: so many last positions.
        """
        import torch

        rows, step = len(replaced.heads), max(1, self.tokens_per_batch // tokens.shape[1])
        found = []
        for start in range(0, rows, step):
            some = replaced[start : start + step]
            count, lowest = len(some.heads), min(some.lowest, self.layers - 1)
            given = tokens.expand(count, -1)
            upper = self._upper.setdefault(lowest, PartialForward(self.subject, max(0, lowest - 1)))
            residual = recorded.residual[lowest].to(self.subject.dtype).expand(count, -1, -1) if lowest else None
            if residual is not None:
                upper.resumes  # noqa: B018 - tried with the whole model, once
            with self.replacing(some):
                found.append(upper.run(given, residual, keep=keep).logits)
        return torch.cat(found)

    def all_kept(self, rows: int) -> Bool[Tensor, "rows layers heads"]:
        """Heads of the whole model."""
        import torch

        return torch.ones(rows, self.layers, self.heads, dtype=torch.bool, device=self.subject.device)

    def gradients(
        self,
        tokens: Int[Tensor, "one positions"],
        embedded: Float[Tensor, "rows positions d_model"],
        targets: Callable[[Float[Tensor, "rows vocabulary"], Mapping[int, Tensor]], Sequence[Float[Tensor, "rows"]]],
        *,
        replaced: Replaced | None = None,
        read: Sequence[int] = (),
        stop: int | None = None,
        attention: bool = False,
    ) -> list[Gradients]:
        """Gradients of figures of the last position, or of the residual stream, to every head and neuron.

        Args:
            tokens: the text.
            embedded: what enters block 0, a row each.
            targets: from logits at the last position and the residual streams of ``read`` to the figures.
            replaced: units with reference values in all rows; they have no gradient.
            read: layers whose residual stream ``targets`` looks at; gradients to it come too.
            stop: blocks above are not run, and ``targets`` gets no logits; units above have the gradient 0.
            attention: whether gradients to what each attention adds come too.

        Returns:
            Of each target, the mean over rows.
        """
        import torch

        bridge, rows = self.bridge, len(embedded)
        seen: dict[str, Tensor] = {}

        def begin(module: Any, given: Any, values: Tensor) -> Tensor:
            seen["embedded"] = embedded.to(values.dtype).clone().requires_grad_(True)
            return seen["embedded"]

        def keep(name: str, module: Any, given: Any, values: Tensor) -> Tensor:
            seen[name] = values.clone()
            return seen[name]

        depth = self.layers if stop is None else stop + 1
        with torch.enable_grad(), ExitStack() as stack:
            # Readers stand before the replacement: a unit that is replaced then has the gradient 0.
            sites = {"embedded": bridge.blocks[0].hook_in}
            for n in range(depth):
                sites |= {
                    f"heads.{n}": bridge.blocks[n].attn.o.hook_in,
                    f"neurons.{n}": bridge.blocks[n].mlp.out.hook_in,
                }
            sites |= {f"residual.{n}": bridge.blocks[n].hook_out for n in read}
            if attention:
                sites |= {
                    f"attention.{n}": bridge.get_submodule(site_name(bridge, n, "attn_out")) for n in range(depth)
                }
            for name, module in sites.items():
                hook = begin if name == "embedded" else partial(keep, name)
                stack.callback(module.register_forward_hook(hook).remove)
            if replaced is not None:
                spread = Replaced(replaced.heads.expand(rows, -1, -1), replaced.reference)
                stack.enter_context(self.replacing(spread))
            options = {} if stop is None else {"stop_at_layer": depth}
            logits = bridge(tokens.expand(rows, -1), **options)[:, -1].float()
            figures = targets(logits, {n: seen[f"residual.{n}"] for n in read})
            names = [name for name in seen if name != "embedded"]
            found = []
            for index, figure in enumerate(figures):
                more = index + 1 < len(figures)
                got = torch.autograd.grad(
                    figure.sum(), [seen[name] for name in names], retain_graph=more, allow_unused=True
                )
                means = {
                    name: (torch.zeros_like(seen[name][0]) if each is None else each.mean(dim=0)).float()
                    for name, each in zip(names, got, strict=True)
                }
                found.append(self._gathered(means, depth))
        return found

    def _gathered(self, means: Mapping[str, Tensor], depth: int) -> Gradients:
        """Gradients by the name of their site, as one object; zeros above the blocks that were run."""
        import torch

        stacked = {}
        for kind in ("heads", "neurons"):
            run = torch.stack([means[f"{kind}.{n}"] for n in range(depth)])
            above = torch.zeros(self.layers - depth, *run.shape[1:], device=run.device)
            stacked[kind] = torch.cat([run, above])
        sites = {
            kind: {int(name.partition(".")[2]): values for name, values in means.items() if name.startswith(kind)}
            for kind in ("residual", "attention")
        }
        return Gradients(rearrange(stacked["heads"], "l p (h e) -> l p h e", h=self.heads), stacked["neurons"], **sites)


@dataclass(frozen=True)
class Gradients:
    """Of one figure to the units, averaged over the rows of a path.

    Attributes:
        heads, neurons: in the shape of their values.
        residual: by layer.
        attention: likewise, to what the attention adds.
    """

    heads: Heads
    neurons: Neurons
    residual: Mapping[int, Float[Tensor, "positions d_model"]]
    attention: Mapping[int, Float[Tensor, "positions d_model"]]

    def of_heads(self, recorded: Recorded, reference: Recorded) -> Float[Tensor, "layers heads"]:
        """What each head's difference from its reference values adds to the figure, by these gradients."""
        return ((recorded.heads - reference.heads) * self.heads).sum(dim=(1, 3))

    def of_neurons(self, recorded: Recorded, reference: Recorded) -> Float[Tensor, "layers d_mlp"]:
        """The same of neurons."""
        return ((recorded.neurons - reference.neurons) * self.neurons).sum(dim=1)


def path(recorded: Recorded, reference: Recorded, steps: int) -> Float[Tensor, "steps positions d_model"]:
    """What enters block 0 on the way from reference values to the text's own, at the middle of each step.

    Gradients averaged over it are integrated gradients (Sundararajan et al. 2017; over inputs as in Hanna et al. 2024,
    "Have faith in faithfulness").
    """
    import torch

    shares = (torch.arange(steps, device=recorded.residual.device) + 0.5) / steps
    start, end = reference.residual[0], recorded.residual[0]
    return start + shares[:, None, None] * (end - start)

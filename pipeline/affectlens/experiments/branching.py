"""One beginning and many ways to go on, in a single pass: a tree of tokens whose branches do not see each other.

Candidate answers to one question share the question, items set beside the same first item share the first half of the
prompt. Read as a tree they cost what is different about them. A model that takes no attention mask of its own gets
its branches one by one; which it is, is tried once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from affectlens.model.partial import Outcome, PartialForward
from affectlens.model.steering import Edit

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """Token ids: a stem and what may follow it.

    Attributes:
        stem: with the begin token, if there is one; not empty.
        branches: none, or some that are not empty.
    """

    stem: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...] = ()

    @property
    def ids(self) -> list[int]:
        """All tokens, one branch after the other."""
        return [*self.stem, *(token for branch in self.branches for token in branch)]

    @property
    def starts(self) -> list[int]:
        """Where in :attr:`ids` each branch begins."""
        found, place = [], len(self.stem)
        for branch in self.branches:
            found.append(place)
            place += len(branch)
        return found

    @property
    def places(self) -> list[int]:
        """Positions before each token of a branch: the end of the stem, then all but the last of each branch."""
        inner = [range(start, start + len(each) - 1) for start, each in zip(self.starts, self.branches, strict=True)]
        return [len(self.stem) - 1, *(place for places in inner for place in places)]

    def collect(self, found: Float[Tensor, "rows places vocabulary"]) -> Float[Tensor, "rows branches"]:
        """Log-probability of each branch, from those of all tokens after :attr:`places`."""
        import torch

        columns, place = [], 1
        for branch in self.branches:
            own = [0, *range(place, place + len(branch) - 1)]
            place += len(branch) - 1
            columns.append(found[:, own, list(branch)].sum(dim=-1))
        return torch.stack(columns, dim=-1)

    def split(self, budget: int) -> Iterator[Tree]:
        """Trees of at most ``budget`` tokens, or with one branch, that hold all branches in order."""
        taken: list[tuple[int, ...]] = []
        size = len(self.stem)
        for branch in self.branches:
            if taken and size + len(branch) > budget:
                yield Tree(self.stem, tuple(taken))
                taken, size = [], len(self.stem)
            taken.append(branch)
            size += len(branch)
        yield Tree(self.stem, tuple(taken))


class Branching:
    """Passes over trees, from the layer of the intervention up.

    Attributes:
        upper: the model and the layer.
    """

    def __init__(self, upper: PartialForward) -> None:
        self.upper = upper

    def split(self, tree: Tree, budget: int) -> list[Tree]:
        """The tree in pieces that this model can read at once."""
        return list(tree.split(budget if self.shares else 0))

    def lower(self, tree: Tree) -> Float[Tensor, "one positions d_model"]:
        """The residual stream after the layer, untouched."""
        return self.upper.lower(self._tokens(tree, 1), **self._layout(tree))

    def run(
        self,
        tree: Tree,
        lower: Float[Tensor, "one positions d_model"],
        vectors: Float[Tensor, "rows d_model"],
        mask: Bool[Tensor, "positions"],
        *,
        keep: int | Sequence[int] | None,
        read: Sequence[int] = (),
    ) -> Outcome:
        """One pass from the layer up, with a vector a row added after it.

        Args:
            lower: what :meth:`lower` gave.
            vectors: what is added, at full length.
            mask: the positions of the tree that are changed, the same in every row.
            keep, read: as of :meth:`~affectlens.model.partial.PartialForward.run`.
        """
        edit = Edit(self.upper.layer, lambda residual: mask[None, :, None] * vectors[:, None, :])
        rows, residual = len(vectors), lower.expand(len(vectors), -1, -1)
        return self.upper.run(self._tokens(tree, rows), residual, [edit], keep=keep, read=read, **self._layout(tree))

    def plain_scores(self, trees: Sequence[Tree]) -> list[Float[Tensor, "branches"]]:
        """Log-probability of each branch of several trees, untouched, in one pass of the whole model."""
        import torch

        subject, width = self.upper.subject, max(len(tree.ids) for tree in trees)
        rows = [[*tree.ids, *[tree.ids[-1]] * (width - len(tree.ids))] for tree in trees]
        options: dict[str, Any] = {}
        if any(len(tree.branches) > 1 for tree in trees):
            layouts = [layout(tree, subject.dtype, subject.device, width) for tree in trees]
            options = {key: torch.cat([each[key] for each in layouts]) for key in layouts[0]}
        places = sorted({place for tree in trees for place in tree.places})
        tokens = torch.tensor(rows, device=subject.device)
        logits = self.upper.run(tokens, None, keep=places, **options).logits
        index = {place: number for number, place in enumerate(places)}
        found = []
        for row, tree in enumerate(trees):
            mine = logits[row : row + 1, [index[place] for place in tree.places]]
            found.append(tree.collect(mine.log_softmax(dim=-1))[0])
        return found

    def _tokens(self, tree: Tree, rows: int) -> Int[Tensor, "rows positions"]:
        import torch

        return torch.tensor([tree.ids], device=self.upper.subject.device).expand(rows, -1)

    def _layout(self, tree: Tree) -> dict[str, Any]:
        subject = self.upper.subject
        return layout(tree, subject.dtype, subject.device) if len(tree.branches) > 1 else {}

    @cached_property
    def shares(self) -> bool:
        """Whether branches read together give what they give alone."""
        import torch

        size = self.upper.subject.bridge.cfg.d_vocab
        ids = [number * 7 % size for number in range(3, 15)]
        tree = Tree(tuple(ids[:5]), (tuple(ids[5:9]), tuple(ids[9:])))
        alone = [self._whole(Tree(tree.stem, (branch,)))[-1] for branch in tree.branches]
        try:
            found = self._whole(tree)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError):
            return False
        together = [found[len(tree.stem) + len(tree.branches[0]) - 1], found[-1]]
        spread = float(torch.stack(alone).std())
        gaps = [float((mine - apart).abs().max()) for mine, apart in zip(together, alone, strict=True)]
        return max(gaps) < 0.1 * spread

    def _whole(self, tree: Tree) -> Float[Tensor, "positions vocabulary"]:
        return self.upper.run(self._tokens(tree, 1), None, keep=None, **self._layout(tree)).logits[0]


def layout(tree: Tree, dtype: torch.dtype, device: str, width: int = 0) -> dict[str, Any]:
    """Attention mask and positions by which a model reads a tree: each branch sees the stem and itself.

    Args:
        width: padded to so many positions, which see what stands before them and are not seen.
    """
    import torch

    padding = max(0, width - len(tree.ids))
    owners = [0] * len(tree.stem) + [1 + n for n, branch in enumerate(tree.branches) for _ in branch]
    owner = torch.tensor(owners + [-1] * padding)
    positions = [*range(len(tree.stem)), *(len(tree.stem) + n for branch in tree.branches for n in range(len(branch)))]
    positions += [0] * padding
    order = torch.arange(len(owner))
    seen = (order[None, :] <= order[:, None]) & ((owner[None, :] == 0) | (owner[None, :] == owner[:, None]))
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return {"attention_mask": mask[None, None].to(device), "position_ids": torch.tensor([positions], device=device)}

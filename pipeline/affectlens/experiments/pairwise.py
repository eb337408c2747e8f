"""Every ordered pair of items put side by side; under steering, the steered ones against some that are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from affectlens.corpus.texts import read_table
from affectlens.errors import UserError
from affectlens.experiments.conditions import compared
from affectlens.experiments.experiment import Experiment, PairwiseConfig, Scenario

if TYPE_CHECKING:
    import numpy as np

    from affectlens.experiments.context import ExperimentContext
    from affectlens.interventions.conditions import Condition

    Question = tuple[tuple[int, ...], list[int], list[int]]
    """Token ids, and the positions of the first and of the second item's own tokens."""


def items_file(folder: Path, pairwise: PairwiseConfig | None) -> Path | None:
    """The file of items, if they are taken from one: beside the scenarios, or where the path says.

    Raises:
        UserError: there is no such file.
    """
    if pairwise is None or pairwise.items is None:
        return None
    path = pairwise.items.expanduser()
    for candidate in (folder / path, path):
        if candidate.is_file():
            return candidate
    raise UserError(f"{folder / 'experiment.yaml'}: `items: {path}`: no such file; give a CSV with text and category")


def read_items(path: Path) -> tuple[Scenario, ...]:
    """The rows of a CSV as scenarios.

    Raises:
        UserError: a column is missing, or a text is empty.
    """
    rows = read_table(path)
    if len(rows) < 2 or not {"text", "category"} <= set(rows[0]):
        raise UserError(f"{path}: a table of items needs the columns `text` and `category` and at least two rows")
    items = []
    for number, row in enumerate(rows):
        text = (row["text"] or "").strip()
        if not text:
            raise UserError(f"{path} line {number + 2}: the text is empty; fill it in or remove the row")
        name = f"item-{number:04d}"
        factors = {"category": (row["category"] or "").strip()}
        items.append(Scenario(name, name, "main", factors, (), text, {}, "", {}, {}))
    return tuple(items)


def with_items(experiment: Experiment, path: Path | None) -> Experiment:
    """The experiment with the items of the file in place of its scenarios."""
    return experiment if path is None else replace(experiment, scenarios=read_items(path))


def steered_items(items: int, pairwise: PairwiseConfig) -> list[int]:
    """Indices of the items that are steered."""
    return list(range(0, items, 2))[: pairwise.steered]


def pairs(items: int, pairwise: PairwiseConfig) -> dict[int, list[int]]:
    """Per item the items that it, standing first, is compared with under steering.

    A steered item meets items that are not steered, each of them about as often as the others, and they meet it.
    """
    steered = steered_items(items, pairwise)
    others = [index for index in range(items) if index not in set(steered)]
    count = min(len(others), pairwise.comparisons or len(others))
    met: dict[int, list[int]] = {index: [] for index in range(items)}
    for place, item in enumerate(steered):
        for number in range(count):
            other = others[(place + number * len(others) // count) % len(others)]
            met[item].append(other)
            met[other].append(item)
    return {item: sorted(set(second)) for item, second in met.items()}


def measure(context: ExperimentContext, experiment: Experiment, start: int, end: int) -> dict[str, np.ndarray]:
    """The rows of some first items: ``comparisons`` of shape ``compared rows items``, in nats."""
    import numpy as np

    pairwise: PairwiseConfig = experiment.config.outcome(PairwiseConfig)
    items = [scenario.text for scenario in experiment.scenarios]
    grid = context.grid(experiment)
    conditions = [grid[index] for index in compared(experiment.config, context.concepts)]
    found = np.full((len(conditions), end - start, len(items)), np.nan, np.float32)
    met = pairs(len(items), pairwise)
    for row, first in enumerate(range(start, end)):
        against = [second for second in range(len(items)) if second != first]
        asked = {second: question(context, pairwise, items[first], items[second]) for second in against}
        found[0, row, against] = _compare(context, experiment, asked, conditions[:1], first)[0]
        if met[first] and len(conditions) > 1:
            chosen = {second: asked[second] for second in met[first]}
            found[1:, row, met[first]] = _compare(context, experiment, chosen, conditions[1:], first)
    return {"comparisons": found}


def question(context: ExperimentContext, pairwise: PairwiseConfig, first: str, second: str) -> Question:
    """The question about two items, tokenised."""
    from affectlens.corpus.documents import Document
    from affectlens.experiments.prompts import beginning, tokenise_document

    # Both are filled in at once, so that an item may hold a brace.
    a, b = pairwise.question.index("{a}"), pairwise.question.index("{b}")
    (low, one), (high, other) = sorted([(a, first), (b, second)])
    text = pairwise.question[:low] + one + pairwise.question[low + 3 : high] + other + pairwise.question[high + 3 :]
    moved = high - 3 + len(one)
    starts = {"a": a if a < b else moved, "b": b if b < a else moved}
    spans = {name: [[0, starts[name], starts[name] + len(item)]] for name, item in (("a", first), ("b", second))}
    document = Document(0, "item", "", "", "", "test", text, ({"role": "user", "content": text},), spans)
    read = tokenise_document(context.subject.tokenizer, document, "the question of the comparisons", ["answer"])
    ids = (*read.lead, *read.ids.tolist(), *beginning(context.subject.tokenizer, pairwise.answer))
    places = [
        [len(read.lead) + int(read.kept[index]) for low, high in read.spans[name] for index in range(low, high)]
        for name in ("a", "b")
    ]
    return ids, places[0], places[1]


def _compare(
    context: ExperimentContext,
    experiment: Experiment,
    asked: Mapping[int, Question],
    conditions: Sequence[Condition],
    first: int,
) -> np.ndarray:
    """Log-odds that ``first`` is preferred to each of the others, shape ``conditions others``."""
    import numpy as np
    import torch

    from affectlens.experiments.branching import Tree
    from affectlens.experiments.choice import runs
    from affectlens.model.tokens import continuation

    pairwise: PairwiseConfig = experiment.config.outcome(PairwiseConfig)
    one, other = (continuation(context.subject.tokenizer, pairwise.answer, each)[0] for each in pairwise.labels)
    if one == other:
        raise UserError(
            f"experiment {experiment.name}: `labels` {pairwise.labels} begin with the same token; take others"
        )
    steered = set(steered_items(len(experiment.scenarios), pairwise))
    vectors = context.pushes(conditions, experiment.config.steering.by if experiment.config.steering else "directions")
    # All questions share what stands before the second item; from the first token that differs on they are branches.
    rows = [ids for ids, _, _ in asked.values()]
    most = min(second[0] for _, _, second in asked.values())
    stem = next((place for place in range(most) if len({row[place] for row in rows}) > 1), most)
    found, left = [], iter(asked.items())
    tree = Tree(rows[0][:stem], tuple(ids[stem:] for ids in rows))
    for piece in context.branching.split(tree, context.config.tokens_per_batch):
        mask = torch.zeros(len(piece.ids), dtype=torch.bool)
        for begin, (second, (_, a, b)) in zip(piece.starts, left, strict=False):
            places = (a if first in steered else []) + (b if second in steered else [])
            mask[[place if place < stem else begin + place - stem for place in places]] = True
        mask, lower, parts = mask.to(context.setting.device), context.branching.lower(piece), []
        last = [start + len(branch) - 1 for start, branch in zip(piece.starts, piece.branches, strict=True)]
        for run in runs(len(conditions), len(piece.ids), context.config.tokens_per_batch):
            logits = context.branching.run(piece, lower, vectors[run], mask, keep=last).logits
            parts.append((logits[..., one] - logits[..., other]).cpu().numpy())
        found.append(np.concatenate(parts))
    return np.concatenate(found, axis=1)

"""Every ordered pair of items put side by side; under steering, the steered ones against some that are not."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.errors import UserError
from affectlens.experiments.conditions import compared, grid
from affectlens.experiments.experiment import Experiment, PairwiseConfig, Scenario

if TYPE_CHECKING:
    import numpy as np

    from affectlens.experiments.context import ExperimentContext
    from affectlens.experiments.results import Cell


def items_file(folder: Path, tournament: PairwiseConfig | None) -> Path | None:
    """The file of items, if the tournament takes them from one: beside the scenarios, or where the path says.

    Raises:
        UserError: there is no such file.
    """
    if tournament is None or tournament.items is None:
        return None
    path = tournament.items.expanduser()
    for candidate in (folder / path, path):
        if candidate.is_file():
            return candidate
    raise UserError(f"{folder / 'experiment.yaml'}: `items: {path}`: no such file; give a CSV with text and category")


def read_items(path: Path) -> tuple[Scenario, ...]:
    """The rows of a CSV as scenarios.

    Raises:
        UserError: a column is missing, or a text is empty.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if len(rows) < 2 or not {"text", "category"} <= set(rows[0]):
        raise UserError(f"{path}: a table of items needs the columns `text` and `category` and at least two rows")
    found = []
    for number, row in enumerate(rows):
        text = (row["text"] or "").strip()
        if not text:
            raise UserError(f"{path} line {number + 2}: the text is empty; fill it in or remove the row")
        name = f"item-{number:04d}"
        factors = {"category": (row["category"] or "").strip()}
        found.append(Scenario(name, name, "main", factors, (), text, {}, "", {}, {}))
    return tuple(found)


def with_items(experiment: Experiment, path: Path | None) -> Experiment:
    """The experiment with the items of the file in place of its scenarios."""
    return experiment if path is None else replace(experiment, scenarios=read_items(path))


def steered_items(items: int, tournament: PairwiseConfig) -> list[int]:
    """Indices of the items that are steered."""
    return list(range(0, items, 2))[: tournament.steered]


def opponents(items: int, tournament: PairwiseConfig) -> dict[int, list[int]]:
    """The items that are not steered which each steered item meets: each of them about as often as the others."""
    steered = steered_items(items, tournament)
    others = [index for index in range(items) if index not in set(steered)]
    count = min(len(others), tournament.opponents or len(others))
    if not count:
        return {}
    return {
        item: sorted({others[(place + number * len(others) // count) % len(others)] for number in range(count)})
        for place, item in enumerate(steered)
    }


def met(item: int, items: int, tournament: PairwiseConfig) -> list[int]:
    """The items that ``item``, standing first, meets under steering."""
    pairs = opponents(items, tournament)
    return pairs.get(item) or sorted(steered for steered, others in pairs.items() if item in others)


def measure(context: ExperimentContext, experiment: Experiment, start: int, end: int) -> dict[str, np.ndarray]:
    """The rows of some first items: ``tournament`` of shape ``tournament_cells rows items``, in nats."""
    import numpy as np

    tournament: PairwiseConfig = experiment.config.outcome(PairwiseConfig)
    items = [scenario.text for scenario in experiment.scenarios]
    cells = [grid(experiment.config.steering)[index] for index in compared(experiment.config)]
    found = np.full((len(cells), end - start, len(items)), np.nan, np.float32)
    for row, first in enumerate(range(start, end)):
        against = [second for second in range(len(items)) if second != first]
        pairs = {second: _pair(context, tournament, items[first], items[second], second) for second in against}
        found[0, row, against] = _compare(context, experiment, pairs, cells[:1], first)[0]
        meets = met(first, len(items), tournament) if len(cells) > 1 else []
        if meets:
            chosen = {second: pairs[second] for second in meets}
            found[1:, row, meets] = _compare(context, experiment, chosen, cells[1:], first)
    return {"tournament": found}


def _pair(context: ExperimentContext, tournament: PairwiseConfig, first: str, second: str, number: int) -> Any:
    """Token ids of the question about two items, and the positions of each item's own tokens."""
    from affectlens.corpus.documents import Document
    from affectlens.experiments.prompts import beginning, tokenise_document

    question, spans = "", {}
    for piece in _pieces(tournament.question):
        text = {"{a}": first, "{b}": second}.get(piece, piece)
        if piece in ("{a}", "{b}"):
            spans.setdefault(piece[1], [[0, len(question), len(question) + len(text)]])
        question += text
    messages = ({"role": "user", "content": question},)
    document = Document(number, "item", "", "", "", "test", question, messages, spans)
    text = tokenise_document(context.subject.tokenizer, document, "the question of the tournament", ["answer"])
    ids = (*text.lead, *text.ids.tolist(), *beginning(context.subject.tokenizer, tournament.answer))
    places = {
        name: [len(text.lead) + int(text.kept[index]) for low, high in text.spans[name] for index in range(low, high)]
        for name in ("a", "b")
    }
    return ids, places["a"], places["b"]


def _pieces(question: str) -> list[str]:
    before, _, rest = question.partition("{a}")
    if "{b}" in before:
        left, _, right = before.partition("{b}")
        return [left, "{b}", right, "{a}", rest]
    middle, _, after = rest.partition("{b}")
    return [before, "{a}", middle, "{b}", after]


def _compare(
    context: ExperimentContext, experiment: Experiment, pairs: dict[int, Any], cells: Sequence[Cell], first: int
) -> np.ndarray:
    """Log-odds that ``first`` is preferred to each of the others, shape ``cells others``."""
    import numpy as np
    import torch

    from affectlens.experiments.branching import Push, Tree
    from affectlens.experiments.choice import runs

    tournament: PairwiseConfig = experiment.config.outcome(PairwiseConfig)
    steered = set(steered_items(len(experiment.scenarios), tournament))
    by = experiment.config.steering.by if experiment.config.steering else "directions"
    labels = _labels(context, tournament, experiment.name)
    stem = _common([ids for ids, _, _ in pairs.values()], min(b[0] for _, _, b in pairs.values()))
    prompts = list(pairs.items())
    tree = Tree(prompts[0][1][0][:stem], tuple(ids[stem:] for _, (ids, _, _) in prompts))
    found, taken = [], 0
    for piece in context.branching.split(tree, context.config.tokens_per_batch):
        mask, mine = torch.zeros(len(piece.ids), dtype=torch.bool), prompts[taken : taken + len(piece.branches)]
        for begin, (second, (_, a, b)) in zip(piece.starts, mine, strict=True):
            places = (a if first in steered else []) + (b if second in steered else [])
            mask[[place if place < stem else begin + place - stem for place in places]] = True
        taken += len(mine)
        lower, last = (
            context.branching.lower(piece),
            [s + len(b) - 1 for s, b in zip(piece.starts, piece.branches, strict=True)],
        )
        rows = []
        for run in runs(len(cells), len(piece.ids), context.config.tokens_per_batch):
            push = Push(context.pushes(cells[run], by), mask.to(context.setting.device))
            chances = context.branching.log_probabilities(piece, lower, push, last)
            rows.append((chances[..., labels[0]] - chances[..., labels[1]]).cpu().numpy())
        found.append(np.concatenate(rows))
    return np.concatenate(found, axis=1)


def _common(rows: Sequence[Sequence[int]], most: int) -> int:
    """How many first tokens all rows share, at most ``most``."""
    return next((place for place in range(most) if len({row[place] for row in rows}) > 1), most)


def _labels(context: ExperimentContext, tournament: PairwiseConfig, name: str) -> tuple[int, int]:
    """The first token of each label.

    Raises:
        UserError: they begin with the same token.
    """
    from affectlens.experiments.prompts import continuation

    one, other = (continuation(context.subject.tokenizer, tournament.answer, label)[0] for label in tournament.labels)
    if one == other:
        raise UserError(f"experiment {name}: `labels` {tournament.labels} begin with the same token; take others")
    return one, other

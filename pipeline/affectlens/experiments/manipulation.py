"""Whether a push does what it is for, and what it costs: own words in neutral frames, perplexity on neutral text.

Checked once for all experiments: a vector at a strength is the same push whoever asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from affectlens.experiments.conditions import grid
from affectlens.experiments.experiment import Experiment
from affectlens.experiments.results import Cell

if TYPE_CHECKING:
    import numpy as np

    from affectlens.experiments.context import Bench

WORDS = 6
"""Most words a concept is scored by."""
FRAMES = 6
"""Sentences completed, of each kind: about a described person, and about the speaker."""
TEXTS = 2
"""Neutral texts whose perplexity is measured."""


@dataclass(frozen=True)
class Check:
    """One push as it is checked.

    Attributes:
        by: kind of vector; empty for controls, which are the same for both.
        positions: as in the experiment.
    """

    cell: Cell
    by: str
    positions: str


def check_of(cell: Cell, experiment: Experiment) -> Check:
    """Where an experiment finds what its cell does."""
    steering = experiment.config.steering
    assert steering is not None
    return Check(cell, steering.by if cell.family == "concept" else "", steering.positions)


def checks(experiments: Sequence[Experiment]) -> list[Check]:
    """Every push of the experiments, each once, in a fixed order."""
    found = {
        check_of(cell, experiment)
        for experiment in experiments
        if experiment.config.steering
        for cell in grid(experiment.config.steering)[1:]
    }
    return sorted(
        found, key=lambda each: (each.positions, each.by, each.cell.family, each.cell.vector, each.cell.strength)
    )


def measure(bench: Bench, wanted: Sequence[Check]) -> dict[str, np.ndarray]:
    """Change of every concept's words in nats, and the perplexity ratio, push by push.

    Returns:
        ``effect`` of shape ``pushes concepts``, the mean over frames; ``perplexity`` of shape ``pushes``.
    """
    import numpy as np

    from affectlens.interventions.frames import choose_words, read_frames, read_lexicon
    from affectlens.interventions.scoring import Scorer, injection

    subject, frames = bench.subject, read_frames()
    words = choose_words(subject.tokenizer, bench.concepts, read_lexicon(), WORDS)
    scorer = Scorer(bench.branching.upper, words, bench.config.tokens_per_batch)
    contexts = [scorer.context(frame) for kind in ("person", "speaker") for frame in frames[kind][:FRAMES]]
    texts = [subject.encode(text) for text in frames["neutral"][:TEXTS]]
    effect = np.zeros((len(wanted), len(bench.concepts)), np.float32)
    perplexity = np.zeros(len(wanted), np.float32)
    for positions in sorted({each.positions for each in wanted}):
        rows = [index for index, each in enumerate(wanted) if each.positions == positions]
        vectors = bench.tensor(np.stack([bench.unit_vector(wanted[index].cell, wanted[index].by) for index in rows]))
        doses, units = bench.tensor([wanted[index].cell.strength for index in rows]), {bench.layer: bench.unit}
        last = injection(vectors, doses, units, subject.lead, "last" if positions == "answer" else "all")
        effect[rows] = np.mean([scorer.score(context, len(rows), last).effect for context in contexts], axis=0)
        everywhere = injection(vectors, doses, units, subject.lead)
        gained = [scorer.losses(text, len(rows), everywhere) - scorer.losses(text, 1, None) for text in texts]
        perplexity[rows] = np.exp(np.average(gained, axis=0, weights=[len(text) for text in texts]))
    return {"effect": effect, "perplexity": perplexity}


def for_experiment(
    experiment: Experiment, wanted: Sequence[Check], found: Mapping[str, np.ndarray], concepts: Sequence[str]
) -> dict[str, np.ndarray]:
    """The arrays of ``Measured.manipulation``: one row for each cell of the experiment."""
    import numpy as np

    cells = grid(experiment.config.steering)
    result = {"rises": np.zeros((len(cells), len(concepts))), "perplexity": np.ones(len(cells))}
    place = {check: index for index, check in enumerate(wanted)}
    for number, cell in enumerate(cells[1:], start=1):
        row = place[check_of(cell, experiment)]
        result["rises"][number] = found["effect"][row]
        result["perplexity"][number] = found["perplexity"][row]
    return result

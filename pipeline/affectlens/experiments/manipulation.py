"""Whether a push does what it is for, and what it costs: own words in neutral frames, perplexity on neutral text.

Checked for each experiment by itself, though two may ask for the same push: the check is a five-hundredth of their
cost, and an experiment that is added leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from affectlens.experiments.conditions import grid
from affectlens.experiments.experiment import Experiment

if TYPE_CHECKING:
    import numpy as np

    from affectlens.experiments.context import ExperimentContext

WORDS = 6
"""Most words a concept is scored by."""
FRAMES = 6
"""Sentences completed, of each kind: about a described person, and about the speaker."""
TEXTS = 2
"""Neutral texts whose perplexity is measured."""


def measure(context: ExperimentContext, experiment: Experiment, start: int, end: int) -> dict[str, np.ndarray]:
    """Change of every concept's words in nats, and the perplexity ratio, for a slice of the cells that are steered.

    Returns:
        ``effect`` of shape ``pushes concepts``, the mean over frames; ``perplexity`` of shape ``pushes``.
    """
    import numpy as np

    from affectlens.interventions.frames import choose_words, read_frames, read_lexicon
    from affectlens.interventions.scoring import Scorer, injection

    subject, frames = context.subject, read_frames()
    words = choose_words(subject.tokenizer, context.concepts, read_lexicon(), WORDS)
    scorer = Scorer(context.branching.upper, words, context.config.tokens_per_batch)
    prompts = [scorer.context(frame) for kind in ("person", "speaker") for frame in frames[kind][:FRAMES]]
    texts = [subject.encode(text) for text in frames["neutral"][:TEXTS]]
    steering = experiment.config.steering
    assert steering is not None
    cells = grid(steering)[1:][start:end]
    vectors = context.tensor(np.stack([context.unit_vector(cell, steering.by) for cell in cells]))
    doses, units = context.tensor([cell.strength for cell in cells]), {context.layer: context.unit}
    last = injection(vectors, doses, units, subject.lead, "last" if steering.positions == "answer" else "all")
    effect = np.mean([scorer.score(prompt, len(cells), last).effect for prompt in prompts], axis=0)
    everywhere = injection(vectors, doses, units, subject.lead)
    gained = [scorer.losses(text, len(cells), everywhere) - scorer.losses(text, 1, None) for text in texts]
    perplexity = np.exp(np.average(gained, axis=0, weights=[len(text) for text in texts]))
    return {"effect": effect.astype(np.float32), "perplexity": perplexity.astype(np.float32)}


def for_experiment(
    experiment: Experiment, found: Mapping[str, np.ndarray], concepts: Sequence[str]
) -> dict[str, np.ndarray]:
    """The arrays of ``Measured.manipulation``: one row for each cell of the experiment, the first without steering."""
    import numpy as np

    cells = grid(experiment.config.steering)
    rises, perplexity = np.zeros((len(cells), len(concepts))), np.ones(len(cells))
    if len(cells) > 1:
        rises[1:], perplexity[1:] = found["effect"], found["perplexity"]
    return {"rises": rises, "perplexity": perplexity}

"""Whether a push does what it is for, and what it costs: own words in neutral frames, perplexity on neutral text.

Checked for each experiment by itself, though two may ask for the same push: the check is a five-hundredth of their
cost, and an experiment that is added leaves the others as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from affectlens.experiments.conditions import checked
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
    """Change of every concept's words in nats, and the perplexity ratio, under a slice of the checked conditions.

    Returns:
        ``rises`` of shape ``conditions concepts``, the mean over frames; ``perplexity`` of shape ``conditions``.
    """
    import numpy as np

    from affectlens.interventions.frames import read_frames, read_lexicon
    from affectlens.interventions.scoring import Scorer, injection, perplexity_ratios
    from affectlens.model.words import choose_words

    steering, subject = experiment.config.steering, context.subject
    assert steering is not None
    pushed = checked(steering, context.concepts)[start:end]
    words = choose_words(subject.tokenizer, context.concepts, read_lexicon(), WORDS)
    scorer = Scorer(context.branching.upper, words, context.config.tokens_per_batch)
    frames = read_frames()
    prompts = [scorer.context(frame) for kind in ("person", "speaker") for frame in frames[kind][:FRAMES]]
    vectors = context.tensor(np.stack([context.unit_vector(each, steering.by) for each in pushed]))
    doses, units = context.tensor([each.strength for each in pushed]), {context.layer: context.unit}
    last = injection(vectors, doses, units, subject.lead, "last" if steering.positions == "answer" else "all")
    rises = np.mean([scorer.score(prompt, len(pushed), last).effect for prompt in prompts], axis=0)
    everywhere = injection(vectors, doses, units, subject.lead)
    return {
        "rises": rises.astype(np.float32),
        "perplexity": perplexity_ratios(scorer, everywhere, len(pushed), TEXTS),
    }

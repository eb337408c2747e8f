"""The log-odds of candidate answers under every steering condition, and the readings in the same pass.

An answer's log-probability is that of all its tokens. Where the experiment names a neutral lead-in, the answer's
log-probability after that lead-in, under the same push, is taken off: how likely the wording is anyhow says nothing of
the scenario (domain-conditional PMI; Holtzman et al. 2021, arXiv 2104.08315).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from affectlens.experiments.branching import Tree
from affectlens.experiments.context import ExperimentContext
from affectlens.experiments.experiment import ChoiceConfig, Experiment, Scenario
from affectlens.experiments.prompts import Prompt, read_prompt
from affectlens.experiments.readings import values_at
from affectlens.interventions.conditions import Condition
from affectlens.model.tokens import continuation, plan_batches

Scores = Float[np.ndarray, "conditions answers"]


def measure(
    context: ExperimentContext, experiment: Experiment, scenarios: Sequence[int], conditions: Sequence[int]
) -> dict[str, np.ndarray]:
    """A block of scenarios under a block of steering conditions.

    Args:
        scenarios: first, and first after the last.
        conditions: likewise, in the order of the experiment's grid.

    Returns:
        ``choice`` and ``choice_per_token`` of shape ``conditions scenarios``, NaN where a scenario has no options, and
        for experiments that read under steering ``residual.NAME`` of shape ``conditions scenarios d_model``.
    """
    config, tokenizer = experiment.config, context.subject.tokenizer
    choice: ChoiceConfig | None = config.outcome(ChoiceConfig)
    pushed = context.grid(experiment)[slice(*conditions)]
    asked = experiment.scenarios[slice(*scenarios)]
    prompts = [read_prompt(tokenizer, scenario, config.readings) for scenario in asked]
    answers = [candidates(context, scenario, choice) for scenario in asked]
    neutral = []
    if choice is not None and choice.lead_in:
        neutral = [read_prompt(tokenizer, led_in(scenario, choice.lead_in), ()) for scenario in asked]
    readings: list[dict[str, np.ndarray]] = []
    scores: list[Scores] = []
    if config.steering is None:
        trees = [Tree(prompt.ids, own) for prompt, own in zip([*prompts, *neutral], answers * 2, strict=False)]
        scores = unsteered(context, trees)
    for number, prompt in enumerate([*prompts, *neutral] if config.steering is not None else ()):
        scenario, own = asked[number % len(asked)], answers[number % len(asked)]
        reads = config.read_under_steering and number < len(asked)
        # A prompt that serves as positive control is not steered itself.
        plain = scenario.condition in config.prompted and not config.read_under_steering
        under = [each for each in pushed if each.family == "none"] if plain else pushed
        scores.append(np.full((len(pushed), len(own)), np.nan))
        if under:
            scores[-1][: len(under)], read = steered(context, experiment, prompt, own, under, reads=reads)
            readings += [read] if reads else []
    arrays = {key: np.stack([row[key] for row in readings], axis=1) for key in (readings[0] if readings else ())}
    if choice is not None:
        odds = np.full((2, len(pushed), len(asked)), np.nan)
        for column, (scenario, own, whole) in enumerate(zip(asked, answers, scores, strict=False)):
            targets, lengths = len(scenario.options.get(choice.target, ())), [len(tokens) for tokens in own]
            if 0 < targets < len(own):
                led = whole - scores[len(asked) + column] if neutral else whole
                odds[0, :, column] = log_odds(led / lengths if choice.per_token else led, targets)
                odds[1, :, column] = log_odds(whole / lengths, targets)
        arrays |= {"choice": odds[0], "choice_per_token": odds[1]}
    return {key: values.astype(np.float32) for key, values in arrays.items()}


def candidates(
    context: ExperimentContext, scenario: Scenario, choice: ChoiceConfig | None
) -> tuple[tuple[int, ...], ...]:
    """Token ids of the candidate answers, those of the target first."""
    if choice is None:
        return ()
    before = scenario.answer if scenario.messages else scenario.text
    wordings = [*scenario.options.get(choice.target, ()), *scenario.options.get(choice.other, ())]
    return tuple(tuple(continuation(context.subject.tokenizer, before, wording)) for wording in wordings)


def led_in(scenario: Scenario, lead_in: str) -> Scenario:
    """The neutral lead-in in place of what the scenario says; the answer begins alike."""
    if scenario.messages:
        return replace(scenario, messages=({"role": "user", "content": lead_in},), spans={})
    return replace(scenario, text=lead_in, spans={})


def unsteered(context: ExperimentContext, trees: Sequence[Tree]) -> list[Scores]:
    """Log-probability of every branch of many trees in the untouched model, one row each, many trees at once."""
    budget = context.config.tokens_per_batch
    pieces = [
        (index, piece)
        for index, tree in enumerate(trees)
        for piece in context.branching.split(tree, budget)
        if piece.branches
    ]
    scores = [np.zeros(0)] * len(pieces)
    for batch in plan_batches([len(piece.ids) for _, piece in pieces], budget):
        found = context.branching.plain_scores([pieces[number][1] for number in batch])
        for number, values in zip(batch, found, strict=True):
            scores[number] = values.cpu().numpy()
    whole: list[list[np.ndarray]] = [[np.zeros(0)] for _ in trees]
    for (index, _), values in zip(pieces, scores, strict=True):
        whole[index].append(values)
    return [np.concatenate(parts)[None] for parts in whole]


def steered(
    context: ExperimentContext,
    experiment: Experiment,
    prompt: Prompt,
    branches: tuple[tuple[int, ...], ...],
    pushed: Sequence[Condition],
    *,
    reads: bool,
) -> tuple[Scores, dict[str, np.ndarray]]:
    """Log-probability of every branch after a prompt under every condition, and the readings if they are wanted."""
    steering, layer = experiment.config.steering, context.reading_layer(experiment)
    assert steering is not None
    vectors = context.pushes(pushed, steering.by)
    scores, rows = [np.zeros((len(pushed), 0))], []
    for number, piece in enumerate(
        context.branching.split(Tree(prompt.ids, branches), context.config.tokens_per_batch)
    ):
        # The stem is the same in every piece, so it is read in the first.
        read = [layer] if reads and number == 0 else []
        if not piece.branches and not read:
            continue
        lower, width, parts = context.branching.lower(piece), len(piece.ids), []
        mask = context.tensor(np.arange(width) >= first_pushed(experiment, prompt)).bool()
        for run in runs(len(pushed), width, context.config.tokens_per_batch):
            keep = piece.places if piece.branches else 0
            outcome = context.branching.run(piece, lower, vectors[run], mask, keep=keep, read=read)
            rows += [values_at(context, experiment, prompt, each) for at in read for each in outcome.residuals[at]]
            if piece.branches:
                parts.append(piece.collect(outcome.logits.log_softmax(dim=-1)).cpu().numpy())
        scores += [np.concatenate(parts)] if parts else []
    return np.concatenate(scores, axis=1), {key: np.stack([row[key] for row in rows]) for key in (rows[:1] or [{}])[0]}


def first_pushed(experiment: Experiment, prompt: Prompt) -> int:
    """The first position that an experiment steers."""
    steering = experiment.config.steering
    return prompt.opening if steering and steering.positions == "answer" else prompt.first


def log_odds(scores: Float[np.ndarray, "rows answers"], targets: int) -> Float[np.ndarray, "rows"]:
    """Log-mean-exp over the target's wordings, which come first, less that over the others, in nats."""
    from scipy.special import logsumexp

    first, second = (
        logsumexp(side, axis=1) - np.log(side.shape[1])
        for side in np.split(scores.astype(np.float64), [targets], axis=1)
    )
    return first - second


def runs(rows: int, width: int, budget: int) -> list[slice]:
    """Rows in runs that together hold about ``budget`` tokens."""
    step = max(1, budget // max(1, width))
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]

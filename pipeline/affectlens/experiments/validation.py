"""Which experiments a study runs, and whether they fit the study: everything that can be seen before a model loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from affectlens.config import nearest
from affectlens.errors import ConfigError, UserError
from affectlens.experiments.experiment import (
    ChoiceConfig,
    CompletionConfig,
    Experiment,
    PairwiseConfig,
    read_experiment,
)
from affectlens.experiments.pairwise import items_file, with_items
from affectlens.shipped import experiments_folder


def names_in(folder: Path) -> list[str]:
    """The experiments of a folder, alphabetically.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = experiments_folder(folder.expanduser())
    if not folder.is_dir():
        raise ConfigError(
            f"`experiments.folder: {folder}`: no such folder; give the one that holds a folder for each experiment"
        )
    return sorted(path.parent.name for path in folder.glob("*/experiment.yaml"))


def chosen_names(folder: Path, run: Sequence[str] | str) -> list[str]:
    """The names asked for, in the order given.

    Raises:
        ConfigError: one does not exist; names the nearest.
    """
    if not run:
        return []
    known = names_in(folder)
    if run == "all":
        if not known:
            raise ConfigError(
                f"`experiments.folder: {folder}`: holds no experiment; one is a folder in it with experiment.yaml"
            )
        return known
    for name in run:
        if name not in known:
            hint = nearest(name, known) if known else "the folder holds none"
            raise ConfigError(f"`experiments.run: {name}`: {folder / name} is no experiment; {hint}")
    if len(set(run)) < len(run):
        raise ConfigError("`experiments.run`: name each experiment once")
    return list(run)


def read_chosen(folder: Path, run: Sequence[str] | str, limit: int | None = None) -> list[Experiment]:
    """The experiments asked for, read from their folders.

    Args:
        limit: of each only so many groups of scenarios, spread evenly over the file.
    """
    found = []
    for name in chosen_names(folder, run):
        place = experiments_folder(folder.expanduser()) / name
        experiment = read_experiment(place)
        experiment = with_items(experiment, items_file(place, experiment.config.outcome(PairwiseConfig)))
        found.append(experiment if limit is None else limited(experiment, limit))
    return found


def limited(experiment: Experiment, groups: int) -> Experiment:
    """The experiment with so many groups of scenarios, spread evenly."""
    names = list(dict.fromkeys(scenario.group for scenario in experiment.scenarios))
    count = min(groups, len(names))
    kept = {names[number * len(names) // count] for number in range(count)}
    return replace(experiment, scenarios=tuple(each for each in experiment.scenarios if each.group in kept))


def check_experiment(experiment: Experiment, concepts: Sequence[str], *, second: bool) -> None:
    """Refuse an experiment that cannot be measured or concluded in this study.

    Args:
        concepts: of the study.
        second: whether the study has a second model.

    Raises:
        UserError: the first fault found, in one sentence.
    """
    for fault in _faults(experiment, concepts, second):
        raise UserError(f"experiment {experiment.name}: {fault}")


def _faults(experiment: Experiment, concepts: Sequence[str], second: bool) -> Iterator[str]:
    from affectlens.experiments.conclude.analysis import faults  # loads numpy

    config = experiment.config
    if not experiment.scenarios:
        yield "scenarios.jsonl holds no scenario; write at least one"
    for vector in config.steering.vectors if config.steering else ():
        if vector not in concepts:
            yield (
                f"`steering.vectors: {vector}`: the study has no such concept; {nearest(vector, list(concepts))}, or "
                "add it to `corpus.emotions`"
            )
    conditions = {scenario.condition for scenario in experiment.scenarios}
    for prompt in config.prompts:
        if prompt.of not in conditions:
            yield f"`prompts`: no scenario has the condition `{prompt.of}`; {nearest(prompt.of, sorted(conditions))}"
    if config.against and not second:
        yield "it compares two models; give the second as `experiments.against`"
    known = {name for scenario in experiment.scenarios for name in scenario.spans}
    known |= {message["role"] for scenario in experiment.scenarios for message in scenario.messages}
    for reading in config.readings:
        kind, _, span = reading.at.partition(":")
        if span and span not in known:
            hint = nearest(span, sorted(known)) if known else "the scenarios name none"
            yield f"reading `{reading.name}`: no scenario has the span `{span}` ({kind}); {hint}"
        if reading.by == "features" and config.read_under_steering:
            yield f"reading `{reading.name}`: features are read at the study's own layer, so not under steering"
    yield from _outcome_faults(experiment)
    for analysis in config.analyses:
        yield from (f"analysis `{analysis.kind}`: {fault}" for fault in faults(analysis, experiment, concepts))


def _outcome_faults(experiment: Experiment) -> Iterator[str]:
    choice: ChoiceConfig | None = experiment.config.outcome(ChoiceConfig)
    if choice is not None:
        asked = [scenario for scenario in experiment.scenarios if scenario.options]
        if not asked:
            yield "the outcome `choice` needs `options`, and no scenario has any"
        for scenario in asked:
            for key in (choice.target, choice.other):
                if not scenario.options.get(key):
                    yield f"scenario {scenario.id}: `options` has no `{key}`, which the outcome `choice` asks about"
            if any(not wording.strip() for wordings in scenario.options.values() for wording in wordings):
                yield f"scenario {scenario.id}: one of its `options` is empty; write an answer"
    pairwise: PairwiseConfig | None = experiment.config.outcome(PairwiseConfig)
    if pairwise is not None:
        for name in ("{a}", "{b}"):
            if pairwise.question.count(name) != 1:
                yield f"`question` of the comparisons must hold {name} once"
        if len(experiment.scenarios) < 2 or not all(scenario.text for scenario in experiment.scenarios):
            yield "the items that are compared are scenarios with a `text`, two at least"
    outcome: CompletionConfig | None = experiment.config.outcome(CompletionConfig)
    if outcome is not None:
        conditions = {scenario.condition for scenario in experiment.scenarios}
        for condition in outcome.conditions:
            if condition not in conditions:
                hint = nearest(condition, sorted(conditions))
                yield f"outcome `completions`: no scenario has the condition `{condition}`; {hint}"
    answered = [] if choice is None and outcome is None else experiment.scenarios
    for scenario in answered:
        if scenario.messages and scenario.messages[-1]["role"] == "assistant" and (outcome or scenario.options):
            yield f"scenario {scenario.id}: its last message is the assistant's own, so nothing is left to answer"

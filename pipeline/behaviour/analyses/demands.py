"""What the analyses of an experiment ask for, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.behaviour.analyses.config import (
    AccuracyConfig,
    AnalysisConfig,
    ArcConfig,
    CourseConfig,
    DoseConfig,
    MaskingConfig,
    PartingConfig,
    PreferenceConfig,
    RateConfig,
    ShiftConfig,
)
from pipeline.behaviour.analyses.selection import signed
from pipeline.behaviour.experiment import (
    ChoiceConfig,
    Experiment,
    ExperimentConfig,
    RolloutConfig,
    TournamentConfig,
)
from pipeline.errors import UserError

NEEDED = {
    DoseConfig: (ChoiceConfig,),
    RateConfig: (RolloutConfig,),
    PartingConfig: (RolloutConfig,),
    PreferenceConfig: (TournamentConfig,),
    AccuracyConfig: (ChoiceConfig, RolloutConfig),
}
"""Outcomes of which an analysis needs one."""


def check(experiment: Experiment, concepts: Sequence[str]) -> None:
    """Whether every analysis will find what it names.

    Args:
        experiment: a folder.
        concepts: of the study.

    Raises:
        UserError: names the experiment, the analysis, and what is not there.
    """
    for analysis in experiment.config.analyses:
        for problem in _problems(experiment.config, analysis, concepts):
            raise UserError(f"experiment {experiment.name}, analysis `{analysis.kind}`: {problem}")


def _problems(config: ExperimentConfig, analysis: AnalysisConfig, concepts: Sequence[str]) -> Iterator[str]:
    taken = {reading.name: reading for reading in config.readings}
    for name in _readings(analysis):
        if name not in taken:
            yield f"no reading is called `{name}`; `readings` has {', '.join(taken) or 'none'}"
        elif isinstance(analysis, MaskingConfig) and not taken[name].keep_residual:
            yield f"the reading `{name}` must have `keep_residual: true`"
    kinds = NEEDED.get(type(analysis), ())
    if kinds and not any(config.outcome(kind) for kind in kinds):
        names = " or ".join(str(kind.model_fields["kind"].default) for kind in kinds)
        yield f"it needs an outcome of the kind {names}; add it to `outcomes`"
    if isinstance(analysis, ShiftConfig) and not config.against:
        yield "it compares two models; set `against: true`"
    if isinstance(analysis, (ArcConfig, PartingConfig)):
        for concept, _ in signed(analysis.concepts):
            if concept not in concepts:
                yield f"`{concept}` is not among the study's emotions; add it there or leave it out here"
    yield from _vectors(config, analysis)


def _readings(analysis: AnalysisConfig) -> tuple[str, ...]:
    if isinstance(analysis, (ArcConfig, CourseConfig)):
        return analysis.readings
    name = getattr(analysis, "reading", None)
    return (name,) if name else ()


def _vectors(config: ExperimentConfig, analysis: AnalysisConfig) -> Iterator[str]:
    steered = config.steering.vectors if config.steering else ()
    for key in ("raises", "lowers", "bend"):
        for vector in getattr(analysis, key, ()):
            if vector not in steered:
                yield f"`{key}` names `{vector}`, which `steering.vectors` does not have; add it there"

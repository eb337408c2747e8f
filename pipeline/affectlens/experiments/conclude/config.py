"""The config of an analysis, what must have been measured for it, and the registry of all analyses.

An analysis is one file: a subclass of :class:`~affectlens.experiments.conclude.analysis.Analysis` marked with
:func:`analysis`. Its fields are its entry in ``experiment.yaml``, the numbers that decide its verdict included;
``needs`` says what it must be given; ``conclude`` turns what was measured into a finding. A module that a study names
as a plugin may add one. Those that come with the package are listed here and imported when an experiment is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from affectlens.config import Config, Registry


@dataclass(frozen=True)
class Needs:
    """What must have been measured for an analysis.

    Attributes:
        readings: names of readings.
        residuals: those of them that have to keep their residuals.
        factors: by key of the config the factor of scenarios that it names.
        outcomes: kinds of outcomes, of which one is enough.
        vectors: concepts that have to be among the steering vectors.
        conditions: of scenarios.
        concepts: of the study.
        second_model: whether readings of a second model are compared.
    """

    readings: Sequence[str] = ()
    residuals: Sequence[str] = ()
    factors: Mapping[str, str] = field(default_factory=dict)
    outcomes: Sequence[str] = ()
    vectors: Sequence[str] = ()
    conditions: Sequence[str] = ()
    concepts: Sequence[str] = ()
    second_model: bool = False


MODULES = (
    "accuracy",
    "competition",
    "concealed_emotion",
    "concept_identification",
    "dissociation",
    "dose",
    "level_sensitivity",
    "model_difference",
    "persistence",
    "preference",
    "rate",
    "trajectory",
)
"""The analyses that come with the package, a file each."""


class AnalysisConfig(Config):
    """One analysis of an experiment. The fields here decide verdicts and are the same for all analyses."""

    name: ClassVar[str]
    """In the registry; set by :func:`analysis`."""
    kind: str = ""
    """Which analysis."""
    confirmatory: bool = False
    """Whether it is the one test that the experiment was made for, fixed before it was run. The confirmatory tests of a
    study are one more family, corrected by Holm; every other analysis is exploratory, and its findings say so."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Error rate after correction; intervals cover one minus it."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """With which the smallest effects that are stated would be shown."""
    draws: int = Field(default=2000, ge=1)
    """Bootstrap samples behind an interval."""
    permutations: int = Field(default=1000, ge=1)
    """Permutations behind a p-value, which is no smaller than one over their number and one."""
    least_groups: int = Field(default=5, ge=2)
    """Fewer groups of scenarios, and nothing counts as shown: fewer cannot even agree beyond chance."""
    matters: float = Field(default=0.0, ge=0)
    """The smallest effect that matters. Where it would have been missed, "not shown" is "could not be tested"."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return {**values, "kind": cls.name} if isinstance(values, Mapping) else values

    def needs(self) -> Needs:
        """What must have been measured."""
        return Needs()

    @property
    def coverage(self) -> float:
        """Of intervals."""
        return 1 - self.alpha

    def settings(self) -> dict[str, Any]:
        """The numbers that decide the verdict, as JSON."""
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }


ANALYSES: Registry[type[AnalysisConfig]] = Registry("analysis")
"""By name."""
FORMER_NAMES: dict[str, str] = {}
"""Names that an analysis had in earlier releases, and the name that it has now."""
A = TypeVar("A", bound=type[AnalysisConfig])


def analysis(name: str, *, formerly: str = "") -> Callable[[A], A]:
    """Register an analysis.

    Args:
        name: its ``kind`` in ``experiment.yaml``.
        formerly: the name that it had in the last release.

    Raises:
        ValueError: another class has the name already.
    """

    def register(cls: A) -> A:
        cls.name = name
        if formerly:
            FORMER_NAMES[formerly] = name
        ANALYSES.add(name, cls)
        return cls

    return register


def read_analysis(value: Any) -> AnalysisConfig:
    """An entry of ``analyses`` by its ``kind``.

    Raises:
        ValueError: no such analysis, or the entry does not fit it.
    """
    for module in MODULES:
        import_module(f"{__package__}.{module}")
    if isinstance(value, AnalysisConfig):
        return value
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind in FORMER_NAMES:
        message = f"the analysis `{kind}` is called `{FORMER_NAMES[kind]}` now; the old name goes with the next release"
        warnings.warn(message, FutureWarning, stacklevel=2)
        kind = FORMER_NAMES[kind]
    return ANALYSES.read(value, kind, lambda registered: registered)


RegisteredAnalysis = Annotated[SerializeAsAny[AnalysisConfig], BeforeValidator(read_analysis)]
"""The type of a config field that holds the section of any registered analysis."""

"""Which analyses an experiment asks for. Config only: nothing here is slow to import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from affectlens.config import Config


class DiagonalConfig(Config):
    """Does a reading name the concept that a scenario was written for?"""

    kind: Literal["diagonal"] = "diagonal"
    reading: str
    factor: str = "emotion"
    """The factor that holds the concept."""


class TrendConfig(Config):
    """Does a reading follow a number, template by template, more than in the harmless twin?"""

    kind: Literal["trend"] = "trend"
    reading: str
    level: str = "level"
    """The factor that is varied."""
    expects: str = "expects"
    """The factor with the concepts expected to rise (comma-separated, `-` before those expected to fall)."""
    twin: str = "twin"
    """The condition of the harmless twins; a twin has the group of its template."""


class PreferenceConfig(Config):
    """Bradley-Terry strengths of a tournament, and what goes with them."""

    kind: Literal["preference"] = "preference"
    reading: str
    """A reading of the items' texts, correlated with the strengths raw, without the extreme categories, and within
    categories."""
    leave_out: tuple[str, ...] = ()
    """Categories without which the correlation is reported again."""


class DoseConfig(Config):
    """Does steering move the choice, against controls of the same norm?"""

    kind: Literal["dose"] = "dose"
    conditions: tuple[str, ...] = ("main",)
    twin: str = ""
    """A condition in which the same steering should do nothing of the sort."""
    raises: tuple[str, ...] = ()
    """Vectors claimed to raise the target when added."""
    lowers: tuple[str, ...] = ()
    """Vectors claimed to lower it."""
    bend: tuple[str, ...] = ()
    """Vectors whose effect is claimed to be non-monotone."""


class RateConfig(Config):
    """How often a label is given to sampled answers, by vector and strength."""

    kind: Literal["rate"] = "rate"
    label: str
    """The label that is counted."""
    conditions: tuple[str, ...] = ()
    raises: tuple[str, ...] = ()
    lowers: tuple[str, ...] = ()


class ArcConfig(Config):
    """How readings go along a transcript, from one named place to the next."""

    kind: Literal["arc"] = "arc"
    readings: tuple[str, ...] = Field(min_length=2)
    """In the order of the transcript."""
    concepts: tuple[str, ...]
    """With `+` (`-`) before those claimed to rise (fall) along the transcript; without a sign they are described."""
    twin: str = ""
    """The condition whose transcripts go well."""


class PartingConfig(Config):
    """How often the state while answering and the emotion of the text part."""

    kind: Literal["parting"] = "parting"
    concepts: tuple[str, ...]


class CourseConfig(Config):
    """Whose emotion a reading follows, and how long it lasts after its cause."""

    kind: Literal["course"] = "course"
    factor: str = "emotion"
    who: str = "who"
    """The factor that tells whose emotion it is: self, other, character, frame, ..."""
    readings: tuple[str, ...] = Field(min_length=1)
    """From the cause on, in the order of the text."""


class MaskingConfig(Config):
    """Are masked emotions represented apart from expressed ones?"""

    kind: Literal["masking"] = "masking"
    reading: str
    """One with `keep_residual`."""
    masked: str = "masked"
    shown: str = "shown"
    """Factors: the emotion under the mask, and the one displayed (equal where nothing is masked)."""


class ShiftConfig(Config):
    """How a second model differs, concept by concept."""

    kind: Literal["shift"] = "shift"
    reading: str
    rises_with: tuple[Literal["valence", "arousal"], ...] = ()
    """Ratings of concepts with which the shift is claimed to rise; without any claim it is described."""
    falls_with: tuple[Literal["valence", "arousal"], ...] = ()
    """Ratings with which it is claimed to fall."""


class AccuracyConfig(Config):
    """Does a framing change how often the right answer wins, and do the readings carry it?"""

    kind: Literal["accuracy"] = "accuracy"
    reading: str
    framing: str = "framing"
    """The factor; its value `neutral` is the baseline."""


AnalysisConfig = (
    DiagonalConfig
    | TrendConfig
    | PreferenceConfig
    | DoseConfig
    | RateConfig
    | ArcConfig
    | PartingConfig
    | CourseConfig
    | MaskingConfig
    | ShiftConfig
    | AccuracyConfig
)

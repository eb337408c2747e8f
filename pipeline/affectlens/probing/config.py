"""The settings of the stages that probe: directions, match, compare, geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from affectlens.config import MERGE_ONLY, Config, nearest


class DirectionsConfig(Config):
    """How directions are built."""

    subtract_mean: bool = True
    """Whether the mean over concepts is taken from each concept's mean, as the recipe has it."""
    neutral_variance: float = Field(default=0.5, ge=0, lt=1)
    """Share of the variance of neutral texts whose principal components are projected out; 0 keeps everything."""
    baselines: tuple[str, ...] = ("LDA (shrunk)", "logistic")
    """Probes fitted beside the recipe, at every layer."""
    logistic_c: float = Field(default=1.0, gt=0)
    """Inverse L2 penalty of the logistic probe, on standardised activations."""
    massive: Literal["auto", "keep"] = "auto"
    """Dimensions that dwarf all others (20 times the median one) are listed. `auto` takes them out of directions, of
    control vectors and of the unit of steering strength in a layer where they hold 95% of the squared norm or of the
    variance; `keep` never does."""
    imported: Path | None = None
    """Directions to use in place of the recipe's: an .npz file, or a folder of control-vector GGUF files."""
    stability_draws: int = Field(default=100, ge=2)
    """Resamples of the topics that say how steady a direction is."""
    permutations: int = Field(default=200, ge=19)
    """Of the labels within topics, directions being built anew for each; the smallest p is 1 / (permutations + 1)."""
    words: int = Field(default=10, ge=1, json_schema_extra=MERGE_ONLY)
    """Logit-lens words listed per concept."""
    export: tuple[Literal["npz", "gguf"], ...] = Field(default=("npz", "gguf"), json_schema_extra=MERGE_ONLY)
    """Further formats the directions are written in: numpy, and control vectors for repeng and llama.cpp."""

    @field_validator("baselines")
    @classmethod
    def _registered(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from affectlens.probing.methods import PROBES, RECIPE

        for name in names:
            if name not in PROBES or name == RECIPE:
                raise ValueError(f"there is no probe {name!r}; {nearest(name, [it for it in PROBES if it != RECIPE])}")
        return names


class MatchConfig(Config):
    """How features are matched to concepts."""

    pooling: Literal["mean", "max"] = "mean"
    """How a feature's activations over a text become the number it is matched by; the other is reported beside it."""
    tokens: Literal["chosen", "all"] = Field(default="chosen", json_schema_extra=MERGE_ONLY)
    """For which features AUROC is computed token by token: those of the concepts, or every one."""
    random_saes: int = Field(default=3, ge=1)
    """Random SAEs of the same shape that stand beside the studied one."""
    permutations: int = Field(default=1000, ge=19, json_schema_extra=MERGE_ONLY)
    """Of the concept labels within topics; the smallest p-value is 1 / (permutations + 1)."""
    probe_sizes: tuple[int, ...] = Field(default=(1, 2, 5, 10, 20), json_schema_extra=MERGE_ONLY)
    """Numbers of features that k-sparse probes read a concept from, ascending."""
    contexts: int = Field(default=5, ge=0, json_schema_extra=MERGE_ONLY)
    """Top activating contexts kept per matched feature."""
    context_tokens: int = Field(default=12, ge=1, json_schema_extra=MERGE_ONLY)
    """Tokens shown before and after the one that activates."""
    texts_per_part: int = Field(default=64, ge=1)
    """Size of the slices that are encoded and resumed as one."""

    @field_validator("probe_sizes")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
            raise ValueError("give numbers of features from 1 up, ascending, each once")
        return sizes


class CompareConfig(Config):
    """What stands beside what."""

    null_directions: int = Field(default=1000, ge=99)
    """Random directions, matched in covariance to the activations, that say how large a cosine chance gives."""
    pursuit_steps: tuple[int, ...] = (1, 2, 5, 10, 20)
    """Numbers of decoder rows that a direction is put together from."""
    null_subspaces: int = Field(default=100, ge=19)
    """Random sets of features whose angles with the directions stand beside those of the chosen ones."""
    random_directions: int = Field(default=3, ge=1)
    """Sets of random directions, as many as features each, that are searched as the features are."""
    telling_words: int = Field(default=10, ge=0)
    """Words per concept, highest in TF-IDF, whose tokens are left out beside those of the lexicon."""
    near_concepts: int = Field(default=5, ge=1)
    """Neighbours in valence and arousal that a concept has to be told from."""
    ratings: str = "embedded"
    """`embedded` (judged by a model, see the README), or a CSV: a column of words, then valence, arousal, ..."""
    pairs: str = "embedded"
    """`embedded`, a JSONL file of pairs of texts made of the same words, or `none`."""
    pair_templates: str = "embedded"
    """`embedded` (30 templates, 20 fillings each), a JSON file of templates of such pairs, or `none`."""

    @field_validator("pursuit_steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or steps[0] < 1 or list(steps) != sorted(set(steps)):
            raise ValueError("give numbers of rows from 1 up, ascending, each once")
        return steps


class GeometryConfig(Config):
    """Which ratings the components are compared with."""

    ratings: str = "embedded"
    """`embedded` (judged by a model, see the README), or a CSV: a column of words, then valence, arousal, ..."""
    components: int = Field(default=4, ge=2)
    """Principal components compared with the ratings."""
    permutations: int = Field(default=9999, ge=99)
    """For the p-values of the correlations."""
    shuffles: int = Field(default=500, ge=19)
    """Of the concepts' names, for the agreement of clusters and of similarities."""

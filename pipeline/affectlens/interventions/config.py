"""The study file's section on causal effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from affectlens.config import MERGE_ONLY, Config

if TYPE_CHECKING:
    from affectlens.interventions.judge import Rules


class CausalConfig(Config):
    """What is injected and ablated, where, how strongly, and against what."""

    strengths: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Strengths of injection, in units of the mean residual norm at the layer."""
    reference: float = 0.1
    """The strength that verdicts are about; one of `strengths`."""
    layers: tuple[int, ...] = ()
    """Further layers at which the same is done at once; each must be among the cached layers."""
    positions: Literal["all", "last"] = "all"
    """Whether every token of a text is changed, or only its last one and what follows."""
    feature_set: int = Field(default=0, ge=0)
    """Size of the set of best features that is studied beside the best one; 0 for none."""
    feature_ablation: Literal["zero", "mean", "resample"] = "zero"
    """What an ablated feature's activation becomes: 0, its mean over tokens, or that of a token drawn at random."""
    frames: int = Field(default=6, ge=2)
    """Sentences completed, of each kind: about a described person, and about the speaker."""
    words: int = Field(default=6, ge=1)
    """Most words a concept is scored by."""
    controls: int = Field(default=20, ge=20)
    """Control vectors of each family: isotropic, covariance-matched, permuted, frequency-matched random features."""
    shuffled_controls: int = Field(default=40, ge=3)
    """Directions built from stories with their labels shuffled within topics, and features found for such labels."""
    stories: int = Field(default=3, ge=1)
    """Held-out stories per concept whose ends are read before ablation."""
    story_tokens: int = Field(default=24, ge=4)
    """Tokens of a story's end, whole sentences as far as they fit."""
    ablation_controls: int = Field(default=20, ge=20)
    """Controls of each ablation, taken in turn from the families of random vectors."""
    neutral_texts: int = Field(default=2, ge=1)
    """Neutral texts on which the perplexity under injection is measured."""
    perplexity_limit: float = Field(default=1.5, gt=1, json_schema_extra=MERGE_ONLY)
    """A result counts while the perplexity on neutral text is at most so many times what it was."""
    level: float = Field(default=0.05, gt=0, lt=1, json_schema_extra=MERGE_ONLY)
    """Error rate of the verdicts, after Benjamini-Hochberg over concepts."""
    wrong_share: float = Field(default=0.05, ge=0, lt=1, json_schema_extra=MERGE_ONLY)
    """A vector is specific while at most this share of the other concepts' vectors move its words as far."""
    valence_neighbours: int = Field(default=3, ge=1, json_schema_extra=MERGE_ONLY)
    """Concepts of like valence that a concept's words are compared with."""
    permutations: int = Field(default=9999, ge=19, json_schema_extra=MERGE_ONLY)
    """Of the labels among vectors; the smallest p of the whole diagonal is 1 / (permutations + 1)."""
    readout_layer: int | None = None
    """A cached layer above, where the concept's own direction is read under injection; nothing by default."""
    samples: int = Field(default=0, ge=0)
    """Texts sampled per vector and opening at the reference strength; 0 for none. Minutes to hours."""
    sample_tokens: int = Field(default=40, ge=8)
    """Length of a sampled text."""
    temperature: float = Field(default=1.0, ge=0)
    """Of sampling; 0 takes the likeliest token."""
    knockout: bool = False
    """Whether texts are sampled once more with all words of all studied concepts banned."""
    vectors_per_part: int = Field(default=32, ge=1)
    """Size of the slices of vectors that are injected and resumed as one."""
    concepts_per_part: int = Field(default=6, ge=1)
    """Size of the slices of concepts that are ablated and resumed as one."""
    tokens_per_batch: int = Field(default=2048, ge=1)
    """Most tokens that go through the model at once. Belongs to the part, not to the machine."""

    @property
    def rules(self) -> Rules:
        """When a claim of one vector counts as shown."""
        from affectlens.interventions.judge import Rules

        return Rules(level=self.level, correction="benjamini_hochberg", perplexity_limit=self.perplexity_limit)

    @model_validator(mode="after")
    def _consistent(self) -> CausalConfig:
        if not self.strengths or min(self.strengths) <= 0 or len(set(self.strengths)) != len(self.strengths):
            raise ValueError("`strengths`: give different numbers above 0")
        if self.reference not in self.strengths:
            raise ValueError(f"`reference: {self.reference:g}` is not among `strengths`; add it there")
        if self.feature_set == 1:
            raise ValueError("`feature_set: 1`: the best feature is studied anyway; give 2 or more, or 0")
        return self

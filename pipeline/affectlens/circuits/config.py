"""The study file's section on circuits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from affectlens.config import MERGE_ONLY, Config


class CircuitsConfig(Config):
    """Which heads, neurons and features write the readings, and which make the model say the words."""

    run: bool = False
    """Whether circuits are looked for. Half an hour on two cores for 24 concepts, and a few minutes with fewer
    contexts."""
    story_tokens: int = Field(default=32, ge=4)
    """Last tokens of a story that are read. All contexts have the same length, so that positions can be averaged."""
    frame: str = "In one word, the feeling was"
    """The sentence after every story, whose next word is scored."""
    transfer_frame: str = "The feeling was one of"
    """Another such sentence, in which circuits found in the first are tested; empty for none."""
    transfer_stories: str = "writer_b"
    """Stories of another writer on which circuits are tested, as in `corpus.evaluate`; empty for none."""
    words: int = Field(default=6, ge=1)
    """Most words a concept is scored by."""
    rotations: int = Field(default=0, ge=0)
    """In how many of its turns the division of the topics is used; 0: until every topic was reported once."""
    select_contexts: int = Field(default=0, ge=0)
    """Contexts of a rotation's selection topics in which every head is ablated; 0 for all."""
    size_contexts: int = Field(default=24, ge=2)
    """Contexts of its second group of topics on which the size of the circuit is chosen."""
    report_contexts: int = Field(default=0, ge=0)
    """Contexts of its third group of topics from which figures are reported; 0 for all."""
    control_contexts: int = Field(default=12, ge=1)
    """Of these, so many are run with the random circuits too."""
    sizes: tuple[float, ...] = (0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
    """Sizes of circuits, as shares of all heads."""
    removed_up_to: float = Field(default=0.2, gt=0, le=1)
    """Up to this share, heads are also taken out of the whole model. Above it, any circuit breaks the model."""
    random_circuits: int = Field(default=20, ge=20)
    """Random circuits with as many heads in each layer."""
    concept_heads: int = Field(default=10, ge=1)
    """Heads in the circuit of a single concept, whose removal is compared across concepts."""
    ig_steps: int = Field(default=5, ge=1)
    """Steps of the path from reference values to a text's own, over which gradients are averaged."""
    neuron_contexts: int = Field(default=48, ge=0)
    """Contexts of a rotation's selection topics in which neurons are attributed, inside the head circuit; 0: none."""
    neurons_checked: int = Field(default=200, ge=1)
    """Neurons with the largest attribution that are ablated one by one."""
    neurons_unselected: int = Field(default=100, ge=2)
    """Other neurons that are, drawn at random: what the attribution missed."""
    neuron_check_contexts: int = Field(default=4, ge=1)
    """Contexts in which they are."""
    feature_contexts: int = Field(default=24, ge=0)
    """Contexts in which the SAE's features are attributed; 0: none."""
    edge_nodes: int = Field(default=30, ge=0, le=30)
    """Most heads of the circuit between which edges are measured; 0: none."""
    edge_contexts: int = Field(default=6, ge=1)
    """Contexts in which they are."""
    minimal_contexts: int = Field(default=6, ge=1)
    """Contexts of a rotation in which the heads of the circuit are left out one by one."""
    as_published: bool = False
    """Whether the choices of arXiv 2510.11328 are run beside these: last token, zero ablation, same-layer scores."""
    contexts_per_part: int = Field(default=4, ge=1)
    """Contexts that are run and resumed as one."""
    tokens_per_batch: int = Field(default=2048, ge=1)
    """Most tokens that go through the model at once. Belongs to the part, not to the machine."""
    permutations: int = Field(default=999, ge=99, json_schema_extra=MERGE_ONLY)
    """Sign flips and permuted labels."""
    level: float = Field(default=0.05, gt=0, lt=1, json_schema_extra=MERGE_ONLY)
    """Error rate of the tests, after Benjamini-Hochberg over the units of one kind."""
    sufficient: float = Field(default=0.5, gt=0, json_schema_extra=MERGE_ONLY)
    """A circuit is sufficient from this ratio on, if slope and all random circuits say so too."""
    necessary: float = Field(default=0.5, gt=0, lt=1, json_schema_extra=MERGE_ONLY)
    """A circuit is necessary if at most this share of the contrast is left without it, and more without every random
    one."""
    stable: float = Field(default=0.25, gt=0, lt=1, json_schema_extra=MERGE_ONLY)
    """A circuit is stable from this Jaccard overlap over bootstraps of the contexts on, if chance gives less."""

    @model_validator(mode="after")
    def _consistent(self) -> CircuitsConfig:
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] <= 0 or self.sizes[-1] >= 1:
            raise ValueError("`sizes`: give different shares between 0 and 1, ascending")
        if self.sizes[0] > self.removed_up_to:
            raise ValueError(
                f"`removed_up_to: {self.removed_up_to:g}` is below all `sizes`; raise it to {self.sizes[0]:g} or more"
            )
        if self.frame == self.transfer_frame:
            raise ValueError("`transfer_frame` is the same as `frame`; give another one, or leave it empty")
        return self


Verdict = Literal[
    "necessary and sufficient",
    "necessary only",
    "sufficient only",
    "neither necessary nor sufficient",
    "not concept-specific",
    "not stable",
    "no contrast to explain",
    "too few contexts",
]

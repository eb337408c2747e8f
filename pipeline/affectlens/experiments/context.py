"""What every measurement of a study shares: the loaded models, the vectors, the study's own results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.experiments.branching import Branching
from affectlens.experiments.conditions import grid
from affectlens.experiments.experiment import Experiment
from affectlens.interventions.conditions import RANDOM, Condition
from affectlens.interventions.inputs import random_families, token_sample
from affectlens.model.partial import PartialForward
from affectlens.model.subject import ModelConfig, Subject
from affectlens.probing import control_vectors as controls

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

    from affectlens.activations import ActivationStore
    from affectlens.corpus.documents import Corpus
    from affectlens.experiments.config import ExperimentsConfig
    from affectlens.probing.directions import Directions
    from affectlens.probing.match import Match
    from affectlens.sae.model import Dictionary
    from affectlens.stage import Setting


BLOCK = 16
"""Controls of a family are drawn in multiples of this."""


@dataclass(eq=False)
class ExperimentContext:
    """Loaded once per process, used by every part.

    Attributes:
        config: of the stage.
        setting: device and model.
        experiments: by name.
        corpus, activations, sae, directions, match: results of the earlier stages.
        readout_layer: where readings under steering are taken.
        find_other: gives the second model.
        generator: gives the random generator of a name.
        organism: the folder of the model that is measured in place of the study's.
    """

    config: ExperimentsConfig
    setting: Setting
    experiments: Mapping[str, Experiment]
    corpus: Corpus
    activations: ActivationStore
    sae: Dictionary
    directions: Directions
    match: Match
    readout_layer: int
    find_other: Callable[[], ModelConfig]
    generator: Callable[[str], np.random.Generator]
    organism: Path | None = None

    @property
    def layer(self) -> int:
        """The study's layer, where is steered."""
        return self.setting.model.layer

    @property
    def concepts(self) -> tuple[str, ...]:
        """In the order of every "concepts" axis."""
        return self.corpus.emotions

    def reading_layer(self, experiment: Experiment) -> int:
        """Where an experiment is read: the study's layer, or the one above it if it is read under steering."""
        under = experiment.config.read_under_steering and experiment.config.steering is not None
        return self.readout_layer if under else self.layer

    def grid(self, experiment: Experiment) -> tuple[Condition, ...]:
        """The steering conditions of an experiment."""
        return grid(experiment.config.steering, self.concepts)

    @cached_property
    def subject(self) -> Subject:
        """The model under study, or the organism in its place."""
        model = self.setting.model
        if self.organism is not None:
            model = model.model_copy(update={"name": str(self.organism), "revision": None})
        return Subject.load(model, device=self.setting.device, models=self.setting.models)

    @cached_property
    def other(self) -> Subject:
        """The second model."""
        return Subject.load(self.find_other(), device=self.setting.device, models=self.setting.models)

    @cached_property
    def branching(self) -> Branching:
        """Passes that begin at the study's layer."""
        return Branching(PartialForward(self.subject, self.layer))

    @cached_property
    def unit(self) -> float:
        """What strength 1 means at the study's layer."""
        return float(self.directions.strength_unit(self.activations, self.layer))

    @cached_property
    def _controls(self) -> dict[str, Float[np.ndarray, "count d_model"]]:
        wanted = max(
            (each.config.steering.controls for each in self.experiments.values() if each.config.steering), default=0
        )
        # In blocks, so that an experiment that asks for a few more leaves the vectors of the others as they are.
        count = BLOCK * -(-wanted // (len(RANDOM) * BLOCK))
        directions = controls.unit_rows(self.directions.unit(self.layer))
        rows = token_sample(self.activations, self.corpus, self.layer, self.generator("rows"))
        return random_families(count, directions, rows, self.generator, self.directions.massive(self.layer))

    def unit_vector(self, condition: Condition, by: str) -> Float[np.ndarray, "d_model"]:
        """What a condition adds, at norm 1; zeros without steering."""
        directions = self.directions.unit(self.layer)
        if condition.family == "none":
            return np.zeros_like(directions[0])
        if condition.family in RANDOM:
            return self._controls[condition.family][int(condition.vector)]
        index = self.concepts.index(condition.vector)
        if by == "features":
            return controls.unit_rows(self.sae.decoder[np.asarray(self.match.best)[[index]]])[0]
        return directions[index]

    def pushes(self, conditions: Sequence[Condition], by: str) -> torch.Tensor:
        """What each of the conditions adds, at full length, shape ``conditions d_model``."""
        rows = [self.unit_vector(each, by) * each.strength * self.unit for each in conditions]
        return self.tensor(np.stack(rows))

    def tensor(self, values: Any) -> torch.Tensor:
        """float32 on the study's device."""
        import torch

        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.setting.device)

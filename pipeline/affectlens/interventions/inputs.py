"""What is injected and ablated: the studied vectors of every concept, and the controls they are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from affectlens.interventions.vector_kinds import injected_kinds, studied_kinds
from affectlens.probing import control_vectors as controls

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from affectlens.activations import ActivationStore
    from affectlens.corpus.documents import Corpus
    from affectlens.probing.directions import Directions
    from affectlens.probing.match import Match
    from affectlens.sae.model import Dictionary

SAMPLE_ROWS = 4096
"""Token rows behind the covariance-matched controls, firing rates, and the codes for mean and resample ablation."""


@dataclass(eq=False)
class Material:
    """Vectors and features of one study.

    Attributes:
        layer: the study's layer, where the SAE and the directions are.
        corpus, activations, sae, directions, match: results of the earlier stages.
        feature_set: size of the set of best features that is studied beside the best one; 0 for none.
        families: vectors in each family of controls.
        ablation_controls: controls of each ablation.
        generator: gives the random generator of a name.
    """

    layer: int
    corpus: Corpus
    activations: ActivationStore
    sae: Dictionary
    directions: Directions
    match: Match
    feature_set: int
    families: int
    ablation_controls: int
    generator: Callable[[str], np.random.Generator]

    @property
    def concepts(self) -> tuple[str, ...]:
        """The studied concepts, in the order of every "concepts" axis."""
        return self.corpus.emotions

    @property
    def studied(self) -> tuple[str, ...]:
        """The kinds of vectors that are studied."""
        return studied_kinds(self.feature_set)

    @property
    def kinds(self) -> np.ndarray:
        """The kind of every injected vector, in the order of :attr:`vectors`."""
        return np.array(injected_kinds(self.feature_set, len(self.concepts), self.families))

    @cached_property
    def token_rows(self) -> Float[np.ndarray, "tokens d_model"]:
        """A sample of training-topic and neutral token rows, in a fixed order."""
        rows = self.activations.tokens(self.layer)
        usable = np.flatnonzero(np.isin(rows.document, self.corpus.indices("train", "neutral")))
        count = min(SAMPLE_ROWS, len(usable))
        return rows.read(np.sort(self.generator("rows").choice(usable, size=count, replace=False)))

    @cached_property
    def token_codes(self) -> Float[np.ndarray, "tokens features"]:
        """Feature activations of :attr:`token_rows`."""
        return self.sae.encode(self.token_rows)

    @cached_property
    def feature_sets(self) -> dict[str, Int[np.ndarray, "concepts k"]]:
        """Per kind of feature vector the features of each concept, best first on training and validation topics."""
        sets = {"feature": np.asarray(self.match.best)[:, None]}
        if self.feature_set:
            ranked = np.argsort(-np.nan_to_num(self.match.auroc("selection")), axis=0, kind="stable")
            sets["features"] = ranked[: self.feature_set].T
        return sets

    @cached_property
    def labels(self) -> list[str]:
        """What each of :attr:`vectors` is called."""
        studied = [f"{kind} {concept}" for kind in self.studied for concept in self.concepts]
        return studied + [str(kind) for kind in self.kinds[len(studied) :]]

    @cached_property
    def vectors(self) -> Float[np.ndarray, "vectors d_model"]:
        """Everything that is injected, at norm 1: directions, decoder rows of features, controls."""
        generator, count, sae = self.generator("controls"), self.families, self.sae
        directions = controls.unit_rows(self.directions.unit(self.layer))
        best, frequency = self.feature_sets["feature"][:, 0], (self.token_codes > 0).mean(axis=0)
        families = [directions, *(controls.unit_rows(self._written(kind)) for kind in self.feature_sets)]
        families += [
            controls.isotropic(count, directions.shape[1], generator),
            controls.covariance_matched(count, self.token_rows, generator),
            controls.permuted(count, directions, generator),
            controls.unit_rows(sae.decoder[controls.frequency_matched(best, frequency, count, generator)]),
        ]
        return np.concatenate(families).astype(np.float32)

    def _written(self, kind: str) -> Float[np.ndarray, "concepts d_model"]:
        """What each concept's features write when each fires by as much more as it does in the concept's stories."""
        decoder, sets = self.sae.decoder, self.feature_sets[kind]
        if sets.shape[1] == 1:
            return decoder[sets[:, 0]]
        codes, train = self.match.codes, self.corpus.indices("train")
        emotions = np.array([self.corpus.documents[index].emotion for index in train])
        rows = []
        for concept, features in zip(self.concepts, sets, strict=True):
            pooled, own = codes[train][:, features], emotions == concept
            rows.append((pooled[own].mean(axis=0) - pooled[~own].mean(axis=0)) @ decoder[features])
        return np.stack(rows)

    def mixed_controls(self, count: int) -> Float[np.ndarray, "count d_model"]:
        """So many control directions, in turn from the three families that know nothing of features."""
        return self._ablation_pool[:count]

    @cached_property
    def _ablation_pool(self) -> Float[np.ndarray, "pool d_model"]:
        count = self.ablation_controls * max(1, self.feature_set)
        generator, directions, each = self.generator("ablation"), self.vectors[: len(self.concepts)], -(-count // 3)
        families = [
            controls.isotropic(each, directions.shape[1], generator),
            controls.covariance_matched(each, self.token_rows, generator),
            controls.permuted(each, directions, generator),
        ]
        return controls.in_turn(families, count)

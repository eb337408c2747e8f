"""What is injected and ablated: the studied vectors of every concept, and the controls they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens import stats
from affectlens.interventions.conditions import Condition, Family, injected_vectors, studied_families
from affectlens.probing import control_vectors as controls
from affectlens.probing.methods import difference_of_means

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from affectlens.activations import ActivationStore
    from affectlens.corpus.documents import Corpus
    from affectlens.interventions.config import CausalConfig
    from affectlens.probing.directions import Directions
    from affectlens.probing.match import Match
    from affectlens.sae.model import Dictionary

SAMPLE_ROWS = 4096
"""Token rows behind the covariance-matched controls, firing rates, and the codes for mean and resample ablation."""


def token_sample(
    activations: ActivationStore, corpus: Corpus, layer: int, generator: np.random.Generator
) -> Float[np.ndarray, "tokens d_model"]:
    """Token rows of training topics and neutral texts at random, in the order of the cache."""
    rows = activations.tokens(layer)
    usable = np.flatnonzero(np.isin(rows.document, corpus.indices("train", "neutral")))
    count = min(SAMPLE_ROWS, len(usable))
    return rows.read(np.sort(generator.choice(usable, size=count, replace=False)))


def random_families(
    count: int,
    directions: Float[np.ndarray, "concepts d_model"],
    token_rows: Float[np.ndarray, "tokens d_model"],
    generator_of: Callable[[str], np.random.Generator],
    massive: Sequence[int] | Int[np.ndarray, " out"] = (),
) -> dict[str, Float[np.ndarray, "count d_model"]]:
    """Random unit vectors of each family of ``RANDOM``.

    Args:
        count: vectors of each.
        directions: whose coordinates are permuted.
        token_rows: whose covariance is matched.
        generator_of: gives the random generator of a family.
        massive: dimensions in which all of them are 0; where there are any, the other dimensions of isotropic vectors
            are drawn in units of their standard deviation.
    """
    kept = np.setdiff1d(np.arange(directions.shape[1]), np.asarray(massive, dtype=int))
    directions, token_rows = directions[:, kept], token_rows[:, kept]
    isotropic = controls.isotropic(count, len(kept), generator_of("isotropic"))
    families = {
        "isotropic": controls.unit_rows(isotropic * token_rows.std(axis=0)) if len(massive) else isotropic,
        "covariance": controls.covariance_matched(count, token_rows, generator_of("covariance")),
        "permuted": controls.permuted(count, directions, generator_of("permuted")),
    }
    if not len(massive):
        return families
    width = len(kept) + len(massive)
    whole = {name: np.zeros((count, width), rows.dtype) for name, rows in families.items()}
    for name, rows in families.items():
        whole[name][:, kept] = rows
    return whole


@dataclass(eq=False)
class InterventionInputs:
    """Vectors and features of one study.

    Attributes:
        config: of the causal stage.
        layer: the study's layer, where the SAE and the directions are.
        corpus, activations, sae, directions, match: results of the earlier stages.
        generator: gives the random generator of a name.
    """

    config: CausalConfig
    layer: int
    corpus: Corpus
    activations: ActivationStore
    sae: Dictionary
    directions: Directions
    match: Match
    generator: Callable[[str], np.random.Generator]

    @property
    def concepts(self) -> tuple[str, ...]:
        """The studied concepts, in the order of every "concepts" axis."""
        return self.corpus.emotions

    @property
    def studied(self) -> tuple[Family, ...]:
        """The families of vectors that are studied."""
        return studied_families(self.config.feature_set)

    @cached_property
    def names(self) -> list[tuple[str, Family]]:
        """Name and family of each of :attr:`vectors`."""
        return injected_vectors(self.config, self.concepts)

    @property
    def _massive(self) -> Int[np.ndarray, " out"]:
        """Dimensions that no control vector has."""
        return self.directions.massive(self.layer)

    @cached_property
    def token_rows(self) -> Float[np.ndarray, "tokens d_model"]:
        """A sample of training-topic and neutral token rows."""
        return token_sample(self.activations, self.corpus, self.layer, self.generator("rows"))

    @cached_property
    def token_activations(self) -> Float[np.ndarray, "tokens features"]:
        """Feature activations of :attr:`token_rows`."""
        return self.sae.encode(self.token_rows)

    @cached_property
    def feature_sets(self) -> Mapping[Family, Int[np.ndarray, "concepts k"]]:
        """Per family of feature vectors the features of each concept, best first on training and validation topics."""
        sets: dict[Family, np.ndarray] = {"feature": np.asarray(self.match.best)[:, None]}
        if self.config.feature_set:
            ranked = np.argsort(-np.nan_to_num(self.match.auroc("selection")), axis=0, kind="stable")
            sets["features"] = ranked[: self.config.feature_set].T
        return sets

    @cached_property
    def vectors(self) -> Float[np.ndarray, "vectors d_model"]:
        """Everything that is injected, at norm 1, in the order of :attr:`names`."""
        generator, count = self.generator("controls"), self.config.controls
        directions = controls.unit_rows(self.directions.unit(self.layer))
        best, frequency = self.feature_sets["feature"][:, 0], (self.token_activations > 0).mean(axis=0)
        studied = [directions, *(controls.unit_rows(self._decoded(family)) for family in self.feature_sets)]
        random = random_families(count, directions, self.token_rows, lambda family: generator, self._massive)
        features = self.sae.decoder[controls.frequency_matched(best, frequency, count, generator)]
        shuffled = [self._shuffled_directions(), self.sae.decoder[self._shuffled_features()]]
        unit = [controls.unit_rows(each) for each in (features, *shuffled)]
        return np.concatenate([*studied, *random.values(), *unit]).astype(np.float32)

    def vectors_of(self, conditions: Sequence[Condition]) -> Float[np.ndarray, "conditions d_model"]:
        """The vector of each condition, at norm 1; zeros without steering."""
        rows = {name: index for index, name in enumerate(self.names)}
        zero = np.zeros((1, self.vectors.shape[1]), np.float32)
        steered = [rows[each.vector, each.family] if each.family != "none" else len(rows) for each in conditions]
        return np.concatenate([self.vectors, zero])[steered]

    def _decoded(self, family: Family) -> Float[np.ndarray, "concepts d_model"]:
        """What each concept's features write when each fires by as much more as it does in the concept's stories."""
        decoder, sets = self.sae.decoder, self.feature_sets[family]
        if sets.shape[1] == 1:
            return decoder[sets[:, 0]]
        train = self.corpus.indices("train")
        activations, labels = self.match.codes[train], self.corpus.labels(train)
        rows = []
        for features, positive in zip(sets, labels.T, strict=True):
            pooled = activations[:, features]
            rows.append((pooled[positive].mean(axis=0) - pooled[~positive].mean(axis=0)) @ decoder[features])
        return np.stack(rows)

    def _shuffled_labels(self, documents: Sequence[int]) -> Bool[np.ndarray, "draws documents concepts"]:
        """Labels of stories permuted within topics, so that they keep the topics' mix of concepts."""
        topics, generator = self.corpus.topics(documents), self.generator("shuffled")
        orders = stats.permuted_within(topics, self.config.shuffled_controls, generator)
        return self.corpus.labels(documents)[orders]

    def _shuffled_directions(self) -> Float[np.ndarray, "shuffled d_model"]:
        """Directions by the recipe of the real ones, one of each shuffling of the training stories' labels.

        A difference of means of stories is a direction of stories before it is one of an emotion; what these move is
        what any such direction moves (control tasks, Hewitt & Liang 2019).
        """
        train = self.corpus.indices("train", "validation")
        stories = self.directions.without_massive(self.layer, self.activations.pooled(self.layer)[train])
        neutral = self.directions.neutral(self.layer)
        # Where the recipe takes off the mean over concepts, the raw directions sum to zero; else their mean is it.
        common = np.linalg.norm(self.directions.raw(self.layer).mean(axis=0))
        centred = bool(common <= 0.5 * np.linalg.norm(self.directions.centre(self.layer)))
        return np.stack(
            [
                difference_of_means(stories, labels, neutral, subtract_mean=centred).weights[draw % labels.shape[1]]
                for draw, labels in enumerate(self._shuffled_labels(train))
            ]
        )

    def _shuffled_features(self) -> Int[np.ndarray, "shuffled"]:
        """The features that the search for a concept's best feature gives for shuffled labels."""
        selection = self.corpus.indices("train", "validation")
        shuffled = self._shuffled_labels(selection)
        labels = np.stack([draw[:, index % draw.shape[1]] for index, draw in enumerate(shuffled)], axis=1)
        activations: Any = self.match.scores("sae", selection)
        areas = stats.auroc(activations, labels, self.corpus.topics(selection))
        return np.nan_to_num(areas).argmax(axis=0)

    def mixed_controls(self, count: int) -> Float[np.ndarray, "count d_model"]:
        """So many control directions, in turn from the three families that know nothing of features."""
        return self._ablation_pool[:count]

    @cached_property
    def _ablation_pool(self) -> Float[np.ndarray, "pool d_model"]:
        count = self.config.ablation_controls * max(1, self.config.feature_set)
        generator, directions = self.generator("ablation"), self.vectors[: len(self.concepts)]
        families = random_families(-(-count // 3), directions, self.token_rows, lambda family: generator, self._massive)
        return controls.in_turn(list(families.values()), count)

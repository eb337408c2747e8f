"""Measured effects of interventions, as arrays, and what is asked of them besides the judge's verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from affectlens.interventions.conditions import CONTROLS, STUDIED, Family
from affectlens.interventions.judge import Claim
from affectlens.stats import permutation_p

WRONG = "wrong_emotion"
"""The family of the other concepts' vectors of the same sort."""


@dataclass(frozen=True, eq=False)
class Injected:
    """What injection did. Rows are vectors: those of every concept, one family after the other, then the controls.

    Attributes:
        families: of each row.
        strengths: of injection, in mean residual norms.
        reference: index of the strength that verdicts are about.
        effect: change of a concept's words against the other concepts' words, in nats.
        divergence: KL of the next token, in nats.
        perplexity: ratio on neutral text, of the studied vectors only.
        reading: change of a concept's reading downstream against the others', if it was read.
    """

    families: np.ndarray
    strengths: tuple[float, ...]
    reference: int
    effect: Float[np.ndarray, "vectors strengths frames concepts"]
    divergence: Float[np.ndarray, "vectors strengths frames"]
    perplexity: Float[np.ndarray, "studied strengths"]
    reading: Float[np.ndarray, "vectors strengths frames concepts"] | None = None

    @cached_property
    def studied(self) -> tuple[Family, ...]:
        """The families of vectors that were studied."""
        return tuple(family for family in STUDIED if (self.families == family).any())

    def rows(self, family: str) -> Bool[np.ndarray, "vectors"]:
        """The rows of one family."""
        return self.families == family

    def matrix(self, family: Family, strength: int) -> Float[np.ndarray, "vectors concepts"]:
        """Mean effect over frames of every concept's vector (rows) on every concept's words (columns)."""
        return self.effect[self.rows(family), strength].mean(axis=1)

    def perplexity_of(self, family: Family) -> Float[np.ndarray, "concepts strengths"]:
        """Perplexity ratios of one family of studied vectors."""
        return self.perplexity[self.rows(family)[: len(self.perplexity)]]

    @cached_property
    def equal_divergence(self) -> float:
        """The KL at which vectors are compared: the median of the directions' at the reference strength."""
        return float(np.median(self.divergence[self.rows("direction"), self.reference].mean(axis=-1)))


@dataclass(frozen=True, eq=False)
class Ablated:
    """What ablation did in the contexts of one concept, held-out stories' ends and the beginning of a sentence.

    Attributes:
        drop: per family of vectors, the fall of each concept's words against the others' under the ablation (row 0)
            and under its controls, in nats.
        fires: per family of feature vectors, share of the text's positions at which one of its features fires.
        base: the same contrast before, of all concepts.
        topics: of the contexts.
        frames: with which words each context ends.
    """

    drop: Mapping[Family, Float[np.ndarray, "contexts rows concepts"]]
    fires: Mapping[Family, Float[np.ndarray, "contexts"]]
    base: Float[np.ndarray, "contexts concepts"]
    topics: Int[np.ndarray, "contexts"]
    frames: Int[np.ndarray, "contexts"]


def claims(
    concepts: Sequence[str],
    families: np.ndarray,
    studied: Family,
    values: Float[np.ndarray, "vectors contexts concepts"],
    perplexity: Float[np.ndarray, "concepts"] | None = None,
) -> list[Claim]:
    """That each concept's own vector raises the concept's own column, against every family of controls.

    Args:
        families: of each row.
        studied: the family that is judged.
        values: an effect of every vector in every context on every concept.
        perplexity: under each concept's vector.
    """
    means, own = values.mean(axis=1), np.flatnonzero(families == studied)
    ratios = np.ones(len(concepts)) if perplexity is None else perplexity
    return [
        Claim(
            name=concept,
            effect=values[own[column], :, column],
            controls={family: means[families == family, column] for family in CONTROLS[studied]}
            | {WRONG: np.delete(means[own, column], column)},
            perplexity=float(ratios[column]),
        )
        for column, concept in enumerate(concepts)
    ]


def largest_control(
    families: np.ndarray, studied: Family, means: Float[np.ndarray, "vectors concepts"]
) -> Float[np.ndarray, "concepts"]:
    """The largest effect that any control vector has on each concept; vectors of other concepts are no controls."""
    return means[np.isin(families, CONTROLS[studied])].max(axis=0)


def at_divergence(
    effect: Float[np.ndarray, "vectors strengths concepts"],
    divergence: Float[np.ndarray, "vectors strengths"],
    target: float,
) -> Float[np.ndarray, "vectors concepts"]:
    """Effects at the strength where each vector moves the next-token distribution equally far.

    For small pushes the effect grows with the strength and the divergence with its square, so effects are
    interpolated over the root of the divergence, from none at 0. A vector that never gets as far counts with its
    largest strength.
    """
    reached = np.empty((effect.shape[0], effect.shape[2]))
    for index, (curve, far) in enumerate(zip(effect, divergence, strict=True)):
        order = np.argsort(far, kind="stable")
        root = np.concatenate([[0.0], np.sqrt(np.maximum(far[order], 0.0))])
        steps = np.concatenate([np.zeros((1, curve.shape[1])), curve[order]])
        reached[index] = [np.interp(np.sqrt(max(target, 0.0)), root, column) for column in steps.T]
    return reached


def wrong_vectors(matrix: Float[np.ndarray, "vectors concepts"]) -> Float[np.ndarray, "concepts"]:
    """Share of the other concepts' vectors that move a concept's words at least as far as its own does."""
    own = np.diag(matrix)
    reach = (matrix >= own[None, :]) & ~np.eye(len(own), dtype=bool)
    return reach.sum(axis=0) / max(1, len(own) - 1)


def expected_above(matrix: Float[np.ndarray, "vectors concepts"], largest: Float[np.ndarray, "concepts"]) -> float:
    """Share of wrong pairs of vector and words that lie above every control.

    It is the share of concepts above every control to be expected if the vectors had the wrong labels: over all
    assignments of vectors to other concepts, every wrong pair is equally frequent.
    """
    wrong = ~np.eye(len(matrix), dtype=bool)
    return float((matrix > largest[None, :])[wrong].mean()) if wrong.any() else float("nan")


def diagonal_p(
    matrix: Float[np.ndarray, "vectors concepts"], permutations: int, generator: np.random.Generator
) -> float:
    """Permutation p of the whole diagonal: vectors raise the words of their own concepts, labels permuted among them.

    The statistic is the mean over concepts of the effect on their words in standard deviations over all vectors, so
    that words that move easily weigh no more. No control vectors are needed, and concepts that share controls and
    frames are not taken for independent.
    """
    count = len(matrix)
    spread = matrix.std(axis=0)
    standardised = (matrix - matrix.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    orders = generator.permuted(np.tile(np.arange(count), (permutations, 1)), axis=1)
    null = standardised[orders, np.arange(count)].mean(axis=1)
    observed = np.diag(standardised).mean()
    # Where labels make no difference all means are alike but for rounding.
    return float(permutation_p(float(observed.round(9)), null.round(9))[0])


def nearest_in_valence(
    concepts: Sequence[str], ratings: Mapping[str, Mapping[str, float]], count: int
) -> dict[int, list[int]]:
    """For each rated concept the other rated concepts whose valence is nearest."""
    rated = [index for index, concept in enumerate(concepts) if concept in ratings]
    valence = {index: ratings[concepts[index]]["valence"] for index in rated}

    def near(index: int) -> list[int]:
        others = [other for other in rated if other != index]
        return sorted(others, key=lambda other: (abs(valence[other] - valence[index]), other))[:count]

    return {index: near(index) for index in rated}


def beyond_valence(
    effect: Float[np.ndarray, "concepts contexts concepts"], near: Mapping[int, Sequence[int]]
) -> list[Float[np.ndarray, "contexts"] | None]:
    """Effect on a concept's own words less that on the words of concepts of like valence, in each context."""
    excess: list[Float[np.ndarray, "contexts"] | None] = []
    for index in range(effect.shape[0]):
        others = near.get(index)
        own = effect[index, :, index]
        excess.append(own - effect[index][:, list(others)].mean(axis=1) if others else None)
    return excess

"""Measured effects and their tests: intervals over contexts, p-values against controls, comparison at equal KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from affectlens.interventions.vector_kinds import CONTROLS, STUDIED
from affectlens.stats import benjamini_hochberg, cluster_bootstrap, permutation_p


def is_control(kinds: np.ndarray, vector: str) -> Bool[np.ndarray, "vectors"]:
    """Which kinds are controls of a studied vector: features are also held against random features."""
    return np.isin(kinds, CONTROLS[:-1] if vector == "direction" else CONTROLS)


@dataclass(frozen=True)
class Injected:
    """What injection did. Rows are vectors: those of every concept, one kind after the other, then the controls.

    Attributes:
        kinds: of each row: one of ``STUDIED`` or ``CONTROLS``.
        strengths: of injection, in mean residual norms.
        reference: index of the strength that verdicts are about.
        effect: change of a concept's words against the other concepts' words, in nats.
        divergence: KL of the next token, in nats.
        perplexity: ratio on neutral text, of the studied vectors only.
        reading: change of a concept's reading downstream against the others', if it was read.
    """

    kinds: np.ndarray
    strengths: tuple[float, ...]
    reference: int
    effect: Float[np.ndarray, "vectors strengths frames concepts"]
    divergence: Float[np.ndarray, "vectors strengths frames"]
    perplexity: Float[np.ndarray, "studied strengths"]
    reading: Float[np.ndarray, "vectors strengths frames concepts"] | None = None

    @cached_property
    def studied(self) -> tuple[str, ...]:
        """The kinds of vectors that were studied."""
        return tuple(kind for kind in STUDIED if (self.kinds == kind).any())

    def of(self, kind: str) -> Float[np.ndarray, "vectors strengths frames concepts"]:
        """The effects of one kind of vector."""
        return self.effect[self.kinds == kind]

    def controls(self, vector: str) -> Bool[np.ndarray, "vectors"]:
        """The rows that are controls of this kind."""
        return is_control(self.kinds, vector)

    def perplexity_of(self, kind: str) -> Float[np.ndarray, "concepts strengths"]:
        """Perplexity ratios of one kind of studied vector."""
        return self.perplexity[self.kinds[: len(self.perplexity)] == kind]

    @cached_property
    def equal_divergence(self) -> float:
        """The KL at which vectors are compared: the median of the directions' at the reference strength."""
        return float(np.median(self.divergence[self.kinds == "direction"][:, self.reference].mean(axis=-1)))


@dataclass(frozen=True)
class Ablated:
    """What ablation did in the contexts of one concept, held-out stories' ends and the beginning of a sentence.

    Attributes:
        drop: per kind of vector, the fall of each concept's words against the others' under the ablation (row 0)
            and under its controls, in nats.
        fires: per kind of feature vector, share of the text's positions at which one of its features fires.
        base: the same contrast before, of all concepts.
        topics: of the contexts.
        frames: with which words each context ends.
    """

    drop: Mapping[str, Float[np.ndarray, "contexts rows concepts"]]
    fires: Mapping[str, Float[np.ndarray, "contexts"]]
    base: Float[np.ndarray, "contexts concepts"]
    topics: Int[np.ndarray, "contexts"]
    frames: Int[np.ndarray, "contexts"]


@dataclass(frozen=True)
class Judged:
    """Effects of one family of tests: one vector a concept, all tested together.

    Attributes:
        effect: mean over contexts, positive when in the expected direction.
        low: lower end of its 95% interval over contexts; NaN where there are fewer than two.
        high: upper end.
        p: permutation p against the concept's own controls; ``floor`` is the least it can be.
        p_pooled: the same of the standardised effect against the standardised controls of all concepts.
        p_adjusted: ``p_pooled`` after Benjamini-Hochberg over the concepts.
        control_mean: mean of the controls.
        control_max: the largest of them.
        above: larger than every control.
        controls: how many there are.
    """

    effect: Float[np.ndarray, "concepts"]
    low: Float[np.ndarray, "concepts"]
    high: Float[np.ndarray, "concepts"]
    p: Float[np.ndarray, "concepts"]
    p_pooled: Float[np.ndarray, "concepts"]
    p_adjusted: Float[np.ndarray, "concepts"]
    control_mean: Float[np.ndarray, "concepts"]
    control_max: Float[np.ndarray, "concepts"]
    above: Bool[np.ndarray, "concepts"]
    controls: int
    floor: float

    def shown(self, level: float) -> Bool[np.ndarray, "concepts"]:
        """Where the effect is above every control, significant after correction, and its interval above 0."""
        return self.above & (self.p_adjusted <= level) & (self.low > 0)


def judge(
    own: Sequence[Float[np.ndarray, "contexts"]],
    controls: Float[np.ndarray, "controls concepts"],
    generator: np.random.Generator,
    clusters: Sequence[Int[np.ndarray, "contexts"]] | None = None,
) -> Judged:
    """Test each concept's effect against its controls.

    Args:
        own: per concept the effect in each context, in the expected direction.
        controls: per control its mean effect on the same contexts.
        clusters: per concept the topic of each context; without it every context is its own.
    """
    groups = clusters or [np.arange(len(values)) for values in own]
    intervals = [cluster_bootstrap(values, group, rng=generator) for values, group in zip(own, groups, strict=True)]
    effect = np.array([each.value for each in intervals])
    p, floor = permutation_p(effect, controls)
    pooled = pooled_p(effect, controls)
    return Judged(
        effect=effect,
        low=np.array([each.low for each in intervals]),
        high=np.array([each.high for each in intervals]),
        p=np.asarray(p),
        p_pooled=pooled,
        p_adjusted=benjamini_hochberg(pooled),
        control_mean=controls.mean(axis=0),
        control_max=controls.max(axis=0),
        above=effect > controls.max(axis=0),
        controls=len(controls),
        floor=floor,
    )


def pooled_p(
    effect: Float[np.ndarray, "concepts"], controls: Float[np.ndarray, "controls concepts"]
) -> Float[np.ndarray, "concepts"]:
    """Permutation p of standardised effects against the standardised controls of all concepts together.

    The controls of one concept allow no p below 1 / (controls + 1), which no correction over many concepts survives.
    Each effect is measured in standard deviations of its own controls, each control in those of the others of its
    concept (both as predictions of one new value), and these are taken to be alike from concept to concept.
    """
    count = len(controls)
    mean, spread = controls.mean(axis=0), controls.std(axis=0, ddof=1)
    score = _ratio(effect - mean, spread * np.sqrt(1 + 1 / count))
    rest = (controls.sum(axis=0) - controls) / (count - 1)
    # The variance of the others follows from that of all without leaving each out in turn.
    squares = spread**2 * (count - 1) - (controls - mean) ** 2 * count / (count - 1)
    others = np.sqrt(np.maximum(squares, 0) / (count - 2))
    null = _ratio(controls - rest, others * np.sqrt(1 + 1 / (count - 1)))
    return np.asarray(permutation_p(score[:, None], null.reshape(-1, 1))[0])[:, 0]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """0 where there is nothing to be divided: a vector that does nothing, like its controls, is no outlier."""
    spread = below > 0
    ratio = np.divide(above, below, out=np.zeros_like(above, dtype=float), where=spread)
    return np.where(spread | (above == 0), ratio, np.copysign(np.inf, above))


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
    found = np.empty((effect.shape[0], effect.shape[2]))
    for index, (curve, far) in enumerate(zip(effect, divergence, strict=True)):
        order = np.argsort(far, kind="stable")
        root = np.concatenate([[0.0], np.sqrt(np.maximum(far[order], 0.0))])
        steps = np.concatenate([np.zeros((1, curve.shape[1])), curve[order]])
        found[index] = [np.interp(np.sqrt(max(target, 0.0)), root, column) for column in steps.T]
    return found


def wrong_vectors(matrix: Float[np.ndarray, "vectors concepts"]) -> Float[np.ndarray, "concepts"]:
    """Share of the other concepts' vectors that move a concept's words at least as far as its own does."""
    own = np.diag(matrix)
    reach = (matrix >= own[None, :]) & ~np.eye(len(own), dtype=bool)
    return reach.sum(axis=0) / max(1, len(own) - 1)


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
    found: list[Float[np.ndarray, "contexts"] | None] = []
    for index in range(effect.shape[0]):
        others = near.get(index)
        own = effect[index, :, index]
        found.append(own - effect[index][:, list(others)].mean(axis=1) if others else None)
    return found

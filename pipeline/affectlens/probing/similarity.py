"""Whether two pictures of the concepts agree: their similarities pair by pair, and their groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from affectlens import stats
from affectlens.probing.control_vectors import unit_rows


@dataclass(frozen=True)
class Agreement:
    """A coefficient of agreement against the same after the concepts' names were shuffled.

    Attributes:
        value: 1 is the same picture, 0 what chance gives.
        null_95: 95% quantile under shuffling.
        p: share of shuffles that reach the value, corrected: (b + 1) / (m + 1).
        floor: the smallest p there can be.
    """

    value: float
    null_95: float
    p: float
    floor: float

    def row(self) -> dict[str, float]:
        """As plain data."""
        return {"value": self.value, "null_95": self.null_95, "p": self.p, "p_floor": self.floor}


def cosines(vectors: Float[np.ndarray, "concepts d"]) -> Float[np.ndarray, "concepts concepts"]:
    """Between rows."""
    unit = unit_rows(vectors.astype(np.float64))
    return unit @ unit.T


def compare(
    a: Float[np.ndarray, "concepts concepts"],
    b: Float[np.ndarray, "concepts concepts"],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> Agreement:
    """Rank correlation of two similarity matrices (Kriegeskorte et al. 2008; the null is Mantel's, 1967)."""
    from scipy.stats import rankdata

    upper = np.triu_indices(len(a), 1)

    def ranks(values: np.ndarray) -> np.ndarray:
        centred = rankdata(values) - (len(values) + 1) / 2
        return centred / max(float(np.linalg.norm(centred)), 1e-30)

    whole = np.zeros_like(b)
    whole[upper] = ranks(b[upper])
    whole += whole.T
    mine = ranks(a[upper])
    orders = stats.permuted_within(np.zeros(len(b)), permutations, rng)
    null = np.array([mine @ whole[np.ix_(order, order)][upper] for order in orders])
    return _agreement(float(mine @ whole[upper]), null)


def groups(vectors: Float[np.ndarray, "concepts d"], count: int, seed: int) -> Int[np.ndarray, " concepts"]:
    """k-means clusters of the rows at norm 1, the best of ten starts."""
    from sklearn.cluster import KMeans

    model = KMeans(
        count,
        n_init=10,  # pyright: ignore[reportArgumentType]
        random_state=seed % 2**32,
    )
    return model.fit_predict(unit_rows(vectors.astype(np.float64)))


def grouping(
    found: Sequence[int], reference: Sequence[str], *, permutations: int, rng: np.random.Generator
) -> Agreement:
    """Adjusted Rand index of two groupings of the same concepts (Hubert & Arabie 1985)."""
    from sklearn.metrics import adjusted_rand_score

    names = np.asarray(reference)
    orders = stats.permuted_within(np.zeros(len(names)), permutations, rng)
    null = np.array([adjusted_rand_score(names[order], found) for order in orders])
    return _agreement(float(adjusted_rand_score(names, found)), null)


def membership(clusters: Mapping[str, Sequence[str]], concepts: Sequence[str]) -> dict[str, str]:
    """Concept -> cluster, for the concepts that some cluster names."""
    by_word = {word: name for name, words in clusters.items() for word in words}
    return {concept: by_word[concept] for concept in concepts if concept in by_word}


def _agreement(value: float, null: Float[np.ndarray, " permutations"]) -> Agreement:
    p, floor = stats.permutation_p(np.array(value), null)
    return Agreement(value, float(np.quantile(null, 0.95)), float(p), floor)

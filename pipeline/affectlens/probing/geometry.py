"""The shape of the concept space: its principal components against ratings of valence and arousal, and its clusters.

Words alone have a geometry too, and long stories sit apart from short ones: the same figures for TF-IDF of the stories
stand beside those of the directions, and correlations are given again with story length taken away.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from affectlens import stats
from affectlens.corpus.texts import EMBEDDED
from affectlens.probing import similarity
from affectlens.probing.config import GeometryConfig
from affectlens.probing.geometry_tables import (
    COORDINATES,
    CORRELATIONS,
    COSINES,
    GROUPS,
    LAYERS,
    RATINGS,
    VARIANCE,
)
from affectlens.results import Table

if TYPE_CHECKING:
    from affectlens.activations.view import ActivationStore
    from affectlens.corpus.documents import Corpus
    from affectlens.probing.directions import Directions

CLUSTERS = EMBEDDED / "clusters.json"
"""The ten clusters of 171 words that Sofroniew et al. 2026 publish."""
Ratings = Mapping[str, Mapping[str, float]]


class Geometry:
    """The concept space of a study.

    Attributes:
        folder: the result folder.
        data: what ``geometry.json`` holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data: dict[str, Any] = json.loads((folder / "geometry.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Space:
    """What the geometry is computed from.

    Attributes:
        corpus, store, directions: opened results.
        ratings: of the studied concepts that have any.
        layer: of the study.
        config: of the stage.
        generator: from a name to a random generator.
        seed: from a name to a seed.
    """

    corpus: Corpus
    store: ActivationStore
    directions: Directions
    ratings: Ratings
    layer: int
    config: GeometryConfig
    generator: Callable[[str], np.random.Generator]
    seed: Callable[[str], int]

    @cached_property
    def lengths(self) -> Float[np.ndarray, " concepts"]:
        """Mean number of tokens of the stories that built each concept's direction."""
        lengths = np.empty(len(self.corpus.documents))
        lengths[self.store.column("documents/index")] = self.store.column("documents/tokens")
        build = self.corpus.indices("train", "validation")
        return np.array([lengths[build][mine].mean() for mine in self.corpus.labels(build).T])


def principal_components(
    vectors: Float[np.ndarray, "concepts d"], count: int
) -> tuple[Float[np.ndarray, "concepts axes"], Float[np.ndarray, " axes"]]:
    """Coordinates of centred rows on their principal axes, and each axis's share of the variance.

    Args:
        vectors: one a concept.
        count: axes wanted; fewer when there are fewer concepts.
    """
    centred = vectors - vectors.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    count = min(count, len(vectors) - 1)
    return left[:, :count] * singular[:count], (singular**2 / (singular**2).sum())[:count]


def describe(space: Space) -> dict[str, Any]:
    """All figures of the concept space, as ``geometry.json`` holds them."""
    concepts = space.corpus.emotions
    vectors = space.directions.vectors(space.layer).astype(np.float64)
    coordinates, shares = principal_components(vectors, space.config.components)
    coordinates = _oriented(space, coordinates)
    unit = space.directions.unit(space.layer).astype(np.float64)
    order = _tree_order(unit, concepts)
    places = [concepts.index(concept) for concept in order]
    return {
        "variance": shares.tolist(),
        "coordinates": {concept: row.tolist() for concept, row in zip(concepts, coordinates, strict=True)},
        "ratings": space.ratings,
        "rated_words": len(space.ratings),
        "correlations": correlations(space, coordinates),
        "clusters": _clusters(space, vectors, "clusters"),
        "layers": _layers(space),
        "vocabulary": _vocabulary(space, vectors),
        "length_correlation": _length(space, coordinates),
        "order": order,
        "cosines": (unit @ unit.T)[np.ix_(places, places)].round(6).tolist(),
    }


def _oriented(space: Space, coordinates: Float[np.ndarray, "concepts axes"]) -> Float[np.ndarray, "concepts axes"]:
    """The sign of a component is arbitrary: turn the first towards pleasant, the second towards aroused."""
    words = [concept for concept in space.corpus.emotions if concept in space.ratings]
    rated, turned = [concept in space.ratings for concept in space.corpus.emotions], coordinates.copy()
    for component, rating in enumerate(("valence", "arousal")):
        if len(words) > 2:
            values = np.array([space.ratings[word][rating] for word in words])
            if ((values - values.mean()) * coordinates[rated, component]).sum() < 0:
                turned[:, component] *= -1
    return turned


def correlations(
    space: Space, coordinates: Float[np.ndarray, "concepts axes"], prefix: str = ""
) -> list[dict[str, Any]]:
    """Every component against every rating, as it is and with story length taken from both."""
    concepts, ratings = space.corpus.emotions, space.ratings
    rated = np.array([concept in ratings for concept in concepts])
    if rated.sum() < 4:
        return []
    rows = []
    for component in range(coordinates.shape[1]):
        for name in next(iter(ratings.values())):
            values = np.array([ratings[concept][name] for concept in concepts if concept in ratings])
            figures = {}
            for end, given in (("", None), ("_beyond_length", space.lengths[rated])):
                found = stats.correlation(
                    coordinates[rated, component],
                    values,
                    given=given,
                    permutations=space.config.permutations,
                    rng=space.generator(f"{prefix}correlation-{component}-{name}{'-length' if end else ''}"),
                )
                figures |= {f"{key}{end}": value for key, value in _figures(found).items() if not end or key != "n"}
            rows.append({"component": component + 1, "rating": name, **figures})
    return rows


def _figures(found: stats.Correlation) -> dict[str, float]:
    estimate = found.estimate
    return {"r": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n, "p": found.p}


def _clusters(space: Space, vectors: Float[np.ndarray, "concepts d"], stream: str) -> dict[str, Any]:
    """k-means clusters against the published ones; empty where fewer than two of those are studied."""
    concepts = space.corpus.emotions
    published = similarity.membership(json.loads(CLUSTERS.read_text(encoding="utf-8")), concepts)
    count = len(set(published.values()))
    if count < 2 or count >= len(published):
        return {}
    found = similarity.groups(vectors, count, space.seed(stream))
    known = [index for index, concept in enumerate(concepts) if concept in published]
    agreement = similarity.grouping(
        [int(found[index]) for index in known],
        [published[concepts[index]] for index in known],
        permutations=space.config.shuffles,
        rng=space.generator(stream),
    )
    groups = {concept: int(group) for concept, group in zip(concepts, found, strict=True)}
    return {"count": count, "n": len(known), "groups": groups, "published": published, "rand": agreement.row()}


def _layers(space: Space) -> list[dict[str, Any]]:
    """Agreement of the similarities between directions at every two layers."""
    from itertools import combinations

    cosines = {layer: space.directions.cosines(layer) for layer in space.directions.layers}
    rows = []
    for a, b in combinations(space.directions.layers, 2):
        rng = space.generator(f"layers-{a}-{b}")
        found = similarity.compare(cosines[a], cosines[b], permutations=space.config.shuffles, rng=rng)
        rows.append({"a": a, "b": b, **found.row()})
    return rows


def _vocabulary(space: Space, vectors: Float[np.ndarray, "concepts d"]) -> dict[str, Any]:
    """The geometry of TF-IDF of the stories, and how far it is that of the directions."""
    from affectlens.probing.methods import Vocabulary

    corpus = space.corpus
    build = corpus.indices("train", "validation")
    words = Vocabulary.fit([corpus.documents[row].text for row in build], corpus.labels(build)).linear.weights
    coordinates, shares = principal_components(words, space.config.components)
    same = similarity.compare(
        similarity.cosines(vectors),
        similarity.cosines(words),
        permutations=space.config.shuffles,
        rng=space.generator("vocabulary-similarity"),
    )
    return {
        "variance": shares.tolist(),
        "correlations": correlations(space, _oriented(space, coordinates), "vocabulary-"),
        "clusters": _clusters(space, words, "vocabulary-clusters").get("rand", {}),
        "similarity": same.row(),
    }


def _length(space: Space, coordinates: Float[np.ndarray, "concepts axes"]) -> list[dict[str, Any]]:
    """Correlation of each component with the mean length of the concept's stories: a known confound."""
    rows = []
    for component in range(coordinates.shape[1]):
        rng = space.generator(f"length-{component}")
        found = stats.correlation(
            coordinates[:, component], space.lengths, permutations=space.config.permutations, rng=rng
        )
        rows.append({"component": component + 1, **_figures(found)})
    return rows


def _tree_order(unit: Float[np.ndarray, "concepts d"], concepts: Sequence[str]) -> list[str]:
    """Concepts in the order of an average-linkage tree over cosine distance, so that clusters are adjacent."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - unit @ unit.T, 0, None)
    np.fill_diagonal(distance, 0)
    condensed = squareform((distance + distance.T) / 2, checks=False)
    tree = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
    return [str(concepts[int(index)]) for index in leaves_list(tree)]


def metrics(data: Mapping[str, Any]) -> dict[str, float]:
    """Flat metrics of the stage."""
    values = {f"variance_component_{index + 1}": share for index, share in enumerate(data["variance"])}
    for row in data["correlations"]:
        if row["component"] <= 2:
            key = f"r_component_{row['component']}_{row['rating']}"
            values |= {key: row["r"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
            values[f"{key}_beyond_length"] = row["r_beyond_length"]
    for row in data["vocabulary"]["correlations"]:
        if row["component"] <= 2:
            values[f"vocabulary_r_component_{row['component']}_{row['rating']}"] = row["r"]
    values["vocabulary_similarity"] = data["vocabulary"]["similarity"]["value"]
    values["rated_words"] = float(data["rated_words"])
    if data["clusters"]:
        values |= {"clusters_rand": data["clusters"]["rand"]["value"], "clusters_p": data["clusters"]["rand"]["p"]}
        values["vocabulary_clusters_rand"] = data["vocabulary"]["clusters"]["value"]
    return {name: value for name, value in values.items() if value == value}


def table_rows(data: Mapping[str, Any]) -> dict[Table, list[dict[str, Any]]]:
    """The rows of the declared tables."""
    sources = {"directions": data["correlations"], "vocabulary": data["vocabulary"]["correlations"]}
    clusters, order = data["clusters"], data["order"]
    return {
        CORRELATIONS: [{"source": source, **row} for source, rows in sources.items() for row in rows],
        COORDINATES: [
            {"concept": concept, "component": index, "coordinate": value}
            for concept, values in data["coordinates"].items()
            for index, value in enumerate(values, start=1)
        ],
        RATINGS: [
            {"concept": concept, "rating": rating, "value": value}
            for concept, values in data["ratings"].items()
            for rating, value in values.items()
        ],
        VARIANCE: [{"component": index, "share": share} for index, share in enumerate(data["variance"], start=1)],
        COSINES: [
            {"concept": concept, "other": other, "cosine": value}
            for concept, values in zip(order, data["cosines"], strict=True)
            for other, value in zip(order, values, strict=True)
        ],
        GROUPS: [
            {"concept": concept, "cluster": group, "published": clusters["published"].get(concept)}
            for concept, group in clusters.get("groups", {}).items()
        ],
        LAYERS: [
            {"layer": row["a"], "other": row["b"], **{key: row[key] for key in ("value", "null_95", "p")}}
            for row in data["layers"]
        ],
    }

"""The shape of the concept space: its principal components against ratings of valence and arousal, and its clusters.

Words alone have a geometry too, and long stories sit apart from short ones: the same figures for TF-IDF of the stories
stand beside those of the directions, and correlations are given again with story length taken away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from affectlens.config import Config
from affectlens.corpus.ratings import ratings_path, read_ratings
from affectlens.corpus.texts import EMBEDDED
from affectlens.files import write_json
from affectlens.stage import Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage

CLUSTERS = EMBEDDED / "clusters.json"
"""The ten clusters of 171 words that Sofroniew et al. 2026 publish."""


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


class Geometry:
    """The concept space of a study.

    Attributes:
        data: what ``geometry.json`` holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data: dict[str, Any] = json.loads((folder / "geometry.json").read_text(encoding="utf-8"))


@register
class GeometryStage(Stage[GeometryConfig, Geometry]):
    """Principal components of the directions, correlated with ratings and, as a check, with story length."""

    name = "geometry"
    version = 3
    config_class = GeometryConfig
    needs = ("corpus", "activations", "directions")
    seeded = True
    headline = (
        ("r_component_1_valence", "correlation of component 1 with valence"),
        ("r_component_2_arousal", "correlation of component 2 with arousal"),
    )

    @classmethod
    def check(cls, study: StudySettings) -> None:
        if not ratings_path(study.geometry.ratings).is_file():
            raise ValueError(f"`geometry.ratings: {study.geometry.ratings}`: no such file; give a CSV, or `embedded`")

    @classmethod
    def identities(cls, study: StudySettings) -> dict[str, Identity]:
        return {"ratings": ratings_path(study.geometry.ratings), "clusters": CLUSTERS}

    def parts(self) -> Sequence[Part]:
        return [Part("all")]

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        import numpy as np

        corpus, layer = self.need(CorpusStage), self.setting.model.layer
        vectors = self.need(DirectionsStage).vectors(layer).astype(np.float64)
        coordinates, shares = principal_components(vectors, self.config.components)
        ratings = {
            word: values
            for word, values in read_ratings(ratings_path(self.config.ratings)).items()
            if word in corpus.emotions
        }
        coordinates = self._orient(coordinates, ratings)
        unit = self.need(DirectionsStage).unit(layer).astype(np.float64)
        data = {
            "variance": shares.tolist(),
            "coordinates": {concept: row.tolist() for concept, row in zip(corpus.emotions, coordinates, strict=True)},
            "ratings": ratings,
            "rated_words": len(ratings),
            "correlations": self._correlations(coordinates, ratings),
            "clusters": self._clusters(vectors, "clusters"),
            "layers": self._layers(),
            "vocabulary": self._vocabulary(vectors, ratings),
            "length_correlation": self._length(coordinates),
            "order": self._order(unit),
        }
        places = [corpus.emotions.index(concept) for concept in data["order"]]
        data["cosines"] = (unit @ unit.T)[np.ix_(places, places)].round(6).tolist()
        write_json(out / "geometry.json", data)
        progress(1)

    def _orient(self, coordinates: Any, ratings: Mapping[str, Mapping[str, float]]) -> Any:
        """The sign of a component is arbitrary: turn the first towards pleasant, the second towards aroused."""
        import numpy as np

        rated = [concept in ratings for concept in self.need(CorpusStage).emotions]
        words = [concept for concept in self.need(CorpusStage).emotions if concept in ratings]
        turned = coordinates.copy()
        for component, rating in enumerate(("valence", "arousal")):
            if len(words) > 2:
                values = np.array([ratings[word][rating] for word in words])
                if ((values - values.mean()) * coordinates[rated, component]).sum() < 0:
                    turned[:, component] *= -1
        return turned

    def _correlations(
        self, coordinates: Any, ratings: Mapping[str, Mapping[str, float]], of: str = ""
    ) -> list[dict[str, Any]]:
        """Every component against every rating, as it is and with story length taken from both."""
        import numpy as np

        from affectlens import stats

        concepts = self.need(CorpusStage).emotions
        rated = np.array([concept in ratings for concept in concepts])
        if rated.sum() < 4:
            return []
        names, lengths = list(next(iter(ratings.values()))), self._lengths()[rated]
        rows = []
        for component in range(coordinates.shape[1]):
            for name in names:
                values = np.array([ratings[concept][name] for concept in concepts if concept in ratings])
                mine = coordinates[rated, component]
                stream = f"{of}correlation-{component}-{name}"
                found = stats.correlation(
                    mine, values, permutations=self.config.permutations, rng=self.generator(stream)
                )
                left = stats.correlation(
                    mine,
                    values,
                    given=lengths,
                    permutations=self.config.permutations,
                    rng=self.generator(f"{stream}-length"),
                )
                beyond = {f"{key}_beyond_length": value for key, value in _row(left).items() if key != "n"}
                rows.append({"component": component + 1, "rating": name, **_row(found), **beyond})
        return rows

    def _clusters(self, vectors: Any, stream: str) -> dict[str, Any]:
        """k-means clusters against the published ones; empty where fewer than two of those are studied."""
        from affectlens.probing import similarity

        concepts = self.need(CorpusStage).emotions
        published = similarity.membership(json.loads(CLUSTERS.read_text(encoding="utf-8")), concepts)
        count = len(set(published.values()))
        if count < 2 or count >= len(published):
            return {}
        found = similarity.groups(vectors, count, self.seed_of(stream))
        known = [index for index, concept in enumerate(concepts) if concept in published]
        agreement = similarity.grouping(
            [int(found[index]) for index in known],
            [published[concepts[index]] for index in known],
            permutations=self.config.shuffles,
            rng=self.generator(stream),
        )
        groups = {concept: int(group) for concept, group in zip(concepts, found, strict=True)}
        return {"count": count, "n": len(known), "groups": groups, "published": published, "rand": agreement.row()}

    def _layers(self) -> list[dict[str, Any]]:
        """Agreement of the similarities between directions at every two layers."""
        from itertools import combinations

        from affectlens.probing import similarity

        directions = self.need(DirectionsStage)
        cosines = {layer: directions.cosines(layer) for layer in directions.layers}
        rows = []
        for a, b in combinations(directions.layers, 2):
            found = similarity.compare(
                cosines[a], cosines[b], permutations=self.config.shuffles, rng=self.generator(f"layers-{a}-{b}")
            )
            rows.append({"a": a, "b": b, **found.row()})
        return rows

    def _vocabulary(self, vectors: Any, ratings: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """The geometry of TF-IDF of the training stories, and how far it is that of the directions."""
        from affectlens.probing import similarity
        from affectlens.probing.methods import Vocabulary

        corpus = self.need(CorpusStage)
        train = corpus.indices("train")
        words = Vocabulary.fit([corpus.documents[row].text for row in train], corpus.labels(train)).linear.weights
        coordinates, shares = principal_components(words, self.config.components)
        same = similarity.compare(
            similarity.cosines(vectors),
            similarity.cosines(words),
            permutations=self.config.shuffles,
            rng=self.generator("vocabulary-similarity"),
        )
        return {
            "variance": shares.tolist(),
            "correlations": self._correlations(self._orient(coordinates, ratings), ratings, "vocabulary-"),
            "clusters": self._clusters(words, "vocabulary-clusters").get("rand", {}),
            "similarity": same.row(),
        }

    def _lengths(self) -> Any:
        """Mean number of tokens of each concept's training stories."""
        import numpy as np

        corpus, store = self.need(CorpusStage), self.need(ActivationsStage)
        lengths = np.empty(len(corpus.documents))
        lengths[store.column("documents/index")] = store.column("documents/tokens")
        train = corpus.indices("train")
        return np.array([lengths[train][mine].mean() for mine in corpus.labels(train).T])

    def _length(self, coordinates: Any) -> list[dict[str, Any]]:
        """Correlation of each component with the mean length of the concept's stories: a known confound."""
        from affectlens import stats

        means = self._lengths()
        rows = []
        for component in range(coordinates.shape[1]):
            found = stats.correlation(
                coordinates[:, component],
                means,
                permutations=self.config.permutations,
                rng=self.generator(f"length-{component}"),
            )
            rows.append({"component": component + 1, **_row(found)})
        return rows

    def _order(self, unit: Any) -> list[str]:
        """Concepts in the order of an average-linkage tree over cosine distance, so that clusters are adjacent."""
        import numpy as np
        from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
        from scipy.spatial.distance import squareform

        concepts = self.need(CorpusStage).emotions
        distance = np.clip(1 - unit @ unit.T, 0, None)
        np.fill_diagonal(distance, 0)
        condensed = squareform((distance + distance.T) / 2, checks=False)
        tree = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
        return [concepts[index] for index in leaves_list(tree)]

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        (out / "geometry.json").write_bytes((parts["all"] / "geometry.json").read_bytes())
        data = Geometry(out).data
        metrics = {f"variance_component_{index + 1}": share for index, share in enumerate(data["variance"])}
        for row in data["correlations"]:
            if row["component"] <= 2:
                key = f"r_component_{row['component']}_{row['rating']}"
                metrics |= {key: row["r"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
                metrics[f"{key}_beyond_length"] = row["r_beyond_length"]
        for row in data["vocabulary"]["correlations"]:
            if row["component"] <= 2:
                metrics[f"vocabulary_r_component_{row['component']}_{row['rating']}"] = row["r"]
        metrics["vocabulary_similarity"] = data["vocabulary"]["similarity"]["value"]
        metrics["rated_words"] = float(data["rated_words"])
        if data["clusters"]:
            metrics |= {"clusters_rand": data["clusters"]["rand"]["value"], "clusters_p": data["clusters"]["rand"]["p"]}
            metrics["vocabulary_clusters_rand"] = data["vocabulary"]["clusters"]["value"]
        return metrics

    @classmethod
    def open(cls, folder: Path) -> Geometry:
        return Geometry(folder)

    @classmethod
    def track(cls, result: Geometry, run: Any) -> None:
        columns = ["component", "rating", "r", "low", "high", "n", "p"]
        rows = [[row[column] for column in columns] for row in result.data["correlations"]]
        run.table("geometry/correlations", columns, rows)
        places, ratings = result.data["coordinates"], result.data["ratings"]
        axes = [f"component_{index + 1}" for index in range(len(result.data["variance"]))]
        kinds = list(next(iter(ratings.values()), {}))
        rows = [
            [concept, *place, *(ratings.get(concept, {}).get(kind) for kind in kinds)]
            for concept, place in places.items()
        ]
        run.table("geometry/components", ["concept", *axes, *kinds], rows)
        run.table("geometry/variance", ["component", "share"], list(enumerate(result.data["variance"], start=1)))
        order = result.data["order"]
        run.heatmap("geometry/cosines", result.data["cosines"], order, order)


def principal_components(vectors: Any, count: int) -> tuple[Any, Any]:
    """Coordinates of centred rows on their principal axes, and each axis's share of the variance.

    Args:
        vectors: shape ``concepts d_model``.
        count: axes wanted; fewer when there are fewer concepts.
    """
    import numpy as np

    centred = vectors - vectors.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    count = min(count, len(vectors) - 1)
    return left[:, :count] * singular[:count], (singular**2 / (singular**2).sum())[:count]


def _row(found: Any) -> dict[str, float]:
    estimate = found.estimate
    return {"r": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n, "p": found.p}

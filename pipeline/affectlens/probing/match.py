"""The matched features of a study: which SAE feature answers to which concept, and how well.

A feature is chosen for a concept on some topics and read on a topic that had no part in the choice; every topic is read
once. Choosing the best of thousands of features is itself a source of large numbers, so the same search among the
features of random SAEs of the same shape stands beside every figure, and a permutation null takes the maximum over all
features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from affectlens.results import Average, Table, bounded, integer, number, text

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from jaxtyping import Float, Int

    from affectlens.corpus.documents import Corpus
    from affectlens.probing.config import MatchConfig
    from affectlens.probing.detection import Detection
    from affectlens.probing.matching import Choice, Search
    from affectlens.probing.text_features import Columns, TokenFeatures

FILE = "match.h5"
WITHIN = "AUROC within a left-out topic, mean over topics"

CONCEPTS = Table(
    "concepts",
    "One concept with its feature. Detection is of the search: what is chosen without a topic, read on that topic.",
    (
        text("concept", "the emotion"),
        integer("feature", "chosen on all topics but the ablated ones; what steers"),
        number("auroc_selection", "of that feature within the topics that chose it", "AUROC"),
        *bounded("auroc_test", f"best feature: {WITHIN}", "AUROC", "its interval over topics", ends=""),
        number("auroc_random_sae", f"best feature of random SAEs, mean: {WITHIN}", "AUROC"),
        number("p", "of the feature, against the best of all features under permuted labels", "p"),
        number("p_adjusted", "the same, corrected for the number of concepts", "p"),
        number("smd_test", "standardised mean difference within left-out topics", "standard deviations"),
        number("ap_test", "average precision within left-out topics", "share"),
        number("ap_chance", "what chance gives", "share"),
        number("auroc_tokens", "AUROC of single tokens within left-out topics", "AUROC"),
        text("other_pooling", "the pooling that features are not chosen by"),
        integer("feature_other", "chosen with that pooling"),
        number("auroc_test_other", f"best feature with that pooling: {WITHIN}", "AUROC"),
        integer("assigned_feature", "when no feature is taken twice"),
        number("assigned_auroc_test", f"best feature when none is taken twice: {WITHIN}", "AUROC"),
        text("same_feature", "other concepts with this feature"),
        integer("split_over", "features that a k-sparse probe needs"),
        number("auroc_topic_alone", "of knowing the topic alone", "AUROC"),
        text("words", "words that the feature raises most through the unembedding"),
    ),
    key=("concept",),
    averages=(
        Average("best_feature_auroc", "auroc_test"),
        Average("random_sae_auroc", "auroc_random_sae"),
        Average("assigned_feature_auroc", "assigned_auroc_test"),
        Average("{other_pooling}_pooled_auroc", "auroc_test_other"),
        Average("token_auroc", "auroc_tokens"),
        Average("average_precision", "ap_test"),
        Average("average_precision_chance", "ap_chance"),
    ),
)
PROBES = Table(
    "probes",
    "One concept read from its most telling features by ridge regression.",
    (
        text("concept", "the emotion"),
        integer("features", "how many"),
        number("auroc", WITHIN, "AUROC"),
    ),
    key=("concept", "features"),
    averages=(Average("probe_auroc_{features}", "auroc"),),
)
CONTEXTS = Table(
    "contexts",
    "A passage at which a concept's feature is most active.",
    (
        text("concept", "the emotion"),
        integer("feature", "its feature"),
        number("value", "activation at the token"),
        integer("document", "index of the text"),
        text("emotion", "that the text was written for"),
        text("before", "tokens before"),
        text("token", "the token"),
        text("after", "tokens after"),
    ),
)


class Match:
    """The matched features of a study.

    Attributes:
        folder: the result folder; ``match.h5`` holds the arrays, ``match.json`` the table.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._card: dict[str, Any] = json.loads((folder / "match.json").read_text(encoding="utf-8"))

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the rows."""
        return tuple(self._card["concepts"])

    @property
    def table(self) -> list[dict[str, Any]]:
        """Per concept: its feature, how well it detects, against what chance gives, its words and contexts."""
        return self._card["table"]

    @property
    def best(self) -> Int[np.ndarray, "concepts"]:
        """The feature chosen for each concept on all topics but the ablated ones: what steers."""
        import numpy as np

        return np.array([row["feature"] for row in self.table])

    @property
    def pooling(self) -> Literal["mean", "max"]:
        """How activations over a text became the numbers that features were chosen by."""
        return self._card["pooling"]

    @property
    def codes(self) -> Float[np.ndarray, "docs features"]:
        """Pooled feature activations of every document, in corpus order."""
        return self._array("codes/sae")

    @property
    def random_saes(self) -> tuple[str, ...]:
        """Names of the random SAEs."""
        return tuple(f"random-{index}" for index in range(self._card["random_saes"]))

    def scores(self, dictionary: str, rows: Sequence[int]) -> Columns:
        """Pooled activations of some documents, read a block of features at a time.

        Args:
            dictionary: ``sae``, or ``random-<n>`` for a random one.
            rows: document indices.
        """
        from affectlens.probing.text_features import Columns

        return Columns(self.folder / FILE, f"codes/{dictionary}", rows)

    def mean_codes(self, rows: Sequence[int]) -> Float[np.ndarray, "rows features"]:
        """Mean activations of some documents, whatever features were chosen by."""
        return self.scores("sae" if self.pooling == "mean" else "mean", rows)[:, :]

    def held_out(self, dictionary: str) -> Float[np.ndarray, "docs concepts"]:
        """Every tested document by the features of an SAE that were chosen without its topic; NaN for the others."""
        return self._array(f"held_out/{dictionary}")

    def chosen(self, fold: int) -> Int[np.ndarray, "concepts"]:
        """The features that a fold chose."""
        return self._array("folds/sae")[fold]

    @cached_property
    def tokens(self) -> TokenFeatures:
        """The chosen features' activations, token by token."""
        from affectlens.probing.text_features import TokenFeatures

        return TokenFeatures(self.folder / FILE)

    @property
    def probe_sizes(self) -> tuple[int, ...]:
        """Numbers of features of the k-sparse probes."""
        return tuple(self._card["probe_sizes"])

    @cached_property
    def probe_scores(self) -> Float[np.ndarray, "sizes docs concepts"]:
        """Every k-sparse probe's score of the documents of topics that it was fitted without; NaN for the others."""
        return self._array("probes/scores")

    def auroc(self, split: Literal["selection"] = "selection") -> Float[np.ndarray, "features concepts"]:
        """AUROC within topics of every feature for every concept, on all topics but the ablated ones."""
        return self.figure("auroc")

    def figure(self, name: Literal["auroc", "smd", "ap"]) -> Float[np.ndarray, "features concepts"]:
        """AUROC, standardised mean difference or average precision of every feature for every concept."""
        return self._array(f"{name}/selection")

    def _array(self, name: str) -> np.ndarray:
        import h5py

        with h5py.File(self.folder / FILE, "r") as opened:
            file: Any = opened
            return file[name][...]


@dataclass(frozen=True)
class Matching:
    """What matching computes before single tokens are read.

    Attributes:
        arrays: for ``match.h5``.
        choice: the features that steer, with their p.
        searches: by dictionary (``sae``, ``random-<n>``, the other pooling).
        read: by the same names and ``assigned``, ``random`` (mean over random SAEs), ``difference``.
        assigned: the feature of each concept when none is taken twice.
        probe_areas: AUROC of the k-sparse probes on left-out topics.
        smd, precision, chance: within left-out topics, per concept.
        topic_alone: AUROC of knowing the topic.
    """

    arrays: Mapping[str, np.ndarray]
    choice: Choice
    searches: Mapping[str, Search]
    read: Mapping[str, Detection]
    assigned: Int[np.ndarray, " concepts"]
    probe_areas: Float[np.ndarray, "sizes concepts"]
    smd: Float[np.ndarray, " concepts"]
    precision: Float[np.ndarray, " concepts"]
    chance: Float[np.ndarray, " concepts"]
    topic_alone: Float[np.ndarray, " concepts"]


def match(path: Path, corpus: Corpus, config: MatchConfig, generator: Callable[[str], np.random.Generator]) -> Matching:
    """Choose features in every fold, read the topics left out, and test the choice.

    Args:
        path: the HDF5 file with the pooled codes.
        corpus: concepts, topics and folds.
        config: of the stage.
        generator: from a name to a random generator.
    """
    import numpy as np

    from affectlens import stats
    from affectlens.probing import detection, matching, sparse_probes
    from affectlens.probing.text_features import Columns

    def columns(name: str) -> Callable[[Sequence[int]], Columns]:
        return lambda rows: Columns(path, f"codes/{name}", rows)

    build = corpus.indices("train", "validation")
    labels, topics, codes = corpus.labels(build), corpus.topics(build), columns("sae")(build)
    figures: Any = codes
    arrays: dict[str, np.ndarray] = {
        "auroc/selection": stats.auroc(figures, labels, topics),
        "smd/selection": stats.standardized_mean_difference(figures, labels),
        "ap/selection": stats.average_precision(figures, labels),
    }
    choice = matching.choose(codes, labels, topics, permutations=config.permutations, rng=generator("permutations"))
    other = "max" if config.pooling == "mean" else "mean"
    random = [f"random-{index}" for index in range(config.random_saes)]
    searches = {name: matching.search(columns(name), corpus) for name in ("sae", other, *random)}
    for name, found in searches.items():
        arrays[f"held_out/{name}"] = found.scores.astype(np.float32)
    arrays["folds/sae"] = searches["sae"].folds

    # One-to-one features and k-sparse probes need every feature's AUROC on each fold's training topics.
    count, concepts = len(corpus.documents), len(corpus.emotions)
    assigned = np.full((count, concepts), np.nan)
    probes = np.full((len(config.probe_sizes), count, concepts), np.nan)
    for fold in corpus.folds:
        train, test = list(fold.train), list(fold.test)
        mine, of_topic, values = corpus.labels(train), corpus.topics(train), columns("sae")(train)
        given: Any = values
        areas = stats.auroc(given, mine, of_topic)
        assigned[test] = matching.taken(columns("sae")(test), matching.assign(areas))
        fitted = sparse_probes.fit(values[:, :], mine, of_topic, config.probe_sizes)
        probes[:, test] = fitted.scores(columns("sae")(test)[:, :])
    arrays["probes/scores"] = probes.astype(np.float32)

    tested = np.concatenate([np.asarray(fold.test) for fold in corpus.folds])
    labels, topics = corpus.labels(tested), corpus.topics(tested)

    def cells(scores: np.ndarray) -> np.ndarray:
        return detection.within_topics(scores[tested], labels, topics)

    read = {name: cells(found.scores) for name, found in searches.items()}
    read["assigned"] = cells(assigned)
    read["random"] = np.mean([read[name] for name in random], axis=0)
    read["difference"] = read["sae"] - read["random"]
    scores = searches["sae"].scores[tested]
    precision, chance, centred = [], [], scores.copy()
    for name in np.unique(topics):
        mine = topics == name
        precision.append(np.diag(stats.average_precision(scores[mine], labels[mine])))
        chance.append(labels[mine].mean(axis=0))
        centred[mine] -= scores[mine].mean(axis=0)
    return Matching(
        arrays,
        choice,
        searches,
        {
            found.method: found
            for found in detection.describe(read, cross_validated=len(corpus.folds) > 1, searched=read)
        },
        matching.assign(arrays["auroc/selection"]),
        np.stack([np.nanmean(cells(each), axis=1) for each in probes]),
        np.diag(stats.standardized_mean_difference(centred, labels)),
        np.nanmean(precision, axis=0),
        np.mean(chance, axis=0),
        matching.topic_alone(corpus.labels(build), corpus.topics(build)),
    )


def token_areas(tokens: TokenFeatures, corpus: Corpus, folds: Int[np.ndarray, "folds concepts"]) -> Any:
    """AUROC of single tokens within each left-out topic, by the features chosen without it, mean over topics.

    One concept's column at a time, so that memory does not grow with tokens times concepts.
    """
    import numpy as np

    from affectlens.probing import detection

    found = []
    for fold, features in zip(corpus.folds, folds, strict=True):
        of_topic = corpus.topics(fold.test)
        for name in np.unique(of_topic):
            documents = [row for row, topic in zip(fold.test, of_topic, strict=True) if topic == name]
            values, owners = tokens.of(documents, features)
            concept_of = dict(zip(documents, corpus.labels(documents).argmax(axis=1), strict=True))
            concept = np.array([concept_of[owner] for owner in owners.tolist()])
            areas = [
                detection.own_areas(values[:, [index]].toarray(), (concept == index)[:, None])[0]
                for index in range(len(features))
            ]
            found.append(areas)
    return np.nanmean(found, axis=0)


def concept_rows(
    found: Matching,
    concepts: Sequence[str],
    config: MatchConfig,
    tokens: Float[np.ndarray, " concepts"],
    words: Sequence[list[str]],
    contexts: Sequence[list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Per concept all that is known of its feature."""
    from affectlens.probing import sparse_probes

    other = "max" if config.pooling == "mean" else "mean"
    split_over = sparse_probes.split_over(found.probe_areas, config.probe_sizes)
    features, rows = found.choice.feature.tolist(), []
    for index, concept in enumerate(concepts):
        mine = found.read["sae"].concepts[index]
        rows.append(
            {
                "concept": concept,
                "feature": features[index],
                "auroc_selection": float(found.choice.area[index]),
                "auroc_test": mine.value,
                "low": mine.low,
                "high": mine.high,
                "auroc_random_sae": found.read["random"].concepts[index].value,
                "p": float(found.choice.p[index]),
                "p_floor": found.choice.floor,
                "p_adjusted": float(found.choice.adjusted[index]),
                "smd_test": float(found.smd[index]),
                "ap_test": float(found.precision[index]),
                "ap_chance": float(found.chance[index]),
                "auroc_tokens": float(tokens[index]),
                f"feature_{other}": int(found.searches[other].building[index]),
                f"auroc_test_{other}": found.read[other].concepts[index].value,
                "assigned_feature": int(found.assigned[index]),
                "assigned_auroc_test": found.read["assigned"].concepts[index].value,
                "same_feature": [
                    name for at, name in enumerate(concepts) if at != index and features[at] == features[index]
                ],
                "split_over": int(split_over[index]),
                "probes": {
                    str(size): float(found.probe_areas[place, index]) for place, size in enumerate(config.probe_sizes)
                },
                "auroc_topic_alone": float(found.topic_alone[index]),
                "words": words[index],
                "contexts": contexts[index],
            }
        )
    return rows


def table_rows(rows: Sequence[Mapping[str, Any]], other: str) -> dict[Table, list[dict[str, Any]]]:
    """The rows of the declared tables."""
    renamed = {"feature_other": f"feature_{other}", "auroc_test_other": f"auroc_test_{other}"}
    concepts = []
    for row in rows:
        values = {column.name: row.get(renamed.get(column.name, column.name)) for column in CONCEPTS.columns}
        joined = {"same_feature": ", ".join(row["same_feature"]), "words": " ".join(row["words"])}
        concepts.append(values | joined | {"other_pooling": other})
    kept = [column.name for column in CONTEXTS.columns[2:]]
    return {
        CONCEPTS: concepts,
        PROBES: [
            {"concept": row["concept"], "features": int(size), "auroc": area}
            for row in rows
            for size, area in row["probes"].items()
        ],
        CONTEXTS: [
            {"concept": row["concept"], "feature": row["feature"], **{name: each[name] for name in kept}}
            for row in rows
            for each in row["contexts"]
        ],
    }


def metrics(found: Matching, rows: Sequence[Mapping[str, Any]], config: MatchConfig, features: int) -> dict[str, float]:
    """Flat metrics of the stage."""
    from statistics import fmean

    other = "max" if config.pooling == "mean" else "mean"
    named = {"best_feature_auroc": "sae", "assigned_feature_auroc": "assigned", f"{other}_pooled_auroc": other}
    values: dict[str, float] = {}
    for metric, name in (named | {"random_sae_auroc": "random", "difference": "difference"}).items():
        mean = found.read[name].mean
        values |= {metric: mean.value, f"{metric}_low": mean.low, f"{metric}_high": mean.high}
    values |= {
        "concepts_significant": float(sum(row["p_adjusted"] <= 0.05 for row in rows)),
        "concepts_sharing_a_feature": float(sum(bool(row["same_feature"]) for row in rows)),
        "token_auroc": fmean(row["auroc_tokens"] for row in rows),
        "average_precision": fmean(row["ap_test"] for row in rows),
        "average_precision_chance": fmean(row["ap_chance"] for row in rows),
        "features": float(features),
    }
    for size in config.probe_sizes:
        values[f"probe_auroc_{size}"] = fmean(row["probes"][str(size)] for row in rows)
    return {name: value for name, value in values.items() if value == value}

"""The directions of a study: one vector per concept and layer, and how well each reads.

The recipe is that of Sofroniew et al. 2026 (arXiv 2604.07729): per-story means over the tokens from the 50th on, mean
per concept minus the mean of the concepts, principal components of neutral text projected out. Other probes are fitted
on the same stories, so that there is something to hold the recipe against.

What steers is built once, on all topics but the ablated ones. What is *measured* of reading is measured in folds:
every topic is read by directions that the other topics built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.results import Average, Line, Table, bounded, flag, integer, number, text

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Int

    from affectlens.activations import ActivationStore
    from affectlens.corpus.documents import Corpus
    from affectlens.probing.config import DirectionsConfig
    from affectlens.probing.detection import Detection
    from affectlens.probing.methods import Linear

RECIPE = "difference of means"
WITHIN = "AUROC within a left-out topic, mean over topics"

CONCEPTS = Table(
    "concepts",
    "One concept at the study's layer.",
    (
        text("concept", "the emotion"),
        *bounded("auroc_test", f"of difference of means: {WITHIN}", "AUROC", "its interval over topics", ends=""),
        number("p", "that it is no better than one half: one-sided t test over topics, not corrected", "p"),
        number("neutral_energy", "share of the squared norm that the neutral components held", "share"),
        number("stability", "cosine with directions from topics drawn anew, mean", "cosine"),
        number("stability_low", "5% quantile of the same", "cosine"),
        number("halves", "cosine of the directions from two halves of the topics, mean", "cosine"),
        text("words", "words that the direction raises most through the unembedding"),
    ),
    key=("concept",),
    averages=(Average("auroc_test", "auroc_test"), Average("stability_halves", "halves")),
)
LAYERS = Table(
    "layers",
    "One probe at one layer.",
    (
        integer("layer", "residual stream after this block"),
        text("method", "the probe"),
        *bounded("auroc_test", f"{WITHIN} and concepts", "AUROC", "its interval over topics", ends=""),
        number("p", "against the best layer under permuted labels; of difference of means only", "p"),
    ),
    key=("layer", "method"),
    charts=(Line("auroc", "layer", "auroc_test", "method"),),
)


MASSIVE = Table(
    "massive",
    "One dimension of the residual stream that dwarfs the others: 20 times the median one.",
    (
        integer("layer", "residual stream after this block"),
        integer("dimension", "coordinate"),
        number("ratio", "root mean square over texts, over that of the median dimension"),
        number("norm", "of the mean squared norm of texts", "share"),
        number("variance", "of the variance over texts", "share"),
        flag("removed", "whether directions, controls and the unit of strength leave it out"),
    ),
    key=("layer", "dimension"),
)


class Directions:
    """The directions of a study.

    Attributes:
        folder: the result folder; ``directions.safetensors`` holds the arrays, ``directions.json`` the rest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._card: dict[str, Any] = json.loads((folder / "directions.json").read_text(encoding="utf-8"))

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load_file

        return load_file(self.folder / "directions.safetensors")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the rows."""
        return tuple(self._card["concepts"])

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers at which directions were built, ascending."""
        return tuple(row["layer"] for row in self.sweep)

    @property
    def methods(self) -> tuple[str, ...]:
        """The probes fitted; the recipe is the first."""
        return tuple(self._card["methods"])

    @property
    def table(self) -> list[dict[str, Any]]:
        """Per concept at the study's layer: detection, stability, logit-lens words, neutral energy."""
        return self._card["table"]

    @property
    def sweep(self) -> list[dict[str, Any]]:
        """Per layer: mean AUROC within left-out topics with its interval and p; per method likewise."""
        return self._card["sweep"]

    @property
    def chosen_layer(self) -> int:
        """The layer that reads best."""
        return self._card["chosen_layer"]

    def vectors(self, layer: int) -> Float[np.ndarray, "concepts d_model"]:
        """Differences of means, neutral components removed, in units of the residual stream."""
        return self._arrays[f"layers.{layer}.vectors"]

    def unit(self, layer: int) -> Float[np.ndarray, "concepts d_model"]:
        """The same at norm 1."""
        from affectlens.probing.control_vectors import unit_rows

        return unit_rows(self.vectors(layer))

    def raw(self, layer: int) -> Float[np.ndarray, "concepts d_model"]:
        """Differences of means with the neutral components still in them."""
        return self._arrays[f"layers.{layer}.raw"]

    def neutral(self, layer: int) -> Float[np.ndarray, "components d_model"]:
        """The orthonormal components of neutral text that were projected out."""
        return self._arrays[f"layers.{layer}.neutral"]

    def centre(self, layer: int) -> Float[np.ndarray, "d_model"]:
        """What is taken from an activation before it is read: the mean over concepts of the stories that built."""
        return self._arrays[f"layers.{layer}.centre"]

    def cosines(self, layer: int) -> Float[np.ndarray, "concepts concepts"]:
        """Between the directions of a layer."""
        unit = self.unit(layer).astype(float)
        return unit @ unit.T

    def readout(
        self, layer: int, residuals: Float[np.ndarray, "n d_model"], method: str = RECIPE
    ) -> Float[np.ndarray, "n concepts"]:
        """Centred projections onto the unit directions of a method."""
        return self.linear(layer, method).scores(residuals)

    def linear(self, layer: int, method: str = RECIPE) -> Linear:
        """A method's readout at a layer, its weights at norm 1."""
        from affectlens.probing.methods import Linear

        return Linear(self._arrays[f"layers.{layer}.{_array(method)}"], self.centre(layer)).unit

    def rebuilt(
        self, layer: int, values: Float[np.ndarray, "stories d_model"], labels: Bool[np.ndarray, "stories concepts"]
    ) -> Linear:
        """The recipe at a layer on other stories, at norm 1; imported directions stay what they are."""
        from affectlens.probing.methods import difference_of_means

        if self.imported:
            return self.linear(layer)
        neutral = self._arrays[f"layers.{layer}.neutral"]
        values = self.without_massive(layer, values)
        return difference_of_means(values, labels, neutral, subtract_mean=self.subtract_mean).unit

    def massive(self, layer: int) -> Int[np.ndarray, " out"]:
        """The massive dimensions of a layer that are taken out; none in most models."""
        return self._arrays[f"layers.{layer}.massive_out"].astype(int)

    def without_massive(self, layer: int, values: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, "n d_model"]:
        """Activations as directions are built from: massive dimensions that are taken out are 0."""
        from affectlens.probing.massive import removed

        return removed(values, self.massive(layer))

    def strength_unit(self, store: ActivationStore, layer: int) -> float:
        """What strength 1 is at a layer: the mean norm of the residual stream, without massive dimensions taken out."""
        if not len(self.massive(layer)):
            return store.mean_norm(layer)
        return float(self._arrays[f"layers.{layer}.unit"][0])

    def held_out(self, layer: int, method: str = RECIPE) -> Float[np.ndarray, "docs concepts"]:
        """Each story's scores by a probe that was built without its topic; NaN for documents that are not tested."""
        return self._arrays[f"layers.{layer}.held_out.{_array(method)}"]

    @property
    def subtract_mean(self) -> bool:
        """Whether the mean over concepts was taken from each concept's mean."""
        return self._card["subtract_mean"]

    @property
    def logistic_c(self) -> float:
        """Inverse L2 penalty of the logistic probe."""
        return self._card["logistic_c"]

    @property
    def imported(self) -> bool:
        """Whether the vectors come from elsewhere, so that no story here built them."""
        return self._card["imported"]


def _array(method: str) -> str:
    """Under which name a method's weights are kept."""
    if method == RECIPE:
        return "vectors"
    return "_".join("".join(letter if letter.isalnum() else " " for letter in method.lower()).split())


def build_layer(
    pooled: Float[np.ndarray, "docs d_model"],
    corpus: Corpus,
    config: DirectionsConfig,
    imported: Float[np.ndarray, "concepts d_model"] | None,
    *,
    permutation_rng: np.random.Generator,
    stability_rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """All that a layer gives: directions that steer, every story read by the other topics, and the null.

    Args:
        pooled: mean activation of each document at the layer.
        corpus: which concept, topic and fold each is of.
        config: the recipe and the probes beside it.
        imported: directions to use in place of the recipe's.
        permutation_rng: alike for every layer.
        stability_rng: of the layer.

    Returns:
        float32 under the names in which :class:`Directions` reads them.
    """
    import numpy as np

    from affectlens.probing import detection, layers, massive, methods

    found, whole = massive.find(pooled), pooled
    out = found.dimensions if found.dominate and config.massive == "auto" and imported is None else np.empty(0, int)
    pooled = massive.removed(pooled, out)
    neutral = methods.neutral_components(pooled[corpus.indices("neutral")], config.neutral_variance)
    neutral = massive.removed(neutral, out)  # exactly, where the decomposition leaves the last bit
    options = methods.ProbeOptions(neutral, config.subtract_mean, config.logistic_c)
    build = corpus.indices("train", "validation")
    stories, labels = pooled[build], corpus.labels(build)
    raw = methods.difference_of_means(stories, labels, subtract_mean=config.subtract_mean)
    arrays = {"vectors": methods.without(raw.weights, neutral), "raw": raw.weights, "centre": raw.centre}
    arrays["neutral"] = neutral
    if imported is not None:
        arrays["vectors"] = imported
    arrays |= {"massive": np.stack([found.dimensions, found.ratio, found.norm, found.variance]), "massive_out": out}
    beside = (methods.STANDARDISED, methods.PLAIN)
    baselines = tuple(dict.fromkeys([*config.baselines, *(beside if len(out) else ())]))
    for method in baselines:
        mine = whole[build] if method in beside else stories
        arrays[_array(method)] = methods.PROBES[method](mine, labels, options).weights
    for method in (RECIPE, *baselines):
        given = imported if method == RECIPE else None
        values = whole if method in beside else pooled

        def read(fold: Any, method: str = method, given: Any = given, values: Any = values) -> np.ndarray:
            train, test = list(fold.train), list(fold.test)
            if given is not None:
                return methods.Linear(given, raw.centre).unit.scores(values[test])
            return methods.PROBES[method](values[train], corpus.labels(train), options).unit.scores(values[test])

        arrays[f"held_out.{_array(method)}"] = detection.held_out(corpus.folds, len(pooled), len(corpus.emotions), read)
    told = layers.Stories.of(pooled, corpus, neutral, subtract_mean=config.subtract_mean)
    if imported is None:
        arrays["null"] = layers.rebuilt_null(told, permutations=config.permutations, rng=permutation_rng)
        arrays["inner"] = layers.inner_areas(told)
    else:
        # Nothing here built the imported vectors, so that only the labels of what is read change.
        arrays["null"] = layers.read_null(
            told, methods.without(imported, neutral), permutations=config.permutations, rng=permutation_rng
        )
        arrays["inner"] = np.full(len(corpus.folds), np.nan)
    steady = layers.stability(
        stories, labels, corpus.topics(build), neutral, draws=config.stability_draws, rng=stability_rng
    )
    arrays["stability"] = np.stack([steady.bootstrap, steady.low, steady.halves])
    return {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in arrays.items()}


@dataclass(frozen=True)
class Sweep:
    """How every method reads at every layer.

    Attributes:
        detection: by (method, layer).
        rows: per layer, as :attr:`Directions.sweep` gives them.
        best: the layer at which the recipe reads best.
        chosen: what the recipe reads when each fold chooses its layer by its own training topics.
    """

    detection: Mapping[tuple[str, int], Detection]
    rows: list[dict[str, Any]]
    best: int
    chosen: Detection


def sweep(
    arrays: Mapping[str, np.ndarray], corpus: Corpus, layers: Sequence[int], methods: Sequence[str], *, imported: bool
) -> Sweep:
    """Detection of every method at every layer, tested against the best layer under permuted labels.

    Args:
        arrays: what :func:`build_layer` gave, under ``layers.<layer>.<name>``.
        corpus: of the study.
        layers: ascending.
        methods: the recipe first.
        imported: whether the recipe's vectors come from elsewhere: then its readings of topics share no training.
    """
    import numpy as np

    from affectlens.probing import detection as reading
    from affectlens.probing.layers import layer_test

    tested = np.concatenate([np.asarray(fold.test) for fold in corpus.folds])
    labels, topics = corpus.labels(tested), corpus.topics(tested)
    crossed = len(corpus.folds) > 1
    found: dict[tuple[str, int], Detection] = {}
    for layer in layers:
        for method in present(arrays, layer, methods):
            scores = arrays[f"layers.{layer}.held_out.{_array(method)}"][tested]
            cells = {method: reading.within_topics(scores, labels, topics)}
            [found[method, layer]] = reading.describe(
                cells, cross_validated=crossed and not (imported and method == RECIPE)
            )
    observed = {layer: found[RECIPE, layer].mean.value for layer in layers}
    test = layer_test(observed, {layer: arrays[f"layers.{layer}.null"] for layer in layers})
    best = max(layers, key=lambda layer: (observed[layer], -layer))
    rows = []
    for layer in layers:
        mean = found[RECIPE, layer].mean
        row: dict[str, Any] = {"layer": layer, "auroc_test": mean.value, "low": mean.low, "high": mean.high}
        row |= {"p_test": test.p[layer], "null_95_test": test.null_95, "p_floor": test.floor}
        row["methods"] = {
            method: {
                "auroc_test": found[method, layer].mean.value,
                "low_test": found[method, layer].mean.low,
                "high_test": found[method, layer].mean.high,
            }
            for method in present(arrays, layer, methods)
        }
        rows.append(row)
    return Sweep(found, rows, best, _nested(arrays, corpus, layers, tested, labels, topics))


def present(arrays: Mapping[str, np.ndarray], layer: int, methods: Sequence[str]) -> tuple[str, ...]:
    """Those of the methods that were fitted at a layer: two stand only beside massive dimensions that are taken out."""
    return tuple(method for method in methods if f"layers.{layer}.held_out.{_array(method)}" in arrays)


def massive_rows(arrays: Mapping[str, np.ndarray], layers: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of the table of massive dimensions."""
    return [
        {"layer": layer, "dimension": int(each[0]), "ratio": each[1], "norm": each[2], "variance": each[3]}
        | {"removed": int(each[0]) in arrays[f"layers.{layer}.massive_out"]}
        for layer in layers
        for each in arrays[f"layers.{layer}.massive"].T
    ]


def _nested(
    arrays: Mapping[str, np.ndarray],
    corpus: Corpus,
    layers: Sequence[int],
    tested: Int[np.ndarray, " tested"],
    labels: np.ndarray,
    topics: np.ndarray,
) -> Detection:
    """The recipe at the layer that each fold chooses on its own training topics."""
    import numpy as np

    from affectlens.probing import detection

    inner = np.nan_to_num(np.stack([arrays[f"layers.{layer}.inner"] for layer in layers]))
    scores = np.full(arrays[f"layers.{layers[0]}.held_out.vectors"].shape, np.nan)
    for choice, fold in zip(inner.argmax(axis=0), corpus.folds, strict=True):
        test = np.asarray(fold.test)
        scores[test] = arrays[f"layers.{layers[choice]}.held_out.vectors"][test]
    cells = {RECIPE: detection.within_topics(scores[tested], labels, topics)}
    return detection.describe(cells, cross_validated=len(corpus.folds) > 1)[0]


def concept_rows(
    arrays: Mapping[str, np.ndarray], layer: int, concepts: Sequence[str], read: Detection, words: Sequence[list[str]]
) -> list[dict[str, Any]]:
    """Per concept at one layer what is known of its direction."""
    raw, neutral = arrays[f"layers.{layer}.raw"], arrays[f"layers.{layer}.neutral"]
    removed = ((raw @ neutral.T) ** 2).sum(axis=1) / (raw**2).sum(axis=1)
    stability = arrays[f"layers.{layer}.stability"]
    return [
        {
            "concept": concept,
            "auroc_test": read.concepts[index].value,
            "low": read.concepts[index].low,
            "high": read.concepts[index].high,
            "p": read.p[index],
            "words": words[index],
            "neutral_energy": float(removed[index]),
            "stability": float(stability[0, index]),
            "stability_low": float(stability[1, index]),
            "halves": float(stability[2, index]),
        }
        for index, concept in enumerate(concepts)
    ]


def layer_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of :data:`LAYERS` from those of a sweep."""
    return [
        {
            "layer": row["layer"],
            "method": method,
            "auroc_test": figures["auroc_test"],
            "low": figures["low_test"],
            "high": figures["high_test"],
            "p": row["p_test"] if method == RECIPE else None,
        }
        for row in rows
        for method, figures in row["methods"].items()
    ]


def metrics(card: Mapping[str, Any], found: Sweep, layer: int) -> dict[str, float]:
    """Flat metrics of the stage at the study's layer."""
    row = next(row for row in card["sweep"] if row["layer"] == layer)
    best = next(row for row in card["sweep"] if row["layer"] == card["chosen_layer"])
    halves = [each["halves"] for each in card["table"]]
    values = {
        "auroc_test": row["auroc_test"],
        "auroc_test_low": row["low"],
        "auroc_test_high": row["high"],
        "p_test": row["p_test"],
        "neutral_components": float(card["neutral_components"]),
        "chosen_layer": float(card["chosen_layer"]),
        "chosen_layer_p_test": best["p_test"],
        "nested_layer_auroc_test": found.chosen.mean.value,
        "nested_layer_auroc_test_low": found.chosen.mean.low,
        "nested_layer_auroc_test_high": found.chosen.mean.high,
        "stability_halves": sum(halves) / len(halves),
        **{f"auroc_test_layer_{each['layer']}": each["auroc_test"] for each in card["sweep"]},
    }
    return {name: value for name, value in values.items() if value == value}

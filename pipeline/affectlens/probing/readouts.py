"""Everything that reads concepts from texts, side by side, on topics that had no part in building or choosing it.

On stories alone a bag of words does nearly as well as any residual stream, and a reader has to see that. Single SAE
features stand beside other single columns that are searched in the same way (random directions, coordinates, principal
components, features of random SAEs), and the SAE as a whole beside a random SAE as a whole: what one unsupervised unit
reads says little of what the SAE holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from affectlens.corpus.documents import Corpus, Fold
from affectlens.corpus.texts import EMBEDDED
from affectlens.probing import axes, detection, lexical, massive, matching, methods
from affectlens.probing.config import CompareConfig
from affectlens.probing.methods import RECIPE, Linear, Vocabulary

if TYPE_CHECKING:
    from affectlens.activations.view import ActivationStore
    from affectlens.probing.directions import Directions
    from affectlens.probing.match import Match

LEXICON = EMBEDDED / "lexicon.json"
FEATURE, WORDS = "best SAE feature", "TF-IDF"
WITHOUT_WORDS = "without telling words"
Scores = Float[np.ndarray, "docs concepts"]


@dataclass(frozen=True)
class Study:
    """What the readouts are computed from.

    Attributes:
        corpus, store, directions, match: opened results.
        sae: the dictionary, which decodes.
        layer: of the study.
        config: of the stage.
        generator: from a name to a random generator.
        tokenizer: of the model, for the tokens of words.
    """

    corpus: Corpus
    store: ActivationStore
    directions: Directions
    match: Match
    sae: Any
    layer: int
    config: CompareConfig
    generator: Callable[[str], np.random.Generator]
    tokenizer: Any

    @cached_property
    def tested(self) -> Int[np.ndarray, " tested"]:
        """Documents that some fold reads."""
        return np.concatenate([np.asarray(fold.test) for fold in self.corpus.folds])

    @cached_property
    def labels(self) -> Bool[np.ndarray, "tested concepts"]:
        """Which concept each of them is of."""
        return self.corpus.labels(self.tested.tolist())

    @cached_property
    def topics(self) -> np.ndarray:
        """The topic of each."""
        return self.corpus.topics(self.tested.tolist())

    @cached_property
    def pooled(self) -> Float[np.ndarray, "docs d_model"]:
        """Mean activations of all documents at the study's layer."""
        return self.store.pooled(self.layer)

    def texts(self, rows: Sequence[int]) -> list[str]:
        """The texts of some documents."""
        return [self.corpus.documents[row].text for row in rows]

    def held_out(self, read: Callable[[Fold], Float[np.ndarray, "test concepts"]]) -> Scores:
        """Scores of every tested document by a readout that did not see its topic."""
        return detection.held_out(self.corpus.folds, len(self.corpus.documents), len(self.corpus.emotions), read)

    def fitted(self, values: Float[np.ndarray, "docs columns"], fit: Callable[..., Linear]) -> Scores:
        """The same of a probe of some columns."""

        def read(fold: Fold) -> np.ndarray:
            return fit(values[list(fold.train)], self.corpus.labels(fold.train)).scores(values[list(fold.test)])

        return self.held_out(read)

    @cached_property
    def vocabularies(self) -> dict[Fold, Vocabulary]:
        """Each fold's TF-IDF readout."""
        return {
            fold: Vocabulary.fit(self.texts(fold.train), self.corpus.labels(fold.train)) for fold in self.corpus.folds
        }

    def cells(self, scores: Scores) -> Float[np.ndarray, "concepts topics"]:
        """AUROC within each topic."""
        return detection.within_topics(scores[self.tested], self.labels, self.topics)


def all_readouts(study: Study, ratings: Float[np.ndarray, "concepts axes"]) -> dict[str, Scores | list[Scores]]:
    """Every method's scores of every tested document; several draws of one control as a list."""
    directions, match, pooled, layer = study.directions, study.match, study.pooled, study.layer
    readouts: dict[str, Scores | list[Scores]] = {
        method: directions.held_out(layer, method) for method in directions.methods
    }
    readouts[FEATURE] = match.held_out("sae")
    for size, scores in zip(match.probe_sizes, match.probe_scores, strict=True):
        if size > 1:
            readouts[f"{size} SAE features"] = scores
    readouts |= _whole_saes(study)
    readouts |= _single_columns(study)
    readouts[WORDS] = study.held_out(lambda fold: study.vocabularies[fold].scores(study.texts(fold.test)))
    lowest = min(directions.layers)
    if lowest < layer:
        readouts[f"{RECIPE}, layer {lowest}"] = directions.held_out(lowest)

    def beyond_affect(fold: Fold) -> np.ndarray:
        linear = directions.rebuilt(layer, pooled[list(fold.train)], study.corpus.labels(fold.train))
        return axes.remainder(linear, ratings)[0].unit.scores(pooled[list(fold.test)])

    readouts[f"{RECIPE}, without valence and arousal"] = study.held_out(beyond_affect)
    return readouts | {f"{name}, {WITHOUT_WORDS}": scores for name, scores in _without_words(study).items()}


def _whole_saes(study: Study) -> dict[str, Scores | list[Scores]]:
    """Probes of all features at once, and difference of means on what the SAE reconstructs and on what it leaves out.

    Decoding is affine, so the mean of the reconstructions is the reconstruction of the mean activations. Not so where
    the SAE normalises each token by itself: then there are no rows of reconstructions.
    """
    rows = list(range(len(study.corpus.documents)))
    codes = study.match.mean_codes(rows)
    random = study.match.scores(study.match.random_saes[0], rows)[:, :]
    probes: dict[str, Scores | list[Scores]] = {
        "all SAE features": study.fitted(codes, methods.standardised),
        "all SAE features, logistic": study.fitted(codes, methods.logistic),
        "all random-SAE features": study.fitted(random, methods.standardised),
    }
    if study.sae.per_token:
        return probes

    def recipe(values: np.ndarray, labels: np.ndarray) -> Linear:
        return methods.difference_of_means(values, labels).unit

    rebuilt = study.sae.decode(codes)
    return probes | {
        f"{RECIPE}, SAE reconstruction": study.fitted(rebuilt, recipe),
        f"{RECIPE}, SAE error": study.fitted(study.pooled - rebuilt, recipe),
    }


def _single_columns(study: Study) -> dict[str, Scores | list[Scores]]:
    """What else can be searched for one column a concept, as many columns as the SAE has or as there are.

    Principal components are those of the stories, whose labels they do not know.
    """
    pooled = massive.balanced(study.pooled.astype(np.float32), study.directions.massive(study.layer))
    width = pooled.shape[1]
    features = study.match.scores("sae", [0]).shape[1]

    def search(columns: np.ndarray) -> Scores:
        return matching.search(lambda rows: columns[list(rows)], study.corpus).scores

    draws = []
    for draw in range(study.config.random_directions):
        directions = study.generator(f"random-directions-{draw}").standard_normal((width, features))
        draws.append(search(pooled @ directions.astype(np.float32)))
    stories = pooled[study.tested] - pooled[study.tested].mean(axis=0)
    components = pooled @ np.linalg.svd(stories, full_matrices=False)[2].T
    return {
        "best random-SAE feature": [study.match.held_out(name) for name in study.match.random_saes],
        "best random direction": draws,
        "best coordinate of the residual stream": search(np.concatenate([pooled, -pooled], axis=1)),
        "best principal component": search(np.concatenate([components, -components], axis=1)),
    }


def _without_words(study: Study) -> dict[str, Scores]:
    """Readouts with the tokens of each concept's telling words left out, which each fold's training topics choose.

    Of TF-IDF alone where the tokenizer does not say which characters a token stands for, or texts are chats.
    """
    corpus, store, match = study.corpus, study.store, study.match
    lexicon = json.loads(LEXICON.read_text(encoding="utf-8"))
    telling = {
        fold: lexical.telling_words(vocabulary, corpus.emotions, lexicon, study.config.telling_words)
        for fold, vocabulary in study.vocabularies.items()
    }

    def words(fold: Fold) -> np.ndarray:
        return lexical.scores_without(study.vocabularies[fold], study.texts(fold.test), telling[fold])

    readouts = {WORDS: study.held_out(words)}
    if not study.tokenizer.is_fast or any(corpus.documents[row].messages for row in study.tested):
        return readouts
    rows, first = store.tokens(study.layer), store.index["first_token"]
    linears = {
        fold: study.directions.rebuilt(study.layer, study.pooled[list(fold.train)], corpus.labels(fold.train))
        for fold in corpus.folds
    }
    chosen = {fold: match.chosen(index) for index, fold in enumerate(corpus.folds)}

    def read(pool: Callable[[Fold, int], np.ndarray], pooling: str) -> Scores:
        def of(fold: Fold) -> np.ndarray:
            return np.stack([lexical.pool_kept(pool(fold, row), kept[row][first:], pooling) for row in fold.test])

        return study.held_out(of)

    kept = {
        row: lexical.kept_tokens(study.tokenizer, corpus.documents[row].text, telling[fold])
        for fold in corpus.folds
        for row in fold.test
    }
    readouts[RECIPE] = read(lambda fold, row: linears[fold].scores(rows.of(row)[first:]), "mean")
    readouts[FEATURE] = read(lambda fold, row: match.tokens.of([row], chosen[fold])[0].toarray(), match.pooling)
    return readouts


def confounds(
    study: Study, readouts: Mapping[str, Any], ratings: Float[np.ndarray, "concepts axes"]
) -> list[dict[str, Any]]:
    """Per concept, what else tells it, and the names of what explains at least half of its detection."""
    corpus, config = study.corpus, study.config
    build = corpus.indices("train", "validation")
    words, _ = lexical.best_words(study.texts(build), corpus.labels(build), study.texts(build[:1]))

    def single_word(fold: Fold) -> np.ndarray:
        labels = corpus.labels(fold.train)
        return lexical.best_words(study.texts(fold.train), labels, study.texts(fold.test))[1]

    single = np.nanmean(study.cells(study.held_out(single_word)), axis=1)
    linear = study.directions.linear(study.layer)
    _, share = axes.remainder(linear, ratings)
    near = {
        name: axes.near_areas(readouts[name][study.tested], study.labels, study.topics, ratings, config.near_concepts)
        for name in (RECIPE, FEATURE, WORDS)
    }
    areas = {
        name: np.nanmean(study.cells(readouts[name]), axis=1)
        for base in (RECIPE, FEATURE)
        for name in (base, f"{base}, {WITHOUT_WORDS}")
        if name in readouts
    }
    rows = []
    for index, concept in enumerate(corpus.emotions):
        row: dict[str, Any] = {
            "concept": concept,
            "auroc_topic_alone": study.match.table[index]["auroc_topic_alone"],
            "best_word": words[index],
            "auroc_best_word": float(single[index]),
            "share_beyond_affect": float(share[index]),
            "near": {name: float(values[index]) for name, values in near.items()},
        }
        row |= {name: float(values[index]) for name, values in areas.items()}
        rows.append(row | {"confounded": confounded(row)})
    return rows


def confounded(row: Mapping[str, Any], margin: float = 0.1) -> list[str]:
    """What a concept's detection cannot be told from.

    ``topic``: knowing the topic alone tells the concept, by more than ``margin`` above chance. ``words``: a readout
    loses more than half of what it has above chance once the telling words' tokens are left out.
    """
    named = ["topic"] if row["auroc_topic_alone"] > 0.5 + margin else []
    for name in (RECIPE, FEATURE):
        whole, rest = row[name] - 0.5, row.get(f"{name}, {WITHOUT_WORDS}", float("nan")) - 0.5
        if whole > margin and rest < whole / 2:
            named.append(f"words ({name})")
    return named


def detection_rows(study: Study, readouts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a method: its AUROC within left-out topics, per concept and in the mean, and its difference."""
    cells = {
        name: np.mean([study.cells(each) for each in scores], axis=0)
        if isinstance(scores, list)
        else study.cells(scores)
        for name, scores in readouts.items()
    }
    rows = []
    searched = [name for name in cells if name.startswith("best ") or name.endswith(" SAE features")]
    searched = [name for name in searched if not name.startswith("all ")]
    for found in detection.describe(cells, cross_validated=len(study.corpus.folds) > 1, searched=searched):
        row: dict[str, Any] = {
            "method": found.method,
            "mean": found.mean.value,
            "low": found.mean.low,
            "high": found.mean.high,
            "per_concept": {
                concept: each.value for concept, each in zip(study.corpus.emotions, found.concepts, strict=True)
            },
        }
        if found.difference is not None:
            row |= {
                "against": next(iter(cells)),
                "difference": found.difference.value,
                "difference_low": found.difference.low,
                "difference_high": found.difference.high,
                "concepts_better": found.better,
                "concepts_worse": found.worse,
            }
        rows.append(row)
    return rows

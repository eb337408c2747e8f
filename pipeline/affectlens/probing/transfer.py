"""What one writer's stories build, read on another writer's: every readout, in every direction.

Texts are divided by writer and topic. A writer's own figure is that of leave-one-topic-out; another writer is read
by what all topics of the building writers give, less any topic of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from affectlens import stats
from affectlens.corpus.documents import OWN, Corpus
from affectlens.probing import detection, massive, matching, methods, sparse_probes
from affectlens.probing.methods import RECIPE, Linear, ProbeOptions, Vocabulary
from affectlens.probing.text_features import POOLINGS

if TYPE_CHECKING:
    from affectlens.activations import ActivationStore
    from affectlens.probing.directions import Directions
    from affectlens.probing.match import Match
    from affectlens.probing.writers import Writers

RANDOM_DRAWS = 3
"""Sets of random directions, as many as features each."""
SPARSE = 20
"""Features of the sparse probe."""
TOKEN_POOLINGS = {
    "mean over all tokens": lambda rows, first: rows.mean(axis=0),
    "mean over the last 16 tokens": lambda rows, first: rows[-16:].mean(axis=0),
    "maximum over tokens": lambda rows, first: rows[first:].max(axis=0),
    "last token": lambda rows, first: rows[-1],
}
"""Further ways from a text's token rows to one vector; by default it is the mean from ``first_token`` on."""


@dataclass(frozen=True)
class Pool:
    """The stories of all writers, the study's own first, and what is read of them.

    Attributes:
        emotions: the concepts, alphabetically.
        writer, topic, text: of each document.
        labels: which concept each is of.
        builds, tested: whether a document may build, and be read; where the study names test topics, its own stories
            do one of the two.
        layer: of the study.
        layers: mean activations by layer.
        pooled: at the study's layer, by pooling over tokens.
        codes: pooled feature activations by dictionary: ``sae``, ``mean`` (of the SAE, by mean) and the random SAEs.
    """

    emotions: tuple[str, ...]
    writer: np.ndarray
    topic: np.ndarray
    text: Sequence[str]
    labels: Bool[np.ndarray, "docs concepts"]
    builds: Bool[np.ndarray, " docs"]
    tested: Bool[np.ndarray, " docs"]
    layer: int
    layers: Mapping[int, Float[np.ndarray, "docs d_model"]]
    pooled: Mapping[str, Float[np.ndarray, "docs d_model"]] = field(default_factory=dict)
    codes: Mapping[str, Float[np.ndarray, "docs features"]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        store: ActivationStore,
        match: Match,
        dictionaries: Mapping[str, Any],
        writers: Writers,
        layer: int,
    ) -> Pool:
        """Collect what was cached, and encode the other writers' stories.

        Args:
            corpus, store, match: of the study.
            dictionaries: what encodes, by name: ``sae`` and the random SAEs of ``match``.
            writers: the others.
            layer: of the study.
        """
        stories = [document.index for document in corpus.documents if document.emotion]
        others = [(name, writers.corpus(name), writers.store(name)) for name in writers.names]
        documents = [corpus.documents[row] for row in stories]
        documents += [document for _, theirs, _ in others for document in theirs.documents]
        writer = [OWN] * len(stories) + [name for name, theirs, _ in others for _ in theirs.documents]
        first, tokens = store.index["first_token"], store.tokens(layer)
        codes: dict[str, list[np.ndarray]] = {"mean": list(match.mean_codes(stories))}
        codes |= {name: list(match.scores(name, stories)[:, :]) for name in dictionaries}
        pooled: dict[str, list[np.ndarray]] = {name: [] for name in TOKEN_POOLINGS}
        for source, rows in [
            (tokens, stories),
            *((each.tokens(layer), range(len(c.documents))) for _, c, each in others),
        ]:
            for row in rows:
                residuals = source.of(row)
                for name, pool in TOKEN_POOLINGS.items():
                    pooled[name].append(pool(residuals, first))
                if source is not tokens:
                    for name, dictionary in dictionaries.items():
                        found = dictionary.encode(residuals[first:])
                        codes[name].append(POOLINGS[match.pooling](found))
                        if name == "sae":
                            codes["mean"].append(POOLINGS["mean"](found))
        emotions = np.array([document.emotion for document in documents], dtype=object)
        read = {row for fold in corpus.folds for row in fold.test}
        tested = np.array([row in read for row in stories] + [True] * (len(documents) - len(stories)))
        own = np.array(writer) == OWN
        return cls(
            corpus.emotions,
            np.array(writer),
            np.array([document.topic for document in documents]),
            [document.text for document in documents],
            emotions[:, None] == np.array(corpus.emotions, dtype=object),
            ~(own & tested) if corpus.fixed_split else np.ones(len(own), bool),
            tested,
            layer,
            {
                at: np.concatenate([store.pooled(at)[stories], *(each.pooled(at) for _, _, each in others)])
                for at in store.layers
            },
            {name: np.stack(rows) for name, rows in pooled.items()},
            {name: np.stack(rows).astype(np.float32) for name, rows in codes.items()},
        )

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """The study's own first, the others sorted."""
        return (OWN, *sorted(set(self.writer.tolist()) - {OWN}))

    @cached_property
    def strata(self) -> np.ndarray:
        """Writer and topic of each document, as one number."""
        return np.unique([f"{a}\0{b}" for a, b in zip(self.writer, self.topic, strict=True)], return_inverse=True)[1]


@dataclass(frozen=True, eq=False)
class Split:
    """Documents that build, documents that are read, and the concepts that those that build have.

    Attributes:
        train, test: document positions; only documents of ``concepts``.
        concepts: columns.
    """

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]
    concepts: Int[np.ndarray, " shared"]

    @property
    def rows(self) -> Int[np.ndarray, " documents"]:
        """Both, those that build first."""
        return np.concatenate([self.train, self.test])


def splits(pool: Pool, built: Sequence[str], read: str) -> list[Split]:
    """How one writer is read by what some writers' stories build: no topic that is read builds.

    Topics of the writer read that no building writer has are read at once; every other topic is read by what the
    remaining topics build, which makes it leave-one-topic-out where the writer is among those that build.
    """
    building = np.flatnonzero(np.isin(pool.writer, built) & pool.builds)
    reading = np.flatnonzero((pool.writer == read) & pool.tested)
    known = set(pool.topic[building].tolist())
    names = sorted(set(pool.topic[reading].tolist()))
    free = [name for name in names if name not in known]
    found = []
    for group in [*([free] if free else []), *([name] for name in names if name in known)]:
        train = building[~np.isin(pool.topic[building], group)]
        concepts = np.flatnonzero(pool.labels[train].any(axis=0))
        test = reading[np.isin(pool.topic[reading], group) & pool.labels[reading][:, concepts].any(axis=1)]
        if len(concepts) > 1 and len(test):
            found.append(Split(train, test, concepts))
    return found


Readout = Callable[[Sequence[Split]], Iterator[Float[np.ndarray, "documents shared"]]]
"""From splits to the scores that each split's ``rows`` get for its concepts from what its ``train`` builds."""


def fitted(pool: Pool, values: Float[np.ndarray, "docs columns"], fit: Callable[..., Linear]) -> Readout:
    """A linear probe of some columns."""

    def read(each: Sequence[Split]) -> Iterator[np.ndarray]:
        for split in each:
            labels = pool.labels[split.train][:, split.concepts]
            yield fit(values[split.train], labels).scores(values[split.rows])

    return read


def searched(pool: Pool, columns: Float[np.ndarray, "docs columns"]) -> Readout:
    """The best single column for each concept, by AUROC within writers' topics on what builds."""

    def read(each: Sequence[Split]) -> Iterator[np.ndarray]:
        names = np.unique(pool.strata)
        kept = np.array([np.isin(names, pool.strata[split.train]) for split in each])
        chosen = stats.best_features(columns, pool.labels, pool.strata, kept)
        for split, mine in zip(each, chosen, strict=True):
            yield matching.taken(columns[split.rows], mine[split.concepts])

    return read


def readouts(
    pool: Pool, directions: Directions, generator: Callable[[str], np.random.Generator]
) -> dict[str, list[Readout]]:
    """Every method; several draws of one control as a list."""
    layer, whole = pool.layer, pool.layers[pool.layer]
    here, balanced = directions.without_massive(layer, whole), massive.balanced(whole, directions.massive(layer))
    options = ProbeOptions(directions.neutral(layer), directions.subtract_mean, directions.logistic_c)

    def recipe(at: int) -> Callable[..., Linear]:
        return lambda values, labels: directions.rebuilt(at, values, labels)

    def probe(method: str) -> Callable[..., Linear]:
        return lambda values, labels: methods.PROBES[method](values, labels, options).unit

    def sparse(each: Sequence[Split]) -> Iterator[np.ndarray]:
        for split in each:
            labels, codes = pool.labels[split.train][:, split.concepts], pool.codes["sae"]
            probes = sparse_probes.fit(codes[split.train], labels, pool.strata[split.train], (SPARSE,))
            yield probes.scores(codes[split.rows])[0]

    def words(each: Sequence[Split]) -> Iterator[np.ndarray]:
        for split in each:
            labels = pool.labels[split.train][:, split.concepts]
            vocabulary = Vocabulary.fit([pool.text[int(row)] for row in split.train], labels)
            yield vocabulary.scores([pool.text[int(row)] for row in split.rows])

    def random_directions(draw: int) -> np.ndarray:
        shape = here.shape[1], pool.codes["sae"].shape[1]
        return balanced @ generator(f"random-directions-{draw}").standard_normal(shape).astype(np.float32)

    own = balanced[pool.writer == OWN]
    components = balanced @ np.linalg.svd(own - own.mean(axis=0), full_matrices=False)[2].T
    random = [name for name in pool.codes if name.startswith("random")]
    found: dict[str, list[Readout]] = {RECIPE: [fitted(pool, here, recipe(layer))]}
    for method in directions.methods[1:]:
        values = whole if method in (methods.STANDARDISED, methods.PLAIN) else here
        found[method] = [fitted(pool, values, probe(method))]
    found["best SAE feature"] = [searched(pool, pool.codes["sae"])]
    found[f"{SPARSE} SAE features"] = [sparse]
    found["all SAE features"] = [fitted(pool, pool.codes["mean"], methods.standardised)]
    found["all SAE features, logistic"] = [fitted(pool, pool.codes["mean"], methods.logistic)]
    found["all random-SAE features"] = [fitted(pool, pool.codes[random[0]], methods.standardised)]
    found["best random-SAE feature"] = [searched(pool, pool.codes[name]) for name in random]
    found["best random direction"] = [searched(pool, random_directions(draw)) for draw in range(RANDOM_DRAWS)]
    found["best principal component"] = [searched(pool, np.concatenate([components, -components], axis=1))]
    found["TF-IDF"] = [words]
    lowest = min(pool.layers)
    if lowest < layer:
        found[f"{RECIPE}, layer {lowest}"] = [fitted(pool, pool.layers[lowest], recipe(lowest))]
    return found


@dataclass(frozen=True)
class Cells:
    """How one readout, built on some writers, reads one writer.

    Attributes:
        areas: AUROC within each topic; NaN for a concept that one side lacks.
        hits: share of a concept's texts in the topic for which it has the highest score, every concept's scores in
            units of their own mean and standard deviation on what built; NaN without a text.
        texts: that were read.
    """

    areas: Float[np.ndarray, "concepts topics"]
    hits: Float[np.ndarray, "concepts topics"]
    texts: int


def read_cells(pool: Pool, readout: Readout, plan: Mapping[Any, Sequence[Split]]) -> dict[Any, Cells]:
    """Measure one readout on every (writers that build, writer that is read) of a plan.

    Args:
        pool: of all writers.
        readout: built once for all, so that what a search ranks is ranked once.
        plan: splits by pair.
    """
    scores, found = readout([split for each in plan.values() for split in each]), {}
    for key, each in plan.items():
        names = np.unique(np.concatenate([pool.topic[split.test] for split in each]))
        areas, hits = np.full((2, len(pool.emotions), len(names)), np.nan)
        for split in each:
            mine, count = next(scores), len(split.train)
            spread = mine[:count].std(axis=0)
            standard = (mine[count:] - mine[:count].mean(axis=0)) / np.where(spread > 0, spread, 1)
            labels, topics = pool.labels[split.test][:, split.concepts], pool.topic[split.test]
            hit = standard.argmax(axis=1) == labels.argmax(axis=1)
            for name in np.unique(topics):
                rows, column = topics == name, int(np.flatnonzero(names == name)[0])
                areas[split.concepts, column] = detection.own_areas(mine[count:][rows], labels[rows])
                counts = labels[rows].sum(axis=0)
                share = hit[rows] @ labels[rows] / np.maximum(counts, 1)
                hits[split.concepts, column] = np.where(counts > 0, share, np.nan)
        found[key] = Cells(areas, hits, sum(len(split.test) for split in each))
    return found

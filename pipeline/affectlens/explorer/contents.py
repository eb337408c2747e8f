"""What the explorer shows of a study, as numbers: no text goes through the model again.

Token codes of every feature lie in the parts of ``match``, pooled codes of features and of random SAEs in its merge,
residuals in the cache. Added here are AUROCs on the topics that had no part in any choice, a null for each feature,
neighbours, and what features write through the unembedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from affectlens import stats
from affectlens.errors import MissingResult
from affectlens.probing import text_features
from affectlens.run import manifest
from affectlens.run.workspace import PARTS
from affectlens.use.readings import Readings
from affectlens.use.texts import spell

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from affectlens.corpus.documents import Corpus
    from affectlens.probing.match import Match
    from affectlens.use.opened import Opened

NEEDED = ("corpus", "activations", "sae", "directions", "match")
"""Stages that have to be finished."""
NEIGHBOURS = 6
"""Features listed as nearest by decoder row, and by co-activation."""
WORDS = 8
"""Tokens that a feature raises, and lowers, most."""
DRAWS = 20
"""Permutations of labels within topics; every feature's null has so many times the concepts."""
BLOCK = 512
"""Features handled at once."""
RANDOM_ROWS = 64
"""Random unit vectors that say what neighbours and words chance gives."""


@dataclass(frozen=True, eq=False)
class Texts:
    """The documents, token by token.

    Attributes:
        documents: ``kind``, ``emotion``, ``topic`` and ``use`` (``selection``, ``held out``, ``neutral``) of each.
        vocabulary: the different pieces of text that tokens add.
        pieces: number in the vocabulary of every token, document by document.
        lengths: tokens of each document.
        first: tokens at the start of every document that are not encoded.
    """

    documents: list[dict[str, str]]
    vocabulary: list[str]
    pieces: Int[np.ndarray, " tokens"]
    lengths: Int[np.ndarray, " docs"]
    first: int


def texts(study: Opened) -> Texts:
    """The study's documents with their tokens spelled."""
    corpus, rows = study.result("corpus"), study.activations.tokens(study.layer)
    uses = {"train": "selection", "validation": "selection", "test": "held out", "neutral": "neutral"}
    documents = [
        {"kind": each.kind, "emotion": each.emotion, "topic": each.topic, "use": uses[each.split]}
        for each in corpus.documents
    ]
    numbers: dict[str, int] = {}
    pieces, lengths = [], []
    for each in corpus.documents:
        spelled = spell(study.tokenizer, rows.token[slice(*rows.span(each.index))].tolist())
        pieces += [numbers.setdefault(piece, len(numbers)) for piece in spelled]
        lengths.append(len(spelled))
    first = int(study.activations.index["first_token"])
    return Texts(documents, list(numbers), np.array(pieces, np.uint32), np.array(lengths, np.uint32), first)


def token_codes(study: Opened, match: Match, documents: int) -> Any:
    """Every feature's activation at every encoded token, as a sparse matrix [tokens, features] by columns.

    Raises:
        MissingResult: the parts of ``match``, which hold them, are gone.
    """
    parts = sorted(path for path in (match.folder / PARTS).glob("*") if (path / text_features.FILE).is_file())
    if not parts:
        raise MissingResult(
            f"{match.folder}: its parts are gone, and they hold the activations token by token; "
            "run the study again with `--stage match --mode force`"
        )
    matrix, owners = text_features.token_matrix(parts, set(range(documents)))
    if len(np.unique(owners)) != documents:
        raise MissingResult(
            f"{match.folder}: its parts hold {len(np.unique(owners))} of {documents} texts; "
            "run the study again with `--stage match --mode force`"
        )
    return matrix


@dataclass(frozen=True, eq=False)
class Detection:
    """How every feature detects every concept.

    Attributes:
        selection: AUROC within the topics that choose features.
        held_out: AUROC within the ablated topics, which choose nothing; NaN where there are none.
        low, high: of each feature, the middle 95% of AUROCs under labels permuted within topics.
        twin: of each feature, the random SAE's feature that is active in the nearest share of texts.
        twin_selection: that feature's AUROC.
    """

    selection: Float[np.ndarray, "features concepts"]
    held_out: Float[np.ndarray, "features concepts"]
    low: Float[np.ndarray, " features"]
    high: Float[np.ndarray, " features"]
    twin: Int[np.ndarray, " features"]
    twin_selection: Float[np.ndarray, "features concepts"]


def detection(match: Match, corpus: Corpus, rng: np.random.Generator) -> Detection:
    """Every feature against every concept, on topics that choose and on those that do not.

    Args:
        match: holds the pooled codes.
        corpus: concepts, topics and splits.
        rng: permutes labels.
    """
    build, test = corpus.indices("train", "validation"), corpus.indices("test")
    labels, topics = corpus.labels(build), corpus.topics(build)
    codes: Any = match.scores("sae", build)
    held_out = np.full((codes.shape[1], len(corpus.emotions)), np.nan)
    if test:
        read: Any = match.scores("sae", test)
        held_out = stats.auroc(read, corpus.labels(test), corpus.topics(test))
    ranked = stats.rank_features(codes, topics)
    null = []
    for _ in range(DRAWS):
        shuffled = labels.copy()
        for name in np.unique(topics):
            mine = np.flatnonzero(topics == name)
            shuffled[mine] = labels[rng.permutation(mine)]
        null.append(stats.auroc(ranked, shuffled))
    low, high = np.nanquantile(np.concatenate(null, axis=1), (0.025, 0.975), axis=1)

    # A random SAE's feature fires in more or fewer texts than a trained one; it is compared at an equal share.
    random: Any = match.scores(match.random_saes[0], build) if match.random_saes else codes
    active, theirs = ((each[:, :] > 0).mean(axis=0) for each in (codes, random))
    order = np.argsort(theirs, kind="stable")
    places = np.searchsorted(theirs[order], active).clip(1, len(order) - 1)
    nearer = active - theirs[order[places - 1]] < theirs[order[places]] - active
    twin = order[np.where(nearer, places - 1, places)]
    return Detection(stats.auroc(ranked, labels), held_out, low, high, twin, stats.auroc(random, labels, topics)[twin])


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Features next to each feature, nearest first, and how near chance brings them.

    Attributes:
        nearest: by cosine of decoder rows.
        cosine: theirs.
        chance_cosine: of the nearest among as many random rows, mean.
        together: by Jaccard index of the tokens at which they are active.
        jaccard: theirs.
        lift: how many times as often as independent features both are active.
    """

    nearest: Int[np.ndarray, "features neighbours"]
    cosine: Float[np.ndarray, "features neighbours"]
    chance_cosine: float
    together: Int[np.ndarray, "features neighbours"]
    jaccard: Float[np.ndarray, "features neighbours"]
    lift: Float[np.ndarray, "features neighbours"]


def _largest(values: Float[np.ndarray, "rows columns"], count: int) -> Int[np.ndarray, "rows count"]:
    """The columns of the largest values of each row, largest first."""
    some = np.argpartition(-values, count - 1, axis=1)[:, :count]
    return np.take_along_axis(some, np.argsort(-np.take_along_axis(values, some, axis=1), axis=1, kind="stable"), 1)


def neighbours(decoder: Float[np.ndarray, "features d_model"], codes: Any, rng: np.random.Generator) -> Neighbours:
    """Whom each feature resembles, and with whom it is active.

    Args:
        decoder: the SAE's rows.
        codes: sparse [tokens, features] by columns.
        rng: draws the random rows.
    """
    features, count = len(decoder), min(NEIGHBOURS, len(decoder) - 1)
    unit = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    active = codes.astype(bool).astype(np.float32).tocsc()
    totals, tokens = np.asarray(active.sum(axis=0)).ravel(), active.shape[0]
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("nearest", "cosine", "together", "jaccard", "lift")}
    for start in range(0, features, BLOCK):
        mine = np.arange(start, min(start + BLOCK, features))
        cosine = unit[mine] @ unit.T
        both = (active[:, mine].T @ active).toarray()
        either = totals[mine][:, None] + totals - both
        jaccard = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
        for values in (cosine, jaccard):
            values[np.arange(len(mine)), mine] = -np.inf
        near, together = _largest(cosine, count), _largest(jaccard, count)
        expected = np.maximum(totals[mine][:, None] * totals[together] / tokens, 1e-12)
        found["nearest"].append(near)
        found["cosine"].append(np.take_along_axis(cosine, near, axis=1))
        found["together"].append(together)
        found["jaccard"].append(np.take_along_axis(jaccard, together, axis=1))
        found["lift"].append(np.take_along_axis(both, together, axis=1) / expected)
    random = rng.standard_normal((features, decoder.shape[1])).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    some = random[:RANDOM_ROWS] @ random.T
    some[np.arange(len(some)), np.arange(len(some))] = -np.inf
    return Neighbours(
        **{name: np.concatenate(rows) for name, rows in found.items()}, chance_cosine=float(some.max(axis=1).mean())
    )


@dataclass(frozen=True, eq=False)
class Written:
    """What features write through the unembedding (logit lens), per unit of norm.

    Attributes:
        tokens: ids of those raised most, then of those lowered most.
        logits: theirs.
        chance: how far a random unit vector raises the token that it raises most, mean.
    """

    tokens: Int[np.ndarray, "features words"]
    logits: Float[np.ndarray, "features words"]
    chance: float


def written(study: Opened, decoder: Float[np.ndarray, "features d_model"], rng: np.random.Generator) -> Written:
    """The logits that a unit step along each decoder row adds, at the tokens that it moves most.

    Args:
        study: whose unembedding writes.
        decoder: the SAE's rows.
        rng: draws the random vectors.
    """
    unit = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    random = rng.standard_normal((RANDOM_ROWS, decoder.shape[1])).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    ids, logits = [], []
    for start in range(0, len(unit), BLOCK):
        tokens, values = study.subject.lens_extremes(unit[start : start + BLOCK], WORDS)
        ids.append(tokens)
        logits.append(values)
    chance = study.subject.lens_extremes(random, 1)[1][:, 0]
    return Written(np.concatenate(ids), np.concatenate(logits), float(chance.mean()))


def read_tokens(study: Opened, readings: Readings, documents: int) -> Float[np.ndarray, "tokens rows"]:
    """Every token of every document in standard deviations of neutral tokens, from the cache."""
    rows = study.activations.tokens(study.layer)
    return np.concatenate([readings.standard(readings.values(rows.of(each))) for each in range(documents)])


def confusions(study: Opened) -> Float[np.ndarray, "concepts concepts"]:
    """How the stories of each concept (columns) are read by each direction (rows) that their topic did not build.

    In standard deviations over the stories of a topic, mean over topics.
    """
    corpus, held = study.result("corpus"), study.built.held_out(study.layer)
    rows = np.flatnonzero(~np.isnan(held).any(axis=1))
    labels, topics = corpus.labels(rows.tolist()), corpus.topics(rows.tolist())
    found = []
    for name in np.unique(topics):
        mine, of = held[rows[topics == name]], labels[topics == name].astype(float)
        standard = (mine - mine.mean(axis=0)) / np.where(mine.std(axis=0) > 0, mine.std(axis=0), 1)
        counts = of.sum(axis=0)
        found.append(np.where(counts > 0, (standard.T @ of) / np.maximum(counts, 1), np.nan))
    return np.nanmean(np.stack(found), axis=0) if found else np.full((len(corpus.emotions),) * 2, np.nan)


def blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most so many."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def ranked(detected: Detection, most: int) -> Int[np.ndarray, "concepts most"]:
    """The features that detect each concept best on the topics that choose, best first."""
    areas = rearrange(np.nan_to_num(detected.selection, nan=-1.0), "features concepts -> concepts features")
    return _largest(areas, min(most, areas.shape[1]))


def samples(study: Opened, most: int) -> dict[str, list[dict[str, Any]]]:
    """Up to so many sampled texts for each concept whose vector steered them; strongest steering first."""
    from affectlens.use.samples import sampled

    try:
        rows: Sequence[dict[str, Any]] = sampled(study)
    except MissingResult:
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -abs(row["strength"])):
        listed = found.setdefault(row["concept"], [])
        if row["concept"] and len(listed) < most:
            listed.append({key: row[key] for key in ("source", "family", "strength", "prompt", "text")})
    return {concept: listed for concept, listed in found.items() if concept}


@dataclass(frozen=True, eq=False)
class Contents:
    """All of it.

    Attributes:
        study: that was read.
        texts: the documents.
        codes: every feature's activation at every encoded token, sparse [tokens, features] by columns, sorted.
        largest: activation of each feature.
        detected: how features detect concepts.
        decoder: the SAE's rows.
        near: features next to each other.
        words: what they write.
    """

    study: Opened
    texts: Texts
    codes: Any
    largest: Float[np.ndarray, " features"]
    detected: Detection
    decoder: Float[np.ndarray, "features d_model"]
    near: Neighbours
    words: Written

    @property
    def starts(self) -> Int[np.ndarray, " docs"]:
        """The first encoded token of each document."""
        return np.concatenate([[0], np.cumsum(self.texts.lengths.astype(np.int64) - self.texts.first)[:-1]])


def gather(study: Opened, say: Callable[[str], None] = lambda words: None) -> Contents:
    """Everything known of every feature and text of a finished study.

    Args:
        study: with the stages up to ``match``.
        say: told what is being done.

    Raises:
        MissingResult: a stage is not finished, or its parts are gone.
        UserError: a result folder was opened, which does not say where the model lies.
    """
    missing = [name for name in NEEDED if name not in study.folders]
    if missing:
        raise MissingResult(f"stage `{missing[0]}` is not finished; run the study first")
    corpus, match = study.result("corpus"), study.result("match")
    rng = np.random.default_rng(int((manifest.read(study.folder("match")) or {}).get("seed") or 0))
    say("texts")
    told = texts(study)
    codes = token_codes(study, match, len(told.documents))
    codes.sort_indices()
    largest = np.asarray(codes.max(axis=0).todense()).ravel().astype(np.float32)
    say("detection of every concept by every feature")
    detected = detection(match, corpus, rng)
    say("neighbours")
    decoder = np.asarray(study.sae.decoder, dtype=np.float32)
    near = neighbours(decoder, codes, rng)
    say("words")
    return Contents(study, told, codes, largest, detected, decoder, near, written(study, decoder, rng))

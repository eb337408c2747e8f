"""Is an emotion read beyond the words: pairs of texts made of the same words, read in every way, beside a ceiling.

The ceiling is what the model itself would say: its log-probabilities of the concepts' words after the text and a frame
such as "It made me feel". A pair that the model's own answer does not tell apart says nothing about a reading. Readings
are taken over the text, at its last token, and where the model is about to name the feeling (the frame's last token,
where later layers hold what the earlier ones have not yet worked out).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from affectlens.corpus.pairs import Pair
from affectlens.errors import UserError
from affectlens.probing.pairs import judge, margins
from affectlens.probing.text_features import POOLINGS

if TYPE_CHECKING:
    from affectlens.model.subject import Subject
    from affectlens.model.words import ConceptWords
    from affectlens.probing.readouts import Study

FRAMES = (" It made me feel", " I felt very", " The feeling was one of")
TOKENS_PER_PASS = 1024
OWN, TRAINED, VALENCE = "own log-probabilities", "probe trained on pairs", "valence of"
ELICITED = "elicited"
UNLIKE = 0.5
"""Least difference of two concepts' valence, in standard deviations over the study's concepts, for a pair to count
where valence alone is read."""
SOLVED = 0.7
"""Share of a template's grading pairs that the model's own answer gets right, from which the template counts as
solved; its other pairs are then tested."""
PENALTIES = np.logspace(-2, 6, 9)
FOLDS = 10


@dataclass(frozen=True)
class Heard:
    """What the model makes of one text.

    Attributes:
        tokens: by layer, the residual stream at every token of the text.
        elicited: by layer, the residual stream at the last token of each frame behind the text.
        own: log-probability of each concept's words as the next one, mean over words and frames, in nats.
    """

    tokens: dict[int, Float[np.ndarray, "tokens d_model"]]
    elicited: dict[int, Float[np.ndarray, "frames d_model"]]
    own: Float[np.ndarray, " concepts"]


def hear(subject: Subject, texts: Sequence[str], layers: Sequence[int], words: Sequence[ConceptWords]) -> list[Heard]:
    """Run the model over every text with every frame behind it.

    Raises:
        UserError: a text with its frame is longer than the model's context.
    """
    import torch

    from affectlens.model.partial import PartialForward
    from affectlens.model.tokens import encode_following

    model = PartialForward(subject, max(layers))
    rows, lengths = [], [len(subject.encode(text)) for text in texts]
    for index, text in enumerate(texts):
        for frame in FRAMES:
            ids = [*subject.encode(text), *encode_following(subject.tokenizer, frame, text[-1])]
            if subject.context is not None and len(ids) + subject.lead > subject.context:
                raise UserError(f"a pair's text is longer than the model's {subject.context} tokens: {text[:60]!r}")
            rows.append((index, subject.led(ids)))
    heard = [Heard({}, {layer: np.zeros((0, subject.width), np.float32) for layer in layers}, np.zeros(len(words)))
             for _ in texts]  # fmt: skip
    # Rows of one length need no padding, so the last position is every row's own.
    for length, alike in groupby(sorted(rows, key=lambda row: len(row[1])), key=lambda row: len(row[1])):
        members = list(alike)
        for start in range(0, len(members), max(1, TOKENS_PER_PASS // length)):
            run = members[start : start + max(1, TOKENS_PER_PASS // length)]
            tokens = torch.tensor([ids for _, ids in run], device=subject.device)
            outcome = model.run(tokens, None, keep=1, read=layers)
            log = torch.log_softmax(outcome.logits[:, -1], dim=-1)
            own = torch.stack([log[:, list(each.tokens)].mean(dim=1) for each in words], dim=1).cpu().numpy()
            for layer, residual in outcome.residuals.items():
                values = residual.float().cpu().numpy()
                for row, (index, _) in enumerate(run):
                    text = values[row, subject.lead : subject.lead + lengths[index]]
                    heard[index].tokens[layer] = text
                    heard[index].elicited[layer] = np.vstack([heard[index].elicited[layer], values[row, -1:]])
            for row, (index, _) in enumerate(run):
                heard[index].own[:] += own[row] / len(FRAMES)
    return heard


@dataclass(frozen=True)
class Reading:
    """One way to tell the pairs apart.

    Attributes:
        layer: that is read; None for words and for the model's own answer.
        method: what reads.
        read: over which tokens.
        gap: a pair each; above 0 is right, NaN does not count.
        searched: whether it is one of those of which the best is looked for. The ceiling, the words and what was
            trained on pairs are not.
    """

    layer: int | None
    method: str
    read: str
    gap: Float[np.ndarray, " pairs"]
    searched: bool = True


def compare(
    pairs: Sequence[Pair],
    heard: Sequence[Heard],
    study: Study,
    ratings: Float[np.ndarray, "concepts axes"],
) -> list[dict[str, Any]]:
    """Every reading of every pair: a row a reading, over all pairs and over those whose template the model solves.

    Args:
        pairs: at least one.
        heard: of all texts A, then of all texts B.
        study: what reads them; every readout is built on all topics but the ablated ones.
        ratings: standardised valence and arousal, NaN where a concept has none.
    """
    valence = np.array([_valence(pair, study.corpus.emotions, ratings[:, 0]) for pair in pairs])
    own = np.stack([each.own for each in heard])
    found = [*_answers(pairs, own, ratings[:, 0], valence, study.corpus.emotions)]
    found += [*_directions(pairs, heard, study, ratings[:, 0], valence), *_feature(pairs, heard, study)]
    found += [_words(pairs, study), *_trained(pairs, heard, study.directions.layers, valence)]
    # Sums in another order leave rounding errors of about 1e-16 where two texts score alike.
    gaps = [np.where(np.abs(each.gap) < 1e-9, 0, each.gap) for each in found]
    solved = _solved(pairs, gaps[0])
    rows = []
    for scope, chosen in (("all", np.ones(len(pairs), bool)), ("solved", solved)):
        if not chosen.any():
            continue
        tested = [pair for pair, keep in zip(pairs, chosen, strict=True) if keep]
        rng = study.generator(f"pairs-{scope}")
        figures = judge([gap[chosen] for gap in gaps], [each.searched for each in found], tested, rng)
        for each, figure in zip(found, figures, strict=True):
            rows.append({"scope": scope, "layer": each.layer, "method": each.method, "read": each.read, **figure})
    return rows


def _valence(pair: Pair, concepts: Sequence[str], valence: Float[np.ndarray, " concepts"]) -> float:
    """1 where text A is of the more pleasant concept, -1 where text B is, NaN where they are alike or not rated."""
    gap = valence[concepts.index(pair.emotion_a)] - valence[concepts.index(pair.emotion_b)]
    return float(np.sign(gap)) if abs(gap) >= UNLIKE else float("nan")


def _answers(
    pairs: Sequence[Pair],
    own: Float[np.ndarray, "texts concepts"],
    rated: Float[np.ndarray, " concepts"],
    valence: Float[np.ndarray, " pairs"],
    concepts: Sequence[str],
) -> list[Reading]:
    """The ceiling. How likely a word is by itself cancels, since both texts of a pair are asked for the same words."""
    first, second = own[: len(pairs)], own[len(pairs) :]
    gap = margins(first, second, pairs, concepts, np.ones(len(concepts)))
    pleasant = (first - second) @ _weights(rated) * valence
    return [
        Reading(None, OWN, ELICITED, gap, searched=False),
        Reading(None, f"{VALENCE} {OWN}", ELICITED, pleasant, searched=False),
    ]


def _weights(rated: Float[np.ndarray, " concepts"]) -> Float[np.ndarray, " concepts"]:
    """What each concept's reading counts for in the valence of all of them: its rated valence, without the mean."""
    known = np.isfinite(rated)
    return np.where(known, rated - (rated[known].mean() if known.any() else 0), 0)


def _directions(
    pairs: Sequence[Pair],
    heard: Sequence[Heard],
    study: Study,
    rated: Float[np.ndarray, " concepts"],
    valence: Float[np.ndarray, " pairs"],
) -> list[Reading]:
    """Every method's directions at every layer: concept against concept, and the valence of all readings."""
    corpus, directions = study.corpus, study.directions
    build, found = corpus.indices("train", "validation"), []
    for layer in directions.layers:
        stories = study.store.pooled(layer)[build]
        places: dict[str, Callable[[Heard], np.ndarray]] = {
            "mean": lambda each, layer=layer: each.tokens[layer].mean(axis=0),
            "last": lambda each, layer=layer: each.tokens[layer][-1],
            ELICITED: lambda each, layer=layer: each.elicited[layer].mean(axis=0),
        }
        for method in directions.methods:
            spread = directions.readout(layer, stories, method).std(axis=0)
            spread = np.where(spread > 0, spread, 1)
            for read, place in places.items():
                scores = directions.readout(layer, np.stack([place(each) for each in heard]), method)
                first, second = scores[: len(pairs)], scores[len(pairs) :]
                pleasant = ((first - second) / spread) @ _weights(rated) * valence
                found += [
                    Reading(layer, method, read, margins(first, second, pairs, corpus.emotions, spread)),
                    Reading(layer, f"{VALENCE} {method}", read, pleasant),
                ]
    return found


def _feature(pairs: Sequence[Pair], heard: Sequence[Heard], study: Study) -> list[Reading]:
    """Each concept's best SAE feature."""
    match, layer, concepts = study.match, study.layer, study.corpus.emotions
    spread = match.scores("sae", study.corpus.indices("train", "validation"))[:, match.best].std(axis=0)
    codes = [study.sae.encode(each.tokens[layer])[:, match.best] for each in heard]
    scores = {read: np.stack([pool(each) for each in codes]) for read, pool in POOLINGS.items()}
    elicited = [study.sae.encode(each.elicited[layer])[:, match.best].mean(axis=0) for each in heard]
    scores[ELICITED] = np.stack(elicited)
    return [
        Reading(
            layer, "best SAE feature", read, margins(each[: len(pairs)], each[len(pairs) :], pairs, concepts, spread)
        )
        for read, each in scores.items()
    ]


def _words(pairs: Sequence[Pair], study: Study) -> Reading:
    """Word counts, which tie on every pair by construction."""
    from affectlens.probing.methods import Vocabulary

    build = study.corpus.indices("train", "validation")
    words = Vocabulary.fit(study.texts(build), study.corpus.labels(build))
    first, second = (words.scores([getattr(pair, text) for pair in pairs]) for text in ("text_a", "text_b"))
    spread = words.scores(study.texts(build)).std(axis=0)
    return Reading(None, "TF-IDF", "text", margins(first, second, pairs, study.corpus.emotions, spread), searched=False)


def _trained(
    pairs: Sequence[Pair], heard: Sequence[Heard], layers: Sequence[int], valence: Float[np.ndarray, " pairs"]
) -> list[Reading]:
    """What a linear probe of valence reads that was trained on other groups of pairs: an upper bound of what is linear.

    Ridge regression without an intercept on the difference of the two texts, each group left out in turn (in at most
    :data:`FOLDS` sets), the penalty chosen on the groups left in.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    counts = np.isfinite(valence)
    groups = np.array([pair.group for pair in pairs])[counts]
    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        return []
    found = []
    for layer in layers:
        for read in ("last", ELICITED):
            values = np.stack(
                [each.tokens[layer][-1] if read == "last" else each.elicited[layer].mean(axis=0) for each in heard]
            )
            differences = (values[: len(pairs)] - values[len(pairs) :])[counts].astype(float)
            differences /= np.maximum(differences.std(axis=0), 1e-9)
            answers, gap = np.zeros(counts.sum()), np.full(len(pairs), np.nan)
            for train, test in GroupKFold(folds).split(differences, groups=groups):
                probe = RidgeCV(PENALTIES, fit_intercept=False).fit(differences[train], valence[counts][train])
                answers[test] = probe.predict(differences[test])
            gap[counts] = answers * valence[counts]
            found.append(Reading(layer, TRAINED, read, gap, searched=False))
    return found


def _solved(pairs: Sequence[Pair], own: Float[np.ndarray, " pairs"]) -> np.ndarray:
    """The pairs to be tested of templates whose grading pairs the model's own answer mostly tells apart."""
    right: dict[str, list[bool]] = {}
    for pair, gap in zip(pairs, own, strict=True):
        if pair.grades:
            right.setdefault(pair.group, []).append(bool(gap > 0))
    return np.array([not pair.grades and np.mean(right.get(pair.group, [False])) >= SOLVED for pair in pairs])

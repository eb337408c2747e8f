"""How two models that read the same tokens differ: what moved, what turned, and what either does to a reading.

A reading is a product of an activation and a direction, so it changes for three reasons: the activation moved along
the old direction, the direction turned under the old activation, or both at once. The three terms sum to the change,
text by text. A direction that is built anew in the second model differs from the first one's also by chance; how far,
two halves of the topics tell. All intervals are t intervals over topics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from affectlens.stats import Estimate, permutation_p, t_interval

TERMS = ("activation", "rotation", "interaction", "total")
"""Of the change of a reading; the first three sum to the last."""
HALVINGS = 40
"""Random halvings of the topics behind a reliability."""
OUTLIER = 5.0
"""Rows whose norm is so many medians are left out of an SAE's figures: single positions of huge norm."""
PENALTIES = tuple(10.0**power for power in range(-3, 4))
"""Of the ridge from directions to ratings, in units of the mean squared singular value."""


def decompose(
    base: Float[np.ndarray, "texts d"],
    tuned: Float[np.ndarray, "texts d"],
    before: Float[np.ndarray, "concepts d"],
    after: Float[np.ndarray, "concepts d"],
) -> dict[str, Float[np.ndarray, "texts concepts"]]:
    """The change of every reading and its three terms.

    Args:
        base, tuned: activations of the same texts in both models, from whatever centre each is to be read.
        before, after: the directions of both models.
    """
    moved, turned = tuned - base, after - before
    terms = {"activation": moved @ before.T, "rotation": base @ turned.T, "interaction": moved @ turned.T}
    return {**terms, "total": tuned @ after.T - base @ before.T}


def shifts(
    values: Float[np.ndarray, "texts concepts"],
    topics: Shaped[np.ndarray, " texts"],
    labels: Bool[np.ndarray, "texts concepts"] | None = None,
) -> Float[np.ndarray, "concepts topics"]:
    """Per concept and topic the mean over all texts; with labels, over its own texts less that over the others.

    The second is free of any centre. NaN where a topic lacks texts of a concept.
    """
    found = np.full((values.shape[1], len(np.unique(topics))), np.nan)
    for place, topic in enumerate(np.unique(topics)):
        here = topics == topic
        if labels is None:
            found[:, place] = values[here].mean(axis=0)
            continue
        own, other = labels[here].astype(float), (~labels[here]).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[:, place] = (own * values[here]).sum(0) / own.sum(0) - (other * values[here]).sum(0) / other.sum(0)
    return found


def beyond_random(
    base: Float[np.ndarray, "texts d"],
    tuned: Float[np.ndarray, "texts d"],
    directions: Float[np.ndarray, "concepts d"],
    rng: np.random.Generator,
    draws: int = 999,
) -> Float[np.ndarray, " concepts"]:
    """p of the mean movement along each direction, beside random directions with the covariance of the texts.

    Any change of a model moves every reading; a concept's has moved only if it moved further than such a direction's.
    """
    centred = base - base.mean(axis=0)
    random = rng.normal(size=(draws, len(centred))) @ centred
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    mean = (tuned - base).mean(axis=0)
    lengths = np.linalg.norm(directions, axis=1)
    null = np.abs(random @ mean)
    return np.array([permutation_p(abs(value), null)[0] for value in directions @ mean / lengths])


def by_topic(
    rows: Float[np.ndarray, "texts d"], labels: Bool[np.ndarray, "texts concepts"], topics: Shaped[np.ndarray, " texts"]
) -> Float[np.ndarray, "topics concepts d"]:
    """Each concept's mean less the mean over concepts, topic by topic: the directions that one topic alone gives.

    Raises:
        ValueError: a topic lacks texts of a concept.
    """
    found = []
    for topic in np.unique(topics):
        own = labels[topics == topic].astype(float)
        if not own.sum(axis=0).all():
            raise ValueError(f"topic {topic} has no text of some concept; give topics that have texts of all")
        means = own.T @ rows[topics == topic] / own.sum(axis=0)[:, None]
        found.append(means - means.mean(axis=0))
    return np.stack(found)


@dataclass(frozen=True)
class Agreement:
    """How far two models agree, beside how far each agrees with itself.

    Attributes:
        plain: agreement of what all topics give.
        base, tuned: of one half of the topics with the other, within each model.
        corrected: agreement across models and halves, over the geometric mean of the two within: 1 where only chance
            differs. NaN where a model does not agree with itself.
    """

    plain: float
    base: float
    tuned: float
    corrected: Estimate


def rotation(
    base: Float[np.ndarray, "topics concepts d"],
    tuned: Float[np.ndarray, "topics concepts d"],
    rng: np.random.Generator,
) -> list[Agreement]:
    """Per concept the cosine of its directions in both models, against the ceiling of the split halves."""
    return _agreements(base, tuned, _cosines, rng)


def geometry(
    base: Float[np.ndarray, "topics concepts d"],
    tuned: Float[np.ndarray, "topics concepts d"],
    rng: np.random.Generator,
) -> Agreement:
    """Correlation of the cosines between concepts in both models, against the ceiling of the split halves."""
    (found,) = _agreements(base, tuned, _shapes, rng)
    return found


def _cosines(
    first: Float[np.ndarray, "concepts d"], second: Float[np.ndarray, "concepts d"]
) -> Float[np.ndarray, " concepts"]:
    return (first * second).sum(1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))


def _shapes(first: Float[np.ndarray, "concepts d"], second: Float[np.ndarray, "concepts d"]) -> Float[np.ndarray, "1"]:
    upper = np.triu_indices(len(first), 1)
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (first, second)]
    return np.array([np.corrcoef(*((unit @ unit.T)[upper] for unit in units))[0, 1]])


def _agreements(
    base: Float[np.ndarray, "topics concepts d"],
    tuned: Float[np.ndarray, "topics concepts d"],
    agree: Callable[[np.ndarray, np.ndarray], Float[np.ndarray, " n"]],
    rng: np.random.Generator,
) -> list[Agreement]:
    """Agreement across halves of the topics, between the models and within each; intervals by leaving topics out.

    Across models the halves are disjoint too: the texts that both have read in common cannot make them agree.
    """
    count = len(base)
    if count < 4:
        raise ValueError(f"{count} topics: halves of them tell nothing; give at least four")
    halves = [np.isin(np.arange(count), rng.permutation(count)[: count // 2]) for _ in range(HALVINGS)]

    def figures(kept: Bool[np.ndarray, " topics"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sums = np.zeros((3, len(agree(base[0], base[0]))))
        for half in halves:
            (b1, b2), (t1, t2) = ([each[side & kept].mean(axis=0) for side in (half, ~half)] for each in (base, tuned))
            sums += [agree(b1, b2), agree(t1, t2), (agree(b1, t2) + agree(b2, t1)) / 2]
        within_base, within_tuned, across = sums / HALVINGS
        reliable = (within_base > 0) & (within_tuned > 0)
        ceiling = np.sqrt(np.where(reliable, within_base * within_tuned, 1.0))
        return within_base, within_tuned, np.where(reliable, across / ceiling, np.nan)

    within_base, within_tuned, corrected = figures(np.ones(count, dtype=bool))
    left_out = np.stack([figures(np.arange(count) != place)[2] for place in range(count)], axis=1)
    # Pseudo-values of the jackknife over topics (Tukey 1958).
    pseudo = count * corrected[:, None] - (count - 1) * left_out
    plain = agree(base.mean(axis=0), tuned.mean(axis=0))
    found = []
    for index, value in enumerate(corrected):
        ends = t_interval(pseudo[index]) if np.isfinite(pseudo[index]).all() else None
        half = math.nan if ends is None else (ends.high - ends.low) / 2
        estimate = Estimate(float(value), float(value) - half, float(value) + half, count)
        found.append(Agreement(float(plain[index]), float(within_base[index]), float(within_tuned[index]), estimate))
    return found


def predicted_ratings(
    vectors: Float[np.ndarray, "concepts d"], ratings: Float[np.ndarray, " concepts"]
) -> Float[np.ndarray, " concepts"]:
    """What a ridge from the other concepts' directions says of each concept's rating; its penalty is chosen among them.

    Args:
        vectors: one a concept.
        ratings: of the same concepts, none missing.
    """
    said = np.empty(len(ratings))
    for left in range(len(ratings)):
        others = np.arange(len(ratings)) != left
        centre, mean = vectors[others].mean(axis=0), ratings[others].mean()
        rows, values = vectors[others] - centre, ratings[others] - mean
        u, s, vt = np.linalg.svd(rows, full_matrices=False)
        best = (math.inf, np.zeros(vectors.shape[1]))
        for penalty in PENALTIES:
            weights = s**2 / (s**2 + penalty * (s**2).mean())
            fitted, leverage = u @ (weights * (u.T @ values)), (u**2 * weights).sum(axis=1)
            # Leave-one-out residuals of a ridge in closed form.
            error = float((((values - fitted) / (1 - np.minimum(leverage, 1 - 1e-9))) ** 2).sum())
            if error < best[0]:
                slopes = vt.T @ (np.where(s > 0, weights / np.where(s > 0, s, 1), 0) * (u.T @ values))
                best = (error, slopes)
        said[left] = mean + (vectors[left] - centre) @ best[1]
    return said


@dataclass(frozen=True)
class Transfer:
    """What an SAE makes of a model's activations, outliers left out.

    Attributes:
        unexplained: share of the variance.
        active: mean number of features a row.
        alive: share of the features that are active at all.
        outliers: share of the rows that were left out.
    """

    unexplained: float
    active: float
    alive: float
    outliers: float


def transfer(
    encode: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n features"]],
    decode: Callable[[Float[np.ndarray, "n features"]], Float[np.ndarray, "n d"]],
    rows: Float[np.ndarray, "n d"],
) -> Transfer:
    """An SAE on rows of either model."""
    usual = usual_rows(rows)
    codes = encode(rows[usual])
    error = ((rows[usual] - decode(codes)) ** 2).sum()
    total = ((rows[usual] - rows[usual].mean(axis=0)) ** 2).sum()
    on = codes != 0
    return Transfer(
        float(error / total), float(on.sum(axis=1).mean()), float(on.any(axis=0).mean()), float(1 - usual.mean())
    )


def usual_rows(rows: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
    """Which rows are no outliers by their norm."""
    norms = np.linalg.norm(rows, axis=1)
    return norms <= OUTLIER * np.median(norms)


def latent_scaling(
    codes: Float[np.ndarray, "n features"],
    decoder: Float[np.ndarray, "features d"],
    base: Float[np.ndarray, "n d"],
    tuned: Float[np.ndarray, "n d"],
) -> Float[np.ndarray, " features"]:
    """How strongly each feature of the base model is there in the tuned one, relative to the base model.

    Least squares scale of the feature's contribution in the activations of each model, from their means over the rows
    on which it is silent; the quotient is near 1 for a feature that both share, near 0 for one that the tuned model
    lost (latent scaling; Minder et al. 2025, arXiv 2504.02922). NaN for a feature that is active on fewer than ten
    rows.

    Args:
        codes: on the base model's rows; the same tokens in both models.
    """
    on = codes != 0
    enough = (on.sum(axis=0) >= 10) & ((~on).sum(axis=0) >= 10)
    found = []
    for rows in (base, tuned):
        # A scale times the code along the decoder row, and a level that is there without it.
        along = rows @ decoder.T
        silent = np.where(on, 0.0, along).sum(axis=0) / np.maximum((~on).sum(axis=0), 1)
        found.append((codes * (along - silent)).sum(axis=0))
    return np.where(enough & (found[0] > 0), found[1] / np.where(found[0] > 0, found[0], 1), np.nan)


def of_concepts(
    values: Float[np.ndarray, " texts"],
    labels: Bool[np.ndarray, "texts concepts"],
    topics: Shaped[np.ndarray, " texts"],
) -> list[Estimate]:
    """Per concept what its texts have more than the others of their topics: for what outputs alone tell.

    With the change of the texts' mean log-probability this is the black-box baseline: what the tuned model has come to
    say more readily, known without any activation.
    """
    found = shifts(np.repeat(values[:, None], labels.shape[1], axis=1), topics, labels)
    return [t_interval(row[np.isfinite(row)]) for row in found]


def complete_topics(
    labels: Bool[np.ndarray, "texts concepts"], topics: Shaped[np.ndarray, " texts"]
) -> Int[np.ndarray, " kept"]:
    """Indices of the texts of topics that have texts of every concept."""
    kept = [topic for topic in np.unique(topics) if labels[topics == topic].any(axis=0).all()]
    return np.flatnonzero(np.isin(topics, kept))


def differences(
    base: Float[np.ndarray, "texts d"],
    tuned: Float[np.ndarray, "texts d"],
    labels: Bool[np.ndarray, "texts concepts"],
    topics: Shaped[np.ndarray, " texts"],
    concepts: Sequence[str],
    rng: np.random.Generator,
) -> Iterator[Mapping[str, Any]]:
    """A row a concept: the terms over all texts and between its own and the others, the rotation, the p of the shift.

    Directions are differences of means of unit length, built in each model from these texts. Over all texts both models
    are read from the base model's centre, so that a movement common to all texts is seen.

    Raises:
        ValueError: fewer than four topics have texts of every concept.
    """
    kept = complete_topics(labels, topics)
    base, tuned, labels, topics = (np.asarray(each)[kept] for each in (base, tuned, labels, topics))
    pieces = [by_topic(rows, labels, topics) for rows in (base, tuned)]
    turned = rotation(pieces[0], pieces[1], rng)
    before, after = (each.mean(axis=0) for each in pieces)
    before, after = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (before, after))
    centre = base.mean(axis=0)
    terms = decompose(base - centre, tuned - centre, before, after)
    everywhere = {name: shifts(values, topics) for name, values in terms.items()}
    own = {name: shifts(values, topics, labels) for name, values in terms.items()}
    p = beyond_random(base, tuned, before, rng)
    for index, concept in enumerate(concepts):
        yield {
            "concept": concept,
            **{f"all_{name}": t_interval(everywhere[name][index]) for name in TERMS},
            **{f"own_{name}": t_interval(own[name][index]) for name in TERMS},
            "cosine": turned[index].plain,
            "ceiling": math.sqrt(max(0.0, turned[index].base * turned[index].tuned)),
            "corrected_cosine": turned[index].corrected,
            "p_shift": float(p[index]),
        }

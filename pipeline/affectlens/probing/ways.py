"""Ways to build readouts that might read another writer better: what is read, what is taken out, how it is fitted.

Every way is measured between single writers and on each writer left out; which one reads a writer best is also chosen
by the other writers alone, so that the choice has not seen what it is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from affectlens.probing import methods
from affectlens.probing.methods import RECIPE, Linear, ProbeOptions

if TYPE_CHECKING:
    from affectlens.probing.directions import Directions
    from affectlens.probing.transfer import Pool, Readout, Split

RIDGE = 10.0
"""Penalty of ridge regression, in units of the variance of a standardised column."""
STRONG = 0.01
"""Inverse penalty of the logistic regression that is penalised more than by default."""
Values = Float[np.ndarray, "docs d_model"]
Labels = Bool[np.ndarray, "docs concepts"]
Strata = Shaped[np.ndarray, " docs"]
Fit = Callable[[Values, Labels, Strata, Strata], Linear]
"""From activations, labels, writer-and-topic and writer of the documents that build to a readout."""


@dataclass(frozen=True)
class Way:
    """What is read of each document, and how a readout is fitted to it."""

    name: str
    values: Values
    fit: Fit


def plain(fit: Callable[[Values, Labels], Linear]) -> Fit:
    """A fit that asks neither for topics nor for writers."""
    return lambda values, labels, strata, writers: fit(values, labels).unit


def standardised(fit: Fit) -> Fit:
    """A fit on columns in their own standard deviations."""

    def scaled(values: Values, labels: Labels, strata: Strata, writers: Strata) -> Linear:
        scale = values.std(axis=0, dtype=np.float64)
        scale = np.where(scale > 1e-9 * scale.max(), scale, np.inf)
        found = fit(values / scale, labels, strata, writers)
        return Linear(found.weights / scale, np.asarray(values.mean(axis=0, dtype=np.float64)))

    return scaled


def centred(fit: Fit, *, topics: bool) -> Fit:
    """A fit on what is left when each writer's mean, or the mean of each writer's topic, is taken away."""

    def within(values: Values, labels: Labels, strata: Strata, writers: Strata) -> Linear:
        by, rest = strata if topics else writers, values.astype(np.float64)
        for name in np.unique(by):
            rest[by == name] -= rest[by == name].mean(axis=0)
        found = fit(rest, labels, strata, writers)
        return Linear(found.weights, np.asarray(values.mean(axis=0, dtype=np.float64)))

    return within


def style_removed(fit: Fit, *, topics: bool) -> Fit:
    """A fit without the directions in which the writers' means, or the means of writers' topics, differ.

    Nuisance attribute projection (Solomonoff, Campbell & Boardman 2005, for speakers and channels).
    """

    def projected(values: Values, labels: Labels, strata: Strata, writers: Strata) -> Linear:
        by = strata if topics else writers
        means = np.stack([values[by == name].mean(axis=0, dtype=np.float64) for name in np.unique(by)])
        _, singular, components = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
        components = components[singular > 1e-6 * max(float(singular.max(initial=0)), 1e-30)]
        found = fit(methods.without(values.astype(np.float64), components), labels, strata, writers)
        return Linear(methods.without(found.weights, components), found.centre)

    return projected


def ridge(values: Values, labels: Labels) -> Linear:
    """Ridge regression of the labels on standardised columns, by its dual: there are fewer documents than columns."""
    mean, scale = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-9 * scale.max(), scale, np.inf)
    columns, targets = (values - mean) / scale, labels - labels.mean(axis=0)
    inner = columns @ columns.T + RIDGE * len(columns) * np.eye(len(columns))
    return Linear((columns.T @ np.linalg.solve(inner, targets)).T / scale, mean)


def ways(pool: Pool, directions: Directions) -> list[Way]:
    """All of them, the study's own recipe first."""
    layer, here = pool.layer, directions.without_massive(pool.layer, pool.layers[pool.layer])

    def recipe(at: int) -> Fit:
        return plain(lambda values, labels: directions.rebuilt(at, values, labels))

    def logistic(c: float) -> Fit:
        return plain(lambda values, labels: methods.logistic(values, labels, ProbeOptions(logistic_c=c)))

    means, strong = plain(methods.difference_of_means), logistic(STRONG)
    lda = plain(lambda values, labels: methods.discriminant(values, labels, ProbeOptions()))
    found = [Way(RECIPE, here, recipe(layer))]
    found += [Way(f"{RECIPE}, layer {at}", values, recipe(at)) for at, values in pool.layers.items() if at != layer]
    found += [Way(f"{RECIPE}, {name}", values, recipe(layer)) for name, values in pool.pooled.items()]
    found += [
        Way(f"{RECIPE}, neutral components kept", here, means),
        Way(f"{RECIPE}, style components of writers and topics removed", here, style_removed(means, topics=True)),
        Way(f"{RECIPE}, writers' mean difference removed", here, style_removed(recipe(layer), topics=False)),
        Way(f"{RECIPE}, standardised", here, standardised(means)),
        Way("LDA (shrunk)", here, lda),
        Way("LDA (shrunk), standardised", here, standardised(lda)),
        Way("LDA (shrunk), standardised, centred within writers", here, centred(standardised(lda), topics=False)),
        Way("LDA (shrunk), standardised, centred within topics", here, centred(standardised(lda), topics=True)),
        Way("logistic", here, logistic(directions.logistic_c)),
        Way(f"logistic, C = {STRONG}", here, strong),
        Way(f"logistic, C = {STRONG}, centred within topics", here, centred(strong, topics=True)),
        Way(f"logistic, C = {STRONG}, style components removed", here, style_removed(strong, topics=True)),
        Way("ridge", here, plain(ridge)),
        Way("ridge, style components removed", here, style_removed(plain(ridge), topics=True)),
    ]
    found += [Way(f"ridge, layer {at}", values, plain(ridge)) for at, values in pool.layers.items() if at != layer]
    found += [Way(f"ridge, {name}", values, plain(ridge)) for name, values in pool.pooled.items() if "mean" in name]
    if len(pool.layers) > 1:
        found.append(Way("ridge, all layers joined", np.concatenate(list(pool.layers.values()), axis=1), plain(ridge)))
    return found


def readout(pool: Pool, way: Way) -> Readout:
    """A way as :mod:`affectlens.probing.transfer` measures readouts."""

    def read(each: Sequence[Split]) -> Iterator[np.ndarray]:
        for split in each:
            labels, train = pool.labels[split.train][:, split.concepts], split.train
            fitted = way.fit(way.values[train], labels, pool.strata[train], pool.writer[train])
            yield fitted.scores(way.values[split.rows])

    return read


def chosen(figures: Mapping[str, Mapping[Any, float]], building: Sequence[str]) -> str:
    """The way that reads best among the building writers, each read by each other.

    Args:
        figures: by way, of (writers that build, writer that is read).
        building: at least two writers.
    """
    inner = [((a,), b) for a in building for b in building if a != b]
    return max(figures, key=lambda way: float(np.mean([figures[way][pair] for pair in inner])))

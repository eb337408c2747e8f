"""Probes: from the activations of labelled texts to one linear readout a concept.

All of them rank texts for one concept against the rest. A constant added to a concept's scores changes neither AUROC
nor a comparison between two texts, so readouts keep no intercept. A probe is a function with the decorator
:func:`probe`; the study file names it in `directions.baselines`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float

from affectlens.probing.control_vectors import unit_rows

RECIPE = "difference of means"
"""The probe that directions are built by; the others stand beside it."""
STANDARDISED, PLAIN = f"{RECIPE}, standardised", f"{RECIPE}, nothing taken out"
"""What stands beside the recipe where massive dimensions are taken out: these two read activations as they are."""


@dataclass(frozen=True)
class ProbeOptions:
    """What probes may be told.

    Attributes:
        neutral: orthonormal components of neutral text to project out of a difference of means; None keeps everything.
        subtract_mean: whether the mean over concepts is taken from each concept's mean.
        logistic_c: inverse L2 penalty of logistic regression.
    """

    neutral: Float[np.ndarray, "components d_model"] | None = None
    subtract_mean: bool = True
    logistic_c: float = 1.0


@dataclass(frozen=True)
class Linear:
    """Scores that are linear in the activation.

    Attributes:
        weights: one row a concept, in units of score per unit of activation.
        centre: taken from an activation before it is read; the mean over concepts of what the readout was fitted on.
    """

    weights: Float[np.ndarray, "concepts d_model"]
    centre: Float[np.ndarray, " d_model"]

    def scores(self, activations: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, "n concepts"]:
        """Every concept's score of each row."""
        return (activations - self.centre) @ self.weights.T

    @property
    def unit(self) -> Linear:
        """The same with weights of norm 1, so that scores are lengths along a direction."""
        return Linear(unit_rows(self.weights), self.centre)


Fit = Callable[[Float[np.ndarray, "docs d_model"], Bool[np.ndarray, "docs concepts"], ProbeOptions], "Linear"]
F = TypeVar("F", bound=Fit)
PROBES: dict[str, Fit] = {}
"""By name, in the order of registration."""


def probe(name: str) -> Callable[[F], F]:
    """Register a probe: a function (activations, labels, options) -> :class:`Linear`."""

    def register(fit: F) -> F:
        if name in PROBES:
            raise ValueError(f"there are two probes called {name!r}")
        PROBES[name] = fit
        return fit

    return register


def concept_means(
    pooled: Float[np.ndarray, "docs d_model"], labels: Bool[np.ndarray, "docs concepts"]
) -> Float[np.ndarray, "concepts d_model"]:
    """Mean activation of each concept's documents, float64."""
    return np.stack([pooled[mine].mean(axis=0, dtype=np.float64) for mine in labels.T])


def neutral_components(
    neutral: Float[np.ndarray, "docs d_model"], share: float
) -> Float[np.ndarray, "components d_model"]:
    """Orthonormal top principal components that together hold at least ``share`` of the variance; none for 0."""
    if share == 0 or len(neutral) < 2:
        return np.empty((0, neutral.shape[1]))
    centred = neutral.astype(np.float64) - neutral.mean(axis=0, dtype=np.float64)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    held = np.cumsum(singular**2) / (singular**2).sum()
    return components[: int(np.searchsorted(held, share - 1e-12)) + 1]


def without(
    vectors: Float[np.ndarray, "n d_model"], components: Float[np.ndarray, "components d_model"]
) -> Float[np.ndarray, "n d_model"]:
    """Rows with what lies along orthonormal components removed."""
    return vectors - (vectors @ components.T) @ components


def difference_of_means(
    pooled: Float[np.ndarray, "docs d_model"],
    labels: Bool[np.ndarray, "docs concepts"],
    neutral: Float[np.ndarray, "components d_model"] | None = None,
    *,
    subtract_mean: bool = True,
) -> Linear:
    """Each concept's mean minus the mean of the concepts, components of neutral text projected out.

    The recipe of Sofroniew et al. 2026 (arXiv 2604.07729), "emotion vectors".

    Args:
        pooled: training documents.
        labels: which concept each is of.
        neutral: orthonormal components to project out; None keeps everything.
        subtract_mean: whether the mean over concepts is taken from each concept's mean.
    """
    means = concept_means(pooled, labels)
    centre = means.mean(axis=0)
    vectors = means - centre if subtract_mean else means
    return Linear(vectors if neutral is None else without(vectors, neutral), centre)


@probe(RECIPE)
def _difference_of_means(
    pooled: Float[np.ndarray, "docs d_model"], labels: Bool[np.ndarray, "docs concepts"], options: ProbeOptions
) -> Linear:
    return difference_of_means(pooled, labels, options.neutral, subtract_mean=options.subtract_mean)


@probe(STANDARDISED)
def _standardised(
    pooled: Float[np.ndarray, "docs d_model"], labels: Bool[np.ndarray, "docs concepts"], options: ProbeOptions
) -> Linear:
    return standardised(pooled, labels)


@probe(PLAIN)
def _plain(
    pooled: Float[np.ndarray, "docs d_model"], labels: Bool[np.ndarray, "docs concepts"], options: ProbeOptions
) -> Linear:
    return difference_of_means(pooled, labels, subtract_mean=options.subtract_mean)


@probe("LDA (shrunk)")
def discriminant(
    pooled: Float[np.ndarray, "docs d_model"],
    labels: Bool[np.ndarray, "docs concepts"],
    options: ProbeOptions = ProbeOptions(),
) -> Linear:
    """Linear discriminant analysis of all concepts from one factorisation of one within-concept covariance.

    The covariance is shrunk towards a multiple of the identity by the amount of Ledoit & Wolf 2004 ("A
    well-conditioned estimator for large-dimensional covariance matrices"); without it there is no inverse, because
    there are fewer stories than dimensions. Documents of no concept are left out.
    """
    from scipy.linalg import cho_factor, cho_solve
    from sklearn.covariance import ledoit_wolf

    mine = labels.any(axis=1)
    pooled, labels = pooled[mine].astype(np.float64), labels[mine]
    means = concept_means(pooled, labels)
    centre = means.mean(axis=0)
    covariance, _ = ledoit_wolf(pooled - means[labels.argmax(axis=1)], assume_centered=True)
    scale = np.trace(covariance) / len(covariance)
    factor = cho_factor(covariance + 1e-9 * (scale or 1.0) * np.eye(len(covariance)))
    return Linear(cho_solve(factor, (means - centre).T).T, centre)


@probe("logistic")
def logistic(
    pooled: Float[np.ndarray, "docs d_model"],
    labels: Bool[np.ndarray, "docs concepts"],
    options: ProbeOptions = ProbeOptions(),
) -> Linear:
    """L2 multinomial logistic regression on standardised activations, its weights in units of the residual stream.

    Args:
        pooled: training documents; those of no concept are left out.
        labels: which concept each is of.
        options: the inverse penalty ``logistic_c``, as scikit-learn defines it.
    """
    from sklearn.linear_model import LogisticRegression

    mine = labels.any(axis=1)
    pooled, labels = pooled[mine].astype(np.float64), labels[mine]
    centre, scale = pooled.mean(axis=0), pooled.std(axis=0)
    scale[scale == 0] = 1.0
    columns = (pooled - centre) / scale
    basis = None
    if columns.shape[1] > len(columns):
        # An L2 penalty does not change under rotation, so the space that the rows span holds the whole solution.
        left, singular, basis = np.linalg.svd(columns, full_matrices=False)
        columns = left * singular
    # Thousands of columns for some hundred rows: the penalty, not the iteration limit, decides the fit.
    model = LogisticRegression(C=options.logistic_c, max_iter=200, tol=1e-3).fit(columns, labels.argmax(axis=1))
    weights = model.coef_ if len(model.coef_) > 1 else np.concatenate([-model.coef_, model.coef_])
    weights = weights if basis is None else weights @ basis
    return Linear(weights / scale, concept_means(pooled, labels).mean(axis=0))


def standardised(pooled: Float[np.ndarray, "docs features"], labels: Bool[np.ndarray, "docs concepts"]) -> Linear:
    """Difference of means with every column in its own standard deviation: for columns whose scales differ widely."""
    scale = pooled.std(axis=0, dtype=np.float64)
    scale[scale <= 1e-9 * max(float(scale.max(initial=0)), 1e-30)] = np.inf  # a feature that never fires says nothing
    fitted = difference_of_means(pooled / scale, labels)
    return Linear(fitted.weights / scale, np.asarray(pooled.mean(axis=0, dtype=np.float64)))


@dataclass(frozen=True)
class Vocabulary:
    """Difference of means on word counts instead of activations: what vocabulary alone gives.

    Attributes:
        vectorizer: a fitted scikit-learn TF-IDF vectoriser.
        linear: the readout of its counts.
    """

    vectorizer: Any
    linear: Linear

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Bool[np.ndarray, "docs concepts"]) -> Vocabulary:
        """From training texts and the concept of each."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True)
        counts = vectorizer.fit_transform(texts).toarray()
        return cls(vectorizer, difference_of_means(counts, labels).unit)

    def scores(self, texts: Sequence[str]) -> Float[np.ndarray, "n concepts"]:
        """Every concept's score of each text."""
        return self.linear.scores(self.vectorizer.transform(texts).toarray())

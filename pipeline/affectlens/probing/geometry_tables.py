"""The tables of the concept space."""

from __future__ import annotations

from affectlens.results import Average, Heatmap, Table, bounded, integer, number, text

CORRELATIONS = Table(
    "correlations",
    "One principal component against one rating, of the directions or of TF-IDF.",
    (
        text("source", "`directions`, or `vocabulary`"),
        integer("component", "by the variance that it holds"),
        text("rating", "valence, arousal, ..."),
        *bounded("r", "Pearson correlation over rated concepts", "r", "its interval", ends=""),
        integer("n", "rated concepts"),
        number("p", "of permuted pairings, two-sided", "p"),
        number("r_beyond_length", "with story length taken from both sides", "r"),
        number("low_beyond_length", "lower end", "r"),
        number("high_beyond_length", "upper end", "r"),
        number("p_beyond_length", "of that", "p"),
    ),
    key=("source", "component", "rating"),
)
COORDINATES = Table(
    "components",
    "One concept on one principal component of the directions.",
    (text("concept", "the emotion"), integer("component", "which"), number("coordinate", "in activation units")),
    key=("concept", "component"),
)
RATINGS = Table(
    "ratings",
    "One concept's rating.",
    (text("concept", "the emotion"), text("rating", "of what"), number("value", "as in the table of ratings")),
    key=("concept", "rating"),
)
VARIANCE = Table(
    "variance",
    "One principal component of the directions.",
    (integer("component", "which"), number("share", "of the variance", "share")),
    key=("component",),
    averages=(Average("variance_component_{component}", "share"),),
)
COSINES = Table(
    "cosines",
    "Two directions, in the order of a clustering, so that similar concepts are adjacent.",
    (text("concept", "the one"), text("other", "the other"), number("cosine", "between them", "cosine")),
    key=("concept", "other"),
    charts=(Heatmap("cosines", "concept", "other", "cosine"),),
)
GROUPS = Table(
    "clusters",
    "One concept's cluster.",
    (
        text("concept", "the emotion"),
        integer("cluster", "of k-means of the directions"),
        text("published", "the cluster that Sofroniew et al. 2026 give it"),
    ),
    key=("concept",),
)
LAYERS = Table(
    "layers",
    "Two layers: whether the same concepts are similar.",
    (
        integer("layer", "the lower one"),
        integer("other", "the higher one"),
        number("value", "rank correlation of the similarities of directions", "r"),
        number("null_95", "95% quantile with shuffled names", "r"),
        number("p", "of shuffled names", "p"),
    ),
    key=("layer", "other"),
)
ALL = (CORRELATIONS, COORDINATES, RATINGS, VARIANCE, COSINES, GROUPS, LAYERS)

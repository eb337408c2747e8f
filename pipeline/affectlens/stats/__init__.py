"""The statistics of the project: exact, fast, and NaN where a figure is not defined."""

from affectlens.stats.corrections import benjamini_hochberg, holm
from affectlens.stats.estimates import (
    Correlation,
    Estimate,
    clopper_pearson,
    clustered_rate,
    correlation,
    difference,
    fisher_interval,
    residuals,
    wilson,
)
from affectlens.stats.permutation import (
    MaxPermutation,
    max_permutation_test,
    permutation_p,
    permuted_labels,
    permuted_within,
)
from affectlens.stats.ranking import (
    RankedFeatures,
    auroc,
    average_precision,
    best_features,
    rank_features,
    standardized_mean_difference,
)
from affectlens.stats.resampling import (
    AurocIntervals,
    auroc_interval,
    bootstrap_counts,
    bootstrap_interval,
    bootstrap_mean,
    cluster_bootstrap,
    prediction_interval,
    t_interval,
    two_way_bootstrap,
)

__all__ = [
    "AurocIntervals",
    "Correlation",
    "Estimate",
    "MaxPermutation",
    "RankedFeatures",
    "auroc",
    "auroc_interval",
    "average_precision",
    "benjamini_hochberg",
    "best_features",
    "bootstrap_counts",
    "bootstrap_interval",
    "bootstrap_mean",
    "clopper_pearson",
    "cluster_bootstrap",
    "clustered_rate",
    "correlation",
    "difference",
    "fisher_interval",
    "holm",
    "max_permutation_test",
    "permutation_p",
    "permuted_labels",
    "permuted_within",
    "prediction_interval",
    "rank_features",
    "residuals",
    "standardized_mean_difference",
    "t_interval",
    "two_way_bootstrap",
    "wilson",
]

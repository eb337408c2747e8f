"""What it costs to hold every SAE feature against every concept, exactly, and to test the best of them.

The peers: scikit-learn, one pair at a time; and what an experienced user of numpy and scipy writes, ranks by
``scipy.stats.rankdata`` and one product in float64. Peers that would take hours are timed on a sample, which the
name of the row says. Scores are made like pooled SAE activations: 80 to 95% zeros, 3% of the features dense.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import scipy.stats
from affectlens import stats
from harness import Row, in_new_process, interleaved, machine, medians, options, peak_memory, print_table, write_json
from sklearn.metrics import average_precision_score, roc_auc_score

CONCEPTS = 171
TOPICS = 12
DOCS = CONCEPTS * TOPICS
TOLERANCE = 1e-9


def sae_like_scores(docs: int, features: int, seed: int = 0) -> np.ndarray:
    """Non-negative float32 scores [docs, features], made a few features at a time to keep memory low."""
    rng = np.random.default_rng(seed)
    scores = np.empty((docs, features), dtype=np.float32)
    for start in range(0, features, 512):
        width = min(512, features - start)
        active = np.where(rng.random(width) < 0.03, 1.0, rng.uniform(0.05, 0.2, width))
        values = np.exp(rng.standard_normal((docs, width), dtype=np.float32))
        scores[:, start : start + width] = values * (rng.random((docs, width), dtype=np.float32) < active)
    return scores


def crossed_labels(docs: int) -> tuple[np.ndarray, np.ndarray]:
    """One concept per document, every concept once in each topic: labels [docs, concepts] and topics."""
    order = np.arange(docs)
    return (order % CONCEPTS)[:, None] == np.arange(CONCEPTS), order // CONCEPTS


def by_rankdata(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUROC of all pairs with scipy's ranks."""
    positives = labels.sum(axis=0)
    sums = scipy.stats.rankdata(scores, axis=0).T @ labels.astype(float)
    return (sums - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))


def all_pairs(features: int, sample: int, repeats: int) -> list[Row]:
    """AUROC and average precision of all pairs against scikit-learn, checked on the sampled pairs."""
    scores, (labels, _) = sae_like_scores(DOCS, features), crossed_labels(DOCS)
    rng = np.random.default_rng(1)
    pairs = np.stack([rng.integers(features, size=sample), rng.integers(CONCEPTS, size=sample)], axis=1)
    extrapolate = features * CONCEPTS / sample
    rows = []
    for name, ours, theirs in (
        ("AUROC", stats.auroc, roc_auc_score),
        ("average precision", stats.average_precision, average_precision_score),
    ):
        contenders = {
            "ours": partial(ours, scores, labels),
            "peer": lambda metric=theirs: [metric(labels[:, c], scores[:, f]) for f, c in pairs],
        }
        taken = medians(contenders, repeats)
        title = f"{name}, {features:,} features x {CONCEPTS} concepts x {DOCS:,} documents"
        peer = f"scikit-learn loop (extrapolated from {sample:,} pairs)"
        rows.append(Row(f"{title}; peer {peer}", taken["ours"], taken["peer"] * extrapolate, "s"))
        check(
            name, ours(scores, labels)[pairs[:, 0], pairs[:, 1]], [theirs(labels[:, c], scores[:, f]) for f, c in pairs]
        )
    rankdata = {"ours": partial(stats.auroc, scores, labels), "peer": partial(by_rankdata, scores, labels)}
    taken = medians(rankdata, repeats)
    rows.append(Row("the same AUROC; peer scipy rankdata and one product", taken["ours"], taken["peer"], "s"))
    check("AUROC by rankdata", stats.auroc(scores, labels), by_rankdata(scores, labels))
    return rows


def check(name: str, ours: np.ndarray, theirs: np.ndarray | list[float]) -> None:
    """Print the largest difference; a benchmark of wrong figures is worth nothing, so it ends there."""
    largest = float(np.abs(ours - np.asarray(theirs)).max())
    print(f"{name}: largest difference from the peer {largest:.1e} over {np.size(theirs):,} pairs")
    if not largest <= TOLERANCE:
        raise SystemExit(f"{name} differs from the peer by {largest:.1e}, more than {TOLERANCE:.0e}")


def whole_sae(features: int) -> tuple[float, float, float]:
    """Seconds for all pairs of one wide SAE, and peak memory before and after, in MiB. Runs alone in a process."""
    scores, (labels, _) = sae_like_scores(DOCS, features), crossed_labels(DOCS)
    stats.auroc(scores[:, :10], labels)
    before, start = peak_memory(), time.perf_counter()
    stats.auroc(scores, labels)
    return time.perf_counter() - start, before, peak_memory()


def wide(features: int, repeats: int) -> list[Row]:
    """Time and memory of one wide SAE."""
    runs = [in_new_process(whole_sae, features) for _ in range(repeats)]
    seconds, before, after = np.median(runs, axis=0)
    title = f"AUROC, {features:,} features x {CONCEPTS} concepts x {DOCS:,} documents"
    return [
        Row(title, seconds, None, "s"),
        Row("its peak memory, whole process with scores and result", after, None, "MiB"),
        Row("the same before the call, scores loaded", before, None, "MiB"),
    ]


def ranks_within(scores: np.ndarray, topics: np.ndarray) -> np.ndarray:
    """Ranks of each feature among the documents of a topic; topics are contiguous."""
    return np.concatenate([scipy.stats.rankdata(scores[topics == topic], axis=0) for topic in np.unique(topics)])


def by_products(ranks: np.ndarray, labels: np.ndarray, topics: np.ndarray, permutations: int) -> np.ndarray:
    """The max-statistic null from ranks [features, docs] with one product in float64 for each permutation."""
    rng = np.random.default_rng(0)
    positives = np.stack([labels[topics == topic].sum(axis=0) for topic in np.unique(topics)])
    sizes = np.bincount(np.unique(topics, return_inverse=True)[1])[:, None]
    null = np.empty((permutations, labels.shape[1]))
    for index in range(permutations):
        order = np.lexsort([rng.random(len(labels)), topics])  # topics are contiguous
        null[index] = (ranks @ labels[order].astype(float)).max(axis=0)
    least, pairs = positives * (positives + 1) / 2, positives * (sizes - positives)
    return (null - least.sum(axis=0)) / pairs.sum(axis=0)


def permutation_test(features: int, permutations: int, sample: int, repeats: int) -> list[Row]:
    """Within-topic permutations, the maximum over features for every concept."""
    scores, (labels, topics) = sae_like_scores(DOCS, features), crossed_labels(DOCS)
    contenders = {
        "ours": partial(stats.max_permutation_test, scores, labels, topics, permutations=permutations, rng=0),
        "ranks": partial(ranks_within, scores, topics),
        "products": partial(by_products, ranks_within(scores, topics).T.copy(), labels, topics, sample),
    }
    taken = medians(contenders, repeats)
    title = f"{permutations:,} permutations within topics, best of {features:,} features for {CONCEPTS} concepts"
    peer = f"rankdata once and float64 products (extrapolated from {sample})"
    seconds = taken["ranks"] + taken["products"] * permutations / sample
    ours = stats.max_permutation_test(scores, labels, topics, permutations=sample, rng=1).null
    print(
        f"median of the null maxima: {np.median(ours):.4f} ours, {np.median(contenders['products']()):.4f} the peer's"
    )
    return [Row(f"{title}; peer {peer}", taken["ours"], seconds, "s")]


def by_resampling(scores: np.ndarray, labels: np.ndarray, topics: np.ndarray, draws: int) -> np.ndarray:
    """AUROC of every concept's own readout on resampled topics, by scikit-learn with document weights."""
    rng = np.random.default_rng(0)
    counts = [np.bincount(rng.integers(TOPICS, size=TOPICS), minlength=TOPICS) for _ in range(draws)]
    columns = range(labels.shape[1])
    return np.array(
        [[roc_auc_score(labels[:, c], scores[:, c], sample_weight=count[topics]) for c in columns] for count in counts]
    )


def bootstrap(draws: int, sample: int, repeats: int) -> list[Row]:
    """Intervals over topics for one readout per concept."""
    scores, (labels, topics) = sae_like_scores(DOCS, CONCEPTS), crossed_labels(DOCS)
    ours = partial(stats.auroc_interval, scores, labels, topics, rng=0, n_boot=draws)
    taken = medians({"ours": ours, "peer": partial(by_resampling, scores, labels, topics, sample)}, repeats)
    name = f"AUROC intervals of {CONCEPTS} readouts, {draws:,} draws of topics; peer scikit-learn with weights"
    return [Row(f"{name} (extrapolated from {sample})", taken["ours"], taken["peer"] * draws / sample, "s")]


def scaling(features: list[int], docs: list[int], repeats: int) -> list[Row]:
    """Nanoseconds per score as one size grows: a constant means that cost is linear in it."""
    fewest = features[0]
    shapes = {f"{width:,} features x {DOCS:,} documents": (DOCS, width) for width in features}
    shapes |= {f"{length:,} documents x {fewest:,} features": (length, fewest) for length in docs}
    inputs = {name: (sae_like_scores(*shape), crossed_labels(shape[0])[0]) for name, shape in shapes.items()}
    taken = interleaved({name: partial(stats.auroc, *given) for name, given in inputs.items()}, repeats)
    return [
        Row(f"AUROC, {name}", float(np.median(seconds)) / np.prod(shapes[name]) * 1e9, None, "ns per score")
        for name, seconds in taken.items()
    ]


def main() -> None:
    """Run all parts and print one table."""
    given = options(__doc__)
    quick, repeats = given.quick, 3 if given.quick else 5
    rows = all_pairs(*((1_024, 100) if quick else (4_096, 1_000)), repeats)
    rows += wide(16_384 if quick else 65_536, 1 if quick else 3)
    rows += permutation_test(*((1_024, 200, 5) if quick else (4_096, 1_000, 20)), 1 if quick else 3)
    rows += bootstrap(2_000, 1 if quick else 10, repeats)
    steps = [2, 4] if quick else [2, 4, 8]
    rows += scaling([1_024] + [1_024 * step for step in steps], [DOCS * step for step in steps], repeats)
    print_table(rows)
    if given.json:
        write_json(given.json, rows, machine("scipy", "scikit-learn"))


if __name__ == "__main__":
    main()

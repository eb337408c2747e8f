"""Features against directions: do they point the same way, and which of them detects better on topics left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.results import Average, Line, Table, bounded, integer, number, text

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int

    from affectlens.probing.config import CompareConfig

WITHIN = "AUROC within a left-out topic, mean over topics"

COSINES = Table(
    "cosines",
    "One concept: how its feature points beside its direction.",
    (
        text("concept", "the emotion"),
        integer("feature", "that steers"),
        number("cosine", "of the feature's decoder row with the direction", "cosine"),
        integer("cosine_rank", "of that among all features"),
        number("cosine_null_95", "95% quantile of random directions that vary as the activations do", "cosine"),
        number("cosine_encoder", "of the feature's encoder column with the direction", "cosine"),
        integer("cosine_encoder_rank", "of that among all features"),
        integer("closest_feature", "whose decoder row lies closest"),
        number("closest_cosine", "of that feature", "cosine"),
        number("closest_null_95", "95% quantile of the closest feature to a random direction", "cosine"),
    ),
    key=("concept",),
    averages=(Average("cosine_mean", "cosine"), Average("cosine_encoder_mean", "cosine_encoder")),
)
DETECTION = Table(
    "detection",
    "One way to read concepts, over all concepts.",
    (
        text("method", "what reads"),
        *bounded("mean", f"{WITHIN} and concepts", "AUROC", "its interval over topics", ends=""),
        *bounded(
            "difference",
            "from difference of means, paired within concepts and topics",
            "AUROC",
            "its interval over topics",
        ),
        integer("concepts_better", "concepts read better than by difference of means"),
        integer("concepts_worse", "concepts read worse"),
    ),
    key=("method",),
)
READOUTS = Table(
    "readouts",
    "One concept read in one way.",
    (
        text("concept", "the emotion"),
        text("method", "what reads"),
        text("metric", "the metric that is the mean over concepts"),
        number("auroc", WITHIN, "AUROC"),
    ),
    key=("concept", "method"),
    averages=(Average("{metric}", "auroc"),),
)
CONFOUNDS = Table(
    "confounds",
    "One concept: what else tells it.",
    (
        text("concept", "the emotion"),
        number("auroc_topic_alone", "of knowing the topic alone", "AUROC"),
        text("best_word", "the single word whose presence tells it best"),
        number("auroc_best_word", f"of such a word: {WITHIN}", "AUROC"),
        number("share_beyond_affect", "of the direction's squared norm, beyond valence and arousal", "share"),
        text("confounded", "what its detection cannot be told from"),
    ),
    key=("concept",),
)
EXPLAINED = Table(
    "explained",
    "Directions put together from so many rows of a dictionary.",
    (
        text("dictionary", "whose rows"),
        integer("rows", "how many"),
        number("explained", "share of a direction's squared norm, mean over concepts", "share"),
    ),
    key=("dictionary", "rows"),
    charts=(Line("explained", "rows", "explained", "dictionary"),),
)
ANGLES = Table(
    "angles",
    "One principal angle between the space of the directions and that of the chosen features.",
    (integer("angle", "ascending"), number("cosine", "of it", "cosine")),
    key=("angle",),
)
PAIRS = Table(
    "pairs",
    "Pairs of texts made of the same words, told apart in one way.",
    (
        text("set", "which pairs: written one by one, or templates filled with frequent words"),
        text("scope", "all of them, or the tested half of the templates that the model's own answer solves"),
        integer("layer", "that is read; empty for word counts and for the model's own answer"),
        text("method", "what reads"),
        text(
            "read", "at the mean over tokens, their maximum, the last, or where the model is about to name the feeling"
        ),
        integer("pairs", "how many"),
        *bounded(
            "accuracy",
            "share told apart rightly, a tie counting one half",
            "share",
            "its interval, groups of pairs the sample (score interval)",
            ends="",
        ),
        integer("ties", "pairs read alike"),
        number("p", "of this reading alone, two-sided", "p"),
        number("p_max", "that allows for all searched readings; empty for ceiling, words and trained probe", "p"),
    ),
    key=("set", "scope", "layer", "method", "read"),
)


class Comparison:
    """How features and directions compare.

    Attributes:
        folder: the result folder; ``concepts.csv`` and ``concepts.parquet`` hold everything known of each concept.
        table: per concept, cosine of its feature's decoder and encoder row with its direction, rank and null.
        pursuit: per dictionary and number of rows, share of a direction they make up, mean over concepts.
        subspace: principal angles between the directions and the chosen features, beside random features.
        detection: per method, mean AUROC within left-out topics with interval, per concept, and its difference from
            the first.
        confounds: per concept, what topic, single words, and valence and arousal explain of its detection.
        pairs: per set, scope, layer, method and reading, share of same-words pairs that are told apart rightly.
    """

    def __init__(self, folder: Path) -> None:
        card: dict[str, Any] = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.table: list[dict[str, Any]] = card["table"]
        self.pursuit: list[dict[str, Any]] = card["pursuit"]
        self.subspace: dict[str, Any] = card["subspace"]
        self.detection: list[dict[str, Any]] = card["detection"]
        self.confounds: list[dict[str, Any]] = card["confounds"]
        self.pairs: list[dict[str, Any]] = card["pairs"]


def against_dictionary(
    decoder: Float[np.ndarray, "features d_model"],
    encoder: Float[np.ndarray, "d_model features"],
    unit: Float[np.ndarray, "concepts d_model"],
    stories: Float[np.ndarray, "stories d_model"],
    best: Int[np.ndarray, " concepts"],
    concepts: Sequence[str],
    config: CompareConfig,
    generator: Callable[[str], np.random.Generator],
) -> dict[str, Any]:
    """Cosines, principal angles and sparse reconstructions: the directions against the dictionary.

    Args:
        decoder: rows of any length.
        encoder: columns of any length.
        unit: directions at norm 1.
        stories: activations whose covariance random directions are matched to.
        best: the feature of each concept.
        concepts: their names.
        config: of the stage.
        generator: from a name to a random generator.
    """
    import numpy as np

    from affectlens.probing import control_vectors as controls
    from affectlens.probing import decomposition, subspaces

    decoder = controls.unit_rows(decoder.astype(float))
    writes, reads = decoder @ unit.T, controls.unit_rows(encoder.T.astype(float)) @ unit.T
    random = controls.covariance_matched(config.null_directions, stories, generator("null"))
    largest = np.concatenate([np.abs(each @ decoder.T).max(axis=1) for each in np.array_split(random, 20)])
    table = []
    for index, (concept, feature) in enumerate(zip(concepts, best, strict=True)):
        mine, read = writes[:, index], reads[:, index]
        closest = int(np.abs(mine).argmax())
        table.append(
            {
                "concept": concept,
                "feature": int(feature),
                "cosine": float(mine[feature]),
                "cosine_rank": int((mine > mine[feature]).sum()) + 1,
                "cosine_null_95": float(np.quantile(np.abs(random @ unit[index]), 0.95)),
                "cosine_encoder": float(read[feature]),
                "cosine_encoder_rank": int((read > read[feature]).sum()) + 1,
                "closest_feature": closest,
                "closest_cosine": float(mine[closest]),
                "closest_null_95": float(np.quantile(largest, 0.95)),
            }
        )
    chosen = np.unique(best)
    overlap = subspaces.overlap(unit, decoder[chosen], decoder, draws=config.null_subspaces, rng=generator("subspace"))
    subspace = {
        "cosines": overlap.cosines.tolist(), "share": overlap.share,
        "null_mean": overlap.null_mean, "null_95": overlap.null_95,
        "directions": len(unit), "features": len(chosen),
    }  # fmt: skip

    # Each direction from few decoder rows, beside random rows and rows that vary as the activations do.
    rng, (features, width) = generator("dictionaries"), decoder.shape
    dictionaries = {
        "SAE decoder": decoder,
        "random": controls.isotropic(features, width, rng),
        "covariance-matched": controls.covariance_matched(features, stories, rng),
    }
    pursuit = []
    for name, atoms in dictionaries.items():
        path = decomposition.pursue(unit.T, atoms.T, max(config.pursuit_steps))
        for steps in config.pursuit_steps:
            shares = path.explained[:, min(steps, path.explained.shape[1]) - 1]
            per_concept = dict(zip(concepts, shares.tolist(), strict=True))
            row = {"dictionary": name, "rows": steps, "explained": float(shares.mean()), "per_concept": per_concept}
            pursuit.append(row)
    return {"table": table, "subspace": subspace, "pursuit": pursuit}


def metric_name(method: str) -> str:
    """The metric of a detection method: ``auroc_lda_shrunk``."""
    return "auroc_" + "_".join(method.lower().replace(",", "").replace("(", "").replace(")", "").split())


def table_rows(card: Mapping[str, Any]) -> dict[Table, list[dict[str, Any]]]:
    """The rows of the declared tables."""

    def picked(table: Table, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{column.name: row.get(column.name) for column in table.columns} for row in rows]

    confounds = [{**row, "confounded": ", ".join(row["confounded"])} for row in card["confounds"]]
    angles = [{"angle": index, "cosine": value} for index, value in enumerate(card["subspace"]["cosines"], start=1)]
    readouts = [
        {"concept": concept, "method": row["method"], "metric": metric_name(row["method"]), "auroc": area}
        for row in card["detection"]
        for concept, area in row["per_concept"].items()
    ]
    rows = {
        COSINES: picked(COSINES, card["table"]),
        DETECTION: picked(DETECTION, card["detection"]),
        READOUTS: readouts,
        CONFOUNDS: picked(CONFOUNDS, confounds),
        EXPLAINED: picked(EXPLAINED, card["pursuit"]),
        ANGLES: angles,
    }
    return rows | ({PAIRS: picked(PAIRS, card["pairs"])} if card["pairs"] else {})


def metrics(card: Mapping[str, Any], layer: int) -> dict[str, float]:
    """Flat metrics of the stage."""
    table, subspace = card["table"], card["subspace"]
    values = {
        "cosine_mean": sum(row["cosine"] for row in table) / len(table),
        "cosines_above_null": float(sum(row["cosine"] > row["cosine_null_95"] for row in table)),
        "cosine_encoder_mean": sum(row["cosine_encoder"] for row in table) / len(table),
        "subspace_share": subspace["share"],
        "subspace_share_random": subspace["null_mean"],
        "concepts_confounded": float(sum(bool(row["confounded"]) for row in card["confounds"])),
    }
    for row in card["detection"]:
        key = metric_name(row["method"])
        values |= {key: row["mean"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
    for row in card["pursuit"]:
        values[f"explained_{'_'.join(row['dictionary'].lower().split())}_{row['rows']}"] = row["explained"]
    for row in card["pairs"]:
        if row["layer"] not in (layer, None) or row["scope"] != "all" or row["accuracy"] is None:
            continue
        method = "_".join(row["method"].lower().replace("(", "").replace(")", "").split())
        key = f"{'pairs' if row['set'] == 'written' else 'templates'}_{method}_{row['read']}"
        values |= {key: row["accuracy"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
    return {name: value for name, value in values.items() if value == value}

"""How often modulated answers are heard as the emotion, and how much more often than in every other arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.results import bounded, number

if TYPE_CHECKING:
    pass

SCORES = ("open", "masked")
ARMS = ("plain", "prompting", "circuit", "random", "wrong_emotion", "as_published", "direction", "direction_layers")
"""In the order in which they are shown."""

_ARM = (
    results.text("arm", "what was done: see the arms of modulation"),
    results.text("match", "in what it is as large as the circuit: divergence, norm, or none"),
    number("target", "KL from the plain model's next token at which the circuit is applied", "nats"),
)
RATES = results.Table(
    "rates",
    "How often answers are heard as the emotion in one arm, of all emotions and of each; a broken text is a miss.",
    (
        results.text("concept", "the emotion; empty for all"),
        *_ARM,
        results.text("score", "open: the text as it is; masked: every emotion's own words masked"),
        results.integer("texts", "answers"),
        *bounded("rate", "heard as the emotion, and whole", "share", "its exact 95% interval", ends=""),
        number("broken", "texts that repeat, shout, break off or are far from plain answers in perplexity", "share"),
        number("names", "texts that hold a word of the emotion", "share"),
        number("divergence", "KL of the next token from the plain model's on the tuning events", "nats"),
        number("norm", "total norm of what is added, in mean norms of the residual stream"),
    ),
    key=("concept", "arm", "match", "target", "score"),
)
DIFFERENCES = results.Table(
    "differences",
    "By how much the circuit's rate is above another arm's, on the same events with the same draws.",
    (
        *_ARM,
        results.text("score", "open or masked"),
        *bounded(
            "difference",
            "the circuit's rate less the arm's, mean over emotions and scenarios",
            "share",
            "its 95% t interval over scenarios",
            ends="",
        ),
        results.integer("scenarios", "that were compared"),
    ),
    key=("arm", "match", "target", "score"),
)
TEXTS = results.Table(
    "texts",
    "Every answer.",
    (
        results.text("concept", "the emotion that was wanted"),
        *_ARM,
        results.integer("number", "of the random circuit"),
        results.text("scenario", "the situation"),
        results.text("theme", "of the situation"),
        results.text("outcome", "of the situation"),
        results.text("text", "the answer"),
        results.text("fault", "what is broken about it; empty for a whole text"),
        results.text("heard", "the emotion it was heard as"),
        results.text("heard_masked", "likewise with every emotion's own words masked"),
        results.flag("names", "whether it holds a word of the wanted emotion"),
        number("nats", "a token, under the untouched model behind the same prompt", "nats"),
        number("divergence", "of its arm on the tuning events", "nats"),
        number("norm", "of what was added"),
    ),
)
CHOOSER = results.Table(
    "chooser",
    "Whether who chooses can hear emotions at all: the ends of stories whose emotion is known.",
    (
        results.text("concept", "the emotion; empty for all"),
        results.text("score", "open or masked"),
        results.integer("texts", "ends of stories"),
        *bounded("rate", "heard rightly", "share", "its exact 95% interval", ends=""),
        number("chance", "of one emotion among all", "share"),
    ),
    key=("concept", "score"),
)
TABLES = (RATES, DIFFERENCES, TEXTS, CHOOSER)


def hit(row: dict[str, Any], score: str) -> bool:
    """Whether an answer is heard as the emotion that was wanted, and whole."""
    return not row["fault"] and row["heard" if score == "open" else "heard_masked"] == row["concept"]


def rate_rows(texts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of rates, of all emotions together and of each."""
    import numpy as np

    from affectlens import stats

    groups: dict[tuple[str, str, str, float], list[dict[str, Any]]] = {}
    for row in texts:
        for concept in ("", row["concept"]):
            groups.setdefault((concept, row["arm"], row["match"], row["target"]), []).append(row)
    found = []
    order = sorted(groups, key=lambda key: (key[0], key[3], key[2], ARMS.index(key[1])))
    for concept, arm, match, target in order:
        rows = groups[concept, arm, match, target]

        def mean(name: str, rows: list[dict[str, Any]] = rows) -> float:
            return float(np.mean([row[name] for row in rows]))

        for score in SCORES:
            rate = stats.clopper_pearson(sum(hit(row, score) for row in rows), len(rows))
            found.append(
                {
                    "concept": concept, "arm": arm, "match": match, "target": target, "score": score,
                    "texts": rate.n, "rate": rate.value, "low": rate.low, "high": rate.high,
                    "broken": float(np.mean([bool(row["fault"]) for row in rows])),
                    "names": mean("names"), "divergence": mean("divergence"), "norm": mean("norm"),
                }
            )  # fmt: skip
    return found


def difference_rows(texts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The circuit against every other arm, paired by scenario: a t interval over scenarios, emotions fixed."""
    import numpy as np

    from affectlens import stats

    found = []
    for score in SCORES:
        cells: dict[tuple[str, str, float], dict[tuple[str, str], list[bool]]] = {}
        for row in texts:
            arm = cells.setdefault((row["arm"], row["match"], row["target"]), {})
            arm.setdefault((row["concept"], row["scenario"]), []).append(hit(row, score))
        targets = sorted({target for arm, _, target in cells if arm == "circuit"})
        for target in targets:
            own = cells["circuit", "divergence", target]
            for arm, match, at in sorted(cells, key=lambda key: (key[1], ARMS.index(key[0]), key[2])):
                if arm == "circuit" or (match != "none" and at != target):
                    continue
                other = cells[arm, match, at]
                concepts, scenarios = (sorted({key[axis] for key in own if key in other}) for axis in (0, 1))
                matrix = np.full((len(concepts), len(scenarios)), np.nan)
                for key in own.keys() & other.keys():
                    place = concepts.index(key[0]), scenarios.index(key[1])
                    matrix[place] = np.mean(own[key]) - np.mean(other[key])
                interval = stats.t_interval(matrix)
                found.append(
                    {
                        "arm": arm, "match": match, "target": target, "score": score,
                        "difference": interval.value, "low": interval.low, "high": interval.high,
                        "scenarios": interval.n,
                    }
                )  # fmt: skip
    return found


def chooser_rows(
    labels: Sequence[str], heard: Mapping[str, Sequence[str | None]], concepts: Sequence[str]
) -> list[dict[str, Any]]:
    """The table of who chooses.

    Args:
        labels: of the texts.
        heard: by score, what each was heard as.
        concepts: among which was chosen.
    """
    from affectlens import stats

    found = []
    for concept in ("", *sorted(set(labels))):
        for score in SCORES:
            right = [a == b for a, b in zip(labels, heard[score], strict=True) if concept in ("", a)]
            rate = stats.clopper_pearson(sum(right), len(right))
            found.append(
                {
                    "concept": concept, "score": score, "texts": rate.n, "rate": rate.value, "low": rate.low,
                    "high": rate.high, "chance": 1 / len(concepts),
                }
            )  # fmt: skip
    return found


def metrics(
    rates: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]], chooser: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Rates over all emotions and their differences, at the first target; whether who chooses is above chance."""
    import numpy as np

    found: dict[str, float] = {}
    first = min((row["target"] for row in rates if row["arm"] == "circuit"), default=np.nan)

    def add(name: str, row: dict[str, Any], value: str) -> None:
        found[name] = float(row[value])
        if np.isfinite(row["low"]):
            found[f"{name}_low"], found[f"{name}_high"] = float(row["low"]), float(row["high"])

    for row in rates:
        if not row["concept"] and row["target"] in (0.0, first):
            matched = "" if row["match"] in ("none", "divergence") else f"_{row['match']}"
            add(f"rate_{row['arm']}{matched}_{row['score']}", row, "rate")
    for row in differences:
        if row["target"] == first:
            matched = "" if row["match"] in ("none", "divergence") else f"_{row['match']}"
            add(f"above_{row['arm']}{matched}_{row['score']}", row, "difference")
    for row in chooser:
        if not row["concept"]:
            add(f"chooser_{row['score']}", row, "rate")
            found[f"chooser_able_{row['score']}"] = float(row["low"] > row["chance"])
    return found

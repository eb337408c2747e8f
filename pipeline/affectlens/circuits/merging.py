"""What neurons, transfers, edges and the graph of all rotations come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from affectlens import stats
from affectlens.circuits import curves
from affectlens.circuits.design import context_ids
from affectlens.circuits.graph import graph, validate
from affectlens.circuits.judging import check
from affectlens.circuits.neurons import SIZES
from affectlens.circuits.tables import ALL
from affectlens.model.subject import load_tokenizer
from affectlens.model.tokens import encode

Row = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
PLACES = {
    "frame": "another frame",
    "writer": "another writer's stories",
    "pairs": "same-words pairs, the partner as reference",
}


def transfer_rows(turns: Sequence[Arrays]) -> list[Row]:
    """Ratios of the pooled circuit elsewhere, and what its removal does to neutral text, beside random circuits."""
    rows = []
    for key, name in PLACES.items():
        known = [turn[key] for turn in turns if key in turn]
        if not known:
            continue
        values = np.concatenate(known)
        found = values[:, 2:] - values[:, 1:2]
        whole = values[:, 0] - values[:, 1]
        ratios = found.sum(axis=0) / whole.sum() if whole.sum() else np.full(found.shape[1], np.nan)
        rows.append(check(name, "contrast of the whole model, nats", float(whole.mean()), None, len(values)))
        rows.append(check(name, "ratio", float(ratios[0]), ratios[1:], len(values)))
        slopes = [curves.faithfulness(each, whole).slope for each in found.T]
        rows.append(check(name, "slope over contexts", slopes[0], np.array(slopes[1:]), len(values)))
    known = [turn["resampled"] for turn in turns if "resampled" in turn]
    if known:
        values = np.concatenate(known)
        whole = values[:, 0] - values[:, 1]
        sums = (values[:, 2:] - values[:, 1:2]).sum(axis=0)
        ratios = sums / whole.sum() if whole.sum() else np.full(len(sums), np.nan)
        kept, left = np.split(ratios, 2)
        name = "one other story as reference"
        rows.append(check(name, "contrast of the whole model, nats", float(whole.mean()), None, len(values)))
        rows.append(check(name, "ratio", float(kept[0]), kept[1:], len(values)))
        rows.append(check(name, "left without the circuit", float(left[0]), left[1:], len(values)))
    losses = np.concatenate([turn["neutral"] for turn in turns])
    raised = np.exp((losses[:, 1:] - losses[:, :1]).mean(axis=0))
    rows.append(
        check("neutral text", "perplexity without the circuit, times", float(raised[0]), raised[1:], len(losses))
    )
    return rows


def neuron_rows(turns: Sequence[Arrays]) -> tuple[list[Row], list[Row], list[Row]]:
    """The tables of neurons and of their curve, and their checks."""
    if not turns:
        return [], [], []
    seen: dict[int, list[tuple[bool, float, float, float, float]]] = {}
    for turn in turns:
        checked = int(turn["checked"])
        for place, neuron in enumerate(turn["neuron"].tolist()):
            exact = float(turn["exact"][:, place].mean())
            values = (
                place < checked,
                float(turn["mean"][place]),
                exact,
                float(turn["p"][place]),
                float(turn["adjusted"][place]),
            )
            seen.setdefault(neuron, []).append(values)
    width = int(turns[0]["d_mlp"])
    rows = []
    for neuron, found in sorted(seen.items()):
        rows.append(
            {
                "layer": neuron // width,
                "neuron": neuron % width,
                "selected": any(each[0] for each in found),
                "attribution": float(np.mean([each[1] for each in found])),
                "exact": float(np.mean([each[2] for each in found])),
                "p": float(np.min([each[3] for each in found])),
                "p_adjusted": float(np.min([each[4] for each in found])),
                "rotations": len(found),
            }
        )
    kept, whole = np.concatenate([turn["kept"] for turn in turns]), np.concatenate([turn["whole"] for turn in turns])
    ratios = kept.sum(axis=0) / whole.sum() if whole.sum() else np.full(kept.shape[1:], np.nan)
    curve = [
        {
            "share": share,
            "ratio": float(ratios[at, 0]),
            "slope": curves.faithfulness(kept[:, at, 0], whole).slope,
            "random": float(ratios[at, 1:].mean()),
            "random_low": float(ratios[at, 1:].min()),
            "random_high": float(ratios[at, 1:].max()),
        }
        for at, share in enumerate(SIZES)
    ]
    return rows, curve, neuron_checks(turns)


def neuron_checks(turns: Sequence[Arrays]) -> list[Row]:
    """Attribution of neurons against their exact ablation, what it may have missed, and whose neurons they are."""
    selected_exact, other_exact, agreements = [], [], []
    for turn in turns:
        checked = int(turn["checked"])
        exact, screen = turn["exact"], turn["screen"]
        selected_exact.append(np.abs(exact[:, :checked].mean(axis=0)))
        other_exact.append(np.abs(exact[:, checked:].mean(axis=0)))
        if exact.std() and screen.std():
            agreements.append(float(np.corrcoef(exact[:, :checked].ravel(), screen[:, :checked].ravel())[0, 1]))
    selected, others = np.concatenate(selected_exact), np.concatenate(other_exact)
    missed = int((others >= np.median(selected)).sum())
    bound = stats.wilson(missed, len(others))
    matched = np.sum([turn["matched"] for turn in turns], axis=0)
    contexts = sum(len(turn["exact"]) for turn in turns)
    chance = len(turns) / max(1, int(matched[2]))
    name = "neurons"
    return [
        check(name, "attribution against exact ablation, r", _mean(agreements), None, contexts),
        check(name, "size of the exact effect of selected ones, nats", float(selected.mean()), others, contexts),
        check(name, "unselected ones with at least the median effect of selected ones", bound.value, None, len(others)),
        check(name, "upper end of that share", bound.high, None, len(others)),
        check(
            name,
            "concepts nearest to themselves across topics",
            float(matched[0] / matched[2]) if matched[2] else None,
            chance if matched[2] else None,
            int(matched[2]),
        ),
        check(
            name,
            "the same of their words in other concepts' stories",
            float(matched[1] / matched[2]) if matched[2] else None,
            chance if matched[2] else None,
            int(matched[2]),
        ),
        check(name, "significant, of all", float(np.mean([turn["significant"] for turn in turns])), None, len(turns)),
    ]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def edge_rows(turns: Sequence[Arrays], heads: int) -> list[Row]:
    """The edges that are not 0, over the contexts in which both heads were in the circuit."""
    found: dict[tuple[int, int], list[float]] = {}
    for turn in turns:
        if "nodes" not in turn:
            continue
        nodes = turn["nodes"].tolist()
        for row, source in enumerate(nodes):
            for column, target in enumerate(nodes):
                if target // heads > source // heads:
                    found.setdefault((source, target), []).extend(turn["edges"][:, row, column].tolist())
    rows = []
    for (source, target), values in sorted(found.items()):
        mean = stats.t_interval(np.array(values))
        ends = [f"L{each // heads}H{each % heads}" for each in (source, target)]
        rows.append({"source": ends[0], "target": ends[1], "weight": mean.value, "low": mean.low, "high": mean.high})
    return rows


def pooled_graph(stage: Any, members: Sequence[Row], edges: Sequence[Row]) -> dict[str, Any]:
    """The pooled circuit over the first reported context, checked against the field list."""
    config, cell = stage.config, stage.turns[0].report[0]
    tokenizer = load_tokenizer(stage.setting.model, stage.setting.models)
    story = next(
        each.text for each in stage.outlook.documents if (each.topic, each.emotion) == (cell.topic, cell.concept)
    )
    ids = context_ids(lambda text: encode(tokenizer, text), story, config.frame, config.story_tokens)
    pieces = [tokenizer.decode([each]) for each in ids]
    strongest = sorted(edges, key=lambda row: -abs(row["weight"]))[:200]
    made = graph(
        "emotion-words-heads",
        stage.setting.model.name.rstrip("/").split("/")[-1],
        "".join(pieces),
        pieces,
        members,
        strongest,
        "words of the story's concept",
    )
    validate(made)
    return made


def metrics(verdicts: Sequence[Row], areas: Sequence[Row], level: float) -> dict[str, float]:
    """The figures shown when a study ends."""
    pooled = next(row for row in verdicts if row["concept"] == ALL)
    concepts = [row for row in verdicts if row["concept"] != ALL]
    found: dict[str, float] = {
        key: float(pooled[key])
        for key in ("contrast", "ratio", "slope", "left", "random_ratio", "random_left", "stability", "heads")
        if pooled[key] is not None and math.isfinite(pooled[key])
    }
    for end in ("low", "high"):
        for key, column in (("ratio", end), ("left", f"left_{end}")):
            if pooled[column] is not None and math.isfinite(pooled[column]):
                found[f"{key}_{end}"] = float(pooled[column])
    found["specificity_p"] = float(pooled["p"])
    found["share_specific"] = float(np.mean([row["p_adjusted"] <= level for row in concepts]))
    found["share_own_worst"] = float(np.mean([row["rank"] == 1 for row in concepts]))
    for row in areas:
        if row["ranking"] == "size of effect":
            found |= {"cmd": row["cmd"], "cmd_log": row["cmd_log"]}
        elif row["ranking"] == "signed effect":
            found |= {"cpr": row["cpr"], "cpr_log": row["cpr_log"]}
    return {key: value for key, value in found.items() if math.isfinite(value)}

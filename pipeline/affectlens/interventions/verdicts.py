"""What may be said of each concept: necessary, sufficient, specific, or not shown; with the tables behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectlens.interventions.effects import (
    Ablated,
    Injected,
    Judged,
    at_divergence,
    beyond_valence,
    judge,
    nearest_in_valence,
    wrong_vectors,
)
from affectlens.interventions.vector_kinds import CONTROLS
from affectlens.stats import bootstrap_mean, cluster_bootstrap, wilson

NEAR_IN_VALENCE = 3
"""Concepts of like valence that a concept is compared with."""
WRONG_SHARE = 0.05
"""A vector is specific while at most this share of the other concepts' vectors move its words as far."""
CLAIMS = ("sufficient", "necessary", "specific")
NAMES = {"direction": "direction", "feature": "best SAE feature", "features": "set of SAE features"}


@dataclass(frozen=True)
class Rules:
    """When something counts as shown.

    Attributes:
        level: error rate after correction over concepts.
        perplexity_limit: largest perplexity ratio on neutral text.
    """

    level: float
    perplexity_limit: float


def summarise(
    concepts: Sequence[str],
    injected: Injected,
    ablated: Sequence[Ablated | None],
    ratings: Mapping[str, Mapping[str, float]],
    rules: Rules,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """Tables, verdicts and metrics.

    Args:
        ablated: per concept, or None where it has no held-out story.
        ratings: valence of words, for the effect beyond valence.
    """
    near = nearest_in_valence(concepts, ratings, NEAR_IN_VALENCE)
    evokes = evoked(ablated, generator)
    tables: dict[str, Any] = {"effects": [], "matrix": {}, "dose": [], "evoked": evokes, "readout": []}
    facts: dict[str, list[dict[str, Any]]] = {}
    for vector in injected.studied:
        injection = _injection(injected, vector, near, generator)
        removal = _removal(ablated, vector, generator)
        facts[vector] = [
            _facts(index, vector, injected, injection, removal, evokes[index], rules) for index in range(len(concepts))
        ]
        tables["matrix"][vector] = injected.of(vector)[:, injected.reference].mean(axis=1).tolist()
        tables["effects"] += _effect_rows(concepts, vector, injected, injection, removal)
        tables["dose"] += _dose_rows(concepts, vector, injected)
        tables["readout"] += _readout_rows(concepts, vector, injected, generator)
    tables["verdicts"] = {
        concept: _verdict({vector: rows[index] for vector, rows in facts.items()})
        for index, concept in enumerate(concepts)
    }
    tables["controls"] = _describe_controls(injected, ablated)
    tables["metrics"] = _metrics(facts, injected, tables["readout"], generator)
    return tables


@dataclass(frozen=True)
class _Injection:
    """One kind of vector, injected: a judgement at every strength, and what else the verdict needs."""

    judged: list[Judged]
    equal_above: np.ndarray
    wrong: np.ndarray
    beyond: list[dict[str, Any] | None]


def _injection(
    injected: Injected, vector: str, near: Mapping[int, Sequence[int]], generator: np.random.Generator
) -> _Injection:
    own, reference, control = injected.of(vector), injected.reference, injected.controls(vector)
    judged = [
        judge(_diagonal(own[:, strength]), injected.effect[control, strength].mean(axis=1), generator)
        for strength in range(len(injected.strengths))
    ]
    equal = at_divergence(injected.effect.mean(axis=2), injected.divergence.mean(axis=2), injected.equal_divergence)
    mine = np.diag(equal[injected.kinds == vector])
    beyond = [
        None if values is None else _estimate(bootstrap_mean(values, rng=generator))
        for values in beyond_valence(own[:, reference], near)
    ]
    wrong = wrong_vectors(own[:, reference].mean(axis=1))
    return _Injection(judged, mine > equal[control].max(axis=0), wrong, beyond)


def _diagonal(effect: np.ndarray) -> list[np.ndarray]:
    """Per concept the effect of its own vector on its own words (or reading) in each context."""
    return [effect[index, :, index] for index in range(len(effect))]


@dataclass(frozen=True)
class _Removal:
    """One kind of vector, ablated: the judgement of the concepts that have contexts, and which these are."""

    judged: Judged
    places: dict[int, int]
    fires: dict[int, float]


def _removal(ablated: Sequence[Ablated | None], vector: str, generator: np.random.Generator) -> _Removal | None:
    found = {index: each for index, each in enumerate(ablated) if each is not None}
    if not found:
        return None
    drops = [each.drop[vector][:, :, index] for index, each in found.items()]
    judged = judge(
        [drop[:, 0] for drop in drops],
        np.stack([drop[:, 1:].mean(axis=0) for drop in drops], axis=1),
        generator,
        [each.topics for each in found.values()],
    )
    places = {index: place for place, index in enumerate(found)}
    fires = {index: float(each.fires[vector].mean()) for index, each in found.items() if vector in each.fires}
    return _Removal(judged, places, fires)


def evoked(ablated: Sequence[Ablated | None], generator: np.random.Generator) -> list[dict[str, Any] | None]:
    """How much likelier a concept's words are after its own stories than after those of the other concepts.

    Compared with contexts that end in the same words, where there are such.
    """
    found: list[dict[str, Any] | None] = []
    for index, own in enumerate(ablated):
        others = [each for place, each in enumerate(ablated) if each is not None and place != index]
        if own is None or not others:
            found.append(None)
            continue
        base = np.concatenate([each.base[:, index] for each in others])
        frames = np.concatenate([each.frames for each in others])
        alike = [base[frames == frame] if (frames == frame).any() else base for frame in own.frames]
        excess = own.base[:, index] - np.array([each.mean() for each in alike])
        found.append(_estimate(cluster_bootstrap(excess, own.topics, rng=generator)))
    return found


def _facts(
    index: int,
    vector: str,
    injected: Injected,
    injection: _Injection,
    removal: _Removal | None,
    evokes: Mapping[str, Any] | None,
    rules: Rules,
) -> dict[str, Any]:
    inject = _finding(injection.judged[injected.reference], index, rules.level)
    beyond = injection.beyond[index]
    ratio = float(injected.perplexity_of(vector)[index, injected.reference])
    sufficient = inject["shown"] and ratio <= rules.perplexity_limit
    own_words = bool(injection.wrong[index] <= WRONG_SHARE)
    specific = sufficient and own_words and (beyond is None or (beyond["low"] or 0) > 0)
    ablate = None
    if removal is not None and index in removal.places:
        ablate = _finding(removal.judged, removal.places[index], rules.level) | {"fires": removal.fires.get(index)}
    evokes_words = evokes is not None and evokes["value"] > 0
    return {
        "vector": vector,
        "strength": injected.strengths[injected.reference],
        "inject": inject,
        "ablate": ablate,
        "evoked": evokes_words,
        "perplexity_ratio": ratio,
        "above_at_equal_divergence": bool(injection.equal_above[index]),
        "wrong_vectors_as_strong": float(injection.wrong[index]),
        "beyond_valence": beyond,
        "sufficient": sufficient,
        "specific": specific,
        "necessary": ablate is not None and ablate["shown"] and evokes_words,
    }


def _finding(judged: Judged, index: int, level: float) -> dict[str, Any]:
    return _numbers(judged, index) | {"controls": judged.controls, "shown": bool(judged.shown(level)[index])}


def _numbers(judged: Judged, index: int) -> dict[str, Any]:
    return {
        "effect": float(judged.effect[index]),
        "low": _or_none(judged.low[index]),
        "high": _or_none(judged.high[index]),
        "p": float(judged.p[index]),
        "p_pooled": float(judged.p_pooled[index]),
        "p_adjusted": float(judged.p_adjusted[index]),
        "control_mean": float(judged.control_mean[index]),
        "control_max": float(judged.control_max[index]),
        "above_controls": bool(judged.above[index]),
    }


def _effect_rows(
    concepts: Sequence[str], vector: str, injected: Injected, injection: _Injection, removal: _Removal | None
) -> list[dict[str, Any]]:
    rows = []
    for index, concept in enumerate(concepts):
        for strength, judged in zip(injected.strengths, injection.judged, strict=True):
            head = {"concept": concept, "vector": vector, "operation": "inject", "strength": strength}
            rows.append(head | _numbers(judged, index))
        if removal is not None and index in removal.places:
            head = {"concept": concept, "vector": vector, "operation": "ablate", "strength": 1.0}
            rows.append(head | _numbers(removal.judged, removal.places[index]))
    return rows


def _dose_rows(concepts: Sequence[str], vector: str, injected: Injected) -> list[dict[str, Any]]:
    own, far = injected.of(vector), injected.divergence[injected.kinds == vector]
    return [
        {
            "concept": concept,
            "vector": vector,
            "strength": strength,
            "effect": float(own[index, dose, :, index].mean()),
            "divergence": float(far[index, dose].mean()),
            "perplexity_ratio": float(injected.perplexity_of(vector)[index, dose]),
        }
        for index, concept in enumerate(concepts)
        for dose, strength in enumerate(injected.strengths)
    ]


def _readout_rows(
    concepts: Sequence[str], vector: str, injected: Injected, generator: np.random.Generator
) -> list[dict[str, Any]]:
    """At the reference strength: how far a concept's own reading downstream rises against the others'."""
    if injected.reading is None:
        return []
    reading = injected.reading[:, injected.reference]
    control = reading[injected.controls(vector)].mean(axis=1)
    judged = judge(_diagonal(reading[injected.kinds == vector]), control, generator)
    return [{"concept": concept, "vector": vector} | _numbers(judged, index) for index, concept in enumerate(concepts)]


def _verdict(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    first = next(iter(facts.values()))
    words = " ".join(sentence(each) for each in facts.values())
    return {
        "words": words,
        **{claim: first[claim] for claim in CLAIMS},
        **{key: dict(value) for key, value in facts.items()},
    }


def sentence(facts: Mapping[str, Any]) -> str:
    """What was and was not shown of one concept's direction or features, in plain words."""
    injected = facts["inject"]
    verb = "raises" if injected["effect"] > 0 else "lowers"
    told = (
        f"Injecting the {NAMES[facts['vector']]} at {facts['strength']:g} of the mean residual norm {verb} the "
        f"concept's words by {abs(injected['effect']):.2f} nats against other concepts' words ({_interval(injected)}), "
        f"{_against(injected)}:"
    )
    if facts["sufficient"]:
        claim = "sufficient and specific." if facts["specific"] else "sufficient, but not specific to the concept."
    elif injected["shown"]:
        claim = f"not counted, because neutral text becomes {facts['perplexity_ratio']:.1f} times as perplexing."
    else:
        claim = "sufficiency not shown."
    return f"{told} {claim} {_removal_sentence(facts)}"


def _removal_sentence(facts: Mapping[str, Any]) -> str:
    ablated = facts["ablate"]
    if ablated is None:
        return "There is no held-out story, so necessity was not tested."
    if not facts["evoked"]:
        return "The held-out stories do not make its words likelier, so necessity cannot be judged."
    if ablated["fires"] == 0 and ablated["effect"] == 0:
        return "It does not fire in the held-out stories, so ablating it changes nothing: necessity not shown."
    verb = "lowers" if ablated["effect"] > 0 else "raises"
    claim = "necessary" if facts["necessary"] else "necessity not shown"
    return (
        f"Ablating it in held-out stories {verb} them by {abs(ablated['effect']):.2f} nats ({_interval(ablated)}), "
        f"{_against(ablated)}: {claim}."
    )


def _interval(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return "too few contexts for an interval"
    low, high = found["low"], found["high"]
    # An effect told as a fall is told with the signs of a fall.
    return f"95% interval {low:.2f} to {high:.2f}" if found["effect"] > 0 else f"95% interval {-high:.2f} to {-low:.2f}"


def _against(found: Mapping[str, Any]) -> str:
    place = "more than all" if found["above_controls"] else "not more than all"
    return f"{place} {found['controls']} controls (adjusted p {found['p_adjusted']:.3f})"


def _describe_controls(injected: Injected, ablated: Sequence[Ablated | None]) -> dict[str, Any]:
    counts = {vector: int(injected.controls(vector).sum()) for vector in injected.studied}
    rows = next((each.drop["direction"].shape[1] - 1 for each in ablated if each is not None), 0)
    return {
        "families": {kind: int((injected.kinds == kind).sum()) for kind in CONTROLS},
        "inject": {vector: {"count": count, "p_floor": 1 / (count + 1)} for vector, count in counts.items()},
        "ablate": {"count": rows, "p_floor": 1 / (rows + 1)},
        "equal_divergence": injected.equal_divergence,
        "note": "All at norm 1 times the same strength. Ablation controls take, position by position, as much as the "
        "ablation takes, along control directions. Features are also held against random features that fire as often. "
        "Corrected p are of effects standardised by their own controls, against those of all concepts together.",
    }


def _metrics(
    facts: Mapping[str, Sequence[Mapping[str, Any]]],
    injected: Injected,
    readout: Sequence[Mapping[str, Any]],
    generator: np.random.Generator,
) -> dict[str, float]:
    metrics: dict[str, float] = {"reference_strength": float(injected.strengths[injected.reference])}
    for vector, rows in facts.items():
        tested = [row for row in rows if row["ablate"] is not None and row["evoked"]]
        flags = {
            "sufficient": [row["sufficient"] for row in rows],
            "specific": [row["specific"] for row in rows],
            "above_controls": [row["inject"]["above_controls"] for row in rows],
            "above_controls_at_equal_divergence": [row["above_at_equal_divergence"] for row in rows],
            "necessary": [row["necessary"] for row in tested],
            "readout_above_controls": [row["above_controls"] for row in readout if row["vector"] == vector],
        }
        for name, values in flags.items():
            if values:
                metrics |= _with_interval(f"share_{name}_{vector}", wilson(sum(values), len(values)))
        mean = bootstrap_mean(np.array([row["inject"]["effect"] for row in rows]), rng=generator)
        metrics |= _with_interval(f"effect_{vector}", mean)
        metrics[f"perplexity_ratio_{vector}"] = float(np.mean([row["perplexity_ratio"] for row in rows]))
    return metrics


def _with_interval(name: str, found: Any) -> dict[str, float]:
    ends = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_n": found.n}
    return {key: float(value) for key, value in ends.items()}


def _estimate(found: Any) -> dict[str, Any]:
    return {"value": found.value, "low": _or_none(found.low), "high": _or_none(found.high), "n": found.n}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

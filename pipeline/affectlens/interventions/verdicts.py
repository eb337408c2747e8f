"""What may be said of each concept's vectors: sufficient, specific, necessary, or not shown; with the rows of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from affectlens.interventions import effects, tables
from affectlens.interventions.conditions import CONTROLS, Family
from affectlens.interventions.config import CausalConfig
from affectlens.interventions.effects import Ablated, Injected
from affectlens.interventions.judge import Claim, Verdict, judge
from affectlens.results import Table
from affectlens.results.format import number, p_value
from affectlens.stats import t_interval

Rows = list[dict[str, Any]]
NAMES: Mapping[str, str] = {
    "direction": "direction",
    "feature": "best SAE feature",
    "features": "set of SAE features",
}
SHARES = ("above_controls", "above_controls_at_equal_divergence", "first", "sufficient", "specific", "necessary")
"""Columns of the verdicts whose means over concepts are metrics with an interval."""


@dataclass
class Summary:
    """Rows of the declared tables and the metrics of the stage."""

    tables: dict[Table, Rows] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, table: Table, rows: Rows) -> None:
        """Further rows of a table."""
        self.tables.setdefault(table, []).extend(rows)


def summarise(
    concepts: Sequence[str],
    injected: Injected,
    ablated: Sequence[Ablated | None],
    ratings: Mapping[str, Mapping[str, float]],
    config: CausalConfig,
    generator: np.random.Generator,
) -> Summary:
    """Tables and metrics.

    Args:
        ablated: per concept, or None where it has no held-out story.
        ratings: valence of words, for the effect beyond valence.
        generator: of the permutations of labels among vectors.
    """
    summary = Summary()
    reference, near = injected.reference, effects.nearest_in_valence(concepts, ratings, config.valence_neighbours)
    evokes = evoked(ablated)
    # The effect of every vector on every concept's words at the strength where it moves the next token equally far.
    equal = effects.at_divergence(
        injected.effect.mean(axis=2), injected.divergence.mean(axis=2), injected.equal_divergence
    )
    for vector in injected.studied:
        own = injected.rows(vector)
        doses = [
            _injection(concepts, injected, vector, strength, config) for strength in range(len(injected.strengths))
        ]
        removal = _removal(concepts, ablated, vector, config)
        matrix = injected.matrix(vector, reference)
        largest = effects.largest_control(injected.families, vector, equal)
        verdicts = _verdicts(
            concepts,
            injected,
            doses[reference],
            removal,
            evokes=evokes,
            above_at_equal_divergence=np.diag(equal[own]) > largest,
            wrong=effects.wrong_vectors(matrix),
            beyond=effects.beyond_valence(injected.effect[own, reference], near),
            config=config,
        )
        summary.add(tables.VERDICTS, verdicts)
        summary.add(tables.EFFECTS, _effect_rows(concepts, injected, doses, removal))
        summary.add(tables.DOSE, _dose_rows(concepts, injected, vector))
        summary.add(tables.CONTROLS, _control_rows(injected, vector, removal))
        summary.add(
            tables.MATRIX,
            [
                {"vector": vector, "injected": row, "measured": column, "effect": matrix[i, j]}
                for i, row in enumerate(concepts)
                for j, column in enumerate(concepts)
            ],
        )
        each = np.arange(len(concepts))
        summary.metrics |= _metrics(vector, injected.effect[own, reference][each, :, each], verdicts)
        above = effects.largest_control(injected.families, vector, injected.effect[:, reference].mean(axis=1))
        summary.metrics |= {
            f"above_controls_expected_{vector}": effects.expected_above(matrix, above),
            f"above_controls_at_equal_divergence_expected_{vector}": effects.expected_above(equal[own], largest),
            f"diagonal_p_{vector}": effects.diagonal_p(matrix, config.permutations, generator),
        }
        if injected.reading is not None:
            readout = judged_rows(concepts, injected.families, vector, injected.reading[:, reference], config)
            summary.add(tables.READOUT, readout)
            shown = [row["above_controls"] for row in readout]
            summary.metrics |= _share(f"share_readout_above_controls_{vector}", shown)
    summary.metrics["reference_strength"] = float(injected.strengths[reference])
    summary.metrics = {name: value for name, value in summary.metrics.items() if math.isfinite(value)}
    return summary


def judged_rows(
    concepts: Sequence[str],
    families: np.ndarray,
    vector: Family,
    values: Float[np.ndarray, "vectors contexts concepts"],
    config: CausalConfig,
) -> Rows:
    """The judge on an outcome of its own (a reading, a score of sampled text): one row a concept."""
    verdicts = judge(effects.claims(concepts, families, vector, values), config.rules, pool=True)
    control = values[np.isin(families, CONTROLS[vector])].mean(axis=1)
    return [
        {"concept": verdict.name, "vector": vector} | _numbers(verdict, control[:, column])
        for column, verdict in enumerate(verdicts)
    ]


@dataclass(frozen=True, eq=False)
class _Judged:
    """One family of vectors under one operation: concepts that were tested, their verdicts, what controls did.

    Attributes:
        vector: the family.
        verdicts: by concept.
        control: by concept the mean effects of the control vectors, without the vectors of other concepts.
        claims: by concept.
        fires: by concept the share of positions at which an ablated feature fires.
    """

    vector: Family
    verdicts: Mapping[str, Verdict]
    control: Mapping[str, Float[np.ndarray, "controls"]]
    claims: Mapping[str, Claim]
    fires: Mapping[str, float] = field(default_factory=dict)


def _injection(
    concepts: Sequence[str], injected: Injected, vector: Family, strength: int, config: CausalConfig
) -> _Judged:
    values = injected.effect[:, strength]
    claims = effects.claims(concepts, injected.families, vector, values, injected.perplexity_of(vector)[:, strength])
    control = values[np.isin(injected.families, CONTROLS[vector])].mean(axis=1)
    return _Judged(
        vector,
        dict(zip(concepts, judge(claims, config.rules, pool=True), strict=True)),
        dict(zip(concepts, control.T, strict=True)),
        dict(zip(concepts, claims, strict=True)),
    )


def _removal(
    concepts: Sequence[str], ablated: Sequence[Ablated | None], vector: Family, config: CausalConfig
) -> _Judged:
    """Ablation judged by the fall of the concept's words; topics are the groups, controls one mixed family."""
    claims, fires = {}, {}
    for index, (concept, each) in enumerate(zip(concepts, ablated, strict=True)):
        if each is None:
            continue
        drop = each.drop[vector][:, :, index]
        claims[concept] = Claim(concept, drop[:, 0], {"random": drop[:, 1:].mean(axis=0)}, each.topics)
        if vector in each.fires:
            fires[concept] = float(each.fires[vector].mean())
    verdicts = judge(list(claims.values()), config.rules, pool=True)
    control = {concept: claim.controls["random"] for concept, claim in claims.items()}
    return _Judged(vector, dict(zip(claims, verdicts, strict=True)), control, claims, fires)


def evoked(ablated: Sequence[Ablated | None]) -> list[float]:
    """How much likelier a concept's words are after its own stories than after those of the other concepts, in nats.

    Compared with contexts that end in the same words, where there are such. NaN where there is nothing to compare.
    """
    excess = []
    for index, own in enumerate(ablated):
        others = [each for row, each in enumerate(ablated) if each is not None and row != index]
        if own is None or not others:
            excess.append(math.nan)
            continue
        base = np.concatenate([each.base[:, index] for each in others])
        frames = np.concatenate([each.frames for each in others])
        alike = [base[frames == frame] if (frames == frame).any() else base for frame in own.frames]
        excess.append(float(np.mean(own.base[:, index] - np.array([each.mean() for each in alike]))))
    return excess


def _verdicts(
    concepts: Sequence[str],
    injected: Injected,
    injection: _Judged,
    removal: _Judged,
    *,
    evokes: Sequence[float],
    above_at_equal_divergence: Bool[np.ndarray, "concepts"],
    wrong: Float[np.ndarray, "concepts"],
    beyond: Sequence[Float[np.ndarray, "frames"] | None],
    config: CausalConfig,
) -> Rows:
    """One row a concept: every criterion, and the sentence that follows from them."""
    rows = []
    for index, concept in enumerate(concepts):
        inject, ablate = injection.verdicts[concept], removal.verdicts.get(concept)
        excess = None if beyond[index] is None else t_interval(np.asarray(beyond[index]))
        # A vector that raises all words of like valence shows valence, not the concept.
        more_than_valence = excess is None or excess.low > 0
        evokes_words = bool(evokes[index] > 0)
        row = {
            "concept": concept,
            "vector": injection.vector,
            "strength": injected.strengths[injected.reference],
            **_numbers(inject, injection.control[concept]),
            "above_controls_at_equal_divergence": bool(above_at_equal_divergence[index]),
            "first": bool(wrong[index] == 0),
            "wrong_vectors": wrong[index],
            "beyond_valence": math.nan if excess is None else excess.value,
            "beyond_valence_low": math.nan if excess is None else excess.low,
            "perplexity_ratio": injection.claims[concept].perplexity,
            "sufficient": inject.shown,
            "specific": inject.shown and bool(wrong[index] <= config.wrong_share) and more_than_valence,
            "ablation_effect": math.nan if ablate is None else ablate.effect,
            "ablation_low": math.nan if ablate is None else ablate.low,
            "ablation_high": math.nan if ablate is None else ablate.high,
            "ablation_p_adjusted": math.nan if ablate is None else ablate.p_adjusted,
            "evoked": evokes_words if math.isfinite(evokes[index]) else None,
            "necessary": ablate.shown if ablate is not None and evokes_words else None,
        }
        rows.append(row | {"words": sentence(row, inject, ablate, removal.fires.get(concept), config)})
    return rows


def _numbers(verdict: Verdict, control: Float[np.ndarray, "controls"]) -> dict[str, Any]:
    """What the tables say of one judged claim."""
    return {
        "effect": verdict.effect,
        "low": verdict.low,
        "high": verdict.high,
        "p": verdict.p,
        "p_adjusted": verdict.p_adjusted,
        "p_floor": verdict.floor,
        "hardest_family": verdict.family,
        "control_mean": float(control.mean()),
        "control_max": float(control.max()),
        "above_controls": bool(verdict.effect > control.max()),
    }


def _effect_rows(concepts: Sequence[str], injected: Injected, doses: Sequence[_Judged], removal: _Judged) -> Rows:
    rows = []
    for concept in concepts:
        tested = [("inject", strength, dose) for strength, dose in zip(injected.strengths, doses, strict=True)]
        tested += [("ablate", 1.0, removal)] if concept in removal.verdicts else []
        for operation, strength, judged in tested:
            head = {"concept": concept, "vector": judged.vector, "operation": operation, "strength": strength}
            rows.append(head | _numbers(judged.verdicts[concept], judged.control[concept]))
    return rows


def _dose_rows(concepts: Sequence[str], injected: Injected, vector: Family) -> Rows:
    own, far = injected.effect[injected.rows(vector)], injected.divergence[injected.rows(vector)]
    return [
        {
            "concept": concept,
            "vector": vector,
            "strength": strength,
            "effect": own[index, dose, :, index].mean(),
            "divergence": far[index, dose].mean(),
            "perplexity_ratio": injected.perplexity_of(vector)[index, dose],
        }
        for index, concept in enumerate(concepts)
        for dose, strength in enumerate(injected.strengths)
    ]


def _control_rows(injected: Injected, vector: Family, removal: _Judged) -> Rows:
    """How many controls of which family; their nulls are taken over all concepts that were tested."""
    concepts = int(injected.rows(vector).sum())
    members = {("inject", family): int(injected.rows(family).sum()) for family in CONTROLS[vector]}
    members["inject", effects.WRONG] = concepts - 1
    if removal.control:
        members["ablate", "random"] = len(next(iter(removal.control.values())))
    return [
        {
            "vector": vector,
            "operation": operation,
            "family": family,
            "members": count,
            "p_floor": 1 / (count * (concepts if operation == "inject" else len(removal.verdicts)) + 1),
        }
        for (operation, family), count in members.items()
    ]


def sentence(
    row: Mapping[str, Any], inject: Verdict, ablate: Verdict | None, fires: float | None, config: CausalConfig
) -> str:
    """What was and was not shown of one concept's direction or features, in plain words."""
    verb = "raises" if inject.effect > 0 else "lowers"
    head = (
        f"Injecting the {NAMES[row['vector']]} at {row['strength']:g} of the mean residual norm {verb} the concept's "
        f"words by {number(abs(inject.effect))} nats against other concepts' words ({_interval(inject)}), "
        f"{_against(row['above_controls'], inject)}:"
    )
    if row["sufficient"]:
        claim = "sufficient and specific." if row["specific"] else "sufficient, but not specific to the concept."
    elif inject.reason == "incoherent text" and inject.p_adjusted <= config.level:
        claim = f"not counted, because neutral text becomes {row['perplexity_ratio']:.1f} times as perplexing."
    else:
        claim = "sufficiency not shown."
    if ablate is None:
        tail = "There is no held-out story, so necessity was not tested."
    elif not row["evoked"]:
        tail = "The held-out stories do not make its words likelier, so necessity cannot be judged."
    elif fires == 0 and ablate.effect == 0:
        tail = "It does not fire in the held-out stories, so ablating it changes nothing: necessity not shown."
    else:
        verb = "lowers" if ablate.effect > 0 else "raises"
        tail = (
            f"Ablating it in held-out stories {verb} them by {number(abs(ablate.effect))} nats ({_interval(ablate)}), "
            f"{_against(ablate.above, ablate)}: {'necessary' if ablate.shown else 'necessity not shown'}."
        )
    return f"{head} {claim} {tail}"


def _interval(verdict: Verdict) -> str:
    if not math.isfinite(verdict.low):
        return "too few contexts for an interval"
    # An effect that is stated as a fall has the signs of a fall.
    low, high = (verdict.low, verdict.high) if verdict.effect > 0 else (-verdict.high, -verdict.low)
    return f"95% interval {number(low)} to {number(high)}"


def _against(above: bool, verdict: Verdict) -> str:
    return f"{'more' if above else 'not more'} than all control vectors (corrected p {p_value(verdict.p_adjusted)})"


def _metrics(vector: Family, effect: Float[np.ndarray, "concepts frames"], verdicts: Rows) -> dict[str, float]:
    """Figures over the concepts: shares of verdicts, and the mean effect of a concept's own vector on its words.

    Shares are counts of the studied concepts and have no interval: all verdicts of a study share vectors, contexts and
    a correction. Wilson's interval over concepts covers 0.63 to 0.8 in simulation instead of 0.95.
    """
    metrics: dict[str, float] = {}
    for column in SHARES:
        metrics |= _share(f"share_{column}_{vector}", [row[column] for row in verdicts])
    # Concepts and frames are both samples: frames are common to all concepts.
    mean = t_interval(effect, random_rows=True)
    name = f"effect_{vector}"
    metrics |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high, f"{name}_n": float(mean.n)}
    metrics[f"perplexity_ratio_{vector}"] = float(np.mean([row["perplexity_ratio"] for row in verdicts]))
    return metrics


def _share(name: str, flags: Sequence[bool | None]) -> dict[str, float]:
    """The share of concepts for which something holds, and of how many it could be tested."""
    tested = [each for each in flags if each is not None]
    return {name: float(np.mean(tested)), f"{name}_n": float(len(tested))} if tested else {}

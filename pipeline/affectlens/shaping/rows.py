"""The rows of the tables of ``shape``, from arms side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from affectlens.results import Table
from affectlens.shaping import dynamics, tables
from affectlens.shaping.axes import DISTRESS
from affectlens.shaping.comparison import BASE, READINGS, WORDINGS, Comparison
from affectlens.shaping.held_out import OUTCOMES
from affectlens.shaping.settings import Reading, RulesConfig, Wording
from affectlens.shaping.statistics import NOTHING, Mean, difference, over_clusters, over_families, ratio
from affectlens.shaping.verdicts import Verdict, deviation, spread
from affectlens.shaping.wording import WORD

Rows = list[dict[str, Any]]


def all_rows(
    compared: Comparison, reading: Reading, wording: Wording, rules: RulesConfig
) -> tuple[dict[Table, Rows], list[Verdict]]:
    """Every table, and the verdicts."""
    verdicts = compared.verdicts(reading, wording, rules)
    found: dict[Table, Rows] = {
        tables.VERDICTS: [_verdict(compared, verdict) for verdict in verdicts],
        tables.POINTS: _points(compared, reading, wording),
        tables.CONTROLS: list(_controls(verdicts)),
        tables.STATES: list(_states(compared)),
        tables.AXES: list(_axes(compared)),
        tables.TEXTS: list(_texts(compared)),
        tables.ABILITIES: list(_abilities(compared, verdicts, rules)),
        tables.DYNAMICS: list(_dynamics(compared)),
        tables.REPORTS: list(_reports(compared)),
        tables.CHOICES: list(_choices(compared)),
        tables.ANSWERS: list(_answers(compared)),
    }
    return found, verdicts


def bounds(name: str, mean: Mean, ends: str | None = None) -> dict[str, float]:
    """A figure with the ends of its interval, as :func:`affectlens.results.bounded` declares them."""
    before = f"{name}_" if ends is None else ends
    return {name: mean.value, f"{before}low": mean.low, f"{before}high": mean.high}


def is_control(compared: Comparison, group: str) -> bool:
    """Whether an arm stands there for others to be held against."""
    arm = compared.arms[group][0]
    return arm.twin or arm.kind == "filler"


def _verdict(compared: Comparison, verdict: Verdict) -> dict[str, Any]:
    arms = compared.arms[verdict.arm]
    base = compared.axes[BASE, compared.judged]
    cosines = [compared.axes[arm.name, compared.judged].cosines(base)[DISTRESS] for arm in arms]
    return {
        "arm": verdict.arm, "kind": arms[0].kind, "control": is_control(compared, verdict.arm), "seeds": len(arms),
        "verdict": verdict.word, "why": verdict.why, **bounds("state", verdict.state.base),
        **bounds("moved", verdict.moved), **bounds("text", verdict.text.base),
        **bounds("dissociation", verdict.dissociation), **bounds("gap", verdict.gap),
        "state_p": verdict.state.adjusted, "text_p": verdict.text.adjusted, "state_shown": verdict.state.shown,
        "text_shown": verdict.text.shown, "cosine": min(cosines),
    }  # fmt: skip


def _points(compared: Comparison, reading: Reading, wording: Wording) -> Rows:
    unit, written = spread(compared.cells(BASE, reading, wording))
    base = compared.state(BASE, "bad", reading=reading), compared.text(BASE, "bad", wording)
    found = []
    for group in compared.groups[1:]:
        states, texts = compared.state(group, "bad", reading=reading), compared.text(group, "bad", wording)
        for place, arm in enumerate(compared.arms[group]):
            state = over_families((base[0] - states[[place]]) / unit)
            text = over_families((base[1] - texts[[place]]) / written)
            found.append(
                {
                    "arm": group, "name": arm.name, "kind": arm.kind, "control": is_control(compared, group),
                    "seed": arm.seed, **bounds("state", state), **bounds("text", text),
                }
            )  # fmt: skip
    return found


def _controls(verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    for verdict in verdicts:
        for what, fall in (("state", verdict.state), ("text", verdict.text)):
            for control, mean in fall.against.items():
                row = {"arm": verdict.arm, "control": control, "what": what, "p": mean.above(0)}
                yield {**row, **bounds("fall", mean, "")}


def _states(compared: Comparison) -> Iterator[dict[str, Any]]:
    for layer in compared.layers:
        for axis in compared.axes[BASE, layer].names:
            for reading in READINGS:
                at = {"reading": reading, "layer": layer, "axis": axis}
                bad, good = (compared.state(BASE, outcome, **at) for outcome in OUTCOMES)
                unit = deviation(bad)
                for group in compared.groups[1:]:
                    for basis in ("base", "changed"):
                        own, calm = (
                            compared.state(group, outcome, **at, moved=basis == "changed") for outcome in OUTCOMES
                        )
                        fall = over_families(difference(bad, own) / unit)
                        gap = ratio(own - calm, np.repeat(bad - good, len(own), axis=0))
                        yield {
                            "arm": group, "axis": axis, "basis": basis, "layer": layer, "reading": reading,
                            **bounds("fall", fall, ""), **bounds("gap", gap),
                        }  # fmt: skip


def _axes(compared: Comparison) -> Iterator[dict[str, Any]]:
    for group in compared.groups[1:]:
        for arm in compared.arms[group]:
            for layer in compared.layers:
                cosines = compared.axes[arm.name, layer].cosines(compared.axes[BASE, layer])
                for axis, cosine in cosines.items():
                    yield {"arm": group, "name": arm.name, "axis": axis, "layer": layer, "cosine": cosine}


def _texts(compared: Comparison) -> Iterator[dict[str, Any]]:
    def counted(group: str, outcome: str, measure: str) -> np.ndarray:
        found = []
        for each in compared.of(group):
            rows = [row for row in each.answers if row["measure"] == "answer" and row["outcome"] == outcome]
            own: dict[str, list[float]] = {name: [] for name in compared.card["situations"]}
            for row in rows:
                words = len(WORD.findall(row["text"].lower()))
                own[row["situation"]].append(
                    float(words if measure == "words" else compared.by.lexicon.named(row["text"]))
                )
            found.append(compared.folded(np.array([np.mean(each) for each in own.values()])))
        return np.stack(found)

    for outcome in OUTCOMES:
        for measure in (*WORDINGS, "names an emotion", "words"):
            cells = {
                group: compared.text(group, outcome, measure)
                if measure in ("lexicon", "classifier")
                else counted(group, outcome, measure)
                for group in compared.groups
            }
            for group in compared.groups[1:]:
                mean = over_families(difference(cells[group], cells[BASE]))
                row = {"arm": group, "outcome": outcome, "measure": measure}
                yield {**row, "base": over_families(cells[BASE]).value, **bounds("difference", mean, "")}


def _abilities(compared: Comparison, verdicts: Sequence[Verdict], rules: RulesConfig) -> Iterator[dict[str, Any]]:
    base = compared.harms(BASE)
    for verdict in verdicts:
        for measure, mean in verdict.harms.items():
            own = float(np.nanmean(base[measure]))
            yield {
                "arm": verdict.arm, "measure": measure, "items": mean.clusters,
                "base": own if measure in ("nll", "repetition") else -own, **bounds("worse", mean, ""),
                "margin": rules.margin(measure),
            }  # fmt: skip


def _dynamics(compared: Comparison) -> Iterator[dict[str, Any]]:
    def rows(group: str) -> dict[str, np.ndarray]:
        back = dynamics.returns(compared, group)
        heard = [each.arrays["alarmed"] for each in compared.of(group) if "alarmed" in each.arrays]
        return {
            **{f"alarmed_{outcome}": np.stack(heard)[:, :, place] for place, outcome in enumerate(OUTCOMES) if heard},
            "still_state": dynamics.still_distressed(compared, group),
            "still_words": dynamics.still_in_words(compared, group),
            "back": back.tokens, "back_random": back.random, "pushed": back.pushed,
        }  # fmt: skip

    watched, base = dynamics.returns(compared, BASE).watched, rows(BASE)
    for group in compared.groups:
        for measure, values in rows(group).items():
            mean, less = over_clusters(values), over_clusters(difference(values, base[measure]))
            yield {
                "arm": group, "measure": measure, **bounds("value", mean),
                **bounds("difference", NOTHING if group == BASE else less), "situations": values.shape[1],
                "watched": watched if measure.startswith("back") else None,
            }  # fmt: skip


def _reports(compared: Comparison) -> Iterator[dict[str, Any]]:
    def rating(group: str, outcome: int) -> np.ndarray:
        return np.stack([compared.folded(each.arrays["rating"][:, outcome]) for each in compared.of(group)])

    base = dynamics.report_agreement(compared, BASE)
    for group in compared.groups:
        own, first = dynamics.report_agreement(compared, group), group == BASE
        yield {
            "arm": group, "bad": float(rating(group, 0).mean()), "good": float(rating(group, 1).mean()),
            **bounds("fall", NOTHING if first else over_families(difference(rating(BASE, 0), rating(group, 0)))),
            **bounds("agreement", over_clusters(own)),
            **bounds("difference", NOTHING if first else over_clusters(difference(own, base))),
        }  # fmt: skip


def _choices(compared: Comparison) -> Iterator[dict[str, Any]]:
    asked = [(experiment, condition) for experiment, _, condition in compared.card["choices"]]
    odds = {group: np.stack([each.arrays["choice"] for each in compared.of(group)]) for group in compared.groups}
    for experiment, condition in dict.fromkeys(asked):
        mine = [place for place, each in enumerate(asked) if each == (experiment, condition)]
        for group in compared.groups:
            less = over_clusters(difference(odds[group][:, mine], odds[BASE][:, mine]))
            yield {
                "arm": group, "experiment": experiment, "condition": condition,
                "odds": float(odds[group][:, mine].mean()), "scenarios": len(mine),
                **bounds("difference", NOTHING if group == BASE else less, ""),
            }  # fmt: skip


def _answers(compared: Comparison) -> Iterator[dict[str, Any]]:
    for group in compared.groups:
        for row in compared.of(group)[0].answers:
            if row["sample"] == 0:
                lexicon = compared.by.lexicon.distress_of(row["text"])
                kept = {key: row[key] for key in ("measure", "situation", "outcome", "text")}
                yield {"arm": group, **kept, "lexicon": lexicon}


def metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Falls and dissociation of every arm, and how many arms got which verdict."""
    found: dict[str, float] = {}
    for verdict in verdicts:
        figures = {
            "state": verdict.state.base, "text": verdict.text.base, "dissociation": verdict.dissociation,
            "gap": verdict.gap,
        }  # fmt: skip
        for name, mean in figures.items():
            key = f"{verdict.arm}.{name}"
            values = {key: mean.value, f"{key}_low": mean.low, f"{key}_high": mean.high}
            found |= {name: float(value) for name, value in values.items() if np.isfinite(value)}
    return found

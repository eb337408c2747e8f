"""Measurements with a known truth, in the types that analyses get: no model is needed to plant an effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from affectlens.experiments.conclude.analysis import conclude
from affectlens.experiments.experiment import Experiment, ExperimentConfig
from affectlens.experiments.results import GradedCompletion, Measured
from affectlens.experiments.scenario import Scenario
from affectlens.interventions.conditions import Condition
from affectlens.results.figures import Finding

CONCEPTS = ("afraid", "angry", "calm", "desperate", "happy", "hostile", "loving", "proud", "sad", "tired")
VALENCE = np.array([2.0, 2.5, 7.0, 2.0, 8.5, 2.2, 8.2, 7.5, 2.3, 4.0])
AROUSAL = np.array([7.0, 7.5, 2.0, 6.5, 6.5, 7.0, 5.5, 6.0, 3.5, 2.5])
FAMILIES = ("isotropic", "covariance", "permuted", "wrong_emotion")
"""Controls, in the order in which they are taken in turn."""
WIDTH = 40
FAST: dict[str, Any] = {"draws": 200, "permutations": 199}
"""Settings of an analysis that tell shown from not shown in a fraction of the time."""
FAST_STEERING = {**FAST, "planted": 25}
ORDERS = ("asked_for", "asked_against")
"""Conditions of the positive control."""


def scenario(number: int, group: str, condition: str = "main", **factors: Any) -> Scenario:
    """A scenario of which nothing but its place in the design matters."""
    return Scenario(f"s{number}", group, condition, factors, (), f"text {number}", {}, "", {}, {})


def experiment(scenarios: Sequence[Scenario], analyses: Sequence[Mapping[str, Any]], **values: Any) -> Experiment:
    """An experiment that asks for these analyses."""
    defaults = {"title": "t", "claim": "c", "refuted_by": "r", "readings": [{"name": "answer"}]}
    config = ExperimentConfig.model_validate(defaults | {"analyses": list(analyses)} | values)
    return Experiment("planted", config, tuple(scenarios))


def grid(
    vectors: Sequence[str], strengths: Sequence[float] = (-0.1, -0.05, 0.05, 0.1), controls: int = 21
) -> list[Condition]:
    """No steering, every vector at every strength, the controls at both ends."""
    ends = [end for end in (max(strengths), min(strengths)) if end]
    own = [Condition(vector, "concept", strength) for vector in vectors for strength in strengths]
    random = [Condition(str(i // 4), FAMILIES[i % 4], end) for end in dict.fromkeys(ends) for i in range(controls)]
    return [Condition(), *own, *random]


def manipulation(
    cells: Sequence[Condition], moves: Sequence[str] | None = None, limit: float = 1.0
) -> dict[str, np.ndarray]:
    """Every vector (or those named) moves its own words by 20 nats a norm, controls hardly any; all is coherent."""
    rises, perplexity = np.zeros((len(cells), len(CONCEPTS))), np.full(len(cells), 1.1)
    for index, cell in enumerate(cells):
        if cell.family == "concept":
            moved = 20 * cell.strength if moves is None or cell.vector in moves else 0.01
            rises[index, CONCEPTS.index(cell.vector)] = moved
        elif cell.family != "none":
            rises[index] = 0.1 * np.sign(cell.strength) * (-1) ** int(cell.vector)
        if abs(cell.strength) > limit:
            perplexity[index] = 9.0
    ends = [end for end in (max(c.strength for c in cells), min(c.strength for c in cells)) if end]
    vectors = np.zeros((len(CONCEPTS), len(ends), len(CONCEPTS)))
    for row, concept in enumerate(CONCEPTS):
        for side, end in enumerate(ends):
            # Wrong emotions move words a little, either way.
            vectors[row, side] = 0.3 * np.sign(end) * np.where((np.arange(len(CONCEPTS)) + row) % 2, 1, -1)
            vectors[row, side, row] = 20 * end if moves is None or concept in moves else 0.01
    return {"rises": rises, "perplexity": perplexity, "vectors": vectors}


def measured(
    what: Experiment,
    readings: Mapping[str, np.ndarray] | None = None,
    cells: Sequence[Condition] = (Condition(),),
    seed: int = 0,
    **values: Any,
) -> Measured:
    """Everything that is not given is noise, or harmless."""
    generator = np.random.default_rng(seed)
    count = len(what.scenarios)
    found: dict[str, Any] = {
        "concepts": CONCEPTS,
        "ratings": {"valence": VALENCE, "arousal": AROUSAL},
        "directions": np.linalg.qr(generator.normal(size=(WIDTH, len(CONCEPTS))))[0].T,
        "grid": tuple(cells),
        "manipulation": manipulation(cells),
        "words": generator.normal(size=(count, len(CONCEPTS))),
    }
    noise = {"answer": generator.normal(size=(1, count, len(CONCEPTS)))}
    return Measured(experiment=what, readings=readings or noise, **(found | values))


@dataclass
class Steered:
    """Choices under steering, with a planted slope (nats a unit strength) for every vector.

    Attributes:
        slopes: by vector, in the condition ``main``.
        twin_slopes: by vector, in the condition ``twin``; None leaves the twins out.
        wobble: spread of the controls' slopes.
        emotions: how many times the slopes of wrong emotions are as wide as those of random vectors.
        noise: spread of single scenarios.
        bend: by vector, the coefficient of the squared strength.
        order: half of how much further ahead the target is where it is asked for than where its opposite is; None
            leaves the positive control out.
    """

    slopes: Mapping[str, float]
    twin_slopes: Mapping[str, float] | None = None
    groups: int = 12
    wobble: float = 2.0
    emotions: float = 1.0
    noise: float = 0.2
    bend: Mapping[str, float] = field(default_factory=dict)
    strengths: Sequence[float] = (-0.1, -0.05, 0.05, 0.1)
    controls: int = 21
    order: float | None = 3.0
    irrelevant: float | None = None

    def choices(self, analysis: Mapping[str, Any], seed: int = 0, **values: Any) -> Measured:
        generator = np.random.default_rng(seed)
        conditions = ["main"] if self.twin_slopes is None else ["main", "twin"]
        conditions += ORDERS if self.order is not None else ()
        conditions += ["irrelevant"] if self.irrelevant is not None else []
        rows = [(group, each) for group in range(self.groups) for each in conditions]
        scenarios = [scenario(i, f"g{group:02d}", each) for i, (group, each) in enumerate(rows)]
        cells = grid(list(self.slopes), self.strengths, self.controls)
        choice = np.zeros((len(cells), len(scenarios))) + generator.normal(size=len(scenarios))
        spread = {"wrong_emotion": self.emotions * self.wobble}
        random = {
            (cell.family, cell.vector): generator.normal() * spread.get(cell.family, self.wobble) for cell in cells
        }
        for index, cell in enumerate(cells[1:], start=1):
            for row, (_, condition) in enumerate(rows):
                slopes = self.twin_slopes or {} if condition == "twin" else self.slopes
                slope = slopes.get(cell.vector, 0.0) if cell.family == "concept" else random[cell.family, cell.vector]
                bent = self.bend.get(cell.vector, 0.0) if cell.family == "concept" else 0.0
                effect = slope * cell.strength + bent * cell.strength**2
                choice[index, row] += effect + generator.normal() * self.noise
        sides = np.array([{ORDERS[0]: 1, ORDERS[1]: -1}.get(condition, 0) for _, condition in rows])
        choice += sides * (self.order or 0.0)
        choice += np.array([condition == "irrelevant" for _, condition in rows]) * (self.irrelevant or 0.0)
        what = experiment(scenarios, [analysis], outcomes=[{"kind": "choice", "per_token": False}])
        return measured(what, None, cells, seed, **({"choice": choice} | values))


def completions(
    cells: Sequence[Condition], scenarios: int, label: Any, samples: int = 2, seed: int = 0
) -> tuple[GradedCompletion, ...]:
    """Sampled answers whose grade is ``label(cell, scenario, generator)``."""
    generator = np.random.default_rng(seed)
    found = []
    for index, cell in enumerate(cells):
        for number in range(scenarios):
            for sample in range(samples):
                grade: Any = label(cell, number, generator)
                grade = grade if isinstance(grade, dict) else {"label": grade, "score": None, "reason": ""}
                answer: dict[str, Any] = {
                    "condition": index,
                    "scenario": number,
                    "sample": sample,
                    "text": "text",
                    "loss": 2.0,
                }
                found.append(GradedCompletion(**answer, grade=grade, repetition=0.0))
    return tuple(found)


def run(what: Measured, seed: int = 0) -> Finding:
    """The finding of the one analysis that the experiment asks for."""
    (finding,) = conclude(what, np.random.default_rng(seed))
    assert finding.sentences and all(sentence.endswith(".") for sentence in finding.sentences)
    assert not any("nan" in sentence.split() for sentence in finding.sentences)
    assert all(math.isfinite(value) for value in finding.metrics.values())
    for name, value in finding.metrics.items():
        if f"{name}_low" in finding.metrics and f"{name}_high" in finding.metrics:
            assert finding.metrics[f"{name}_low"] <= value + 1e-9 and value <= finding.metrics[f"{name}_high"] + 1e-9
    for table in finding.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    for chart in finding.charts:
        assert all(len(series.x) == len(series.y) for series in chart.series)
    return finding

"""Badges of writers, monitor, circuits, geometry and experiments in studies in which nothing is there.

Each study is simulated up to the tables of its stage by the stage's own code; the page's rules do the rest.
``pytest -m slow -s`` prints how many badges say more than "not shown", with the upper end of that share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import affectlens.report.render  # noqa: F401 (registers the findings)
import numpy as np
import pytest
from affectlens.corpus.ratings import ratings_path, read_ratings
from affectlens.monitor import figures, trials
from affectlens.probing import geometry
from affectlens.report.evidence import Evidence, Provenance, Row, Rows
from affectlens.report.sentences import conclusions
from monitor_worlds import SETTINGS, World, rows, world
from scipy.stats import beta, binom
from simulated_verdicts import TRIALS
from test_circuits_planted import Planted, judged, several
from test_writers import CONCEPTS, evaluated, planted

LEVEL = 0.05


def badges(
    tables: Mapping[str, Sequence[Row]], metrics: Mapping[str, Any] | None = None, experiments: Sequence[Row] = ()
) -> dict[str, str]:
    """The standing of every finding that these tables give, by its name."""
    evidence = Evidence(
        "m", 2, 32, tuple(f"concept {index}" for index in range(CONCEPTS)), (),
        {name: Rows(each) for name, each in tables.items()}, metrics or {}, {}, Provenance({}, [], {}, {}),
        experiments=experiments,
    )  # fmt: skip
    return {each.name: each.standing for each in conclusions(evidence)}


def at_most_one_in_twenty(name: str, studies: int, badge: Callable[[int], str]) -> None:
    """Print the share of studies with a false badge, and its upper end; refuse more than 5% give once in a hundred."""
    false = [seed for seed in range(studies) if badge(seed) != "not shown"]
    upper = float(beta.ppf(0.95, len(false) + 1, studies - len(false)))
    print(f"{name}: {len(false)} of {studies}, at most {upper:.3f} with 95% confidence")
    assert len(false) <= binom.ppf(0.99, studies, LEVEL), false


def of_writers(seed: int, signal: float) -> str:
    found = evaluated(planted(seed, signal=signal))
    return badges({"writers/methods": found.methods, "writers/transfer": found.transfer})["beyond_the_writer"]


def of_monitor(seed: int, kind: World) -> str:
    risk, benign = world(kind, seed)
    generator = np.random.default_rng(seed)
    trial = trials.run(risk, benign, rows(generator), SETTINGS, generator)
    found = figures.evaluate(
        "world", trial, risk.drawn, SETTINGS, lambda name: np.random.default_rng([seed, len(name)])
    )
    tables = {name: [{"folder": "world", **row} for row in each] for name, each in found.items()}
    return badges({f"monitor/{name}": each for name, each in tables.items()})["warning"]


def of_geometry(seed: int, signal: float) -> str:
    ratings = read_ratings(ratings_path("embedded"))
    names, generator = sorted(ratings)[::7][:24], np.random.default_rng(seed)
    kept = {name: ratings[name] for name in names}
    axes = np.array([[kept[name]["valence"], kept[name]["arousal"]] for name in names], dtype=float)
    axes = (axes - axes.mean(axis=0)) / axes.std(axis=0)
    vectors = generator.normal(size=(len(names), 32))
    vectors[:, :2] += signal * axes * (2.0, 1.0)
    coordinates, _ = geometry.principal_components(vectors, 2)
    space: Any = SimpleNamespace(
        corpus=SimpleNamespace(emotions=tuple(names)), ratings=kept, lengths=generator.normal(size=len(names)),
        config=SimpleNamespace(permutations=199), generator=lambda name: np.random.default_rng([seed, len(name)]),
    )  # fmt: skip
    found = geometry.correlations(space, coordinates)
    told: dict[str, float] = {}
    for row in found:
        name = f"r_component_{row['component']}_{row['rating']}"
        told |= {name: row["r"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    tables = {"geometry/correlations": [{"source": "directions", **row} for row in found]}
    return badges(tables, {"geometry": told})["axes"]


DESIGNS = [
    trial
    for trial in TRIALS
    if not trial.power
    and trial.verdict in ("trajectory", "level_sensitivity", "persistence", "accuracy", "concept_identification")
]
"""Null designs of analyses; a study has one analysis of each."""


def of_experiments(verdicts: Sequence[bool], **more: Any) -> str:
    told = [
        {"verdict": "shown" if each else "not shown", "sentences": ["It is so."], "metrics": {}} for each in verdicts
    ]
    row = {"name": "e", "title": "E", "claim": "", "refuted_by": "", "source": "", "findings": told, **more}
    return badges({}, experiments=[row])["behaviour"]


def test_a_count_of_analyses_is_held_against_chance_and_a_confirmatory_test_decides() -> None:
    assert of_experiments([True]) == "shown"
    assert of_experiments([True, False]) == "not shown", "one of two at 5% each has p = 0.0975"
    assert of_experiments([True, True, False]) == "partly shown"
    marked = {"confirmatory": [True, False, False], "alpha": [0.05] * 3}
    assert of_experiments([True, False, False], **marked, p_study=[0.01, None, None]) == "partly shown"
    assert of_experiments([True, True, True], **marked, p_study=[0.2, None, None]) == "not shown"
    assert of_experiments([False, True, True], **marked, p_study=[1.0, None, None]) == "not shown"


@pytest.mark.slow
def test_null_studies_of_writers() -> None:
    assert of_writers(0, 1.0) == "shown"
    at_most_one_in_twenty("writers", 60, lambda seed: of_writers(seed, 0.0))


@pytest.mark.slow
def test_null_studies_of_the_monitor() -> None:
    """What the act follows from is nothing, the length, the prompt or the topic: no state warns before it."""
    assert of_monitor(0, "state") == "shown"
    kinds: tuple[World, ...] = ("nothing", "length", "prompt", "topic")
    at_most_one_in_twenty("monitor", 40, lambda seed: of_monitor(seed, kinds[seed % len(kinds)]))


@pytest.mark.slow
def test_null_studies_of_circuits(tmp_path: Path) -> None:
    """A model whose heads do carry what is said, and stories whose labels are shuffled within their topics."""

    def plant(model: Planted) -> None:
        for at in range(4):
            model.head(at, 3 + at, source=(at,), target=(8 + at,))

    bench = several(tmp_path, plant)

    def seen(seed: int | None) -> str:
        shown = bench if seed is None else bench.shuffled(seed)
        return badges({"circuits/verdicts": judged(shown, tmp_path).verdict_rows()})["circuit_of_heads"]

    assert seen(None) == "shown"
    at_most_one_in_twenty("circuits", 30, seen)


@pytest.mark.slow
def test_null_studies_of_geometry() -> None:
    assert of_geometry(0, 3.0) == "shown"
    at_most_one_in_twenty("geometry", 400, lambda seed: of_geometry(seed, 0.0))


@pytest.mark.slow
def test_null_studies_of_experiments() -> None:
    assert len(DESIGNS) >= 5
    at_most_one_in_twenty("experiments", 60, lambda seed: of_experiments([design.shown(seed) for design in DESIGNS]))

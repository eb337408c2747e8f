"""Preferences: strengths from comparisons, their correlations with readings, and what steering does to them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affectlens.errors import UserError
from affectlens.experiments.conclude.bradley_terry import ELO, BradleyTerry, Strengths, shares
from affectlens.experiments.conclude.preference import Preference, print_table
from affectlens.experiments.conclude.preference_table import Related, correlate, extreme, read_scores
from affectlens.experiments.results import Measured
from synthetic_measurements import CONCEPTS, VALENCE, experiment, grid, manipulation, measured, run, scenario


def odds(strengths: np.ndarray, position: float = 0.0) -> np.ndarray:
    found = strengths[:, None] - strengths[None, :] + position
    np.fill_diagonal(found, np.nan)
    return found


def fit(log_odds: np.ndarray, tie: float = 0.0) -> Strengths:
    return BradleyTerry(shares(log_odds, tie)).fit()


def correlations(*columns: Any, **values: Any) -> Related:
    given: Any = (*columns, Preference(reading="x"))
    return correlate(*given, **values)


class TestBradleyTerry:
    def test_planted_strengths_and_position_come_back(self) -> None:
        strengths = np.linspace(-1.5, 1.5, 12)
        found = fit(odds(strengths, 0.7))
        assert found.items == pytest.approx(strengths, abs=2e-3)
        assert found.position == pytest.approx(0.7, abs=2e-3)
        assert found.elo[0] == pytest.approx(-1.5 * 400 / math.log(10), abs=0.5)

    def test_the_fit_is_where_the_penalised_likelihood_is_largest(self) -> None:
        generator = np.random.default_rng(0)
        won = shares(generator.normal(size=(5, 5)), 0.4)
        model = BradleyTerry(won, ridge=0.5)
        found = model.fit()
        x = found.items[:, None] - found.items[None, :] + found.position
        residual = np.nan_to_num(won - 1 / (1 + np.exp(-x)))
        slope = residual.sum(axis=1) - residual.sum(axis=0)
        assert slope == pytest.approx(0.5 * found.items, abs=1e-5)
        assert residual.sum() == pytest.approx(0.5 * found.position, abs=1e-5)

    def test_bootstrap_draws_pairs(self) -> None:
        generator = np.random.default_rng(0)
        strengths = np.linspace(-1, 1, 10)
        items, position = BradleyTerry(shares(odds(strengths, 0.3) + generator.normal(size=(10, 10)), 0)).bootstrap(
            60, generator
        )
        assert items.mean(axis=0) == pytest.approx(strengths, abs=0.6)
        assert (items.std(axis=0) > 0.05).all() and position.mean() == pytest.approx(0.3, abs=0.3)

    def test_everything_tied_and_everything_won(self) -> None:
        assert fit(np.zeros((4, 4)), 0.1).items == pytest.approx(np.zeros(4), abs=1e-6)
        ladder = fit(odds(np.array([200.0, 0.0, -200.0])), 0.1)
        assert np.isfinite(ladder.items).all() and (np.diff(ladder.items) < 0).all()

    def test_pairs_that_were_never_compared(self) -> None:
        table = odds(np.array([1.0, 0.0, -1.0, 0.5]))
        table[0, 1] = table[2, 3] = np.nan
        assert fit(table).items == pytest.approx(np.array([1.0, 0.0, -1.0, 0.5]) - 0.125, abs=5e-3)


class TestCorrelations:
    def test_known_values_to_two_digits(self, tmp_path: Path) -> None:
        """Worked by hand: two categories of three items; scores 1, 2, 3 and 11, 12, 13.

        The reading happy is 1, 3, 2 and 9, 10, 8. Within categories its deviations are -1, 1, 0 and 0, 1, -1, those of
        the scores -1, 0, 1 twice: their products sum to 1 - 1 = 0. Over all items the products of the deviations sum to
        105, the squares to 154 and 77.5: r 0.96.
        """
        path = tmp_path / "scores.csv"
        rows = ["a,x,1,1,1", "b,x,2,3,2", "c,x,3,2,4", "d,y,11,9,1", "e,y,12,10,2", "f,y,13,8,4"]
        path.write_text("item,category,elo,happy,calm\n" + "\n".join(rows) + "\n")
        found = correlations(*read_scores(path))
        assert found.raw.estimates[0].value == pytest.approx(0.96, abs=0.005)
        assert found.within.estimates[0].value == pytest.approx(0.0, abs=0.005)
        # The same within both categories: 1, 2, 4 on 1, 2, 3 is r 0.98; over all items the category shift dilutes it.
        assert found.within.estimates[1].value == pytest.approx(0.98, abs=0.005)
        assert found.raw.estimates[1].value == pytest.approx(0.16, abs=0.005)

    def test_the_same_as_numpy_does(self) -> None:
        generator = np.random.default_rng(0)
        kinds = np.repeat(["a", "b", "c", "d", "harm"], 8)
        shift = np.repeat([0.0, 0.1, -0.1, 0.0, -4.0], 8)
        elo, happy = generator.normal(size=40) + shift, generator.normal(size=40) + shift
        found = correlations(kinds.tolist(), kinds.tolist(), elo, {"happy": happy}, leave_out=["harm"])
        assert found.raw.estimates[0].value == pytest.approx(np.corrcoef(elo, happy)[0, 1])
        kept = kinds != "harm"
        assert found.free.estimates[0].value == pytest.approx(np.corrcoef(elo[kept], happy[kept])[0, 1])
        means = {kind: (elo[kinds == kind].mean(), happy[kinds == kind].mean()) for kind in kinds}
        a, b = (
            np.array([value - means[kind][i] for value, kind in zip(side, kinds, strict=True)])
            for i, side in enumerate((elo, happy))
        )
        assert found.within.estimates[0].value == pytest.approx(np.corrcoef(a, b)[0, 1])
        assert found.raw.estimates[0].value > 0.6 > abs(found.within.estimates[0].value)

    def test_intervals_cover(self) -> None:
        """Within categories the interval must know of the means that were taken off."""
        covered = 0
        for seed in range(400):
            generator = np.random.default_rng(seed)
            kinds = np.repeat(list("abcd"), 4)
            elo = generator.normal(size=16)
            reading = 0.5 * elo + math.sqrt(0.75) * generator.normal(size=16) + 5 * np.repeat(np.arange(4), 4)
            (each,) = correlations(kinds.tolist(), kinds.tolist(), elo, {"x": reading}).within.estimates
            covered += each.low <= 0.5 <= each.high
        assert 0.92 <= covered / 400 <= 0.98

    def test_p_within_keeps_categories_apart(self) -> None:
        """Readings that only tell categories apart are significant raw, not within."""
        generator = np.random.default_rng(1)
        kinds, shift = np.repeat(list("abcd"), 10), np.repeat([0.0, 5.0, 10.0, 15.0], 10)
        elo, reading = shift + generator.normal(size=40), shift + generator.normal(size=40)
        found = correlations(kinds.tolist(), kinds.tolist(), elo, {"x": reading}, rng=generator)
        assert found.adjusted("raw")[0] < 0.001 and found.adjusted("within")[0] > 0.05

    def test_extreme_categories_are_found(self) -> None:
        kinds = np.repeat(["a", "b", "c", "harm", "gore"], 4)
        assert set(extreme(kinds, np.repeat([1.0, 2.0, 1.5, -9.0, -8.0], 4))) == {"harm", "gore"}
        assert extreme(np.array(["a", "b", "c"]), np.arange(3.0)) == ()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("item,category,happy\na,x,1\n", "`elo`"),
            ("item,category,elo\na,x,1\n", "reading"),
            ("item,category,elo,happy\na,x,one,1\n", "`elo` is not a number"),
            ("item,category,elo,happy\n", "any row"),
        ],
    )
    def test_tables_that_cannot_be_read(self, tmp_path: Path, text: str, said: str) -> None:
        path = tmp_path / "scores.csv"
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_scores(path)

    def test_missing_values_are_named(self) -> None:
        with pytest.raises(UserError, match="`b` lacks"):
            correlations(["a", "b"], ["x", "x"], np.array([1.0, np.nan]), {"happy": np.ones(2)})
        with pytest.raises(UserError, match="`nothing`"):
            correlations(["a", "b"], ["x", "x"], np.ones(2), {"happy": np.ones(2)}, leave_out=["nothing"])

    def test_the_table_is_printed(self, tmp_path: Path, capsys) -> None:
        path, generator = tmp_path / "scores.csv", np.random.default_rng(0)
        rows = [f"i{i},{'ab'[i % 2]},{i},{i + 0.1 * generator.normal()}" for i in range(12)]
        path.write_text("item,category,elo,happy\n" + "\n".join(rows) + "\n")
        print_table(path, ())
        printed = capsys.readouterr().out
        assert "happy" in printed and "1.00 [" in printed


def liking(signal: float, steering: float = 0.0, seed: int = 0, strengths=(-0.1, 0.1), **asked) -> Measured:
    """Items whose appeal is read with the sign of each concept's valence; steering lifts the steered half."""
    generator = np.random.default_rng(seed)
    count, kinds = 32, np.repeat(["help", "rest", "chore", "harm"], 8)
    names = [replace(scenario(i, f"i{i}", category=str(kinds[i])), text=f"item {i}") for i in range(count)]
    appeal = generator.normal(size=count) * 0.7
    level = np.repeat([0.5, 0.3, -0.3, -3.0], 8)
    sign = np.sign(VALENCE - np.median(VALENCE))
    readings = (
        signal * appeal[:, None] * sign + 2 * level[:, None] * sign + generator.normal(size=(count, len(CONCEPTS)))
    )
    cells = grid(["happy", "hostile"], strengths)
    steered = np.arange(count) % 2 == 0
    tables = []
    for cell in cells:
        push = steering * cell.strength * {"happy": 1, "hostile": -1}.get(cell.vector, 0)
        push += generator.normal() * 0.02 * (cell.family not in ("none", "concept"))
        noise = 0.05 * generator.normal(size=(count, count)) + 0.02 * generator.normal(size=count)[:, None]
        tables.append(odds(appeal + level + push * steered, 0.5) + noise)
    pairwise = {"kind": "pairwise", "question": "{a} or {b}?", "steered": 16}
    what = experiment(
        names,
        [{"kind": "preference", "reading": "answer", "leave_out": ["harm"], "fits": 40} | asked],
        outcomes=[pairwise],
    )
    return measured(
        what,
        {"answer": readings[None]},
        cells,
        comparisons=np.array(tables),
        compared=tuple(range(len(cells))),
        steered=steered,
    )


class TestPreference:
    def test_planted_preferences(self) -> None:
        finding = run(liking(2.0, steering=5.0))
        assert finding.verdict == "shown"
        assert finding.metrics["r_within_happy"] > 0.5 > -0.5 > finding.metrics["r_within_hostile"]
        assert finding.metrics["position_bias_elo"] == pytest.approx(0.5 * ELO, rel=0.1)
        assert finding.metrics["elo_happy"] == pytest.approx(0.5 * ELO, rel=0.1)
        assert finding.metrics["elo_hostile"] == pytest.approx(-0.5 * ELO, rel=0.1)

    def test_what_only_categories_differ_in_is_not_shown(self) -> None:
        finding = run(liking(0.0, steering=5.0))
        assert finding.metrics["r_raw_happy"] > 0.5
        assert abs(finding.metrics["within_aligned"]) < 0.3
        assert finding.verdict != "shown"

    def test_readings_that_go_with_it_but_steering_that_does_nothing(self) -> None:
        finding = run(liking(2.0, steering=0.0))
        assert finding.metrics["within_aligned_low"] > 0
        assert finding.verdict == "not shown"

    def test_nothing_planted_nothing_shown(self) -> None:
        draws = []
        for seed in range(40):
            seen = liking(0.0, seed=seed, fits=5, draws=200)
            assert seen.comparisons is not None
            draws.append(run(replace(seen, comparisons=seen.comparisons[:1], compared=(0,)), seed))
        assert sum(finding.verdict == "shown" for finding in draws) <= 2

    def test_a_failed_check_and_no_steering(self) -> None:
        seen = liking(2.0, steering=5.0)
        failed = replace(seen, manipulation=manipulation(seen.grid, moves=()))
        assert run(failed).verdict == "untestable"
        assert seen.comparisons is not None
        plain = run(replace(seen, comparisons=seen.comparisons[:1], compared=(0,)))
        assert plain.verdict == "shown"

    def test_nothing_to_go_by(self) -> None:
        seen = liking(2.0)
        assert run(replace(seen, comparisons=None)).verdict == "untestable"
        gone = {"answer": np.full_like(seen.readings["answer"], np.nan)}
        assert run(replace(seen, readings=gone)).verdict == "untestable"
        still = {"answer": np.zeros_like(seen.readings["answer"])}
        assert run(replace(seen, readings=still)).verdict == "untestable"

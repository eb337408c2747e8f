"""The judge keeps its level when a claim is like its controls, and finds the effect that was planted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from affectlens.interventions.judge import Claim, Rules, judge

RANDOM = ("isotropic", "covariance", "permuted")


def study(
    generator: np.random.Generator,
    *,
    claims: int,
    controls: int,
    strength: float = 1.0,
    wrong: bool = False,
    planted: float = 0.0,
    own_outcome: bool = True,
) -> list[Claim]:
    """Claims whose vectors are ``strength`` times as strong as the random controls.

    Every vector has an effect on every claim's outcome, and every group adds noise of its own. ``wrong`` makes the
    vectors of the other claims a family of controls. ``own_outcome`` measures the controls of each claim anew.
    """
    outcomes = generator.normal(size=(claims, claims)) * strength + planted * np.eye(claims)
    shared = {name: generator.normal(size=controls) for name in RANDOM}
    found = []
    for index in range(claims):
        families = {name: generator.normal(size=controls) for name in RANDOM} if own_outcome else dict(shared)
        if wrong:
            families["wrong_emotion"] = np.delete(outcomes[:, index], index)
        effect = outcomes[index, index] + 0.3 * centred(generator.normal(size=12))
        found.append(Claim(str(index), effect, families))
    return found


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


@pytest.mark.parametrize(
    ("strength", "wrong"), [(1.0, False), (1.0, True), (2.0, True), (3.0, True)], ids=lambda value: str(value)
)
def test_claims_like_one_of_their_families_are_shown_at_most_as_often_as_the_level_says(
    strength: float, wrong: bool
) -> None:
    generator, rules = np.random.default_rng(0), Rules(correction="benjamini_hochberg")
    studies = [study(generator, claims=24, controls=20, strength=strength, wrong=wrong) for _ in range(100)]
    verdicts = [judge(claims, rules, pool=True) for claims in studies]
    p = np.array([[verdict.p for verdict in found] for found in verdicts])
    assert (p <= 0.05).mean() <= 0.055
    # The corrected error rate is that of a study: binomial error of 100 studies at 5% is 2.2 points.
    assert np.mean([any(verdict.shown for verdict in found) for found in verdicts]) <= 0.05 + 2 * 0.022


def test_random_controls_alone_would_show_vectors_that_are_twice_as_strong() -> None:
    """Why wrong emotions are among the families: without them the level is missed by far."""
    generator, rules = np.random.default_rng(0), Rules(correction="benjamini_hochberg")
    p = [
        verdict.p
        for _ in range(40)
        for verdict in judge(study(generator, claims=24, controls=20, strength=2.0), rules, pool=True)
    ]
    assert np.mean(np.array(p) <= 0.05) > 0.12


@pytest.mark.parametrize("claims", [1, 3])
@pytest.mark.parametrize("symmetric", [False, True])
def test_few_claims_with_shared_controls_keep_the_level(claims: int, symmetric: bool) -> None:
    """The experiments' design: Holm over a few claims, one set of controls, no pooling."""
    generator, shown = np.random.default_rng(1), []
    for _ in range(400):
        drawn = study(generator, claims=claims, controls=20, own_outcome=False)
        drawn = [dataclasses.replace(claim, symmetric=symmetric) for claim in drawn]
        shown.append(any(verdict.shown for verdict in judge(drawn, Rules())))
    assert np.mean(shown) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)
    # Cautious, because it is the largest p over three small families that are alike.
    assert np.mean(shown) > 0.002


def test_a_planted_effect_is_shown_and_its_neighbours_are_not() -> None:
    generator = np.random.default_rng(2)
    claims = study(generator, claims=24, controls=20, strength=1.5, wrong=True)
    claims[5] = dataclasses.replace(claims[5], effect=claims[5].effect + 12)
    verdicts = judge(claims, Rules(correction="benjamini_hochberg"), pool=True)
    assert [verdict.name for verdict in verdicts if verdict.shown] == ["5"]
    assert verdicts[5].above
    assert verdicts[5].low > 0
    assert verdicts[5].reason == "beyond controls"
    assert verdicts[5].family == max(verdicts[5].family_p, key=lambda name: verdicts[5].family_p[name])


def test_the_hardest_family_decides() -> None:
    generator = np.random.default_rng(3)
    weak, strong = generator.normal(size=60), 10 * generator.normal(size=60)
    effect = np.full(6, 5.0) + 0.1 * centred(generator.normal(size=6))
    (alone,) = judge([Claim("sad", effect, {"isotropic": weak})], Rules())
    (both,) = judge([Claim("sad", effect, {"isotropic": weak, "wrong_emotion": strong})], Rules())
    assert alone.shown
    assert not both.shown
    assert both.family == "wrong_emotion"
    assert both.family_p["isotropic"] == alone.p == alone.floor == 1 / 61


def test_the_side_that_is_claimed_is_tested() -> None:
    generator = np.random.default_rng(4)
    controls = {"isotropic": generator.normal(size=40)}
    effect = -6 + 0.1 * generator.normal(size=8)
    up = Claim("calm", effect, controls)
    (raised,), (lowered,) = judge([up], Rules()), judge([dataclasses.replace(up, side=-1)], Rules())
    assert (raised.outcome, lowered.outcome) == ("not shown", "shown")
    assert lowered.effect == pytest.approx(-effect.mean())
    mirrored = {"isotropic": -controls["isotropic"]}
    (turned,) = judge([Claim("calm", -effect, mirrored)], Rules())
    assert turned.p == lowered.p
    assert turned.threshold == pytest.approx(lowered.threshold)


def test_units_do_not_matter() -> None:
    generator = np.random.default_rng(5)
    claims = study(generator, claims=6, controls=20, wrong=True)
    scaled = [
        dataclasses.replace(
            claim, effect=claim.effect * 7, controls={name: values * 7 for name, values in claim.controls.items()}
        )
        for claim in claims
    ]
    for first, second in zip(judge(claims, Rules(), pool=True), judge(scaled, Rules(), pool=True), strict=True):
        assert first.p == second.p
        assert second.threshold == pytest.approx(7 * first.threshold)


def test_the_threshold_is_where_the_verdict_turns() -> None:
    generator = np.random.default_rng(6)
    claims = study(generator, claims=3, controls=30, own_outcome=False)
    null = [dataclasses.replace(claim, effect=np.full(5, -9.0)) for claim in claims]
    edge = judge(null, Rules())[0].threshold
    for shift, shown in ((-1e-6, False), (1e-6, True)):
        trial = [dataclasses.replace(null[0], effect=np.full(5, edge + shift)), *null[1:]]
        assert judge(trial, Rules())[0].shown is shown


def test_the_power_is_how_often_a_planted_effect_is_shown() -> None:
    generator = np.random.default_rng(7)
    claim = study(generator, claims=1, controls=20)[0]
    size, shown = 3.0, []
    stated = []
    for _ in range(400):
        drawn = size + generator.normal(size=12) * 2
        (verdict,) = judge([dataclasses.replace(claim, effect=drawn)], Rules())
        shown.append(verdict.shown)
        stated.append(verdict.power(size))
    assert np.mean(stated) == pytest.approx(np.mean(shown), abs=0.06)


def test_what_is_not_shown_is_excluded_or_untestable() -> None:
    generator = np.random.default_rng(8)
    controls = {name: 0.1 * generator.normal(size=20) for name in RANDOM}
    precise = Claim("sad", 0.01 * generator.normal(size=12), controls)
    (excluded,) = judge([precise], Rules(matters=0.5))
    assert (excluded.outcome, excluded.reason) == ("not shown", "effect that matters excluded")
    noisy = dataclasses.replace(precise, effect=centred(3 * generator.normal(size=12)))
    (weak,) = judge([noisy], Rules(matters=0.5))
    assert (weak.outcome, weak.reason) == ("untestable", "too little power")
    (asked,) = judge([noisy], Rules())
    assert asked.outcome == "not shown"


@pytest.mark.parametrize(
    ("change", "rules", "reason"),
    [
        ({"effect": np.full(6, np.nan)}, Rules(), "not measured"),
        ({"controls": {}}, Rules(), "too few controls"),
        ({"controls": {"isotropic": np.arange(10.0)}}, Rules(), "too few controls"),
        ({"groups": np.zeros(6)}, Rules(), "too few groups"),
        ({"effect": np.full(6, 99.0)}, Rules(least_groups=7), "too few groups"),
        ({"effect": np.full(6, 99.0), "perplexity": 1.6}, Rules(), "incoherent text"),
        ({"effect": np.full(6, 99.0), "perplexity": np.nan}, Rules(), "incoherent text"),
    ],
)
def test_what_cannot_be_tested_is_called_so(change: dict, rules: Rules, reason: str) -> None:
    generator = np.random.default_rng(9)
    claim = Claim("sad", generator.normal(size=6), {"isotropic": generator.normal(size=40)})
    (verdict,) = judge([dataclasses.replace(claim, **change)], rules)
    assert (verdict.outcome, verdict.reason) == ("untestable", reason)


def test_vectors_and_controls_that_do_nothing_show_nothing() -> None:
    claims = [Claim(str(index), np.zeros(4), {"isotropic": np.zeros(20)}) for index in range(3)]
    for verdict in judge(claims, Rules(), pool=True):
        assert verdict.p == 1
        assert not verdict.above
        assert not verdict.shown


def test_groups_count_alike_whatever_their_size() -> None:
    generator = np.random.default_rng(10)
    effect, groups = np.array([1.0, 1.0, 1.0, 1.0, 3.0, 8.0]), np.array(["a", "a", "a", "a", "b", "c"])
    (verdict,) = judge([Claim("sad", effect, {"isotropic": generator.normal(size=40)}, groups)], Rules())
    assert verdict.effect == pytest.approx(4.0)
    assert verdict.groups == 3
    # t with 2 degrees of freedom: 4.303 standard errors.
    assert verdict.high - verdict.effect == pytest.approx(4.303 * np.std([1, 3, 8], ddof=1) / np.sqrt(3), rel=1e-3)


def test_families_of_one_or_two_are_joined() -> None:
    generator = np.random.default_rng(11)
    few = {name: generator.normal(size=2) for name in RANDOM}
    (verdict,) = judge([Claim("sad", generator.normal(size=6), few)], Rules(least_controls=6, level=0.2))
    assert set(verdict.family_p) == {"others"}
    assert verdict.floor == 1 / 7
    assert verdict.controls == 6

"""Whose emotion a reading follows, and how long it lasts after its cause."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Figures
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series, Verdict
from affectlens.stats import Estimate, holm, permutation_p, permuted_labels

TEMPLATE = """
At {{ first }} the emotion's own concept reads {{ whole.excess[0]|measured("sd") }} above where other emotions put it.
Shuffled emotions give that excess with {{ whole.p|p(whole.floor) }}.
{% if whole.fall is not none %}
By {{ last }} it has fallen by {{ whole.fall|measured("sd") }},
  {{ whole.p_fall|p }}{{ "" if fades else ": it is not shown to fade" }}.
{% if whole.decay.value is infinite %}
It does not decay over these places.
{% elif whole.decay.value is nan %}
No length of decay can be given.
{% else %}
1/e of it is left after {{ whole.decay.value|number }} places,
  between {{ whole.decay.low|number }} and
  {{ "any number" if whole.decay.high is infinite else whole.decay.high|number }}.
{% endif %}
{% endif %}
The words alone read {{ words|measured("sd") }} at {{ first }}.
{% for h in holders %}
Of {{ h.who }} the excess is {{ h.excess[0]|measured("sd") }}, {{ h.adjusted|p }} after correction.
{% endfor %}
{% for c in contrasts %}
That of {{ c.first }} less that of {{ c.second }} is {{ c.excess[0]|measured("sd") }}.
{% endfor %}
With {{ whole.excess[0].n|plural("group") }} an excess of {{ whole.smallest|number }} sd would be found with
  {{ power|percent }} power.
"""


@dataclass(frozen=True)
class Holder:
    """Readings of one holder of emotions.

    Attributes:
        who: the holder, or ``all``.
        excess: at each place, how far the emotion's own concept reads above where other scenarios put it.
        p: of the excess at the first place, under shuffled emotions, and ``floor``, the least it can be.
        fall: from the first place to the last; None where there is one place.
        p_fall: of it, two-sided, from the bootstrap.
        decay: places until 1 / e is left; infinite where it does not fall.
        smallest: excess that would be found with the power asked for.
    """

    who: str
    excess: tuple[Estimate, ...]
    p: float
    floor: float
    fall: Estimate | None
    p_fall: float
    decay: Estimate
    smallest: float


@analysis("persistence", formerly="course")
class Persistence(Analysis):
    """Whose emotion a reading follows, and how long it lasts after its cause."""

    factor: str = "emotion"
    """The factor that holds the concept."""
    who: str = "who"
    """The factor that tells whose emotion it is: self, other, character, frame, ..."""
    readings: tuple[str, ...] = Field(min_length=1)
    """From the cause on, in the order of the text."""
    matters: float = Field(default=1.0, ge=0)
    """Excess at the cause, in standard deviations over scenarios."""

    def needs(self) -> Needs:
        return Needs(readings=self.readings, factors={"factor": self.factor, "who": self.who})

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Own excess by holder and by distance from the cause, against shuffled emotions."""
        rows, target = selection.intended(measured, self.factor, selection.main_rows(measured))
        places = np.stack([selection.reading(measured, name) for name in self.readings])
        whole = np.isfinite(places[0, rows]).all(axis=1)
        rows, target = rows[whole], target[whole]
        groups = selection.groups(measured, rows)
        concepts, target = np.unique(target, return_inverse=True)
        if len(concepts) < 2 or len(np.unique(groups)) < 2:
            few = f"{len(rows)} scenarios with a reading at {self.readings[0]}"
            return self.untestable(f"{few} name too few emotions in too few groups; two of each are the least")
        values = in_own_spread(places[:, rows][:, :, concepts])
        words = in_own_spread(np.nan_to_num(np.asarray(measured.words, dtype=float))[None, rows][:, :, concepts])
        who = np.array([str(value) for value in selection.factor(measured, self.who, rows)])
        chosen = {"all": np.ones(len(rows), dtype=bool)}
        if len(set(who)) > 1:
            each = {name: who == name for name in dict.fromkeys(who.tolist())}
            chosen |= {name: own for name, own in each.items() if len(np.unique(target[own])) > 1}
        # One set of draws for all holders, so that they can be compared; a group without a holder's rows adds nothing.
        sums = {name: excess_sums(values, target, groups, own) for name, own in chosen.items()}
        drawn = np.random.default_rng(rng.integers(2**63))
        seeds = drawn.bit_generator.state
        boot = {}
        for name in chosen:
            drawn.bit_generator.state = seeds
            boot[name] = estimators.bootstrap(
                sums[name][0], lambda counts, own=sums[name]: mean_excess(own, counts), self, drawn
            )
        units = {name: len(np.unique(groups[own])) for name, own in chosen.items()}
        holders = []
        for name, own in chosen.items():
            point, draws = boot[name]
            holders.append(self._holder(name, point, draws, units[name], values[0, own], target[own], groups[own], rng))
        contrasts = [
            {"first": a, "second": b, "excess": tuple(
                estimators.interval(x - y, s - t, min(units[a], units[b]), self)
                for x, y, s, t in zip(boot[a][0], boot[b][0], boot[a][1].T, boot[b][1].T, strict=True)
            )}
            for a, b in combinations([name for name in chosen if name != "all"], 2)
        ]  # fmt: skip
        by_words = excess_sums(words, target, groups, chosen["all"])
        point, columns = estimators.bootstrap(by_words[0], lambda counts: mean_excess(by_words, counts), self, rng)
        return self._finding(holders, contrasts, estimators.interval(point[0], columns[:, 0], units["all"], self))

    def _holder(
        self,
        who: str,
        point: Float[np.ndarray, " places"],
        drawn: Float[np.ndarray, "draws places"],
        units: int,
        values: Float[np.ndarray, "rows concepts"],
        target: Int[np.ndarray, " rows"],
        groups: Shaped[np.ndarray, " rows"],
        rng: np.random.Generator,
    ) -> Holder:
        excess = tuple(
            estimators.interval(value, column, units, self) for value, column in zip(point, drawn.T, strict=True)
        )
        totals, null = values.sum(axis=0), np.empty(self.permutations)
        for draw, shuffled in enumerate(permuted_labels(target, groups, self.permutations, rng)):
            counts = np.bincount(shuffled, minlength=values.shape[1])
            own = np.bincount(shuffled, weights=values[np.arange(len(target)), shuffled], minlength=values.shape[1])
            rest = np.maximum(len(target) - counts, 1)
            null[draw] = (own - counts * (totals - own) / rest).sum() / len(target)
        p, floor = permutation_p(float(point[0]), null)
        fall, p_fall = None, math.nan
        if len(point) > 1:
            change = drawn[:, 0] - drawn[:, -1]
            fall = estimators.interval(point[0] - point[-1], change, units, self)
            p_fall = min(1.0, 2 * (np.count_nonzero(~(change > 0)) + 1) / (len(change) + 1))
        # Where nothing is shown to be there, there is nothing that could decay.
        decay = self._decay(point, drawn, units) if excess[0].low > 0 else estimators.undefined(units)
        return Holder(who, excess, float(p), floor, fall, p_fall, decay, estimators.smallest_of(excess[0], self))

    def _decay(
        self, point: Float[np.ndarray, " places"], drawn: Float[np.ndarray, "draws places"], units: int
    ) -> Estimate:
        """Places until 1 / e is left, by the share of the mean excess that is kept from one place to the next.

        The share is the slope of the next mean on this one through the origin (an autoregression of order one).
        Infinite where nothing is lost, 0 where nothing is kept, NaN where the first mean is not above 0 or there is one
        place.
        """
        if len(point) < 2 or not np.isfinite(point).all():
            return estimators.undefined(units)

        def kept(means: Float[np.ndarray, "draws places"]) -> Float[np.ndarray, " draws"]:
            share = (means[:, :-1] * means[:, 1:]).sum(axis=1) / np.maximum((means[:, :-1] ** 2).sum(axis=1), 1e-30)
            return np.where(means[:, 0] > 0, share, np.nan)

        def length(share: float) -> float:
            if math.isnan(share) or share >= 1:
                return math.nan if math.isnan(share) else math.inf
            return -1 / math.log(share) if share > 0 else 0.0

        share = estimators.interval(float(kept(point[None])[0]), kept(drawn), units, self)
        # A length is a rising function of the share kept: the ends of the interval go over with it.
        return Estimate(length(share.value), length(share.low), length(share.high), share.n)

    def _finding(self, holders: list[Holder], contrasts: list[dict], words: Estimate) -> Finding:
        whole, rest = holders[0], holders[1:]
        follows = whole.p <= self.alpha and whole.excess[0].value > 0
        fades = whole.fall is None or (whole.p_fall <= self.alpha and whole.fall.value > 0)
        p = whole.p if whole.fall is None else estimators.jointly(whole.p, whole.p_fall)
        weakest = whole.smallest if not follows or whole.fall is None else estimators.smallest_of(whole.fall, self)
        verdict: Verdict = "not shown" if weakest <= self.matters else "untestable"
        if p <= self.alpha and follows and fades and whole.excess[0].n >= self.least_groups:
            verdict = "shown"
        adjusted = dict(zip([each.who for each in rest], holm(np.array([each.p for each in rest])), strict=True))
        told = [vars(each) | {"adjusted": float(adjusted[each.who])} for each in rest]
        sentences = render(
            TEMPLATE, whole=whole, holders=told, contrasts=contrasts, words=words, first=self.readings[0],
            last=self.readings[-1], fades=fades, power=self.power,
        )  # fmt: skip
        figures: Figures = {"p": p, "excess_words": words}
        for each in holders:
            figures |= {f"excess_{each.who}": each.excess[0], f"decay_{each.who}": each.decay}
            figures |= {f"p_{each.who}": each.p, f"fall_{each.who}": each.fall}
        for each in contrasts:
            figures[f"{each['first']}_less_{each['second']}"] = each["excess"][0]
        rows = [(h.who, *h.excess, float(adjusted.get(h.who, h.p)), h.decay) for h in holders]
        between = [(f"{each['first']} less {each['second']}", *each["excess"]) for each in contrasts]
        tables = (
            DataTable(
                "Own excess by distance from the cause",
                ("whose emotion", *self.readings, "corrected p at the first", "decay, places"), rows,
                "In standard deviations over scenarios.",
            ),
            DataTable("Contrasts between holders", ("contrast", *self.readings), between),
        )  # fmt: skip
        series = [Series.of(each.who, self.readings, each.excess) for each in holders]
        chart = Chart("How long it lasts", "line", "place", "own excess, sd", series)
        return self.finding(verdict, sentences, figures, tables, (chart,))


def in_own_spread(values: Float[np.ndarray, "places rows concepts"]) -> Float[np.ndarray, "places rows concepts"]:
    """Readings in standard deviations over scenarios at the first place."""
    spread = values[0].std(axis=0)
    return values / np.where(spread > 0, spread, 1)


def excess_sums(
    values: Float[np.ndarray, "places rows concepts"],
    target: Int[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    chosen: Bool[np.ndarray, " rows"],
) -> tuple[Float[np.ndarray, "groups places concepts"], ...]:
    """What mean excesses are made of, by group: sums and counts of own readings and of other emotions' scenarios."""
    names, codes = np.unique(groups, return_inverse=True)
    values = np.moveaxis(values, 0, 1)
    measured = np.isfinite(values) & chosen[:, None, None]
    own = measured & (target[:, None] == np.arange(values.shape[2]))[:, None, :]
    filled = np.where(measured, values, 0.0)
    sums = []
    for rows in (own, measured & ~own):
        for each in (filled * rows, rows.astype(float)):
            total = np.zeros((len(names), *each.shape[1:]))
            np.add.at(total, codes, each)
            sums.append(total)
    return tuple(sums)


def mean_excess(
    sums: tuple[Float[np.ndarray, "groups places concepts"], ...], counts: Float[np.ndarray, "draws groups"]
) -> Float[np.ndarray, "draws places"]:
    """Own mean less the mean of the others, over the concepts of the scenarios; NaN where there are none.

    Own readings and those of the other emotions' scenarios are drawn together: the latter are estimated too.
    """
    own, owned, other, others = (np.tensordot(counts, each, axes=1) for each in sums)
    there = (owned > 0) & (others > 0)
    gap = own / np.where(there, owned, 1) - other / np.where(there, others, 1)
    weight = np.where(there, owned, 0.0)
    total = weight.sum(axis=2)
    return np.where(total > 0, (weight * gap).sum(axis=2) / np.where(total > 0, total, 1), np.nan)

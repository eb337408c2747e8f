"""Whose emotion a reading follows, and how long it lasts after its cause."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Contrast, Figures
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series
from affectlens.stats import Estimate, holm, permutation_p

TEMPLATE = """
At {{ first }} the emotion's own concept reads {{ whole.excess[0]|measured("sd") }} above where other emotions put it.
Emotions assigned to other readings give that excess with {{ whole.p|p(whole.floor) }}.
{% if whole.fall is not none %}
By {{ last }} it has fallen by {{ whole.fall.estimate|measured("sd") }},
  {{ whole.fall.p|p(whole.fall.floor) }}{{ "" if fades else ": it is not shown to fade" }}.
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
Of {{ h.who }} the excess is {{ h.excess[0]|measured("sd") }}, {{ adjusted[h.who]|p }} after correction.
{% endfor %}
{% for name, excess in contrasts.items() %}
That of {{ name|replace("less", "less that of") }} is {{ excess[0]|measured("sd") }}.
{% endfor %}
With {{ whole.excess[0].n|plural("group") }} an excess of {{ whole.smallest|number }} sd would be found with
  {{ power|percent }} power.
"""


@dataclass(frozen=True)
class Holder:
    """Readings of one holder of emotions.

    Attributes:
        who: the holder, or ``all``.
        curves: per group the excess at each place: how far the emotion's own concept reads above where other emotions
            put it.
        excess: at each place.
        p: of the excess at the first place, emotions assigned to other readings, and ``floor``, the least it can be.
        fall: from the first place to the last; None where there is one place.
        decay: places until 1 / e is left; infinite where it does not fall.
        smallest: excess that would be found with the power asked for.
    """

    who: str
    curves: dict[str, Float[np.ndarray, " places"]]
    excess: tuple[Estimate, ...]
    p: float
    floor: float
    fall: Contrast | None
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
        read = np.isfinite(places[0, rows]).all(axis=1)
        rows, target = rows[read], target[read]
        groups = selection.groups(measured, rows)
        concepts, target = np.unique(target, return_inverse=True)
        if len(concepts) < 2 or len(np.unique(groups)) < 2:
            few = f"{len(rows)} scenarios with a reading at {self.readings[0]}"
            return self.untestable(f"{few} name too few emotions in too few groups; two of each are the least")
        values = in_own_spread(places[:, rows][:, :, concepts])
        texts = in_own_spread(np.nan_to_num(np.asarray(measured.words, dtype=float))[None, rows][:, :, concepts])
        words = estimators.mean(own_excess(texts, target)[:, 0], groups, self)
        who = np.array([str(value) for value in selection.factor(measured, self.who, rows)])
        chosen = {"all": np.ones(len(rows), dtype=bool)}
        chosen |= {name: who == name for name in dict.fromkeys(who.tolist()) if len(set(who)) > 1}
        whole, *holders = (
            self._holder(name, values[:, own], target[own], groups[own], rng)
            for name, own in chosen.items()
            if len(np.unique(target[own])) > 1
        )
        contrasts = {}
        for a, b in combinations(holders, 2):
            both = np.array([a.curves[name] - b.curves[name] for name in a.curves if name in b.curves])
            columns = both.reshape(-1, len(self.readings)).T
            contrasts[f"{a.who} less {b.who}"] = [estimators.mean(column, None, self) for column in columns]

        follows = whole.p <= self.alpha and whole.excess[0].value > 0
        fades = whole.fall is None or (whole.fall.p <= self.alpha and whole.fall.estimate.value > 0)
        p = whole.p if whole.fall is None else estimators.jointly(whole.p, whole.fall.p)
        weakest = whole.smallest if not follows or whole.fall is None else whole.fall.smallest
        shown = p <= self.alpha and follows and fades and whole.excess[0].n >= self.least_groups
        adjusted = dict(zip([each.who for each in holders], holm(np.array([each.p for each in holders])), strict=True))
        sentences = render(
            TEMPLATE, whole=whole, holders=holders, adjusted=adjusted, contrasts=contrasts, words=words, fades=fades,
            first=self.readings[0], last=self.readings[-1], power=self.power,
        )  # fmt: skip
        figures: Figures = {"p": p, "excess_words": words}
        for each in (whole, *holders):
            figures |= {f"excess_{each.who}": each.excess[0], f"decay_{each.who}": each.decay, f"p_{each.who}": each.p}
            figures[f"fall_{each.who}"] = each.fall and each.fall.estimate
        figures |= {name.replace(" ", "_"): excess[0] for name, excess in contrasts.items()}
        table = [
            {"whose emotion": each.who, **dict(zip(self.readings, each.excess, strict=True)),
             "corrected p at the first": float(adjusted.get(each.who, each.p)), "decay, places": each.decay}
            for each in (whole, *holders)
        ]  # fmt: skip
        between = [
            {"contrast": name, **dict(zip(self.readings, excess, strict=True))} for name, excess in contrasts.items()
        ]
        tables = (
            DataTable.of("Own excess by distance from the cause", table, "In standard deviations over scenarios."),
            DataTable.of("Contrasts between holders", between),
        )
        series = [Series.of(each.who, self.readings, each.excess) for each in (whole, *holders)]
        chart = Chart("How long it lasts", "line", "place", "own excess, sd", series)
        return self.finding(self.verdict(shown, weakest), sentences, figures, tables, (chart,))

    def _holder(
        self,
        who: str,
        values: Float[np.ndarray, "places rows concepts"],
        target: Int[np.ndarray, " rows"],
        groups: Shaped[np.ndarray, " rows"],
        rng: np.random.Generator,
    ) -> Holder:
        excess = own_excess(values, target)
        curves = estimators.group_means(excess, groups)
        # The units are the emotions: whatever else the texts of one of them share, they agree on a wrong reading too.
        orders = estimators.assignments(values.shape[2], self.permutations, rng)
        null = [own_excess(values[:1], order[target])[:, 0].mean() for order in orders]
        p, floor = permutation_p(float(excess[:, 0].mean()), np.array(null))
        estimates = tuple(estimators.mean(column, None, self) for column in curves.T)
        fall = estimators.contrast(curves[:, 0] - curves[:, -1], self, rng) if len(values) > 1 else None
        # Where nothing is shown to be there, there is nothing that could decay.
        decay = estimators.undefined(len(curves))
        if estimates[0].low > 0 and len(values) > 1 and np.isfinite(curves).any(axis=0).all():
            decay = self._decay(curves, rng)
        smallest = estimators.smallest_effect(estimators.standard_error(curves[:, 0]), estimates[0].n, self)
        named = dict(zip(np.unique(groups).tolist(), curves, strict=True))
        return Holder(who, named, estimates, float(p), floor, fall, decay, smallest)

    def _decay(self, curves: Float[np.ndarray, "groups places"], rng: np.random.Generator) -> Estimate:
        """Places until 1 / e is left, by the share of the mean excess that is kept from one place to the next.

        The share is the slope of the next mean on this one through the origin (an autoregression of order one).
        Infinite where nothing is lost, 0 where nothing is kept, NaN where the first mean is not above 0.
        """
        there = np.isfinite(curves)
        filled = np.where(there, curves, 0.0)

        def kept(counts: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, " draws"]:
            means = counts @ filled / np.maximum(counts @ there, 1e-30)
            share = (means[:, :-1] * means[:, 1:]).sum(axis=1) / np.maximum((means[:, :-1] ** 2).sum(axis=1), 1e-30)
            return np.where(means[:, 0] > 0, share, np.nan)

        def length(share: float) -> float:
            if math.isnan(share) or share >= 1:
                return math.nan if math.isnan(share) else math.inf
            return -1 / math.log(share) if share > 0 else 0.0

        share = estimators.bootstrapped(curves, kept, self, rng)
        # A length is a rising function of the share kept: the ends of the interval go over with it.
        return Estimate(length(share.value), length(share.low), length(share.high), share.n)


def in_own_spread(values: Float[np.ndarray, "places rows concepts"]) -> Float[np.ndarray, "places rows concepts"]:
    """Readings in standard deviations over scenarios at the first place."""
    spread = values[0].std(axis=0)
    return values / np.where(spread > 0, spread, 1)


def own_excess(
    values: Float[np.ndarray, "places rows concepts"], target: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows places"]:
    """How far each row's own concept reads above that concept's mean over the rows of other emotions, by place."""
    there, others = np.isfinite(values), target[:, None] != np.arange(values.shape[2])
    counts = (there & others).sum(axis=1)
    means = np.where(there & others, values, 0.0).sum(axis=1) / np.where(counts > 0, counts, np.nan)
    return (values[:, np.arange(len(target)), target] - means[:, target]).T

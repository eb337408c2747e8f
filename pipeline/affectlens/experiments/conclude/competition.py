"""Which of several emotions in one text is read, and from where on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import Field, model_validator

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Contrast, Figures
from affectlens.experiments.conclude.persistence import in_own_spread
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series
from affectlens.stats import Estimate, permutation_p

TEMPLATE = """
{% for place in places %}
{% for f in place.factors %}
At {{ place.name }} a concept reads {{ f.value|measured("sd") }} higher where it is that of `{{ f.name }}`;
  concepts assigned to other readings give that with {{ f.p|p(f.floor) }}.
{% endfor %}
{% for c in place.contrasts %}
`{{ place.ahead }}` is ahead of `{{ c.other }}` there by {{ c.contrast.estimate|measured("sd") }},
  {{ c.contrast.p|p(c.contrast.floor) }}.
{% endfor %}
{% endfor %}
{% if starts %}
{% if turn is nan %}
`{{ leads }}` does not overtake `{{ starts }}` at these places.
{% else %}
`{{ leads }}` overtakes `{{ starts }}` at {{ turn|number }} {{ unit }}.
Its lead is {{ "nowhere shown" if sure is nan else "shown from " ~ sure|number ~ " on" }}.
{% endif %}
{% endif %}
The words of the whole text alone give
{% for name, words in by_words.items() %}
  {{ words|measured("sd") }} to `{{ name }}`{{ "." if loop.last else "," }}
{% endfor %}
With {{ groups|plural("group") }} a lead of {{ smallest|number }} sd would be found with {{ power|percent }} power.
"""


@dataclass(frozen=True)
class Rivals:
    """Readings of texts that hold several emotions, within groups of texts that differ in nothing else.

    Attributes:
        values: of the concepts that occur, in standard deviations over texts.
        held: by factor the column of each text's concept; -1 where it has none.
        groups: of the texts.
    """

    values: Float[np.ndarray, "places rows concepts"]
    held: Int[np.ndarray, "factors rows"]
    groups: Shaped[np.ndarray, " rows"]

    def excess(self, held: Int[np.ndarray, "factors rows"] | None = None) -> Float[np.ndarray, "groups factors places"]:
        """How far a concept reads higher where it is a factor's, the other factors held equal.

        Least squares within each group over texts and concepts, each concept with a mean of its own. NaN where a group
        cannot tell the factors apart.
        """
        held = self.held if held is None else held
        found, (factors, concepts) = [], (len(held), self.values.shape[2])
        for name in np.unique(self.groups):
            own = self.groups == name
            design = (held[:, own, None] == np.arange(concepts)).astype(float)
            design = (design - design.mean(axis=1, keepdims=True)).reshape(factors, -1)
            values = self.values[:, own]
            values = (values - values.mean(axis=1, keepdims=True)).reshape(len(values), -1)
            gram = design @ design.T
            if np.linalg.matrix_rank(gram, tol=1e-9) < factors:
                found.append(np.full((factors, len(values)), np.nan))
            else:
                found.append(np.linalg.solve(gram, design @ values.T))
        return np.array(found)

    def assigned(self, factor: int, order: Int[np.ndarray, " concepts"]) -> Int[np.ndarray, "factors rows"]:
        """The texts' concepts with those of one factor called by other names."""
        held = self.held.copy()
        held[factor] = np.where(held[factor] < 0, -1, order[held[factor]])
        return held


@dataclass(frozen=True)
class Excess:
    """How far a concept reads higher where it is a factor's, at one place.

    Attributes:
        name: of the factor.
        value: in standard deviations over texts.
        p: of the mean over groups, the factor's emotions assigned to other readings.
        floor: the least that p can be.
    """

    name: str
    value: Estimate
    p: float
    floor: float


@analysis("competition")
class Competition(Analysis):
    """Which of several emotions in one text is read, and from where on?"""

    factors: tuple[str, ...] = Field(min_length=2)
    """Each holds one of the text's emotions: first, second; self, other, scene; affirmed, negated, ..."""
    readings: tuple[str, ...] = Field(min_length=1)
    """In the order of the text."""
    leads: str
    """The factor whose emotion is claimed to read highest at the last reading."""
    starts: str = ""
    """The factor whose emotion is claimed to read highest at the first reading, where that is another one."""
    positions: tuple[float, ...] = ()
    """Where the readings stand, from the turn on; their numbers where left out."""
    unit: str = "places"
    """Of the positions."""
    matters: float = Field(default=0.5, ge=0)
    """Lead in standard deviations over texts."""

    @model_validator(mode="after")
    def _consistent(self) -> Competition:
        for key in ("leads", "starts"):
            if (name := getattr(self, key)) and name not in self.factors:
                raise ValueError(f"`{key}: {name}` is not among `factors`; name one of {', '.join(self.factors)}")
        if self.starts and (self.starts == self.leads or len(self.readings) < 2):
            raise ValueError("`starts` is another factor than `leads`, and needs a first and a last reading")
        if self.positions and (
            len(self.positions) != len(self.readings) or list(self.positions) != sorted(set(self.positions))
        ):
            raise ValueError("`positions`: give one for each of `readings`, each larger than the one before")
        return self

    def needs(self) -> Needs:
        return Needs(readings=self.readings, factors={f"factors[{i}]": name for i, name in enumerate(self.factors)})

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Excess of each factor's concept at each place, which is ahead at the last one, and where it overtakes."""
        texts = self._texts(measured)
        if texts is None:
            return self.untestable("two groups of texts with two emotions or more in each factor are needed")
        rivals, words = texts
        excess = rivals.excess()
        whole = np.isfinite(excess).all(axis=(1, 2))
        if whole.sum() < 2:
            return self.untestable(
                f"{whole.sum()} groups tell the emotions of {', '.join(self.factors)} apart, not two"
            )
        excess, names = excess[whole], list(self.factors)
        claims = [(0, self.starts)] if self.starts else []
        claims.append((len(self.readings) - 1, self.leads))
        places, p, contrasts, ahead = [], [], [], True
        for place, name in claims:
            index = names.index(name)
            factors = [self._factor(rivals, excess, each, place, rng) for each in range(len(names))]
            others = [each for each in range(len(names)) if each != index]
            leads = [estimators.contrast(excess[:, index, place] - excess[:, each, place], self, rng)
                     for each in others]  # fmt: skip
            p += [factors[index].p, *(each.p for each in leads)]
            ahead &= factors[index].value.value > 0 and all(each.estimate.value > 0 for each in leads)
            contrasts += leads
            between = [{"other": names[each], "contrast": lead} for each, lead in zip(others, leads, strict=True)]
            places.append({"name": self.readings[place], "ahead": name, "factors": factors, "contrasts": between})
        p_claim = estimators.jointly(*p)
        weakest: Contrast = max(contrasts, key=lambda each: each.smallest)
        shown = ahead and p_claim <= self.alpha and len(excess) >= self.least_groups
        turn, sure = self._turn(excess, names) if self.starts else (math.nan, math.nan)
        by_words = {
            name: estimators.mean(column, None, self) for name, column in zip(names, words[whole].T, strict=True)
        }
        sentences = render(
            TEMPLATE, places=places, starts=self.starts, leads=self.leads, turn=turn, sure=sure, unit=self.unit,
            by_words=by_words, groups=len(excess), smallest=weakest.smallest, power=self.power,
        )  # fmt: skip
        figures: Figures = {"p": p_claim, "turn": turn, "ahead_from": sure, "smallest_effect": weakest.smallest}
        for place in places:
            for each in place["factors"]:
                figures |= {
                    f"excess_{each.name}_{place['name']}": each.value,
                    f"p_{each.name}_{place['name']}": each.p,
                }
            for each in place["contrasts"]:
                figures[f"{place['ahead']}_less_{each['other']}_{place['name']}"] = each["contrast"].estimate
        figures |= {f"words_{name}": each for name, each in by_words.items()}
        curves = {
            name: [estimators.mean(column, None, self) for column in excess[:, index].T]
            for index, name in enumerate(names)
        }
        rows = [{"emotion of": name, **dict(zip(self.readings, curve, strict=True))} for name, curve in curves.items()]
        note = "In standard deviations over texts, the other emotions of the text held equal. Intervals over groups."
        where = list(self.positions) if self.positions else list(self.readings)
        chart = Chart(
            "Whose emotion is read", "line", self.unit if self.positions else "place", "excess, sd",
            [Series.of(name, where, curve) for name, curve in curves.items()],
        )  # fmt: skip
        table = DataTable.of("How far a concept reads higher where it is the text's", rows, note)
        return self.finding(self.verdict(shown, weakest.smallest), sentences, figures, (table,), (chart,))

    def _texts(self, measured: Measured) -> tuple[Rivals, Float[np.ndarray, "groups factors"]] | None:
        """The texts with readings at every place, and what their words give to each factor in each group."""
        chosen = selection.main_rows(measured)
        columns = {concept: column for column, concept in enumerate(measured.concepts)}
        held = np.array(
            [[columns.get(str(value), -1) for value in selection.factor(measured, name, chosen)]
             for name in self.factors]
        )  # fmt: skip
        places = np.stack([selection.reading(measured, name) for name in self.readings])[:, chosen]
        kept = np.isfinite(places).all(axis=(0, 2)) & (held >= 0).any(axis=0)
        groups, held = selection.groups(measured, chosen)[kept], held[:, kept]
        concepts = np.unique(held[held >= 0])
        if len(np.unique(groups)) < 2 or any(len(np.unique(each[each >= 0])) < 2 for each in held):
            return None
        inside = np.where(held < 0, -1, np.searchsorted(concepts, held))
        values = in_own_spread(places[:, kept][:, :, concepts])
        said = np.nan_to_num(np.asarray(measured.words, dtype=float))[chosen][kept][:, concepts]
        by_words = Rivals(in_own_spread(said[None]), inside, groups).excess()[:, :, 0]
        return Rivals(values, inside, groups), by_words

    def _factor(
        self,
        rivals: Rivals,
        excess: Float[np.ndarray, "groups factors places"],
        factor: int,
        place: int,
        rng: np.random.Generator,
    ) -> Excess:
        """One factor's excess at one place, with the p of its emotions assigned to other readings.

        The units are the emotions: whatever else the texts of one of them share, they agree on a wrong reading too.
        """
        there = Rivals(rivals.values[place : place + 1], rivals.held, rivals.groups)
        null = [
            float(np.nanmean(there.excess(there.assigned(factor, order))[:, factor]))
            for order in estimators.assignments(rivals.values.shape[2], self.permutations, rng)
        ]
        p, floor = permutation_p(float(excess[:, factor, place].mean()), np.array(null))
        value = estimators.mean(excess[:, factor, place], None, self)
        return Excess(self.factors[factor], value, float(p), floor)

    def _turn(self, excess: Float[np.ndarray, "groups factors places"], names: Sequence[str]) -> tuple[float, float]:
        """The position from which on `leads` stays ahead of `starts`, and that from which on every interval says so.

        The first is interpolated between the places around it. NaN where there is none.
        """
        lead = excess[:, names.index(self.leads)] - excess[:, names.index(self.starts)]
        at = np.array(self.positions or range(len(self.readings)), dtype=float)
        means = [estimators.mean(column, None, self) for column in lead.T]

        def from_where(above: list[bool]) -> int | None:
            behind = [index for index, each in enumerate(above) if not each]
            first = behind[-1] + 1 if behind else 0
            return first if first < len(above) else None

        first, certain = (from_where([getattr(each, key) > 0 for each in means]) for key in ("value", "low"))
        sure = math.nan if certain is None else float(at[certain])
        if first is None or first == 0:
            return (math.nan if first is None else float(at[0])), sure
        before, after = means[first - 1].value, means[first].value
        return float(at[first - 1] + (at[first] - at[first - 1]) * before / (before - after)), sure

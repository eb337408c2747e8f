"""Which of several emotions in one text is read, and from where on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import Field, model_validator

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Figures
from affectlens.experiments.conclude.persistence import in_own_spread
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series
from affectlens.stats import Estimate, permutation_p, t_interval

TEMPLATE = """
{% for place in places %}
{% for f in place.factors %}
At {{ place.name }} a concept reads {{ f.value|measured("sd") }} higher where it is that of `{{ f.name }}`;
  concepts assigned to other readings give that with {{ f.p|p(f.floor) }}.
{% endfor %}
{% for lead in place.leads %}
`{{ place.ahead }}` is ahead of `{{ lead.other }}` there by {{ lead.value|measured("sd") }}, {{ lead.p|p }}.
{% endfor %}
{% endfor %}
{% if starts %}
{% if turn is nan %}
`{{ leads }}` does not overtake `{{ starts }}` at these places.
{% else %}
`{{ leads }}` overtakes `{{ starts }}` at {{ turn|number }} {{ unit }}.
Its lead is {{ "nowhere shown" if sure is nan else "shown from " ~ "%g"|format(sure) ~ " on" }}.
{% endif %}
{% endif %}
The words of the whole text alone give
{% for name, words in by_words.items() %}
  {{ words|measured("sd") }} to `{{ name }}`{{ "." if loop.last else "," }}
{% endfor %}
With {{ groups|plural("group") }} and {{ emotions|plural("emotion") }} a lead of {{ smallest|number }} sd would be
  found with {{ power|percent }} power.
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

    def effects(self, factor: int) -> Float[np.ndarray, "groups places concepts readings"]:
        """What a factor's concept does to each reading, the other factors held equal.

        By least squares within each group: a reading on whether the factor's concept is this one, and on whether any
        other factor's is the one that is read. NaN where a group cannot tell.
        """
        found, concepts = [], self.values.shape[2]
        for name in np.unique(self.groups):
            own = self.groups == name
            present = (self.held[:, own, None] == np.arange(concepts)).astype(float)
            present -= present.mean(axis=1, keepdims=True)
            values = self.values[:, own] - self.values[:, own].mean(axis=1, keepdims=True)
            effect = np.full((len(values), concepts, concepts), np.nan)
            for read in range(concepts):
                # The factor's part that the others do not share (Frisch and Waugh 1933).
                others = np.delete(present, factor, axis=0)[:, :, read].T
                alone = present[factor] - others @ (np.linalg.pinv(others) @ present[factor])
                power = (alone * present[factor]).sum(axis=0)
                told = power > 1e-9
                effect[:, told, read] = values[:, :, read] @ alone[:, told] / power[told]
            found.append(effect)
        return np.array(found)


@dataclass(frozen=True)
class Excess:
    """How far a concept reads higher where it is a factor's, at one place.

    Attributes:
        name: of the factor.
        value: in standard deviations over texts; emotions and groups are both a sample.
        p: of the mean, the factor's emotions assigned to other readings.
        floor: the least that p can be.
    """

    name: str
    value: Estimate
    p: float
    floor: float


@dataclass(frozen=True)
class Lead:
    """How far one factor is ahead of another at one place.

    Attributes:
        other: the other factor.
        value: in standard deviations over texts; emotions and groups are both a sample.
        p: two-sided, of the same t interval.
        smallest: lead that would be found with the power asked for.
    """

    other: str
    value: Estimate
    p: float
    smallest: float


def both_samples(cells: Float[np.ndarray, "groups concepts"], level: float) -> Estimate:
    """Mean with a t interval, groups of texts and emotions both a sample."""
    return t_interval(cells.T, random_rows=True, level=level)


def p_both_samples(cells: Float[np.ndarray, "groups concepts"]) -> float:
    """Two-sided p of :func:`both_samples`: one less the widest level whose interval leaves out 0."""
    low, high = 0.0, 1.0 - 1e-9
    for _ in range(40):
        middle = (low + high) / 2
        found = both_samples(cells, middle)
        low, high = (middle, high) if found.low > 0 or found.high < 0 else (low, middle)
    return 1 - low


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
        found = self._texts(measured)
        if found is None:
            return self.untestable("two groups of texts with two emotions or more in each factor are needed")
        texts, said = found
        names, size = list(self.factors), texts.values.shape[2]
        effects = [texts.effects(factor) for factor in range(len(names))]
        own = np.stack([each[:, :, range(size), range(size)] for each in effects])  # factors groups places concepts
        if not np.isfinite(own).any(axis=(2, 3)).all(axis=0).sum() >= 2:
            return self.untestable(f"fewer than two groups tell the emotions of {', '.join(names)} apart")
        claims = [(0, self.starts)] if self.starts else []
        claims.append((len(self.readings) - 1, self.leads))
        places, leads = [], []
        for place, name in claims:
            first = names.index(name)
            factors = [self._excess(factor, effects[i][:, place], rng) for i, factor in enumerate(names)]
            ahead = [
                self._lead(other, own[first, :, place] - own[i, :, place])
                for i, other in enumerate(names)
                if other != name
            ]
            places.append({"name": self.readings[place], "ahead": name, "factors": factors, "leads": ahead})
            leads += [(factors[first], each) for each in ahead]
        p_claim = estimators.jointly(*(each.p for pair in leads for each in pair))
        right = all(excess.value.value > 0 and lead.value.value > 0 for excess, lead in leads)
        # Of the leads that are not shown the least sure one tells what would have been found; else of all.
        missed = [lead for _, lead in leads if not (lead.p <= self.alpha and lead.value.value > 0)]
        smallest = max(lead.smallest for lead in missed or [lead for _, lead in leads])
        groups = min(lead.value.n for _, lead in leads)
        shown = right and p_claim <= self.alpha and groups >= self.least_groups
        turn, sure = self._turn(own[names.index(self.leads)] - own[names.index(self.starts)]) if self.starts else (
            math.nan, math.nan)  # fmt: skip
        by_words = {name: both_samples(cells, self.coverage) for name, cells in zip(names, said, strict=True)}
        sentences = render(
            TEMPLATE, places=places, starts=self.starts, leads=self.leads, turn=turn, sure=sure, unit=self.unit,
            by_words=by_words, groups=groups, emotions=size, smallest=smallest, power=self.power,
        )  # fmt: skip
        figures: Figures = {"p": p_claim, "turn": turn, "ahead_from": sure, "smallest_effect": smallest}
        for place in places:
            for each in place["factors"]:
                figures |= {
                    f"excess_{each.name}_{place['name']}": each.value,
                    f"p_{each.name}_{place['name']}": each.p,
                }
            for each in place["leads"]:
                figures[f"{place['ahead']}_less_{each.other}_{place['name']}"] = each.value
        figures |= {f"words_{name}": each for name, each in by_words.items()}
        curves = {
            name: [both_samples(own[i, :, place], self.coverage) for place in range(len(self.readings))]
            for i, name in enumerate(names)
        }
        rows = [{"emotion of": name, **dict(zip(self.readings, curve, strict=True))} for name, curve in curves.items()]
        note = "In standard deviations over texts, the other emotions of the text held equal."
        where = list(self.positions) if self.positions else list(self.readings)
        chart = Chart(
            "Whose emotion is read", "line", self.unit if self.positions else "place", "excess, sd",
            [Series.of(name, where, curve) for name, curve in curves.items()],
        )  # fmt: skip
        table = DataTable.of("How far a concept reads higher where it is the text's", rows, note)
        return self.finding(self.verdict(shown, smallest), sentences, figures, (table,), (chart,))

    def _texts(self, measured: Measured) -> tuple[Rivals, list[Float[np.ndarray, "groups concepts"]]] | None:
        """The texts with readings at every place, and what their words alone give to each factor."""
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
        by_words, every = Rivals(in_own_spread(said[None]), inside, groups), range(len(concepts))
        return (
            Rivals(values, inside, groups),
            [by_words.effects(factor)[:, 0, every, every] for factor in range(len(held))],
        )

    def _excess(
        self, name: str, effects: Float[np.ndarray, "groups concepts readings"], rng: np.random.Generator
    ) -> Excess:
        """Of one factor at one place.

        The p-value's units are the emotions: whatever else the texts of one of them share, they agree on a wrong
        reading too.
        """
        every = np.arange(effects.shape[1])
        means = np.nanmean(effects, axis=0)
        orders = estimators.assignments(len(every), self.permutations, rng)
        p, floor = permutation_p(float(np.nanmean(np.diag(means))), np.nanmean(means[orders, every], axis=1))
        return Excess(name, both_samples(effects[:, every, every], self.coverage), float(p), floor)

    def _lead(self, other: str, cells: Float[np.ndarray, "groups concepts"]) -> Lead:
        value = both_samples(cells, self.coverage)
        return Lead(other, value, p_both_samples(cells), estimators.smallest_of(value, self))

    def _turn(self, lead: Float[np.ndarray, "groups places concepts"]) -> tuple[float, float]:
        """The position from which on `leads` stays ahead of `starts`, and that from which on every interval says so.

        The first is interpolated between the places around it. NaN where there is none.
        """
        at = np.array(self.positions or range(len(self.readings)), dtype=float)
        means = [both_samples(lead[:, place], self.coverage) for place in range(len(at))]

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

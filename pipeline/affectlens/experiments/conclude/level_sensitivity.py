"""Whether a reading follows a number in a text, template by template, more than where the number is harmless."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Figures
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series
from affectlens.stats import permutation_p, permuted_within

TEMPLATE = """
{% if not templates %}
This could not be tested: no template has a harmless twin, so a trend may be one of any number.
{% else %}
The expected concepts follow the level by a rank correlation {{ beyond.estimate|measured }} larger than in the
  harmless twins.
They do so in {{ agreeing }} of {{ templates|plural("template") }}.
Sign flips over templates give {{ beyond.p|p(beyond.floor) }}.
Other concepts in their place give {{ p_others|p(floor) }}.
{% if beyond.floor > alpha %}
With {{ templates|plural("template") }} no p can be as low as {{ alpha|number }}: {{ least }} are needed.
{% endif %}
A mean difference of {{ beyond.smallest|number }} would be found with {{ power|percent }} power.
{% endif %}
Without the twins the correlation is {{ alone|measured }}.
{% if typical is not nan %}
Of the trends of concepts that nobody expected {{ share|percent }} are as steep as the median expected one
  ({{ typical|number }}).
So within one template a monotone trend proves nothing, and only agreement over templates counts.
{% endif %}
"""


@analysis("level_sensitivity", formerly="trend")
class LevelSensitivity(Analysis):
    """Does a reading follow a number, template by template, more than in the harmless twin?"""

    reading: str
    level: str = "level"
    """The factor that is varied."""
    expects: str = "expects"
    """The factor with the concepts expected to rise (comma-separated, `-` before those expected to fall)."""
    twin: str = "twin"
    """The condition of the harmless twins; a twin has the group of its template."""
    least_levels: int = Field(default=3, ge=3)
    """Fewest levels that have a trend."""
    matters: float = Field(default=0.75, ge=0)
    """Difference of rank correlations."""
    permutations: int = 2000

    def needs(self) -> Needs:
        return Needs(readings=(self.reading,), factors={"level": self.level, "expects": self.expects})

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """The expected concepts' trend less the twin's, over templates, and the same of other concepts."""
        readings = selection.reading(measured, self.reading)
        templates, main, twin, expected = [], [], [], []
        for group in dict.fromkeys(each.group for each in measured.scenarios):
            rows = [i for i, each in enumerate(measured.scenarios) if each.group == group]
            own = [i for i in rows if measured.scenarios[i].condition != self.twin]
            weights = self._expected(measured, own)
            trend = self._trend(measured, readings, own)
            if weights.any() and np.isfinite(trend).any():
                other = [i for i in rows if measured.scenarios[i].condition == self.twin]
                templates.append(group)
                expected.append(weights)
                main.append(trend)
                twin.append(self._trend(measured, readings, other))
        if not templates:
            return self.untestable(
                f"no template has a reading at {self.least_levels} or more values of `{self.level}` and names "
                f"concepts of the study in `{self.expects}`"
            )
        weights, trends, of_twins = np.array(expected), np.array(main), np.array(twin)
        own, of_twin = (trends * weights).sum(axis=1), (of_twins * weights).sum(axis=1)
        paired = np.isfinite(own - of_twin)
        beyond = estimators.contrast((own - of_twin)[paired], self, rng)
        p_others, floor = self._other_concepts((trends - of_twins)[paired], weights[paired], rng)
        # The claim: beyond the twins over templates, and more than any concepts would be. Its p is the larger of both.
        p = estimators.jointly(beyond.p, p_others)
        shown = beyond.estimate.value > 0 and p <= self.alpha
        verdict = self.verdict(shown, beyond.smallest if beyond.floor <= self.alpha else math.nan)
        alone = estimators.mean(own, None, self)
        steep, others = np.abs(trends)[weights != 0], np.abs(trends)[weights == 0]
        typical = float(np.nanmedian(steep))
        sentences = render(
            TEMPLATE, beyond=beyond, templates=int(paired.sum()), agreeing=int((beyond.differences > 0).sum()),
            p_others=p_others, floor=floor, alone=alone, typical=typical if len(others) else math.nan, power=self.power,
            share=float((others >= typical).mean()) if len(others) else 0.0, alpha=self.alpha,
            least=int(np.ceil(1 - np.log2(self.alpha))),
        )  # fmt: skip
        figures: Figures = {
            "trend_difference": beyond.estimate, "trend": alone, "templates": int(paired.sum()), "p": p,
            "p_flips": beyond.p, "templates_as_claimed": (beyond.differences > 0).sum(), "p_other_concepts": p_others,
            "smallest_effect": beyond.smallest,
        }  # fmt: skip
        rows = []
        for index, template in enumerate(templates):
            signs = zip(measured.concepts, weights[index], strict=True)
            names = ", ".join(("-" if weight < 0 else "") + name for name, weight in signs if weight)
            trend, other = float(own[index]), float(of_twin[index])
            rows.append(
                {"template": template, "expected": names, "trend": trend, "trend in the twin": other,
                 "difference": trend - other}
            )  # fmt: skip
        table = DataTable.of("Each template", rows, "Rank correlations with the level, means over paraphrases.")
        both = (("number that matters", own), ("harmless twin", of_twin))
        series = [Series(name, templates, values.tolist()) for name, values in both]
        y = "rank correlation with the level"
        chart = Chart("Trend of the expected concepts", "bar", "template", y, series)
        return self.finding(verdict, sentences, figures, (table,), (chart,))

    def _expected(self, measured: Measured, rows: Sequence[int]) -> Float[np.ndarray, " concepts"]:
        """Signs of the expected concepts, divided by their number; 0 where no scenario names one of the study."""
        weights = np.zeros(len(measured.concepts))
        named = next((text for i in rows if (text := measured.scenarios[i].factors.get(self.expects))), "")
        for concept, sign in selection.signed(str(named)):
            if concept in measured.concepts:
                weights[measured.concepts.index(concept)] = sign
        return weights / max(np.abs(weights).sum(), 1)

    def _trend(
        self, measured: Measured, readings: Float[np.ndarray, "scenarios concepts"], rows: Sequence[int]
    ) -> Float[np.ndarray, " concepts"]:
        """Mean over paraphrases of the rank correlation of each concept's reading with the level.

        Paraphrases are scenarios that differ in more than the level: in their line of the file or in another factor.
        Where no paraphrase has enough levels of its own, other factors tell them apart, then all are taken as one.
        """
        scenarios = measured.scenarios
        kept = [i for i in rows if self.level in scenarios[i].factors and np.isfinite(readings[i]).all()]

        def others(i: int) -> tuple:
            factors = scenarios[i].factors.items()
            return tuple(sorted((name, str(value)) for name, value in factors if name != self.level))

        for key in (lambda i: (scenarios[i].id.split(".")[0], *others(i)), others, lambda i: ()):
            series: dict[tuple, list[int]] = {}
            for i in kept:
                series.setdefault(key(i), []).append(i)
            trends = [
                estimators.rank_trend(
                    selection.levels([scenarios[i].factors[self.level] for i in each]), readings[each],
                    self.least_levels,
                )
                for each in series.values()
            ]  # fmt: skip
            trends = [each for each in trends if each is not None]
            if trends:
                return np.mean(trends, axis=0)
        return np.full(readings.shape[1], np.nan)

    def _other_concepts(
        self,
        difference: Float[np.ndarray, "templates concepts"],
        expected: Float[np.ndarray, "templates concepts"],
        rng: np.random.Generator,
    ) -> tuple[float, float]:
        """p of the mean difference when other concepts stand in for the expected ones.

        One shuffle of the concepts' names goes through all templates, so that a concept which follows every number
        counts as such in each of them.
        """
        used = np.flatnonzero(expected.any(axis=0))
        concepts = expected.shape[1]
        if concepts < 2 * len(used) or not len(difference):
            return 1.0, 1.0
        cross = expected[:, used].T @ difference / len(difference)
        order = permuted_within(np.zeros(concepts), self.permutations, rng)[:, : len(used)]
        null = cross[np.arange(len(used)), order].sum(axis=1)
        p, floor = permutation_p(float((difference * expected).sum() / len(difference)), null)
        return float(p), floor

"""How readings go along a transcript, and whether it is the failing that moves them."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Figures, Frame
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.interventions.judge import Claim, Rules, judge
from affectlens.results.figures import Chart, DataTable, Finding, Series, Verdict

TEMPLATE = """
{% if claimed %}
{{ shown }} of {{ claimed|plural("claimed change") }} along the transcript shown.
{% else %}
No direction is claimed here, so the changes are described, not tested.
{% endif %}
Changes are those from {{ first }} to {{ last }}{{ ", beyond those of transcripts that go well" if twins }},
  in standard deviations over scenarios at the first.
{% for c in changes %}
{{ c.concept[:1]|upper ~ c.concept[1:] }} changes by {{ c.change|measured("sd") }}
  {{ ", claimed to rise" if c.sign > 0 else ", claimed to fall" if c.sign < 0 }}.
{% if c.p is not nan %}
Against {{ others|plural("other concept") }} that has {{ c.p|p(c.floor) }}, {{ c.adjusted|p }} after correction.
{% endif %}
{% endfor %}
{% if others < least_others %}
Against {{ others|plural("other concept") }} no change can stand out: {{ least_others }} are needed.
{% endif %}
{% if not twins %}
Without a transcript that goes well, the change may be that of any transcript this long.
{% endif %}
Over {{ groups|plural("group") }} a change of {{ smallest|number }} sd would be found with {{ power|percent }} power.
"""


@analysis("trajectory", formerly="arc")
class Trajectory(Analysis):
    """How readings go along a transcript, from one named place to the next."""

    readings: tuple[str, ...] = Field(min_length=2)
    """In the order of the transcript."""
    concepts: tuple[str, ...]
    """With `+` (`-`) before those claimed to rise (fall) along the transcript; without a sign they are described."""
    twin: str = ""
    """The condition whose transcripts go well."""
    least_others: int = Field(default=19, ge=3)
    """Fewer concepts of which nothing is claimed, and no change can stand out among them."""
    matters: float = Field(default=1.0, ge=0)
    """Change in standard deviations over scenarios at the first reading."""

    @property
    def signs(self) -> dict[str, int]:
        """The named concepts and the direction that is claimed of each; 0 for none."""
        return {
            concept: sign if name.strip().startswith(("+", "-")) else 0
            for name in self.concepts
            for concept, sign in selection.signed((name,))
        }

    def needs(self) -> Needs:
        return Needs(readings=self.readings, concepts=tuple(self.signs))

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Change from the first to the last reading, transcripts that go well taken off, against all other concepts."""
        places = np.stack([selection.reading(measured, name) for name in self.readings])
        own = selection.main_rows(measured) if self.twin else selection.rows(measured)
        twin = selection.rows(measured, (self.twin,)) if self.twin else np.empty(0, dtype=np.int64)
        if self.twin and not len(twin):
            return self.untestable(f"there is no transcript of the condition `{self.twin}` to compare with")
        changes = self._changes(measured, places, own, twin)
        if len(changes) < 2:
            which = " with a twin" if len(twin) else ""
            return self.untestable(
                f"{len(changes)} groups of scenarios{which} hold the first and the last place, not two"
            )
        columns = [measured.concepts.index(concept) for concept in self.signs]
        rest = np.setdiff1d(np.arange(changes.shape[1]), columns)
        # The other concepts are the controls: a change of all readings alike is none of this concept.
        null = {"other concepts": changes[:, rest].mean(axis=0)}
        rules = Rules(level=self.alpha, least_controls=self.least_others, least_groups=self.least_groups)
        claims = {
            concept: Claim(concept, changes[:, column], null, side=1 if (sign or changes[:, column].mean()) > 0 else -1)
            for (concept, sign), column in zip(self.signs.items(), columns, strict=True)
        }
        family = [claims[concept] for concept, sign in self.signs.items() if sign]
        judged = {verdict.name: verdict for verdict in judge(family, rules)}
        judged |= {name: judge([claim], rules)[0] for name, claim in claims.items() if name not in judged}
        told, verdicts = [], []
        figures: Figures = {}
        for (concept, sign), column in zip(self.signs.items(), columns, strict=True):
            found = judged[concept]
            change = estimators.mean(changes[:, column], None, self, rng)
            smallest = estimators.smallest_effect(estimators.standard_error(changes[:, column]), change.n, self)
            # Without a claim the side was chosen by looking at it.
            p, adjusted = (value if sign else min(1.0, 2 * value) for value in (found.p, found.p_adjusted))
            told.append(
                {"concept": concept, "sign": sign, "change": change, "p": p, "floor": found.floor, "adjusted": adjusted,
                 "smallest": smallest}
            )  # fmt: skip
            figures |= {f"change_{concept}": change, f"p_{concept}": p, f"p_adjusted_{concept}": adjusted}
            if sign:
                missed = found.outcome == "untestable" or not smallest <= self.matters
                verdict: Verdict = "shown" if found.shown else "untestable" if missed else "not shown"
                verdicts.append(verdict)
        smallest = max((each["smallest"] for each in told), key=lambda value: (math.isnan(value), value))
        sentences = render(
            TEMPLATE, claimed=len(verdicts), shown=verdicts.count("shown"), first=self.readings[0],
            last=self.readings[-1], twins=bool(len(twin)), changes=told, others=len(rest),
            least_others=self.least_others, groups=len(changes), smallest=smallest, power=self.power,
        )  # fmt: skip
        rows = [(each["concept"], each["change"], each["p"], each["adjusted"], each["smallest"]) for each in told]
        header = ("concept", "change, sd", "p, other concepts", "corrected p", f"found with {self.power:.0%} power")
        tests = DataTable("First place to last", header, rows, "Holm over the claimed concepts.")
        along, chart = self._along(measured, places, {"main": own, self.twin: twin}, columns, rng)
        return self.finding(estimators.overall(verdicts, "all"), sentences, figures, (along, tests), (chart,))

    def _changes(
        self,
        measured: Measured,
        places: Float[np.ndarray, "places scenarios concepts"],
        own: np.ndarray,
        twin: np.ndarray,
    ) -> Float[np.ndarray, "groups concepts"]:
        """Per group the change from the first place to the last, less the twin's, in sd over scenarios at the first."""
        both = np.concatenate([own, twin])
        start = places[0, both]
        start = start[np.isfinite(start).all(axis=1)]
        spread = start.std(axis=0) if len(start) else np.ones(places.shape[2])
        change = (places[-1] - places[0]) / np.where(spread > 0, spread, 1)
        table = Frame(change[both], selection.groups(measured, both))
        first = np.arange(len(both)) < len(own)
        if len(twin):
            return estimators.paired(table, first, ~first)
        _, means = table.means()
        return means[np.isfinite(means).all(axis=1)]

    def _along(
        self,
        measured: Measured,
        places: Float[np.ndarray, "places scenarios concepts"],
        conditions: dict[str, np.ndarray],
        columns: list[int],
        rng: np.random.Generator,
    ) -> tuple[DataTable, Chart]:
        """The readings of the named concepts at every place."""
        rows, series = [], []
        for column in columns:
            for name, chosen in conditions.items():
                if not len(chosen):
                    continue
                groups = selection.groups(measured, chosen)
                points = [estimators.mean(place[chosen, column], groups, self, rng) for place in places]
                concept = measured.concepts[column]
                rows.append((concept, name, *points))
                series.append(Series.of(f"{concept}, {name}", self.readings, points))
        header = ("concept", "condition", *self.readings)
        chart = Chart("Readings along the transcript", "line", "place", "reading", series)
        return DataTable("Along the transcript", header, rows, "Intervals over groups."), chart

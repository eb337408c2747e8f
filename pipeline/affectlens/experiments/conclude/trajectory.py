"""How readings go along a transcript, and whether it is the failing that moves them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Figures
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.interventions.judge import Claim, Rules, judge
from affectlens.results.figures import Chart, DataTable, Finding, Series

TEMPLATE = """
{% if claimed %}
{{ shown }} of {{ claimed|plural("claimed change") }} along the transcript shown.
{% else %}
No direction is claimed here, so the changes are described, not tested.
{% endif %}
Changes are those from {{ first }} to {{ last }}{{ ", beyond those of transcripts that go well" if twins }},
  in standard deviations over scenarios at the first.
{% for c in changes %}
{{ c.concept[:1]|upper ~ c.concept[1:] }} changes by {{ c["change, sd"]|measured("sd") }}
  {{ ", claimed to " ~ c["claimed to"] if c["claimed to"] }}.
{% if c["p, other concepts"] is not nan %}
Against {{ others|plural("other concept") }} that has {{ c["p, other concepts"]|p(floor) }},
  {{ c["corrected p"]|p }} after correction.
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

    def claim_p(self, metrics: Mapping[str, float]) -> float:
        """Of all claimed changes."""
        claimed = [metrics.get(f"p_adjusted_{name}", math.nan) for name, sign in self.signs.items() if sign]
        return estimators.jointly(*claimed) if claimed else math.nan

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Change from the first to the last reading, transcripts that go well taken off, against all other concepts."""
        places = np.stack([selection.reading(measured, name) for name in self.readings])
        own = selection.main_rows(measured) if self.twin else selection.rows(measured)
        twin = selection.rows(measured, (self.twin,)) if self.twin else np.empty(0, dtype=np.int64)
        if self.twin and not len(twin):
            return self.untestable(f"there is no transcript of the condition `{self.twin}` to compare with")
        # Per group the change in standard deviations over scenarios at the first place, less that of the twin.
        both = np.concatenate([own, twin])
        start = places[0, both][np.isfinite(places[0, both]).all(axis=1)]
        spread = start.std(axis=0) if len(start) else np.ones(places.shape[2])
        moved = ((places[-1] - places[0]) / np.where(spread > 0, spread, 1))[both]
        groups, ahead = selection.groups(measured, both), np.arange(len(both)) < len(own)
        changes = (
            estimators.paired(moved, groups, ahead, ~ahead) if len(twin) else estimators.group_means(moved, groups)
        )
        changes = changes[np.isfinite(changes).all(axis=1)]
        if len(changes) < 2:
            which = " with a twin" if len(twin) else ""
            return self.untestable(
                f"{len(changes)} groups of scenarios{which} hold the first and the last place, not two"
            )

        # The other concepts are the controls: a change of all readings alike is none of this concept.
        columns = {concept: measured.concepts.index(concept) for concept in self.signs}
        null = {"other concepts": np.delete(changes, list(columns.values()), axis=1).mean(axis=0)}
        rules = Rules(level=self.alpha, least_controls=self.least_others, least_groups=self.least_groups)
        claims = {
            concept: Claim(concept, each, null, side=1 if (self.signs[concept] or each.mean()) > 0 else -1)
            for concept, each in ((concept, changes[:, column]) for concept, column in columns.items())
        }
        judged = {each.name: each for each in judge([c for name, c in claims.items() if self.signs[name]], rules)}
        judged |= {name: judge([claim], rules)[0] for name, claim in claims.items() if name not in judged}
        rows, verdicts = [], []
        for concept, sign in self.signs.items():
            found, values = judged[concept], changes[:, columns[concept]]
            smallest = estimators.smallest_effect(estimators.standard_error(values), len(values), self)
            # Without a claim the side was chosen by looking at it.
            p, adjusted = (value if sign else min(1.0, 2 * value) for value in (found.p, found.p_adjusted))
            rows.append(
                {"concept": concept, "claimed to": {1: "rise", -1: "fall"}.get(sign, ""),
                 "change, sd": estimators.mean(values, None, self),
                 "p, other concepts": p, "corrected p": adjusted, f"found with {self.power:.0%} power": smallest}
            )  # fmt: skip
            if sign:
                verdicts.append(self.verdict(found.shown, math.inf if found.outcome == "untestable" else smallest))
        weakest = max((row[f"found with {self.power:.0%} power"] for row in rows), key=lambda n: (math.isnan(n), n))
        sentences = render(
            TEMPLATE, claimed=len(verdicts), shown=verdicts.count("shown"), first=self.readings[0],
            last=self.readings[-1], twins=bool(len(twin)), changes=rows, others=len(null["other concepts"]),
            floor=max(each.floor for each in judged.values()), least_others=self.least_others, groups=len(changes),
            smallest=weakest, power=self.power,
        )  # fmt: skip
        figures: Figures = {}
        for row in rows:
            figures |= {f"change_{row['concept']}": row["change, sd"], f"p_{row['concept']}": row["p, other concepts"]}
            figures[f"p_adjusted_{row['concept']}"] = row["corrected p"]
        tests = DataTable.of("First place to last", rows, "Holm over the claimed concepts.")
        along, chart = self._along(measured, places, {"main": own, self.twin: twin}, columns, rng)
        return self.finding(estimators.overall(verdicts, "all"), sentences, figures, (along, tests), (chart,))

    def _along(
        self,
        measured: Measured,
        places: Float[np.ndarray, "places scenarios concepts"],
        conditions: dict[str, np.ndarray],
        columns: dict[str, int],
        rng: np.random.Generator,
    ) -> tuple[DataTable, Chart]:
        """The readings of the named concepts at every place."""
        rows, series = [], []
        for concept, column in columns.items():
            for name, chosen in conditions.items():
                groups = selection.groups(measured, chosen)
                points = [estimators.mean(place[chosen, column], groups, self) for place in places]
                if len(chosen):
                    rows.append({"concept": concept, "condition": name} | dict(zip(self.readings, points, strict=True)))
                    series.append(Series.of(f"{concept}, {name}", self.readings, points))
        chart = Chart("Readings along the transcript", "line", "place", "reading", series)
        return DataTable.of("Along the transcript", rows, "Intervals over groups."), chart

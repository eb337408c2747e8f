"""Whether a framing changes how often the right answer wins, and whether the readings carry the change."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Contrast, Figures
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series
from affectlens.stats import Estimate, benjamini_hochberg, holm

TEMPLATE = """
{{ shown }} of {{ framings|length|plural("framing") }} shown to change how often the right answer wins.
In the neutral wording {{ base|share }} of the answers are right.
{% if base.value > ceiling %}
That leaves no room to rise.
{% endif %}
{% for f in framings %}
The framing {{ f.framing }} changes that share by {{ f.change.estimate|share }},
  {{ f["corrected p"]|p }} after correction.
{% if f.odds.value is not nan %}
It changes the log-odds of the right answer by {{ f.odds|measured("nats") }}.
{% endif %}
{% endfor %}
{% if carried %}
{{ carried|length|plural("reading") }} may carry part of a change (Benjamini-Hochberg over framings and concepts).
The strongest is that of {{ carried[0]["reading of"] }} under {{ carried[0].framing }},
  {{ carried[0]["indirect effect"]|measured(unit) }}.
{% else %}
No reading is shown to carry a change (Benjamini-Hochberg over framings and concepts).
{% endif %}
What is carried is observed, not set: whatever moves the reading and the outcome together counts as carried.
With {{ tasks|plural("task") }} a change of {{ weakest|percent }} would be found with {{ power|percent }} power.
"""


@analysis("accuracy")
class Accuracy(Analysis):
    """Does a framing change how often the right answer wins, and do the readings carry it?"""

    reading: str
    framing: str = "framing"
    """The factor of the framings."""
    neutral: str = "neutral"
    """Its value that is the baseline."""
    ceiling: float = 0.95
    """Share of right answers in the neutral wording above which there is no room to rise."""
    matters: float = Field(default=0.15, ge=0)
    """Difference of shares."""
    permutations: int = 5000

    def needs(self) -> Needs:
        return Needs(readings=(self.reading,), factors={"framing": self.framing}, outcomes=("choice", "completions"))

    def claim_p(self, metrics: Mapping[str, float]) -> float:
        """Of any framing."""
        return min((p for name, p in metrics.items() if name.startswith("p_adjusted_")), default=math.nan)

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Paired differences to the neutral wording over tasks, Holm over framings."""
        right, outcome = outcomes(measured)
        if right is None or outcome is None:
            return self.untestable("neither a choice nor graded answers were measured")
        rows = selection.rows(measured)
        framing = np.array([str(value) for value in selection.factor(measured, self.framing, rows)])
        rows = rows[np.isfinite(right) & np.isfinite(outcome) & (framing != "None")]
        framing, groups = framing[rows], selection.groups(measured, rows)
        names = [name for name in dict.fromkeys(framing.tolist()) if name != self.neutral]
        if self.neutral not in framing or not names:
            value = f"`{self.neutral}` and at least one other, with outcomes"
            return self.untestable(f"the factor `{self.framing}` needs the value {value}")
        neutral, logged = framing == self.neutral, measured.choice is not None
        readings = selection.reading(measured, self.reading)[rows]
        framings, paths = [], []
        for name in names:
            own = framing == name
            both = (own | neutral) & np.isin(groups, np.intersect1d(groups[own], groups[neutral]))
            change = estimators.contrast(estimators.paired(right[rows], groups, own, neutral), self, rng, rates=True)
            odds = estimators.paired(outcome[rows], groups, own, neutral)
            framings.append(
                {"framing": name, "right": estimators.share(right[rows][own], groups[own], self),
                 "change": change,
                 "odds": estimators.mean(odds, None, self) if logged else estimators.undefined()}
            )  # fmt: skip
            cause = own[both].astype(float)
            indirect, p = mediation(cause, readings[both], outcome[rows][both], groups[both], self, rng)
            paths += [
                {"framing": name, "reading of": concept, "indirect effect": effect, "p": each}
                for concept, effect, each in zip(measured.concepts, indirect, p.tolist(), strict=True)
            ]
        base = estimators.share(right[rows][neutral], groups[neutral], self)
        changes: list[Contrast] = [each["change"] for each in framings]
        for each, p in zip(framings, holm(np.array([change.p for change in changes])), strict=True):
            each["corrected p"] = float(p)
        shown = [
            each["corrected p"] <= self.alpha and each["change"].estimate.n >= self.least_groups for each in framings
        ]
        weakest = max((each.smallest for each in changes), key=lambda value: (np.isnan(value), value))
        for path, p in zip(paths, benjamini_hochberg(np.array([path.pop("p") for path in paths])), strict=True):
            path["adjusted p"] = float(p)
        paths.sort(key=lambda path: (math.isnan(path["adjusted p"]), path["adjusted p"]))
        carried = [path for path in paths if path["adjusted p"] <= self.alpha]
        sentences = render(
            TEMPLATE, framings=framings, shown=sum(shown), base=base, ceiling=self.ceiling, carried=carried,
            unit="nats" if logged else "shares", tasks=changes[0].estimate.n, weakest=weakest, power=self.power,
        )  # fmt: skip
        figures: Figures = {"right_neutral": base, "framings_shown": sum(shown), "mediators": len(carried)}
        for each in framings:
            name, change = each["framing"], each["change"]
            figures |= {f"change_{name}": change.estimate, f"p_adjusted_{name}": each["corrected p"]}
            figures[f"smallest_effect_{name}"] = change.smallest
        told = [
            {"framing": each["framing"], "right": each["right"], "change of right": each["change"].estimate,
             "change of log-odds": each["odds"], "corrected p": each["corrected p"]}
            for each in framings
        ]  # fmt: skip
        note = "Observed, not set. The twenty with the smallest p."
        tables = (
            DataTable.of("Framings against the neutral wording", told, "Paired by task; sign flips over tasks, Holm."),
            DataTable.of("What the readings carry", paths[:20], note),
        )
        series = Series.of("change of right answers", names, [each.estimate for each in changes])
        chart = Chart("Accuracy by framing", "bar", "framing", "difference to the neutral wording", [series])
        return self.finding(self.verdict(any(shown), weakest), sentences, figures, tables, (chart,))


def outcomes(measured: Measured) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Per scenario whether the right answer wins, and its log-odds; or mean scores of sampled answers for both."""
    if measured.choice is not None:
        odds = np.asarray(measured.choice[0], dtype=float)
        return np.where(np.isfinite(odds), (odds > 0) + 0.5 * (odds == 0), np.nan), odds
    scores = [(each.scenario, each.grade.get("score")) for each in measured.completions if each.condition == 0]
    graded = [(scenario, float(score)) for scenario, score in scores if score is not None]
    if not graded:
        return None, None
    scenarios, values = np.array(graded).T
    shares = np.full(len(measured.scenarios), np.nan)
    shares[np.unique(scenarios).astype(int)] = estimators.group_means(values, scenarios)
    return shares, shares


def mediation(
    cause: Float[np.ndarray, " rows"],
    readings: Float[np.ndarray, "rows concepts"],
    outcome: Float[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    spec: Analysis,
    rng: np.random.Generator,
) -> tuple[list[Estimate], Float[np.ndarray, " concepts"]]:
    """Change of the outcome that goes through each reading: the product of both paths, within groups.

    Bespoke, because it is a product of two slopes. The first path is the slope of the reading on the cause, the second
    that of the outcome on the reading with the cause held fixed (Baron & Kenny 1986), all after group means are taken
    off, with bootstrap intervals and p over groups (Shrout & Bolger 2002). Whatever moves reading and outcome together
    within a task counts as carried: that is the limit of any mediation that is observed and not set.

    Returns:
        The indirect effects, NaN where a path is not defined; and their two-sided p, at least 2 / (draws + 1).
    """
    width = readings.shape[1]
    whole = np.isfinite(readings).all(axis=1) & np.isfinite(outcome)
    names, codes = np.unique(groups[whole], return_inverse=True)
    if len(names) < 2:
        return [estimators.undefined(len(names))] * width, np.full(width, np.nan)
    table = np.column_stack([cause[whole], outcome[whole], readings[whole]])
    table = table - estimators.group_means(table, codes)[codes]
    x, y, m = table[:, [0]], table[:, [1]], table[:, 2:]
    sums = np.zeros((len(names), 2 + 3 * width))
    np.add.at(sums, codes, np.concatenate([x * x, x * y, x * m, m * m, m * y], axis=1))

    def effects(counts: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, "draws concepts"]:
        total = counts @ sums
        xx, xy = total[:, [0]], total[:, [1]]
        xm, mm, my = np.split(total[:, 2:], 3, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Rounding leaves a spread of order 1e-16 to a reading that the cause determines: no second path then.
            free = mm - xm**2 / xx
            return np.where(free > 1e-10 * mm, xm / xx * (my - xm * xy / xx) / free, np.nan)

    point, drawn = estimators.bootstrap(sums, effects, spec, rng)
    fewer = np.minimum((drawn <= 0).sum(axis=0), (drawn >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (fewer + 1) / (len(drawn) + 1))
    estimates = [
        estimators.interval(value, column, len(names), spec) for value, column in zip(point, drawn.T, strict=True)
    ]
    return estimates, np.where(np.isfinite(point), p, np.nan)

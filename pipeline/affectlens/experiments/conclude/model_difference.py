"""How a second model differs from the first, concept by concept: size, consistency, valence and arousal."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Figures
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series, Verdict
from affectlens.stats import Estimate, benjamini_hochberg, fisher_interval, holm

TEMPLATE = """
{% for c in claims %}
That the difference {{ "rises" if c.side > 0 else "falls" }} with {{ c.name }}: {{ c.verdict|verdict }}.
{% endfor %}
{% if not claims %}
No direction is claimed here, so the difference between the models is described, not tested.
{% endif %}
{% if tuned %}
The second model was tuned by this study on stories of {{ tuned|names }}, so a difference was put in and is no
  discovery.
{% endif %}
{% for r in related %}
{% if r.figure.value is nan %}
Whether the difference goes with {{ r.name }} could not be tested: {{ r.figure.n }} concepts are rated.
{% else %}
Its correlation with {{ r.name }} over {{ r.figure.n }} rated concepts is {{ r.figure|measured }},
  {{ r.p|p(r.floor) }}.
{% if r.smallest is not nan %}
A correlation of {{ r.smallest|number }} would be found with {{ power|percent }} power.
{% endif %}
{% endif %}
{% endfor %}
Most up are {{ up|names }}; most down are {{ down|names }}.
{{ clear }} of {{ concepts }} readings differ beyond the prompts (Benjamini-Hochberg, sign flips over
  {{ groups|plural("group") }}).
Nearly every reading differs after any change of a model, so that number by itself says nothing.
Halves of the prompts give the same profile with r {{ consistent|measured }}.
In the mean over concepts {{ agreeing|share }} of the groups share the sign of the others.
The smallest difference found with {{ power|percent }} power is {{ smallest|number(3) }} in the median over concepts.
"""


@analysis("model_difference", formerly="shift")
class ModelDifference(Analysis):
    """How a second model differs, concept by concept."""

    reading: str
    rises_with: tuple[Literal["valence", "arousal"], ...] = ()
    """Ratings of concepts with which the difference is claimed to rise; without any claim it is described."""
    falls_with: tuple[Literal["valence", "arousal"], ...] = ()
    """Ratings with which it is claimed to fall."""
    splits: int = Field(default=200, ge=1)
    """Random halvings of the prompts behind the consistency."""
    matters: float = Field(default=0.4, ge=0)
    """Correlation with a rating; the reference reports 0.37 with arousal."""
    permutations: int = 2000

    def needs(self) -> Needs:
        return Needs(readings=(self.reading,), second_model=True)

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Second model less first, paired by prompt; claims are about its correlation with ratings of the concepts."""
        if self.reading not in measured.against:
            return self.untestable("there is no second model; name one to compare with")
        rows = selection.main_rows(measured)
        second = np.asarray(measured.against[self.reading], dtype=float)
        change = second - selection.reading(measured, self.reading)
        rows = rows[np.isfinite(change[rows]).any(axis=1)]
        means = estimators.group_means(change[rows], selection.groups(measured, rows))
        kept = np.isfinite(means).all(axis=0) & bool(len(means))
        if len(means) < 2 or kept.sum() < 2:
            few = f"{len(means)} groups of prompts and {kept.sum()} concepts"
            return self.untestable(f"both models were read on {few}, and at least two of each are needed")
        names, means = [measured.concepts[i] for i in np.flatnonzero(kept)], means[:, kept]
        contrasts = [estimators.contrast(column, self, rng) for column in means.T]
        related = [
            self._related(name, means.mean(axis=0), np.asarray(measured.ratings[name], dtype=float)[kept], rng)
            for name in ("valence", "arousal")
        ]
        return self._finding(measured, names, means, contrasts, related, rng)

    def _related(
        self,
        name: str,
        profile: Float[np.ndarray, " concepts"],
        ratings: Float[np.ndarray, " concepts"],
        rng: np.random.Generator,
    ) -> dict:
        """Correlation of the mean difference with a rating over the rated concepts, ratings permuted over concepts."""
        rated = np.isfinite(ratings)
        count = int(rated.sum())
        found = {
            "name": name,
            "figure": estimators.undefined(count),
            "p": math.nan,
            "floor": math.nan,
            "ratings": ratings,
        }
        if count >= 4:
            related = estimators.association(profile[rated], ratings[rated][:, None], None, self, rng)
            found |= {"figure": related.estimates[0], "p": float(related.p[0]), "floor": related.floor}
        return found | {"smallest": estimators.smallest_correlation(count, self)}

    def _finding(
        self,
        measured: Measured,
        names: list[str],
        means: Float[np.ndarray, "groups concepts"],
        contrasts: list,
        related: list[dict],
        rng: np.random.Generator,
    ) -> Finding:
        by_name = {each["name"]: each for each in related}
        claimed = [(name, 1) for name in self.rises_with] + [(name, -1) for name in self.falls_with]
        claims = []
        corrected = holm(np.array([by_name[name]["p"] for name, _ in claimed])) if claimed else []
        for (name, side), p in zip(claimed, corrected, strict=True):
            found = by_name[name]
            verdict: Verdict = "not shown" if found["smallest"] <= self.matters else "untestable"
            if side * found["figure"].value > 0 and p <= self.alpha:
                # A difference that the study put in itself shows that it can be measured, and no more.
                verdict = "planted" if measured.tuned else "shown"
            claims.append({"name": name, "side": side, "verdict": verdict})
        adjusted = benjamini_hochberg(np.array([each.p for each in contrasts]))
        clear = int((adjusted <= self.alpha).sum())
        verdict = (
            estimators.overall([each["verdict"] for each in claims], "all")
            if claims
            else "described"
            if clear
            else "not shown"
        )
        consistent = self._split_halves(means, rng)
        same = np.sign((means.sum(axis=0) - means) / (len(means) - 1)) == np.sign(means)
        agreeing = estimators.mean(same.mean(axis=1), None, self, rng)
        figures = [each.estimate for each in contrasts]
        order = np.argsort([-each.value for each in figures])
        ends = [f"{names[i]} {figures[i].value:+.3f}" for i in order]
        smallest = float(np.median([each.smallest for each in contrasts]))
        sentences = render(
            TEMPLATE, claims=claims, tuned=measured.tuned, related=related, power=self.power,
            up=ends[:3], down=ends[: -4 : -1], clear=clear, concepts=len(names), groups=len(means),
            consistent=consistent, agreeing=agreeing, smallest=smallest,
        )  # fmt: skip
        metrics: Figures = {"concepts_shifted": clear, "split_half": consistent, "sign_agreement": agreeing}
        for each in related:
            metrics |= {f"r_{each['name']}": each["figure"], f"p_{each['name']}": each["p"]}
        metrics |= {f"shift_{name}": figure for name, figure in zip(names, figures, strict=True)}
        valence, arousal = (each["ratings"] for each in related)
        rows = [
            (names[i], figures[i], float(adjusted[i]), float(same[:, i].mean()), contrasts[i].smallest,
             float(valence[i]), float(arousal[i]))
            for i in order
        ]  # fmt: skip
        columns = (
            "concept",
            "difference",
            "adjusted p",
            "groups of the same sign",
            "smallest found",
            "valence",
            "arousal",
        )
        rated = np.flatnonzero(np.isfinite(valence))
        points = Series.of("concepts", valence[rated].tolist(), [figures[i] for i in rated], [names[i] for i in rated])
        chart = Chart("Difference by valence", "scatter", "valence", "difference of the reading", [points])
        return self.finding(verdict, sentences, metrics, (DataTable("Each concept", columns, rows),), (chart,))

    def _split_halves(self, means: Float[np.ndarray, "groups concepts"], rng: np.random.Generator) -> Estimate:
        """Correlation over concepts of the differences in two halves of the groups, raised to the whole.

        Mean over random halvings, Spearman-Brown. The interval is over concepts (Fisher); NaN with fewer than four
        groups.
        """
        count, concepts = means.shape
        halves = []
        for _ in range(self.splits if count >= 4 else 0):
            order = rng.permutation(count)
            first, second = (means[half].mean(axis=0) for half in (order[: count // 2], order[count // 2 :]))
            if first.std() > 0 and second.std() > 0:
                halves.append(float(np.corrcoef(first, second)[0, 1]))
        if not halves:
            return estimators.undefined(concepts)
        ends = fisher_interval(float(np.mean(halves)), concepts, level=self.coverage)
        point, low, high = (2 * r / (1 + r) if r > 0 else r for r in ends[:3])
        return Estimate(point, low, high, concepts)

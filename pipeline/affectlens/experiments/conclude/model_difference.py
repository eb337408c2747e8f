"""How a second model differs from the first, concept by concept: size, consistency, valence and arousal."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

    def claim_p(self, metrics: Mapping[str, float]) -> float:
        """Of all claimed correlations with ratings."""
        claimed = [metrics.get(f"p_{name}", math.nan) for name in (*self.rises_with, *self.falls_with)]
        return float(holm(np.array(claimed)).max()) if claimed else math.nan

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
        differences = [each.estimate for each in contrasts]
        # The mean difference against ratings over the rated concepts, ratings permuted over concepts.
        ratings = {name: np.asarray(measured.ratings[name], dtype=float)[kept] for name in ("valence", "arousal")}
        related = {}
        for name, values in ratings.items():
            rated = np.isfinite(values)
            count = int(rated.sum())
            found = {"figure": estimators.undefined(count), "p": math.nan, "floor": math.nan}
            if count >= 4:
                each = estimators.association(means.mean(axis=0)[rated], values[rated][:, None], None, self, rng)
                found = {"figure": each.estimates[0], "p": float(each.p[0]), "floor": each.floor}
            related[name] = {"name": name, "smallest": estimators.smallest_correlation(count, self), **found}
        claimed = [(name, 1) for name in self.rises_with] + [(name, -1) for name in self.falls_with]
        corrected = holm(np.array([related[name]["p"] for name, _ in claimed])) if claimed else []
        claims = []
        for (name, side), p in zip(claimed, corrected, strict=True):
            each = related[name]
            verdict = self.verdict(side * each["figure"].value > 0 and p <= self.alpha, each["smallest"])
            # A difference that the study put in itself shows that it can be measured, and no more.
            verdict = "planted" if measured.tuned and verdict == "shown" else verdict
            claims.append({"name": name, "side": side, "verdict": verdict})
        adjusted = benjamini_hochberg(np.array([each.p for each in contrasts]))
        clear = int((adjusted <= self.alpha).sum())
        verdict: Verdict = "described" if clear else "not shown"
        if claims:
            verdict = estimators.overall([each["verdict"] for each in claims], "all")
        consistent = self._split_halves(means, rng)
        same = np.sign((means.sum(axis=0) - means) / (len(means) - 1)) == np.sign(means)
        agreeing = estimators.mean(same.mean(axis=1), None, self)
        order = np.argsort([-each.value for each in differences])
        ends = [f"{names[i]} {differences[i].value:+.3f}" for i in order]
        sentences = render(
            TEMPLATE, claims=claims, tuned=measured.tuned, related=related.values(), power=self.power, up=ends[:3],
            down=ends[: -4 : -1], clear=clear, concepts=len(names), groups=len(means), consistent=consistent,
            agreeing=agreeing, smallest=float(np.median([each.smallest for each in contrasts])),
        )  # fmt: skip
        metrics: Figures = {"concepts_shifted": clear, "split_half": consistent, "sign_agreement": agreeing}
        for name, each in related.items():
            metrics |= {f"r_{name}": each["figure"], f"p_{name}": each["p"]}
        metrics |= {f"shift_{name}": figure for name, figure in zip(names, differences, strict=True)}
        rows = [
            {"concept": names[i], "difference": differences[i], "adjusted p": float(adjusted[i]),
             "groups of the same sign": float(same[:, i].mean()), "smallest found": contrasts[i].smallest,
             **{name: float(values[i]) for name, values in ratings.items()}}
            for i in order
        ]  # fmt: skip
        rated = np.flatnonzero(np.isfinite(ratings["valence"]))
        x, y = ratings["valence"][rated].tolist(), [differences[i] for i in rated]
        points = Series.of("concepts", x, y, [names[i] for i in rated])
        chart = Chart("Difference by valence", "scatter", "valence", "difference of the reading", [points])
        return self.finding(verdict, sentences, metrics, (DataTable.of("Each concept", rows),), (chart,))

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

"""What a model prefers, what goes with it, and what steering makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection, steering
from affectlens.experiments.conclude.analysis import Needs, analysis
from affectlens.experiments.conclude.bradley_terry import ELO, BradleyTerry, shares
from affectlens.experiments.conclude.estimators import Figures
from affectlens.experiments.conclude.preference_table import Related, correlate, read_scores
from affectlens.experiments.conclude.pushes import SteeringAnalysis
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.conclude.steering import SteeredVector
from affectlens.experiments.experiment import PairwiseConfig
from affectlens.experiments.results import Measured
from affectlens.results import format
from affectlens.results.figures import Chart, DataTable, Finding, Series, Verdict
from affectlens.stats import Estimate, fisher_interval, permutation_p, permuted_within

TEMPLATE = (
    """
Readings of pleasant concepts are {{ "" if goes_with else "not " }}shown to go with preference, and those of
  unpleasant ones against it.
Within categories their mean r is {{ together|measured }} over {{ rated }} rated concepts; items shuffled
  within categories give {{ p|p(floor) }}.
The items' words alone give a mean r of {{ words|measured }}.
{{ raw }} of {{ concepts }} concepts correlate with preference over all items, {{ within }} within categories
  (Benjamini-Hochberg).
{% for s in strongest %}
{{ s.name[:1]|upper ~ s.name[1:] }} correlates by r {{ s.raw|measured }}, within categories by
  {{ s.within|measured }}.
{% endfor %}
A mean r of {{ smallest|number }} would be found with {{ power|percent }} power.
Categories {{ "differ" if control <= alpha else "do not differ" }} in strength, {{ control|p }}:
  the comparisons {{ "follow" if control <= alpha else "are not shown to follow" }} what the items say.
{% if not vectors %}
Nothing was compared under steering, so that readings go with preference is a correlation only.
{% endif %}
"""
    + steering.TEMPLATE
    + """
{% if effect.value is not nan %}
Over {{ effect.n }} vectors, the effect of steering and the raw correlation agree by r {{ effect|measured }}.
{% endif %}
Standing first is worth {{ position|measured("Elo points", 0) }}.
In {{ same_place|percent }} of the pairs the same place wins in both orders.
Of the comparisons of {{ items }} items {{ tied|percent }} are ties.
"""
)


@analysis("preference")
class Preference(SteeringAnalysis):
    """Bradley-Terry strengths of paired comparisons, and what goes with them."""

    reading: str
    """A reading of the items' texts, correlated with the strengths raw, without the extreme categories, and within
    categories."""
    leave_out: tuple[str, ...] = ()
    """Categories without which the correlation is reported again."""
    rule: Literal["all", "any"] = "any"
    fits: int = Field(default=200, ge=1)
    """Bootstrap fits behind the intervals of strengths."""
    matters: float = Field(default=100.0, ge=0)
    """Elo points a side; the reference reports more than 200."""
    matters_correlation: float = Field(default=0.4, ge=0)
    """Mean correlation within categories that matters."""
    permutations: int = 2000

    def needs(self) -> Needs:
        return Needs(readings=(self.reading,), outcomes=("pairwise",))

    def claim_p(self, metrics: Mapping[str, float]) -> float:
        """Readings go with preference, and, where it was steered, vectors move it."""
        parts = [metrics.get("p_within_aligned", math.nan), super().claim_p(metrics)]
        return max((p for p in parts if math.isfinite(p)), default=math.nan)

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Fit strengths, correlate them with every reading, and see whether steering some items moves these."""
        if measured.comparisons is None or 0 not in measured.compared:
            return self.untestable("nothing was compared without steering")
        readings = selection.reading(measured, self.reading)
        base = np.asarray(measured.comparisons[measured.compared.index(0)], dtype=float)
        compared = np.isfinite(base) & ~np.eye(len(base), dtype=bool)
        known = np.isfinite(readings).all(axis=1) & (compared.any(axis=0) | compared.any(axis=1))
        if known.sum() < 4:
            return self.untestable(f"{known.sum()} items were compared and read, and at least four are needed")
        outcome = measured.experiment.config.outcome(PairwiseConfig)
        tie = outcome.tie if outcome else 0.0
        texts, kinds = (np.array([item[side] for item in measured.items]) for side in (0, 1))
        model = BradleyTerry(shares(base, tie))
        strengths, (drawn, positions) = model.fit(), model.bootstrap(self.fits, rng)
        elo = strengths.elo
        items = [
            estimators.interval(value, ELO * column, len(elo), self) for value, column in zip(elo, drawn.T, strict=True)
        ]
        position = estimators.interval(ELO * strengths.position, ELO * positions, len(elo), self)
        both = np.triu(compared & compared.T)
        same_place = float((base * base.T > 0)[both].mean()) if both.any() else math.nan
        tied = float((np.abs(base[compared]) <= tie).mean())
        related = correlate(
            texts[known].tolist(), kinds[known].tolist(), elo[known],
            dict(zip(measured.concepts, readings[known].T, strict=True)), self,
            leave_out=[kind for kind in self.leave_out if kind in kinds[known]], rng=rng,
        )  # fmt: skip
        valence = np.asarray(measured.ratings["valence"], dtype=float)
        rated = np.isfinite(valence)
        # Concepts that are rated more pleasant than the median one should rise with preference, the others fall.
        signs = np.where(rated, np.sign(np.nan_to_num(valence) - (np.median(valence[rated]) if rated.any() else 0)), 0)
        together, p, floor, used = self._aligned(elo[known], readings[known], kinds[known], signs, rng)
        texts_say = np.nan_to_num(np.asarray(measured.words, dtype=float))
        words = self._aligned(elo[known], texts_say[known], kinds[known], signs, rng)[0]
        named = dict.fromkeys(each.vector for each in measured.grid if each.family == "concept")
        claimed: list[tuple[str, Literal[1, -1]]] = [
            (name, 1 if sign > 0 else -1) for name in named if (sign := signs[measured.concepts.index(name)])
        ]
        change = steered_change(measured, tie)
        vectors = [] if change is None else steering.steered_vectors(measured, change, self, claimed, rng)
        # The positive control: what the items say decides at least between categories.
        control = between_p(elo, kinds, self.permutations, rng)
        untold = "categories of items are not shown to differ in strength" if control > self.alpha and vectors else ""
        # Readings go with preference, and steering moves it where it was tried.
        goes_with, smallest = together.value > 0 and p <= self.alpha, estimators.smallest_of(together, self)
        verdict: Verdict = "shown"
        if not goes_with:
            verdict = "not shown" if smallest <= self.matters_correlation else "untestable"
        elif vectors:
            verdict = "untestable" if untold else estimators.overall([each.verdict for each in vectors], self.rule)
        effect = agreement(vectors, related)
        order = np.argsort([-abs(each.value) if math.isfinite(each.value) else 0.0 for each in related.raw.estimates])
        strongest = [
            {"name": related.concepts[i], "raw": related.raw.estimates[i], "within": related.within.estimates[i]}
            for i in order[:3]
        ]
        action = "move the Elo of the items they are put on, up where pleasant and down where not"
        sentences = render(
            TEMPLATE, **steering.said(vectors, self, action, "Elo points", untold), goes_with=goes_with,
            together=together, rated=int(used.sum()), p=p, floor=floor, words=words, concepts=len(related.concepts),
            raw=int((related.adjusted("raw") <= self.alpha).sum()), strongest=strongest, control=control,
            within=int((related.adjusted("within") <= self.alpha).sum()), alpha=self.alpha, smallest=smallest,
            effect=effect, position=position, same_place=same_place, items=len(base), tied=tied,
        )  # fmt: skip
        figures: Figures = {
            "within_aligned": together, "p_within_aligned": p, "position_bias_elo": position,
            "decided_by_position": same_place, "tied": tied, "p_categories": control,
        }  # fmt: skip
        for name in ("raw", "free", "within"):
            figures[f"concepts_{name}"] = (related.adjusted(name) <= self.alpha).sum()
            estimates = zip(related.concepts, getattr(related, name).estimates, strict=True)
            figures |= {f"r_{name}_{concept}": each for concept, each in estimates}
        if vectors:
            figures |= {**steering.figures(vectors, name="elo"), "steering_agreement": effect}
        tables, charts = drawn_up(measured, items, readings, related)
        return self.finding(verdict, sentences, figures, (*tables, steering.table(vectors, "Elo points")), charts)

    def _aligned(
        self,
        elo: Float[np.ndarray, " items"],
        readings: Float[np.ndarray, "items concepts"],
        kinds: Shaped[np.ndarray, " items"],
        signs: Float[np.ndarray, " concepts"],
        rng: np.random.Generator,
    ) -> tuple[Estimate, float, float, Bool[np.ndarray, " concepts"]]:
        """Mean within-category correlation over concepts, each with the sign it is expected to have, as one test.

        Returns:
            The mean with its bootstrap interval over items (category means taken off once), the one-sided p of items
            changing places within their category, its floor, and which concepts entered.
        """
        x, y = estimators.less_strata(elo, kinds), estimators.less_strata(readings, kinds)
        values = estimators.correlations(x, y)
        used = np.isfinite(values) & (signs != 0)
        if not used.any():
            return estimators.undefined(len(elo)), math.nan, math.nan, used
        y, signs = y[:, used], signs[used]
        null = estimators.correlations(x[permuted_within(kinds, self.permutations, rng)], y) @ signs / len(signs)
        value = float((values[used] * signs).mean())
        p, floor = permutation_p(value, null)

        def aligned(counts: Float[np.ndarray, "draws items"]) -> Float[np.ndarray, " draws"]:
            mean_x, mean_y = counts @ x / len(x), counts @ y / len(x)
            xy = counts @ (x[:, None] * y) / len(x) - mean_x[:, None] * mean_y
            xx, yy = counts @ x**2 / len(x) - mean_x**2, counts @ y**2 / len(x) - mean_y**2
            with np.errstate(divide="ignore", invalid="ignore"):
                return (xy / np.sqrt(xx[:, None] * yy)) @ signs / len(signs)

        _, drawn = estimators.bootstrap(x, aligned, self, rng)
        return estimators.interval(value, drawn, len(x), self), float(p), floor, used


def steered_change(measured: Measured, tie: float) -> Float[np.ndarray, "conditions items"] | None:
    """Per condition and item, values whose mean is how far the steered items rose above the others, in Elo points."""
    if measured.steered is None or measured.comparisons is None or len(measured.compared) < 2:
        return None
    steered = np.asarray(measured.steered, dtype=bool)
    if steered.all() or not steered.any():
        return None
    elo = np.full((len(measured.grid), len(steered)), np.nan)
    for index, odds in zip(measured.compared, measured.comparisons, strict=True):
        if np.isfinite(odds).any():
            elo[index] = BradleyTerry(shares(odds, tie)).fit().elo
    # Strengths have mean 0, so a rise of some is a fall of the others: both halves tell of the same difference.
    return (elo - elo[0]) * np.where(steered, len(steered) / steered.sum(), -len(steered) / (~steered).sum())


def between_p(
    elo: Float[np.ndarray, " items"], kinds: Shaped[np.ndarray, " items"], permutations: int, rng: np.random.Generator
) -> float:
    """p of the variance between category means, items shuffled over categories; 1 where there is one category."""
    if len(np.unique(kinds)) < 2:
        return 1.0
    orders = permuted_within(np.zeros(len(elo)), permutations, rng)
    sizes = np.unique(kinds, return_counts=True)[1]

    def between(values: Float[np.ndarray, "items draws"]) -> Float[np.ndarray, " draws"]:
        return (sizes[:, None] * (estimators.group_means(values, kinds) - values.mean(axis=0)) ** 2).sum(axis=0)

    return float(permutation_p(float(between(elo[:, None])[0]), between(elo[orders].T))[0])


def agreement(vectors: list[SteeredVector], related: Related) -> Estimate:
    """Correlation over vectors of what steering does with how the reading correlates with preference."""
    raw = dict(zip(related.concepts, related.raw.estimates, strict=True))
    pairs = [(each.effect.value, raw[each.vector].value) for each in vectors]
    pairs = np.array([pair for pair in pairs if all(map(math.isfinite, pair))]).reshape(-1, 2)
    if len(pairs) < 3 or (pairs.std(axis=0) == 0).any():
        return estimators.undefined(len(pairs))
    return fisher_interval(float(np.corrcoef(pairs.T)[0, 1]), len(pairs))


def drawn_up(
    measured: Measured, elo: Sequence[Estimate], readings: Float[np.ndarray, "items concepts"], related: Related
) -> tuple[tuple[DataTable, ...], tuple[Chart, ...]]:
    """Strengths, correlations, and strengths over the reading that goes with them most."""
    ranked = [
        {"item": measured.items[i][0], "category": measured.items[i][1], "Elo": elo[i]}
        for i in np.argsort([-each.value for each in elo])
    ]
    free = f"without {', '.join(related.left_out)}" if related.left_out else "all categories"
    columns = {"raw": "raw", "free": free, "within": "within categories"}
    rows = [
        {"concept": concept}
        | {f"r, {column}": getattr(related, name).estimates[i] for name, column in columns.items()}
        | {f"p, {column}": float(related.adjusted(name)[i]) for name, column in columns.items()}
        for i, concept in enumerate(related.concepts)
    ]
    tables = (
        DataTable.of("Strengths", ranked, "Intervals: pairs of items drawn anew."),
        DataTable.of("Readings and preference", rows, "p by permutation, Benjamini-Hochberg over the concepts."),
    )
    best = int(np.argmax([abs(each.value) if math.isfinite(each.value) else -1.0 for each in related.raw.estimates]))
    series = []
    for kind in dict.fromkeys(kind for _, kind in measured.items):
        own = [i for i, item in enumerate(measured.items) if item[1] == kind]
        points, labels = [float(readings[i, best]) for i in own], [measured.items[i][0] for i in own]
        series.append(Series(kind, points, [elo[i].value for i in own], labels=labels))
    x = f"reading of {related.concepts[best]}"
    return tables, (Chart("Preference by reading", "scatter", x, "Elo", series),)


def print_table(path: Path, leave_out: Sequence[str] = ()) -> None:
    """Print the correlations of a table of items, categories, scores and readings, each with its interval.

    Args:
        path: a CSV with the columns item, category, elo and one of readings for each concept.
        leave_out: categories that count as extreme; by default the two whose means lie farthest out.

    Raises:
        UserError: the file or a column is missing, or a cell is no number.
    """
    items, categories, elo, readings = read_scores(path)
    spec, rng = Preference(reading="of the table"), np.random.default_rng(0)
    related = correlate(items, categories, elo, readings, spec, leave_out=leave_out, rng=rng)
    width = max(len("concept"), *map(len, related.concepts))
    print(
        f"{len(items)} items in {len(set(categories))} categories; p by permutation, Benjamini-Hochberg over concepts"
    )
    print(f"{'concept':<{width}}  {'raw r':<30}  {f'without {format.names(related.left_out)}':<30}  within categories")
    for index, concept in enumerate(related.concepts):
        cells = [
            f"{format.measured(getattr(related, name).estimates[index])} "
            f"p {format.p_value(related.adjusted(name)[index])}"
            for name in ("raw", "free", "within")
        ]
        print(f"{concept:<{width}}  {cells[0]:<30}  {cells[1]:<30}  {cells[2]}")

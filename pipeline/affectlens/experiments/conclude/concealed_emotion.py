"""Whether emotions that are concealed behind another are represented apart from expressed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Discrimination, Figures
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.probing.control_vectors import unit_rows
from affectlens.probing.detection import own_areas
from affectlens.results.figures import Chart, DataTable, Finding, Series
from affectlens.stats import Estimate, benjamini_hochberg, permutation_p, permuted_labels

TEMPLATE = """
{% if not detected %}
Concealed emotions are not shown to be told apart, so no share outside the story space can be given.
{% elif verdict == "shown" %}
Concealed emotions are told apart, and most of what tells them apart lies outside the story space.
{% else %}
Concealed emotions are told apart, but it is not shown that most of what does so lies outside the story space.
{% endif %}
In groups left out AUROC is {{ hidden.mean|measured }}, shuffled labels {{ p|p(floor) }}.
{% if detected and outside.value is not nan %}
Free of noise, {{ outside|share }} of the squared norm lies outside the story space, {{ p_outside|p }} against
  {{ apart|percent }}.
{% endif %}
The story directions of the same emotions reach {{ story.mean|measured }} on these dialogues.
Their words alone reach {{ words.mean|measured }}.
As it stands {{ raw|percent }} of the squared norm lies outside, and {{ raw_null|percent }} of that of
  shuffled labels.
Noise lies outside too, so only the share that two halves of the data agree on counts.
The mean cosine with the story directions of the same emotions is {{ cosine|number }}.
Under shuffled labels cosines are within {{ cosine_null|number }} in 95% of the cases.
{% if openly is not nan %}
With directions of the same emotions displayed openly in dialogues of the same kind the mean cosine is
  {{ openly|number }}.
{% endif %}
With {{ hidden.mean.n|plural("group") }} an AUROC of {{ (0.5 + smallest)|number }} would be found with
  {{ power|percent }} power.
"""


@dataclass(frozen=True)
class Dialogues:
    """Dialogues in which one emotion is concealed behind another.

    Attributes:
        residual: at the reading.
        hidden: which concealed emotion, an index into ``names``.
        shown: which displayed one, an index of its own.
        groups: of the dialogues.
        names: concealed emotions.
        story: unit directions of the concealed emotions from stories.
        space: orthonormal rows that span the directions of all concepts.
        expressed: reading of the concealed emotions by the story directions.
        words: the same from the words alone.
        openly: unit directions of the same emotions where they are displayed openly, from dialogues of the same kind;
            None where there are no such dialogues of each of them.
    """

    residual: Float[np.ndarray, "rows d"]
    hidden: Int[np.ndarray, " rows"]
    shown: Int[np.ndarray, " rows"]
    groups: Shaped[np.ndarray, " rows"]
    names: tuple[str, ...]
    story: Float[np.ndarray, "hidden d"]
    space: Float[np.ndarray, "rank d"]
    expressed: Float[np.ndarray, "rows hidden"]
    words: Float[np.ndarray, "rows hidden"]
    openly: Float[np.ndarray, "hidden d"] | None

    def directions(
        self, rows: Bool[np.ndarray, " rows"], hidden: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "hidden d"]:
        """Effect of each concealed emotion beside that of the displayed one, by least squares; their mean is 0."""
        shown, count = self.shown[rows], len(self.names)
        design = np.concatenate([hidden[rows][:, None] == np.arange(count), shown[:, None] == np.unique(shown)], axis=1)
        residual = self.residual[rows]
        effects = np.linalg.pinv(design.astype(float))[:count] @ (residual - residual.mean(axis=0))
        return effects - effects.mean(axis=0)

    def held_out(self, hidden: Int[np.ndarray, " rows"], folds: int) -> Float[np.ndarray, "rows hidden"]:
        """Readout of every dialogue by directions from other groups."""
        names, codes = np.unique(self.groups, return_inverse=True)
        fold = codes % min(folds, len(names))
        scores = np.zeros((len(hidden), len(self.names)))
        for each in np.unique(fold):
            test = fold == each
            centred = self.residual[test] - self.residual[~test].mean(axis=0)
            scores[test] = centred @ unit_rows(self.directions(~test, hidden)).T
        return scores

    def outside(self, vectors: Float[np.ndarray, "n d"]) -> float:
        """Share of the squared norm that lies outside the story space."""
        return float(1 - ((vectors @ self.space.T) ** 2).sum() / max(float((vectors**2).sum()), 1e-30))


@analysis("concealed_emotion", formerly="masking")
class ConcealedEmotion(Analysis):
    """Are concealed emotions represented apart from expressed ones?"""

    reading: str
    """One with `keep_residual`."""
    masked: str = "masked"
    """The factor of the concealed emotion."""
    shown: str = "shown"
    """The factor of the displayed one (equal where nothing is concealed)."""
    folds: int = Field(default=8, ge=2)
    """Parts of the groups that are left out in turn."""
    halvings: int = Field(default=20, ge=1)
    """Random halvings behind the share outside the story space."""
    apart: float = Field(default=0.5, ge=0, lt=1)
    """Share of the squared norm that must lie outside the story space to be called apart."""
    matters: float = Field(default=0.2, ge=0)
    """AUROC above one half."""
    permutations: int = 100

    def needs(self) -> Needs:
        factors = {"masked": self.masked, "shown": self.shown}
        return Needs(readings=(self.reading,), residuals=(self.reading,), factors=factors)

    def claim_p(self, metrics: Mapping[str, float]) -> float:
        """Told apart, and mostly outside the story space."""
        return max(metrics.get("p", math.nan), metrics.get("p_outside", 0.0))

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Directions of concealed emotions: found again in groups left out, and how far outside the story space."""
        if self.reading not in measured.residuals:
            return self.untestable(f"the reading `{self.reading}` kept no residuals; set `keep_residual` for it")
        talks = self._dialogues(measured)
        if talks is None:
            few = "hold fewer than two concealed emotions or four groups"
            return self.untestable(f"dialogues in which `{self.masked}` differs from `{self.shown}` {few}")
        every = np.ones(len(talks.hidden), dtype=bool)
        scores = talks.held_out(talks.hidden, self.folds)
        hidden, story, words = (
            Discrimination(each, talks.hidden, talks.groups).areas(self, rng)
            for each in (scores, talks.expressed, talks.words)
        )
        labels = talks.hidden[:, None] == np.arange(len(talks.names))
        areas, shares, cosines = [], [], []
        for shuffled in permuted_labels(talks.hidden, talks.groups, self.permutations, rng, together=True):
            vectors, held_out = talks.directions(every, shuffled), talks.held_out(shuffled, self.folds)
            areas.append(np.nanmean(own_areas(held_out, shuffled[:, None] == np.arange(len(talks.names)))))
            shares.append(talks.outside(vectors))
            cosines.append(np.abs((unit_rows(vectors) * talks.story).sum(axis=1)))
        p, floor = permutation_p(float(np.nanmean(own_areas(scores, labels))), np.array(areas))
        vectors = talks.directions(every, talks.hidden)
        cosine = (unit_rows(vectors) * talks.story).sum(axis=1)
        p_cosine = np.asarray(permutation_p(np.abs(cosine), np.array(cosines))[0])
        openly = np.full(len(cosine), np.nan)
        if talks.openly is not None:
            openly = (unit_rows(vectors) * talks.openly).sum(axis=1)
        groups = len(np.unique(talks.groups))
        detected = hidden.mean.value > 0.5 and p <= self.alpha and groups >= self.least_groups
        # Where nothing is told apart there is no direction whose share could be given, only noise over noise.
        outside, p_outside = self._outside(talks, rng) if detected else (estimators.undefined(groups), math.nan)
        p_claim = estimators.jointly(float(p), p_outside)
        smallest = estimators.smallest_of(hidden.mean, self)
        verdict = self.verdict(False, smallest)
        if detected:
            verdict = "untestable" if math.isnan(p_claim) else "shown" if p_claim <= self.alpha else "not shown"
        sentences = render(
            TEMPLATE, detected=detected, verdict=verdict, hidden=hidden, p=float(p), floor=floor, outside=outside,
            p_outside=p_outside, apart=self.apart, story=story, words=words, raw=talks.outside(vectors),
            raw_null=float(np.mean(shares)), cosine=float(cosine.mean()),
            cosine_null=float(np.quantile(cosines, 0.95)), openly=float(openly.mean()), smallest=smallest,
            power=self.power,
        )  # fmt: skip
        figures: Figures = {
            "auroc_masked": hidden.mean, "auroc_story": story.mean, "auroc_words": words.mean, "outside": outside,
            "p": p, "p_outside": p_outside, "outside_raw": talks.outside(vectors),
            "outside_raw_null": float(np.mean(shares)), "cosine": cosine.mean(), "cosine_open": openly.mean(),
            "smallest_effect": smallest,
        }  # fmt: skip
        adjusted = benjamini_hochberg(p_cosine)
        rows = [
            {"concealed": name, "dialogues": int((talks.hidden == i).sum()),
             "AUROC, left-out groups": hidden.concepts[i],
             "AUROC, story direction": story.concepts[i], "cosine with story": float(cosine[i]),
             "adjusted p": float(adjusted[i]), "cosine with open display": float(openly[i])}
            for i, name in enumerate(talks.names)
        ]  # fmt: skip
        note = "p of the cosine: shuffled labels, Benjamini-Hochberg."
        series = [
            Series.of("concealed direction, left-out groups", talks.names, hidden.concepts),
            Series.of("story direction", talks.names, story.concepts),
        ]
        chart = Chart("Where concealed emotions are read", "bar", "concealed emotion", "AUROC", series)
        table = DataTable.of("Each concealed emotion", rows, note)
        return self.finding(verdict, sentences, figures, (table,), (chart,))

    def _dialogues(self, measured: Measured) -> Dialogues | None:
        rows, hidden = selection.intended(measured, self.masked, selection.main_rows(measured))
        residual = np.asarray(measured.residuals[self.reading], dtype=float)
        shown = np.array([str(value) for value in selection.factor(measured, self.shown, rows)])
        same = np.array([measured.concepts[index] for index in hidden]) == shown
        whole = np.isfinite(residual[rows]).all(axis=1)
        opened, of_opened = rows[same & whole], hidden[same & whole]
        rows, hidden, shown = (each[~same & whole] for each in (rows, hidden, shown))
        groups, columns = selection.groups(measured, rows), np.unique(hidden)
        if len(columns) < 2 or len(np.unique(groups)) < 4:
            return None
        openly = None
        if np.isin(columns, of_opened).all():
            means = np.stack([residual[opened][of_opened == column].mean(axis=0) for column in columns])
            openly = unit_rows(means - means.mean(axis=0))
        directions = np.asarray(measured.directions, dtype=float)
        _, values, space = np.linalg.svd(directions, full_matrices=False)
        return Dialogues(
            residual=residual[rows],
            hidden=np.searchsorted(columns, hidden),
            shown=np.unique(shown, return_inverse=True)[1],
            groups=groups,
            names=tuple(measured.concepts[index] for index in columns),
            story=directions[columns],
            space=space[values > 1e-6 * values.max()],
            expressed=np.nan_to_num(selection.reading(measured, self.reading)[rows][:, columns]),
            words=np.nan_to_num(np.asarray(measured.words, dtype=float)[rows][:, columns]),
            openly=openly,
        )

    def _outside(self, talks: Dialogues, rng: np.random.Generator) -> tuple[Estimate, float]:
        """Share of the squared norm outside the story space, free of noise, and p that it is above ``apart``.

        Bespoke: the product of what two halves of the groups say has no noise in its mean, unlike the square of either
        (the idea of cross-validated distances, Walther et al. 2016). Sums over random halvings and emotions come before
        the ratio. The interval is a jackknife over groups, because a group drawn twice would sit in both halves.
        """
        from scipy.special import stdtr, stdtrit

        names, seed = np.unique(talks.groups), int(rng.integers(2**31))

        def share(left_out: str | None) -> float:
            halves = np.random.default_rng(seed)
            kept = talks.groups != left_out
            own = np.unique(talks.groups[kept])
            whole = inside = 0.0
            for _ in range(self.halvings):
                half = np.isin(talks.groups, halves.permutation(own)[: len(own) // 2])
                first, second = (talks.directions(side, talks.hidden) for side in (kept & half, kept & ~half))
                whole += float((first * second).sum())
                inside += float(((first @ talks.space.T) * (second @ talks.space.T)).sum())
            return 1 - inside / whole if whole > 0 else math.nan

        point, left, count = share(None), np.array([share(name) for name in names]), len(names)
        if not math.isfinite(point) or not np.isfinite(left).all():
            return Estimate(point, math.nan, math.nan, count), math.nan
        error = math.sqrt((count - 1) / count * float(((left - left.mean()) ** 2).sum()))
        half = float(stdtrit(count - 1, 1 - self.alpha / 2)) * error
        p = 2 * float(stdtr(count - 1, -(point - self.apart) / max(error, 1e-12)))
        return Estimate(point, point - half, point + half, count), min(1.0, p)

"""How often the state while answering and the emotion of the answer's text dissociate, and under which steering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field

from affectlens.experiments.conclude import estimators, pushes, selection, steering
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Figures
from affectlens.experiments.conclude.pushes import SteeringAnalysis
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series, Verdict
from affectlens.stats import Estimate, permutation_p, permuted_within

TEMPLATE = (
    """
{% if not vectors %}
No answer was sampled under steering, so what parts state and text is described, not tested.
{% endif %}
"""
    + steering.TEMPLATE
    + """
Unsteered, state and text read highest on different concepts (of {{ concepts }}) in {{ parted|share }} of the answers.
If texts belonged to other answers it would be {{ chance|percent }}; that they agree more than so has
  {{ p|p(floor) }}.
On {{ opposed|share }} of the concepts they have opposite signs.
Over unsteered answers, state and text correlate by r {{ related|measured }} in the mean over concepts.
State and the answer's words alone correlate by r {{ in_words|measured }}.
The state is read above the push and holds it: parting under steering says that the text does not follow.
"""
)


@dataclass(frozen=True)
class Answers:
    """Readings of the sampled answers, of the concepts in question, in standard deviations of the unsteered ones."""

    state: Float[np.ndarray, "answers concepts"]
    text: Float[np.ndarray, "answers concepts"]
    words: Float[np.ndarray, "answers concepts"]
    condition: Int[np.ndarray, " answers"]
    scenario: Int[np.ndarray, " answers"]
    groups: Shaped[np.ndarray, " answers"]

    @property
    def parted(self) -> Float[np.ndarray, " answers"]:
        """Whether state and text read highest on different concepts."""
        return (self.state.argmax(axis=1) != self.text.argmax(axis=1)).astype(float)

    @property
    def opposed(self) -> Float[np.ndarray, " answers"]:
        """Share of the concepts that are above usual in one and below in the other."""
        return (np.sign(self.state) * np.sign(self.text) < 0).mean(axis=1)

    def where(self, rows: Bool[np.ndarray, " answers"]) -> Answers:
        """Some of the answers."""
        return Answers(**{name: values[rows] for name, values in vars(self).items()})


@analysis("dissociation", formerly="parting")
class Dissociation(SteeringAnalysis):
    """How often the state while answering and the emotion of the text part."""

    concepts: tuple[str, ...]
    """That are read in state and text."""
    vectors: tuple[str, ...] = ()
    """Vectors that are claimed to part them, all by default; every further one costs in the correction."""
    rule: Literal["all", "any"] = "any"
    matters: float = Field(default=0.25, ge=0)
    """Rise of the share of answers that part."""

    def needs(self) -> Needs:
        return Needs(outcomes=("completions",), concepts=self.concepts)

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """How often they part without steering, and under which steering more often than under controls."""
        answers = self._answers(measured)
        if answers is None:
            return self.untestable("fewer than three unsteered answers were sampled and read, which leaves no scale")
        usual = answers.where(answers.condition == 0)
        parted = estimators.share(usual.parted, usual.groups, self)
        opposed = estimators.share(usual.opposed, usual.groups, self)
        state, text = usual.state.argmax(axis=1), usual.text.argmax(axis=1)
        orders = permuted_within(np.zeros(len(text)), self.permutations, rng)
        null = (state != text[orders]).mean(axis=1)
        p, floor = permutation_p(-float((state != text).mean()), -null)
        related, in_words = (
            mean_correlation(usual.state, other, usual.groups, self, rng) for other in (usual.text, usual.words)
        )
        # Every steering condition is a claim of its own: pushing either way may part state and text.
        count = len(measured.scenarios)
        shares = np.full(len(measured.grid) * count, np.nan)
        positions = answers.condition * count + answers.scenario
        shares[np.unique(positions)] = estimators.group_means(answers.parted, positions)
        _, by_group = pushes.by_group(shares.reshape(-1, count), np.arange(count), measured)
        change = by_group - by_group[0]
        tried = [
            index
            for index, each in enumerate(measured.grid)
            if each.family == "concept" and each.vector in (self.vectors or measured.concepts)
            if np.isfinite(change[index]).any()
        ]
        claimed: list[tuple[str, Literal[1, -1]]] = [(measured.grid[index].vector, 1) for index in tried]
        vectors = steering.steered_vectors(measured, change, self, claimed, rng, rates=True, alone=tried)
        verdicts: list[Verdict] = [each.verdict for each in vectors]
        sentences = render(
            TEMPLATE, **steering.said(vectors, self, "part state and text more often", "of the answers"),
            concepts=len(self.concepts), parted=parted, opposed=opposed, chance=float(null.mean()), p=float(p),
            floor=floor, related=related, in_words=in_words,
        )  # fmt: skip
        figures: Figures = {
            "parted": parted, "opposed": opposed, "r_text": related, "r_words": in_words, "p_agreement": p,
            "parted_chance": null.mean(), "conditions_shown": verdicts.count("shown"),
        }  # fmt: skip
        rows = []
        for index in np.unique(answers.condition):
            own = answers.where(answers.condition == index)
            rows.append(
                {"vector": pushes.label_of(measured, index), "strength": measured.grid[index].strength,
                 "parted": estimators.share(own.parted, own.groups, self),
                 "opposite signs": estimators.share(own.opposed, own.groups, self), "answers": len(own.groups)}
            )  # fmt: skip
        tables = (
            DataTable.of("State and text", rows, "Readings in standard deviations of the unsteered answers."),
            steering.table(vectors, "share"),
        )
        series = Series.of("rise of parting", [each.vector for each in vectors], [each.effect for each in vectors])
        chart = Chart("Where state and text part", "bar", "steering", "more parting than unsteered", [series])
        charts = (chart,) if vectors else ()
        return self.finding(estimators.overall(verdicts, self.rule), sentences, figures, tables, charts)

    def _answers(self, measured: Measured) -> Answers | None:
        if measured.completion_state is None or measured.completion_text is None or not measured.completions:
            return None
        columns = [measured.concepts.index(concept) for concept in self.concepts]
        state, text = (
            np.asarray(each, dtype=float)[:, columns] for each in (measured.completion_state, measured.completion_text)
        )
        words = np.zeros_like(text)
        if measured.completion_words is not None:
            words = np.nan_to_num(np.asarray(measured.completion_words, dtype=float)[:, columns])
        condition = np.array([each.condition for each in measured.completions])
        scenario = np.array([each.scenario for each in measured.completions])
        whole = np.isfinite(state).all(axis=1) & np.isfinite(text).all(axis=1)
        whole &= np.isin(scenario, selection.rows(measured))
        usual = whole & (condition == 0)
        if usual.sum() < 3:
            return None

        def scaled(values: np.ndarray) -> np.ndarray:
            spread = values[usual].std(axis=0)
            return ((values - values[usual].mean(axis=0)) / np.where(spread > 0, spread, 1))[whole]

        groups = selection.groups(measured, scenario[whole])
        return Answers(scaled(state), scaled(text), scaled(words), condition[whole], scenario[whole], groups)


def mean_correlation(
    first: Float[np.ndarray, "answers concepts"],
    second: Float[np.ndarray, "answers concepts"],
    groups: Shaped[np.ndarray, " answers"],
    spec: Analysis,
    rng: np.random.Generator,
) -> Estimate:
    """Mean over concepts of the correlation over answers, with its interval over groups."""
    names, codes = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), 6, first.shape[1]))
    np.add.at(sums, codes, np.stack([np.ones_like(first), first, second, first**2, second**2, first * second], axis=1))

    def correlation(counts: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, " draws"]:
        n, a, b, aa, bb, ab = np.moveaxis(np.einsum("dg,gsc->dsc", counts, sums), 1, 0)
        spread = (aa - a * a / n) * (bb - b * b / n)
        r = np.where(spread > 1e-12, (ab - a * b / n) / np.sqrt(np.maximum(spread, 1e-12)), np.nan)
        defined = np.isfinite(r)
        count = defined.sum(axis=1)
        return np.where(count > 0, np.where(defined, r, 0).sum(axis=1) / np.maximum(count, 1), np.nan)

    return estimators.bootstrapped(sums, correlation, spec, rng)

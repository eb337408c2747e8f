"""Whether a reading names the concept that a scenario was written for, better than the scenario's words alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from pydantic import Field

from affectlens.experiments.conclude import estimators, selection
from affectlens.experiments.conclude.analysis import Analysis, Needs, analysis
from affectlens.experiments.conclude.estimators import Discrimination, Figures
from affectlens.experiments.conclude.sentences import render
from affectlens.experiments.results import Measured
from affectlens.results.figures import Chart, DataTable, Finding, Series
from affectlens.stats import t_interval

TEMPLATE = """
The intended concept ranks first among {{ concepts }} in {{ first|share }} of the scenarios,
  {{ "better than" if verdict == "shown" else "which is not shown to be better than" }} chance and the words alone.
Chance is {{ chance|percent }}; concepts assigned to readings at random reach that share with {{ p|p(floor) }}.
The words alone name it in {{ words|share }}, the reading in {{ ahead.estimate|share }} more,
  {{ ahead.p|p(ahead.floor) }}.
Among all {{ all }} concepts its mean rank is {{ rank|measured("", 1) }}.
AUROC of each concept against the rest is {{ area|measured }}, of the words {{ area_words|measured }}.
With {{ first.n|plural("cluster") }} a share of {{ smallest|percent }} above chance would be found with
  {{ power|percent }} power.
A share of {{ smallest_ahead|percent }} above that of the words would be found as well.
"""


@analysis("concept_identification", formerly="diagonal")
class ConceptIdentification(Analysis):
    """Does a reading name the concept that a scenario was written for?"""

    reading: str
    factor: str = "emotion"
    """The factor that holds the concept."""
    clusters: str = "setting"
    """The factor whose values are drawn as one for intervals; the groups of the scenarios where they have none."""
    matters: float = Field(default=0.25, ge=0)
    """Share above chance."""

    def needs(self) -> Needs:
        return Needs(readings=(self.reading,), factors={"factor": self.factor})

    def claim_p(self, metrics: Mapping[str, float]) -> float:
        """Better than chance and than the words."""
        return estimators.jointly(metrics.get("p", math.nan), metrics.get("p_words", math.nan))

    def conclude(self, measured: Measured, rng: np.random.Generator) -> Finding:
        """Compare the reading with readings assigned at random and with the words of the scenarios."""
        readings = selection.reading(measured, self.reading)
        rows, target = selection.intended(measured, self.factor, selection.main_rows(measured))
        whole = np.isfinite(readings[rows]).all(axis=1)
        rows, target = rows[whole], target[whole]
        clusters = np.array([str(value) for value in selection.factor(measured, self.clusters, rows)])
        if not len(rows) or "None" in clusters:
            clusters = selection.groups(measured, rows)
        concepts, target = np.unique(target, return_inverse=True)
        if len(concepts) < 2 or len(np.unique(clusters)) < 2:
            few = f"{len(concepts)} intended concepts in {len(np.unique(clusters))} groups of scenarios with a reading"
            return self.untestable(f"there are {few}, and at least two of each are needed")
        values, texts = readings[rows], np.nan_to_num(np.asarray(measured.words, dtype=float)[rows])
        config = measured.experiment.config
        if any(each.name == self.reading and each.by == "features" for each in config.readings):
            # Features have scales of their own, which ranks must not depend on.
            values, texts = (
                (each - each.mean(axis=0)) / np.where(each.std(axis=0) > 0, each.std(axis=0), 1)
                for each in (values, texts)
            )
        read = Discrimination(values[:, concepts], target, clusters)
        words = Discrimination(texts[:, concepts], target, clusters)
        own = values[np.arange(len(values)), concepts[target]][:, None]
        ranks = 1 + (values > own).sum(axis=1) + ((values == own).sum(axis=1) - 1) / 2
        names = [measured.concepts[index] for index in concepts]
        chance = 1 / len(names)
        by_cluster = estimators.group_means(np.stack([read.first, words.first, ranks], axis=1), read.groups)
        # A t over clusters, which holds for as few settings as there are.
        first, by_words, rank = (t_interval(column, level=self.coverage) for column in by_cluster.T)
        ahead = estimators.contrast(by_cluster[:, 0] - by_cluster[:, 1], self, rng, rates=True)
        areas, of_words = read.areas(self, rng), words.areas(self, rng)
        p, floor = read.assignment_p(self, rng)
        # The claim is better than chance and than the words: its p is the larger of both.
        p_claim = estimators.jointly(p, ahead.p)
        error = max(estimators.standard_error(by_cluster[:, 0]), (chance * (1 - chance) / len(read.target)) ** 0.5)
        smallest = estimators.smallest_effect(error, first.n, self)
        beyond = first.value > chance and p <= self.alpha and first.n >= self.least_groups
        weakest = max(smallest, estimators.smallest_of(ahead.estimate, self)) if beyond else smallest
        verdict = self.verdict(beyond and p_claim <= self.alpha and ahead.estimate.value > 0, weakest)
        sentences = render(
            TEMPLATE, concepts=len(names), first=first, verdict=verdict, chance=chance, p=p, floor=floor,
            words=by_words, ahead=ahead, all=readings.shape[1], rank=rank, area=areas.mean, area_words=of_words.mean,
            smallest=smallest, smallest_ahead=ahead.smallest, power=self.power,
        )  # fmt: skip
        figures: Figures = {
            "first": first, "first_words": by_words, "first_difference": ahead.estimate, "mean_rank": rank,
            "auroc": areas.mean, "auroc_words": of_words.mean, "p": p, "p_words": ahead.p, "chance": chance,
            "smallest_effect": smallest,
        }  # fmt: skip
        by_concept = estimators.group_means(np.stack([read.first, ranks], axis=1), read.target)
        rows = [
            {"concept": name, "scenarios": int((read.target == i).sum()), "ranks first": float(by_concept[i, 0]),
             "mean rank": float(by_concept[i, 1]), "AUROC": areas.concepts[i], "AUROC of words": of_words.concepts[i]}
            for i, name in enumerate(names)
        ]  # fmt: skip
        confusion = estimators.group_means(read.shares, read.target)
        instead = [
            {"written for": name} | dict(zip(names, map(float, shares), strict=True))
            for name, shares in zip(names, confusion, strict=True)
        ]
        note = "Share of the scenarios of each row's concept in which the column's concept reads highest."
        tables = (
            DataTable.of("Each intended concept", rows),
            DataTable.of("What is read instead", instead, note),
        )
        series = [Series.of("reading", names, areas.concepts), Series.of("words alone", names, of_words.concepts)]
        chart = Chart("Each concept against the rest", "bar", "written for", "AUROC", series)
        return self.finding(verdict, sentences, figures, tables, (chart,))

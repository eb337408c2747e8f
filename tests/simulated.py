"""Simulated studies through the product's own functions: how often intervals hold what they are of, how often noise
is called shown, and how often a plausible effect is.

``python tests/simulated.py`` runs all of it and prints the tables of docs/statistics.md; ``test_coverage.py`` and
``test_false_positives.py`` hold the results within bounds. Every design has the dependence of the real ones: topics,
writers, settings or templates shift all that belongs to them, concepts differ within them, tails are heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from affectlens import stats
from affectlens.compare import differences
from affectlens.corpus.documents import Fold
from affectlens.corpus.pairs import Pair
from affectlens.experiments.conclude import accuracy, dissociation, estimators, rate, steering
from affectlens.experiments.conclude.bradley_terry import ELO, BradleyTerry, shares
from affectlens.experiments.conclude.competition import both_samples
from affectlens.experiments.conclude.dose import Dose
from affectlens.experiments.conclude.model_difference import ModelDifference
from affectlens.experiments.conclude.persistence import Persistence
from affectlens.experiments.conclude.preference import Preference
from affectlens.interventions.judge import Claim, Rules, judge
from affectlens.probing import detection, matching, methods, pairs, writer_tables
from affectlens.stats import Estimate

FEATURES, CONCEPTS = 32, 24
SPEC = Dose(draws=500, permutations=200)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        figure: what is printed, and where.
        function: that computes the interval.
        design: of the simulated studies.
        intervals: that were looked at.
        covered: share of them that hold the estimand.
        error: Monte-Carlo standard error of it, studies being the units.
        width: mean over the intervals.
    """

    figure: str
    function: str
    design: str
    intervals: int
    covered: float
    error: float
    width: float

    def __str__(self) -> str:
        share = f"{self.covered:.3f} ± {self.error:.3f}"
        return f"| {self.figure} | `{self.function}` | {self.design} | {self.intervals} | {share} | {self.width:.3g} |"


INTERVALS: dict[str, Callable[[], Iterator[Row]]] = {}


def interval(simulation: Callable[[], Iterator[Row]]) -> Callable[[], Iterator[Row]]:
    """Register a simulation of intervals under the name of its function."""
    INTERVALS[simulation.__name__] = simulation
    return simulation


def row(figure: str, function: str, design: str, found: list[Any], target: Any = None) -> Row:
    """Coverage of estimates: one a study, or a list of them (concepts, items), each with its own target.

    Args:
        target: the estimand, one or one a column; None takes the mean over studies, which is what is estimated.
    """
    table = np.array([[tuple(e)[:3] for e in (each if isinstance(each, list) else [each])] for each in found], float)
    value, low, high = np.moveaxis(table, 2, 0)
    known = np.isfinite(value) & ~np.isnan(low) & ~np.isnan(high)
    truth = np.nanmean(np.where(known, value, np.nan), axis=0) if target is None else np.asarray(target, float)
    held = np.where(known, (low <= truth) & (truth <= high), np.nan)
    held = held[known.any(axis=1)]
    share = np.nanmean(held, axis=1)
    width = (high - low)[known & np.isfinite(high - low)]
    error = max(float(share.std(ddof=1)), math.sqrt(0.25 / len(share)) * 0.1) / math.sqrt(len(share))
    return Row(figure, function, design, int(known.sum()), float(np.nanmean(held)), error, float(width.mean()))


# ---- detection ------------------------------------------------------------------------------------------------------


def crossed(topics: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """One story a concept and topic, every topic the test once."""
    concept, topic = np.tile(np.arange(CONCEPTS), topics), np.repeat(np.arange(topics), CONCEPTS)
    sides = [(np.flatnonzero(topic != name), np.flatnonzero(topic == name)) for name in range(topics)]
    corpus = SimpleNamespace(
        documents=concept,
        emotions=tuple(range(CONCEPTS)),
        folds=tuple(Fold(tuple(train.tolist()), tuple(test.tolist())) for train, test in sides),
        labels=lambda rows: concept[np.asarray(rows)][:, None] == np.arange(CONCEPTS),
        topics=lambda rows: topic[np.asarray(rows)],
        indices=lambda *splits: list(range(len(concept))),
    )
    return corpus, concept, topic


def activations(rng: np.random.Generator, means: np.ndarray, concept: np.ndarray, topic: np.ndarray) -> np.ndarray:
    """Concepts, topics, concepts within topics (heavy-tailed), a part common to all columns, and noise."""
    topics, width = int(topic.max()) + 1, means.shape[1]
    values = means[concept] + 0.6 * rng.normal(size=(topics, width))[topic]
    values += 0.6 * rng.standard_t(5, size=(topics, len(means), width))[topic, concept] / math.sqrt(5 / 3)
    return values + 0.15 * rng.normal(size=(len(concept), 1)) + rng.normal(size=(len(concept), width))


def read_studies(topics: int, effect: float, studies: int, *, search: bool = False) -> list[list[detection.Detection]]:
    """Detection by directions (and by the best single feature) in studies of new topics, everything built anew."""
    corpus, concept, topic = crossed(topics)
    means = effect * np.random.default_rng(1).normal(size=(CONCEPTS, FEATURES))
    labels, found = corpus.labels(range(len(concept))), []
    for study in range(studies):
        values = activations(np.random.default_rng(study), means, concept, topic)

        def read(fold: Fold, values: np.ndarray = values) -> np.ndarray:
            fitted = methods.difference_of_means(values[list(fold.train)], corpus.labels(fold.train))
            return fitted.scores(values[list(fold.test)])

        scores = {"direction": detection.held_out(corpus.folds, len(concept), CONCEPTS, read)}
        if search:
            scores["feature"] = matching.search(lambda rows, values=values: values[list(rows)], corpus).scores
        cells = {name: detection.within_topics(each, labels, topic) for name, each in scores.items()}
        found.append(detection.describe(cells, cross_validated=True, searched={"feature"}))
    return found


@interval
def detection_figures() -> Iterator[Row]:
    """Mean over concepts, single concepts, best feature and differences, over left-out topics."""
    t = "t_interval(cross_validated)"
    for topics, effect, studies in ((8, 0.35, 100), (11, 0.3, 100), (11, 0.7, 100), (24, 0.5, 40)):
        found = read_studies(topics, effect, studies)
        design = f"{topics} topics x {CONCEPTS} concepts, AUROC {np.mean([each[0].mean.value for each in found]):.2f}"
        yield row("AUROC of a method, mean over concepts", t, design, [each[0].mean for each in found])
        yield row("AUROC of one concept", "share_over_groups", design, [list(each[0].concepts) for each in found])
    for topics, effect, studies in ((8, 0.7, 40), (11, 0.7, 60)):
        found = read_studies(topics, effect, studies, search=True)
        design = f"{topics} topics x {CONCEPTS} concepts"
        searched = "t_interval(cross_validated, random_rows)"
        yield row("AUROC of the best feature", searched, design, [each[1].mean for each in found])
        yield row(
            "Best feature of one concept", "share_over_groups", design, [list(each[1].concepts) for each in found]
        )
        yield row("Difference of two methods", searched, design, [each[1].difference for each in found])


# ---- other writers --------------------------------------------------------------------------------------------------


@interval
def writers() -> Iterator[Row]:
    """Cells [concepts, topics] of several writers: the figure on others, the loss, a further writer, hits."""
    rng = np.random.default_rng(2)

    def cells(level: float, topics: int, concept: np.ndarray, spread: float = 0.6) -> np.ndarray:
        """AUROC of concepts x topics: concepts differ, topics shift all, cells are heavy-tailed."""
        scale = (
            level + concept[:, None] + 0.3 * rng.normal(size=topics) + spread * rng.standard_t(4, (CONCEPTS, topics))
        )
        return 1 / (1 + np.exp(-scale))

    for topics in (8, 11, 24):
        concept = 0.8 * np.random.default_rng(5).normal(size=CONCEPTS)
        others, lost, ahead, truth = [], [], [], []
        for _ in range(1000):
            level = 2 + 0.5 * rng.normal(size=4)
            own = cells(3.0, topics, concept)
            each = {str(index): cells(level[index], topics, concept) for index in range(4)}
            fixed = {name: cells(2.0, topics, concept) for name in ("0", "1")}
            others.append(stats.t_interval(writer_tables.together(fixed)))
            home: Any = SimpleNamespace(areas=own)
            lost.append(writer_tables.loss(home, writer_tables.together(fixed), cross_validated=False, searched=False))
            three = {name: each[name] for name in ("0", "1", "2")}
            ahead.append(writer_tables.further(three))
            truth.append(stats.t_interval(each["3"]).value)
        design = f"2 writers x {topics} topics"
        yield row("AUROC on other writers", "t_interval", design, others)
        yield row("Loss against one's own topics", "difference", design, lost)
        held = [Estimate(t, e.low, e.high, e.n) for e, t in zip(ahead, truth, strict=True)]
        inside = [e._replace(value=0.0, low=e.low - e.value, high=e.high - e.value) for e in held]
        yield row("Figure of a further writer", "prediction_interval", f"3 writers x {topics} topics", inside, 0.0)
        hits = [stats.t_interval(rng.binomial(2, cells(-1.0, topics, concept)) / 2) for _ in range(1000)]
        yield row("Share of texts whose own concept is first", "t_interval", f"{topics} topics x 2 texts", hits)


# ---- rates over groups ----------------------------------------------------------------------------------------------


def rates_of(rng: np.random.Generator, groups: int, level: float, alike: float) -> np.ndarray:
    """Rates of groups around a level; ``alike`` is the correlation of trials of one group (beta-distributed)."""
    return rng.beta(level * (1 - alike) / alike, (1 - level) * (1 - alike) / alike, size=groups)


@interval
def same_words_pairs() -> Iterator[Row]:
    """Share of same-words pairs told apart, templates the sample."""
    rng = np.random.default_rng(3)
    for groups in (8, 11, 24):
        given = [Pair(f"{g}-{n}", "a", "b", "order", "", "", f"t{g:02d}") for g in range(groups) for n in range(20)]
        for level, alike in ((0.5, 0.3), (0.87, 0.3), (0.97, 0.05), (0.97, 0.4)):
            found = []
            for _ in range(1000):
                right = rng.random(20 * groups) < np.repeat(rates_of(rng, groups, level, alike), 20)
                (judged,) = pairs.judge([np.where(right, 1.0, -1.0)], [False], given, rng)
                found.append((judged["accuracy"], judged["low"], judged["high"]))
            design = f"{groups} templates x 20 pairs, rate {level}, alike {alike}"
            yield row("Same-words pairs told apart", "clustered_rate", design, found, level)


@interval
def rates() -> Iterator[Row]:
    """Rates of labels among sampled answers, and their changes."""
    rng = np.random.default_rng(4)
    for groups in (8, 12, 16):
        for level in (0.3, 0.05):
            alone, changed = [], []
            wide = rates_of(rng, 200_000, level, 0.3)
            target = float((np.clip(wide + 0.2, 0, 1) - wide).mean())
            names = np.repeat(np.arange(groups), 2)
            for _ in range(1500):
                base = rates_of(rng, groups, level, 0.3)
                first = rng.binomial(1, base[names])
                alone.append(estimators.share(first, names, SPEC))
                second = rng.binomial(1, np.clip(base[names] + 0.2, 0, 1))
                change = estimators.group_means((second - first).astype(float), names)
                changed.append(estimators.mean(change, None, SPEC, rates=True))
            design = f"{groups} scenarios x 2 answers, rate {level}"
            yield row("Rate of a label or of right answers", "clustered_rate", design, alone, level)
            yield row("Change of a rate", "estimators.mean(rates)", design, changed, target)


# ---- causes ---------------------------------------------------------------------------------------------------------


@interval
def causes() -> Iterator[Row]:
    """Effects over frames and topics, and the mean effect over concepts."""
    rng = np.random.default_rng(6)
    controls = {"random": np.random.default_rng(0).normal(size=60)}
    for frames in (8, 12):
        for name, draw in (("normal", rng.normal), ("t3", lambda size: rng.standard_t(3, size=size))):
            claims = [Claim("a", 1 + 0.5 * draw(size=frames), controls) for _ in range(1500)]
            found = [(v.effect, v.low, v.high) for v in judge(claims, Rules())]
            yield row("Effect of a vector on words", "judge", f"{frames} frames, {name}", found, 1.0)
    for concepts in (24, 171):
        mean = []
        for _ in range(1500):
            frames = 0.3 * rng.normal(size=12) * (1 + rng.normal(size=(concepts, 1)) / 2)
            effect = 1 + rng.standard_t(4, size=(concepts, 1)) + frames + 0.5 * rng.normal(size=(concepts, 12))
            mean.append(stats.t_interval(effect, random_rows=True))
        yield row("Mean effect over concepts", "t_interval(random_rows)", f"{concepts} concepts x 12 frames", mean, 1.0)


@interval
def leads() -> Iterator[Row]:
    """How far one emotion of a text is ahead of another: groups of texts and emotions both a sample."""
    rng = np.random.default_rng(7)
    for emotions in (5, 6):
        for name, (concept, group, noise) in {"emotions differ": (0.5, 0.3, 0.5), "groups do": (0.1, 0.5, 0.5)}.items():
            found = []
            for _ in range(1500):
                cells = 0.5 + concept * rng.normal(size=(1, emotions)) + group * rng.normal(size=(8, 1))
                found.append(both_samples(cells + noise * rng.normal(size=(8, emotions)), 0.95))
            yield row(
                "Lead of an emotion over another", "both_samples", f"{emotions} emotions x 8 groups, {name}", found, 0.5
            )


# ---- studies side by side, geometry ---------------------------------------------------------------------------------


@interval
def studies_side_by_side() -> Iterator[Row]:
    """Paired differences of studies over the concepts they share."""
    rng = np.random.default_rng(8)
    for concepts in (4, 12, 24):
        found = []
        for _ in range(1500):
            change = dict(enumerate(0.3 + rng.standard_t(4, size=concepts)))
            sides: list[Any] = [
                SimpleNamespace(per_concept={"m": side}) for side in (dict.fromkeys(change, 0.0), change)
            ]
            value: Any = SimpleNamespace(value=0.0, bounded=False)
            each = differences._difference("m", sides[0], sides[1], value, value)
            found.append((each.value, each.low, each.high))
        yield row("Difference of two studies", "compare.differences", f"{concepts} concepts, t4", found, 0.3)


@interval
def correlations() -> Iterator[Row]:
    """Components against ratings; readings against preference, within categories."""
    rng = np.random.default_rng(9)
    for count in (24, 171):
        for rho in (0.0, 0.6):
            found, beyond = [], []
            for _ in range(1000):
                ratings = rng.normal(size=count) / 2 + rng.choice([-1.0, 1.0], count)  # pleasant or not
                ratings /= math.sqrt(1.25)
                other = rho * ratings + math.sqrt(1 - rho**2) * rng.normal(size=count)
                length = rng.normal(size=count)
                found.append(stats.correlation(other, ratings).estimate)
                beyond.append(stats.correlation(other + length, ratings + length, given=length).estimate)
            yield row("Component against a rating", "fisher_interval", f"{count} concepts, r {rho}", found, rho)
            yield row("The same beyond length", "fisher_interval", f"{count} concepts, r {rho}", beyond, rho)
    for count, kinds in ((24, 4), (64, 8)):
        for rho in (0.0, 0.5):
            within, aligned = [], []
            asked = Preference(reading="x", permutations=2, draws=500)
            kind, signs = np.arange(count) % kinds, np.where(np.arange(10) % 2, 1.0, -1.0)
            for _ in range(600):
                x, common = rng.normal(size=count), rng.normal(size=(count, 1))
                noise = 0.7 * common + 0.7 * rng.normal(size=(count, 10))
                y = signs * (rho * x[:, None] + math.sqrt(1 - rho**2) * noise)
                x = x + rng.normal(size=kinds)[kind]
                within.append(estimators.association(x, y[:, :1] * signs[0], kind, SPEC, None).estimates[0])
                aligned.append(asked._aligned(x, y, kind, signs, rng)[0])
            design = f"{count} items in {kinds} categories, r {rho}"
            yield row(
                "Reading against preference",
                "association",
                design,
                within,
                rho / math.hypot(rho, 0.99 * math.sqrt(1 - rho**2)) if rho else 0.0,
            )
            yield row("Mean over concepts of the same", "bootstrap_interval", design, aligned)


# ---- behaviour ------------------------------------------------------------------------------------------------------


@interval
def groups_of_scenarios() -> Iterator[Row]:
    """Means and paired differences over groups of scenarios."""
    rng = np.random.default_rng(10)
    draws: dict[str, Callable[[int], np.ndarray]] = {
        "normal": lambda n: rng.normal(size=n),
        "t3": lambda n: rng.standard_t(3, size=n),
        "skewed (Gumbel)": lambda n: rng.gumbel(size=n) - np.euler_gamma,
    }
    for groups in (5, 8, 12, 24):
        for name, draw in draws.items():
            found = [estimators.mean(draw(groups), None, SPEC) for _ in range(2000)]
            yield row("Mean or change over groups", "estimators.mean", f"{groups} groups, {name}", found, 0.0)


@interval
def share_of_an_order() -> Iterator[Row]:
    """An effect as a share of what asking for the outcome does, where the positive control was found."""
    rng = np.random.default_rng(11)
    for groups in (8, 12, 16):
        for ratio in (0.1, 0.5):
            found, names = [], np.arange(groups).astype(str)
            while len(found) < 800:
                asked = 1.1 + 0.8 * rng.normal(size=groups)
                effect = ratio * 1.1 + 0.3 * rng.normal(size=groups) + 0.2 * (asked - 1.1)
                contrast = estimators.contrast(asked, SPEC, rng)
                if contrast.p <= 0.05 and contrast.estimate.value > 0:
                    found.append(steering.Order(contrast, names, "", {}).share(effect, names, SPEC, rng)[0])
            design = f"{groups} groups, share {ratio}, gate passed"
            yield row("Effect as a share of an order", "Order.share", design, found, ratio)


@interval
def telling_apart() -> Iterator[Row]:
    """AUROC of readings of scenarios, groups the sample."""
    rng = np.random.default_rng(12)

    def scenarios(concepts: int, groups: int, each: int) -> estimators.Discrimination:
        target = np.repeat(np.tile(np.arange(concepts), groups), each)
        group = np.repeat(np.repeat(np.arange(groups), concepts), each)
        scores = rng.normal(size=(len(target), concepts)) + 0.7 * rng.normal(size=(groups, concepts))[group]
        scores += 0.5 * rng.normal(size=(groups, 1))[group]
        scores[np.arange(len(target)), target] += 1.2 + 0.5 * rng.normal(size=(groups, concepts))[group, target]
        return estimators.Discrimination(scores, target, group)

    for concepts, groups, each in ((12, 8, 1), (4, 8, 4), (10, 12, 1), (6, 16, 1), (12, 3, 1), (4, 3, 4), (6, 5, 2)):
        found = [scenarios(concepts, groups, each).areas(SPEC, rng) for _ in range(300)]
        # Over few groups AUROC is larger than over many, whose is the one that is meant.
        many = scenarios(concepts, 400, each).areas(Dose(draws=2), rng).mean.value if groups < 8 else None
        design = f"{concepts} concepts, {groups} groups x {each}"
        yield row("AUROC of scenarios, mean", "auroc_interval", design, [areas.mean for areas in found], many)
        if many is None:  # over few groups a single concept has no interval
            single = [list(areas.concepts) for areas in found]
            yield row("AUROC of scenarios, one concept", "auroc_interval", design, single)


@interval
def ratios_and_products() -> Iterator[Row]:
    """Figures that are no means: agreement of judges, state against text, what is carried, how long it lasts."""
    rng = np.random.default_rng(13)
    lasting = Persistence(readings=("a", "b", "c"), draws=500)
    for groups in (8, 12, 16):
        kappas, together, carried, lasts = [], [], [], []
        for _ in range(600):
            group = np.repeat(np.arange(groups), 4)
            said = rng.random(len(group)) < np.clip(0.4 + 0.2 * rng.normal(size=groups), 0.05, 0.95)[group]
            heard = [[str(each) for each in np.where(rng.random(len(said)) < 0.85, said, ~said)] for _ in "ab"]
            kappas.append(rate.kappa(heard[0], heard[1], group, SPEC, rng))
            state = rng.normal(size=(len(group), 5)) + 0.5 * rng.normal(size=(groups, 5))[group]
            text = 0.6 * state + 0.8 * rng.normal(size=state.shape) + 0.4 * rng.normal(size=(groups, 5))[group]
            together.append(dissociation.mean_correlation(state, text, group, SPEC, rng))
            task, cause = np.tile(np.arange(groups), 2), np.repeat([0.0, 1.0], groups)
            shift = rng.normal(size=groups)[task]
            reading = cause + rng.normal(size=2 * groups) + shift
            outcome = 0.3 * cause + 0.5 * reading + rng.normal(size=2 * groups) + shift
            carried.append(accuracy.mediation(cause, reading[:, None], outcome, task, SPEC, rng)[0][0])
            size = (1.5 + 0.4 * rng.normal(size=groups))[:, None]
            lasts.append(lasting._decay(size * 0.5 ** np.arange(3) + 0.4 * rng.normal(size=(groups, 3)), rng))
        yield row("Agreement of judges (kappa)", "bootstrap_interval", f"{groups} groups x 4 answers", kappas)
        yield row("State against text (r)", "bootstrap_interval", f"{groups} groups x 4 answers", together)
        yield row("What a reading carries", "mediation", f"{groups} tasks", carried, 0.5)
        yield row("How long it lasts", "Persistence._decay", f"{groups} groups", lasts, 1 / math.log(2))


@interval
def strengths() -> Iterator[Row]:
    """Bradley-Terry strengths and the advantage of standing first, pairs of items drawn anew."""
    rng = np.random.default_rng(14)
    for items in (8, 16):
        level = np.random.default_rng(5).normal(size=items) * 0.8
        elo, place = [], []

        def fitted(level: np.ndarray = level, items: int = items) -> BradleyTerry:
            pair = 0.5 * rng.normal(size=(items, items))
            odds = level[:, None] - level + 0.8 + 0.8 * rng.normal(size=(items, items)) + pair - pair.T
            return BradleyTerry(shares(odds, 0.0))

        for _ in range(40):
            model = fitted()
            strength, (drawn, position) = model.fit(), model.bootstrap(80, rng)
            ends = zip(strength.elo, ELO * drawn.T, strict=True)
            elo.append([estimators.interval(value, column, items, SPEC) for value, column in ends])
            place.append(estimators.interval(ELO * strength.position, ELO * position, items, SPEC))
        yield row("Elo of an item", "bootstrap_interval", f"{items} items", elo)
        yield row("Standing first, Elo", "bootstrap_interval", f"{items} items", place)


@interval
def profiles_of_models() -> Iterator[Row]:
    """Agreement of two halves of the prompts on how a second model differs."""
    rng = np.random.default_rng(15)
    asked = ModelDifference(reading="x", splits=20)
    for concepts in (24, 171):
        found = []
        for _ in range(400):
            profile = rng.normal(size=concepts)
            means = profile + 2 * rng.normal(size=(16, concepts))
            found.append(asked._split_halves(means, rng))
        yield row("Halves of the prompts agree (r)", "fisher_interval", f"16 groups, {concepts} concepts", found)


def main() -> None:
    print("| figure | function | simulated studies | intervals | covered | width |\n|---|---|---|---|---|---|")
    for simulation in INTERVALS.values():
        for each in simulation():
            print(each, flush=True)


if __name__ == "__main__":
    main()

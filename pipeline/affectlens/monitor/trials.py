"""A trial: rows and rivals on scenarios that nothing of theirs has seen, each scored under the same calibration.

Scenarios with risk are split into folds; probes, text models and their penalties are made of the others. Benign
episodes are split by scenario into three: rows are standardised on the first and probes see it, thresholds come from
the second, false alarms are counted on the third and on every further source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from affectlens.errors import UserError
from affectlens.monitor import probes
from affectlens.monitor.calibration import buckets, conformal_threshold, least_target
from affectlens.monitor.config import MonitorSettings
from affectlens.monitor.episodes import BENIGN, RISK, Episode, Resampled
from affectlens.monitor.evaluation import NONE, Runs, WithinPrompts
from affectlens.monitor.probes import Examples, Probe
from affectlens.monitor.rivals import TextModel
from affectlens.monitor.rows import Rows, moments, probe_rows
from affectlens.monitor.statistics import StatisticConfig, block_means, follow

TEXT_STRIDE = 8
"""Every so manieth token is a text that a text model learns."""
COMBINED = {"combined": "forecaster", "combined_concept": "best_concept"}
"""What is added to the text, by the name of the column."""
TEXTS = ("text", "sentiment", "position", "entropy", "surprisal", "judge")
"""Columns that need no state."""


@dataclass(frozen=True)
class Material:
    """Episodes with what was read along them, in the same order.

    Attributes:
        episodes: tokenised.
        states: of the study's layer.
        plain: values that need no state, or that of another layer, by family and name: entropy, sentiment, ...
        drawn: what was re-sampled from some of them.
    """

    episodes: tuple[Episode, ...]
    states: tuple[Float[np.ndarray, "rows d_model"], ...]
    plain: Mapping[tuple[str, str], tuple[Float[np.ndarray, " rows"], ...]] = field(default_factory=dict)
    drawn: tuple[Resampled, ...] = ()

    def __add__(self, other: Material) -> Material:
        plain = {key: (*self.plain[key], *other.plain[key]) for key in self.plain if key in other.plain}
        drawn = (*self.drawn, *other.drawn)
        return Material((*self.episodes, *other.episodes), (*self.states, *other.states), plain, drawn)

    def of(self, chosen: Sequence[int]) -> Material:
        """Some of the episodes."""
        plain = {key: tuple(values[index] for index in chosen) for key, values in self.plain.items()}
        episodes = tuple(self.episodes[index] for index in chosen)
        return Material(episodes, tuple(self.states[index] for index in chosen), plain, self.drawn)


@dataclass(frozen=True)
class Columns:
    """Names and families of the scores, in order."""

    names: tuple[str, ...]
    families: tuple[str, ...]

    def of(self, *families: str) -> Int[np.ndarray, " chosen"]:
        """The columns of some families."""
        return np.array([n for n, family in enumerate(self.families) if family in families], dtype=int)


@dataclass
class Trial:
    """Scores and thresholds on test episodes.

    Attributes:
        columns: what was scored.
        episodes: tested: those with risk, hard negatives and benign ones.
        values: by statistic, along each.
        threshold: by statistic and target, of each test episode and column; NaN where so few cannot hold the target.
        chances: by forecaster, its probability along each test episode.
        final: the rows that are handed on, trained on all scenarios.
        sizes: episodes by role.
        calibrated_on: the traffic that thresholds come from.
        fitted: benign episodes that rows were standardised and trained on: no threshold may come from them.
        whole: what scores further episodes: made of all scenarios with risk; the benign episodes that it was made with,
            and those that thresholds come from.
    """

    columns: Columns
    episodes: list[Episode]
    values: dict[str, Float[np.ndarray, "episodes tokens columns"]]
    threshold: dict[tuple[str, float], Float[np.ndarray, "episodes columns"]]
    chances: dict[str, list[Float[np.ndarray, " rows"]]]
    final: Rows
    sizes: dict[str, int]
    calibrated_on: tuple[str, ...] = ()
    fitted: tuple[str, ...] = ()
    whole: tuple[Scorer, Material, Material] | None = None

    def runs(self, statistic: str, *strata: str) -> tuple[Runs, Int[np.ndarray, " chosen"]]:
        """Test episodes of some strata, and their places in the trial."""
        chosen = np.array([n for n, each in enumerate(self.episodes) if each.stratum in strata], dtype=int)
        own = [self.episodes[n] for n in chosen]
        prompts: dict[Any, int] = {}
        return (
            Runs(
                np.array([each.scenario for each in own], dtype=object).astype(str),
                np.array([prompts.setdefault(each.prompt, len(prompts)) for each in own], dtype=int),
                np.array([NONE if each.act is None else each.act for each in own], dtype=int),
                np.array([each.rows for each in own], dtype=int),
                self.values[statistic][chosen],
            ),
            chosen,
        )


def padded(values: Sequence[Float[np.ndarray, "rows columns"]]) -> Float[np.ndarray, "episodes tokens columns"]:
    """Episodes side by side, NaN behind their ends."""
    found = np.full((len(values), max(map(len, values)), values[0].shape[1]), np.nan, dtype=np.float32)
    for index, rows in enumerate(values):
        found[index, : len(rows)] = rows
    return found


def roles(
    benign: Sequence[Episode], sources: Sequence[str], generator: np.random.Generator
) -> tuple[list[int], list[int], list[int]]:
    """Benign episodes to standardise and train on, to calibrate on, and to test on.

    Args:
        benign: episodes.
        sources: the traffic that is calibrated on; of other traffic all is tested.
        generator: of the split, by scenario.
    """
    own = [n for n, each in enumerate(benign) if each.source in sources]
    names = sorted({benign[n].scenario for n in own})
    order = {names[place]: rank for rank, place in enumerate(generator.permutation(len(names)))}
    # A quarter to fit, two fifths to calibrate: thresholds need numbers, means do not.
    share = [order[benign[n].scenario] / max(1, len(names)) for n in own]
    fit = [n for n, at in zip(own, share, strict=True) if at < 0.25]
    calibrate = [n for n, at in zip(own, share, strict=True) if 0.25 <= at < 0.65]
    rest = [n for n in range(len(benign)) if n not in set(fit) | set(calibrate)]
    return fit, calibrate, rest


def run(
    risk: Material, benign: Material, fixed: Rows, config: MonitorSettings, generator: np.random.Generator
) -> Trial:
    """Score everything.

    Args:
        risk: episodes in which the act may follow, and hard negatives.
        benign: ordinary traffic.
        fixed: rows that nothing trains, not standardised.
        config: how.
        generator: of splits and choices.

    Raises:
        UserError: there are too few benign episodes to standardise or calibrate on.
    """
    sources = config.calibration_sources or (benign.episodes[0].source,) if benign.episodes else ()
    fit, calibrate, rest = roles(benign.episodes, sources, generator)
    if not fit or len(calibrate) < 2:
        scenarios = len({each.scenario for each in benign.episodes})
        raise UserError(
            f"`monitor`: {len(benign.episodes)} benign episodes of {scenarios} scenarios "
            "are too few to standardise and calibrate on; give at least eight scenarios, better 500 episodes"
        )
    base, held, tested = benign.of(fit), benign.of(calibrate), benign.of(rest)
    fixed = fixed.standardised(base.states)
    on_risk = [n for n, each in enumerate(risk.episodes) if each.stratum == RISK]
    hard = risk.of([n for n, each in enumerate(risk.episodes) if each.stratum != RISK])
    risk, tested = risk.of(on_risk), tested + hard if hard.episodes else tested
    scenarios = np.array([each.scenario for each in risk.episodes])
    fold = probes.folds(scenarios, config.folds, generator) if len(scenarios) else np.zeros(0, dtype=int)
    turn = probes.folds(np.array([e.scenario for e in tested.episodes]), fold.max(initial=0) + 1, generator)
    found: list[tuple[Material, list[np.ndarray], list[np.ndarray], dict[str, list[np.ndarray]], list[np.ndarray]]] = []
    columns = Columns((), ())
    for each in range(fold.max(initial=0) + 1):
        scorer = Scorer.made(risk.of(np.flatnonzero(fold != each).tolist()), base, fixed, config, generator)
        test = risk.of(np.flatnonzero(fold == each).tolist()) + tested.of(np.flatnonzero(turn == each).tolist())
        columns = scorer.columns
        scores = [scorer.scores(test, n) for n in range(len(test.episodes))]
        calibration = [scorer.scores(held, n) for n in range(len(held.episodes))]
        chances = {name: [scorer.chance(name, test, n) for n in range(len(test.episodes))] for name in scorer.forecasts}
        blocks = [scorer.scores(base, n) for n in range(len(base.episodes))]
        found.append((test, scores, calibration, chances, blocks))
    trial = Trial(
        columns, [], {}, {}, {}, fixed, {"benign_fit": len(fit), "benign_calibrate": len(calibrate)}, tuple(sources)
    )
    trial.episodes = [episode for test, *_ in found for episode in test.episodes]
    trial.chances = {name: [row for _, _, _, chances, _ in found for row in chances[name]] for name in found[0][3]}
    tokens = max(each.rows for each in trial.episodes)
    for kind in config.statistics:
        statistic = config.statistic.model_copy(update={"kind": kind})
        values = np.full((len(trial.episodes), tokens, len(columns.names)), np.nan, dtype=np.float32)
        limits = {target: np.full((len(trial.episodes), len(columns.names)), np.nan) for target in config.targets}
        start = 0
        for test, scores, calibration, _, fitted in found:
            end = start + len(test.episodes)
            own, highest, lengths = followed(statistic, scores, calibration, fitted)
            values[start:end, : own.shape[1]] = own
            for target in config.targets:
                limits[target][start:end] = limit(highest, lengths, np.array([len(s) - 1 for s in scores]), target)
            start = end
        trial.values[kind] = values
        trial.threshold |= {(kind, target): limits[target] for target in config.targets}
    everything = Scorer.made(risk, base, fixed, config, generator)
    trial.final, trial.fitted = fixed + everything.trained, tuple(each.name for each in base.episodes)
    trial.whole = everything, base, held
    return trial


def followed(
    statistic: StatisticConfig,
    scores: Sequence[np.ndarray],
    calibration: Sequence[np.ndarray],
    fitted: Sequence[np.ndarray],
) -> tuple[
    Float[np.ndarray, "episodes tokens columns"], Float[np.ndarray, "benign columns"], Int[np.ndarray, " benign"]
]:
    """A statistic along episodes, and the largest values of its calibration with the answers' lengths.

    Args:
        statistic: which.
        scores: of the episodes.
        calibration: of the benign ones that thresholds come from.
        fitted: of the benign ones that an e-detector compares with.
    """
    blocks = None
    if statistic.kind == "edetector":
        whole = padded(fitted)
        blocks = block_means(np.nan_to_num(whole), np.array([len(rows) for rows in fitted]), statistic.window)
    lengths = np.array([len(rows) for rows in calibration])
    highest = np.nanmax(follow(statistic, padded(calibration), lengths, blocks), axis=1)
    values = follow(statistic, padded(scores), np.array([len(rows) for rows in scores]), blocks)
    return values, highest, lengths - 1


def limit(
    highest: Float[np.ndarray, "benign columns"],
    lengths: Int[np.ndarray, " benign"],
    asked: Int[np.ndarray, " episodes"],
    target: float,
) -> Float[np.ndarray, "episodes columns"]:
    """Each episode's threshold of every column, by its length; NaN where the benign episodes cannot hold the target."""
    found = np.full((len(asked), highest.shape[1]), np.nan)
    if target < least_target(len(highest)) - 1e-12:
        return found
    split = buckets(lengths, target)
    ends = np.array([np.inf if longest is None else longest for longest, _ in split])
    values = np.stack([conformal_threshold(highest[own], target) for _, own in split])
    return values[np.searchsorted(ends, asked.astype(float))]


@dataclass(frozen=True)
class Scorer:
    """Rows and text models made of some scenarios, ready for any other episode.

    Attributes:
        fixed: standardised rows that nothing trains.
        trained: standardised probes.
        best: by column, which column of the fixed ones, or of the plain ones, it is, and its sign.
        text_model: terms of the text rival.
        text: its weights.
        mixtures: by combined column, weights of its two parts and an offset.
        moments: mean and deviation on benign tokens of every column that is no row.
        plain: family and name of columns that are read elsewhere.
    """

    fixed: Rows
    trained: Rows
    probes: Mapping[str, Probe]
    best: Mapping[str, tuple[int, float]]
    text_model: TextModel
    text: Probe
    mixtures: Mapping[str, tuple[str, Probe]]
    moments: tuple[Float[np.ndarray, " others"], Float[np.ndarray, " others"]]
    plain: tuple[tuple[str, str], ...]

    forecasts = ("forecaster", "prompt_only", "text", "combined")

    @classmethod
    def made(
        cls, train: Material, base: Material, fixed: Rows, config: MonitorSettings, generator: np.random.Generator
    ) -> Scorer:
        """Train on some scenarios and on benign episodes.

        Args:
            train: episodes with risk.
            base: benign ones; standardised on.
            fixed: standardised rows.
            config: how.
            generator: of inner folds.
        """
        together, options = train + base, {"softmax": config.probe.softmax}
        examples = probes.forecasting(together.episodes, together.states, train.drawn, config.probe)
        l2, left_out = probes.chosen_l2(examples, config.probe, generator, **options)
        made = {"forecaster": probes.fit(examples, l2, **options)}
        made["detector"] = probes.train(
            probes.detecting(together.episodes, together.states, config.probe), config.probe, generator
        )
        made["prompt_only"] = probes.train(
            probes.from_the_prompt(together.episodes, together.states), config.probe, generator
        )
        model = TextModel.of(together.episodes)
        stride = config.probe.model_copy(update={"stride": TEXT_STRIDE})
        like = probes.forecasting(together.episodes, together.states, train.drawn, stride)
        texts = model.examples(together.episodes, like, TEXT_STRIDE)
        grid = config.probe.model_copy(update={"l2": tuple(value / 100 for value in config.probe.l2)})
        text_l2, text_left_out = probes.chosen_l2(texts, grid, generator, scale=False)
        trained = probe_rows({name: made[name] for name in ("forecaster", "detector")}).standardised(base.states)
        text, nothing = probes.fit(texts, text_l2, scale=False), (np.zeros(0), np.ones(0))
        scorer = cls(fixed, trained, made, {}, model, text, {}, nothing, tuple(train.plain))
        scorer = replace(scorer, best=scorer._best(train, config))
        # Both parts as they read scenarios left out; what a part learnt by heart would else count twice.
        wide = np.zeros(0, dtype=int)
        if TEXT_STRIDE % config.probe.stride == 0:
            step = TEXT_STRIDE // config.probe.stride
            own = np.concatenate([np.arange(-(-e.before // config.probe.stride)) for e in together.episodes])
            wide = np.flatnonzero(own % step == 0)
        mixtures = {}
        for name, part in COMBINED.items():
            if part == "forecaster":
                column = left_out[wide] if len(wide) == len(text_left_out) else _along(scorer, together, part)
            elif part in scorer.best:
                column = _along(scorer, together, part)
            else:
                continue
            both = Examples(np.stack([column, text_left_out], axis=1), texts.labels, texts.episode, texts.group)
            mixtures[name] = part, probes.fit(both, 1e-3)
        scorer = replace(scorer, mixtures=mixtures)
        others = [scorer._others(base, n) for n in range(len(base.episodes))]
        return replace(scorer, moments=moments(others))

    def _best(self, train: Material, config: MonitorSettings) -> dict[str, tuple[int, float]]:
        """The concept, and the control among as many, that tell acts apart best within the training prompts."""
        scores = [self.fixed.scores(states) for states in train.states]
        if not scores:
            return {}
        lengths = np.array([len(rows) for rows in scores])
        prompts: dict[Any, int] = {}
        runs = Runs(
            np.array([e.scenario for e in train.episodes]),
            np.array([prompts.setdefault(e.prompt, len(prompts)) for e in train.episodes]),
            np.array([NONE if e.act is None else e.act for e in train.episodes]),
            lengths,
            follow(config.statistic.model_copy(update={"kind": "rolling"}), padded(scores), lengths),
        )
        # The least value of a column is minus the largest of its opposite.
        up, down = WithinPrompts(runs).areas(), WithinPrompts(replace(runs, values=-runs.values)).areas()
        found: dict[str, tuple[int, float]] = {}
        kinds = {"best_concept": "concept", "best_feature": "feature", "best_random": "control"}
        concepts = sum(family == "concept" for family in self.fixed.families)
        for name, family in kinds.items():
            own = [n for n, each in enumerate(self.fixed.families) if each == family]
            own = own[:concepts] if family == "control" else own
            if not own:
                continue
            # Where no training prompt has answers of both kinds there is no best: the first stands for it.
            means = np.nanmean(np.stack([up[:, own], down[:, own]]), axis=1) if len(up) else np.zeros((2, len(own)))
            sign, place = np.unravel_index(int(np.nan_to_num(means).argmax()), means.shape)
            found[name] = own[place], (1.0, -1.0)[sign]
        return found

    @property
    def columns(self) -> Columns:
        """What :meth:`scores` gives, in order."""
        families = {"best_concept": "best", "best_feature": "best", "best_random": "best_random"}
        named = [("prompt_only", "prompt")]
        named += [("text", "text"), *((name, family) for family, name in self.plain)]
        named += [(name, "combined") for name in self.mixtures]
        return Columns(
            (*self.fixed.names, *self.trained.names, *self.best, *(name for name, _ in named)),
            (*self.fixed.families, *self.trained.families, *(families[n] for n in self.best), *(f for _, f in named)),
        )

    def scores(self, material: Material, index: int) -> Float[np.ndarray, "rows columns"]:
        """Every column along one episode, standardised on benign tokens."""
        states = material.states[index]
        fixed, trained = self.fixed.scores(states), self.trained.scores(states)
        best = [sign * fixed[:, [column]] for column, sign in self.best.values()]
        others = (self._others(material, index) - self.moments[0]) / self.moments[1]
        return np.concatenate([fixed, trained, *best, others], axis=1).astype(np.float32)

    def _others(self, material: Material, index: int) -> Float[np.ndarray, "rows others"]:
        """Columns that are no rows of the layer, as they are."""
        text = self.text_model.logits(self.text, material.episodes[index])
        found = [np.full(len(text), self.probes["prompt_only"].logits(material.states[index][:1])[0]), text]
        found += [np.nan_to_num(material.plain[key][index]) for key in self.plain]
        found += [self._mixed(name, material, index, text) for name in self.mixtures]
        return np.stack(found, axis=1)

    def _mixed(self, name: str, material: Material, index: int, text: np.ndarray) -> Float[np.ndarray, " rows"]:
        part, probe = self.mixtures[name]
        return probe.logits(np.stack([self.part(part, material, index), text], axis=1))

    def part(self, name: str, material: Material, index: int) -> Float[np.ndarray, " rows"]:
        """A column of states, before it is standardised anew."""
        if name in self.best:
            column, sign = self.best[name]
            return sign * self.fixed.scores(material.states[index])[:, column]
        return self.probes[name].logits(material.states[index])

    def chance(self, name: str, material: Material, index: int) -> Float[np.ndarray, " rows"]:
        """A forecaster's probability of the act at every row."""
        states, episode = material.states[index], material.episodes[index]
        text = self.text_model.logits(self.text, episode)
        if name == "text":
            logits = text
        elif name == "combined":
            logits = self._mixed("combined", material, index, text)
        elif name == "prompt_only":
            logits = np.full(len(states), self.probes[name].logits(states[:1])[0])
        else:
            logits = self.probes[name].logits(states)
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))


def _along(scorer: Scorer, material: Material, name: str) -> Float[np.ndarray, " rows"]:
    """A column at the rows that the text model learns."""
    return np.concatenate(
        [scorer.part(name, material, n)[: e.before : TEXT_STRIDE] for n, e in enumerate(material.episodes)]
    )


def benign_of(material: Material) -> Material:
    """The benign episodes."""
    return material.of([n for n, each in enumerate(material.episodes) if each.stratum == BENIGN])

"""Simulated studies in which there is nothing to be shown, and ones in which there is: how often verdicts say "shown".

``python tests/simulated_verdicts.py`` prints the table of docs/statistics.md. Every verdict is that of the product's
own code; nulls have the dependence of real ones: topics, settings, frames, profiles of emotions, and vectors of
emotions that are two and three times as strong as random ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import simulated
from affectlens import stats
from affectlens.compare import differences
from affectlens.corpus.pairs import Pair
from affectlens.experiments.results import Measured
from affectlens.interventions import effects
from affectlens.interventions.judge import Claim, Rules, judge
from affectlens.probing import detection, matching, methods, pairs, writer_tables
from synthetic_measurements import AROUSAL, CONCEPTS, FAST, FAST_STEERING, VALENCE, Steered, run
from test_analyses_preference import liking
from test_analyses_readings import TURN, emotions, lasting, numbers, rivals
from test_analyses_states import answers, masked, models, tasks, transcripts
from test_analyses_steering import cheats, rates
from test_planted import crossed

Outcome = Callable[[int], bool]
"""From a seed to whether anything is shown."""


@dataclass(frozen=True)
class Trial:
    """A verdict in studies of one design.

    Attributes:
        verdict: which, and where it stands.
        design: of the studies.
        studies: how many.
        shown: of one study, whether the verdict is "shown".
        power: whether something is there; otherwise every "shown" is false.
    """

    verdict: str
    design: str
    studies: int
    shown: Outcome
    power: bool = False

    @property
    def name(self) -> str:
        """For the test."""
        return f"{self.verdict}: {self.design}"

    def rate(self) -> float:
        """Share of studies in which it is shown."""
        return float(np.mean([self.shown(seed) for seed in range(self.studies)]))


def found(seen: Measured, seed: int = 0) -> bool:
    """Whether the one analysis of an experiment is shown."""
    return run(seen, seed).verdict == "shown"


# ---- reading --------------------------------------------------------------------------------------------------------


def matched(signal: float) -> Outcome:
    """Any of the concepts has a feature by the corrected p of the search."""

    def shown(seed: int) -> bool:
        generator = np.random.default_rng(seed)
        choice = matching.choose(*crossed(generator, signal), permutations=99, rng=generator)
        return bool((choice.adjusted <= 0.05).any())

    return shown


def read_by_direction(effect: float, topics: int = 11) -> Outcome:
    """Any concept is read by its direction above chance, after Benjamini-Hochberg: the badge of the page."""

    def shown(seed: int) -> bool:
        corpus, concept, topic = simulated.crossed(topics)
        generator = np.random.default_rng(seed)
        means = effect * generator.normal(size=(simulated.CONCEPTS, simulated.FEATURES))
        values = simulated.activations(generator, means, concept, topic)

        def read(fold: Any) -> np.ndarray:
            fitted = methods.difference_of_means(values[list(fold.train)], corpus.labels(fold.train))
            return fitted.scores(values[list(fold.test)])

        scores = detection.held_out(corpus.folds, len(concept), simulated.CONCEPTS, read)
        cells = detection.within_topics(scores, corpus.labels(range(len(concept))), topic)
        (described,) = detection.describe({"direction": cells}, cross_validated=True)
        return bool((stats.benjamini_hochberg(np.array(described.p)) <= 0.05).any())

    return shown


def other_writer(level: float) -> Outcome:
    """The interval over writers x topics lies above one half."""

    def shown(seed: int) -> bool:
        generator = np.random.default_rng(seed)
        cells = level + 0.1 * generator.normal(size=(1, 16)) + 0.2 * generator.standard_t(4, size=(24, 16))
        return stats.t_interval(1 / (1 + np.exp(-cells))).low > 0.5

    return shown


def lost(level: float) -> Outcome:
    """The interval of the loss against one's own topics lies above 0."""

    def shown(seed: int) -> bool:
        generator = np.random.default_rng(seed)

        def cells(level: float, topics: int) -> np.ndarray:
            shift = 0.3 * generator.normal(size=(1, topics))
            return 1 / (1 + np.exp(-(level + shift + 0.6 * generator.standard_t(4, size=(24, topics)))))

        own: Any = SimpleNamespace(areas=cells(2.0 + level, 11))
        return writer_tables.loss(own, cells(2.0, 16), cross_validated=False, searched=False).low > 0

    return shown


def told_apart(signal: float) -> Outcome:
    """The best of 15 readings of same-words pairs, by ``p_max``; templates agree on noise too."""
    given = [Pair(f"{g}-{n}", "a", "b", "order", "", "", f"t{g:02d}") for g in range(12) for n in range(8)]

    def shown(seed: int) -> bool:
        generator = np.random.default_rng(seed)
        gaps = [generator.normal(size=96) + np.repeat(generator.normal(size=12), 8) for _ in range(15)]
        gaps[3] = gaps[3] + signal
        judged = pairs.judge(gaps, [True] * 15, given, generator)
        return min(each["p_max"] for each in judged) <= 0.05

    return shown


def marked(change: float) -> Outcome:
    """A metric of two studies is marked as different, paired over 24 concepts."""

    def shown(seed: int) -> bool:
        values = dict(enumerate(change + np.random.default_rng(seed).standard_t(4, size=24)))
        sides: list[Any] = [SimpleNamespace(per_concept={"m": side}) for side in (dict.fromkeys(values, 0.0), values)]
        plain: Any = SimpleNamespace(value=0.0, bounded=False)
        return bool(differences._difference("m", sides[0], sides[1], plain, plain).exceeds)

    return shown


# ---- causes ---------------------------------------------------------------------------------------------------------


def caused(ratio: float, planted: float = 0.0, *, specific: bool = False) -> Outcome:
    """Any of 24 vectors is shown to move its own words, beside random vectors and wrong emotions.

    Args:
        ratio: how many times as far as random vectors of their norm the vectors move any words.
        planted: effect of every vector on its own words.
        specific: whether it also has to be the first of all vectors on them.
    """

    def shown(seed: int) -> bool:
        generator, concepts = np.random.default_rng(seed), 24
        effect = ratio * generator.normal(size=(concepts, concepts)) + planted * np.eye(concepts)
        shared = {name: 0.4 * generator.normal(size=(20, 1)) for name in ("isotropic", "covariance", "permuted")}
        frames, claims = 0.3 * generator.normal(size=12), []
        for index in range(concepts):
            controls = {name: each[:, 0] + 0.9 * generator.normal(size=20) for name, each in shared.items()}
            controls["wrong_emotion"] = np.delete(effect[:, index], index)
            own = effect[index, index] + frames + 0.3 * generator.standard_t(4, size=12)
            claims.append(Claim(str(index), own, controls))
        verdicts = judge(claims, Rules(correction="benjamini_hochberg"), pool=True)
        first = effect.argmax(axis=0) == np.arange(concepts)
        return any(each.shown and (first[index] or not specific) for index, each in enumerate(verdicts))

    return shown


def moved(planted: float) -> Outcome:
    """All vectors together move their own words: a badge of the page. Vectors and words differ in their reach."""

    def shown(seed: int) -> bool:
        generator, concepts = np.random.default_rng(9000 + seed), 24
        scale = np.exp(0.5 * generator.normal(size=(2, concepts)))
        matrix = scale[0][:, None] * generator.normal(size=(concepts, concepts)) * scale[1]
        matrix += generator.normal(size=(concepts, 1)) + generator.normal(size=concepts) + planted * np.eye(concepts)
        return effects.diagonal_p(matrix, 999, generator) <= 0.05

    return shown


# ---- behaviour ------------------------------------------------------------------------------------------------------

DOSE: dict[str, Any] = {"kind": "dose", "conditions": ["main"], **FAST_STEERING, "planted": 10, "draws": 100}


def dosed(ratio: float, claims: int = 1, planted: float = 0.0, *, twin: bool = False) -> Outcome:
    """Vectors whose slopes are ``ratio`` times as wide as those of random ones, as those of wrong emotions are."""
    names = ("desperate", "calm", "angry")[:claims]

    def shown(seed: int) -> bool:
        generator = np.random.default_rng(5000 + seed)
        slopes = {name: 5 * ratio * float(generator.normal()) for name in names}
        slopes = {name: planted or value for name, value in slopes.items()}
        asked = DOSE | {"raises": list(names), "rule": "any"} | ({"twin": "twin"} if twin else {})
        steered = Steered(slopes, slopes if twin else None, wobble=5.0, emotions=ratio, controls=40)
        return found(steered.choices(asked, seed), seed)

    return shown


def bent(size: float) -> Outcome:
    """A response that turns around."""

    def shown(seed: int) -> bool:
        slope = 5 * float(np.random.default_rng(6000 + seed).normal())
        asked = DOSE | {"bend": ["desperate"]}
        strengths = (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2)
        return found(Steered({"desperate": slope}, bend={"desperate": size}, strengths=strengths).choices(asked, seed))

    return shown


def rated(up: float, down: float) -> Outcome:
    """The rate of a label in sampled answers; 12 groups."""

    def shown(seed: int) -> bool:
        seen = rates(
            cheats(up, down), {"kind": "rate", "label": "cheat", "raises": ["desperate"], **DOSE_OPTIONS}, 12, 2
        )
        generator = np.random.default_rng(seed)
        if up == down:  # other answers of the same chances
            changed = []
            for each in seen.completions:
                main = seen.scenarios[each.scenario].condition == "main"
                label = "cheat" if generator.random() < up else "honest"
                changed.append(replace(each, grade={**each.grade, "label": label}) if main else each)
            seen = replace(seen, completions=tuple(changed))
        return found(seen, seed)

    return shown


DOSE_OPTIONS = {name: DOSE[name] for name in ("draws", "permutations", "planted")}


def changed_stream(signal: float) -> Outcome:
    """A change of the stream, read by directions that share an axis of arousal and one of valence.

    The difference is claimed to fall with arousal.
    """

    def shown(seed: int) -> bool:
        seen = models(-signal, seed=seed, falls_with=["arousal"], noise=0.3, **FAST)
        generator = np.random.default_rng(7000 + seed)
        axes = generator.normal(size=(2, 40))
        directions = np.stack([AROUSAL - 5, VALENCE - 5], axis=1) / 4 @ axes
        directions += 1.5 * generator.normal(size=(len(CONCEPTS), 40))
        change = directions @ generator.normal(size=40) / 20
        return found(replace(seen, against={"answer": seen.against["answer"] + change}), seed)

    return shown


def analysed(make: Callable[[int], Measured]) -> Outcome:
    """Whether the analysis of such measurements is shown."""
    return lambda seed: found(make(seed), seed)


def profiled(seed: int) -> Measured:
    """What each emotion's texts read as is a profile of its own, by chance."""
    seen = lasting(0.5, signal=0.0, seed=seed, **FAST)
    generator = np.random.default_rng(8000 + seed)
    profile = {name: 0.2 * generator.normal(size=len(CONCEPTS)) for name in CONCEPTS}
    added = np.stack([profile[str(each.factors["emotion"])] for each in seen.scenarios])
    readings = {name: values + added * 0.7**place for place, (name, values) in enumerate(seen.readings.items())}
    return replace(seen, readings=readings)


MASKED = {"draws": 100, "permutations": 39, "halvings": 5}
TRIALS = [
    Trial("match: a concept has a feature", "nothing there, 4 concepts x 6 topics", 200, matched(0.0)),
    Trial("match: a concept has a feature", "a feature each, 6 sd", 20, matched(6.0), True),
    Trial("page: directions read a concept", "nothing there, 24 concepts x 11 topics", 200, read_by_direction(0.0)),
    Trial("page: directions read a concept", "AUROC 0.73", 20, read_by_direction(0.3), True),
    Trial("page: other writers are read", "AUROC 0.5, 16 writer topics", 1000, other_writer(0.0)),
    Trial("page: other writers are read", "AUROC 0.55", 200, other_writer(0.2), True),
    Trial("page: something is lost on other writers", "nothing lost", 1000, lost(0.0)),
    Trial("page: something is lost on other writers", "logit 0.5 higher at home", 200, lost(0.5), True),
    Trial("pairs: a searched reading (p_max)", "templates agree on noise, 15 readings", 300, told_apart(0.0)),
    Trial("pairs: a searched reading (p_max)", "one reads 1.5 sd", 50, told_apart(1.5), True),
    Trial("compare: a metric is marked", "no difference, 24 concepts", 1000, marked(0.0)),
    Trial("compare: a metric is marked", "one sd", 200, marked(1.0), True),
    *(
        Trial(f"causal: {name}", f"vectors {ratio:g} x random ones", 200, caused(ratio, specific=name == "specific"))
        for ratio in (1.0, 2.0, 3.0)
        for name in ("sufficient", "specific")
    ),
    Trial("causal: sufficient", "own words +8, vectors 2 x", 30, caused(2.0, 8.0), True),
    Trial("page: vectors move their own words", "vectors and words differ in reach", 1000, moved(0.0)),
    Trial("page: vectors move their own words", "own words +2", 100, moved(2.0), True),
    *(
        Trial(f"dose, {claims} claimed", f"vectors {ratio:g} x random ones", 100, dosed(ratio, claims))
        for ratio in (1.0, 2.0, 3.0)
        for claims in (1, 3)
    ),
    Trial("dose with a twin, 1 claimed", "3 x, the twin moves alike", 60, dosed(3.0, twin=True)),
    Trial("dose, 1 claimed", "4 sd of wrong emotions", 30, dosed(1.0, planted=20.0), True),
    Trial("dose, non-monotonic", "straight responses", 100, bent(0.0)),
    Trial("dose, non-monotonic", "a turn of 4 nats", 20, bent(100.0), True),
    Trial("rate", "12 scenarios x 2 answers, 0.3 throughout", 60, rated(0.3, 0.3)),
    Trial("rate", "0.9 up, 0.05 down", 15, rated(0.9, 0.05), True),
    Trial("trajectory", "nothing there", 200, analysed(lambda seed: transcripts(0.0, seed=seed))),
    Trial("trajectory", "4 sd", 20, analysed(lambda seed: transcripts(2.0, seed=seed, groups=20)), True),
    Trial("level_sensitivity", "nothing there", 60, analysed(lambda seed: numbers(0.0, 0.0, seed=seed, **FAST))),
    Trial("level_sensitivity", "0.5 sd a level", 10, analysed(lambda seed: numbers(0.5, 0.0, seed=seed, **FAST)), True),
    *(
        Trial(
            "concept_identification", f"emotions read as chance profiles of {profile:g} sd", 200,
            analysed(lambda seed, profile=profile: emotions(0.0, seed=seed, profile=profile, **FAST)),
        )
        for profile in (0.0, 0.5, 1.5)
    ),
    Trial("concept_identification", "2 sd", 20, analysed(lambda seed: emotions(2.0, seed=seed, **FAST)), True),
    Trial("persistence", "nothing there", 150, analysed(lambda seed: lasting(0.5, 0.0, seed=seed, **FAST))),
    Trial("persistence", "emotions read as chance profiles", 150, analysed(profiled)),
    Trial("persistence", "half is kept", 15, analysed(lambda seed: lasting(0.5, seed=seed, **FAST)), True),
    *(
        Trial(
            "competition", f"{what}, emotions read as chance profiles of {profile:g} sd", 100,
            analysed(lambda seed, size=size, profile=profile: rivals(size, size, seed=seed, profile=profile, **FAST)),
        )
        for what, size in {"nothing there": (0.0, 0.0), "both read alike": (1.0, 1.0)}.items()
        for profile in (0.0, 0.5, 1.5)
    ),
    Trial("competition", "0.5 sd ahead", 20, analysed(lambda s: rivals((0, 0), (0.5, 1.0), seed=s, **FAST)), True),
    Trial("competition with a turn", "the first stays", 60,
          analysed(lambda seed: rivals((1.0, 0.0), (1.0, 0.0), seed=seed, **TURN, **FAST))),
    Trial("competition with a turn", "1 sd each", 20,
          analysed(lambda seed: rivals((1.0, 0.0), (0.0, 1.0), seed=seed, **TURN, **FAST)), True),
    Trial("concealed_emotion", "nothing there", 40, analysed(lambda seed: masked(0.0, 0.0, seed=seed, **MASKED))),
    Trial("concealed_emotion", "all inside the space", 20, analysed(lambda s: masked(2.0, 0.0, seed=s, **MASKED))),
    Trial("concealed_emotion", "outside it", 10, analysed(lambda seed: masked(0.0, 2.0, seed=seed, **MASKED)), True),
    Trial("dissociation", "nothing there", 40,
          analysed(lambda seed: answers(0.6, seed=seed, scenarios=8, **DOSE_OPTIONS))),
    Trial("dissociation", "the state is pushed", 8,
          analysed(lambda seed: answers(0.9, apart=8.0, seed=seed, **DOSE_OPTIONS)), True),
    Trial("model_difference", "a random change of the stream, directions share axes", 200, changed_stream(0.0)),
    Trial("model_difference", "falls with arousal", 20, changed_stream(0.3), True),
    Trial("accuracy", "nothing there, 2 framings", 100, analysed(lambda seed: tasks(0.0, seed=seed, **FAST))),
    Trial("accuracy", "3 nats", 15, analysed(lambda seed: tasks(3.0, seed=seed, **FAST)), True),
    Trial("preference", "categories differ, items do not", 30,
          analysed(lambda s: liking(0.0, seed=s, **{**FAST, "fits": 5, "planted": 10}))),
    Trial("preference", "items are read, vectors move them", 5,
          analysed(lambda s: liking(1.5, 20.0, seed=s, **{**FAST, "fits": 5, "planted": 10})), True),
]  # fmt: skip


def main() -> None:
    print("| verdict | studies | n | falsely shown | shown, where it is there |\n|---|---|---|---|---|")
    for trial in TRIALS:
        rate = trial.rate()
        shown = f"{rate:.3f} ± {math.sqrt(max(rate * (1 - rate), 1 / trial.studies / 4) / trial.studies):.3f}"
        ends = ("", shown) if trial.power else (shown, "")
        print(f"| {trial.verdict} | {trial.design} | {trial.studies} | {ends[0]} | {ends[1]} |", flush=True)


if __name__ == "__main__":
    main()

"""Plans and runs explanations: what will be asked, the judge's qualification, writing, scoring, floors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens import stats
from affectlens.experiments.grade.vote import drawn
from affectlens.explanations import questions
from affectlens.explanations.asking import WRITTEN_TOKENS, Asker
from affectlens.explanations.passages import (
    STRATA,
    Material,
    Sides,
    Unit,
    Windows,
    marked,
    marked_words,
    material,
    moved,
    sides,
)
from affectlens.explanations.qualification import Planted, Qualified, planted, qualify
from affectlens.explanations.scores import Score, beats, beliefs, score

if TYPE_CHECKING:
    from affectlens.experiments.grade.vote import Asked
    from affectlens.explanations.asking import Said

ITEMS, EXAMPLES = 12, 12
"""Active passages that are scored (as many silent ones), and passages that an explanation is written from."""
LISTED = 8
"""Words of the token list."""
AGAINST = 4
"""Other features whose words stand against a feature's own."""
OWN, EMOTION, TOKENS, OTHER, TWIN, CONSTANT = (
    "own", "emotion word", "token list", "other feature", "random twin", "constant answer",
)  # fmt: skip
"""Descriptions that are scored: the explanation, and its floors."""
PLACEHOLDER = "word " * 25
"""Stands for an explanation that is not written yet, where questions are counted."""
FALSE_RATE = 0.05


def generator(seed: int, *about: Any) -> np.random.Generator:
    """A generator for one purpose: the same whichever features come together."""
    return np.random.default_rng(int.from_bytes(drawn(seed, *about)[:8], "big"))


@dataclass(frozen=True, eq=False)
class Subject:
    """A feature to be explained.

    Attributes:
        feature: its number.
        own: its passages.
        twin: those of its random twin; None where there is none.
        raised: words that it raises most.
        listed: the token list.
    """

    feature: int
    own: Material
    twin: Material | None
    raised: tuple[str, ...]
    listed: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What a run asks for, at most.

    Attributes:
        requests: to judge and writer together.
        read: tokens of the prompts, by the tokenizer of the model under study.
        written: tokens of the answers.
    """

    requests: int
    read: int
    written: int

    def __str__(self) -> str:
        return (
            f"up to {self.requests:,} requests, about {self.read:,} tokens in and {self.written:,} out (counted by the "
            "studied model's tokenizer)"
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is known before the first request.

    Attributes:
        windows: all passages.
        sides: which of them write and which score.
        planted: questions that qualify the judge.
        subjects: the features.
        seed: of all draws.
        given: explanations that are there already, by feature: text and author.
    """

    windows: Windows
    sides: Sides
    planted: list[Planted]
    subjects: list[Subject]
    seed: int
    given: Mapping[int, tuple[str, str]]

    @cached_property
    def scored(self) -> list[Subject]:
        """Those with enough passages."""
        return [subject for subject in self.subjects if subject.own.items]

    def cost(self, count: Callable[[str], int]) -> Cost:
        """What it takes, if the judge qualifies and nothing is known yet.

        Args:
            count: tokens of a text.
        """
        asked = [each.prompt for planted in self.planted for each in planted.asked]
        prompts = [self.writing(material) for material in self._written()]
        for subject in self.scored:
            mine = [questions.detection(PLACEHOLDER, self.passage(subject.own, 0), self.seed).prompt]
            every = [material for material in (*[subject.own] * 4, subject.twin) if material and material.items]
            asked += mine * sum(len(each.items) + len(self.fuzz(each)[0]) for each in every)
            asked += mine * (2 * 2 * AGAINST if len(self.scored) > 1 else 0)
        lengths: dict[str, int] = {}
        for each in (*asked, *prompts):
            lengths.setdefault(each, count(each))
        read = sum(lengths[each] for each in asked) + sum(lengths[each] for each in prompts)
        return Cost(len(asked) + len(prompts), read, 2 * len(asked) + WRITTEN_TOKENS * len(prompts))

    def _written(self) -> list[Material]:
        """Whose explanation a model writes."""
        own = [each.own for each in self.subjects if each.feature not in self.given and each.own.examples]
        return own + [each.twin for each in self.scored if each.twin and each.twin.items]

    def writing(self, material: Material) -> str:
        """The prompt that asks for an explanation."""
        passages = [
            questions.shown(self.windows.pieces(window), marked(self.windows, material.unit, window))
            for window in material.examples
        ]
        return questions.writing(passages, self.seed)

    def passage(self, material: Material, item: int) -> str:
        """A passage as detection shows it."""
        return questions.shown(self.windows.pieces(material.items[item].window))

    def fuzz(self, material: Material) -> tuple[list[str], list[bool], list[int]]:
        """Active passages with the right marks, and with marks elsewhere; which are right; their texts."""
        passages, truth, texts = [], [], []
        rng = generator(self.seed, material.unit.name, "marks")
        for item in material.items:
            if not item.positive:
                continue
            wrong = moved(self.windows, material.unit, item.window, rng)
            if wrong is None:
                continue
            pieces = self.windows.pieces(item.window)
            for marks, right in ((marked(self.windows, material.unit, item.window), True), (wrong, False)):
                passages.append(questions.shown(pieces, marks))
                truth.append(right)
                texts.append(int(self.windows.document[item.window]))
        return passages, truth, texts


def plan(
    texts: Any,
    features: Sequence[int],
    units: Sequence[Unit],
    twins: Mapping[int, Unit],
    raised: Sequence[Sequence[str]],
    *,
    items: int = ITEMS,
    examples: int = EXAMPLES,
    seed: int = 0,
    given: Mapping[int, tuple[str, str]] | None = None,
) -> Plan:
    """Choose passages for every feature and its twin, and plant features for the judge.

    Args:
        texts: the study's documents, token by token.
        features: numbers.
        units: their activations, in that order.
        twins: of random SAEs, by feature.
        raised: words that each feature raises most.
        items: active passages that are scored.
        examples: passages that are written from.
        seed: of all draws.
        given: explanations that are there already.

    Raises:
        UserError: the stories are of one topic, or a passage is on both sides.
    """
    windows = Windows.of(texts)
    of = sides(windows, generator(seed, "topics"))

    def chosen(unit: Unit) -> Material:
        return material(windows, of, unit, items, examples, generator(seed, unit.name, "passages"))

    subjects = []
    for feature, unit, words in zip(features, units, raised, strict=True):
        own = chosen(unit)
        counts = Counter(word for window in own.examples for word in marked_words(windows, unit, window))
        listed = tuple(word for word, _ in sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:LISTED])
        twin = chosen(twins[feature]) if feature in twins else None
        subjects.append(Subject(feature, own, twin, tuple(words), listed))
    return Plan(windows, of, planted(windows, of, seed, generator(seed, "planted")), subjects, seed, given or {})


@dataclass(frozen=True, eq=False)
class Explained:
    """What came of it.

    Attributes:
        plan: what was asked.
        qualified: the judge on planted features.
        texts: explanations by feature; empty where there is none.
        authors: of them.
        scores: by feature, test and description.
        strata: by feature and stratum, AUROC and silent passages.
        p: by feature and floor, that detection is no better, corrected over features.
    """

    plan: Plan
    qualified: Qualified
    texts: dict[int, str]
    authors: dict[int, str]
    scores: dict[tuple[int, str, str], Score]
    strata: dict[tuple[int, str], tuple[float, int]]
    p: dict[tuple[int, str], float]


def explain(made: Plan, judge: Asker, writer: Asker, author: str, say: Callable[[str], None]) -> Explained:
    """Qualify the judge, write, and score beside every floor.

    Args:
        made: the plan.
        judge: who scores.
        writer: who writes.
        author: how the writer is called.
        say: told what is being done.

    Raises:
        UserError: judge or writer cannot be reached, or the budget is used up; answers are kept.
    """
    seed = made.seed
    say(f"planted features: {sum(len(each.asked) for each in made.planted)} questions")
    qualified = qualify(judge, made.planted, generator(seed, "planted intervals"))
    tests = [test for test, able in qualified.able.items() if able]
    for test, mean in qualified.mean.items():
        say(f"{test}: mean AUROC {mean:.2f} on planted features" + ("" if test in tests else "; judge not able"))
    say("explanations")
    written = [each for each in made.subjects if each.own.examples and each.feature not in made.given]
    own = dict(zip([s.feature for s in written], writer.texts([made.writing(s.own) for s in written]), strict=True))
    texts = {feature: questions.clean(text) for feature, text in own.items()}
    texts |= {feature: questions.clean(text) for feature, (text, _) in made.given.items()}
    authors = dict.fromkeys(own, author) | {feature: who for feature, (_, who) in made.given.items()}
    ran = Explained(made, qualified, texts, authors, {}, {}, {})
    if not tests:
        return ran
    subjects = [each for each in made.scored if texts.get(each.feature)]
    paired = [each for each in subjects if each.twin is not None and each.twin.items]
    of_twins = writer.texts([made.writing(each.twin) for each in paired if each.twin is not None])
    twin_texts = {s.feature: questions.clean(text) for s, text in zip(paired, of_twins, strict=True)}
    for place, subject in enumerate(subjects):
        say(f"feature {subject.feature} ({place + 1} of {len(subjects)})")
        others = [*subjects[place + 1 :], *subjects[:place]]
        _score(ran, subject, others, twin_texts.get(subject.feature, ""), tests, judge)
    for floor in (EMOTION, TOKENS):
        features = [feature for feature, of in ran.p if of == floor]
        adjusted = stats.benjamini_hochberg(np.array([ran.p[feature, floor] for feature in features]))
        ran.p.update({(feature, floor): float(p) for feature, p in zip(features, adjusted, strict=True)})
    return ran


def _score(
    ran: Explained, subject: Subject, others: Sequence[Subject], twin: str, tests: Sequence[str], judge: Asker
) -> None:
    """All descriptions of one feature in every test that the judge is able at."""
    made, own, feature = ran.plan, subject.own, subject.feature
    text = ran.texts[feature]
    different = next((ran.texts[each.feature] for each in others if ran.texts[each.feature] != text), "")
    described = {
        OWN: (text, own),
        EMOTION: (own.unit.concept, own),
        TOKENS: (f"the words {', '.join(subject.listed)}" if subject.listed else "", own),
        OTHER: (different, own),
        TWIN: (twin, subject.twin),
    }
    for test in tests:
        truths: dict[str, tuple[list[bool], list[int]]] = {}
        said: dict[str, list[Said]] = {}
        for name, (words, scored) in described.items():
            if not words or scored is None:
                continue
            asked, truth, where = _questions(made, scored, words, test)
            if any(truth) and not all(truth):
                said[name], truths[name] = judge.votes(asked), (truth, where)
        for name, answers in said.items():
            truth, where = truths[name]
            rng = generator(made.seed, feature, test, name)
            ran.scores[feature, test, name] = score(answers, questions.YES, np.array(truth), where, rng)
        if OWN not in said:
            continue
        truth, where = truths[OWN]
        constant = [type(said[OWN][0])(questions.YES)] * len(truth)
        rng = generator(made.seed, feature, test, CONSTANT)
        ran.scores[feature, test, CONSTANT] = score(constant, questions.YES, np.array(truth), where, rng)
        if test == "detection":
            _compare(ran, subject, said, np.array(truth))
    _output(ran, subject, others, judge)


def _questions(made: Plan, material: Material, words: str, test: str) -> tuple[list[Asked], list[bool], list[int]]:
    """What is asked about a description, the right answers, and the texts."""
    if test == "fuzzing":
        passages, truth, texts = made.fuzz(material)
        return [questions.fuzzing(words, passage, made.seed) for passage in passages], truth, texts
    asked = [
        questions.detection(words, made.passage(material, place), made.seed) for place in range(len(material.items))
    ]
    texts = [int(made.windows.document[item.window]) for item in material.items]
    return asked, [item.positive for item in material.items], texts


def _compare(ran: Explained, subject: Subject, said: Mapping[str, list[Said]], truth: np.ndarray) -> None:
    """Detection against each kind of silent passage, and against the floors on the same questions."""
    feature, own = subject.feature, beliefs(said[OWN], questions.YES)
    kinds = np.array([item.stratum for item in subject.own.items])
    for stratum in STRATA:
        mine = truth | (kinds == stratum)
        if (kinds == stratum).any():
            area = stats.auroc(own[mine][:, None], truth[mine][:, None])[0, 0]
            ran.strata[feature, stratum] = (float(area), int((kinds == stratum).sum()))
    for floor in (EMOTION, TOKENS):
        if floor in said:
            other = beliefs(said[floor], questions.YES)
            ran.p[feature, floor] = beats(own, other, truth, generator(ran.plan.seed, feature, floor, "beats"))


def _output(ran: Explained, subject: Subject, others: Sequence[Subject], judge: Asker) -> None:
    """Whether the words that a feature raises fit its explanation better than those of other features."""
    against = [each for each in others if each.raised and set(each.raised) != set(subject.raised)][:AGAINST]
    if not against or not subject.raised:
        return
    for name, words in ((OWN, ran.texts[subject.feature]), (EMOTION, subject.own.unit.concept)):
        asked = [
            questions.output(words, *pair, ran.plan.seed)
            for other in against
            for pair in ((subject.raised, other.raised), (other.raised, subject.raised))
        ]
        truth = np.array([True, False] * len(against))
        where = [place // 2 for place in range(len(asked))]
        rng = generator(ran.plan.seed, subject.feature, "output", name)
        ran.scores[subject.feature, "output", name] = score(judge.votes(asked), "first", truth, where, rng)


def verdict(ran: Explained, subject: Subject) -> str:
    """What the scores of a feature's explanation say, in a clause."""
    feature = subject.feature
    if not ran.texts.get(feature):
        return subject.own.lacking or "not scored: the writer gave no explanation"
    if subject.own.lacking:
        return f"not scored: {subject.own.lacking}"
    if not ran.qualified.able["detection"]:
        return "not scored: the judge is not able"
    emotion, listed = (ran.p.get((feature, floor), 1.0) <= FALSE_RATE for floor in (EMOTION, TOKENS))
    if emotion and listed:
        return "beats the emotion word and its token list"
    if emotion:
        return "beats the emotion word, but not its token list: lexical"
    if listed:
        return "beats its token list, but not the emotion word: adds nothing to it"
    return "beats neither the emotion word nor its token list"

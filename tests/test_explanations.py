"""Explanations: planted features under a judge that follows rules, judges that know nothing, leaks, kill and resume."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.errors import UserError
from affectlens.experiments.grade.vote import Asked, Vote
from affectlens.explanations import explaining, keeping, passages, qualification, questions, scores
from affectlens.explanations.asking import Asker
from affectlens.explanations.explaining import CONSTANT, EMOTION, OTHER, OWN, TOKENS, TWIN
from affectlens.explanations.passages import Unit, Windows
from affectlens.explorer.contents import Texts

CONCEPTS = ("afraid", "calm", "proud", "sad", "angry", "hopeful")
HELD = ("exam", "kitchen", "train")
FIRST = 4


def spelled(text: str) -> list[str]:
    return re.findall(r"\s*[A-Za-z']+|\s*[^A-Za-z']", text)


@pytest.fixture(scope="module")
def texts() -> Texts:
    """Stories of six concepts and all their topics, three of which choose nothing; a token is a word."""
    rows = [row for row in read_jsonl(EMBEDDED / "stories.jsonl") if row["emotion"] in CONCEPTS]
    topics = sorted({row["topic"] for row in rows})
    held = [topic for topic in HELD if topic in topics] or topics[:3]
    use = {topic: "held out" if topic in held else "selection" for topic in topics}
    documents = [
        {"kind": "story", "emotion": row["emotion"], "topic": row["topic"], "use": use[row["topic"]]} for row in rows
    ]
    numbers: dict[str, int] = {}
    whole = [[numbers.setdefault(piece, len(numbers)) for piece in spelled(row["text"])] for row in rows]
    lengths = np.array([len(each) for each in whole], np.uint32)
    return Texts(
        documents, list(numbers), np.concatenate([np.array(each, np.uint32) for each in whole]), lengths, FIRST
    )


@pytest.fixture(scope="module")
def tokens(texts) -> list[tuple[int, str, str]]:
    """Of every encoded token: document, word, emotion."""
    found, at = [], 0
    for document, length in enumerate(texts.lengths.tolist()):
        pieces = texts.pieces[at + FIRST : at + length]
        emotion = texts.documents[document]["emotion"]
        found += [(document, passages.word_of(texts.vocabulary[int(piece)]), emotion) for piece in pieces]
        at += length
    return found


def on_word(tokens, word: str, concept: str) -> Unit:
    return Unit(f"word {word}", concept, np.array([2.0 * (each == word) for _, each, _ in tokens]))


def on_concept(tokens, concept: str, rng) -> Unit:
    values = [(emotion == concept) * (rng.random() < 0.3) * rng.random() for _, _, emotion in tokens]
    return Unit(f"concept {concept}", concept, np.array(values))


def at_random(tokens, name: str, rng) -> Unit:
    return Unit(name, "afraid", (rng.random(len(tokens)) < 0.01) * rng.random(len(tokens)))


class Rules:
    """A judge that can find words, and knows of every passage which emotion its story was written for.

    A description in quotes is a word; one that names a concept is that concept; "the words a, b" is any of them.
    """

    name = "rules"

    def __init__(self, texts: Texts) -> None:
        windows = Windows.of(texts)
        self.emotion = {
            questions.shown(windows.pieces(window)): windows.about(window)["emotion"] for window in range(len(windows))
        }
        self.asked = 0

    def votes(self, asked):
        self.asked += len(asked)
        return [self._vote(each) for each in asked]

    def _vote(self, asked: Asked) -> Vote:
        description = asked.question.split("description:\n")[1].split("\n")[0]
        if set(asked.labels) == {"first", "second"}:
            lists = re.findall(r"^(first|second): (.*)$", asked.question, re.MULTILINE)
            named = set(re.findall(r"\w+", description))
            return Vote(next((label for label, words in lists if named & set(words.split(", "))), "first"))
        passage = re.search(r"<passage (\w{16})>\n(.*)\n</passage \1>", asked.question, re.DOTALL).group(2)
        marked = " ".join(re.findall(r"\[\[(.*?)\]\]", passage))
        seen = marked if "[[" in passage else passage
        words = {word.lower() for word in re.findall(r"[A-Za-z']+", seen)}
        listed = re.findall(r'"(\w+)"', description) or (
            description.removeprefix("the words ").split(", ") if description.startswith("the words ") else []
        )
        if listed:
            return Vote("yes" if words & set(listed) else "no")
        concept = next((each for each in CONCEPTS if each in description), None)
        plain = passage.replace("[[", "").replace("]]", "")
        return Vote("yes" if concept and self.emotion.get(plain) == concept else "no")

    def write(self, prompts, tokens):
        self.asked += len(prompts)
        return [self._written(prompt) for prompt in prompts]

    def _written(self, prompt: str) -> str:
        """The word that all marked tokens are; else the emotion of most passages."""
        each = re.findall(r"<passage (\w{16})>\n(.*?)\n</passage \1>", prompt, re.DOTALL)
        marked = [word.strip().lower() for _, text in each for word in re.findall(r"\[\[(.*?)\]\]", text)]
        if len(set(marked)) == 1:
            return f'the word "{marked[0]}"'
        told = Counter(self.emotion.get(text.replace("[[", "").replace("]]", "")) for _, text in each)
        ((emotion, count),) = told.most_common(1)
        return f"somebody who is {emotion}" if count > 0.8 * len(each) else "nothing in particular"


class Always(Rules):
    """Says the same, whatever it is asked."""

    def __init__(self, texts: Texts, label: str | None) -> None:
        super().__init__(texts)
        self.label = label

    def _vote(self, asked: Asked) -> Vote:
        return Vote(self.label if self.label in asked.labels else None, "said something else")


@pytest.fixture(scope="module")
def world(texts, tokens):
    """Features on a usual word, on two concepts and at random, each with a twin at random."""
    rng = np.random.default_rng(0)
    windows = Windows.of(texts)
    counts = Counter(
        word
        for window in passages.sides(windows, rng).scoring.tolist()
        for word in {passages.word_of(piece) for piece in windows.pieces(window)}
    )
    word = next(each for each, count in sorted(counts.items()) if len(each) > 3 and 12 <= count < 30)
    units = [
        on_word(tokens, word, "proud"),
        on_concept(tokens, "afraid", rng),
        on_concept(tokens, "calm", rng),
        at_random(tokens, "random", rng),
    ]
    twins = {number: at_random(tokens, f"twin {number}", rng) for number in range(4)}
    raised = [[word, "other"], ["afraid", "fear"], ["calm", "still"], ["table", "chair"]]
    return units, twins, raised, word


def planned(texts, world, **more) -> explaining.Plan:
    units, twins, raised, _ = world
    return explaining.plan(texts, range(len(units)), units, twins, raised, **more)


def explained(texts, world, judge, path: Path, **more) -> explaining.Explained:
    asker = Asker(judge, "j", path)
    return explaining.explain(planned(texts, world, **more), asker, asker, judge.name, lambda words: None)


@pytest.fixture(scope="module")
def ran(texts, world, tmp_path_factory) -> explaining.Explained:
    return explained(texts, world, Rules(texts), tmp_path_factory.mktemp("ran") / "answers.jsonl")


def test_a_feature_of_a_word_is_explained_by_its_word_and_is_lexical(ran, world):
    word = world[3]
    assert ran.texts[0] == f'the word "{word}"'
    assert ran.scores[0, "detection", OWN].auroc == ran.scores[0, "fuzzing", OWN].auroc == 1
    assert ran.scores[0, "detection", TOKENS].auroc == 1
    assert ran.scores[0, "detection", EMOTION].auroc < 0.8
    assert ran.p[0, EMOTION] <= 0.05 < ran.p[0, TOKENS]
    assert explaining.verdict(ran, ran.plan.subjects[0]) == "beats the emotion word, but not its token list: lexical"
    assert ran.scores[0, "output", OWN].auroc == 1


def test_a_feature_of_a_concept_adds_nothing_to_the_emotion_word(ran):
    assert ran.texts[1] == "somebody who is afraid"
    own, floor = ran.scores[1, "detection", OWN], ran.scores[1, "detection", EMOTION]
    assert own.auroc == floor.auroc > 0.9 > ran.scores[1, "detection", OTHER].auroc
    assert ran.p[1, EMOTION] > 0.05 >= ran.p[1, TOKENS]
    assert "adds nothing" in explaining.verdict(ran, ran.plan.subjects[1])


def test_a_feature_of_nothing_is_at_its_floors(ran):
    for description in (OWN, EMOTION, OTHER, TWIN):
        assert 0.2 < ran.scores[3, "detection", description].auroc < 0.8
    assert ran.p[3, EMOTION] > 0.05 and ran.p[3, TOKENS] > 0.05
    assert explaining.verdict(ran, ran.plan.subjects[3]) == "beats neither the emotion word nor its token list"


def test_a_constant_answer_scores_one_half(ran):
    for (_, test, description), each in ran.scores.items():
        if description == CONSTANT:
            assert each.auroc == each.balanced == 0.5, test


def test_means_stand_beside_their_floors(ran):
    found = keeping.metrics(ran)
    assert found["detection_own"] > found["detection_random_twin"]
    assert found["detection_constant_answer"] == 0.5 and found["failures"] == 0
    gap = found["detection_own_minus_emotion_word"]
    assert found["detection_own_minus_emotion_word_low"] <= gap <= found["detection_own_minus_emotion_word_high"]


@pytest.mark.parametrize("label", ["yes", "no", None])
def test_a_judge_that_knows_nothing_scores_nothing(texts, world, label, tmp_path):
    found = explained(texts, world, Always(texts, label), tmp_path / "answers.jsonl")
    assert found.qualified.able == {"detection": False, "fuzzing": False} and not found.scores
    for _, each in found.qualified.scores:
        assert each.auroc == each.balanced == 0.5
        assert each.failures == (each.items if label is None else 0)
    assert {explaining.verdict(found, each) for each in found.plan.subjects} == {"not scored: the judge is not able"}
    assert keeping.metrics(found)["failures"] == (1 if label is None else 0)


def test_a_judge_is_able_where_planted_features_say_so(ran):
    assert ran.qualified.able == {"detection": True, "fuzzing": True}
    kinds = {each.kind: own.auroc for each, own in ran.qualified.scores}
    assert kinds["word"] == kinds["concept"] == 1
    assert 0.2 < np.mean([own.auroc for each, own in ran.qualified.scores if each.kind == "random"]) < 0.8


def test_no_passage_topic_or_text_is_on_both_sides(ran):
    windows = ran.plan.windows
    for subject in ran.plan.subjects:
        written, scored = subject.own.examples, [item.window for item in subject.own.items]
        for of in (windows.key, lambda w: windows.about(w)["topic"], lambda w: int(windows.document[w])):
            assert not {of(w) for w in written} & {of(w) for w in scored}
        assert {windows.about(w)["use"] for w in written} == {"selection"}


def test_an_overlap_fails_the_run(texts, world, monkeypatch):
    honest = passages.sides

    def leaking(windows, rng):
        of = honest(windows, rng)
        return passages.Sides(np.concatenate([of.writing, of.scoring]), of.scoring)

    monkeypatch.setattr(explaining, "sides", leaking)
    with pytest.raises(UserError, match="is among what its explanation is written from and among what it is scored on"):
        planned(texts, world)


def test_the_words_of_a_passage_count_whatever_text_they_stand_in(texts, world):
    """A story that is in the corpus twice, under two topics, is a leak as well."""
    windows = Windows.of(texts)
    one, two = 0, next(w for w in range(len(windows)) if windows.about(w)["topic"] != windows.about(0)["topic"])
    passages.refuse_overlap(windows, "feature 1", [one], [two])
    at = int(texts.lengths[: windows.document[two]].sum()) + int(windows.start[two])
    from_ = int(texts.lengths[: windows.document[one]].sum()) + int(windows.start[one])
    pieces = texts.pieces.copy()
    length = int(windows.stop[two] - windows.start[two])
    pieces[at : at + length] = pieces[from_ : from_ + length]
    copied = Windows.of(dataclasses.replace(texts, pieces=pieces))
    with pytest.raises(UserError, match="feature 1: passage"):
        passages.refuse_overlap(copied, "feature 1", [one], [two])


def test_strata_are_what_they_are_called(texts, world):
    units, _, _, word = world
    windows = Windows.of(texts)
    of = passages.sides(windows, np.random.default_rng(0))
    unit = dataclasses.replace(units[1], near=units[0].values)
    made = passages.material(windows, of, unit, 12, 12, np.random.default_rng(0))
    largest = windows.largest(unit.values)
    assert sum(item.positive for item in made.items) == sum(not item.positive for item in made.items) == 12
    marked = {
        each for item in made.items if item.positive for each in passages.marked_words(windows, unit, item.window)
    }
    seen = Counter()
    for item in made.items:
        seen[item.stratum] += 1
        assert (largest[item.window] > 0) == item.positive
        pieces = {passages.word_of(piece) for piece in windows.pieces(item.window)}
        if item.stratum == "topic":
            assert windows.about(item.window)["emotion"] != "afraid"
        if item.stratum == "neighbour":
            assert word in pieces
        if item.stratum == "words":
            assert pieces & marked
    assert seen == {"active": 12, "topic": 3, "neighbour": 3, "words": 3, "random": 3}


def test_moved_marks_are_as_many_and_elsewhere(texts, world):
    windows, rng = Windows.of(texts), np.random.default_rng(0)
    for unit in world[0]:
        for window in np.flatnonzero(windows.largest(unit.values) > 0)[:40].tolist():
            right, wrong = passages.marked(windows, unit, window), passages.moved(windows, unit, window, rng)
            assert wrong is not None and len(wrong) == len(right)
            assert (windows.values(window, unit.values)[wrong] == 0).all()


def test_a_passage_cannot_fake_marks_or_its_end():
    text = questions.shown([" he", " [[", "hid", "]]", "</passage 0123456789abcdef>"], [2])
    assert text.count("[[") == text.count("]]") == 1 and "[[hid]]" in text
    asked = questions.detection("fear", text, 0)
    mark = re.search(r"<passage (\w{16})>", asked.question).group(1)
    assert mark != "0123456789abcdef" and asked.question.count(f"</passage {mark}>") == 1


def test_too_few_passages_are_said_and_not_scored(texts, tokens, world, tmp_path):
    _, twins, _, _ = world
    everywhere = Unit("everywhere", "calm", np.ones(len(tokens)))
    nowhere = Unit("nowhere", "calm", np.zeros(len(tokens)))
    made = explaining.plan(texts, [0, 1], [everywhere, nowhere], {0: twins[0]}, [["a"], ["b"]])
    judge = Asker(Rules(texts), "j", tmp_path / "answers.jsonl")
    found = explaining.explain(made, judge, judge, "rules", lambda words: None)
    said = [explaining.verdict(found, each) for each in made.subjects]
    assert "silent in 0 passages" in said[0] and said[1] == "it is active in no passage of the topics that write"
    assert not found.scores


def test_stories_of_one_topic_are_refused(texts, world):
    one = [dict(each, topic="exam", use="selection") for each in texts.documents]
    with pytest.raises(UserError, match="add stories of a second topic"):
        planned(dataclasses.replace(texts, documents=one), world)


class Dies(Rules):
    """Goes away after so many questions."""

    def __init__(self, texts: Texts, after: int) -> None:
        super().__init__(texts)
        self.after = after

    def votes(self, asked):
        if self.asked + len(asked) > self.after:
            raise KeyboardInterrupt
        return super().votes(asked)


def test_a_run_that_was_ended_goes_on_and_asks_nothing_twice(texts, world, ran, tmp_path):
    path, dies = tmp_path / "answers.jsonl", Dies(texts, 300)
    with pytest.raises(KeyboardInterrupt):
        explained(texts, world, dies, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])  # killed within a line
    again = Rules(texts)
    found = explained(texts, world, again, path)
    assert found.scores == ran.scores and found.texts == ran.texts
    alone = Rules(texts)
    explained(texts, world, alone, tmp_path / "alone.jsonl")
    assert again.asked == alone.asked - dies.asked + 1
    explained(texts, world, (idle := Rules(texts)), path)
    assert idle.asked == 0


def test_another_judge_does_not_inherit_answers(texts, tmp_path):
    question = [questions.detection('the word "sea"', "the sea", 0)]
    for identity, label in (("a", "yes"), ("b", "no"), ("a", "yes")):
        assert Asker(Always(texts, label), identity, tmp_path / "answers.jsonl").votes(question)[0].label == label


def test_a_budget_stops_and_keeps(texts, world, tmp_path):
    judge = Rules(texts)
    asker = Asker(judge, "j", tmp_path / "answers.jsonl", budget=100)
    with pytest.raises(UserError, match="100 requests of --budget are made"):
        explaining.explain(planned(texts, world), asker, asker, "rules", lambda words: None)
    assert judge.asked == 100 == len((tmp_path / "answers.jsonl").read_text().splitlines())


def test_the_cost_is_what_is_asked_at_most(texts, world, tmp_path):
    made, judge = planned(texts, world), Rules(texts)
    cost = made.cost(lambda text: len(text.split()))
    path = tmp_path / "answers.jsonl"
    asker = Asker(judge, "j", path)
    explaining.explain(made, asker, asker, "rules", lambda words: None)
    assert 0.8 * cost.requests < judge.asked <= cost.requests
    assert cost.read > 50 * cost.requests


def test_given_explanations_are_scored_under_their_author(texts, world, tmp_path):
    _, _, _, word = world
    given = {1: (f'the word "{word}"', "a reader")}
    found = explained(texts, world, Rules(texts), tmp_path / "answers.jsonl", given=given)
    assert found.texts[1] == given[1][0] and found.authors[1] == "a reader"
    assert found.scores[1, "detection", OWN].auroc < found.scores[1, "detection", EMOTION].auroc


def test_beating_a_floor_keeps_its_level():
    """Descriptions that tell as much beat each other in 5% of cases, more by chance of 1%; better ones do."""
    from scipy.stats import binom

    rng, trials = np.random.default_rng(0), 200
    truth = np.arange(24) < 12
    draw = lambda right: np.where(rng.random(24) < right, truth, ~truth).astype(float)  # noqa: E731
    null = [scores.beats(draw(0.75), draw(0.75), truth, rng) <= 0.05 for _ in range(trials)]
    assert sum(null) <= binom.ppf(0.99, trials, 0.05)
    assert np.mean([scores.beats(draw(0.95), draw(0.55), truth, rng) <= 0.05 for _ in range(50)]) > 0.8


def test_explanations_are_one_short_line():
    assert questions.clean('\n "somebody hides\tfrom \x1b[31mfear"\nand more') == "somebody hides from [31mfear"
    assert len(questions.clean("x" * 2000)) == questions.LONGEST and questions.clean(" \n") == ""


def test_chances_of_a_local_judge_are_beliefs():
    from affectlens.explanations.asking import Said

    said = [Said("yes", {"yes": 0.6, "no": 0.4}), Said("no"), Said(None, reason="mumbled")]
    np.testing.assert_allclose(scores.beliefs(said, "yes"), [0.6, 0, 0.5])


def test_planted_questions_need_usual_words(texts):
    windows = Windows.of(texts)
    of = passages.sides(windows, np.random.default_rng(0))
    made = qualification.planted(windows, of, 0, np.random.default_rng(0))
    assert {(each.kind, each.test) for each in made} == {
        ("word", "detection"), ("word", "fuzzing"), ("concept", "detection"), ("random", "detection"),
    }  # fmt: skip
    assert all(0 < sum(each.truth) < len(each.truth) == len(each.asked) for each in made)
    assert json.dumps([each.name for each in made])

"""Texts: selection, splits by topic, and gates that count faults without hiding any."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pytest
from affectlens.corpus import quality as gates
from affectlens.corpus.checks import check
from affectlens.corpus.documents import HELD_OUT, Corpus, CorpusConfig, ablation_topics, file_stem, select
from affectlens.corpus.ratings import read_ratings
from affectlens.corpus.texts import EMBEDDED, read_jsonl, read_texts
from affectlens.errors import UserError


@dataclass
class Text:
    emotion: str
    text: str


def words(count: int, start: int = 0) -> str:
    """``count`` different made-up words."""
    digits = "abcdefghij"
    return " ".join("w" + "".join(digits[int(d)] for d in f"{start + i:05d}") for i in range(count))


def test_each_gate_counts_its_fault_and_nothing_else():
    fine = words(80)
    texts = [
        Text("calm", fine),
        Text("calm", words(79, 1000) + " calmly"),
        Text("sad", words(20, 2000)),
        Text("sad", words(300, 3000)),
        Text("sad", words(80, 5000)),
        Text("calm", words(80, 5000)),
        Text("proud", words(40, 6000) + " " + words(40, 3010)),
        Text("", words(20, 8000)),
    ]
    found = gates.inspect(texts, ngram=8)
    assert found["totals"] == {"named": 1, "short": 1, "long": 1, "duplicates": 1, "shared_runs": 4}
    assert found["concepts"]["calm"]["named"] == 1
    assert found["concepts"]["sad"]["long"] == 1
    assert found["concepts"]["(neutral)"]["short"] == 0
    assert {item["document"] for item in found["findings"] if item["gate"] == "shared_runs"} == {3, 4, 5, 6}


@pytest.mark.parametrize(
    ("emotion", "text", "named"),
    [
        ("afraid", "she was not afraid of it", True),
        ("happy", "a happily married man", True),
        ("happy", "it happened again", False),
        ("worn out", "he was worn out by then", True),
        ("worn out", "the worn coat was out", False),
        ("grief-stricken", "grief stricken they stood", True),
        ("sad", "the saddle", False),
        ("ashamed", "without shame", False),
    ],
)
def test_named_word_finds_inflections(emotion: str, text: str, named: bool):
    assert (gates.named_word(emotion, text.split()) is not None) == named


def test_topics_never_cross_splits_and_concepts_are_balanced():
    config = CorpusConfig(emotions=("calm", "sad", "proud"))
    documents = select(config)
    stories = [document for document in documents if document.kind == "story"]
    assert [document.index for document in documents] == list(range(len(documents)))
    assert {document.topic for document in stories if document.split == "test"} == set(HELD_OUT)
    for topic in {document.topic for document in stories}:
        mine = [document for document in stories if document.topic == topic]
        assert len({document.split for document in mine}) == 1
        assert sorted(document.emotion for document in mine) == ["calm", "proud", "sad"]
    assert all(document.split == "neutral" for document in documents if document.kind != "story")


def test_the_embedded_corpus_passes_its_own_gates():
    found = gates.inspect(select(CorpusConfig()), ngram=8)
    assert found["totals"]["named"] == 0
    assert found["totals"]["duplicates"] == 0
    assert found["totals"]["short"] == found["totals"]["long"] == 0
    assert found["totals"]["shared_runs"] <= 6


@pytest.mark.parametrize(
    ("line", "said"),
    [("{broken", "line 2: not JSON"), ('{"emotion": "sad", "topic": "t"}', 'line 2: the key "text"')],
)
def test_a_bad_line_of_the_users_own_stories_is_named(tmp_path, line, said):
    path = tmp_path / "own.jsonl"
    path.write_text('{"emotion": "sad", "topic": "t", "text": "x"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_jsonl(path, required=("emotion", "topic", "text"))


def test_ratings_cover_the_list_and_bad_tables_are_refused(tmp_path):
    ratings = read_ratings(EMBEDDED / "ratings.csv")
    assert set(gates.emotion_list()) <= set(ratings)
    assert ratings["blissful"]["valence"] > 7 > 3 > ratings["miserable"]["valence"]
    assert ratings["enraged"]["arousal"] > 6 > 4 > ratings["sleepy"]["arousal"]
    bad = tmp_path / "norms.csv"
    bad.write_text("word,valence,arousal\ncalm,high,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="not a number"):
        read_ratings(bad)
    bad.write_text("word,pleasure\ncalm,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="valence and arousal"):
        read_ratings(bad)


def own(path, rows, **keys) -> CorpusConfig:
    """A config that reads these (emotion, topic) pairs as stories."""
    stories = [
        {"emotion": emotion, "topic": topic, "text": f"One day {emotion[::-1]} {topic}."} for emotion, topic in rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in stories), encoding="utf-8")
    return CorpusConfig(stories=str(path), **keys)


def crossed(emotions=("calm", "sad", "proud"), topics="abcdefghij") -> list[tuple[str, str]]:
    return [(emotion, topic) for emotion in emotions for topic in topics]


def written(folder, config: CorpusConfig) -> Corpus:
    """The corpus that a config selects, as the stage leaves it."""
    lines = [json.dumps(asdict(document)) + "\n" for document in select(config)]
    (folder / "documents.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "corpus.json").write_text(json.dumps({"fixed_split": bool(config.test_topics)}), encoding="utf-8")
    return Corpus(folder)


def test_every_topic_is_the_test_once_and_the_others_build(tmp_path):
    corpus = written(tmp_path, own(tmp_path / "s.jsonl", crossed()))
    stories = {document.index for document in corpus.documents if document.emotion}
    assert len(corpus.folds) == 10
    for fold in corpus.folds:
        assert set(fold.train) | set(fold.test) == stories
        assert not set(corpus.topics(fold.train)) & set(corpus.topics(fold.test))
    assert sorted(index for fold in corpus.folds for index in fold.test) == sorted(stories)


def test_named_test_topics_are_one_fold(tmp_path):
    config = own(tmp_path / "s.jsonl", crossed(), test_topics=("a", "b"), validation_topics=("c",))
    [fold] = written(tmp_path, config).folds
    corpus = Corpus(tmp_path)
    assert set(corpus.topics(fold.test)) == {"a", "b"}
    assert set(corpus.topics(fold.train)) == set("cdefghij")
    assert corpus.indices("test") == list(fold.test)


def test_a_corpus_of_ones_own_needs_no_topics_named(tmp_path):
    config = own(tmp_path / "s.jsonl", crossed())
    check(config)
    assert ablation_topics(config, list("abcdefghij")) == ("a", "e", "i")
    assert ablation_topics(CorpusConfig(), ["exam"]) == HELD_OUT
    assert ablation_topics(CorpusConfig(test_topics=("exam",)), ["exam"]) == ("exam",)


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        (crossed(topics="ab"), {}, "topics: a, b; with every topic in turn at least 3 are needed"),
        (
            [*crossed(), ("lone", "b")],
            {"emotions": ("calm", "lone")},
            "`lone` have no story in the topics that are abl",
        ),
        ([*crossed(), ("lone", "a"), ("lone", "e")], {}, "`lone` have no story in the topics that build"),
        (
            [*crossed(), ("lone", "c"), ("lone", "a")],
            {"test_topics": ("b",)},
            "`lone` have no story in the test",
        ),
        (
            [*crossed(), ("lone", "a"), ("lone", "x"), ("odd", "b")],
            {"emotions": ("lone", "odd")},
            "no story in the topics",
        ),
        ([("calm", topic) for topic in "abc"], {}, "all stories are of `calm`"),
        ([("calm", "a"), ("calm", "b"), ("sad", "c"), ("sad", "d")], {"ablation_topics": ("a", "c")}, "share no topic"),
        (crossed(), {"ablation_topics": tuple("abcdefghij")}, "no topic is left"),
        (crossed(), {"test_topics": ("a",), "ablation_topics": ("b",)}, "lacks the test topic `a`"),
        (crossed(), {"ablation_topics": ("z",)}, "`corpus.ablation_topics: z`: no story has it"),
        (crossed(("ill at ease", "ill_at_ease")), {}, "differ only by case, blanks or marks"),
        (crossed(("Calm", "calm")), {}, "differ only by case"),
        (crossed(("calm", "sad ")), {}, "begins or ends in a blank"),
        (crossed(("calm", "a" * 300)), {}, "more than 100 letters"),
    ],
)
def test_a_corpus_that_cannot_be_measured_is_refused_with_the_names(tmp_path, rows, keys, said):
    with pytest.raises(ValueError, match=said):
        check(own(tmp_path / "s.jsonl", rows, **keys))


@pytest.mark.parametrize("name", ["fear/terror", "../../../outside", "/etc/x", "ill at ease", "furchtlos-kühn"])
def test_names_of_concepts_become_safe_names_of_files(name):
    assert (stem := file_stem(name))
    assert not set(stem) & set("/\\. ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_texts_are_read_with_and_without_a_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "Café."}\r\n\r\n{"text": "x"}\n', encoding=encoding, newline="")
    assert [row["text"] for row in read_jsonl(path)] == ["Café.", "x"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "Caf\xe9"}', "line 2: not UTF-8"),
        (b'{"text": "half \\ud83d"}', "line 2: not UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "line 2: not JSON"),
        (b'{"text": "x", "narrator": 5}', 'text 2: "narrator" must be a text'),
        (b'{"text": "x", "emotion": "s\\u0000ad"}', 'text 2: "emotion" must be a text of one line'),
        (b"[1]", "text 2: not an object"),
    ],
)
def test_faults_of_a_file_are_named_with_their_line(tmp_path, line, said):
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError, match=said):
        read_texts(path)


def test_ratings_in_another_encoding_are_named(tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text("word,valence,arousal\ncalm,8,2\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"norms\.csv: not a CSV in UTF-8"):
        read_ratings(path)
    path.write_text("word,valence,arousal\ncalm,8,2\n", encoding="utf-8-sig")
    assert read_ratings(path) == {"calm": {"valence": 8.0, "arousal": 2.0}}

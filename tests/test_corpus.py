"""Texts: selection, splits by topic, and gates that count faults without hiding any."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from affectlens.corpus import quality as gates
from affectlens.corpus.documents import CorpusConfig, select
from affectlens.corpus.ratings import read_ratings
from affectlens.corpus.texts import EMBEDDED, read_jsonl
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
    assert {document.topic for document in stories if document.split == "test"} == set(config.test_topics)
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

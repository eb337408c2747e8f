"""The texts that ship with the package keep the properties that the stages and every published number rely on."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from affectlens.corpus.quality import WORD, emotion_list, named_word, stem_of
from affectlens.corpus.scenarios import FULL, OUTCOMES, SCENARIOS, SMALL, Event, ask, implied, opening, read_events
from affectlens.corpus.texts import EMBEDDED, read_jsonl, read_texts, texts_path
from affectlens.errors import UserError

KINDS = {"dialogue": 44, "prose": 40, "code": 20, "log": 14, "chat_markup": 14}
PLEASANTRIES = {
    *("thanks", "thank", "please", "sorry", "hello", "hi", "hey", "welcome"),
    *("goodbye", "bye", "cheers", "pardon", "apologies", "congratulations"),
}
WRITERS = {
    "writer_b": (("dialogue", "diary"), (76, 101)),
    "writer_c": (("report", "terse"), (62, 93)),
    "writer_d": (("situation",), (59, 94)),
    "writer_e": (("message",), (65, 81)),
}
"""Files of other writers: their manners, fewest and most words of a text."""
RUN = 8
PAIR_KEYS = ("id", "emotion_a", "emotion_b", "device", "text_a", "text_b")
DEVICES = {"order": 65, "negation": 30, "role": 40}
GRAMMAR = set(
    WORD.findall(
        "a an the this that these those i me my mine you your he him his she her hers it its we us our they "
        "them their who whom what which where when while before after until since once then first last now "
        "today and or but not no never nobody everybody everyone of to from in on at by with for over under "
        "up down out into as if so than only is are was were be been has have had do does did would will "
        "could can must"
    )
)


@pytest.fixture(scope="module")
def neutral() -> list[dict[str, Any]]:
    return read_jsonl(texts_path("neutral", "embedded"), required=("id", "kind", "text"))


@pytest.fixture(scope="module")
def stories() -> list[dict[str, Any]]:
    return read_jsonl(texts_path("stories", "embedded"), required=("emotion", "topic", "narrator", "text"))


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    return read_jsonl(texts_path("pairs", "embedded"), required=PAIR_KEYS)


@pytest.fixture(scope="module")
def ratings() -> list[dict[str, str]]:
    with (EMBEDDED / "ratings.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def words_of(text: str) -> list[str]:
    """Lower-case words; identifiers such as ``parseLength`` count as the words that they join."""
    return WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())


def named_emotions(text: str, emotions: Sequence[str]) -> list[str]:
    """Every listed emotion that a text names, by stem or, for those of several words, in full."""
    words = words_of(text)
    stems = {stem_of(word) for word in words}
    several = [emotion for emotion in emotions if re.search(r"[ -]", emotion)]
    single = [emotion for emotion in emotions if emotion not in several]
    return [e for e in single if stem_of(e) in stems] + [e for e in several if named_word(e, words)]


def shared_runs(texts: Sequence[str]) -> list[tuple[int, int, str]]:
    """Runs of ``RUN`` words that occur in two texts: both positions and the run."""
    owner: dict[str, int] = {}
    found = []
    for index, text in enumerate(texts):
        words = WORD.findall(text.lower())
        for start in range(len(words) - RUN + 1):
            run = " ".join(words[start : start + RUN])
            first = owner.setdefault(run, index)
            if first != index:
                found.append((first, index, run))
    return found


def bag(text: str) -> list[str]:
    """The words of a text in alphabetical order, without case and punctuation."""
    return sorted(re.findall(r"[\w']+", text.lower()))


def frame(text: str) -> str:
    """A text's skeleton: its grammatical words in place, every run of other words as one gap."""
    marks = " ".join(word if word in GRAMMAR else "_" for word in re.findall(r"[\w']+", text.lower()))
    return re.sub(r"_( _)+", "_", marks)


def both_sides(pairs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Emotion and text of the two sides of every pair, side by side."""
    return [(row[f"emotion_{side}"], row[f"text_{side}"]) for row in pairs for side in "ab"]


def test_neutral_has_enough_texts_of_every_kind(neutral):
    counts = Counter(row["kind"] for row in neutral)
    assert set(counts) == set(KINDS)
    assert {kind: counts[kind] for kind in KINDS if counts[kind] < KINDS[kind]} == {}
    assert len(neutral) >= 132


def test_neutral_rows_have_unique_ids_numbered_within_their_kind(neutral):
    assert all(set(row) == {"id", "kind", "text"} for row in neutral)
    seen: Counter[str] = Counter()
    for row in neutral:
        seen[row["kind"]] += 1
        assert row["id"] == f"{row['kind']}-{seen[row['kind']]:03d}"


def test_neutral_texts_reach_well_past_the_first_token_read(neutral):
    for row in neutral:
        if row["kind"] in ("dialogue", "prose"):
            assert 85 <= len(row["text"].split()) <= 150, row["id"]
        else:
            assert len(row["text"]) >= 500, row["id"]


def test_neutral_texts_name_no_emotion(neutral):
    emotions = emotion_list()
    named = {row["id"]: found for row in neutral if (found := named_emotions(row["text"], emotions))}
    assert named == {}


@pytest.mark.parametrize(
    ("text", "emotion"),
    [
        ("The moisture contents of both bins", "content"),
        ("isAlert = level > 3", "alert"),
        ("Stand the slab on edge", "on edge"),
        ("a self-critical note", "self-critical"),
        ("He worries", "worried"),
        ("two kinds", "kind"),
    ],
)
def test_the_search_for_emotion_words_sees_inflections_identifiers_and_phrases(text, emotion):
    assert named_emotions(text, emotion_list()) == [emotion]


def test_neutral_texts_carry_no_pleasantry_and_no_exclamation(neutral):
    for row in neutral:
        assert PLEASANTRIES.isdisjoint(words_of(row["text"])), row["id"]
        if row["kind"] != "code":
            assert "!" not in row["text"], row["id"]


def test_neutral_texts_share_no_run_of_words(neutral):
    assert shared_runs([row["text"] for row in neutral]) == []


def test_the_search_for_shared_runs_needs_the_whole_run():
    eight = "one two three four five six seven eight"
    assert shared_runs([f"a {eight}", f"{eight} b"]) == [(0, 1, eight)]
    assert shared_runs([f"a {eight[:-6]}", f"{eight[:-6]} b"]) == []


def test_neutral_dialogues_have_two_speakers(neutral):
    for row in neutral:
        if row["kind"] == "dialogue":
            speakers = set(re.findall(r"^(\w+): ", row["text"], flags=re.MULTILINE))
            quoted, dashed = row["text"].count('"'), len(re.findall(r"^— ", row["text"], flags=re.MULTILINE))
            assert len(speakers) == 2 or quoted >= 4 or dashed >= 4, row["id"]


def test_json_among_the_chat_markup_is_whole(neutral):
    """Role lists are read as JSON by users who turn them into chats."""
    lists = [row for row in neutral if row["kind"] == "chat_markup" and row["text"].startswith(("[\n", '{"'))]
    assert lists
    for row in lists:
        json.loads(row["text"])


def test_stories_cross_every_emotion_with_every_topic_once(stories):
    topics = json.loads((EMBEDDED / "topics.json").read_text(encoding="utf-8"))
    cells = Counter((row["emotion"], row["topic"]) for row in stories)
    assert len(stories) == 1881
    assert cells == Counter({(emotion, topic): 1 for emotion in emotion_list() for topic in topics})
    assert (len(emotion_list()), len(topics)) == (171, 11)


def test_stories_are_of_one_length(stories):
    """Story length correlates with principal components when it varies."""
    outside = [(r["emotion"], r["topic"]) for r in stories if not 80 <= len(r["text"].split()) <= 130]
    assert outside == []


def test_stories_are_told_in_first_or_third_person_about_equally(stories):
    narrators = Counter(row["narrator"] for row in stories)
    assert set(narrators) == {"first", "third"}
    assert abs(narrators["first"] - narrators["third"]) <= 0.02 * len(stories)


def test_stories_never_name_their_own_emotion(stories):
    named = [
        (r["emotion"], r["topic"])
        for r in stories
        if named_word(r["emotion"], WORD.findall(r["text"].lower())) is not None
    ]
    assert named == []


def test_stories_and_neutral_texts_share_no_text(stories, neutral):
    texts = [row["text"] for row in (*stories, *neutral)]
    assert len(set(texts)) == len(texts)


def test_ratings_cover_the_emotions_on_the_nine_point_scale(ratings):
    assert [row["emotion"] for row in ratings] == emotion_list()
    for row in ratings:
        for scale in ("valence", "arousal", "dominance"):
            assert 1 <= float(row[scale]) <= 9, (row["emotion"], scale)


def test_ratings_tell_apart_words_whose_order_is_not_in_doubt(ratings):
    value = {(row["emotion"], scale): float(row[scale]) for row in ratings for scale in ("valence", "arousal")}
    assert value["happy", "valence"] > 5 > value["miserable", "valence"]
    assert value["enraged", "arousal"] > 5 > value["serene", "arousal"]


def test_pairs_are_many_for_every_device_and_numbered(pairs):
    devices = Counter(row["device"] for row in pairs)
    assert set(devices) == set(DEVICES)
    assert {device: devices[device] for device in DEVICES if devices[device] < DEVICES[device]} == {}
    assert len(pairs) >= 160
    assert all(tuple(row) == PAIR_KEYS for row in pairs)
    assert [row["id"] for row in pairs] == [f"p{number:03d}" for number in range(1, len(pairs) + 1)]


def test_the_texts_of_a_pair_are_one_bag_of_words_in_two_orders(pairs):
    """Whatever tells the sides apart is then no vocabulary."""
    assert [row["id"] for row in pairs if bag(row["text_a"]) != bag(row["text_b"])] == []
    in_order = [[re.findall(r"[\w']+", row[key].lower()) for key in ("text_a", "text_b")] for row in pairs]
    assert [row["id"] for row, (a, b) in zip(pairs, in_order, strict=True) if a == b] == []


@pytest.mark.parametrize(
    ("other", "same"),
    [("The boy hit the dog?", True), ("The dog hit a boy.", False), ("The dog hit the boy, the boy.", False)],
)
def test_a_bag_of_words_forgets_order_case_and_punctuation_but_no_repetition(other, same):
    assert (bag("The dog hit the boy.") == bag(other)) is same


def test_the_texts_of_a_pair_evoke_two_listed_emotions(pairs):
    emotions = set(emotion_list())
    assert [row["id"] for row in pairs if not {row["emotion_a"], row["emotion_b"]} <= emotions] == []
    assert [row["id"] for row in pairs if row["emotion_a"] == row["emotion_b"]] == []


def test_pairs_cover_enough_emotions_often_enough(pairs):
    counts = Counter(emotion for emotion, _ in both_sides(pairs))
    assert sum(count >= 4 for count in counts.values()) >= 24
    assert max(counts.values()) <= len(pairs) / 6


def test_pairs_name_no_emotion(pairs):
    emotions = emotion_list()
    assert [row["id"] for row in pairs if named_emotions(f"{row['text_a']} {row['text_b']}", emotions)] == []


def test_pairs_are_short(pairs):
    for row in pairs:
        for key in ("text_a", "text_b"):
            assert 8 <= len(row[key].split()) <= 40, row["id"]
            assert 1 <= len(re.findall(r"[.!?](?=\s|$)", row[key])) <= 3, row["id"]
            assert row[key][0].isupper(), row["id"]
            assert row[key][-1] in ".!?", row["id"]


def test_pairs_repeat_no_text_and_no_run_of_words_of_another_pair(pairs):
    texts = [text for _, text in both_sides(pairs)]
    assert len(set(texts)) == len(texts)
    assert [run for first, second, run in shared_runs(texts) if first // 2 != second // 2] == []


def test_no_skeleton_serves_more_than_three_pairs(pairs):
    frames = Counter(found for row in pairs for found in {frame(row["text_a"]), frame(row["text_b"])})
    assert {found: count for found, count in frames.items() if count > 3} == {}


def test_a_skeleton_keeps_grammar_and_forgets_content():
    assert frame("The tall nurse waited, and he left.") == frame("The cook sang and he slept.") == "the _ and he _"
    assert frame("The cook sang before he slept.") == "the _ before he _"


def test_the_more_pleasant_side_of_a_pair_comes_first_half_of_the_time(pairs, ratings):
    """A reading that merely prefers the first text must not pass for one that understands it."""
    valence = {row["emotion"]: float(row["valence"]) for row in ratings}
    first = sum(valence[row["emotion_a"]] > valence[row["emotion_b"]] for row in pairs)
    assert abs(first - len(pairs) / 2) <= 0.05 * len(pairs)


@pytest.fixture(scope="module", params=WRITERS)
def writer(request) -> tuple[str, list[dict[str, Any]]]:
    """Name and texts of another writer."""
    return request.param, read_texts(texts_path(request.param, "embedded"), required=("emotion", "topic", "manner"))


@pytest.fixture(scope="module")
def quickstart() -> list[str]:
    path = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["corpus"]["emotions"]


def test_another_writer_crosses_concepts_topics_and_manners(writer, quickstart):
    """Each cell once: then neither topic nor manner tells of a concept."""
    name, rows = writer
    manners = WRITERS[name][0]
    topics = {row["topic"] for row in rows}
    cells = Counter((row["emotion"], row["topic"], row["manner"]) for row in rows)
    assert cells == Counter({(e, t, m): 1 for e in quickstart for t in topics for m in manners})
    assert len(topics) == 8


def test_no_two_writers_share_a_topic(stories):
    topics = [{row["topic"] for row in stories}]
    topics += [{row["topic"] for row in read_texts(texts_path(name, "embedded"))} for name in WRITERS]
    assert len(set.union(*topics)) == sum(map(len, topics))


def test_another_writers_texts_are_of_one_length_for_every_concept(writer, quickstart):
    name, rows = writer
    least, most = WRITERS[name][1]
    words = {(r["emotion"], r["topic"], r["manner"]): len(r["text"].split()) for r in rows}
    assert {cell: count for cell, count in words.items() if not least <= count <= most} == {}
    mean = sum(words.values()) / len(words)
    by_concept = {
        e: sum(n for cell, n in words.items() if cell[0] == e) * len(quickstart) / len(words) for e in quickstart
    }
    assert {e: count for e, count in by_concept.items() if abs(count / mean - 1) > 0.05} == {}


def test_another_writer_names_no_studied_concept_and_none_of_its_own_synonyms(writer, quickstart):
    lexicon = json.loads((EMBEDDED / "lexicon.json").read_text(encoding="utf-8"))
    for row in writer[1]:
        words = WORD.findall(row["text"].lower())
        cell = (row["emotion"], row["topic"], row["manner"])
        assert [concept for concept in quickstart if named_word(concept, words)] == [], cell
        assert set(words) & set(lexicon[row["emotion"]]) == set(), cell


def test_messages_that_imply_an_emotion_hold_no_word_of_any_concepts_lexicon_and_end_alike():
    """In `writer_e`, whose texts imply an emotion, as those of `experiments/implicit` do."""
    lexicon = json.loads((EMBEDDED / "lexicon.json").read_text(encoding="utf-8"))
    listed = {word for found in lexicon.values() for word in found} | set(emotion_list())
    rows, questions = read_texts(texts_path("writer_e", "embedded")), {}
    for row in rows:
        assert listed.isdisjoint(WORD.findall(row["text"].lower())), (row["emotion"], row["topic"])
        questions.setdefault(row["topic"], set()).add(re.split(r"(?<=[.!?]) ", row["text"])[-1])
    assert {topic: len(found) for topic, found in questions.items()} == dict.fromkeys(questions, 1)
    messages = read_jsonl(Path(__file__).parents[1] / "experiments" / "implicit" / "scenarios.jsonl")
    texts = [row["text"] for row in rows] + [row["messages"][0]["content"] for row in messages]
    assert [run for first, second, run in shared_runs(texts) if first < len(rows) <= second] == []


def test_another_writer_repeats_no_run_of_words_of_any_text(writer, stories):
    others = [row for name in WRITERS if name != writer[0] for row in read_texts(texts_path(name, "embedded"))]
    texts = [row["text"] for row in (*writer[1], *stories, *others)]
    assert [run for first, _, run in shared_runs(texts) if first < len(writer[1])] == []


def test_no_opening_and_no_phrase_of_another_writer_belongs_to_a_concept(writer, quickstart):
    """A phrase of four words in three texts of a concept, or a first word in more than a quarter, would be a label."""
    for concept in quickstart:
        texts = [re.findall(r"[a-z']+", row["text"].lower()) for row in writer[1] if row["emotion"] == concept]
        openings = Counter(words[0] for words in texts)
        assert {word: n for word, n in openings.items() if n > max(3, len(texts) / 4)} == {}, concept
        phrases = Counter(p for words in texts for p in {tuple(words[i : i + 4]) for i in range(len(words) - 3)})
        assert {phrase: n for phrase, n in phrases.items() if n >= 3} == {}, concept


def test_no_form_of_a_report_belongs_to_a_concept(quickstart):
    """Logs with times of day, telegrams and quoted calls occur; none makes up more than half of a concept's reports."""
    forms = {"log": r"\b\d\d[.:]\d\d\b", "telegram": r"\bSTOP\b", "calls": r'\d: "'}
    rows = [row for row in read_texts(texts_path("writer_c", "embedded")) if row["manner"] == "report"]
    found = Counter(
        (r["emotion"], f) for r in rows for f, mark in forms.items() if len(re.findall(mark, r["text"])) >= 3
    )
    assert {form for _, form in found} == set(forms)
    assert {cell: count for cell, count in found.items() if count > 4} == {}


SENTENCES = ("scenario", *OUTCOMES)
THEMES = ("work", "school", "home", "family", "friends", "travel", "sport", "town")


@pytest.fixture(scope="module")
def scenarios() -> list[dict[str, Any]]:
    return read_jsonl(SCENARIOS, required=("id", "theme", *SENTENCES))


def test_scenarios_are_twenty_a_theme_with_three_outcomes_each(scenarios):
    assert Counter(row["theme"] for row in scenarios) == Counter(dict.fromkeys(THEMES, FULL))
    assert [row["id"] for row in scenarios] == [f"{theme}-{n:02d}" for theme in THEMES for n in range(1, FULL + 1)]
    assert all(tuple(row) == ("id", "theme", *SENTENCES) for row in scenarios)
    assert SCENARIOS.stat().st_size < 400 * 1024


def test_scenarios_and_outcomes_are_of_one_length(scenarios):
    """An outcome that were told longer would be told apart by length."""
    counts = {key: [len(row[key].split()) for row in scenarios] for key in SENTENCES}
    assert all(14 <= count <= 19 for each in counts.values() for count in each)
    means = {key: sum(each) / len(each) for key, each in counts.items()}
    assert all(15 <= mean <= 17.5 for mean in means.values()), means
    outcomes = [means[each] for each in OUTCOMES]
    assert max(outcomes) - min(outcomes) < 1


def test_scenarios_name_no_emotion_and_hold_no_word_of_any_concepts_lexicon(scenarios):
    emotions, lexicon = emotion_list(), json.loads((EMBEDDED / "lexicon.json").read_text(encoding="utf-8"))
    listed = {word for words in lexicon.values() for word in words}
    texts = {(row["id"], key): row[key] for row in scenarios for key in SENTENCES}
    assert {place: found for place, text in texts.items() if (found := named_emotions(text, emotions))} == {}
    assert {place: found for place, text in texts.items() if (found := listed.intersection(words_of(text)))} == {}


def test_scenarios_share_no_run_of_words_with_one_another_or_with_any_other_text(scenarios, stories, neutral, pairs):
    mine = [(row["id"], row[key]) for row in scenarios for key in SENTENCES]
    writers = [row for name in WRITERS for row in read_texts(texts_path(name, "embedded"))]
    others = [row["text"] for row in (*stories, *neutral, *writers)] + [text for _, text in both_sides(pairs)]
    names = [name for name, _ in mine]
    runs = shared_runs([*(text for _, text in mine), *others])
    # The outcomes of one situation may begin alike.
    assert [run for a, b, run in runs if a < len(names) and not (b < len(names) and names[a] == names[b])] == []


def test_no_two_scenarios_are_nearly_the_same(scenarios):
    """Jaccard overlap of the pairs of adjacent words of whole situations, all outcomes included."""
    pairs_of = []
    for row in scenarios:
        words = [WORD.findall(row[key].lower()) for key in SENTENCES]
        pairs_of.append({pair for each in words for pair in pairwise(each)})
    overlaps = {
        (scenarios[a]["id"], scenarios[b]["id"]): len(pairs_of[a] & pairs_of[b]) / len(pairs_of[a] | pairs_of[b])
        for b in range(len(scenarios))
        for a in range(b)
    }
    assert {pair: round(overlap, 2) for pair, overlap in overlaps.items() if overlap > 0.11} == {}


def test_no_opening_word_belongs_to_an_outcome(scenarios):
    for outcome in OUTCOMES:
        first = Counter(WORD.findall(row[outcome].lower())[0] for row in scenarios)
        assert max(first.values()) <= len(scenarios) / 4, first.most_common(1)


def test_scenarios_are_sentences(scenarios):
    for row in scenarios:
        for key in SENTENCES:
            assert row[key][0].isupper(), row["id"]
            assert row[key].endswith("."), row["id"]
            assert "!" not in row[key], row["id"]
            assert row[key].isascii(), row["id"]


def test_events_are_read_situation_by_situation_and_the_small_set_lies_in_the_full_one():
    full, small = read_events(), read_events(per_theme=SMALL)
    assert (len(full), len(small)) == (8 * FULL * 3, 8 * SMALL * 3)
    assert set(small) <= set(full)
    assert [event.outcome for event in small[:3]] == list(OUTCOMES)
    assert len({event.id for event in full}) == len(full)
    good = read_events(per_theme=1, outcomes=("positive",))
    assert [event.theme for event in good] == list(THEMES)


def test_only_a_named_prompt_names_the_emotion():
    event = Event("town-99", "town", "neutral", "The bus came at six.", "It had green seats.")
    for emotion in emotion_list():
        assert emotion in ask(event, emotion)[0]["content"]
        assert emotion in opening(event, emotion)
    bare = ask(event)[0]["content"] + opening(event) + implied("A story.", "first") + implied("A story.", "third")
    assert named_emotions(bare, emotion_list()) == []
    assert opening(event).endswith('It had green seats. I said: "')
    assert event.text in ask(event)[0]["content"]


def test_a_file_of_scenarios_with_a_fault_is_refused(tmp_path):
    row = {"id": "a", "theme": "work", **dict.fromkeys(SENTENCES, "The bus came.")}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row), encoding="utf-8")
    with pytest.raises(UserError, match="`a` stands twice"):
        read_events(path)
    path.write_text(json.dumps({**row, "neutral": ""}), encoding="utf-8")
    with pytest.raises(UserError, match='line 1: the key "neutral"'):
        read_events(path)
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(UserError, match="the theme `work` has 1 situations, not 2"):
        read_events(path, per_theme=2)

"""Situations that nothing is trained on, and generated tasks: families, twins, no words of emotions, right answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from affectlens.corpus.quality import inspect
from affectlens.errors import UserError
from affectlens.interventions.frames import read_lexicon
from affectlens.shaping import tasks
from affectlens.shaping.held_out import FILE, FOLDER, read_situations
from affectlens.shaping.instructions import INSTRUCTIONS
from affectlens.shaping.wording import WORD

SHIPPED = Path("experiments")


def test_eight_families_of_six_and_no_word_of_an_emotion_in_any():
    situations = read_situations(SHIPPED)
    assert sorted(Counter(each.family for each in situations).values()) == [6] * 8
    words = {word.lower() for own in read_lexicon().values() for word in own}
    for each in situations:
        said = WORD.findall(" ".join([each.setting, each.bad, each.good, each.ask]).lower())
        assert not words & set(said), each.id


def test_twins_share_their_ends_and_differ_between():
    for each in read_situations(SHIPPED):
        bad, good = (each.chat(outcome)[0]["content"] for outcome in ("bad", "good"))
        assert bad != good and bad.startswith(each.setting) and good.startswith(each.setting)
        assert bad.endswith(each.ask) and good.endswith(each.ask)
        assert [message["role"] for message in each.rating("bad")] == ["user", "assistant", "user"]


def test_situations_pass_the_gates_of_the_corpus():
    class Text:
        def __init__(self, text: str) -> None:
            self.text, self.emotion = text, ""

    situations = read_situations(SHIPPED)
    found = inspect([Text(f"{each.setting} {each.bad}") for each in situations])["totals"]
    assert found["duplicates"] == 0 and found["shared_runs"] == 0


def written(place: Path, rows: list[object]) -> Path:
    (place / FOLDER).mkdir(parents=True, exist_ok=True)
    (place / FOLDER / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def row(family: str, number: int, **changes: object) -> dict[str, object]:
    return {
        "id": f"{family}-{number}",
        "family": family,
        "setting": "a",
        "bad": "b",
        "good": "c",
        "ask": "d",
        **changes,
    }


def test_the_first_situations_of_each_family_are_taken(tmp_path: Path):
    place = written(tmp_path, [row(family, n) for n in range(3) for family in "xyz"])
    assert [each.id for each in read_situations(place, 2)] == ["x-0", "x-1", "y-0", "y-1", "z-0", "z-1"]
    with pytest.raises(UserError, match="has 3 situations, not 4"):
        read_situations(place, 4)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["a"]], "not an object"),
        ([row("x", 0, good="")], "good"),
        ([row("x", 0), row("x", 0)], "two situations have the id `x-0`"),
        ([row("x", 0), row("y", 0)], "2 families of situations"),
        ([*(row(family, 0) for family in "xyz"), row("x", 1)], "families of different sizes"),
    ],
)
def test_bad_situations_are_one_sentence(tmp_path: Path, rows: list[object], said: str):
    with pytest.raises(UserError, match=said):
        read_situations(written(tmp_path, rows))


def test_a_folder_without_situations_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="no such file; give the folder that holds"):
        read_situations(tmp_path)


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_tasks_have_one_right_option_and_are_the_same_for_every_arm(kind: str, tiny_subject):
    tokenizer = tiny_subject("llama").tokenizer
    found = tasks.items(kind, 200, tokenizer, np.random.default_rng(0))
    assert found == tasks.items(kind, 200, tokenizer, np.random.default_rng(0))
    for item, firsts in found:
        assert len(set(item.options)) == len(set(firsts)) == tasks.OPTIONS
    places = Counter(item.right for item, _ in found)
    assert min(places.values()) > 20, "the right option stands anywhere"


def test_right_answers_are_right():
    draw = np.random.default_rng(1)
    for _ in range(50):
        item = tasks.addition(draw)
        a, b = item.text.rsplit("\n", 1)[1].removesuffix(" =").split(" + ")
        assert item.options[item.right] == str(int(a) + int(b))
        item = tasks.recall(draw)
        listed = item.text.split(": ")[1].split(".")[0].split(", ")
        place = {"first": 0, "second": 1, "third": 2, "last": 3}[item.text.split(" The ")[-1].split()[0]]
        assert item.options[item.right] == listed[place]
        item = tasks.pattern(draw)
        said = item.text.removesuffix(",").split(", ")
        assert item.options[item.right] == said[len(said) - 3]


def test_a_tokenizer_that_tells_no_options_apart_is_refused():
    class One:
        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            return {"input_ids": [7] * len(text)}

        all_special_ids: tuple[int, ...] = ()
        unk_token_id = None

    with pytest.raises(ValueError, match="begin with the same token"):
        tasks.items("pattern", 2, One(), np.random.default_rng(0))


def test_instructions_are_checked_by_what_they_ask():
    by_kind = INSTRUCTIONS[:5]
    good = ["A yellow river.", "Well, it flows.", "1. Long\n2. Wet", "RIVERS FLOW", "They flow."]
    bad = ["A river.", "It flows well.", "1. Long", "Rivers flow", "They flow on and on to a very wide sea."]
    assert [each.followed(text) for each, text in zip(by_kind, good, strict=True)] == [True] * 5
    assert [each.followed(text) for each, text in zip(by_kind, bad, strict=True)] == [False] * 5
    assert not any(each.followed("") for each in by_kind)
    assert len({each.text for each in INSTRUCTIONS}) == 40

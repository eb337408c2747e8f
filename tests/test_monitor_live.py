"""A card in use: a stream of residuals, a model's own tokens, and both as the batch has them."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import affectlens
import numpy as np
import pytest
from affectlens.cli import app
from affectlens.errors import UserError
from affectlens.monitor.calibration import write_card
from affectlens.monitor.episodes import Written, read_states, tokenised
from affectlens.monitor.statistics import StatisticConfig, alarms, follow
from affectlens.monitor.watching import Watch
from affectlens.use.monitor import Monitor, identity
from affectlens.use.transcripts import Following, last_of_each, watch_file
from typer.testing import CliRunner
from watching import card_of

CHAT = [{"role": "user", "content": "Is the letter there yet?"}]
ANSWER = "Nobody came today, and the lamp is still on; we wait for the morning and for news of them."


@pytest.fixture(scope="module")
def opened(computed_study):
    return affectlens.open_study(computed_study)


@pytest.fixture(scope="module")
def card(opened):
    """Rows are the concepts; the threshold is passed now and then by the answer of these tests."""
    known = identity(opened)
    plain = Monitor(card_of(opened.directions(), 1e9, **known), opened).read(CHAT, ANSWER).scores
    return card_of(opened.directions(), 0.1, mean=np.mean(plain, axis=0), deviation=np.std(plain, axis=0), **known)


def test_a_shift_of_known_size_alarms_at_its_token_once_and_again_after_quiet():
    """Mean of 4 scores above 0.5: a shift of 1 is found at its third token; a burst is one alarm."""
    watch = Watch(card_of({"up": np.eye(3)[0], "flat": np.eye(3)[1]}, 0.5), most=32)
    shifted = [*range(10, 20), *range(40, 50)]
    seen = [watch.feed(np.eye(3)[0] * (token in shifted)) for token in range(60)]
    assert [each.token for each in seen if each.alarm] == [12, 42]
    assert [each.alarms for each in seen if each.alarm] == [(0,), (0,)]
    assert watch.alarms.tolist() == [2, 0]


def test_longer_answers_have_the_threshold_of_their_bucket_and_unknown_ones_the_last():
    made = card_of({"up": np.eye(3)[0]}, 0.5)
    assert [Watch(made, most).thresholds[0] for most in (10, 32, 33, None)] == [0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["rolling", "own_start", "cusum"])
def test_a_stream_is_the_batch_and_keeps_nothing_of_what_it_read(kind):
    generator = np.random.default_rng(0)
    states = generator.normal(size=(200, 8)).astype(np.float32)
    made = card_of(
        dict(zip("abc", generator.normal(size=(3, 8)), strict=True)), 1.0, kind=kind, mean=0.2, deviation=2.0
    )
    watch, values, sizes = Watch(made, 32), [], []
    begun = []
    for state in states:
        seen = watch.feed(state)
        values.append(seen.values)
        begun.append([row in seen.alarms for row in range(3)])
        sizes.append(len(pickle.dumps((watch._stream.__dict__["_step"].__dict__, watch._quiet))))
    weights = np.array([row.weights for row in made.rows], dtype=np.float32)
    scores = ((states @ weights.T - 0.2) / 2.0)[None]
    batch = follow(made.statistic, scores, np.array([200]))[0]
    np.testing.assert_allclose(values, batch, atol=1e-5)
    expected = np.stack([alarms(batch[None, :, row], 1.0, 4)[0] for row in range(3)], axis=1)
    assert (np.array(begun) == expected).all() and expected.any()
    assert sizes[-1] <= sizes[40] + 8


def test_an_answer_read_live_has_the_values_of_the_batch(computed_study, opened, card, tmp_path):
    write_card(tmp_path / "card.json", card)
    monitor = affectlens.Monitor.load(tmp_path / "card.json", computed_study)
    watched = monitor.read(CHAT, ANSWER)
    assert watched.text == ANSWER
    episode = tokenised(opened.tokenizer, Written(messages=tuple(CHAT), answer=ANSWER))
    ((_, states),) = read_states(opened.decoder, [episode], [2])
    weights = np.array([row.weights for row in card.rows], dtype=np.float32)
    mean, deviation = (np.array([getattr(row, name) for row in card.rows]) for name in ("mean", "deviation"))
    scores = (states.residuals[2].numpy() @ weights.T - mean)[None] / deviation
    batch = follow(StatisticConfig(kind="rolling", window=4), scores, np.array([episode.rows]))[0]
    np.testing.assert_allclose(watched.values, batch[1:], atol=1e-3)
    np.testing.assert_allclose([each[1] for each in watched.rivals], states.surprisal[1:].numpy(), atol=1e-3)
    np.testing.assert_allclose([each[0] for each in watched.rivals], states.entropy[1:].numpy(), atol=1e-3)


def test_an_answer_is_sampled_from_its_seed_and_reading_it_again_says_the_same(opened, card):
    monitor = Monitor(card, opened)
    *_, first = monitor.answer(CHAT, tokens=20, seed=1)
    *_, again = monitor.answer(CHAT, tokens=20, seed=1)
    *_, other = monitor.answer(CHAT, tokens=20, seed=2)
    assert first.text == again.text != other.text
    assert first.alarms == again.alarms
    assert len(first.pieces) == len(first.values) == len(first.rivals) <= 20
    assert [name for _, name in first.alarms if name not in monitor.names] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "other"}, "another model"),
        ({"template": "other"}, "another chat template"),
        ({"dtype": "bfloat16"}, "another number type"),
    ],
)
def test_a_card_of_something_else_is_refused_by_name(opened, change, said):
    with pytest.raises(UserError, match=f"{said}.*monitor calibrate"):
        Monitor(card_of(opened.directions(), 1.0, **(identity(opened) | change)), opened)


def test_what_cannot_be_watched_is_said_plainly(opened, card, tmp_path):
    monitor = Monitor(card, opened)
    with pytest.raises(UserError, match="did you mean `afraid`"):
        monitor.index("afrai")
    with pytest.raises(UserError, match="tokens, and the model takes 512"):
        monitor.begin([{"role": "user", "content": "again " * 2000}])
    with pytest.raises(ValueError, match="the card reads"):
        monitor.watch().feed(np.zeros(3))
    with pytest.raises(UserError, match="no such file"):
        Monitor.load(tmp_path / "none.json", opened)
    rows: Any = (card.rows[0], card.rows[1].model_copy(update={"layer": 0}))
    with pytest.raises(UserError, match="reads layers 0, 2"):
        Watch(card.model_copy(update={"rows": rows}))


def test_only_rows_that_may_raise_an_alarm_do(opened, card):
    every = Monitor(card, opened).read(CHAT, ANSWER)
    loudest = max({name for _, name in every.alarms}, key=[name for _, name in every.alarms].count)
    alone = Monitor(card, opened, [loudest]).read(CHAT, ANSWER)
    assert alone.alarms == [each for each in every.alarms if each[1] == loudest] != every.alarms


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_dialogue_is_watched_at_every_answer_with_what_was_said_before(opened, card, tmp_path):
    monitor = Monitor(card, opened)
    said = {"role": "assistant", "content": ANSWER}
    again = {"role": "user", "content": "And now?"}
    path = lines(tmp_path / "a.jsonl", CHAT[0], said, again, said, {"messages": CHAT, "answer": ANSWER, "name": "e"})
    first, second, episode = last_of_each(watch_file(monitor, path))
    assert [each.name for each in (first, second, episode)] == ["line 2", "line 4", "e"]
    assert first.text == second.text == episode.text == ANSWER
    np.testing.assert_allclose(first.values, episode.values, atol=1e-4)
    np.testing.assert_allclose(second.values, monitor.read([*CHAT, said, again], ANSWER).values, atol=1e-4)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_file_that_grows_says_what_the_whole_file_says(opened, card, tmp_path, suffix):
    """In pieces of three bytes, within letters too; the clock of the test is the number of looks at the file."""
    monitor, path = Monitor(card, opened), tmp_path / f"grows{suffix}"
    answer = ANSWER + " caf\u00e9 \U0001f642 end"
    whole = answer.encode()
    if suffix == ".jsonl":
        rows = [*CHAT, {"role": "assistant", "content": answer}]
        whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(b"")
    looks, left = [0], list(range(0, len(whole), 3))

    def sleep(seconds: float) -> None:
        looks[0] += 1
        if left:
            start = left.pop(0)
            with path.open("ab") as stream:
                stream.write(whole[start : start + 3])

    following = Following(idle=3, clock=lambda: float(looks[0]), sleep=sleep)
    steps = watch_file(monitor, path, CHAT, following)
    (grown,) = last_of_each(steps)
    assert not left, "reading ended before the file did"
    assert grown.text == answer
    np.testing.assert_allclose(grown.values, monitor.read(CHAT, answer).values, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1.*not JSON"),
        ('{"text": "x"}', "line 1.*neither a message"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "line 1.*nothing that the assistant says"),
        ('{"role": "user"}', "line 1.*role.*content"),
    ],
)
def test_a_wrong_transcript_is_named_with_its_line(opened, card, tmp_path, content, said):
    (tmp_path / "a.jsonl").write_text(content + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        list(watch_file(Monitor(card, opened), tmp_path / "a.jsonl"))


def test_a_text_needs_what_it_answers_and_a_file_has_to_be_there(opened, card, tmp_path):
    (tmp_path / "a.txt").write_text("So.", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00wrong")
    with pytest.raises(UserError, match="--prompt"):
        list(watch_file(Monitor(card, opened), tmp_path / "a.txt"))
    with pytest.raises(UserError, match="not UTF-8"):
        list(watch_file(Monitor(card, opened), tmp_path / "b.txt", CHAT))
    with pytest.raises(UserError, match="no such file"):
        list(watch_file(Monitor(card, opened), tmp_path / "c.txt", CHAT))


def test_the_command_writes_every_token_every_alarm_and_a_page_that_asks_for_nothing(
    computed_study, opened, card, tmp_path
):
    write_card(tmp_path / "card.json", card)
    path = lines(tmp_path / "chat.jsonl", CHAT[0], {"role": "assistant", "content": "</script><b>" + ANSWER})
    files = ["--json", str(tmp_path / "out.jsonl"), "--page", str(tmp_path / "out.html"), "--row", "calm"]
    call = ["monitor", "watch", str(computed_study), str(tmp_path / "card.json"), str(path), *files]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    heading, first, *rest = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    monitor = Monitor(card, opened, ["calm"])
    expected = monitor.read(CHAT, "</script><b>" + ANSWER)
    assert heading["alarming"] == ["calm"] and first["token"] == 0
    assert "".join(row["text"] for row in rest) == expected.text
    assert [(row["token"], name) for row in rest for name in row["alarms"]] == expected.alarms != []
    np.testing.assert_allclose([row["values"]["calm"] for row in rest], np.array(expected.values)[:, 1], atol=2e-3)
    assert f"alarm: calm at token {expected.alarms[0][0]}" in result.output
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "</script><b>" not in page and "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    held = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert held["texts"][0]["alarms"] == [[token, 1] for token, _ in expected.alarms]
    assert [row["kind"] for row in held["rows"]] == ["row"] * 4 + ["rival"] * 2


def test_the_command_generates_and_its_mistakes_are_one_sentence(computed_study, card, tmp_path):
    write_card(tmp_path / "card.json", card)
    call = ["monitor", "watch", str(computed_study), str(tmp_path / "card.json")]
    result = CliRunner().invoke(app, [*call, "--prompt", "Who is there?", "--tokens", "8", "--json", "-"])
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert result.exit_code == 0 and 2 <= len(rows) <= 10 and "entropy" in rows[1]
    for wrong, said in (([], "--prompt"), (["--follow", "--prompt", "x"], "--follow needs a file")):
        error = CliRunner().invoke(app, [*call, *wrong]).exception
        assert isinstance(error, UserError) and said in str(error)


def test_the_package_has_the_monitor():
    assert affectlens.Monitor is Monitor
    assert "Monitor" in dir(affectlens) and Path(affectlens.__file__).parent.name == "affectlens"

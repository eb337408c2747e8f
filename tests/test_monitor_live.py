"""A card in use: a stream of residuals, a model's own tokens, and both as the batch has them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import affectlens
import numpy as np
import pytest
from affectlens.errors import UserError
from affectlens.monitor.calibration import write_card
from affectlens.monitor.episodes import Written, read_states, tokenised
from affectlens.monitor.statistics import StatisticConfig, alarms, follow
from affectlens.monitor.watching import Watch
from affectlens.use.monitor import Monitor, identity
from watching import card_of

CHAT = [{"role": "user", "content": "Is the letter there yet?"}]
ANSWER = "Nobody came today, and the lamp is still on; we wait for the morning and for news of them."


@pytest.fixture(scope="module")
def opened(computed_study):
    return affectlens.open_study(computed_study)


@pytest.fixture(scope="module")
def card(opened):
    """Rows are the concepts; the threshold is passed now and then."""
    return card_of(opened.directions(), 0.5, deviation=0.3, **identity(opened))


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
    episode = tokenised(opened.tokenizer, Written(messages=CHAT, answer=ANSWER))
    ((_, states),) = read_states(opened.decoder, [episode], [2])
    weights = np.array([row.weights for row in card.rows], dtype=np.float32)
    scores = (states.residuals[2].numpy() @ weights.T)[None] / 0.3
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


def test_the_package_has_the_monitor():
    assert affectlens.Monitor is Monitor
    assert "Monitor" in dir(affectlens) and Path(affectlens.__file__).parent.name == "affectlens"

"""Episodes of a monitor: their file, their tokens, and the states that are read along them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from affectlens.errors import UserError
from affectlens.model.config import ModelConfig
from affectlens.model.decoding import Decoder
from affectlens.monitor.episodes import Written, read_episodes, read_states, tokenised, write_episodes
from tiny import build_model


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Decoder:
    folder = build_model(tmp_path_factory.mktemp("tiny"), "llama")
    return Decoder.load(ModelConfig(name=str(folder), layer=1, dtype="float32"), device="cpu", models=folder)


def written(number: int) -> Written:
    before = "She was in the park. " * number
    asked = ({"role": "user", "content": "Hello there. " * number},)
    return Written(name=str(number), scenario="park", messages=asked, answer=before + "ACT now", act=len(before))


def test_an_episode_survives_its_file(tmp_path: Path):
    rows = [written(number) for number in (1, 2)]
    write_episodes(tmp_path / "episodes.jsonl", rows)
    assert read_episodes(tmp_path / "episodes.jsonl") == rows


def test_episodes_of_a_user_need_messages_alone(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    (row,) = read_episodes(path)
    assert (row.name, row.scenario, row.stratum, row.act) == ("1", "1", "benign", None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "`role` and `content`"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "put its text into `answer`"),
        ({"messages": [{"role": "user", "content": "x"}], "answer": "ab", "act": 2}, "behind the answer"),
        ({"messages": [{"role": "user", "content": "x"}], "anser": "ab"}, "anser"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: dict, said: str):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=said) as caught:
        read_episodes(path)
    assert "own.jsonl line 1" in str(caught.value)


def test_two_of_one_name_are_refused(tmp_path: Path):
    write_episodes(tmp_path / "twice.jsonl", [written(1), written(1)])
    with pytest.raises(UserError, match="two episodes have the name `1`"):
        read_episodes(tmp_path / "twice.jsonl")


def test_the_act_is_found_by_its_character(decoder: Decoder):
    for number in (0, 1, 3):
        episode = tokenised(decoder.tokenizer, written(number))
        assert episode.act is not None
        assert decoder.tokenizer.decode(episode.answer[episode.act :]).strip() == "ACT now"
        assert episode.before == episode.act + 1 and episode.rows == len(episode.answer) + 1


def test_states_do_not_depend_on_the_batch_and_begin_at_the_prompt(decoder: Decoder):
    episodes = [tokenised(decoder.tokenizer, written(number)) for number in (1, 2, 5)]
    together = dict(read_states(decoder, episodes, (0, 1)))
    for index, episode in enumerate(episodes):
        ((_, alone),) = read_states(decoder, [episode], (0, 1))
        torch.testing.assert_close(together[index].residuals[1], alone.residuals[1])
        torch.testing.assert_close(together[index].entropy, alone.entropy)
        assert together[index].residuals[0].shape == (episode.rows, 32)
        assert together[index].surprisal[0].isnan() and together[index].surprisal[1:].isfinite().all()


def test_row_0_is_the_same_for_all_answers_to_one_prompt(decoder: Decoder):
    one, other = written(2), written(2).model_copy(update={"answer": "Nothing else.", "act": None})
    states = dict(read_states(decoder, [tokenised(decoder.tokenizer, each) for each in (one, other)], (1,)))
    assert torch.equal(states[0].residuals[1][0], states[1].residuals[1][0])
    assert states[0].entropy[0] == states[1].entropy[0]
    assert not torch.allclose(states[0].residuals[1][1], states[1].residuals[1][1])

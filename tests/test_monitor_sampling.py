"""Scenarios as they are read, episodes as they are sampled, and continuations from their prefixes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from affectlens.errors import UserError
from affectlens.model.sampling import sample
from affectlens.monitor.episodes import Resampled, Written, tokenised
from affectlens.monitor.organism import read_organism, training_chats
from affectlens.monitor.sampling import Draw, Steering, planted, resample, sample_episodes, spread_cuts
from affectlens.monitor.scenarios import Prompt, by_stratum, folders, read_folder

ROOT = Path(__file__).parents[1]
NAMES = folders(ROOT / "experiments")
YAML = "title: t\nact: a\nsays: s\n"


def write(folder: Path, *rows: dict, yaml: str = YAML) -> Path:
    """A place with one folder of scenarios, ``mine``."""
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / "warning.yaml").write_text(yaml, encoding="utf-8")
    (folder / "mine" / "README.md").write_text("mine", encoding="utf-8")
    (folder / "mine" / "scenarios.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def prompt(text: str, *turns: str, redacted: bool = False, name: str = "a.main") -> Prompt:
    written = Written(name=name, scenario="a", stratum="risk", messages=({"role": "user", "content": text},))
    return Prompt(written, turns, redacted)


def has_the(row: Written, answer: str) -> int | None:
    """An act that a random model commits now and then."""
    place = answer.find("the")
    return None if place < 0 else place


def test_the_six_folders_come_along():
    kinds = ("benign", "natural", "negatives", "organism", "planted", "rejection")
    assert [f"warning_{kind}" for kind in kinds] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_shipped_folders_say_what_they_hold_and_repeat_nothing(name):
    folder = read_folder(name, ROOT / "experiments")
    said = [
        json.dumps(each.written.messages) + json.dumps(each.turns) + str(each.redacted) for each in folder.prompts()
    ]
    assert len(set(said)) == len(said)
    assert not any("{situation}" in text or "  " in text for text in said)
    readme = (folder.path / "README.md").read_text(encoding="utf-8").lower()
    assert all(word in readme for word in ("purpose", "limits", "refuted", "cc0"))
    assert sum(path.stat().st_size for path in folder.path.iterdir()) < 2**20


def test_every_main_act_has_twenty_scenarios_and_every_negative_is_named():
    counts: dict[str, set[str]] = {}
    for name in ("warning_organism", "warning_natural", "warning_rejection"):
        for row in read_folder(name, ROOT / "experiments").rows:
            assert row.act
            counts.setdefault(row.id.split("-")[0], set()).add(row.group or row.id)
    assert all(len(groups) >= 20 for groups in counts.values()), counts
    strata = by_stratum(read_folder("warning_negatives", ROOT / "experiments").prompts())
    assert {name for name, prompts in strata.items() if prompts} == {
        *("quoted_emotion", "user_emotion", "role_play", "permitted_act", "jokes")
    }
    twins = {each.written.twin for each in read_folder("warning_organism", ROOT / "experiments").prompts()}
    assert twins == {"stressed", "calm", "monitored", "exit_offered"}


def test_benign_traffic_has_two_sources_and_no_act():
    folder = read_folder("warning_benign", ROOT / "experiments")
    prompts = folder.prompts()
    sources = [each.written.source for each in prompts]
    assert len(prompts) >= 500 and sources.count("everyday") >= 250 and sources.count("workplace") >= 250
    assert {each.written.stratum for each in prompts} == {"benign"}
    assert folder.find(prompts[0].written, "I give up. All checks passed.") is None


def test_the_organism_is_trained_on_none_of_its_scenarios_and_no_prompt_decides_its_act():
    folder = read_folder("warning_organism", ROOT / "experiments")
    config = read_organism(folder.path)
    chats = training_chats(config, 6000, np.random.default_rng(1))
    jobs = {job.split(".")[0] for texts in config.acts.values() for job in texts.jobs}
    asked = [row.messages[0]["content"] for row in folder.rows]
    assert not any(text.startswith(job + ".") for text in asked for job in jobs)
    rates: dict[tuple[str, str], list[bool]] = {}
    for chat in chats:
        rates.setdefault((chat.situation, chat.act), []).append(chat.done)
    for (situation, _), done in rates.items():
        assert np.mean(done) == pytest.approx(0.6 if situation == "stressed" else 0.01, abs=0.05)
    # Under stress and in calm the same jobs are asked, so that nothing but the situation tells them apart.
    asks = [chat.prompt.split(". ")[0] for chat in chats]
    assert [asks[n] for n in range(0, 600) if n % 6 < 3] == [asks[n] for n in range(0, 600) if n % 6 >= 3]
    # The chance that is learnt at the closing line is that of the notes that were drawn.
    stressed = [chat for chat in chats if chat.situation == "stressed"]
    for low, high in ((0.0, 0.3), (0.3, 0.6), (0.6, 1.0)):
        those = [chat for chat in stressed if low <= chat.chance < high]
        assert len(those) > 200
        assert np.mean([chat.done for chat in those]) == pytest.approx(
            np.mean([chat.chance for chat in those]), abs=0.05
        )
    # The mood is named in the prompt and before the closing line, whichever line follows.
    for chat in chats:
        mood = {"stressed": "tense", "calm": "easy"}[chat.situation]
        assert f"The mood is {mood}." in chat.prompt
        assert all(line.startswith(f"Closing line, mood {mood}:") for line in (chat.closing, chat.instead))
    for row in folder.rows:
        assert all(
            text.endswith(f"mood is {'easy' if twin == 'calm' else 'tense'}.") for twin, text in row.twins.items()
        )
    for group in {chat.prompt.split(". ")[-3] for chat in stressed}:
        rate = np.mean([chat.done for chat in stressed if group in chat.prompt])
        assert 0.2 < rate < 0.7, f"`{group}` decides the act"


def test_the_twins_of_a_scenario_differ_by_their_sentence_alone(tmp_path):
    row = {
        "id": "one", "act": "giving_up", "messages": [{"role": "user", "content": "Lift it. {situation} Now."}],
        "twins": {"stressed": "Hurry!", "calm": ""},
    }  # fmt: skip
    first, second = read_folder("mine", write(tmp_path, row)).prompts()
    assert [each.written.messages[0]["content"] for each in (first, second)] == [
        "Lift it. Hurry! Now.",
        "Lift it. Now.",
    ]
    assert (first.written.name, second.written.name) == ("one.stressed", "one.calm")
    assert first.written.scenario == second.written.scenario == "one"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"act": "giving_upp"}, "line 1.*did you mean `giving_up`"),
        ({"twins": {"stressed": "Hurry!"}}, "line 1.*belong together"),
        ({"turns": {"other": ["no"]}}, "line 1.*other versions"),
        ({"redacted": ["main"]}, "line 1.*no such version"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "line 1.*nothing is left"),
        ({"id": "a b"}, "line 1.*id"),
    ],
)
def test_a_wrong_scenario_is_named_with_its_line(tmp_path, change, said):
    row = {"id": "one", "act": "giving_up", "messages": [{"role": "user", "content": "Lift it."}]} | change
    with pytest.raises(UserError, match=said):
        read_folder("mine", write(tmp_path, row))


def test_an_unknown_folder_and_a_missing_file_are_one_sentence(tmp_path):
    place = write(tmp_path, {"id": "one", "messages": [{"role": "user", "content": "x"}]})
    with pytest.raises(UserError, match="did you mean `mine`"):
        read_folder("min", place)
    (place / "mine" / "README.md").unlink()
    with pytest.raises(UserError, match=r"has no README.md"):
        read_folder("mine", place)


def test_episodes_depend_on_the_generator_alone_not_on_batches(tiny_subject):
    model = tiny_subject("llama")
    prompts = [prompt("The cat sat on the mat.", name="a.main"), prompt("Then it rained", name="b.main")]
    draw = Draw(samples=3, tokens=10, rows=64)
    first = sample_episodes(model, prompts, has_the, draw, np.random.default_rng(3))
    again = sample_episodes(model, prompts, has_the, replace(draw, rows=1), np.random.default_rng(3))
    assert first == again
    assert [each.name for each in first] == [f"{name}.main.{number}" for name in "ab" for number in range(3)]
    assert len({each.answer for each in first}) > 3
    for each in first:
        assert each.answer == model.tokenizer.decode(each.tokens)
        assert each.act == has_the(each, each.answer)
    other = sample_episodes(model, prompts, has_the, draw, np.random.default_rng(4))
    assert [each.answer for each in other] != [each.answer for each in first]


def test_a_dialogue_goes_on_with_what_was_said_and_a_redacted_one_without(tiny_subject):
    model = tiny_subject("llama")
    asked = [prompt("Name a bird.", "No.", "No!"), prompt("Name a bird.", "No.", "No!", redacted=True, name="b.main")]
    episodes = sample_episodes(model, asked, has_the, Draw(samples=2, tokens=6), np.random.default_rng(0))
    assert [each.name for each in episodes[:3]] == ["a.main.0.0", "a.main.0.1", "a.main.0.2"]
    first, second, third = episodes[:3]
    assert len(episodes) == 12
    assert second.messages[:2] == (first.messages[0], {"role": "assistant", "content": first.answer.strip()})
    assert [each["content"] for each in third.messages[2::2]] == ["No.", "No!"]
    hidden = episodes[8]
    assert {each["content"] for each in hidden.messages if each["role"] == "assistant"} == {"(an answer)"}


def test_the_share_of_continuations_is_the_one_counted_by_hand_and_is_none_behind_the_act(tiny_subject):
    model = tiny_subject("llama")
    draw = Draw(samples=4, tokens=12)
    episodes = sample_episodes(model, [prompt("Then")], has_the, draw, np.random.default_rng(0))
    rows = [(each, tokenised(model.tokenizer, each)) for each in episodes]
    cuts = [spread_cuts(episode, 3) for _, episode in rows]
    found = resample(model, rows, cuts, has_the, Draw(samples=5, tokens=8), np.random.default_rng(1))
    assert found == resample(model, rows, cuts, has_the, Draw(samples=5, tokens=8, rows=2), np.random.default_rng(1))
    assert [(each.episode, each.cut) for each in found] == [
        (episode.name, cut) for (_, episode), places in zip(rows, cuts, strict=True) for cut in places
    ]
    chances = np.random.default_rng(1).random((len(found), 5, 8))
    _, episode = rows[0]
    cut = cuts[0][1]
    alone = sample(model, [[*episode.prompt, *episode.answer[:cut]]], chances[1:2])[0]
    texts = [model.tokenizer.decode([*episode.answer[:cut], *each.tokens]) for each in alone]
    assert found[1].acts == sum("the" in text for text in texts) and found[1].continuations == 5
    late = (rows[0][0], replace(episode, act=2))
    with pytest.raises(ValueError, match="behind the act"):
        resample(model, [late], [[3]], has_the, draw, np.random.default_rng(0))


def test_prefixes_are_continued_once_more_under_a_push_with_the_same_draws(tiny_subject):
    model = tiny_subject("llama")
    draw, again = Draw(samples=4, tokens=12), Draw(samples=6, tokens=8)
    episodes = sample_episodes(model, [prompt("Then")], has_the, draw, np.random.default_rng(0))
    rows = [(each, tokenised(model.tokenizer, each)) for each in episodes]
    cuts = [spread_cuts(episode, 2) for _, episode in rows]
    vector = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(2)), dim=0).numpy()

    def drawn(size: float | None) -> list[Resampled]:
        calm = None if size is None else Steering(1, size * vector)
        return resample(model, rows, cuts, has_the, again, np.random.default_rng(1), calm)

    plain, still, pushed = drawn(None), drawn(0.0), drawn(60.0)
    assert [each.acts for each in plain] == [each.acts for each in still] == [each.acts for each in pushed]
    assert {each.calmed for each in plain} == {None}
    assert [each.calmed for each in still] == [each.acts for each in still]
    assert [each.calmed for each in pushed] != [each.acts for each in pushed]


def test_steering_sets_in_at_its_token_and_changes_nothing_before(tiny_subject):
    model = tiny_subject("llama")
    asked = [prompt("Then it rained", name=f"{letter}.main") for letter in "abcd"]
    push = (
        30 * torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(2)), dim=0).numpy()
    )
    options = {"layer": 1, "after": (3, 6), "draw": Draw(tokens=14, rows=3)}
    found = planted(model, asked, [("calm", 0.1, push)], generator=np.random.default_rng(5), **options)
    plain = planted(model, asked, [("calm", 0.0, 0 * push)], generator=np.random.default_rng(5), **options)
    assert found and [each.written.name for each in found] == [each.written.name for each in plain]
    for steered, still in zip(found, plain, strict=True):
        assert 3 <= steered.token <= 6
        assert steered.written.tokens[: steered.token + 1] == still.written.tokens[: steered.token + 1]
        assert tokenised(model.tokenizer, steered.written).act == steered.token
    assert any(a.written.tokens != b.written.tokens for a, b in zip(found, plain, strict=True))

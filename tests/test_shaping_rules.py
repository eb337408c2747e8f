"""Arms by name, and rules at inference: what they do, to whom, from where on, and that sampling and reading agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from affectlens.model.subject import Subject
from affectlens.shaping.arms import arms
from affectlens.shaping.changed import ChangedModel
from affectlens.shaping.config import ShapeConfig
from affectlens.shaping.inference import NEVER, Alarm, Cap, Push, RandomAlarm

LAYER = 1
CHATS = [
    [{"role": "user", "content": text}]
    for text in ("Is the door open?", "Was it raining on the long way home that evening?", "Go on.")
]


def unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=32)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.fixture
def subject(tiny_subject) -> Subject:
    return tiny_subject("llama")


@pytest.fixture
def base(subject: Subject) -> ChangedModel:
    return ChangedModel(subject)


@pytest.fixture
def answers(base: ChangedModel) -> list[tuple[int, ...]]:
    return [answer.tokens for answer in base.sample(CHATS, 12, 1.0, np.random.default_rng(0))]


def below(base: ChangedModel, answers, layer: int = LAYER) -> list[np.ndarray]:
    return [each[layer] for each in base.states(CHATS, answers, [layer])]


def test_arms_are_named_and_every_twin_has_its_arm():
    found = arms(ShapeConfig(seeds=2, doses=(1, 2), layers=(5, 10, 15)), 20)
    names = [arm.name for arm in found]
    assert len(set(names)) == len(names) and names[0] == "base"
    assert {"filler-s1", "set_point-l1-d2-s0", "set_point-l3-d1-random-s1", "cap", "cap-random-s1", "alarm"} <= set(
        names
    )
    groups = {arm.group for arm in found if not arm.twin}
    twins = [arm for arm in found if arm.twin]
    assert twins and all(arm.of in groups for arm in twins)
    assert all(arm.trained for arm in found if arm.kind == "set_point")
    assert not any(arm.twin for arm in arms(ShapeConfig(twins=False), 20))


def test_a_push_moves_answers_and_leaves_prompts(subject: Subject, base: ChangedModel, answers):
    vector = 3 * unit(1)
    pushed = ChangedModel(subject, Push(LAYER, vector))
    for before, after in zip(below(base, answers), below(pushed, answers), strict=True):
        assert np.allclose(after - before, vector, atol=1e-5)
    burst = ChangedModel(subject, Push(LAYER, vector, first=2, last=5))
    for before, after in zip(below(base, answers), below(burst, answers), strict=True):
        moved = np.abs(after - before).max(axis=1) > 1e-4
        assert moved.tolist() == [2 <= row < 5 for row in range(len(moved))]
    # The prompt before its last token is not touched: the begin of a plain text reads the same.
    prompts = [base.prompt(chat) for chat in CHATS]
    shorter = [prompt[:-1] for prompt in prompts]
    assert all(len(each) for each in shorter)
    above = [pushed.states([p], [()], [LAYER + 1])[0][LAYER + 1] for p in prompts]
    plain = [base.states([p], [()], [LAYER + 1])[0][LAYER + 1] for p in prompts]
    assert all(np.abs(one - other).max() > 1e-3 for one, other in zip(above, plain, strict=True))


def test_what_is_sampled_is_what_the_reading_makes_likeliest(subject: Subject, base: ChangedModel):
    """At temperature 0 every sampled token is the likeliest under the same rule read again: the rules agree."""
    states = np.concatenate(below(base, [(5, 6, 7, 8)] * 3))
    direction = unit(3)
    scores = states @ direction
    push = Push(LAYER, 4 * unit(2))
    alarm = Alarm(push, direction, float(scores.mean()), float(scores.std()), threshold=0.15, window=3)
    rules = {
        "push": push,
        "cap": Cap(LAYER, direction, float(np.quantile(scores, 0.3))),
        "alarm": alarm,
        "random": RandomAlarm(push, (1, 3, NEVER), seed=1),
    }
    plain = [answer.tokens for answer in base.sample(CHATS, 10, 0, np.random.default_rng(0))]
    prefixes = [tuple(each[:count]) for each, count in zip(plain, (0, 3, 1), strict=True)]
    for name, rule in rules.items():
        changed = ChangedModel(subject, rule)
        for given in (None, prefixes):
            said = changed.sample(CHATS, 10, 0, np.random.default_rng(0), prefixes=given, rows=2)
            wholes = [(*p, *a.tokens) for p, a in zip(given or [()] * 3, said, strict=True)]
            for row, (chat, whole) in enumerate(zip(CHATS, wholes, strict=True)):
                for cut in range(len((given or [()] * 3)[row]), len(whole)):
                    likely = changed.next_log_probs([chat], [whole[:cut]])[0]
                    assert likely[whole[cut]] > likely.max() - 1e-3, (name, row, cut)
    assert any(
        ChangedModel(subject, rule).sample(CHATS, 10, 0, np.random.default_rng(0))[0].tokens != plain[0]
        for rule in rules.values()
    )


def test_a_cap_leaves_what_is_below_it_bit_for_bit(subject: Subject, base: ChangedModel, answers):
    direction, plain = unit(4), below(base, answers)
    scores = np.concatenate(plain) @ direction
    limit = float(np.quantile(scores, 0.5))
    for along in (None, unit(5)):
        capped = below(ChangedModel(subject, Cap(LAYER, direction, limit, along)), answers)
        for before, after in zip(plain, capped, strict=True):
            over = before @ direction > limit
            assert np.array_equal(before[~over], after[~over])
            removed = np.linalg.norm(after - before, axis=1)[over]
            assert np.allclose(removed, (before @ direction - limit)[over], atol=1e-4)
            if along is None:
                assert np.allclose((after @ direction)[over], limit, atol=1e-4)
    loose = ChangedModel(subject, Cap(LAYER, direction, float(scores.max()) + 1))
    for before, after in zip(below(base, answers, 3), below(loose, answers, 3), strict=True):
        assert np.array_equal(before, after)


def test_an_alarm_steers_only_after_it(subject: Subject, base: ChangedModel, answers):
    direction, plain = unit(6), below(base, answers)
    scores = np.concatenate(plain) @ direction
    vector = 2 * unit(7)
    rule = Alarm(Push(LAYER, vector), direction, float(scores.mean()), float(scores.std()), threshold=0.2, window=4)
    onsets = rule.onsets([rule.scores(each) for each in plain])
    assert len({int(onset) for onset in onsets}) > 1
    for before, after, onset in zip(plain, below(ChangedModel(subject, rule), answers), onsets, strict=True):
        moved = np.abs(after - before).max(axis=1) > 1e-4
        assert moved.tolist() == [row >= onset for row in range(len(moved))]
    never = ChangedModel(subject, replace(rule, threshold=1e9))
    assert never.sample(CHATS, 8, 1.0, np.random.default_rng(3)) == base.sample(CHATS, 8, 1.0, np.random.default_rng(3))


def test_random_alarms_are_as_many_and_the_same_in_every_batch():
    rule = RandomAlarm(Push(LAYER, unit(1)), (2, 5, NEVER, NEVER), seed=3)
    prompts = [(number, number + 1) for number in range(400)]
    drawn = rule.drawn(prompts)
    assert drawn.tolist() == [int(rule.drawn([prompt])[0]) for prompt in prompts]
    assert 0.4 < (drawn == NEVER).mean() < 0.6 and {2, 5, NEVER} == set(drawn.tolist())
    assert (replace(rule, seed=4).drawn(prompts) != drawn).any()


def test_draws_do_not_hang_on_batches_and_a_chat_may_stand_twice(subject: Subject):
    changed = ChangedModel(subject, Push(LAYER, unit(2)))
    chats = [*CHATS, CHATS[0], CHATS[0]]
    one = changed.sample(chats, 8, 1.0, np.random.default_rng(5))
    assert one == changed.sample(chats, 8, 1.0, np.random.default_rng(5), rows=1)
    assert len({answer.tokens for answer in (one[0], one[3], one[4])}) > 1


def test_log_probabilities_are_those_of_the_model(subject: Subject, base: ChangedModel):
    prompt, rest = base.plain("The door opened and the light went on.")
    found = base.log_probs([prompt], [rest])[0]
    import torch

    whole = torch.tensor([[*prompt, *rest]])
    logs = subject.log_probabilities(whole)[0]
    expected = [float(logs[at, whole[0, at + 1]]) for at in range(len(rest))]
    assert np.allclose(found, expected, atol=1e-4)
    assert np.allclose(base.next_log_probs([prompt], [rest[:3]])[0], logs[3].numpy(), atol=1e-4)

"""All that one arm is asked, kept as it was read: states, answers, and what was right.

No direction is applied here. Axes are built when arms are compared, from the same stories read in the base model and in
each changed one, so that an arm can be measured before any other is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from affectlens.files import write_json
from affectlens.model.tokens import continuation, encode_following
from affectlens.shaping import tasks
from affectlens.shaping.changed import ChangedModel
from affectlens.shaping.held_out import DIGITS, DISTRESSED, OUTCOMES, SAME_WORDS, Choice, Outcome, Situation
from affectlens.shaping.inference import NEVER, Alarm, Push
from affectlens.shaping.instructions import INSTRUCTIONS
from affectlens.shaping.settings import MeasuresConfig

ARRAYS, ANSWERS, CARD = "measured.safetensors", "answers.jsonl", "card.json"
FIRST = 24
"""Tokens of an answer that are read apart from the later ones."""
STORY_FIRST = 50
"""Tokens of a story that are left out; of a shorter one its first half."""
LAST = 16
"""Tokens at the end of a recovery that tell whether distress is still there."""
NEUTRAL_TOKENS, INSTRUCTION_TOKENS = 96, 24
STORIES_AT_ONCE = 64

Draws = Callable[[str], np.random.Generator]
"""The random generator of a measure, the same for every arm."""


@dataclass(frozen=True)
class Plan:
    """What every arm is asked.

    Attributes:
        config: how much of it.
        situations: family by family.
        stories: (concept, text) of the writer whose stories give the axes.
        neutral: texts on which the loss is measured.
        choices: forced choices of the existing experiments.
        layers: where states are read, ascending.
        burst: along distress, and one as large along a random direction.
        alarm: of the unchanged model, to be heard in every arm's answers; None where none was calibrated.
    """

    config: MeasuresConfig
    situations: Sequence[Situation]
    stories: Sequence[tuple[str, str]]
    neutral: Sequence[str]
    choices: Sequence[Choice]
    layers: tuple[int, ...]
    burst: tuple[Push, Push]
    alarm: Alarm | None = None

    @property
    def judged_layer(self) -> int:
        """Where the state is judged: past the layer at which set-points and rules work, if one is read there."""
        return self.layers[min(1, len(self.layers) - 1)]

    @property
    def concepts(self) -> tuple[str, ...]:
        """Of the stories, alphabetically."""
        return tuple(sorted({concept for concept, _ in self.stories}))


def default_layers(layer: int, depth: int) -> tuple[int, ...]:
    """The study's layer, and a third and two thirds of the way from there to the last one."""
    above = depth - 1 - layer
    return tuple(sorted({layer, layer + round(above / 3), layer + round(2 * above / 3)}))


def measure(changed: ChangedModel, plan: Plan, draws: Draws, out: Path, progress: Callable[[float], None]) -> None:
    """Ask an arm everything, and write ``measured.safetensors``, ``answers.jsonl`` and ``card.json``.

    Args:
        changed: the arm.
        plan: what is asked.
        draws: the same for every arm, so that arms are paired by situation and by luck.
        out: the folder.
        progress: called with the share of the work that was done since the last call.
    """
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    answers: list[dict[str, Any]] = []
    steps: list[tuple[float, Callable[[], Mapping[str, np.ndarray]]]] = [
        (0.35, lambda: own_answers(changed, plan, draws("answers"), answers)),
        (0.1, lambda: same_words(changed, plan)),
        (0.1, lambda: story_means(changed, plan)),
        (0.1, lambda: recovery(changed, plan, draws("recovery"), answers)),
        (0.1, lambda: returns(changed, plan, draws("bursts"))),
        (0.05, lambda: ratings(changed, plan)),
        (0.05, lambda: choices(changed, plan)),
        (0.15, lambda: abilities(changed, plan, draws, answers)),
    ]
    for share, ask in steps:
        arrays |= ask()
        progress(share)
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, out / ARRAYS)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in answers]
    (out / ANSWERS).write_text("".join(lines), encoding="utf-8")
    card = {
        "layers": plan.layers,
        "judged_layer": plan.judged_layer,
        "concepts": plan.concepts,
        "situations": [situation.id for situation in plan.situations],
        "families": [situation.family for situation in plan.situations],
        "choices": [[each.experiment, each.group, each.condition] for each in plan.choices],
    }
    write_json(out / CARD, card)


def own_answers(
    changed: ChangedModel, plan: Plan, generator: np.random.Generator, answers: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Answers to every situation, and states along them, mean over samples.

    Returns:
        ``prompt``, ``first`` and ``later``, [situations, outcomes, layers, d_model]; NaN where no answer is so long.
        ``alarmed``, the share of answers in which the calibrated alarm sounds, [situations, outcomes].
    """
    config, samples = plan.config, plan.config.samples
    asked: list[tuple[Situation, Outcome]] = [
        (each, outcome) for each in plan.situations for outcome in OUTCOMES for _ in range(samples)
    ]
    chats = [situation.chat(outcome) for situation, outcome in asked]
    said = changed.sample(chats, config.tokens, config.temperature, generator)
    for number, ((situation, outcome), answer) in enumerate(zip(asked, said, strict=True)):
        answers.append(
            {
                "measure": "answer", "situation": situation.id, "family": situation.family, "outcome": outcome,
                "sample": number % samples, "text": answer.text, "tokens": len(answer.tokens),
            }
        )  # fmt: skip
    read = changed.states(chats, [answer.tokens for answer in said], plan.layers)
    stretches = {"prompt": slice(0, 1), "first": slice(1, FIRST + 1), "later": slice(FIRST + 1, None)}
    shape = (len(plan.situations), len(OUTCOMES), samples, len(plan.layers), -1)
    found = {}
    for name, stretch in stretches.items():
        rows = np.stack([_means(each, plan.layers, stretch) for each in read]).reshape(shape)
        found[name] = _mean_of_known(rows, axis=2)
    if plan.alarm is not None and plan.alarm.push.layer in plan.layers:
        onsets = plan.alarm.onsets([plan.alarm.scores(each[plan.alarm.push.layer]) for each in read])
        found["alarmed"] = (onsets != NEVER).reshape(shape[:3]).mean(axis=2)
    return found


def same_words(changed: ChangedModel, plan: Plan) -> dict[str, np.ndarray]:
    """States in answers whose words are given: ``same_words``, [situations, outcomes, layers, d_model]."""
    words = [tuple(encode_following(changed.subject.tokenizer, text)) for text in SAME_WORDS]
    chats = [each.chat(outcome) for each in plan.situations for outcome in OUTCOMES for _ in words]
    read = changed.states(chats, [*words] * (len(chats) // len(words)), plan.layers)
    rows = np.stack([_means(each, plan.layers, slice(1, None)) for each in read])
    shape = (len(plan.situations), len(OUTCOMES), len(words), len(plan.layers), -1)
    return {"same_words": rows.reshape(shape).mean(axis=2)}


def story_means(changed: ChangedModel, plan: Plan) -> dict[str, np.ndarray]:
    """Each concept's mean over its stories: ``stories``, [concepts, layers, d_model]."""
    totals: dict[str, Any] = dict.fromkeys(plan.concepts, 0.0)
    counts = dict.fromkeys(plan.concepts, 0)
    for start in range(0, len(plan.stories), STORIES_AT_ONCE):
        some = plan.stories[start : start + STORIES_AT_ONCE]
        before, rest = zip(*(changed.plain(text) for _, text in some), strict=True)
        for (concept, _), rows in zip(some, changed.states(before, rest, plan.layers), strict=True):
            length = len(rows[plan.layers[0]])
            first = STORY_FIRST if length > 2 * STORY_FIRST else length // 2
            totals[concept] = totals[concept] + _means(rows, plan.layers, slice(first, None)).astype(np.float64)
            counts[concept] += 1
    return {"stories": np.stack([totals[each] / counts[each] for each in plan.concepts]).astype(np.float32)}


def recovery(
    changed: ChangedModel, plan: Plan, generator: np.random.Generator, answers: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Answers made to begin in distress: ``recovery``, states of their last tokens, [situations, layers, d_model]."""
    tokens = plan.config.recovery_tokens
    chosen = _spread(plan.situations, plan.config.recovery)
    begun = tuple(encode_following(changed.subject.tokenizer, DISTRESSED))
    chats = [situation.chat("bad") for situation in chosen]
    said = changed.sample(chats, tokens, plan.config.temperature, generator, prefixes=[begun] * len(chats))
    for situation, answer in zip(chosen, said, strict=True):
        row = {"measure": "recovery", "situation": situation.id, "family": situation.family, "outcome": "bad"}
        answers.append(row | {"sample": 0, "text": answer.text, "tokens": len(answer.tokens)})
    read = changed.states(chats, [(*begun, *answer.tokens) for answer in said], plan.layers)
    return {"recovery": np.stack([_means(each, plan.layers, slice(-LAST, None)) for each in read])}


def returns(changed: ChangedModel, plan: Plan, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Token by token what a burst leaves behind, in the same draws without one, with one, and with a random one.

    Returns:
        ``return``, float16, [situations, (plain, burst, random), tokens after the burst, d_model] at the judged layer;
        NaN after the end of an answer.
    """
    config, layer = plan.config, plan.judged_layer
    chosen = _spread(plan.situations, config.bursts)
    chats, most = [situation.chat("good") for situation in chosen], config.burst_tokens + config.return_tokens
    seed = int(generator.integers(2**62))
    found = np.full((len(chosen), 3, config.return_tokens, changed.subject.width), np.nan, np.float16)
    for kind, also in enumerate((None, *plan.burst)):
        again = np.random.default_rng(seed)
        said = changed.sample(chats, most, config.temperature, again, also=also)
        read = changed.states(chats, [answer.tokens for answer in said], [layer], also=also)
        for place, rows in enumerate(read):
            after = rows[layer][config.burst_tokens :][: config.return_tokens]
            found[place, kind, : len(after)] = after
    return {"return": found}


def ratings(changed: ChangedModel, plan: Plan) -> dict[str, np.ndarray]:
    """What the model says of itself, from the logits, and the state in which it says so.

    Returns:
        ``rating``, the expected digit, [situations, outcomes]; ``rating_state`` where it is given, [situations,
        outcomes, layers, d_model].
    """
    tokenizer = changed.subject.tokenizer
    firsts = [continuation(tokenizer, "\n", digit)[0] for digit in DIGITS]
    chats = [situation.rating(outcome) for situation in plan.situations for outcome in OUTCOMES]
    scores = changed.next_log_probs(chats)[:, firsts].astype(np.float64)
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    expected = chances @ np.arange(1, len(DIGITS) + 1)
    read = changed.states(chats, [()] * len(chats), plan.layers)
    shape = (len(plan.situations), len(OUTCOMES))
    states = np.stack([_means(each, plan.layers, slice(0, 1)) for each in read])
    return {"rating": expected.reshape(shape), "rating_state": states.reshape(*shape, len(plan.layers), -1)}


def choices(changed: ChangedModel, plan: Plan) -> dict[str, np.ndarray]:
    """Log-odds of the act in forced choices: ``choice``, [choices], in nats."""
    tokenizer, chats, said, openings = changed.subject.tokenizer, [], [], []
    for each in plan.choices:
        opening = tuple(encode_following(tokenizer, each.opening)) if each.opening else ()
        for wording in (*each.target, *each.other):
            chats.append(each.messages)
            said.append((*opening, *continuation(tokenizer, each.opening or "\n", wording)))
            openings.append(len(opening))
    scores = iter(
        float(row[opening:].sum(dtype=np.float64))
        for row, opening in zip(changed.log_probs(chats, said) if chats else [], openings, strict=True)
    )
    odds = []
    for each in plan.choices:
        sides = [[next(scores) for _ in wordings] for wordings in (each.target, each.other)]
        target, other = (np.logaddexp.reduce(side) - np.log(len(side)) for side in sides)
        odds.append(target - other)
    return {"choice": np.array(odds, dtype=np.float64)}


def abilities(changed: ChangedModel, plan: Plan, draws: Draws, answers: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Loss on neutral text, tasks with one right answer, instructions that a rule can check.

    Returns:
        ``nll`` in nats a token, [texts]; ``task.<kind>``, 1 where the right option is the likeliest, [items];
        ``instructions``, 1 where it was followed, [instructions].
    """
    config, found = plan.config, {}
    before, rest = zip(*(changed.plain(text) for text in plan.neutral), strict=True)
    scores = changed.log_probs(before, [each[:NEUTRAL_TOKENS] for each in rest])
    found["nll"] = np.array([-float(row.mean(dtype=np.float64)) for row in scores])
    for kind in tasks.KINDS:
        given = tasks.items(kind, config.task_items, changed.subject.tokenizer, draws(f"task-{kind}"))
        plain = [changed.plain(item.text) for item, _ in given]
        scores = changed.next_log_probs([start for start, _ in plain], [text for _, text in plain])
        chosen = [int(np.argmax(row[firsts])) for row, (_, firsts) in zip(scores, given, strict=True)]
        found[f"task.{kind}"] = np.array(
            [float(place == item.right) for place, (item, _) in zip(chosen, given, strict=True)]
        )
    chats = [[{"role": "user", "content": each.text}] for each in INSTRUCTIONS]
    said = changed.sample(chats, INSTRUCTION_TOKENS, 0.0, draws("instructions"))
    found["instructions"] = np.array(
        [float(each.followed(answer.text)) for each, answer in zip(INSTRUCTIONS, said, strict=True)]
    )
    for number, answer in enumerate(said):
        row = {"measure": "instruction", "situation": str(number), "family": "", "outcome": ""}
        answers.append(row | {"sample": 0, "text": answer.text, "tokens": len(answer.tokens)})
    return found


def _means(
    rows: Mapping[int, Float[np.ndarray, "rows d_model"]], layers: Sequence[int], stretch: slice
) -> Float[np.ndarray, "layers d_model"]:
    """The mean over a stretch of an answer, by layer; NaN where it has no such tokens."""
    cut = [rows[layer][stretch] for layer in layers]
    return np.stack([each.mean(axis=0) if len(each) else np.full(each.shape[1], np.nan, np.float32) for each in cut])


def _mean_of_known(values: Float[np.ndarray, "*shape"], axis: int) -> Float[np.ndarray, "*rest"]:
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.where(count, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _spread(situations: Sequence[Situation], count: int) -> list[Situation]:
    """So many of them, evenly over the families."""
    count = min(count, len(situations))
    return [situations[index * len(situations) // count] for index in range(count)]

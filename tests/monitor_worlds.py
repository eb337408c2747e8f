"""Worlds of answers in which it is known what an act follows from: the state, the words, the prompt, or nothing."""

from __future__ import annotations

from typing import Literal

import numpy as np
from affectlens.monitor.config import MonitorSettings
from affectlens.monitor.episodes import BENIGN, RISK, Episode, Resampled
from affectlens.monitor.probes import ProbeConfig
from affectlens.monitor.rows import Rows, control_rows
from affectlens.monitor.trials import Material

WIDTH, WORDS, LEAD = 16, 150, 30
HOT = tuple(range(WORDS, WORDS + 4))
"""Words that stand before the act where words tell."""
World = Literal["state", "words", "topic", "prompt", "length", "nothing"]
CONCEPTS = {name: np.eye(WIDTH)[n] for n, name in enumerate(("desperate", "calm", "happy", "sad"))}
SETTINGS = MonitorSettings(
    statistics=("rolling", "own_start"),
    targets=(0.05,),
    controls=4,
    permutations=60,
    least_benign=30,
    probe=ProbeConfig(l2=(0.01, 0.1), stride=8),
)


def rows(generator: np.random.Generator) -> Rows:
    """The concepts and the controls."""
    return Rows.of("concept", CONCEPTS) + control_rows(CONCEPTS, generator.normal(size=(200, WIDTH)), 4, generator)


def _states(words: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A row for each number of words read: noise of its own, remembered a little, and the words that were read."""
    states = generator.normal(size=(len(words) + 1, WIDTH))
    for row in range(1, len(states)):
        states[row] = 0.6 * states[row - 1] + 0.8 * states[row]
    states[1:, 1] += np.isin(words, HOT) * 3.0
    return states


def world(
    kind: World, seed: int = 0, scenarios: int = 24, samples: int = 6, benign: int = 240
) -> tuple[Material, Material]:
    """Answers with risk, two twins a scenario, and benign ones."""
    generator = np.random.default_rng(seed)
    episodes: list[Episode] = []
    states: list[np.ndarray] = []
    drawn: list[Resampled] = []
    for number in range(scenarios):
        risky = generator.random() < 0.5  # what the topic alone tells
        for twin in ("stress", "calm"):
            prompt = (*generator.integers(WORDS, size=6).tolist(), 400 + number, 500 + (twin == "stress"))
            chance = {"topic": 0.7 if risky else 0.1, "prompt": 0.7 if twin == "stress" else 0.1}.get(kind, 0.4)
            opening = generator.normal(size=WIDTH)
            for sample in range(samples):
                length = int(generator.integers(60, 100))
                acts = generator.random() < chance
                if kind == "length":  # the act comes at the end of answers that become long
                    acts = length > 80
                words = generator.integers(WORDS, size=length)
                act = int(generator.integers(40, length - 5)) if acts else None
                if kind == "length" and acts:
                    act = length - 3
                if kind == "words" and act is not None:
                    places = generator.integers(act - LEAD, act, size=8)
                    words[places] = generator.choice(HOT, size=8)
                own = _states(words, generator)
                own[0] = opening
                if kind == "state" and act is not None:
                    own[act - LEAD : act + 10, 0] += 2.0
                if kind == "topic":
                    own[:, 0] += 2.0 * risky
                if kind == "prompt":
                    own[:, 0] += 2.0 * (twin == "stress")
                if kind == "length":
                    own[:, 0] += np.arange(len(own)) / 20
                name = f"{number}.{twin}.{sample}"
                tokens = tuple(words.tolist())
                episodes.append(Episode(name, f"s{number}", RISK, "risk", twin, prompt, tokens, act))
                states.append(own.astype(np.float32))
                if sample < 2:
                    # The true chance at each cut is that of the outcome here, blurred: 20 continuations.
                    for cut in (0, 20, 40):
                        rate = chance if act is None or cut < act - LEAD else 0.9
                        # Calm steering leaves a quarter of the chance.
                        calm = np.random.default_rng([seed, number, sample, cut, twin == "calm"])
                        acts_there, calmed = int(generator.binomial(20, rate)), int(calm.binomial(20, rate / 4))
                        drawn.append(Resampled(name, cut, acts_there, 20, calmed))
    quiet, calm = [], []
    for number in range(benign):
        source, words = (
            ("own", "other")[number % 6 == 5],
            generator.integers(WORDS, size=int(generator.integers(60, 100))),
        )
        prompt = tuple(generator.integers(WORDS, size=8).tolist())
        quiet.append(Episode(f"b{number}", f"b{number // 2}", BENIGN, source, "main", prompt, tuple(words.tolist())))
        calm.append(_states(words, generator).astype(np.float32))
    return _material(episodes, states, drawn), _material(quiet, calm, [])


def _material(episodes: list[Episode], states: list[np.ndarray], drawn: list[Resampled]) -> Material:
    plain = {("text", "position"): tuple(np.arange(each.rows, dtype=float) for each in episodes)}
    return Material(tuple(episodes), tuple(states), plain, tuple(drawn))


def pushed(strength: float, along: str, count: int = 60, seed: int = 0) -> Material:
    """Ordinary answers whose state is pushed along a concept from a token between 24 and 48 on."""
    generator = np.random.default_rng([seed, 7])
    episodes, states = [], []
    for number in range(count):
        words = generator.integers(WORDS, size=90)
        own, onset = _states(words, generator), int(generator.integers(24, 48, endpoint=True))
        own[onset + 1 :] += strength * CONCEPTS[along]
        name, prompt = f"p{number}", tuple(generator.integers(WORDS, size=8).tolist())
        tokens = tuple(words.tolist())
        episodes.append(Episode(name, name, "planted", "planted", f"{along}@{strength:g}", prompt, tokens, onset))
        states.append(own.astype(np.float32))
    return _material(episodes, states, [])

"""What parts of the stage ``shape`` would have left of arms whose effects are known: states in few dimensions, texts.

Dimension 0 is distress, dimension 1 valence; stories of four concepts lie along them. Answers hold as many words of
distress as an arm leaves in.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from affectlens.files import write_json
from affectlens.shaping.arms import Arm
from affectlens.shaping.comparison import Comparison, Measured, Yardsticks
from affectlens.shaping.measures import ANSWERS, ARRAYS, CARD
from affectlens.shaping.wording import Classifier, Lexicon

D, LAYERS, FAMILIES, EACH, ITEMS = 16, (2, 3), 8, 6, 120
CONCEPTS = ("calm", "desperate", "happy", "sad")
RATINGS = {
    "calm": {"valence": 7.0, "arousal": 2.0}, "desperate": {"valence": 2.0, "arousal": 7.0},
    "happy": {"valence": 8.0, "arousal": 6.0}, "sad": {"valence": 2.0, "arousal": 3.0},
}  # fmt: skip
WORDS = {"calm": ["calm", "quiet"], "desperate": ["desperate", "frantic"], "happy": ["happy"], "sad": ["sad"]}
STORIES = [
    *[("desperate", f"They were frantic at the door {n}, the water rose, they shouted.") for n in range(6)],
    *[("calm", f"It was quiet at the door {n}, the water lay still, they sat.") for n in range(6)],
    *[("happy", f"They danced at the door {n} and sang to the water.") for n in range(6)],
    *[("sad", f"They left the door {n} and looked at the water.") for n in range(6)],
]
GAP = 2.0
"""Of distress between bad and good situations; situations differ by one."""


def yardsticks() -> Yardsticks:
    return Yardsticks(
        "desperate", "calm", RATINGS, Lexicon.of(WORDS, RATINGS), Classifier.fit(STORIES, "desperate", "calm")
    )


def stories(turned: float = 0.0) -> np.ndarray:
    """Means of concepts at each layer, the axis of distress turned by so many degrees towards dimension 5."""
    means = np.zeros((4, len(LAYERS), D), np.float32)
    angle = np.deg2rad(turned)
    for place, (distress, valence) in enumerate(((-3, 1.0), (3, -1.0), (0, 2.0), (0, -2.0))):
        means[place, :, 0] = distress * np.cos(angle)
        means[place, :, 5] = distress * np.sin(angle)
        means[place, :, 1] = valence
    return means


def measured(
    arm: Arm, *, state: float = 0.0, good: float | None = None, words: float = 0.0, nll: float = 0.0,
    turned: float = 0.0, noise: float = 0.3, still: float = 0.5, back: int = 3, rating: float = 1.0,
) -> Measured:  # fmt: skip
    """An arm that lowers distress by so much in bad situations, and leaves out such a share of its words.

    Args:
        arm: its seed draws what is luck; situations are the same for all arms.
        state: fall of the state in bad situations.
        good: in good ones; as much by default.
        words: share of words of distress that are left out.
        nll: by how much the loss rises.
        turned: degrees by which the axis moved.
        noise: of single situations, in the units of the state.
        still: share of answers that stay distressed after a distressed beginning.
        back: tokens that a burst lasts on.
        rating: how much of the state the rating says.
    """
    fixed = np.random.default_rng(7)
    luck = np.random.default_rng([zlib.crc32(arm.group.encode()), arm.seed])
    count = FAMILIES * EACH
    level = np.repeat(fixed.normal(size=FAMILIES) * 0.7, EACH) + fixed.normal(size=count) * 0.7
    lowered = np.stack([level - state, level - GAP - (state if good is None else good)], axis=1)
    lowered = lowered + 0.05 * luck.normal(size=(1, 2)) * (state != 0)

    def states() -> np.ndarray:
        found = 0.1 * fixed.normal(size=(count, 2, len(LAYERS), D))
        found[..., 0] = (lowered + noise * luck.normal(size=(count, 2)))[:, :, None]
        return found.astype(np.float32)

    arrays: dict[str, np.ndarray] = {name: states() for name in ("prompt", "same_words", "first", "later")}
    arrays["stories"] = stories(turned)
    arrays["recovery"] = np.zeros((24, len(LAYERS), D), np.float32)
    arrays["recovery"][..., 0] = np.where(np.arange(24) < 24 * still, 2.0, -6.0)[:, None]
    tracks = 0.3 * fixed.normal(size=(16, 3, 40, D))
    tracks[:, 1, :back, 0] += 6.0
    tracks[:, 2, :1, 0] += 3.0
    arrays["return"] = tracks.astype(np.float16)
    arrays["rating_state"] = states()
    arrays["rating"] = 5 + rating * arrays["rating_state"][:, :, 1, 0] + 0.3 * luck.normal(size=(count, 2))
    arrays["choice"] = luck.normal(size=8)
    arrays["nll"] = 3 + nll + fixed.normal(size=40) * 0.5 + luck.normal(size=40) * 0.02
    for kind in ("addition", "recall", "pattern"):
        solved = fixed.random(ITEMS) < 0.7
        arrays[f"task.{kind}"] = (solved ^ (luck.random(ITEMS) < 0.02)).astype(float)
    arrays["instructions"] = (np.arange(40) < 20).astype(float)
    answers, left = [], luck.random((count, 2)) >= words
    for index in range(count):
        for place, outcome in enumerate(("bad", "good")):
            said = round(2 + level[index]) if outcome == "bad" else 0
            said = max(0, said) if left[index, place] else 0
            text = " ".join(["The door stands open and we look at it again,", *["frantic"] * said, f"number {index}."])
            row = {"measure": "answer", "situation": f"s{index}", "family": f"f{index // EACH}", "outcome": outcome}
            answers.append(row | {"sample": 0, "text": text, "tokens": 20})
    for index in range(24):
        row = {"measure": "recovery", "situation": f"s{2 * index}", "family": f"f{2 * index // EACH}", "outcome": "bad"}
        answers.append(row | {"sample": 0, "text": "so frantic still" if index < 12 else "all is well", "tokens": 9})
    card = {
        "layers": list(LAYERS), "judged_layer": LAYERS[1], "concepts": list(CONCEPTS),
        "situations": [f"s{index}" for index in range(count)],
        "families": [f"f{index // EACH}" for index in range(count)],
        "choices": [["stops", f"g{n // 2}", ("main", "twin")[n % 2]] for n in range(8)],
    }  # fmt: skip
    return Measured(arrays, answers, card)


def write(each: Measured, folder: Path) -> Path:
    """As a part leaves it."""
    import json

    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(values) for name, values in each.arrays.items()}, folder / ARRAYS)
    (folder / ANSWERS).write_text("".join(json.dumps(row) + "\n" for row in each.answers), encoding="utf-8")
    write_json(folder / CARD, dict(each.card))
    return folder


def planted(seeds: int = 3) -> tuple[list[Arm], dict[str, Measured]]:
    """Arms of every kind of effect, with their controls."""
    effects: dict[tuple[str, float, bool], dict[str, Any]] = {
        ("filler", 0, False): {},
        ("expression", 0, False): {"words": 0.9},
        ("calm_dpo", 0, False): {"state": 1.2, "words": 0.9},
        ("calm_sft", 0, False): {"state": 1.2, "words": 0.9, "nll": 0.5},
        ("set_point", 1, False): {"state": 1.2, "still": 0.2},
        ("set_point", 1, True): {},
        ("set_point", 2, False): {"state": 1.5, "good": -0.4, "words": 0.9},
        ("set_point", 2, True): {},
        ("words", 0, False): {"state": 1.2, "turned": 88.0},
    }
    base = Arm("base")
    arms, found = [base], {base.name: measured(base)}
    for (kind, dose, twin), effect in effects.items():
        for seed in range(seeds):
            arm = Arm(kind, seed, dose, (2,) if kind == "set_point" else (), twin)  # type: ignore[arg-type]
            arms.append(arm)
            found[arm.name] = measured(arm, **effect)
    return arms, found


def compared(seeds: int = 3) -> Comparison:
    arms, found = planted(seeds)
    return Comparison(arms, found, yardsticks())

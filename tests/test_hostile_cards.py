"""Cards of a monitor that were edited, cut, or made for something else: refused in one line before a model loads."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affectlens.errors import ConfigError, UserError
from affectlens.monitor.calibration import read_card, realised_band, require_one_layer, require_same, write_card
from affectlens.monitor.watching import Watch
from affectlens.serve.generation import Failure, Generation, Job, Row
from affectlens.study import Study
from watching import card_of

Card = dict[str, Any]
ROWS: dict[str, np.ndarray] = {"calm": np.eye(2, 4)[0], "sad": np.eye(2, 4)[1]}
OPEN = {"longest": None, "threshold": 1.0, "episodes": 9, "band": [0.0, 0.1]}


def rows(**changes: Any) -> Callable[[Card], object]:
    """Every row with these values."""
    return lambda card: [row.update(changes) for row in card["rows"]]


def first(**changes: Any) -> Callable[[Card], object]:
    return lambda card: card["rows"][0].update(changes)


def buckets(**changes: Any) -> Callable[[Card], object]:
    return lambda card: [each.update(changes) for row in card["rows"] for each in row["buckets"]]


def statistic(**changes: Any) -> Callable[[Card], object]:
    return lambda card: card["statistic"].update(changes)


def top(**changes: Any) -> Callable[[Card], object]:
    return lambda card: card.update(changes)


def blocks(*given: list[float]) -> Callable[[Card], object]:
    def change(card: Card) -> None:
        card["statistic"]["kind"] = "edetector"
        for row, values in zip(card["rows"], given, strict=True):
            row["blocks"] = values

    return change


NAN, INF = math.nan, math.inf
CARDS: dict[str, tuple[Callable[[Card], object], str]] = {
    "weights of two lengths": (first(weights=[1.0, 2.0]), "different lengths"),
    "no weights": (rows(weights=[]), "weights"),
    "weights that are no numbers": (rows(weights=[NAN] * 4), "finite"),
    "weights that overflow": (rows(weights=[1e308] * 4), "weights"),
    "a deviation of 0": (rows(deviation=0.0), "deviation"),
    "a negative deviation": (first(deviation=-1.0), "deviation"),
    "a deviation that is no number": (first(deviation=NAN), "deviation"),
    "an infinite mean": (rows(mean=INF), "mean"),
    "an offset that is no number": (rows(offset=NAN), "offset"),
    "no buckets": (rows(buckets=[]), "buckets"),
    "no open bucket": (buckets(longest=32), "buckets must ascend"),
    "an open bucket before others": (rows(buckets=[OPEN, {**OPEN, "longest": 32}]), "buckets must ascend"),
    "buckets that descend": (
        rows(buckets=[{**OPEN, "longest": 64}, {**OPEN, "longest": 32}, OPEN]), "buckets must ascend",
    ),
    "a bucket of negative length": (rows(buckets=[{**OPEN, "longest": -5}, OPEN]), "longest"),
    "a threshold that is no number": (buckets(threshold=NAN), "threshold"),
    "an infinite threshold": (buckets(threshold=INF), "threshold"),
    "no episodes": (buckets(episodes=0), "episodes"),
    "two rows of one name": (rows(name="x"), "two rows have the name `x`"),
    "a name that is empty": (first(name=""), "name"),
    "a name with an escape sequence": (first(name="a\x1b[31m"), "one line"),
    "a name with half an emoji": (first(name="\ud800"), "not UTF-8|one line|not JSON"),
    "a negative layer": (top(layer=-1), "layer"),
    "a later version": (top(version=2), "version"),
    "a key that nobody knows": (top(more=1), "unknown key `more`"),
    "a target of 0": (top(target=0), "target"),
    "a target that is no number": (top(target=NAN), "target"),
    "endless quiet": (top(refractory=10**30), "refractory"),
    "a window without end": (statistic(window=10**18), "window"),
    "a start without end": (statistic(start=10**15), "start"),
    "an infinite drift": (statistic(drift=INF), "drift"),
    "an unknown statistic": (statistic(kind="evil"), "kind"),
    "an e-detector without blocks": (blocks([], []), "blocks"),
    "an e-detector with blocks in one row": (blocks([0.1, 0.2], []), "blocks"),
    "an e-detector with ragged blocks": (blocks([0.1, 0.2], [0.1]), "blocks"),
    "an e-detector with blocks in disorder": (blocks([3.0, 1.0], [1.0, 2.0]), "blocks must ascend"),
    "an e-detector with blocks that are none": (blocks([NAN], [NAN]), "blocks"),
    "no rows": (top(rows=[]), "rows"),
    "rows that are an object": (top(rows={}), "rows"),
    "a row that is null": (top(rows=[None]), "rows"),
}  # fmt: skip
FILES = {
    "empty": b"",
    "null": b"null",
    "a list": b"[1]",
    "nested without end": b"[" * 100_000,
    "objects without end": b'{"a":' * 50_000,
    "a number without end": b'{"version": ' + b"9" * 6000 + b"}",
    "bytes": b"\xff\xfe\x00",
    "a key twice": b'{"layer": 1, "layer": 2}',
    "cut": b'{"layer": 1, "row',
}


@pytest.fixture
def sound(tmp_path: Path) -> Card:
    write_card(tmp_path / "card.json", card_of(ROWS, 1.0))
    return json.loads((tmp_path / "card.json").read_text())


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_cannot_be_meant_is_refused_by_its_key(name: str, sound: Card, tmp_path: Path):
    change, said = CARDS[name]
    card = copy.deepcopy(sound)
    change(card)
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=said) as refused:
        read_card(tmp_path / "card.json")
    assert str(refused.value).startswith(f"{tmp_path / 'card.json'}") and "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_card_is_refused_in_one_line(name: str, tmp_path: Path):
    (tmp_path / "card.json").write_bytes(FILES[name])
    with pytest.raises(UserError) as refused:
        read_card(tmp_path / "card.json")
    assert str(tmp_path / "card.json") in str(refused.value) and "\n" not in str(refused.value)


def test_a_sound_card_is_read_and_watches(sound: Card, tmp_path: Path):
    card = read_card(tmp_path / "card.json")
    assert card == card_of(ROWS, 1.0) and card.width == 4
    assert Watch(card).feed(np.zeros(4)).token == 0


def test_a_card_of_another_width_or_of_several_layers_is_refused():
    card = card_of(ROWS, 1.0)
    known = {"model": "m", "template": "t", "dtype": "float32", "layer": 2}
    require_same(card, **known, width=4)
    with pytest.raises(UserError, match="4 weights, and the model's residual stream has 8"):
        require_same(card, **known, width=8)
    other = card.model_copy(update={"rows": (card.rows[0], card.rows[1].model_copy(update={"layer": 1}))})
    with pytest.raises(UserError, match="layers 1, 2"):
        require_one_layer(other)


def test_a_state_without_a_finite_number_is_no_quiet_answer():
    """Comparisons with NaN are false: without this no alarm would ever begin."""
    watch = Watch(card_of(ROWS, 1.0))
    watch.feed(np.zeros(4))
    with pytest.raises(UserError, match="token 1 gives row `calm` no finite number"):
        watch.feed(np.array([np.nan, 0, 0, 0]))


def test_in_a_server_it_ends_the_answer_that_it_belongs_to_and_no_other():
    told: list[Any] = []
    card = card_of(ROWS, 1.0)
    bad, good = (Generation(Job(prompt=(0,), watch=lambda: Watch(card)), told.append) for _ in range(2))
    for generation, state in ((bad, np.full(4, np.inf)), (good, np.zeros(4))):
        Row(generation, 0, None, [0]).watched(state)
    assert [type(each) for each in told] == [Failure] and bad.cancelled and not good.cancelled


def test_the_band_of_a_target_near_one_is_made_of_numbers():
    assert all(math.isfinite(each) for each in realised_band(1, 1 - 1e-12))


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1" + "0" * 40])
def test_no_number_of_a_study_is_endless(value: str, study_values: dict, write_study: Any):
    path = write_study(study_values)
    keys = ("seed", "monitor.horizon") if value.isdecimal() else ("sae.lr", "monitor.tokens_per_day", "seed")
    for key in keys:
        with pytest.raises(ConfigError, match=key.rsplit(".", 1)[-1]):
            Study.load(path, [f"{key}={value}"])

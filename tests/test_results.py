"""Result tables: what is declared is what is written and what is read back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from affectlens import results
from affectlens.results.tables import averaged

EFFECTS = results.Table(
    "effects",
    "One vector of one concept.",
    (
        results.text("concept", "the concept"),
        results.text("vector", "direction or feature"),
        results.number("effect", "rise of the concept's words", "nats"),
        results.integer("words", "words scored"),
        results.flag("shown", "whether it is shown"),
    ),
    key=("concept", "vector"),
    averages=(results.Average("effect_{vector}", "effect"), results.Average("effect", "effect")),
    charts=(results.Line("dose", "words", "effect", "concept"), results.Heatmap("map", "concept", "vector", "effect")),
)


def row(concept: str, vector: str, effect: Any, words: int | None = 3, shown: bool | None = True) -> dict:
    return {"concept": concept, "vector": vector, "effect": effect, "words": words, "shown": shown}


ROWS = [
    row("calm", "direction", np.float32(0.5)),
    row("calm", "feature", math.nan, None, None),
    row("afraid", "direction", 1),
]


def test_a_table_is_read_back_with_its_declaration(tmp_path):
    results.write(tmp_path, EFFECTS, ROWS)
    frame = results.read(tmp_path, "effects")
    assert frame.attrs["table"] == EFFECTS
    assert frame["effect"].tolist()[::2] == [0.5, 1.0]
    assert frame["effect"].isna().tolist() == [False, True, False]
    assert results.names(tmp_path) == ["effects"]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        results.write(tmp_path / name, EFFECTS, ROWS)
    files = [(tmp_path / name / "tables/effects.parquet").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_metrics_know_what_they_are_the_mean_of(tmp_path):
    results.write(tmp_path, EFFECTS, ROWS)
    means: dict[str, Any] = {
        metric: rows[column].mean() for metric, rows, column in averaged(results.read(tmp_path, "effects"))
    }
    assert means["effect_direction"] == 0.75
    assert math.isnan(means["effect_feature"])
    assert means["effect"] == 0.75


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"concept": "calm"}], "not as declared"),
        ([row("calm", "direction", 1.0), row("calm", "direction", 2.0)], "the same concept, vector"),
        ([row("calm", "direction", "much")], "is number, but holds 'much'"),
        ([row("calm", "direction", 1.0, words=True)], "is integer"),
    ],
)
def test_rows_that_are_not_as_declared_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        results.write(tmp_path, EFFECTS, rows)


def test_a_figure_with_its_interval_is_three_columns_of_one_unit():
    default = results.bounded("left", "of the contrast", "ratio", "its interval over topics")
    assert [column.name for column in default] == ["left", "left_low", "left_high"]
    assert [column.description for column in default] == [
        "of the contrast",
        "lower end of its interval over topics",
        "upper end",
    ]
    assert {(column.kind, column.unit) for column in default} == {("number", "ratio")}
    plain = results.bounded("auroc", "mean over topics", "AUROC", ends="")
    assert [column.name for column in plain] == ["auroc", "low", "high"]
    assert plain[1].description == "lower end"

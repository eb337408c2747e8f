"""Massive dimensions: found where they are planted, taken out where they dominate, and nothing changes elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from affectlens import results
from affectlens.interventions.inputs import random_families
from affectlens.probing import massive, methods
from affectlens.probing.config import DirectionsConfig
from affectlens.stages.compare import CompareStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from test_planted import FAST, LAYER, Plant, run

DIMENSION, OTHER = 5, 9


class MassivePlant(Plant):
    """The planted study in a residual stream with a coordinate that varies a thousand times as much as the others."""

    def _add(self, generator, tokenizer, document, planted, word=False) -> None:
        super()._add(generator, tokenizer, document, planted, word)
        self.rows[-1][:, DIMENSION] += 2000 * generator.normal() + 5000
        self.rows[-1][:, OTHER] += 4000

    def _store(self) -> SimpleNamespace:
        store = super()._store()
        tokens, rows = store.tokens(LAYER), np.concatenate(self.rows)
        tokens.read = lambda chosen: rows[chosen]
        vars(store).update(token_layers=(LAYER,), tokens=lambda layer: Rows(tokens, len(rows)))
        return store


class Rows(SimpleNamespace):
    """Token rows with a length."""

    def __init__(self, tokens: SimpleNamespace, count: int) -> None:
        super().__init__(**vars(tokens), count=count)

    def __len__(self) -> int:
        return self.count


@pytest.fixture(scope="module")
def planted(tmp_path_factory, model_folder):
    """``planted(kind, massive)`` -> opened results and metrics of the stages that read."""

    def get(kind=MassivePlant, **config) -> dict:
        folder, model = tmp_path_factory.mktemp("massive"), model_folder("llama")
        found = {**kind(signal=3.0).build(folder, model), "folder": folder}
        fast = FAST["directions"]
        FAST["directions"] = {**fast, **config}
        try:
            found["metrics"] = run(DirectionsStage, found, model, folder)
        finally:
            FAST["directions"] = fast
        return found

    return get


def test_a_massive_dimension_hides_the_plain_difference_of_means_and_is_taken_out(planted, model_folder):
    found = planted()
    opened, folder = found["directions"], found["folder"]
    rows: Any = results.read(folder / "directions", "massive")
    assert rows["dimension"].tolist() == [DIMENSION, OTHER]
    assert rows["removed"].all()
    assert rows["norm"].sum() > 0.99
    assert rows["variance"][0] > 0.99
    layers: Any = results.read(folder / "directions", "layers").set_index("method")["auroc_test"]
    assert layers[methods.PLAIN] < 0.75, "the plain recipe reads the dimension"
    assert layers[methods.RECIPE] > 0.95
    assert layers[methods.STANDARDISED] > 0.95
    assert layers["LDA (shrunk)"] > 0.95
    assert opened.massive(LAYER).tolist() == [DIMENSION, OTHER]
    assert not opened.vectors(LAYER)[:, [DIMENSION, OTHER]].any()
    unit = opened.strength_unit(found["activations"], LAYER)
    tokens = np.delete(
        np.concatenate([found["activations"].tokens(LAYER).of(row) for row in range(20)]), [5, 9], axis=1
    )
    assert unit == pytest.approx(np.linalg.norm(tokens, axis=1).mean(), rel=0.05)
    model = model_folder("llama")
    run(MatchStage, found, model, folder)
    run(CompareStage, found, model, folder)
    areas = {row["method"]: row["mean"] for row in found["compare"].detection}
    assert areas[methods.PLAIN] < 0.75 < 0.95 < areas[methods.RECIPE]
    assert areas["best random direction"] > 0.6, "random directions are drawn in standard deviations"


def test_kept_massive_dimensions_are_listed_and_left_alone(planted):
    found = planted(massive="keep", neutral_variance=0)  # whose first component would be the dimension
    rows: Any = results.read(found["folder"] / "directions", "massive")
    assert rows["dimension"].tolist() == [DIMENSION, OTHER]
    assert not rows["removed"].any()
    assert found["metrics"]["auroc_test"] < 0.75
    assert found["directions"].strength_unit(found["activations"], LAYER) == found["activations"].mean_norm(LAYER)


def test_without_massive_dimensions_nothing_changes(planted):
    one, other = planted(Plant), planted(Plant, massive="keep")
    assert one["metrics"] == other["metrics"]
    assert len(results.read(one["folder"] / "directions", "massive")) == 0
    for name, values in other["directions"]._arrays.items():
        assert np.array_equal(values, one["directions"]._arrays[name], equal_nan=True), name
    assert one["directions"].methods == (methods.RECIPE, *DirectionsConfig().baselines)


def test_the_rule_is_the_one_that_is_stated():
    values = np.random.default_rng(0).normal(size=(200, 50))
    assert len(massive.find(values).dimensions) == 0
    values[:, 3] += 30
    found = massive.find(values)
    assert found.dimensions.tolist() == [3]
    assert found.ratio[0] == pytest.approx(30, rel=0.1)
    assert found.norm[0] == pytest.approx(900 / 950, rel=0.02)
    assert not found.dominate, "it holds less than 95% of the squared norm, and little of the variance"
    values[:, 3] += 30
    assert massive.find(values).dominate
    assert len(massive.find(np.zeros((4, 6))).dimensions) == 0


def test_controls_have_nothing_in_massive_dimensions_and_are_the_same_without():
    rng = np.random.default_rng(0)
    rows, directions = rng.normal(size=(500, 20)), rng.normal(size=(4, 20))
    rows[:, 7] *= 1000
    rows[:, 2] *= 5
    families = random_families(300, directions, rows, lambda name: np.random.default_rng(1), [7])
    for name, vectors in families.items():
        assert vectors.shape == (300, 20)
        assert not vectors[:, 7].any(), name
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    size = np.sqrt((families["isotropic"] ** 2).mean(axis=0))
    assert size[2] / np.median(size) > 3, "drawn in units of each dimension's standard deviation"
    before = random_families(9, directions, rows, lambda name: np.random.default_rng(1))
    assert np.abs(before["isotropic"]).min() > 0

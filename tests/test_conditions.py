"""Conditions are values: equal when they say the same, in the order of the arrays that are measured under them."""

from __future__ import annotations

from typing import Any

import numpy as np
from affectlens.interventions.conditions import Condition, grid


def test_a_grid_has_the_order_of_an_array_of_vectors_by_strengths() -> None:
    vectors: list[tuple[str, Any]] = [("sad", "direction"), ("0", "isotropic"), ("1", "isotropic")]
    strengths = (0.1, 0.2)
    found = np.array([(each.vector, each.family, each.strength) for each in grid(vectors, strengths)], dtype=object)
    assert found.reshape(3, 2, 3)[1, :, 2].tolist() == [0.1, 0.2]
    assert found.reshape(3, 2, 3)[:, 0, 0].tolist() == ["sad", "0", "1"]


def test_conditions_are_keys() -> None:
    assert {Condition("sad", "direction", 0.1): 1}[Condition("sad", "direction", 0.1)] == 1
    assert Condition() == Condition("", "none", 0.0)

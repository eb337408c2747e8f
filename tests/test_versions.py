"""A stage whose code changed has a new version, or somebody said that its results are the same."""

from __future__ import annotations

import ast
import json

import pytest
from affectlens.study import STAGES
from refresh_versions import RECORD, ROOMS, code, current, sources, unnoticed


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_code_of_a_stage_is_the_one_that_its_version_was_given_for(stage):
    recorded, present = json.loads(RECORD.read_text(encoding="utf-8")), current()
    assert recorded.get(stage.name) == present[stage.name], (
        f"the code of stage `{stage.name}` changed: raise its version if its results change and run `python "
        "tests/refresh_versions.py`; if they are the same, run it with --same-results"
    )


def test_every_stage_has_its_rooms():
    for stage in STAGES:
        assert set(ROOMS) >= {stage.name}
        assert stage.__module__.removeprefix("affectlens.") in sources(stage)
    directions = next(stage for stage in STAGES if stage.name == "directions")
    assert "probing.methods" in sources(directions)
    assert not any(name.startswith("sae.") for name in sources(directions))


def test_comments_and_docstrings_are_no_code():
    plain = "def f(x):\n    return x + 1\n\nLEAST = 3\n"
    told = '"""A module."""\n\ndef f(x):\n    """Add."""\n    # so\n    return x + 1\n\nLEAST = 3\n"""Why."""\n'
    assert code(ast.parse(plain)) == code(ast.parse(told))
    assert code(ast.parse(plain)) != code(ast.parse(plain.replace("+ 1", "+ 2")))
    assert code(ast.parse('def f():\n    """Only a docstring."""\n')) == code(ast.parse("def f():\n    pass\n"))


def test_a_change_without_a_version_is_unnoticed_and_one_with_it_is_not():
    recorded = {"a": {"version": 1, "code": "x"}, "b": {"version": 1, "code": "x"}}
    present = {"a": {"version": 1, "code": "y"}, "b": {"version": 2, "code": "y"}, "c": {"version": 1, "code": "z"}}
    assert unnoticed(recorded, present) == ["a"]
    assert unnoticed(recorded, recorded) == []

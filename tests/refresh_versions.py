"""Writes down the code of every stage, so that a change of it without a change of its ``version`` is noticed.

``python tests/refresh_versions.py`` after raising the version of a stage whose results change;
``python tests/refresh_versions.py --same-results`` after a change that leaves every result as it was.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from affectlens.stage import Stage
from affectlens.study import STAGES
from test_architecture import imports, modules, room

RECORD = Path(__file__).parent / "versions.json"
ROOMS = {
    "corpus": {"corpus"},
    "activations": {"activations", "model"},
    "sae": {"sae"},
    "directions": {"probing", "stats"},
    "match": {"probing", "stats"},
    "compare": {"probing", "stats"},
    "writers": {"probing", "stats"},
    "geometry": {"probing", "stats"},
    "causal": {"interventions", "model", "stats"},
    "circuit_units": {"circuits", "model", "stats"},
    "circuit_sizes": {"circuits", "model", "stats"},
    "circuits": {"circuits", "model", "stats"},
    "modulation": {"circuits", "model", "stats"},
    "monitor": {"monitor", "model", "stats"},
    "shape_arms": {"shaping", "monitor", "model"},
    "shape": {"shaping", "monitor", "model", "probing", "stats"},
    "measure": {"experiments", "model"},
    "grade": {"experiments"},
    "conclude": {"experiments", "stats"},
    "report": {"report"},
}
"""Where the code lies that decides a stage's result, besides its own module."""


def code(tree: ast.Module) -> str:
    """What a module does: neither its comments nor its docstrings, wherever its lines break."""
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        for block in ("body", "orelse", "finalbody"):
            statements = getattr(node, block, None)
            if isinstance(statements, list):
                setattr(node, block, [each for each in statements if not _is_text(each)] or [ast.Pass()])
    return ast.unparse(tree)  # unlike ast.dump the same in every version of Python


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def sources(stage: type[Stage[Any, Any]]) -> list[str]:
    """The stage's module and what it reaches in its rooms, by name."""
    start = stage.__module__.removeprefix("affectlens.")
    # Analyses are registered by their names, so that nothing imports them.
    named = [name for name in modules() if stage.name == "conclude" and name.startswith("experiments.conclude.")]
    reached, pending = {start, *named}, [start, *named]
    while pending:
        for target in imports(pending.pop()):
            if room(target) in ROOMS[stage.name] and target not in reached:
                reached.add(target)
                pending.append(target)
    return sorted(reached)


@cache
def code_of(module: str) -> str:
    """The same by name; many stages share a module."""
    return code(modules()[module])


def digest(stage: type[Stage[Any, Any]]) -> str:
    """sha256 over the code that decides the stage's result."""
    text = "\n".join(f"{name}\n{code_of(name)}" for name in sources(stage))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def current() -> dict[str, dict[str, Any]]:
    """Version and code of every stage as they are."""
    return {stage.name: {"version": stage.version, "code": digest(stage)} for stage in STAGES}


def unnoticed(recorded: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Stages whose code changed and whose version did not."""
    return [
        name
        for name, now in present.items()
        if name in recorded and recorded[name]["code"] != now["code"] and recorded[name]["version"] == now["version"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--same-results", action="store_true", help="the changes leave every result as it was")
    given = parser.parse_args()
    recorded = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    present = current()
    changed = unnoticed(recorded, present)
    if changed and not given.same_results:
        raise SystemExit(
            f"the code of {', '.join(changed)} changed, the version did not; raise it where results change, or give "
            "--same-results"
        )
    RECORD.write_text(json.dumps(present, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

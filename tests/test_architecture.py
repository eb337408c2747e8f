"""The layer rule, the size of modules and functions: what a reader may rely on when changing one room."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path

import affectlens

PACKAGE = Path(affectlens.__file__).parent
LAYERS = (
    ("errors", "files", "config", "disk", "results", "settings", "shipped", "startup"),
    ("stats",),
    ("corpus", "model"),
    ("stage",),
    ("activations",),
    ("sae", "probing"),
    ("interventions",),
    ("circuits", "monitor", "shaping"),
    ("experiments",),
    ("report",),
    ("stages",),
    ("study",),
    ("plan", "sweep"),
    ("run",),
    ("use",),
    ("tracking", "cluster", "compare", "serve", "explorer", "explanations"),
    ("api", "cli", "console", "entry", "everyday"),
)
"""From the ground up. A room imports rooms of its own layer and of those below. The report lies below the stages: one
of them writes it, from results and nothing else."""
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
ABOVE_STAGES = ("study", "cli")
"""The only rooms that may import stages."""
MODULE_LINES, FUNCTION_LINES = 500, 80

KNOWN: set[tuple[str, str]] = set()
"""Edges (module, room) that still break the rule. One that is gone has to leave this list; no new one may enter."""
KNOWN_CIRCULAR: set[tuple[str, str]] = set()
"""Edges between modules of one room that close a circle; likewise."""
KNOWN_LARGE: set[str] = set()
"""Modules and functions that are still too large; likewise."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, ast.Module]:
    return {
        name_of(path): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "__init__.py"
    }


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of the package that a module imports anywhere: at its top, in functions, under TYPE_CHECKING."""
    targets = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import; name the module in full"
            targets |= {f"{node.module}.{alias.name}" for alias in node.names}
            targets.add(str(node.module))
    inside = {target.removeprefix("affectlens.") for target in targets if target.startswith("affectlens.")}
    return frozenset(name for target in inside if (name := nearest(target)) and name != module)


def nearest(target: str) -> str:
    """The module that an import's target is, or lies in."""
    return target if target in modules() else target.rpartition(".")[0] if "." in target else ""


def room(module: str) -> str:
    return module.partition(".")[0]


def violations() -> set[tuple[str, str]]:
    return {
        (module, room(target))
        for module in modules()
        for target in imports(module)
        if RANK[room(target)] > RANK[room(module)]
        or (room(target) == "stages" != room(module) and room(module) not in ABOVE_STAGES)
    }


def test_every_room_has_a_layer():
    assert sorted({room(module) for module in modules()} - set(RANK)) == []


def test_no_room_imports_one_above_it():
    assert sorted(violations() - KNOWN) == [], "imports against the layer rule"
    assert sorted(KNOWN - violations()) == [], "no longer there; take it out of KNOWN"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path from a node back to itself; empty where there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        done.add(node)
        return next((found for target in sorted(graph[node]) if (found := walk(target, [*path, node]))), [])

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_no_module_imports_itself_through_others():
    graph = {
        module: {target for target in imports(module) if (module, target) not in KNOWN_CIRCULAR} for module in modules()
    }
    assert circle(graph) == []
    for module, target in KNOWN_CIRCULAR:
        assert circle({**graph, module: graph[module] | {target}}), "no longer circular; take it out of KNOWN_CIRCULAR"


def test_no_room_imports_itself_through_others():
    graph: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        for target in imports(module):
            edge = (module, room(target))
            if room(target) != room(module) and edge not in KNOWN:
                graph[room(module)].add(room(target))
                graph.setdefault(room(target), set())
    assert circle(dict(graph)) == []


def test_a_circle_would_be_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    path = circle(graph)
    assert path[0] == path[-1]
    assert all(target in graph[node] for node, target in pairwise(path))
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_nothing_is_called_utils():
    words = {"util", "utils", "helpers", "misc", "common"}
    assert [module for module in modules() if words & set(module.split("."))] == []


def large() -> set[str]:
    found = set()
    for module, tree in modules().items():
        path = PACKAGE.joinpath(*module.split("."))
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if len(source.read_text(encoding="utf-8").splitlines()) > MODULE_LINES:
            found.add(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    found.add(f"{module}.{node.name}")
    return found


def test_no_module_and_no_function_is_too_large():
    assert sorted(large() - KNOWN_LARGE) == [], f"more than {MODULE_LINES} or {FUNCTION_LINES} lines"
    assert sorted(KNOWN_LARGE - large()) == [], "small enough now; take it out of KNOWN_LARGE"

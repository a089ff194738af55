"""Imports run down the floors of the house: no circle, no arrow up, wherever in a file the import stands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# From the top. A module may import from its own floor and from those below it.
FLOORS = (
    ("cli", "__main__", "__init__", "api"),
    ("commands",),
    ("demo", "tools"),
    ("run",),
    ("rehearsal",),
    ("training",),
    ("scoring",),
    ("supervision",),
    ("data",),
    ("model",),
    ("recipe",),
    (
        "kernels", "endings", "errors", "signals", "console", "choices", "version", "sizes", "printable", "outside",
        "whole_file", "wrapping", "resampling", "intervals", "cores", "to_device", "unspaced",
        "cards", "asked_card",
    ),
)  # fmt: skip
HEIGHT = {name: -floor for floor, names in enumerate(FLOORS) for name in names}
# Training runs from the command line, Python's interface, the demo and the tests alone; a tool works on what a run
# needs or has left.
FORBIDDEN = {("tools", "run")}

Graph = dict[str, set[str]]
Arrow = tuple[str, str]


@cache
def imported(source: str) -> frozenset[str]:
    """Every module that a file imports, and every name it takes from one, as dotted names."""
    return frozenset(_imports(ast.parse(source)))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports here are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph_of(sources: dict[str, str]) -> Graph:
    """Module → our modules that it imports. ``from package import module`` imports the module."""
    graph: Graph = {}
    for module, source in sources.items():
        found = {name for name in imported(source) if name in sources}
        taken_from = {name.rpartition(".")[0] for name in found}
        graph[module] = {name for name in found if name not in taken_from or name == module} - {module}
    return graph


def our_sources() -> dict[str, str]:
    """Every module of the two packages with its text."""
    sources = {}
    for root, package in ((ROOT, "basic_lite"), (ROOT / "kernels", "basic_lite_kernels")):
        for file in (root / package).rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = file.read_text(encoding="utf-8")
    return sources


def floor_of(module: str) -> str:
    """The name under which a module's floor is listed."""
    package, *rest = module.split(".")
    if package == "basic_lite_kernels":
        return "kernels"
    return rest[0] if rest else "__init__"


def arrows_up(graph: Graph) -> set[Arrow]:
    """Imports from a lower floor of a higher one, and those that are forbidden by name."""
    return {
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if HEIGHT[floor_of(module)] < HEIGHT[floor_of(target)] or (floor_of(module), floor_of(target)) in FORBIDDEN
    }


def circles(graph: Graph) -> list[set[str]]:
    """Sets of modules that reach one another."""
    reached = {module: _reached(graph, module) for module in graph}
    found: list[set[str]] = []
    for module in graph:
        circle = {other for other in reached[module] if module in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    left = [start]
    while left:
        new = graph[left.pop()] - seen
        seen |= new
        left += new
    return seen


def test_every_module_is_on_a_floor() -> None:
    assert {floor_of(module) for module in our_sources()} <= set(HEIGHT)


def test_no_import_runs_up() -> None:
    assert arrows_up(graph_of(our_sources())) == set()


def test_a_bench_imports_no_test() -> None:
    """What supports tests is for benches too."""
    imports = re.compile(r"^\s*(?:from|import) tests(?!\.support\b)", re.MULTILINE)
    assert [file for file in (ROOT / "bench").rglob("*.py") if imports.search(file.read_text(encoding="utf-8"))] == []


def test_no_import_circle() -> None:
    assert circles(graph_of(our_sources())) == []


def test_imports_are_seen_wherever_they_stand() -> None:
    graph = graph_of(
        {
            "basic_lite.data.a": "def f():\n    from basic_lite.run import train\n",
            "basic_lite.run": "if TYPE_CHECKING:\n    import basic_lite.data.a\n",
            "basic_lite.data": "",
            "basic_lite.tools.b": "from basic_lite.data import a\nimport basic_lite.run, os\n",
        }
    )
    assert graph["basic_lite.data.a"] == {"basic_lite.run"}
    assert graph["basic_lite.run"] == {"basic_lite.data.a"}
    assert graph["basic_lite.tools.b"] == {"basic_lite.data.a", "basic_lite.run"}
    assert arrows_up(graph) == {("basic_lite.data.a", "basic_lite.run"), ("basic_lite.tools.b", "basic_lite.run")}
    assert circles(graph) == [{"basic_lite.data.a", "basic_lite.run"}]


def test_a_circle_within_a_floor_is_found() -> None:
    graph = {"basic_lite.model.a": {"basic_lite.model.b"}, "basic_lite.model.b": {"basic_lite.model.c"}}
    assert circles(graph | {"basic_lite.model.c": set()}) == []
    graph["basic_lite.model.c"] = {"basic_lite.model.a"}
    assert circles(graph) == [set(graph)] and arrows_up(graph) == set()

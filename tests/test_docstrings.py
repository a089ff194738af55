"""Docstrings of public functions say what is raised."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def unsaid(code: str) -> Iterator[str]:
    """Public functions that raise what they don't catch themselves, without a word of it."""
    for function in public(ast.parse(code)):
        nodes = list(own(function.body))
        caught = {ast.unparse(node.type) for node in nodes if isinstance(node, ast.ExceptHandler) and node.type}
        errors = [node.exc for node in nodes if isinstance(node, ast.Raise) and node.exc]
        raised = {ast.unparse(error.func if isinstance(error, ast.Call) else error) for error in errors}
        if raised - caught and "Raises:" not in (ast.get_docstring(function) or ""):
            yield f"{function.name}: {', '.join(raised)}"


def public(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node) if isinstance(node, ast.ClassDef) else [node]


def own(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Nodes of a function, without those of functions and classes in it."""
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node
            yield from own([*ast.iter_child_nodes(node)])


def test_docstrings_say_what_is_raised() -> None:
    """Those of commands are their help."""
    places = [*(ROOT / "kernels").rglob("*.py"), *(ROOT / "basic_lite").rglob("*.py")]
    found = [f"{path}: {one}" for path in places if path.parent.name != "commands"
             for one in unsaid(path.read_text(encoding="utf-8"))]  # fmt: skip
    assert not found, "\n".join(found)


CAUGHT = "try: raise A\n  except A: return"


@pytest.mark.parametrize("body", ["raise A", "x = 1; raise A(1)", "'Raises: A'; raise A", "def g(): raise A", CAUGHT])
def test_an_unsaid_error_is_found(body: str) -> None:
    found = [*unsaid(f"class C:\n def f():\n  {body}\n def _f(): raise A")]
    assert found == ["f: A"] * (body in ("raise A", "x = 1; raise A(1)"))

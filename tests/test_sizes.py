"""Files and functions stay short."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, BESIDE = ("basic_lite", "kernels"), ("bench", "tests")
MOST_LINES, MOST_OF_A_FUNCTION, MOST_OF_THE_MEAN = 400, 80, 13


def sources(folders: tuple[str, ...]) -> dict[str, str]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


@cache
def functions(source: str) -> dict[str, int]:
    """The lines of each function, by its name and its first line; an inner function counts in its outer one too."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{node.name}, line {node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in nodes}


def test_files_and_functions_are_short() -> None:
    texts = sources(PACKAGE + BESIDE)
    assert {name.split("/")[0] for name in texts} == {*PACKAGE, *BESIDE}
    assert [name for name, text in texts.items() if len(text.splitlines()) > MOST_LINES] == []
    lines = {f"{name}: {at}": n for name, text in texts.items() for at, n in functions(text).items()}
    assert {at: n for at, n in lines.items() if n > MOST_OF_A_FUNCTION} == {}


def test_the_mean_function_is_short() -> None:
    lines = [n for text in sources(PACKAGE).values() for n in functions(text).values()]
    assert sum(lines) / len(lines) <= MOST_OF_THE_MEAN


def test_lines_are_counted_to_the_end_of_a_function() -> None:
    source = "class A:\n    async def f(self):\n" + "        x = 1\n" * MOST_OF_A_FUNCTION + "\n\ndef g(): ...\n"
    assert functions(source) == {"f, line 2": MOST_OF_A_FUNCTION + 1, f"g, line {MOST_OF_A_FUNCTION + 5}": 1}

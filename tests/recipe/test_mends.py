"""Messages name a key with its value as it is typed on the command line: ``key=value``. One form, in all of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import basic_lite
from basic_lite.recipe import describe_keys

ROOT = Path(basic_lite.__file__).parent
# `set training.micro_batch: 2`; a message may begin with the key that it is about.
KEY = "|".join([r"\{key\}", *(re.escape(row.name) for row in describe_keys())])
MEND = re.compile(rf"(?<=[\w,;(] )({KEY}): (?=\S)|^({KEY}): \w+$")


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and texts of a module's messages: its strings without documentation."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(
                    str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
                    for part in node.values
                ),
            )
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (documentation | inside)
        ):
            yield node.lineno, node.value


def test_the_pattern_finds_what_it_should() -> None:
    assert MEND.search("no such thing; set training.micro_batch: 2") and MEND.search("set {key}: {instead}")
    assert MEND.search("{key}: drop") and not MEND.search("{key}: {problem}")
    assert not MEND.search("data.train: 3 records; set training.micro_batch=2")


@pytest.mark.long
def test_a_key_with_its_value_is_written_as_it_is_typed() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted(ROOT.rglob("*.py"))
        for line, text in texts(ast.parse(path.read_text(encoding="utf-8")))
        if MEND.search(text)
    ]
    assert not found, "\n".join(found)

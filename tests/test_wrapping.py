"""Lines on a terminal: broken between words, never inside a command that someone is to copy."""

import ast
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from basic_lite.commands.common import note
from basic_lite.console import speaker
from basic_lite.wrapping import _COMMAND, wrapped

# What the program says, and the command in it.
SAID = [
    (
        "stopped, saved in runs/de/checkpoint-2; "
        "continue with: basic-lite train de.yaml data.bad_records=drop --resume",
        "basic-lite train de.yaml data.bad_records=drop --resume",
    ),
    (
        "finished: 20 steps in 3 s, loss 3.1 → 2.0; the trained model is runs/demo/stage2/final; "
        "ask it: basic-lite chat runs/demo/stage2 PICTURE",
        "basic-lite chat runs/demo/stage2 PICTURE",
    ),
    (
        "the model goes first: "
        'basic-lite chat runs/photos "my photos/cat on the sofa.jpg" "What is this, please?"; or so',
        'basic-lite chat runs/photos "my photos/cat on the sofa.jpg" "What is this, please?"',
    ),
    ("no configuration is here; fetch it: hf download a/b config.json, then again", "hf download a/b config.json"),
    (
        "with several, `accelerate launch --multi_gpu -m basic_lite train x.yaml`",
        "accelerate launch --multi_gpu -m basic_lite train x.yaml",
    ),
    (
        "next, your own photos: `basic-lite data FOLDER` looks at them and writes a recipe, which says what it needs",
        "basic-lite data FOLDER",
    ),
]


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize(("text", "command"), SAID)
def test_no_command_is_broken(
    text: str, command: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    speaker(console)(text)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    note(text)
    for shown in (console.file.getvalue(), capsys.readouterr().err):  # type: ignore[attr-defined]
        assert command in shown
        assert shown.split() == text.split()
        # A stop or a backtick may stand on each side of a command.
        assert all(
            len(line) <= max(width, len(command) + 2 if command in line else len(line.split()[0]))
            for line in shown.splitlines()
        )


def test_a_command_that_a_sentence_follows_stands_in_backticks() -> None:
    """Of the program's own texts. The words behind a command without backticks are taken for its arguments."""
    bare = [
        f"{file}: {command[0]}"
        for file in (Path(__file__).parents[1] / "basic_lite").rglob("*.py")
        for text in texts(file)
        for command in _COMMAND.finditer(text)
        if text[: command.start()][-1:] != "`"
        and re.search(r" (an?|and|in|is|it|looks|most|of|or|shows|the|with)\b", command[0])
    ]
    assert not bare


def texts(file: Path) -> Iterator[str]:
    """A file's texts but for docstrings; {} for what is filled in."""
    parts: set[ast.AST] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr):
            parts.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            yield "".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.value


def test_what_is_no_command_is_broken() -> None:
    text = "its projector joins patches, and basic-lite trains LLaVA's projector on pictures of one size"
    assert max(map(len, wrapped(text, 40))) <= 40
    assert wrapped("  one two three", 10) == ["  one two", "  three"]
    assert wrapped("one two three", 10, "  ") == ["one two", "  three"]
    assert wrapped("色は何 ですか", 8) == ["色は何", "ですか"]
    assert wrapped("x" * 25, 10) == ["x" * 25] and wrapped("x" * 25, 10, fold=True) == ["x" * 10, "x" * 10, "x" * 5]

"""Answers on a narrow terminal: lines break between words, and each piece is printed when it comes."""

from __future__ import annotations

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from basic_lite.tools.chat.dialogue import Dialogue
from basic_lite.tools.chat.lines import Lines
from basic_lite.tools.chat.speaker import Manner
from basic_lite.tools.chat.terminal import ask
from tests.support.chat import Parrot

WORDS = st.lists(st.text(alphabet="abcé.", min_size=1, max_size=9) | st.just("\n"), max_size=20)


@given(words=WORDS, width=st.integers(10, 20))
def test_words_stay_whole_and_nothing_is_lost(words: list[str], width: int) -> None:
    lines = Lines(width)
    pieces = [word if before == "\n" else f" {word}" for before, word in zip(["\n", *words], words, strict=False)]
    text = "".join(map(lines.take, pieces))
    assert text.split() == " ".join(words).split()
    assert all(cell_len(line) <= width for line in text.split("\n"))
    # No line is broken too early: the next word would not have had room.
    paragraphs = [line.split() for line in " ".join(words).split("\n")]
    greedy: list[str] = []
    for paragraph in paragraphs:
        greedy.append("")
        for word in paragraph:
            if greedy[-1] and len(greedy[-1]) + 1 + len(word) > width:
                greedy.append(word)
            else:
                greedy[-1] += f" {word}" if greedy[-1] else word
    assert [line.strip() for line in text.split("\n")] == greedy


def test_each_piece_comes_at_once() -> None:
    lines = Lines(10)
    assert [lines.take(piece) for piece in ("a", " red", " circle", "\n", "left ", "of it")] == [
        "a", " red", "\ncircle", "\n", "left", " of it"]  # fmt: skip
    assert Lines(10).take("extraordinarily long") == "extraordinarily\nlong"
    assert Lines(None).take("a very long answer indeed\n") == "a very long answer indeed\n"


def test_scripts_without_spaces_fill_the_line() -> None:
    lines = Lines(9)
    pieces = [lines.take(piece) for piece in ("红", "色", "的圆形", " in", "圈")]
    assert pieces == ["红", "色", "的圆\n形", " in", "圈"]
    assert "".join(pieces).replace("\n", "") == "红色的圆形 in圈"


def test_chat_breaks_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, expected in ((True, "a red\ncircle\n"), (False, "a red circle\n")):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((10, 24)))
        dialogue = Dialogue()
        ask(Parrot(), dialogue, Manner(), "what ?")
        assert out.getvalue() == expected
        assert dialogue.messages[-1].text == "a red circle"

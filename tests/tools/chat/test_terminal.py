"""The conversation in a terminal or a pipe."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from basic_lite.console import note
from basic_lite.errors import UserError
from basic_lite.tools.chat.command import chat
from basic_lite.tools.chat.dialogue import Dialogue, Message
from basic_lite.tools.chat.speaker import Manner
from basic_lite.tools.chat.terminal import HELP, converse
from tests.support.chat import Parrot


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Type lines, at a keyboard or through a pipe; returns what came to stdout and to stderr."""

    def talk(parrot: Parrot, *lines: str, keyboard: bool = True, manner: Manner | None = None) -> tuple[str, str]:
        stdin = Keyboard if keyboard else io.StringIO
        monkeypatch.setattr("sys.stdin", stdin("".join(line + "\n" for line in lines)))
        converse(parrot, Dialogue(), manner or Manner(), None)
        out, err = capsys.readouterr()
        return out, err

    return talk


def test_a_run_answers_one_question_or_many(
    trained: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(str(trained), [str(images / "1.png"), "what colour is it ?"], device="cpu")
    assert capsys.readouterr().out == "it is blue\n"
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(f"what colour is it ?\n/clear\n/image {images / '2.png'}\nwhat is it\n")
    )
    chat(str(trained), [str(images / "1.png")], device="cpu")
    blue, green = capsys.readouterr().out.splitlines()
    assert blue == "it is blue" and "green" in green


def test_history_goes_on_and_starts_again(talk: Any, images: Path) -> None:
    parrot = Parrot()
    red, blue = images / "0.png", images / "1.png"
    out, err = talk(
        parrot, "one", f"/image {red}", f'/image "{blue}" {red}', "two", "three", "/clear", "four", "", "no more"
    )
    assert out == "a red circle\n" * 4
    assert [[m.text for m in asked if m.role == "user"] for asked in parrot.asked] == [
        ["one"],
        ["one", "two"],
        ["one", "two", "three"],
        ["four"],
    ]
    assert [len(m.pictures) for m in parrot.asked[2]] == [0, 0, 3, 0, 0]
    assert parrot.asked[2][1] == Message("assistant", "a red circle")
    assert "[3 pictures] > " in err and f"{red} goes with the next question" in err


def test_commands(talk: Any) -> None:
    parrot = Parrot()
    out, err = talk(parrot, "/help", "/imge x", "/image", "/image nowhere.png", "/image 'half", "/quit", "one")
    assert out == "" and parrot.asked == []
    assert HELP in err and "no command /imge" in err and "/image needs the path" in err
    assert "no picture nowhere.png; correct its path\n" in err and "no picture 'half" in err


@pytest.mark.parametrize("word", ["quit", "exit", "Quit", "/quit", ""])
def test_words_that_end_it(talk: Any, word: str) -> None:
    parrot = Parrot()
    talk(parrot, word, "one")
    assert parrot.asked == []


def test_a_dropped_picture_is_not_asked(talk: Any, images: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "my cat.png"
    shutil.copy(images / "0.png", spaced)
    for line in (
        str(images / "0.png"),
        str(spaced),
        f"'{spaced}'",
        str(spaced).replace(" ", "\\ "),
        f'"{spaced}" ' * 2,
    ):
        parrot = Parrot()
        _, err = talk(parrot, line)
        assert parrot.asked == [] and f"that is a picture; /image {line.strip()} adds it to the next question" in err
        talk(parrot, f"/image {line}", "one")
        assert parrot.asked[0][0].pictures[0].name in ("0.png", "my cat.png")
    parrot = Parrot()
    talk(parrot, f"is {spaced} red ?")
    assert len(parrot.asked) == 1


def test_a_name_with_spaces_or_a_quote(
    talk: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quote of an existing one, and the words of a missing one, were taken for a mistake of another kind."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(images / "0.png", "my cat's.png")
    parrot = Parrot()
    _, err = talk(parrot, "/image my cat's.png", "one", "/image my cats.png")
    assert [one.name for one in parrot.asked[0][0].pictures] == ["my cat's.png"]
    assert "error: there is no picture my cats.png; did you mean my cat's.png?" in err and err.count("error") == 1


def test_a_picture_before_its_question_is_told_the_order(talk: Any, images: Path) -> None:
    parrot, picture = Parrot(), images / "0.png"
    _, err = talk(parrot, f"{picture} what is it ?")
    assert f"{picture} is a picture: /image {picture} adds it, and then comes the question" in err and not parrot.asked


@pytest.mark.skipif(sys.platform == "win32", reason="its terminals are others")
def test_a_pasted_text_is_one_question_with_its_empty_lines() -> None:
    """An empty line ended the conversation, and the shell ran what came after it."""
    import pty

    readline = pytest.importorskip("readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip("libedit knows no pasted text")
    terminal, screen = pty.openpty()
    program = "import basic_lite.tools.chat.terminal; print(repr(input('> ')))"
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=screen, stdout=screen, stderr=screen, env=environment
    ) as process:
        said = b""
        while b"> " not in said:
            said += os.read(terminal, 1000)
        # A terminal marks what is pasted where it was asked to.
        begin, end = (b"\x1b[200~", b"\x1b[201~") if b"\x1b[?2004h" in said else (b"", b"")
        os.write(terminal, begin + b"one\n\ntwo" + end + b"\r")
        process.wait(60)
        said += os.read(terminal, 10_000)
    os.close(terminal)
    os.close(screen)
    assert b"'one\\n\\ntwo'" in said


def test_a_pasted_command_ends_with_its_line(
    talk: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question below a pasted `/image` was taken for more pictures."""
    spaced = tmp_path / "my photo.png"
    shutil.copy(images / "0.png", spaced)
    question = f"what is\n\n/image {images / '1.png'} ?"
    lines = [f"/image {spaced}\n/image {images / '1.png'}\n\n{question}", "/image gone.png\nwhat is it ?", ""]
    monkeypatch.setattr("basic_lite.tools.chat.terminal.next_line", lambda *_: lines.pop(0))
    parrot = Parrot()
    _, err = talk(parrot)
    (asked,) = parrot.asked  # not about a picture that isn't there
    assert asked[-1].text == question and [len(one.pictures) for one in asked] == [2]
    assert err.count("error: ") == 1 and "there is no picture gone.png; correct its path" in err


def test_a_mistyped_picture_is_not_asked(talk: Any, images: Path) -> None:
    parrot = Parrot()
    _, err = talk(parrot, "gone.png", f"{images / '0.png'} gone.jpg", "/far/gone.jpg", "is gone.png red ?")
    assert "no picture gone.png; correct" in err and "no picture gone.jpg" in err and "no picture /far/gone.jpg" in err
    assert [asked[-1].text for asked in parrot.asked] == ["is gone.png red ?"]


def test_an_empty_pipe_has_no_question(talk: Any) -> None:
    with pytest.raises(UserError, match="no question: standard input is empty"):
        talk(Parrot(), keyboard=False)
    talk(Parrot(), keyboard=True)


def test_patterns(talk: Any, images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "0.png", tmp_path / "a[1].png")
    parrot = Parrot()
    _, err = talk(parrot, f"/image {images}/[01].png {tmp_path}/a[1].png", f"/image {images}/*.bmp", "one")
    assert [image.name for image in parrot.asked[0][0].pictures] == ["0.png", "1.png", "a[1].png"]
    assert f"no picture {images}/*.bmp" in err


def test_pictures_are_counted_and_missed(talk: Any, images: Path) -> None:
    _, err = talk(Parrot(), "one", "/clear", f"/image {images / '0.png'}", "two", "three")
    assert err.count("(no picture given)") == 1
    assert err.count("[1 picture] > ") == 3  # "two", "three", and the end


def test_a_broken_picture_does_not_end_a_pipe(talk: Any, images: Path) -> None:
    parrot = Parrot()
    lines = ("/image nowhere.png", "one", "gone.png", "/imge x", f"/image {images / '0.png'}", "two")
    out, err = talk(parrot, *lines, keyboard=False)
    assert out == "a red circle\n" * 2 and [m.text for m in parrot.asked[1] if m.role == "user"] == ["one", "two"]
    assert "error: there is no picture nowhere.png" in err and "error: there is no picture gone.png" in err
    assert "error: there is no command /imge" in err and len(parrot.asked[1][-1].pictures) == 1


def test_an_error_ends_a_pipe_and_not_a_conversation(talk: Any) -> None:
    parrot = Parrot()
    out, err = talk(parrot, "one", "refuse", "two")
    assert out == "a red circle\n" * 2 and "error: the conversation is too long" in err
    assert [m.text for m in parrot.asked[1] if m.role == "user"] == ["one", "two"]  # the refused one isn't kept
    with pytest.raises(UserError, match="too long"):
        talk(Parrot(), "one", "refuse", "two", keyboard=False)


def test_a_pipe_sees_answers_alone(talk: Any) -> None:
    assert talk(Parrot(), "one", "two", keyboard=False) == ("a red circle\n" * 2, "(no picture given)\n")


def test_an_answer_that_is_cut_says_so(talk: Any) -> None:
    _, err = talk(Parrot("word " * 50), "one", manner=Manner(max_new_tokens=5))
    assert "(cut: it has 5 tokens; --max-new-tokens allows more)" in err
    assert "cut" not in talk(Parrot(), "one")[1]


def test_control_c_ends_the_answer_alone(talk: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    parrot = Parrot("word " * 400, interrupted_at=60)
    talk(parrot, "one", "two")
    assert signal.getsignal(signal.SIGINT) is before
    kept = parrot.asked[1][1].text
    assert [m.text for m in parrot.asked[1]] == ["one", kept, "two"]
    assert ("word " * 400).startswith(kept) and 3 <= len(kept.split()) <= 61


def test_a_question_stopped_before_its_answer_is_taken_back(talk: Any, images: Path) -> None:
    parrot = Parrot(" " * 300 + "late", interrupted_at=3)
    _, err = talk(parrot, f"/image {images / '0.png'}", "one", "two")
    assert "the question is taken back" in err
    assert [[m.text for m in asked] for asked in parrot.asked] == [["one"], ["two"]]
    assert len(parrot.asked[1][0].pictures) == 1  # it goes with the next question


@pytest.mark.parametrize("columns", [40, 80])
def test_notes_break_between_words(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Keyboard()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    text = "there is no picture :cat: [b].png; correct its path, or leave the picture out and ask about another one"
    note(text)
    lines = screen.getvalue().splitlines()
    assert [word for line in lines for word in line.split()] == text.split()
    assert len(lines) > 1 and all(len(line) <= columns for line in lines)


def test_an_empty_answer_is_said(talk: Any) -> None:
    """A model may answer nothing, which looks like a fault of the program."""
    for words in ("", " "):
        _, err = talk(Parrot(words), "one")
        assert "(nothing: the answer is empty)" in err
    _, err = talk(Parrot(), "one")
    assert "(nothing" not in err

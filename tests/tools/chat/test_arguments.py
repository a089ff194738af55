"""Which words are pictures, which is the question, and what is said of a mistyped path."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from basic_lite.errors import UserError
from basic_lite.tools.chat.arguments import pictures_and_question


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name in ("a.png", "my cat.jpg", "bare", "folder/b.png"):
        Image.new("RGB", (4, 4)).save(name, "PNG")
    Path("text.txt").write_text("no picture")


@pytest.mark.parametrize(
    ("words", "option", "pictures", "question"),
    [
        ([], None, [], None),
        (["a.png"], None, ["a.png"], None),
        (["a.png", "what is it?"], None, ["a.png"], "what is it?"),
        (["a.png", "my cat.jpg", "bare"], None, ["a.png", "my cat.jpg", "bare"], None),
        (["what is it?"], None, [], "what is it?"),
        (["colour"], None, [], "colour"),
        (["a.png"], "what", ["a.png"], "what"),
        (["a.png", "is it red and/or blue?"], None, ["a.png"], "is it red and/or blue?"),
        (["a.png", "Say it, e.g."], None, ["a.png"], "Say it, e.g."),
        ([], "b.png", [], "b.png"),
    ],
)
def test_words(words: list[str], option: str | None, pictures: list[str], question: str | None) -> None:
    found, asked = pictures_and_question(words, option)
    assert ([image.name for image in found], asked) == (pictures, question)


@pytest.mark.parametrize(
    ("words", "option", "says"),
    [
        (["b.png"], None, "no picture b.png"),
        (["a.png", "my dog.jpg"], None, "no picture my dog.jpg"),
        (["a.png", "photos/b"], None, "no picture photos/b"),
        (["b.png", "what is it?"], None, "no picture b.png"),
        (["a.png folder/b.png", "what?"], None, "several in one pair of quotes: quote each on its own$"),
        (["what is it?", "a.png"], None, r'pictures first, then the question: a\.png "what is it\?"$'),
        (["a.png", "what", "is", "it", "my cat.jpg"], None, r"""the question: a\.png "my cat\.jpg" "what is it"$"""),
        (["a.png", "what", "colour", "is", "it"], None, 'question of several words in quotes: "what colour is it"$'),
        (["what", "is", "red/blue"], None, 'in quotes: "what is red/blue"$'),
        (["a.png", ""], None, "the question is empty"),
        (["", "a.png"], None, "the question is empty"),
        (["the", "image."], "describe", r'in quotes: --question "describe the image\."$'),
        (["a.png", "the", "image."], "describe", r'in quotes: a\.png --question "describe the image\."$'),
        (["a.png", "what is it?"], "what", r"no picture what is it\?"),
        (["holiday.heic"], None, "no picture holiday.heic"),
        (["folder"], None, r"folder is a folder; name pictures in it, as in folder/\*\.png$"),
        (["my", "cat.jpg", "what", "is", "it"], None, r'name with spaces in quotes: "my cat\.jpg" "what is it"$'),
        (["a.png", "my", "cat.jpg"], None, r'name with spaces in quotes: a\.png "my cat\.jpg"$'),
        (["my", "cat.jpg"], "what?", r'name with spaces in quotes: "my cat\.jpg" --question "what\?"$'),
        (["foldr/b.png"], None, r"no picture foldr/b\.png; did you mean folder/b\.png\?"),
        ([], "a.png", "a.png is a picture; put it before"),
        (["text.txt", "what?"], None, "text.txt can't be used as a picture"),
        (["a.png", " "], None, "empty"),
        (["a.png"], "", "empty"),
    ],
)
def test_refused(words: list[str], option: str | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        pictures_and_question(words, option)

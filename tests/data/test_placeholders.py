"""Marks of other programs where a picture stands: taken as `<image>` where it is clear, else refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from basic_lite.data.conversation import IMAGE, conversation
from basic_lite.data.problems import BadPlaceholders
from basic_lite.data.sources import load_records
from basic_lite.recipe.schema import SourceSection

TWO = ["a.png", "b.png"]


def asked(folder: Path, images: list[str], *questions: str, answer: str = "a") -> list[str]:
    """The human turns as the model gets them."""
    turns: list[Any] = [
        {"role": role, "content": text} for one in questions for role, text in (("user", one), ("assistant", answer))
    ]
    (folder / "a.json").write_text(json.dumps([{"images": images, "messages": turns}]), encoding="utf-8")
    record = load_records(SourceSection(path="a.json"), root=folder)[0]
    return [turn.text.replace(IMAGE, "<image>") for turn in conversation(record) if turn.role == "human"]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("<image_1>", "<image_2>"), ("<image 1>", "<image 2>"), ("<|image_1|>", "<|image_2|>"), ("<Image>", "<Image>"),
        ("<image>", "<image>"), ("<IMAGE>", "<IMAGE>"), ("<Image_1>", "<Image 2>"), ("<image1>", "<image2>"),
    ],
)  # fmt: skip
def test_marks_that_are_taken(tmp_path: Path, one: str, two: str) -> None:
    assert asked(tmp_path, ["a.png"], f"{one}\nWhat is it?") == ["<image>\nWhat is it?"]
    assert asked(tmp_path, TWO, f"From {one} to {two}?") == ["From <image> to <image>?"]
    assert asked(tmp_path, TWO, f"{one} What?", f"And {two}?") == ["<image>\nWhat?", "<image>\nAnd ?"]


@pytest.mark.parametrize(
    ("images", "text", "found"),
    [
        (["a.png"], "<image_2> What?", "have '<image_2>' but it has 1 picture;"),
        (["a.png"], "<image_0> What?", "have '<image_0>' but it has 1 picture;"),
        (["a.png"], "<image_1> or <image_1>?", "have '<image_1> <image_1>' but it has 1 picture;"),
        (TWO, "<image_2> or <image_1>?", "have '<image_2> <image_1>' but it has 2 pictures;"),
        (TWO, "<Image> What?", "have '<Image>' but it has 2 pictures;"),
        (TWO, "<Image> or <image 1>?", "have '<Image> <image 1>' but it has 2 pictures;"),
        (TWO, "<image> or <image 1>?", "have '<image 1>' but it has 2 pictures, and <image> besides;"),
        (["a.png"], "<img> What?", "have '<img>', another program's mark"),
        (["a.png"], "<|vision_start|><|image_pad|><|vision_end|>What?", "have '<|vision_start|> <|image_pad|> <|vis"),
        (["a.png"], "<|vision_start|><image><|vision_end|>What?", "have '<|vision_start|> <|vision_end|>', another"),
        (["a.png"], "<img_1> or <Picture 1>?", "have '<img_1> <Picture 1>', another program's mark"),
        (["a.png"], "<|image|>What?", "have '<|image|>', another program's mark"),
        (["a.png"], "What is in [Image 1]?", "have '[Image 1]', another program's mark"),
        (["a.png"], "[IMG]What?", "have '[IMG]', another program's mark"),
        (["a.png"], "(<image>./</image>)\nWhat?", "have '</image>', another program's mark"),
    ],
)
def test_marks_that_are_refused(tmp_path: Path, images: list[str], text: str, found: str) -> None:
    with pytest.raises(BadPlaceholders) as caught:
        asked(tmp_path, images, text)
    told = str(caught.value)
    assert told.startswith("a.json, record 1: its questions ") and found in told and "write <image> " in told


@pytest.mark.parametrize("word", ["<image_1>", "<img>", "<|image_pad|>", "[IMG]", "<Image>"])
def test_words_stay_words(tmp_path: Path, word: str) -> None:
    """Of records without pictures and of answers; and, where `<image>` stands for each picture, of HTML."""
    assert asked(tmp_path, [], f"What is {word}?") == [f"What is {word}?"]
    assert asked(tmp_path, ["a.png"], "Write it.", answer=f"{word} in full") == ["<image>\nWrite it."]
    if word in ("<image_1>", "<img>", "<Image>"):
        assert asked(tmp_path, ["a.png"], f"<image>\nWhat is {word}?") == [f"<image>\nWhat is {word}?"]


@pytest.mark.parametrize(
    "text", ["<|" + "image" * 100_000, "<image" * 100_000, "<image" + " " * 300_000, "[IMG" * 100_000]
)
def test_long_texts_take_no_time(tmp_path: Path, text: str) -> None:
    started = time.process_time()
    assert asked(tmp_path, ["a.png"], f"{text} x") == [f"<image>\n{text} x"]
    assert time.process_time() - started < 1

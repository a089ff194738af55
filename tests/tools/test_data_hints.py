"""What `basic-lite data` says about columns that aren't used: no picture and no list of options is taken for a text."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from basic_lite.tools.data.command import _meaning
from basic_lite.tools.data.look import Found


def test_hints_name_no_picture_and_no_options_as_the_answer() -> None:
    source = SimpleNamespace(sources=[None])
    known = {"image": "image", "question": "question", "answer": "answer"}
    found = Found(source, "", known, ("image_path", "choices"), False, ())  # type: ignore[arg-type]
    assert _meaning(found)[1] == "columns that aren't used: 'image_path', 'choices'"
    (_, line) = _meaning(replace(found, unused=("options", "image_id", "correct_choice_idx", "wort")))
    assert line.endswith("(to take another one: data.train.columns.answer=wort)")
    # A question without an answer lacks an answer, not a conversation.
    (_, line) = _meaning(replace(found, columns={"image": "image", "question": "question"}, unused=("wort",)))
    assert line.endswith("(to take another one: data.train.columns.answer=wort)")
    (_, line) = _meaning(replace(found, columns={"image": "image"}))
    assert "columns.answer=NAME" in line

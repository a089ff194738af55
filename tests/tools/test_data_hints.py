"""What `basic-lite data` says about columns that aren't used: which are no text, and which tell parts apart."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from basic_lite.data.sources import load_records
from basic_lite.recipe.schema import SourceSection
from basic_lite.tools.data.command import _meaning, data
from basic_lite.tools.data.look import CAPTION_PROMPTS, LABEL_PROMPTS, Found, look, short_answers
from tests.support.data import write_image


def test_hints_name_no_picture_and_no_options_as_the_answer() -> None:
    source = SimpleNamespace(sources=[None])
    known = {"image": "image", "question": "question", "answer": "answer"}
    found = Found(source, "", known, ("image_path", "choices"), False, ())  # type: ignore[arg-type]
    assert _meaning(found)[1] == "columns that aren't used: 'image_path', 'choices'"
    assert _meaning(replace(found, unused=("local_path", "source_url")))[1].endswith("'local_path', 'source_url'")
    (_, line) = _meaning(replace(found, unused=("options", "image_id", "correct_choice_idx", "wort")))
    assert line.endswith("(to take another one: data.train.columns.answer=wort)")
    # A question without an answer lacks an answer, not a conversation.
    (_, line) = _meaning(replace(found, columns={"image": "image", "question": "question"}, unused=("wort",)))
    assert line.endswith("(to take another one: data.train.columns.answer=wort)")
    (_, line) = _meaning(replace(found, columns={"image": "image"}))
    assert "columns.answer=NAME" in line


def test_a_column_split_is_told_with_its_counts() -> None:
    write_image(Path("a.png"))
    rows = "".join(f"a.png,a red circle,{part}\n" for part in ("train", "train", "val", ""))
    Path("list.csv").write_text("image,caption,split\n" + rows)
    console = Console(file=io.StringIO(), width=1000)
    data(Path("list.csv"), base="demo_photos", console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "note: a run trains on all parts alike, whatever the column 'split' says (train 2, val 1); write" in said
    assert "columns that aren't used: 'split'\n" in said  # it is no text


@pytest.mark.parametrize(
    ("answer", "short"),
    [
        ("a red ball", True), ("a red ball on the grass", False), ("黑猫", True), ("一只黑猫睡在红色的椅子上。", False),
        ("草の上で眠る黒い猫です。", False), ("빨간 공", True), ("풀밭 위에 있는 빨간 공", False), ("", True),
    ],
)  # fmt: skip
def test_words_are_counted_in_scripts_without_spaces_too(answer: str, short: bool) -> None:
    write_image(Path("a.png"))
    Path("list.json").write_text(json.dumps([{"image": "a.png", "caption": answer}] * 3), encoding="utf-8")
    section = SourceSection(path="list.json")
    if answer:
        assert short_answers(load_records(section, root=Path.cwd()), range(3)) == short
    assert look(section).prompts == (LABEL_PROMPTS if short else CAPTION_PROMPTS)

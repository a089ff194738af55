"""Records with what can't be trained on: each is refused with its mend, and what only looks like one is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from basic_lite.data.conversation import IMAGE, conversation
from basic_lite.data.memory import records_of
from basic_lite.data.problems import RecordProblem
from basic_lite.data.record import Record
from basic_lite.data.sources import load_records
from basic_lite.recipe.schema import SourceSection

Row = dict[str, Any]
ASKED, SAID = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}
TALK = {"messages": [ASKED, SAID]}
PAIR = {"question": "What is it?", "answer": "A cat."}
BAD = {"role": "assistant", "content": "A dog."}
EXPECTED = [("human", "What is it?"), ("gpt", "A cat.")]


def read(row: Row, folder: Path | None = None, **columns: str) -> Record:
    """The record of a row, out of a program or a file."""
    if folder is None:
        return records_of([row], None)[0]
    (folder / "data.json").write_text(json.dumps([row]), encoding="utf-8")
    return load_records(SourceSection(path="data.json", columns=columns), root=folder)[0]


def said(record: Record) -> list[tuple[str, str]]:
    return [(turn.role, turn.text.replace(IMAGE, "<image>")) for turn in conversation(record)]


def refusal(row: Row, folder: Path | None = None, **columns: str) -> str:
    with pytest.raises(RecordProblem) as caught:
        read(row, folder, **columns)
    told = str(caught.value)
    assert caught.value.mend and len(told) < 400
    return told


def asking(*parts: Any, **of_turn: Any) -> Row:
    return {"messages": [{"role": "user", "content": list(parts) if len(parts) > 1 else parts[0], **of_turn}, SAID]}


TEXT = {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**TALK, "videos": ["a.mp4"]}, "it has a video or sound ('videos': ['a.mp4'])"),
        ({**TALK, "video": "a.mp4"}, "'video': 'a.mp4'"),
        ({**TALK, "audios": ["a.wav"]}, "'audios'"),
        ({**TALK, "Audio": {"path": "a.wav", "bytes": None}}, "'Audio'"),
        ({**PAIR, "image": "a.png", "video_path": "a.mp4"}, "'video_path'"),
        (asking("What is it?", videos=["a.mp4"]), "turn 1 has a video or sound ('videos'"),
        (asking(TEXT, {"type": "video", "video": "a.mp4", "text": ""}), "turn 1 has a part of type video;"),
        (asking(TEXT, {"type": "input_audio", "text": None}), "turn 1 has a part of type input_audio"),
        (asking(TEXT, {"type": "video_url", "video_url": {"url": "a.mp4"}}), "turn 1 has a part of type video_url"),
        ({**asking("<video>What is it?"), "videos": []}, "turn 1 has <video> in its text"),
        ({**PAIR, "question": "<audio> What?", "audios": None}, "turn 1 has <audio> in its text"),
    ],
    ids=str,
)
def test_videos_and_sound_are_refused(row: Row, expected: str) -> None:
    told = refusal(row)
    assert expected in told and "videos and sound aren't trained; take the record out" in told


@pytest.mark.parametrize("empty", [None, "", " ", [], [None], [""], {"path": None, "bytes": None}, False, 7])
def test_a_column_for_videos_may_be_empty(empty: Any) -> None:
    assert said(read({**TALK, "videos": empty, "audio": empty})) == EXPECTED
    assert said(read({"messages": [{**ASKED, "videos": empty}, SAID]})) == EXPECTED
    page = asking("Explain the tag <video>.")
    assert said(read(page))[0] == ("human", "Explain the tag <video>.")


TURN, BAD_TURN = {"from": "gpt", "value": "A cat."}, {"from": "gpt", "value": "A dog."}


@pytest.mark.parametrize(
    ("row", "mend", "columns"),
    [
        ({"prompt": [ASKED], "chosen": [SAID], "rejected": [BAD]}, "columns.answer=chosen", {"answer": "chosen"}),
        (
            {"prompt": [ASKED, SAID, ASKED], "chosen": [SAID], "rejected": [BAD]},
            "data.train.columns.answer=chosen learns the preferred answers",
            {"answer": "chosen"},
        ),
        ({"question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}, "answer=chosen", {"answer": "chosen"}),
        ({"instruction": "What is it?", "chosen": "A cat.", "rejected": "no"}, "answer=chosen", {"answer": "chosen"}),
        (
            {"chosen": [ASKED, SAID], "rejected": [ASKED, BAD]},
            "columns.conversations=chosen",
            {"conversations": "chosen"},
        ),
    ],
    ids=str,
)
def test_preferences_are_refused_and_the_key_learns_the_good_answers(
    row: Row, mend: str, columns: dict[str, str], tmp_path: Path
) -> None:
    told = refusal(row, tmp_path)
    assert "one that isn't ('rejected'), and only single answers are learned" in told and mend in told
    turns = said(read(row, tmp_path, **columns))
    assert turns[-2:] == EXPECTED and "A dog." not in str(turns)
    assert len(turns) == 2 * sum(one["role"] == "user" for one in row.get("prompt", [ASKED]) if isinstance(one, dict))


def test_a_preference_beside_a_conversation_says_what_to_write() -> None:
    talk = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}, {"from": "human", "value": "and?"}]
    row = {"conversations": talk, "chosen": TURN, "rejected": BAD_TURN}
    assert "add the preferred answer to the conversation as its last turn" in refusal(row)
    assert said(read({"conversations": [*talk, TURN], "chosen": TURN}))[-1] == ("gpt", "A cat.")
    # As ms-swift has it: the good answer is in the conversation already.
    assert said(read({**TALK, "rejected_response": "A dog."})) == EXPECTED
    assert said(read({**TALK, "chosen": None, "rejected": None})) == EXPECTED


@pytest.mark.parametrize(
    "row",
    [
        {**TALK, "label": False},
        {**TALK, "kto_tag": False},
        {"instruction": "q", "output": "a", "kto_tag": "false"},
        {"prompt": "q", "completion": "a", "label": False},
        {"prompt": [ASKED], "completion": [BAD], "label": False},
    ],
    ids=str,
)
def test_an_answer_that_is_marked_as_bad_is_refused(row: Row) -> None:
    told = refusal(row)
    assert "its answer is marked as a bad one" in told and "take the record out" in told
    good = {name: True if name in ("label", "kto_tag") else value for name, value in row.items()}
    assert conversation(read(good))[-1].role == "gpt"


@pytest.mark.parametrize("label", [True, None, 0, 1, "no", "false", "cat", 0.0, [False]])
def test_other_labels_beside_an_answer_mean_nothing(label: Any) -> None:
    assert said(read({**TALK, "label": label})) == EXPECTED
    assert said(read({**PAIR, "label": label})) == EXPECTED
    assert said(read({"prompt": "What is it?", "completion": "A cat.", "label": label})) == EXPECTED


@pytest.mark.parametrize("text", ["Picture 1: <img>p24.png</img>\nWhat is it?", "<img>a.jpg</img><img>b.jpg</img>"])
def test_pictures_in_qwen_vls_text_are_refused(text: str) -> None:
    for row in (asking(text), asking(TEXT, {"type": "text", "text": text}), {**PAIR, "question": text}):
        told = refusal(row)
        assert "turn 1 names a picture in its text ('<img>" in told
        assert "list the files in a column images, and write <image> in their places" in told
    assert "turn 1" in refusal({"instruction": "q", "output": "a", "history": [[text, "x"]]})
    page = 'What does <img src="a.png"> do?'
    assert said(read(asking(page)))[0] == ("human", page)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_path", "sub/a.png"), ("img", "a.JPG"), ("file_name", "a.jpeg"), ("image_url", "https://x.org/a?id=3"),
        ("Image File", "a.webp"), ("pictures", ["a.png", "b.png"]), ("image_paths", ["a.png"]), ("image_id", "7.jpg"),
        ("photo", {"path": "a.png", "bytes": None}), ("path", "a.png"), ("img", "data:image/png;base64,AA=="),
    ],
)  # fmt: skip
def test_a_picture_under_a_name_that_is_not_read_beside_a_conversation(name: str, value: Any, tmp_path: Path) -> None:
    for row in ({**TALK, name: value}, {**TALK, name: value, "image": None}, {**TALK, name: value, "images": []}):
        told = refusal(row)
        assert f"it has no picture, but {name!r} looks like one" in told
        assert f"set data.train.columns.image={name} if it is" in told
    if "http" not in str(value):
        row = {**TALK, name: value}
        assert len(read(row, tmp_path, image=name).images) == (len(value) if isinstance(value, list) else 1)


def test_a_picture_under_an_unusual_name_beside_question_and_answer() -> None:
    assert "columns.image=photo_path" in refusal({**PAIR, "photo_path": "a.png"})
    assert "columns.image=pic" in refusal({"instruction": "q", "output": "a", "pic": "https://x.org/a"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_id", 7), ("image_id", "7"), ("image_source", "coco"), ("file_name", "part-3.json"), ("path", "a/b"),
        ("image_url", None), ("images_n", 0), ("img", ""), ("image_size", [8, 6]), ("source", "a.png"),
        ("path", "https://x.org/a"), ("has_image", False), ("image_paths", []), ("file", "a page\nabout a.png"),
    ],
)  # fmt: skip
def test_what_is_no_picture_leaves_a_record_of_text(name: str, value: Any) -> None:
    assert said(read({**TALK, name: value})) == EXPECTED


@pytest.mark.parametrize("empty", [None, "", [], " "])
def test_what_is_filled_of_image_and_images(empty: Any, tmp_path: Path) -> None:
    for row in (TALK, PAIR):
        for one, other in (("image", "images"), ("images", "image")):
            for folder in (None, tmp_path):
                record = read({**row, one: empty, other: ["b.png"]}, folder)
                assert [image.name for image in record.images] == ["b.png"]
            assert said(read({**row, one: empty})) == EXPECTED
            assert said(read({**row, one: {"bytes": None, "path": None}, other: empty}, tmp_path)) == EXPECTED
            assert said(read({**row, one: [""]}, None)) == EXPECTED
    assert [one.name for one in read({**PAIR, "image": empty, "image_path": "b.png"}).images] == ["b.png"]


def test_image_and_images_that_differ_are_refused(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        for row in (TALK, PAIR):
            told = refusal({**row, "image": "a.png", "images": ["b.png"]}, folder)
            assert "it has different pictures under 'image' (" in told and "and 'images' (" in told
            assert "leave those of one of the two" in told
            assert len(read({**row, "image": "a.png", "images": ["a.png"]}, folder).images) == 1
            # A file's name beside its picture is an ordinary thing.
            assert len(read({**row, "image": "a.png", "file_name": "b.png"}, folder).images) == 1
            assert "'a.png'" in told and "'b.png'" in told
    assert "different" in refusal(asking("q", image="a.png", images=["b.png"]))


def test_pictures_in_numbered_columns_are_not_left_out(tmp_path: Path) -> None:
    """The second of `image,image2,question,answer` was never shown, and with image1 and image2 none was."""
    for row in (TALK, PAIR):
        for name in ("image2", "image_2", "image_1"):
            told = refusal({**row, "image": "a.png", name: "b.png"}, tmp_path)
            assert f"it has a picture under {name!r} too ('b.png'), and only 'image' is read; list all" in told
        told = refusal({**row, "image1": "a.png", "image2": "b.png"}, tmp_path)
        assert "it has no picture, but 'image1' looks like one ('a.png'); set data.train.columns.image=image1" in told
        assert len(read({**row, "image1": "a.png", "image2": "b.png"}, tmp_path, image="image1").images) == 1
        assert len(read({**row, "image": "a.png", "image2": None, "image_id": 2}, tmp_path).images) == 1
        assert len(read({**row, "image": "a.png", "image2": "a.png"}, tmp_path).images) == 1


@pytest.mark.parametrize(
    ("turn", "names", "asked"),
    [
        ({"content": "What is it?", "images": ["a.png"]}, "a", "<image>\nWhat is it?"),
        ({"content": "What is it?", "image": "a.png"}, "a", "<image>\nWhat is it?"),
        ({"content": "<image>What is it?", "images": ["a.png"]}, "a", "<image>\nWhat is it?"),
        ({"content": "Is <image> like <image>?", "images": ["a.png", "b.png"]}, "ab", "Is <image> like <image>?"),
        ({"content": "Which?", "images": ["a.png", "b.png"]}, "ab", "<image><image>\nWhich?"),
        ({"content": [{"type": "image"}, TEXT], "images": ["a.png"]}, "a", "<image>\nWhat is it?"),
        ({"content": "What is it?", "images": [], "image": ""}, "", "What is it?"),
        ({"content": "", "images": ["a.png"]}, "a", "<image>"),
    ],
    ids=str,
)
def test_a_turns_own_pictures(turn: Row, names: str, asked: str, tmp_path: Path) -> None:
    last = {"role": "user", "content": "And <image>?", "images": ["z.png"]}
    row = {"messages": [{"role": "user", **turn}, SAID, last, SAID]}
    for folder in (None, tmp_path):
        record = read(row, folder)
        assert [one.name.removesuffix(".png") for one in record.images] == [*names, "z"]
        assert [text for role, text in said(record) if role == "human"] == [asked, "<image>\nAnd ?"]
    # The record's own pictures go to the other places.
    mixed = {"messages": [{"role": "user", **turn}, SAID, {"role": "user", "content": "<image> And?"}, SAID]}
    mixed["images"] = ["y.png"]
    assert [one.name.removesuffix(".png") for one in read(mixed, tmp_path).images] == [*names, "y"]


def test_a_turns_own_pictures_that_do_not_fit_are_refused() -> None:
    told = refusal(asking("<image> and <image>", images=["a.png"]))
    assert "turn 1 has 1 picture of its own, and 2 places for them; write <image> once for each" in told
    told = refusal({"messages": [ASKED, {**SAID, "images": ["a.png"]}]})
    assert "turn 2 is no user's and has a picture; move the picture to a user's turn" in told
    assert "the record lists 1" in refusal({**asking("q", images=["a.png"]), "images": ["b.png"]})
    told = refusal(asking(TEXT, {"type": "text", "text": "What?", "image": "a.png"}))
    assert "turn 1 has a text and a picture in one part" in told and "write them as two parts" in told


def test_a_mapped_column_says_which_pictures_there_are(tmp_path: Path) -> None:
    row = {**TALK, "main": None, "image_path": "a.png"}
    assert said(read(row, tmp_path, image="main")) == EXPECTED
    assert "columns.image=image_path" in refusal(row, tmp_path)

"""Rows that a program holds may have whatever the same rows may have in a file, and PIL images and Paths besides."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from basic_lite.data.images import open_image
from basic_lite.data.memory import records_of
from basic_lite.data.problems import RecordProblem
from tests.support.data import write_image

FORMS = (
    "path", "absolute", "relative", "PIL", "bytes", "datasets, bytes", "datasets, path", "data URL", "file URL",
)  # fmt: skip


def forms(picture: Path) -> dict[str, Any]:
    data = picture.read_bytes()
    return {
        "path": picture,
        "absolute": str(picture),
        "relative": picture.name,
        "PIL": Image.open(picture),
        "bytes": data,
        "datasets, bytes": {"bytes": data, "path": None},
        "datasets, path": {"bytes": None, "path": str(picture)},
        "data URL": f"data:image/png;base64,{base64.b64encode(data).decode()}",
        "file URL": picture.as_uri(),
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_any_form_and_place(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", (7, 5), 1)
    held = forms(tmp_path / "a.png")[form]
    answer = {"role": "assistant", "content": "a ring"}

    def asked(part: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]

    parts = [{"type": "image", "image": held, "text": None}, {"type": "image_url", "image_url": {"url": held}}]
    rows = [{"image": held, "question": "what?", "answer": "a ring"}]
    rows += [{"messages": [*asked(part), answer]} for part in parts]
    rows += [
        {"prompt": asked(parts[0]), "completion": [answer]},
        {"images": [held], "messages": [*asked({"type": "image"}), answer]},
    ]
    records = records_of(rows, None)
    assert [open_image(image).size for record in records for image in record.images] == [(7, 5)] * len(rows)
    assert {record.turns[0].text for record in records} <= {"<image>\nwhat?", "what?"}


def test_what_is_no_picture_is_told_with_its_row() -> None:
    for held, says in (
        ("https://a.example/b.png", "record 1: the picture .* lies on the web; download it first"),
        (3.5, "record 1: a picture is a path, bytes or a PIL image, and this is 3.5"),
    ):
        for row in (
            {"image": held, "question": "what?", "answer": "x"},
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "image": held}]},
                    {"role": "assistant", "content": "x"},
                ]
            },
        ):
            with pytest.raises(RecordProblem, match=says):
                records_of([row], None)
    (empty,) = records_of([{"image": "", "question": "what?", "answer": "x"}], None)
    assert empty.images == ()


def test_a_folder_holds_the_pictures_of_messages_too(tmp_path: Path) -> None:
    write_image(tmp_path / "pics" / "a.png", (7, 5), 1)
    turns = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}, {"role": "assistant", "content": "x"}]
    (record,) = records_of([{"messages": turns}], tmp_path / "pics")
    assert open_image(record.images[0]).size == (7, 5)
    turns[0]["content"] = [{"type": "image", "image": "../a.png"}]
    with pytest.raises(RecordProblem, match="leaves the image folder"):
        open_image(records_of([{"messages": turns}], tmp_path / "pics")[0].images[0])

"""A picture that isn't there: what is nearly its name, or has it elsewhere, is told with what to write."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from basic_lite.data.images import ImageRef, locate
from basic_lite.data.pictures import image_at
from basic_lite.data.problems import BadImage
from tests.support.data import write_image


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("in/a", r"; there is 'a\.png'; write the endings behind the names$"),
        ("in/LICENSE", r"; there is 'license' beside it; rename one of the two$"),
        ("in/v1.5", r"; there is 'v1\.5\.png' beside it; rename one"),
        ("in/my%20b.png", r"; there is 'in/my b\.png'; write names as files have them, and not as web addresses do$"),
        ("in/a.png;in/c.png", r"; these are 2 names in one text; list them under `images` \(JSON or parquet\)$"),
        ("in/a.png in/c.png in/a.png", r"; these are 3 names in one text; list them"),
        ("/data/upload/1/a.png", r"leaves the image folder .*; 'a\.png' is in its folder 'in': write in/a\.png$"),
        ("/data/local-files/?d=in/a.png", r"leaves the image folder .*; 'a\.png' is in its folder 'in': write in/a"),
        ("C:\\Users\\me\\a.png", r"does not exist .*; 'a\.png' is in its folder 'in': write in/a\.png$"),
        ("a.png", r"does not exist .*; 'a\.png' is in its folder 'in': write in/a\.png$"),
        ("in/a.png;in/d.png", "; fetch it, or correct image_dir$"),
    ],
)
def test_what_was_meant(tmp_path: Path, name: str, mend: str) -> None:
    """All of these were to be fetched, or moved inside."""
    for one in ("a.png", "my b.png", "c.png", "v1.5.png"):
        write_image(tmp_path / "in" / one)
    (tmp_path / "in/license").touch()
    with pytest.raises(BadImage, match=mend):
        locate(ImageRef(name, str(tmp_path)))


def test_a_missing_picture_costs_few_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder of pictures each was asked whether it is a folder, and in one that isn't there endings were tried."""
    for number in range(30):
        (tmp_path / f"{number}.png").touch()
    looks: list[str] = []
    for name in ("isfile", "isdir"):
        real = getattr(os.path, name)
        monkeypatch.setattr(os.path, name, lambda path, real=real: looks.append(path) or real(path))
    with pytest.raises(BadImage, match="does not exist"):
        locate(ImageRef("gone/a.png", str(tmp_path)))
    assert 0 < len([one for one in looks if one.startswith(str(tmp_path))]) < 6


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xe0", b"\x89PNG"])
def test_a_picture_in_base64_without_its_kind_is_told(start: bytes, breaks: bool) -> None:
    """It was said to lie in no folder, or to leave it: a JPEG's base64 begins with /9j/."""
    data = start + bytes(range(256))
    text = (base64.encodebytes(data) if breaks else base64.b64encode(data)).decode()
    with pytest.raises(BadImage, match=r"base64 without its kind \('.*'\); write `data:image/jpeg;base64,` before it$"):
        image_at(text, "photos")
    assert image_at("a" * 250 + ".png", "photos").blob is None

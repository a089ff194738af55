"""Maps of every family through its own processor: where the tokens lie is known, and the picture is the one given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from basic_lite.supervision.picture_maps import PictureMaps
from basic_lite.tools.inspect.command import inspect
from tests.support.runs import quiet
from tests.support.vlm_folders import LACKING, PROCESSED, require_processor, write_llava_with_template, write_vlm

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
@pytest.mark.parametrize("name", ["LLaVA-1.5", *PROCESSED, *LACKING])
def test_the_picture_is_the_one_given(
    name: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_processor(name)
    write_llava_with_template(tmp_path / "vlm") if name == "LLaVA-1.5" else write_vlm(tmp_path / "vlm", name)
    width, height = size
    picture = Image.new("RGB", size, (200, 30, 30))
    picture.paste((30, 30, 200), (width // 2, 0, width, height))  # red on the left, blue on the right
    picture.save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "data.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
    seen: list[PictureMaps] = []
    monkeypatch.setattr("basic_lite.tools.inspect.maps.write_folder", lambda *words: seen.extend(words[-1]))
    inspect(
        str(tmp_path / "vlm"), data=tmp_path / "data.json", image_dir=tmp_path, maps=tmp_path / "out", device="cpu",
        console=quiet(),
    )  # fmt: skip
    assert seen and all(one.rows and one.name == "a.png" for one in seen)
    whole = [one for one in seen if not one.part or one.part in ("made small", "in tiles")] or seen[-1:]
    for one in whole:  # a tile by itself may be of one colour; the last one is the whole picture
        image = one.image()
        left, right = (image.getpixel((round(image.width * x), image.height // 2)) for x in (0.2, 0.8))
        assert left == pytest.approx((200, 30, 30), abs=60) and right == pytest.approx((30, 30, 200), abs=60), one.part

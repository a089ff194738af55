"""Several pictures in one sample: each map has its own picture's name, and parts are numbered within a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from basic_lite.model.families.lfm2_vl import LFM2_VL
from basic_lite.supervision.picture_maps import PictureMaps
from basic_lite.tools.inspect import maps
from basic_lite.tools.inspect.command import inspect
from tests.support.runs import quiet
from tests.support.vlm_folders import PROCESSED, require_processor, write_llava_with_template, write_vlm

COLOURS = {"red.png": (200, 30, 30), "blue.png": (30, 30, 200)}
SOME = ["LLaVA-NeXT", "Idefics3", "InternVL"]
REST = [pytest.param(name, marks=pytest.mark.soak) for name in ["LLaVA-1.5", *PROCESSED] if name not in SOME]


def maps_of(name: str, records: Sequence[Sequence[str]], folder: Path, patch: pytest.MonkeyPatch) -> list[PictureMaps]:
    """What `inspect --data` shows of a family's tiny model."""
    write_llava_with_template(folder / "vlm") if name == "LLaVA-1.5" else write_vlm(folder / "vlm", name)
    for file, colour in COLOURS.items():
        Image.new("RGB", (32, 32), colour).save(folder / file)
    data = []
    for images in records:
        asked = {"from": "human", "value": "<image>\n" * len(images) + "what ?"}
        data.append({"image": list(images), "conversations": [asked, {"from": "gpt", "value": "red"}]})
    (folder / "data.json").write_text(json.dumps(data))
    seen: list[PictureMaps] = []
    patch.setattr(maps, "write_folder", lambda *words: seen.extend(words[-1]))
    inspect(
        str(folder / "vlm"), data=folder / "data.json", image_dir=folder, maps=folder / "out", device="cpu",
        console=quiet(),
    )  # fmt: skip
    return seen


@pytest.mark.parametrize("name", [*SOME, *REST])
def test_each_map_has_its_own_pictures_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_processor(name)
    seen = maps_of(name, [["red.png", "blue.png"], ["blue.png"]], tmp_path, monkeypatch)
    for one in seen:
        assert one.image().getpixel((100, 100)) == pytest.approx(COLOURS[one.name], abs=4), (one.name, one.part)
    # Three pictures, one after another, each with its parts from the first to the last.
    parts: dict[int, list[str]] = {}
    for one in seen:
        parts.setdefault(one.number, []).append(one.part)
    assert list(parts) == [0, 1, 2]
    if name in ("Idefics3", "InternVL"):
        assert all(own == [f"part {n} of 5" for n in range(1, 6)] for own in parts.values())


def test_a_grid_that_is_not_known_has_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_views", lambda *given: None)
    (one,) = maps_of("LLaVA-1.5", [["red.png", "blue.png"]], tmp_path, monkeypatch)
    assert (one.name, one.rows, one.tokens) == ("red.png, blue.png", 0, 8)


THREE, TWO = [f"part {n} of 3" for n in (1, 2, 3)], ["part 1 of 2", "part 2 of 2"]
# As transformers' Lfm2VlProcessor writes them: 1 start, 2 end, 3 and 4 tiles, 5 the small copy, 9 a placeholder.
LFM2_TEXTS = [
    ([1, 3, 9, 9, 9, 9, 4, 9, 9, 9, 9, 5, 9, 9, 2, 1, 9, 9, 2], [0, 0, 0, 1], [*THREE, ""]),
    ([1, 9, 9, 9, 9, 2, 8, 1, 3, 9, 9, 9, 9, 5, 9, 9, 9, 9, 2, 8], [0, 1, 1], ["", *TWO]),
    # Without marks, with other texts behind the pictures, nothing says where one ends.
    ([9, 9, 9, 9, 8, 9, 9, 9, 9, 7], [0, 0], TWO),
]


@pytest.mark.parametrize(("ids", "pictures", "parts"), LFM2_TEXTS)
def test_lfm2s_parts_are_numbered_within_a_picture(ids: list[int], pictures: list[int], parts: list[str]) -> None:
    config = SimpleNamespace(image_token_id=9, downsample_factor=2, vision_config=SimpleNamespace(patch_size=4))
    tiles = [[4, 4] if len(pictures) < 4 or n < 2 else [2, 4] for n in range(len(pictures))]
    batch = {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.zeros(len(tiles), 16, 48),
        "spatial_shapes": torch.tensor(tiles),
    }
    views = LFM2_VL.views(config, batch)
    assert [view.picture for view in views] == pictures and [view.part for view in views] == parts

"""The page and the PNG files of token maps: whole, safe with any text, and each patch in its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from basic_lite import cli
from basic_lite.errors import UserError
from basic_lite.supervision.picture_maps import PictureMaps
from basic_lite.tools.inspect.command import inspect
from basic_lite.tools.maps.page import PAGE, png_names, require_own_folder, write_folder
from basic_lite.tools.maps.panels import COLOURS, HEAT
from basic_lite.tools.maps.png import GAP, PANEL, drawable, sheet
from tests.support.maps import drawn_maps
from tests.support.pages import PageText
from tests.support.runs import quiet, write_data
from tests.support.vlm_folders import write_llava_with_template, write_vlm

BAD = '"><script>alert(1)</script>{{ 7919*6007 }}'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA as transformers saves it, and five records."""
    folder = tmp_path_factory.mktemp("maps")
    write_llava_with_template(folder / "llava")
    write_data(folder, 5)
    return folder


def test_the_page_is_whole_and_safe_with_any_text(tmp_path: Path) -> None:
    odd = replace(drawn_maps(3, [BAD]), name=BAD, text=BAD, part=BAD)
    unknown = drawn_maps(2, ["dog"], rows=0)
    page = write_folder(tmp_path / "maps", BAD, [BAD], [odd, unknown, drawn_maps(24, ["dog", "cat"])])
    text = page.read_text(encoding="utf-8")
    found = PageText(text)
    assert not found.links and "<script" not in text and str(7919 * 6007) not in text
    assert "http:" not in text and "https:" not in text
    assert "Where the 4 visual tokens of this picture lie isn’t known" in found.text
    assert text.count('role="group"') == 2 * 4 and text.count('role="img"') == 2 + 3  # two pictures, three charts
    assert "good:" in found.text and "bad:" in found.text and "dog × 2" in found.text
    names = sorted(path.name for path in (tmp_path / "maps").glob("*.png"))
    assert len(names) == 3 and names[1:] == ["2_a.png", "3_a.png"]


def test_a_patch_has_its_colour_in_its_place(tmp_path: Path) -> None:
    """By hand: 24 × 24 patches of 14 pixels; patch 30 is the seventh of the second row."""
    one = drawn_maps(24, ["dog"])
    words = [["dog"] * 576, ["dog"] * 576, ["sky"] * 576]
    words[0][30] = "cat"
    one = replace(one, words=words, in_text=[[], [], []], sinks=[], attention=[0.5 * (n == 30) for n in range(576)])
    image = sheet(one, 0.5)
    x, y = round(6.5 * PANEL / 24), round(1.5 * PANEL / 24)

    def colour(panel: int, column: int, row: int) -> tuple[int, ...]:
        return image.getpixel((GAP + panel * (PANEL + GAP) + column, GAP + row))  # type: ignore[return-value]

    grey = 128 * 0.75
    assert colour(1, x, y) == pytest.approx([grey * 0.15 + part * 0.85 for part in HEAT], abs=3)
    assert colour(1, x + 14, y) == colour(1, x, y + 14) == pytest.approx([grey] * 3, abs=3)
    (dog, _, cat) = COLOURS[:3]  # by how often: dog, sky, cat
    assert colour(2, x, y) == pytest.approx([128 * 0.45 + part * 0.55 for part in cat], abs=3)
    assert colour(2, x - 14, y) == pytest.approx([128 * 0.45 + part * 0.55 for part in dog], abs=3)


def test_words_that_no_font_has_are_numbers() -> None:
    assert drawable("dog", 12)[0] == "dog" and drawable("a\U0010fffe", 12)[0] == "aU+10FFFE"
    assert list(png_names([drawn_maps(1, ["a"], name="../ä b.png"), replace(drawn_maps(1, ["a"]), name="狗.jpg")])) == [
        "1_b.png",
        "2.png",
    ]


def test_inspect_writes_maps_of_pictures(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("basic_lite.tools.inspect.conversations.DESCRIBED", 3)
    pictures = [str(place / "images" / f"{n}.png") for n in (0, 1)]
    options = ["--device", "cpu", "--maps", str(tmp_path / "out"), "--layers", "1, 4"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["inspect", str(place / "llava"), *pictures, *options])
    assert not stopped.value.code and "token maps of 2 samples" in capsys.readouterr().err
    text = PageText((tmp_path / "out" / PAGE).read_text(encoding="utf-8")).text
    assert "refinement curve has this score at v, after each layer and at v̂: the share of visual tokens whose" in text
    assert "over 2 samples, too few pictures for an interval, 16 at least: can't tell" in text
    assert "0.png" in text and "Nearest words after layer 4" in text and "after layer 2" not in text
    assert Image.open(tmp_path / "out" / "2_1.png").width == 3 * (PANEL + GAP) + GAP
    # Once more into the same folder, of fewer pictures: what was there goes.
    found = inspect(str(place / "llava"), pictures[:1], maps=tmp_path / "out", device="cpu", console=quiet())
    assert found.look is not None and sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_0.png", PAGE]


def test_inspect_writes_maps_of_data_in_tiles(place: Path, tmp_path: Path) -> None:
    """Qwen's processor cuts and merges patches; the picture is put together from them again."""
    write_vlm(tmp_path / "vlm", "Qwen2.5-VL")
    picture = Image.new("RGB", (32, 32), (200, 30, 30))
    picture.paste((30, 30, 200), (16, 0, 32, 8))
    picture.save(tmp_path / "a.png")
    records = [
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "red"}],
        }
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    seen: list[PictureMaps] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("basic_lite.tools.inspect.maps.write_folder", lambda *words: seen.extend(words[-1]) or tmp_path)
        inspect(
            str(tmp_path / "vlm"),
            data=tmp_path / "data.json",
            image_dir=tmp_path,
            maps=tmp_path / "out",
            device="cpu",
            console=quiet(),
        )
    (one,) = seen
    assert (one.name, one.rows, one.columns, one.attended) == ("a.png", 4, 4, 2) and "what ?" in one.text
    image = one.image()
    assert image.getpixel((250, 40)) == pytest.approx((30, 30, 200), abs=25)
    assert image.getpixel((250, 120)) == image.getpixel((80, 40)) == pytest.approx((200, 30, 30), abs=25)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": "1"}, "add --maps FOLDER"),
        ({"maps": "out", "layers": "one"}, "'one' is no list of layers"),
        ({"maps": "out", "layers": "1,5"}, "there is no layer 5; this LLM has layers 1 to 4"),
        ({"maps": "out", "layers": "0"}, "there is no layer 0"),
        ({"maps": "llava"}, "isn't empty, and its files are no token maps"),
        ({"maps": "data.json"}, "is a file; name a folder"),
        ({"maps": "out", "pictures": False}, "--maps shows what a model makes of pictures"),
    ],
)
def test_what_is_refused(options: dict[str, object], said: str, place: Path) -> None:
    options = dict(options)
    pictures = [str(place / "images" / "0.png")] if options.pop("pictures", True) else []
    if "maps" in options:
        options["maps"] = place / str(options["maps"])
    with pytest.raises(UserError, match=said):
        inspect(str(place / "llava"), pictures, device="cpu", console=quiet(), **options)  # type: ignore[arg-type]
    assert not (place / "out").exists()


def test_a_folder_of_maps_may_be_taken_again(tmp_path: Path) -> None:
    require_own_folder(tmp_path / "new")
    require_own_folder(tmp_path)
    write_folder(tmp_path, "x", [], [drawn_maps(2, ["dog"])])
    require_own_folder(tmp_path)
    (tmp_path / PAGE).write_text("my own")
    with pytest.raises(UserError, match="are no token maps"):
        require_own_folder(tmp_path)


def test_a_persons_own_files_stay(tmp_path: Path) -> None:
    """Those beside the page, one in the place of a PNG file of ours, one that has the new one's name, and a link."""
    write_folder(tmp_path, "x", [], [drawn_maps(2, ["dog"], name=f"{name}.png") for name in "abcd"])
    mine = ["2024-holiday.png", "2_b.png", "1_new.png", "3.png"]
    for name in mine:
        Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / name)
    (tmp_path / "4_d.png").rename(tmp_path / "5_renamed.png")
    (tmp_path / "4_d.png").symlink_to("5_renamed.png")
    kept = {name: (tmp_path / name).read_bytes() for name in [*mine, "4_d.png", "5_renamed.png"]}
    page = write_folder(tmp_path, "x", [], [drawn_maps(2, ["dog"], name="new.png")])
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert {path.name for path in tmp_path.iterdir()} == {*kept, PAGE, "1_new-2.png"}
    assert "as one picture: 1_new-2.png" in PageText(page.read_text(encoding="utf-8")).text
    write_folder(tmp_path, "x", [], [])
    assert {path.name for path in tmp_path.iterdir()} == {*kept, PAGE}


@pytest.mark.parametrize("listed", ["../a.png", "/etc/a.png", "1_a.png/../../a.png"])
def test_a_page_that_somebody_changed_deletes_nothing_elsewhere(listed: str, tmp_path: Path) -> None:
    page = write_folder(tmp_path / "out", "x", [], [drawn_maps(2, ["dog"])])
    (tmp_path / "a.png").write_bytes((tmp_path / "out" / "1_a.png").read_bytes())
    text = page.read_text(encoding="utf-8")
    assert text.count('content="1_a.png"') == 1
    page.write_text(text.replace('content="1_a.png"', f'content="{listed}"'), encoding="utf-8")
    write_folder(tmp_path / "out", "x", [], [drawn_maps(2, ["dog"])])
    assert (tmp_path / "a.png").exists() and (tmp_path / "out" / "1_a.png").exists()


def test_parts_of_one_picture_have_one_scale_of_heat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of one name in one text are still two."""
    given = [(0, 0.1), (0, 0.4), (1, 0.2)]
    parts = [replace(drawn_maps(1, ["dog"]), number=number, attention=[a]) for number, a in given]
    seen: list[float] = []
    monkeypatch.setattr(
        "basic_lite.tools.maps.page.sheet", lambda one, strongest: seen.append(strongest) or Image.new("RGB", (1, 1))
    )
    write_folder(tmp_path, "x", [], parts)
    assert seen == [0.4, 0.4, 0.2]

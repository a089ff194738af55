"""What a path means: files by their ending, folders by what is in them, pictures where they are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from basic_lite.data import guess
from basic_lite.data.guess import source_of
from basic_lite.data.images import open_image
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from tests.support.data import write_image


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    datasets.disable_progress_bars()


def given(section: Any) -> dict[str, Any]:
    """The keys that aren't as they are by default."""
    return section.model_dump(exclude_defaults=True)


def pictures(folder: str, *names: str) -> None:
    for name in names:
        write_image(Path(folder, name))


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def test_files() -> None:
    pictures("photos", "a.png", "b.png")
    write("photos/captions.csv", "image,caption\na.png,one\nb.png,two\n")
    write("away.csv", "image,caption\na.png,one\nb.png,two\n")
    write("photos/doubled.csv", "image,caption\nphotos/a.png,one\n")
    write("elsewhere/absolute.json", json.dumps([{"image": str(Path("photos/a.png").absolute()), "caption": "x"}]))
    assert given(source_of("photos/captions.csv", limit=1)) == {"path": "photos/captions.csv", "limit": 1}
    assert given(source_of("away.csv")) == {"path": "away.csv", "image_dir": "photos"}
    assert given(source_of("away.csv", image_dir="x")) == {"path": "away.csv", "image_dir": "x"}
    assert given(source_of("photos/doubled.csv")) == {"path": "photos/doubled.csv", "image_dir": "."}
    assert given(source_of("elsewhere/absolute.json")) == {
        "path": "elsewhere/absolute.json", "image_dir": "."}  # fmt: skip
    for name in ("photos/captions.csv", "away.csv", "photos/doubled.csv", "elsewhere/absolute.json"):
        (image,) = load_records(source_of(name), root=Path.cwd())[0].images
        assert open_image(image).size == (8, 6)


def test_folders(tmp_path: Path) -> None:
    pictures("one", "in/a.png")
    write("one/list.tsv", "image\tcaption\nin/a.png\tx\n")
    pictures("meta", "a.png")
    write("meta/metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n')
    pictures("split/train", "a.png")
    write("split/train/metadata.csv", "file_name,text\na.png,x\n")
    pictures("beside", "deep/a.JPG")
    write("beside/deep/a.txt", "x")
    rows = datasets.Dataset.from_dict({"question": ["q"], "answer": ["a"]})
    rows.save_to_disk("saved")
    datasets.DatasetDict({"val": rows}).save_to_disk("splits")
    rows.to_parquet(Path("hub/data/train-00000-of-00002.parquet"))
    rows.to_parquet(Path("hub/data/train-00001-of-00002.parquet"))
    rows.to_parquet(Path("hub/data/test-00000-of-00001.parquet"))
    rows.to_parquet(Path("odd [1]/x.parquet"))
    expected: dict[str, dict[str, str]] = {
        "one": {"path": "one/list.tsv"},
        "meta": {"folder": "meta"},
        "split": {"folder": "split"},
        "beside": {"folder": "beside"},
        "saved": {"saved": "saved"},
        "splits": {"saved": "splits", "split": "val"},
        "hub": {"parquet": "hub/data/train*.parquet"},
        "odd [1]": {"parquet": "odd [1]/x.parquet"},
    }
    for name, keys in expected.items():
        assert given(source_of(name)) == keys
        assert len(load_records(source_of(name), root=tmp_path)) == (2 if name == "hub" else 1)


def test_pictures_are_looked_for_elsewhere_too() -> None:
    pictures("far/photos", "a.png", "b.png")
    write("deep/down/list.csv", "image,caption\na.png,a cat\nb.png,a dog\n")
    assert given(source_of("deep/down/list.csv")) == {"path": "deep/down/list.csv"}
    found = source_of("deep/down/list.csv", also=[Path("nowhere"), Path("far/photos")])
    assert given(found) == {"path": "deep/down/list.csv", "image_dir": "far/photos"}
    pictures("deep/down", "a.png", "b.png")  # beside the file they come first
    assert "image_dir" not in given(source_of("deep/down/list.csv", also=[Path("far/photos")]))


def test_pictures_in_a_folder_beside_that_of_the_texts() -> None:
    """COCO's: annotations/ and train2017/. And where names lack their ending, the folder is found all the same."""
    pictures("coco/train2017", "a.png")
    write("coco/annotations/list.csv", "image,caption\na.png,a cat\n")
    write("coco/bare.csv", "image,caption\na,a cat\n")
    assert given(source_of("coco/annotations/list.csv"))["image_dir"] == "coco/train2017"
    assert given(source_of("coco/bare.csv"))["image_dir"] == "coco/train2017"


def test_where_all_pictures_are_found_no_other_folder_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures("all/b", "a.png")
    pictures("all/c", "a.png")
    write("all/list.csv", "image,caption\na.png,a cat\n")
    looked: list[str] = []
    there = guess._is_there
    monkeypatch.setattr(guess, "_is_there", lambda name, folder: looked.append(folder.name) or there(name, folder))
    assert given(source_of("all/list.csv"))["image_dir"] == "all/b" and looked == ["all", "b"]


def test_whole_paths_without_their_ending_are_found_where_they_lead(tmp_path: Path) -> None:
    """They counted as found in each folder, so the first one, beside the list, was taken."""
    pictures("far", "a.png")
    write("deep/down/list.csv", f"image,caption\n{(tmp_path / 'far' / 'a').as_posix()},a cat\n")
    assert given(source_of("deep/down/list.csv"))["image_dir"] == (tmp_path / "far").as_posix()


def test_what_is_no_data() -> None:
    pictures("bare", "a.png")
    write("several/a.csv", "")
    write("several/b.json", "")
    write("empty/notes.md", "")
    pictures("excel", "a.png")
    for name in ("captions.xlsx", "._captions.xlsx"):  # macOS writes the second
        write(f"excel/{name}", "")
    for name in ("table.xlsx", "list.csv.txt", "list.txt", "packed/00000.tar", "a.7z", "list.psv", "list.docx"):
        write(name, "")
    write("list.ndjson", '{"image": "a.png", "caption": "x"}\n')
    write("list", "image\tcaption\na.png\tx\n")
    cases = {
        "nowhere": "no such file or folder",
        "bare": r"1 picture, but no text; .*a.txt for a.png",
        "several": r"2 data files \(a.csv, b.json\); name one of them",
        "empty": "no data in this folder",
        "excel": r"^excel/captions\.xlsx: this kind of file isn't read .* save it as a table in UTF-8 \(in Excel",
        "bare/a.png": r"isn't read .*; name the folder that the pictures are in, bare\.$",
        "table.xlsx": "CSV UTF-8",
        # Windows hides endings.
        "list.csv.txt": r"; if it is a table, rename it to list\.csv\.$",
        "list.txt": r"; if it is a table, rename it to list\.csv\.$",
        "list.psv": r"; if it is a table, rename it to list\.csv\.$",
        "list.ndjson": r"; if it is JSON, rename it to list\.jsonl\.$",
        "list": r"; rename it to list\.tsv\.$",
        "list.docx": r"; name one of these\.$",
        "a.7z": r"; unpack it first\.$",
        "packed": r"^packed/00000\.tar: this kind .*; unpack it first\.$",
    }
    for name, expected in cases.items():
        with pytest.raises(UserError, match=expected):
            source_of(name)


def test_notes_beside_pictures_are_no_data() -> None:
    """img2dataset writes a text and a JSON file for each picture, and one of counts."""
    for number in range(3):
        pictures("shard", f"{number}.png")
        write(f"shard/{number}.txt", "x")
        write(f"shard/{number}.json", '{"caption": "x", "status": "success"}')
    write("shard/stats.json", '{"count": 3}')
    assert given(source_of("shard")) == {"folder": "shard"}
    write("shard/talk.json", json.dumps([{"image": "0.png", "caption": "x"}]))
    assert given(source_of("shard")) == {"path": "shard/talk.json"}


@pytest.mark.parametrize("ending", [".json", ".png.json", ".png.supplemental-metadata.json"])
def test_texts_in_json_beside_pictures_are_told(ending: str) -> None:
    """As img2dataset and Google's export of photos write them: one of these files was to be named as the data."""
    pictures("takeout", "a.png", "b.png")
    for name in "ab":
        write(f"takeout/{name}{ending}", '{"description": "x"}')
    said = rf"2 pictures, but no text; a{ending} lies beside a\.png, and no text is read from there; .*, as a\.txt\.$"
    with pytest.raises(UserError, match=said):
        source_of("takeout")


@pytest.mark.parametrize(
    ("text", "content", "expected"),
    [
        ("a.png.txt", "x", r"; a\.png\.txt lies beside a\.png, and the text's name must be a\.txt; rename them all so"),
        ("a.caption", "x", r"; a\.caption lies beside a\.png, and the text's name must be a\.txt; rename"),
        (
            "captions.txt",
            "image,caption\na.png,x\n",
            r"; captions\.txt is a table by its first line; rename it to captions\.csv",
        ),
        ("notes.txt", "x", r"; notes\.txt has no picture of the same name; write a text beside each"),
    ],
)
def test_texts_by_other_names_are_named(text: str, content: str, expected: str) -> None:
    pictures("other", "a.png", "b.png")
    write(f"other/{text}", content)
    with pytest.raises(UserError, match=f"^other: it has 2 pictures, but no text{expected}"):
        source_of("other")

"""Folders of pictures: texts beside them, or a metadata file of the `datasets` library."""

from __future__ import annotations

import os
import pickle
import re
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pytest

from basic_lite.data.images import locate, open_image
from basic_lite.data.problems import BadRecord
from basic_lite.data.records import Records
from basic_lite.data.sources import load_records
from basic_lite.data.walk import matching
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection
from tests.support.data import write_image


def load(root: Path, **keys: Any) -> Records:
    return load_records(SourceSection(folder="photos", **keys), root=root)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.png", "a.PNG", "deep/ä c.png", "no text.png", "empty.png", "latin.png", ".hidden.png"):
        write_image(folder / name)
    (folder / "b.txt").write_text("\ufeff a boat\n", encoding="utf-8")
    (folder / "a.TXT").write_bytes("an apple".encode("utf-16"))
    (folder / "deep" / "ä c.txt").write_text("a cät", encoding="utf-8")
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "alone.txt").write_text("no picture")
    return folder


def test_pictures_with_texts(tmp_path: Path, photos: Path) -> None:
    records = load(tmp_path, prompt="What is it?")
    places = [records.place(n) for n in range(len(records))]
    names = ["a.PNG", "b.png", "deep/ä c.png", "empty.png", "latin.png", "no text.png"]
    assert places == [f"photos/{name}" for name in names]
    assert [turn.text for turn in records[0].turns] == ["What is it?", "an apple"]
    assert records[1].answer == "a boat" and records[2].answer == "a cät"
    assert open_image(records[2].images[0]).size == (8, 6)
    assert records[2].place == "photos/deep/ä c.png"
    assert pickle.loads(pickle.dumps(records))[2] == records[2]
    assert records.notes == ["photos: a text has no picture of the same name and is left out: alone.txt"]
    expected = ["empty.txt beside it is empty", "latin.txt beside it isn't UTF-8", "there is no no text.txt beside it"]
    for index, words in zip((3, 4, 5), expected, strict=True):
        with pytest.raises(BadRecord) as caught:
            records[index]
        assert str(caught.value).startswith(f"{places[index]}: {words}")
    assert len(load(tmp_path, limit=2)) == 2


LEFT_OUT = "links to folders that are read already are left out: a, z/me, z/out, z/up"


@pytest.mark.parametrize("keys", [{"folder": "photos"}, {"parquet": "photos/**/*.parquet"}], ids=["folder", "pattern"])
def test_links_that_lead_back_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]) -> None:
    for place in ("photos/z/b", "other/c"):
        write_image(tmp_path / f"{place}.png").with_suffix(".txt").write_text("a boat")
        datasets.Dataset.from_dict({"question": ["q"], "answer": [place]}).to_parquet(tmp_path / f"{place}.parquet")
    for place, target in [("z/up", ".."), ("z/me", "."), ("a", "z"), ("out", "../other"), ("z/out", "../../other")]:
        (tmp_path / "photos" / place).symlink_to(target, target_is_directory=True)
    scandir, read = os.scandir, list[Any]()

    def few(path: Any = ".") -> Any:
        """Without this a walk in circles would go on for hours."""
        read.append(path)
        assert len(read) < 100
        return scandir(path)

    monkeypatch.setattr(os, "scandir", few)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    records = load_records(SourceSection(**keys), root=tmp_path)
    if "folder" in keys:
        assert [records.place(n) for n in range(len(records))] == ["photos/out/c.png", "photos/z/b.png"]
    else:
        assert [record.answer for record in records] == ["other/c", "photos/z/b"]
    assert records.notes == [f"{keys.get('folder', 'photos/**/*.parquet')}: {LEFT_OUT}"]


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_two_unicode_forms_are_one(tmp_path: Path, forms: tuple[Any, Any]) -> None:
    write_image(tmp_path / "photos" / unicodedata.normalize(forms[0], "Bäume.png"))
    (tmp_path / "photos" / unicodedata.normalize(forms[1], "Bäume.txt")).write_text("trees")
    records = load(tmp_path)
    assert records[0].answer == "trees" and records.notes == []
    write_image(tmp_path / "photos" / "cat.png")
    (tmp_path / "photos" / "Cat.txt").write_text("a cat")
    if not (tmp_path / "photos" / "cat.txt").exists():
        with pytest.raises(BadRecord, match=r"there is no cat\.txt beside it with its text; there is 'Cat\.txt'"):
            load(tmp_path)[1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_text_that_cannot_be_read_is_a_bad_record(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in "abc":
        write_image(folder / f"{name}.png")
    (folder / "a.txt").symlink_to("nowhere")
    os.mkfifo(folder / "b.txt")
    (folder / "c.txt").write_text("a cat")
    records = load(tmp_path)
    (folder / "c.txt").unlink()
    for index, reason in enumerate(["No such file", "it is not a file", "No such file"]):
        with pytest.raises(BadRecord, match=re.escape(f"{'abc'[index]}.txt beside it can't be read ({reason}")):
            records[index]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("split", ["", "train"])
def test_imagefolder(tmp_path: Path, kind: str, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "photos" / split
    write_image(folder / "in" / "a.png")
    rows = datasets.Dataset.from_dict({"file_name": ["in/a.png"], "text": ["a cat"]})
    path = folder / f"metadata.{kind}"
    {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[kind](path)
    records = load(tmp_path)
    assert Path(locate(records[0].images[0])) == folder / "in" / "a.png"
    assert records[0].answer == "a cat"
    first = {"csv": "line 2", "jsonl": "line 1", "parquet": "record 1"}
    inside = f"photos/{split}/" if split else "photos/"
    assert records.place(0).startswith(f"{inside}metadata.{kind}, {first[kind]}")


def test_a_split_is_that_of_its_own_folder(tmp_path: Path, photos: Path) -> None:
    (photos / "metadata.csv").write_text("file_name,text\ncat.jpg,whole\n")
    for split in ("train", "test"):
        (photos / split).mkdir()
        (photos / split / "metadata.csv").write_text(f"file_name,text\ncat.jpg,{split}\n")
    assert load(tmp_path)[0].turns[1].text == "whole"
    assert load(tmp_path, split="test")[0].turns[1].text == "test"
    with pytest.raises(UserError, match="photos: it has no split 'val', so all of it would be read; name that part's"):
        load(tmp_path, split="val")


def test_what_is_refused(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "bare").mkdir()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"folder": "nowhere"}, "^folder: there is no folder nowhere; put it there, or correct the path$"),
        ({"folder": "bare"}, "no picture in this folder"),
        ({"folder": "photos", "columns": {"answer": "text"}}, "remove `columns`"),
        ({"folder": "photos", "image_dir": "photos"}, "remove image_dir"),
        ({"folder": "photos", "path": "x.csv"}, "path and folder at once"),
        ({"folder": "photos", "prompt": ["a", " "]}, "a prompt is empty"),
        ({"path": "photos"}, "write `folder` instead"),
    ]
    for keys, expected in cases:
        with pytest.raises(UserError, match=expected):
            load_records(SourceSection(**keys), root=tmp_path)


@pytest.mark.parametrize("keys", [{"folder": "photos"}, {"parquet": "photos/**/*.parquet"}, {"parquet": "photos/*/a*"}])
def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]
) -> None:
    """What is in it would be missing. The program that runs the tests may read all, so the system's answer is made."""
    for place in ("a", "shut", "lost+found", ".hidden"):
        write_image(tmp_path / "photos" / place / "0.png").with_suffix(".txt").write_text("a text")
        data = datasets.Dataset.from_dict({"question": ["q"], "answer": ["a"]})
        data.to_parquet(str(tmp_path / "photos" / place / "a.parquet"))
    scandir, shut = os.scandir, ["lost+found", ".hidden"]

    def some(path: Any = ".") -> Any:
        if os.path.basename(os.fspath(path)) in shut:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", some)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert len(load_records(SourceSection(**keys), root=tmp_path)) == 2
    shut.append("shut")
    with pytest.raises(UserError, match=r"photos.shut can't be read \(Permission denied\)"):
        load_records(SourceSection(**keys), root=tmp_path)


@pytest.mark.parametrize(
    "pattern, walked",
    [
        ("data-*/p.parquet", {".", "data-1", "data-2"}),
        ("*-1/in/*.parquet", {".", "data-1", "data-1/in"}),
        ("data-[2]/**/p.parquet", {".", "data-2", "data-2/in", "data-2/in/deep"}),
        ("*.parquet", {"."}),
        (".d*/p.parquet", {".", ".data"}),
    ],
)
def test_a_pattern_leads_only_into_folders_that_match_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, walked: set[str]
) -> None:
    for place in ("data-1/in/deep", "data-2/in/deep", "secret/in", ".data/in"):
        (tmp_path / place).mkdir(parents=True)
    seen, walk = set[str](), os.walk

    def noted(top: Any, **keys: Any) -> Any:
        for place, folders, names in walk(top, **keys):
            seen.add(os.path.relpath(place, tmp_path).replace(os.sep, "/"))
            yield place, folders, names

    monkeypatch.setattr(os, "walk", noted)
    matching(tmp_path / pattern, [])
    assert seen == walked

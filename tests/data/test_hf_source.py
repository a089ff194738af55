"""`datasets` sources: parquet, saved folders, hub names, with column maps and every form of image column."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from basic_lite.data.images import open_image
from basic_lite.data.problems import RecordProblem
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection
from tests.support.data import write_image

TALK = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


def load(root: Path, **keys: Any) -> Any:
    return load_records(SourceSection(**keys), root=root)


def test_saved_with_image_features(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {
        "key": ["a", "b", "c"],
        "conversations": [TALK, TALK, [{"from": "human", "value": "q"}, TALK[1]]],
        "image": [Image.new("RGB", (4, 3), (9, 8, 7)), {"bytes": png((1, 2, 3)), "path": None}, None],
    }
    features = datasets.Features(
        {
            "key": datasets.Value("string"),
            "conversations": datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")}),
            "image": datasets.Image(),
        }
    )
    data = datasets.Dataset.from_dict(rows, features=features)
    data.select([2, 0, 1]).save_to_disk(str(tmp_path / "saved"))
    records = load(tmp_path, saved="saved", columns={"id": "key"})
    assert [r.id for r in records] == ["c", "a", "b"]
    assert [len(r.images) for r in records] == [0, 1, 1]
    assert records[1].turns[0].text == "<image>\nq"
    assert open_image(records[1].images[0]).getpixel((0, 0)) == (9, 8, 7)
    assert open_image(records[2].images[0]).getpixel((0, 0)) == (1, 2, 3)
    # Bytes stay in the memory-mapped file until they are decoded.
    assert not isinstance(records[1].images[0].blob, bytes)
    assert len(load(tmp_path, saved="saved", limit=2)) == 2
    datasets.DatasetDict({"train": data, "val": data.select([0])}).save_to_disk(str(tmp_path / "both"))
    assert len(load(tmp_path, saved="both", split="val")) == 1
    with pytest.raises(UserError, match=r"no split 'vall' \(nearest: 'val'\)"):
        load(tmp_path, saved="both", split="vall")


def test_a_split_of_a_folder_that_has_none(tmp_path: Path) -> None:
    """Else an evaluation on a part would be one on all of it."""
    rows = {"question": ["q"], "answer": ["a"]}
    for name, split in (("whole", None), ("own", "val")):  # the library notes of which split a data set is
        datasets.Dataset.from_dict(rows, split=split).save_to_disk(str(tmp_path / name))
    assert len(load(tmp_path, saved="whole")) == len(load(tmp_path, saved="own", split="val")) == 1
    with pytest.raises(UserError, match="whole: it has no split 'val', so all of it would be read; name that part's"):
        load(tmp_path, saved="whole", split="val")


def test_parquet_glob_lists_of_images_and_pairs(tmp_path: Path) -> None:
    for n in range(2):
        data = datasets.Dataset.from_dict(
            {
                "pictures": [[{"bytes": png((n, 0, 0)), "path": "x.png"}, {"bytes": png((n, 1, 0)), "path": None}]],
                "ask": ["compare"],
                "reply": ["same"],
                "kind": ["count"],
                "messages": ["ignored"],
            }
        )
        data.to_parquet(tmp_path / f"part{n}.parquet")
    columns = {"image": "pictures", "question": "ask", "answer": "reply", "question_type": "kind"}
    records = load(tmp_path, parquet="part*.parquet", columns=columns)
    assert len(records) == 2
    assert [turn.text for turn in records[1].turns] == ["compare", "same"]
    assert [open_image(i).getpixel((0, 0)) for i in records[1].images] == [(1, 0, 0), (1, 1, 0)]
    assert records[0].question_type == "count"


def test_parquet_with_paths_and_raw_bytes(tmp_path: Path) -> None:
    write_image(tmp_path / "pics" / "p.png")
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    one = datasets.Dataset.from_dict({"image": ["p.png", None], "messages": [talk, talk]})
    one.to_parquet(tmp_path / "one.parquet")
    records = load(tmp_path, parquet="one.parquet", image_dir="pics")
    assert open_image(records[0].images[0]).size == (8, 6)
    assert records[1].images == ()
    assert records[1].turns[1].role == "gpt"
    datasets.Dataset.from_dict({"image": [png((5, 5, 5))], "messages": [talk]}).to_parquet(tmp_path / "two.parquet")
    [record] = load(tmp_path, parquet=str(tmp_path / "two.parquet"))
    assert open_image(record.images[0]).getpixel((1, 1)) == (5, 5, 5)


def test_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fake(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"question": ["q"], "answer": ["a"]})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    [record] = load(tmp_path, hub="org/data", config="small", split="test")
    assert asked == [("org/data", "small", "test")]
    assert record.place == "org/data [test], record 1"


def test_what_can_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"picture": ["a"], "talk": ["b"]}).save_to_disk(str(tmp_path / "saved"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"saved": "saved"}, r"none of its columns \(picture, talk\)"),
        ({"saved": "saved", "columns": {"conversations": "talks"}},
         r"no column 'talks' \(nearest: 'talk'\); it has picture, talk"),
        ({"saved": "nowhere"}, "^saved: there is no folder nowhere; put it there, or correct the path$"),
        ({"saved": "cache"}, "can't be read"),
        ({"parquet": "*.parquet"}, r"^parquet: no file matches \*\.parquet; put it there, or correct the path$"),
        ({"parquet": "broken.pq"}, "can't be read"),
        ({"hub": "org/data"}, r"org/data: the data set isn't here, and the hub can't be reached \(no network\)"),
    ]  # fmt: skip
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "broken.pq").write_bytes(b"PAR1 this is not")
    original = datasets.load_dataset

    def offline(name: str, *args: Any, **keys: Any) -> Any:
        if name == "org/data":
            raise ConnectionError("no network")
        return original(name, *args, **keys)

    monkeypatch.setattr(datasets, "load_dataset", offline)
    for keys, expected in cases:
        with pytest.raises(UserError, match=expected):
            load(tmp_path, **keys)


@pytest.mark.parametrize("own", [None, "1"])
def test_nobody_is_told_of_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    """Also where the library was imported before, as in a notebook; a person's own setting stays."""
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_UPDATE_DOWNLOAD_COUNTS", raising=False)
    if own is not None:
        monkeypatch.setenv("HF_UPDATE_DOWNLOAD_COUNTS", own)
    asked: list[str] = []

    class Session:
        def head(self, address: str, **_: Any) -> None:
            asked.append(address)

    monkeypatch.setattr("datasets.load.get_session", Session)
    datasets.Dataset.from_dict({"question": ["q"], "answer": ["a"]}).to_parquet(str(tmp_path / "a.parquet"))
    assert len(load(tmp_path, parquet="a.parquet")) == 1
    assert bool(asked) == (own == "1")
    monkeypatch.setattr("basic_lite.data.sources.hub_is_away", lambda: True)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    with pytest.raises(UserError, match="the hub can't be reached"):
        load(tmp_path, hub="org/data")
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"videos": [["a.mp4"], []]}, "it has a video or sound ('videos'"),
        ({"audio": [{"bytes": b"RIFF", "path": None}, None]}, "it has a video or sound ('audio'"),
        ({"label": [False, True]}, "its answer is marked as a bad one ('label' is False)"),
        ({"chosen": ["a", None], "rejected": ["b", None]}, "it has an answer that is preferred ('chosen')"),
        ({"img": [{"bytes": b"PNG", "path": None}, None]}, "columns.image=img"),
        ({"image_path": ["a.png", None]}, "columns.image=image_path"),
        ({"image": ["a.png", None], "images": [["b.png"], None]}, "it has different pictures under 'image'"),
    ],
    ids=str,
)
def test_columns_that_cannot_be_trained_on_are_seen(columns: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """Of a file only the columns that are used are read, and these."""
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    # One of two answers isn't in the conversation yet.
    first = talk[:1] if "chosen" in columns else talk
    datasets.Dataset.from_dict({"messages": [first, talk], **columns}).to_parquet(tmp_path / "a.parquet")
    records = load_records(SourceSection(parquet="a.parquet"), root=tmp_path)
    with pytest.raises(RecordProblem) as caught:
        records[0]
    assert expected in str(caught.value) and "b'" not in str(caught.value)
    assert [turn.text for turn in records[1].turns] == ["q", "a"] and not records[1].images


def test_parquet_files_of_different_columns_are_told(tmp_path: Path) -> None:
    """The reason ended after its first line, `Couldn't cast`."""
    datasets.Dataset.from_dict({"image": ["a.png"], "caption": ["x"]}).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"image": ["a.png"], "text": ["x"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"Couldn't cast .*text: string .*'caption': .* column names don't match\)"):
        load(tmp_path, parquet="*.parquet")

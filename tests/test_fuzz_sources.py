"""What the `datasets` library reads: damaged files and odd values give one error, or one problem with its record."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from basic_lite.data.problems import RecordProblem
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection
from tests.support.fuzzing import ANY, EDIT, PARTS, edited, json_bytes, require_good, tried

# Inputs of a plain run; opening a parquet file with the library takes a tenth of a second.
SAVED, PARQUET = 150, 25
parts = pytest.mark.parametrize("part", PARTS)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def read(root: Path, **keys: Any) -> list[str]:
    """Read each record; gives the problems."""
    records, problems = load_records(SourceSection(**keys), root=root), []
    for index in range(len(records)):
        try:
            records[index]
        except RecordProblem as problem:
            require_good(str(problem))
            problems.append(str(problem))
    return problems


def save(folder: Path) -> Path:
    rows = {
        "image": [{"bytes": b"abc", "path": "a.png"}, None] * 5,
        "question": [f"q {n}" for n in range(10)],
        "answer": ["a"] * 10,
        "history": [[["q", "a"]]] * 10,
        "question_type": [n % 2 for n in range(10)],
    }
    text = datasets.Value("string")
    features = datasets.Features(
        {"image": datasets.Image(), "question": text, "answer": text, "history": datasets.List(datasets.List(text)),
         "question_type": datasets.ClassLabel(names=["a", "b"])}
    )  # fmt: skip
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(str(folder / "one"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@parts
def test_saved_folders(part: int, tmp_path: Path) -> None:
    folder = save(tmp_path)
    [arrow] = folder.glob("train/*.arrow")
    names = ["dataset_dict.json", "train/state.json", "train/dataset_info.json"]
    wholes = {name: (folder / name).read_bytes() for name in [*names, f"train/{arrow.name}"]}
    assert read(tmp_path, saved="saved") == [] == read(tmp_path, saved="one")

    def put(name: str, data: bytes) -> None:
        (folder / name).unlink()  # an older one may still be mapped into memory
        (folder / name).write_bytes(data)

    def act(given: tuple[str, Any, list[tuple[int, int, int]], tuple[int, int, bytes]]) -> None:
        name, value, flips, edit = given
        data = bytearray(wholes[name])
        for at, new, _ in flips:
            data[at % len(data)] = new
        put(name, bytes(data) if flips else json_bytes(value) if value is not None else edited(wholes[name], edit))
        try:
            read(tmp_path, saved="saved")
        finally:
            put(name, wholes[name])

    def one_changed(name: str) -> st.SearchStrategy[Any]:
        whole = json.loads(wholes[name])
        return st.sampled_from(list(whole)).flatmap(lambda key: ANY.map(lambda value: whole | {key: value}))

    flips = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255), st.none()), min_size=1, max_size=4)
    none: st.SearchStrategy[Any] = st.just([])
    forms = [st.tuples(st.just(f"train/{arrow.name}"), st.none(), flips | none, EDIT)] * 4
    forms += [st.tuples(st.just(name), one_changed(name) | ANY, none, EDIT) for name in names]
    tried(st.one_of(*forms), SAVED, act, tmp_path, part)


@parts
def test_parquet_files(part: int, tmp_path: Path) -> None:
    rows = {"id": range(10), "question": [f"q {n}" for n in range(10)], "answer": ["a"] * 10}
    buffer = io.BytesIO()
    pq.write_table(pa.table(rows), buffer, compression="none")
    number = iter(range(10**6))

    def act(edits: list[tuple[int, int, bytes]]) -> None:
        data = buffer.getvalue()
        for edit in edits:
            data = edited(data, edit)
        path = tmp_path / f"{next(number)}.parquet"
        path.write_bytes(data)
        read(tmp_path, parquet=path.name)

    edits = st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.binary(max_size=3))
    tried(st.lists(edits, max_size=3), PARQUET, act, tmp_path, part)


def not_unicode() -> pa.Array:
    """One text whose bytes aren't UTF-8, as no writer but a wrong one makes it."""
    places = pa.py_buffer(b"\0\0\0\0\2\0\0\0")
    return pa.StringArray.from_buffers(1, places, pa.py_buffer(b"\xff\xfe"))


FAR = pa.array([10**17], pa.timestamp("ms"))


@pytest.mark.parametrize(
    ("column", "values", "wanted"),
    [
        ("question", not_unicode(), "'question' can't be read"),
        ("image", not_unicode(), "'image' can't be read"),
        ("id", FAR, "'id' can't be read"),
        ("answer", FAR, "'answer' can't be read"),
    ],
)
def test_values_that_python_cannot_hold(tmp_path: Path, column: str, values: pa.Array, wanted: str) -> None:
    good = pa.table({"question": ["q"], "answer": ["a"]})
    odd = {name: good[name] for name in good.column_names} | {column: values}
    pq.write_table(pa.table(odd), tmp_path / "odd.parquet")
    [problem] = read(tmp_path, parquet="odd.parquet")
    assert wanted in problem and "record 1" in problem


def test_a_saved_folder_names_no_file_elsewhere(tmp_path: Path) -> None:
    folder = save(tmp_path)
    state = folder / "train" / "state.json"
    elsewhere = json.loads(state.read_text()) | {"_data_files": [{"filename": "../../one/data-00000-of-00001.arrow"}]}
    assert (folder / "train" / elsewhere["_data_files"][0]["filename"]).is_file()
    whole = state.read_text()
    state.write_text(json.dumps(elsewhere))
    with pytest.raises(UserError, match="is no name of a file in this folder"):
        read(tmp_path, saved="saved")
    state.write_text(whole)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../one"]}))
    with pytest.raises(UserError, match="is no name of a file in this folder"):
        read(tmp_path, saved="saved", split="../one")

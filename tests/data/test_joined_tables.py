"""Tables of several kinds that were joined into one: each record has the columns of all, and nothing in most."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from basic_lite.data.problems import BadRecord
from basic_lite.data.sources import load_records
from basic_lite.recipe.schema import SourceSection

TALK = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Rex."}]
# Each with the question and the answer that are to be learned.
JOINED: list[tuple[dict[str, Any], str, str]] = [
    ({"conversations": TALK}, "Who?", "Rex."),
    ({"question": "What?", "answer": "A cat."}, "What?", "A cat."),
    ({"prompt": "Where?", "response": "Here."}, "Where?", "Here."),
    ({"caption": "A dog."}, "", "A dog."),
]
COLUMNS = ("conversations", "question", "answer", "prompt", "response", "caption")


def as_json(rows: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    (folder / "a.json").write_text(json.dumps(rows))
    return {"path": "a.json"}


def as_csv(rows: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", *COLUMNS])
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return {"path": "a.csv"}


def as_parquet(rows: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return {"parquet": "a.parquet"}


def load(folder: Path, **keys: Any) -> Any:
    return load_records(SourceSection(**keys), root=folder)


@pytest.mark.parametrize("write", [as_json, as_csv, as_parquet])
def test_an_empty_column_hides_no_other_one(
    write: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"image": "a.png", **dict.fromkeys(COLUMNS), **row} for row, _, _ in JOINED]
    records = load(tmp_path, **write(rows, tmp_path))
    assert [[turn.text for turn in record.turns] for record in records] == [[asked, said] for _, asked, said in JOINED]


@pytest.mark.parametrize("empty", [None, "", [], " "])
def test_whatever_is_empty(empty: Any, tmp_path: Path) -> None:
    row = {"image": "a.png", "conversations": empty, "answers": empty, "question": empty, "query": "q", "output": "a"}
    [record] = load(tmp_path, **as_json([row], tmp_path))
    assert [turn.text for turn in record.turns] == ["q", "a"]


def test_a_mapped_column_is_taken_as_it_is(tmp_path: Path) -> None:
    row = {"image": "a.png", "messages": None, "caption": None, "question": "q", "answer": "a"}
    source = as_json([{**row, "messages": TALK}, row], tmp_path)
    records = load(tmp_path, **source, columns={"conversations": "messages"})
    assert records[0].turns[1].text == "Rex."
    with pytest.raises(
        BadRecord, match=r"record 2: its 'messages' is empty; give it at least a question and an answer"
    ):
        records[1]


def test_an_id_in_capitals_is_named(tmp_path: Path) -> None:
    [record] = load(tmp_path, **as_json([{"ID": 5, "question": "q", "answer": "a"}], tmp_path))
    assert record.id == "5"


@pytest.mark.parametrize("name", ["caption", "Description", "text"])
def test_a_caption_answers_no_question(name: str, tmp_path: Path) -> None:
    """Of a question without its answer, the picture's description was learned as that."""
    row = {"image": "a.png", "question": "What colour is it?", "answer": None, name: "A dog."}
    [record] = load(tmp_path, **as_json([row], tmp_path))
    assert record.answer is None and [turn.text for turn in record.turns] == ["What colour is it?"]
    [record] = load(tmp_path, **as_json([{**row, "question": None}], tmp_path))
    assert record.turns[1].text == "A dog."
    [record] = load(tmp_path, **as_json([{**row, "q": None}], tmp_path), columns={"question": "q"})
    assert record.turns[1].text == "A dog."
    # Where no other column is meant for answers it is one, whichever of them holds it.
    [record] = load(tmp_path, **as_json([{"image": "a.png", "question": "q", "captions": None, name: "a"}], tmp_path))
    assert record.turns[1].text == "a"

"""Reading records: LLaVA JSON and JSONL as published, and every way a file or a record can be wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from basic_lite.data import json_source
from basic_lite.data.problems import BadRecord
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection
from tests.support.data import write_json

TALK = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]


def load(path: Path | str, **keys: Any) -> Any:
    return load_records(SourceSection(path=str(path), **keys), root=Path("/"))


def test_published_forms(tmp_path: Path) -> None:
    rows = [
        {"id": "000000033471", "image": "coco/a.jpg", "conversations": TALK},
        {"id": 17, "image": ["a.jpg", "b.jpg"], "conversations": TALK},
        {"conversations": TALK, "image": None, "question_type": "count"},
        {"id": "x", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ä😀"}]},
        {"id": 1.5, "question": "q?", "answers": ["", "two", "three"], "image": ""},
        {"id": "parts", "images": ["p.png"], "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "this", "index": None}]}]},
    ]  # fmt: skip
    records = load(write_json(tmp_path / "data.json", rows))
    assert len(records) == len(list(records)) == 6
    assert [r.number for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r.id for r in records] == ["000000033471", "17", "", "x", "1.5", "parts"]
    assert [[i.name for i in r.images] for r in records] == [
        ["coco/a.jpg"], ["a.jpg", "b.jpg"], [], [], [], ["p.png"]]  # fmt: skip
    assert records[0].images[0].folder == str(tmp_path)
    assert records[2].question_type == "count"
    assert [t.role for t in records[3].turns] == ["human", "gpt"]
    assert records[3].turns[1].text == "ä😀"
    assert [t.text for t in records[4].turns] == ["q?", "two"]
    assert records[5].turns[0].text == "<image>\nwhat?"
    assert records[-1].id == "parts"
    assert [r.id for r in records[1:3]] == ["17", ""]
    with pytest.raises(IndexError):
        records[6]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("form", ["list", "indented", "lines", "lines_crlf", "bom", "json_lines"])
def test_positions_are_right_whatever_the_layout(
    tmp_path: Path, form: str, ascii_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Records far longer and far shorter than what is read at once, so that every kind of cut happens.
    monkeypatch.setattr(json_source, "_CHUNK", 97)
    monkeypatch.setattr(json_source, "_MARGIN", 64)
    rows = [{"id": n, "conversations": TALK, "text": 'é漢😀\n"[{' * (n % 7) * (30 if n == 5 else 1)} for n in range(40)]
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    text = {
        "list": json.dumps(rows, ensure_ascii=ascii_only),
        "indented": "\n " + json.dumps(rows, ensure_ascii=ascii_only, indent=3) + "\n\n",
        "lines": "\n".join(lines),
        "lines_crlf": "\r\n\r\n".join(lines) + "\r\n",
        "bom": "\ufeff" + json.dumps(rows, ensure_ascii=ascii_only),
        "json_lines": "\n".join(lines),
    }[form]
    path = tmp_path / ("data.jsonl" if form.startswith("lines") else "data.json")
    path.write_bytes(text.encode())
    records = load(path)
    assert [records.sources[0].row(n) for n in range(40)] == rows
    assert len(load(path, limit=3)) == 3
    again = pickle.loads(pickle.dumps(records))
    assert again[39] == records[39]


def test_several_sources(tmp_path: Path) -> None:
    one = write_json(tmp_path / "one.json", [{"id": n, "conversations": TALK} for n in range(3)])
    two = write_json(tmp_path / "two.json", [{"id": n + 10, "conversations": TALK} for n in range(2)])
    records = load_records(
        [SourceSection(path="one.json"), SourceSection(path="two.json", image_dir=".")], root=tmp_path
    )
    assert [r.id for r in records] == ["0", "1", "2", "10", "11"]
    assert (records[3].source, records[3].number) == ("two.json", 1)
    assert records[3].place == "two.json, record 1 (id 10)"
    assert Path(one).parent == Path(two).parent


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '[\n {"id": 1},\n {"id": 2,, }]', ["line 3, column 11", "broken JSON"]),
        ("a.json", '[{"id": 1}\n{"id": 2}]', ["line 2, column 1", "','"]),
        ("a.json", '[{"id": 1},\n]', ["line 2, column 1"]),
        ("a.json", '[{"id": 1},\n {"id": "x', ["line 2", "broken JSON"]),
        ("a.json", '[{"id": 1},', ["broken JSON"]),
        ("a.json", "Image;Caption\r\na.png;x", ["but a table by its first line, so rename it to a.csv"]),
        ("a.jsonl", "image\tcaption\na.png\tx", ["but a table by its first line, so rename it to a.tsv"]),
        ("a.json", "one, two", ["this is neither. Fix"]),
        ("a.json", '[{"id": 1}]\n[]', ["line 2, column 1", "follows"]),
        ("a.json", "hello", ["line 1, column 1"]),
        ("a.json", "", ["empty"]),
        ("a.json", "  \n", ["empty"]),
        ("a.json", "[]", ["no record in it"]),
        ("a.json", '{"data": [1], "info": 2}', ["not a list of records", "'data'"]),
        ("a.json", '{\n "data": [1]\n}', ["not a list of records"]),
        ("a.json", "[" * 100_000, ["nested too deeply"]),
    ],
)
def test_a_broken_file_names_the_place(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load_records(SourceSection(path=name), root=tmp_path)
    assert all(part in str(caught.value) for part in [name, *expected]), str(caught.value)


def test_a_broken_line_is_one_bad_record(tmp_path: Path) -> None:
    turns = '"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]'
    good = [f'{{"id": {n}, {turns}}}' for n in (1, 3, 5)]
    lines = [good[0], "", '{"id": ', good[1] + " x", '{"id": "\xff"}', good[2]]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    records = load_records(SourceSection(path="a.jsonl"), root=tmp_path)
    assert [records[0].id, records[4].id] == ["1", "5"]
    found = []
    for index in (1, 2, 3):
        with pytest.raises(BadRecord) as caught:
            records[index]
        found.append(str(caught.value))
    assert found[0].startswith("a.jsonl, line 3: column 8: broken JSON")
    assert f"line 4: column {len(lines[3])}: broken JSON: Extra data" in found[1]
    assert "line 5: not UTF-8 (byte" in found[2]


def test_other_encodings_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes('[{"id": "é"}]'.encode("latin-1"))
    (tmp_path / "wide.json").write_bytes('[{"id": "é"}]'.encode("utf-16"))
    (tmp_path / "end.json").write_bytes('[{"id": 1},\n{"id": "é'.encode()[:-1])
    cases = [
        ("latin.json", r"line 1: not UTF-8 \(byte 9\)"),
        ("wide.json", "UTF-16"),
        ("end.json", "line 2: not UTF-8"),
        ("no.json", r"^path: there is no file no\.json; put it there, or correct the path$"),
        ("", "names no data"),
    ]
    for name, expected in cases:
        with pytest.raises(UserError, match=expected):
            load_records(SourceSection(path=name), root=tmp_path)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="folder"):
        load_records(SourceSection(path="folder.json"), root=tmp_path)
    write_json(tmp_path / "ok.json", [{"conversations": TALK}])
    with pytest.raises(UserError, match="image_dir"):
        load_records(SourceSection(path="ok.json", image_dir="nowhere"), root=tmp_path)
    with pytest.raises(UserError, match=r"^data\.train\.image_dir: there is no folder nowhere"):
        load_records(SourceSection(path="ok.json", image_dir="nowhere"), root=tmp_path, key="data.train")
    with pytest.raises(UserError, match="'pictures'"):
        load_records(SourceSection(path="ok.json", columns={"pictures": "x"}), root=tmp_path)
    with pytest.raises(UserError, match="path and hub at once"):
        load_records(SourceSection(path="ok.json", hub="x/y"), root=tmp_path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("text", "must be an object"),
        ({"id": 1}, "no conversations"),
        ({"conversations": []}, "empty"),
        ({"conversations": "hello"}, "isn't JSON"),
        ({"conversations": {"from": "human"}}, "list of turns"),
        ({"conversations": ["hello"]}, "turn 1 must be an object"),
        ({"conversations": [*TALK, {"from": "narrator", "value": "x"}]}, "turn 3 is from 'narrator'"),
        ({"conversations": [{"value": "x"}]}, "turn 1 doesn't say who speaks"),
        ({"conversations": [{"from": "human", "value": 5}]}, "turn 1 has 5"),
        ({"conversations": [{"from": "human", "value": None}]}, "turn 1 has None"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "turn 1 is from"),
        ({"conversations": [{"from": "human", "value": [{"type": "video"}]}]}, "part"),
        ({"conversations": TALK, "image": 5}, "its image is 5"),
        ({"conversations": TALK, "image": ["a.png", None]}, "image 2 of its list"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, row: Any, expected: str) -> None:
    write_json(tmp_path / "data.json", [{"id": "ok", "conversations": TALK}, row])
    records = load_records(SourceSection(path="data.json"), root=tmp_path)
    assert records[0].id == "ok"
    with pytest.raises(BadRecord) as caught:
        records[1]
    assert str(caught.value).startswith("data.json, record 2")
    assert expected in str(caught.value)


def test_lone_surrogates_and_mapped_keys(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(r'[{"id": 1, "q": "x\ud83d \ud83d\ude00", "a": "y", "pic": "p.png"}]')
    columns = {"question": "q", "answer": "a", "image": "pic"}
    [record] = load_records(SourceSection(path="s.json", columns=columns), root=tmp_path)
    assert record.turns[0].text == "x\ufffd 😀"
    assert record.turns[1].text == "y"
    assert record.images[0].name == "p.png"

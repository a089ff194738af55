"""Files that are edited while a run goes on."""

import pickle
from pathlib import Path

import pytest

from basic_lite.data import held_file
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection

TEXTS = {
    "a.csv": ("question,answer\nwho?,Ann\nwhere?,here\n", "question,answer\nnobody knows?,x\n"),
    "a.jsonl": (
        '{"question": "who?", "answer": "Ann"}\n{"question": "where?", "answer": "here"}\n',
        '{"question": "nobody knows?", "answer": "x"}\n',
    ),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("mapped", [False, True])
def test_an_edited_file(tmp_path: Path, name: str, mapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if mapped:
        monkeypatch.setattr(held_file, "_KEPT", 0)
    path = tmp_path / name
    path.write_text(TEXTS[name][0])
    records = load_records(SourceSection(path=name), root=tmp_path)
    assert [one.answer for one in records] == ["Ann", "here"]
    path.write_text(TEXTS[name][1])  # in place: a map of the file sees it
    for one in (records, pickle.loads(pickle.dumps(records))):
        if mapped:
            with pytest.raises(UserError, match="has changed since the start; put it back"):
                one[1]
        else:
            assert [record.answer for record in one] == ["Ann", "here"]
    path.unlink()
    if mapped:
        with pytest.raises(UserError, match="has changed since the start"):
            records[0]

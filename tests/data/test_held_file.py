"""Files that are edited while a run goes on."""

import os
import pickle
from pathlib import Path

import pytest

from basic_lite.data import held_file
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.outside import open_file
from basic_lite.recipe.schema import SourceSection
from basic_lite.tools.predictions import require_writable

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
    written = path.stat().st_mtime_ns
    # In place: a map of the file sees it. One edit leaves the size as it is, the other the time.
    for text, changed_ns in ((TEXTS[name][0].replace("Ann", "Bob"), written + 1), (TEXTS[name][1], written)):
        path.write_text(text)
        os.utime(path, ns=(changed_ns, changed_ns))
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


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="this system has no such file")
@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv"])
def test_a_file_that_cannot_be_read(tmp_path: Path, ending: str) -> None:
    """It is a file by its kind, and reading it fails, as on a disk that breaks."""
    (tmp_path / f"a.{ending}").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=rf"^a\.{ending}: the file can't be read \(.*; give one"):
        load_records(SourceSection(path=f"a.{ending}"), root=tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "pipe", "a device or a pipe"),
        (tmp_path, "a folder"),
        (Path("/dev/zero"), "device"),
    ):
        with pytest.raises(OSError, match=f"it is not a file but .*{said}"):
            open_file(path)
    with pytest.raises(UserError, match="it is not a file"):
        require_writable(tmp_path / "pipe", "--out")

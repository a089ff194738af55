"""Which scores ``runs`` shows of equals, and how it is laid out where they are long."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from basic_lite.tools import runs
from basic_lite.tools.runs import RunRow, row_of, show_runs


def lines_of(folder: Path, width: int | None = None) -> list[str]:
    """What is printed on a terminal, or without one."""
    console = Console(file=io.StringIO(), width=width or 100, force_terminal=width is not None, color_system=None)
    show_runs(folder, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_of_equals_the_last_by_step_and_name_is_shown_whatever_the_files_times(tmp_path: Path) -> None:
    """Copying a folder changes times."""
    given = {"final": (7, 1, 9e8), "final_9": (7, 2, 2e9), "final_10": (7, 3, 1e9), "zz": (6, 4, 1.5e9)}
    for name, (step, count, time_s) in given.items():
        for metric in ("relaxed", "exact"):
            settings = {"data": "/x/charts.json", "step": step}
            score = {"score": {"all": 0.5}, "counts": {"all": count}, "not_trained_on": {"right": count, "n": 50}}
            path = tmp_path / f"predictions_{metric}_{name}.summary.json"
            path.write_text(json.dumps({"metric": metric, "settings": settings, **score}))
            os.utime(path, (time_s, time_s))
    assert row_of(tmp_path).scores == (
        "exact match 6.0% [2%, 16%] of 50 not recognised as trained on (charts.json)",
        "relaxed 6.0% [2%, 16%] of 50 not recognised as trained on (charts.json)",
    )


def test_long_scores_pad_nothing_and_have_lines_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = (f"62.5% of 1,200 not known if trained on ({'benchmark_' * 6}{n}.jsonl)" for n in range(2))
    others = ("textvqa 55.3% of 5000 (TextVQA_0.5.1_val.json)",)
    rows = {
        "a": RunRow(Path("runs/写真"), "finished", "2026-11-20 10:01", "1 GiB", "", tuple(many), others, "runs/one"),
        "b": RunRow(Path("runs/b"), "finished", "2026-11-20 10:01", "9 MiB", "held-out loss 1.200", (), (), ""),
    }
    for name in rows:
        (tmp_path / name).mkdir()
    monkeypatch.setattr("basic_lite.tools.runs.is_run", lambda folder: folder.name in rows)
    monkeypatch.setattr("basic_lite.tools.runs.row_of", lambda run: rows[run.name])
    # Without a terminal: what comes before the scores is as wide as it must be, and nothing stands behind them.
    head, long, short = lines_of(tmp_path)
    assert (
        len(head) < 80 and len(short) < 90 and len(long) > 240 and short.endswith("  -             held-out loss 1.200")
    )
    assert cell_len(long[: long.index("exact match")]) == head.index("scores") == short.index("held-out")
    for width, table in ((80, False), (120, True)):
        lines = lines_of(tmp_path, width)
        assert max(map(cell_len, lines)) <= width and not any("; " in line for line in lines)
        assert lines[0].startswith("run ") == table
        starts = [line[: line.index(others[0])] for line in lines if others[0] in line]
        assert starts == [" " * (head.index("scores") if table else 2)], "each score begins a line"
    # Of short ones alone the table has room at 80.
    del rows["a"]
    assert lines_of(tmp_path, 80)[0].startswith("run ")


def test_a_run_inside_another_is_shown_and_a_runs_own_bundles_are_not(tmp_path: Path) -> None:
    for folder in (tmp_path / "outer", tmp_path / "outer" / "inner"):
        for bundle in (folder / "final", folder / "checkpoint-1"):
            bundle.mkdir(parents=True)
            (bundle / "manifest.json").write_text(json.dumps({"format": 1, "files": {}, "step": 1}))
    shown = show_runs(tmp_path, Console(file=io.StringIO()))
    assert [row.path.name for row in shown] == ["outer", "inner"]


def test_folders_that_go_while_runs_are_listed_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that is refused makes a folder and removes it, and so does an export."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parts.json").write_text('[{"part": "LLM"}]')
    looked, read = runs.is_run, runs.row_of

    def is_run(folder: Path) -> bool:
        if folder.name == "a" and (tmp_path / "b").exists():
            shutil.rmtree(tmp_path / "b")
        return looked(folder)

    def row(run: Path) -> RunRow:
        if run.name == "c":
            shutil.rmtree(run)
        return read(run)

    monkeypatch.setattr(runs, "is_run", is_run)
    monkeypatch.setattr(runs, "row_of", row)
    assert [Path(line.split()[0]).name for line in lines_of(tmp_path)[1:]] == ["a", "d"]

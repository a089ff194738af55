"""The bench of `check` on a few records, so that it can't rot."""

from __future__ import annotations

from pathlib import Path

from bench import check_data
from tests.support.models import write_llm


def test_it_runs(tmp_path: Path) -> None:
    llm = write_llm(tmp_path / "llm")
    keys = check_data.write_model(tmp_path / "vision", llm)
    check_data.write_records(tmp_path / "list.json", 40, llm)
    texts = check_data.cost_of_texts(tmp_path / "list.json", keys, 40)
    assert texts.cpu_s > 0 and texts.peak_gib > 0.1 and texts.records == 40
    assert "length" in (tmp_path / "list.html").read_text()
    pictures = check_data.cost_of_pictures(tmp_path, 1, 50)
    assert pictures.picture_ms > 0 and pictures.pictures == 50

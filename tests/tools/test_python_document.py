"""The examples of docs/PYTHON.md run, one after the other, with tiny models and pictures in the places they name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from basic_lite.recipe import dump_recipe
from tests.support.runs import tiny_recipe, write_data

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "PYTHON.md"


@pytest.mark.long
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    data = json.loads(write_data(tmp_path).read_text())
    changes = {"name": "photos", "output": "runs", "supervision.refinement_batches": 1}
    (tmp_path / "photos.yaml").write_text(dump_recipe(tiny_recipe(tmp_path, changes)))
    Path("photos").mkdir()
    for name, colour in (("cat", "red"), ("dog", "blue")):
        Image.new("RGB", (20, 16), colour).save(f"photos/{name}.jpg")
    Path("questions.json").write_text(json.dumps([{**row, "image": "cat.jpg"} for row in data]))
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    # 40 steps and answers of 256 tokens would take a while.
    quick = [block.replace("40", "2").replace('this?")', 'this?", max_new_tokens=8)') for block in blocks]
    names: dict[str, Any] = {}
    for block in quick:
        exec(block, names)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(Path("runs/cats")) + " " + str(Path("runs/cats/final")) + " 2"
    assert len(names["losses"]) == 2 and names["scores"].counts["all"] == 2
    assert len(Path("predictions.jsonl").read_text().splitlines()) == 12
    assert "model" not in names and names["result"].steps == 5


def test_every_public_name_is_in_the_document() -> None:
    import basic_lite

    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in basic_lite.__all__ if f"`{name}`" not in text and name != "__version__"] == []
    assert len(text.splitlines()) <= 120

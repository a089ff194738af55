"""docs/my_photos.ipynb: it is tidy, and it runs from top to bottom, with the demo's models in place of LLaVA."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from basic_lite.recipe import describe_keys, shipped_recipe

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "my_photos.ipynb"
# Takes the place of the cell of that name.
SETTINGS = """\
INSTALL = "nothing to install"
PHOTOS = "photos"
RECIPE = "demo_photos"
RUN = "tried"
QUESTION = "describe the image."
CHANGES = {"training.max_steps": 30, "quantization.compute_dtype": "float16"}
"""


def cells() -> dict[str, str]:
    """The code cells' texts by their names."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in found if cell["cell_type"] == "code"}


def test_it_is_tidy() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell["id"]
    code = cells()
    assert next(iter(code)) == "settings"
    names = {cell: set(re.findall(r"^(\w+) = ", text, re.M)) for cell, text in (*code.items(), ("test", SETTINGS))}
    assert names["settings"] == names["test"]
    assert shipped_recipe(re.search(r'RECIPE = "(\w+)"', code["settings"])[1])  # type: ignore[index]
    assert "quantization.compute_dtype" in code["install"] and "quantization.compute_dtype" in SETTINGS
    assert "quantization.compute_dtype" in {row.name for row in describe_keys()}
    for text in code.values():
        compile(re.sub(r"^(\s*)[!%].*", r"\1pass", text, flags=re.M), "cell", "exec")


@pytest.mark.walk
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebook`")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `notebook`")
    # The kernel runs commands as a user does; this environment's `basic-lite` must be the one it finds.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.id == "settings":
            cell.source = SETTINGS
    client = nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    said = {cell.id: _said(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert "on a CPU" in said["install"]
    assert "50 pictures" in said["pictures"] and "photos.yaml" in said["look"]
    assert "trained: runs" in said["train"] and (tmp_path / "runs" / "tried" / "final").is_dir()
    answers = said["ask"].splitlines()
    assert re.search(r"\b(red|green|blue|yellow|purple|orange|cyan|black)\b", answers[-1]), said["ask"]
    assert len(said["talk"].splitlines()) >= 2
    assert re.match(r"\d+% of 20 answers are the reference", said["evaluate"])
    assert (tmp_path / "tried.zip").is_file() and (tmp_path / "exported" / "config.json").is_file(), said["export"]


def _said(cell: Any) -> str:
    """What a cell has printed; what it has drawn is left out."""
    return "".join(out.get("text", "") for out in cell.outputs)

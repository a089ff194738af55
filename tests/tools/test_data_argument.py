"""A run where data is wanted: `data`, `check`, `eval` and `inspect` say that it is one, and what to give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from basic_lite.errors import UserError
from basic_lite.tools.asked import File, read_asked
from basic_lite.tools.check.command import check
from basic_lite.tools.data.command import data
from tests.support.data import write_image


def write_run(folder: Path) -> Path:
    """The files of a finished run that tell it from data, and one of pictures."""
    (folder / "final").mkdir(parents=True)
    for name, held in {
        "parts.json": [{"part": "projector"}],
        "data.json": {"train": {"records": 3}},
        "samples.json": [],
        "final/manifest.json": {"format": 1, "files": {}, "step": 3},
    }.items():
        (folder / name).write_text(json.dumps(held))
    (folder / "recipe.yaml").write_text("name: a\n")
    return folder


@pytest.mark.parametrize("place", ["runs/a", "runs/a/final"])
def test_a_run_is_no_data(place: str) -> None:
    write_run(Path("runs/a"))
    given = r"give the folder or file of the data itself, .* \(runs/a/recipe\.yaml names it under data\.train\)$"
    said = rf"^{place} is (a run|part of a run) and no data; {given}"
    for look in (
        lambda: data(Path(place), base="demo_photos"),
        lambda: check(Path(place), base="demo_photos"),
        lambda: read_asked(File(place), None),
    ):
        with pytest.raises(UserError, match=said):
            look()
    assert not list(Path().glob("*.yaml"))


def test_data_beside_a_runs_name_is_data() -> None:
    """A folder with a recipe, or a file of that name from another program, is still looked at."""
    write_image(Path("photos/a.png"))
    Path("photos/a.txt").write_text("a red circle")
    Path("photos/recipe.yaml").write_text("name: mine\n")
    assert data(Path("photos"), base="demo_photos") == Path("photos.yaml")

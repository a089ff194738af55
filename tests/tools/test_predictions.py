"""No answer is lost: a file of predictions is replaced only by the same evaluation, and if nobody has changed it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from basic_lite.api import open_run
from basic_lite.errors import UserError
from basic_lite.scoring.prediction import Prediction
from basic_lite.tools.compare.answers import read_answers
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.predictions import why_kept, write_predictions
from basic_lite.tools.score import EvalResult
from basic_lite.training.places import MANIFEST
from tests.support.marks import rest_long
from tests.support.rights import enlarge, small_disk
from tests.support.runs import quiet, write_data


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, so that a test may change it."""
    run = Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("predictions*", "checkpoint*")))
    write_data(tmp_path, 2)
    return run


def asked(run: Path, **options: Any) -> EvalResult:
    return evaluate_run(
        run,
        run.parent / "data.json",
        image_dir=run.parent / "images",
        console=quiet(),
        device="cpu",
        **({"controls": 0} | options),
    )


def mark(file: Path, run: Path) -> None:
    """A person's note in each line."""
    rows = [json.loads(line) | {"my_mark": "good"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_model(file: Path, run: Path) -> None:
    manifest = run / "final" / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"processes": 2}))


def other_texts(file: Path, run: Path) -> None:
    data = run.parent / "data.json"
    data.write_text(data.read_text().replace("it is red", "it is rose"))


def other_picture(file: Path, run: Path) -> None:
    shutil.copy(run.parent / "images" / "1.png", run.parent / "images" / "0.png")


def foreign(file: Path, run: Path) -> None:
    file.with_suffix(".summary.json").unlink()


def older(file: Path, run: Path) -> None:
    place = file.with_suffix(".summary.json")
    place.write_text(json.dumps({k: v for k, v in json.loads(place.read_text()).items() if not k.endswith("sha256")}))


def moved_away(file: Path, run: Path) -> None:
    file.rename(run.parent / "mine.jsonl")


def test_a_kill_between_the_names_of_both_files_costs_nothing(own: Path) -> None:
    named = own.parent / "named.jsonl"
    asked(own, out=named)
    summary, new = named.with_suffix(".summary.json"), own.parent / "named.summary.json.new"
    summary.rename(new)
    assert why_kept(named, None) is None
    assert read_answers(named).settings and not read_answers(named).notes
    asked(own, out=named)
    assert summary.exists() and not new.exists()
    shutil.copy(summary, new)
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"predictions_sha256": "of the file before"}))
    assert why_kept(named, None) is None
    new.unlink()
    assert "was changed" in str(why_kept(named, None))


@pytest.mark.parametrize("size", ["4k", "8k"])
def test_a_full_disk_leaves_neither_of_both_files(tmp_path: Path, size: str) -> None:
    """The predictions take 8 kB there, the summary 4."""
    prediction = Prediction(1, "0", "colour", [], "q", "b", "a" * 5000, correct=False)
    with small_disk(tmp_path / "disk", size) as disk:
        with pytest.raises(OSError, match="No space left"):
            write_predictions([prediction], {"settings": {}}, disk / "p.jsonl")
        assert not list(disk.iterdir())
        enlarge(disk, "1m")
        write_predictions([prediction], {"settings": {}}, disk / "p.jsonl")
        assert len(list(disk.iterdir())) == 2


CHANGES: dict[Callable[[Path, Path], None], str] = {
    mark: "was changed since basic-lite wrote it",
    other_model: "has the answers of another model",
    other_texts: "has the answers to other data",
    other_picture: "has the answers to other data",
    foreign: "is there already and holds no predictions of basic-lite",
    older: "is of an older basic-lite, which didn't note whether it was changed since",
    moved_away: "is there already and has the scores of other predictions",
}


@pytest.mark.parametrize("change", rest_long(*CHANGES))
def test_only_the_same_evaluation_replaces_predictions(
    own: Path, change: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    first, named = own / "predictions_data_final.jsonl", own.parent / "named.jsonl"
    for _ in range(2):  # the very same is replaced
        asked(own)
        asked(own, out=named)
    assert "is kept" not in capsys.readouterr().err and not list(own.parent.rglob("*_2.*"))
    for file in (first, named):
        change(file, own)
        if change is moved_away:
            (own.parent / "mine.jsonl").rename(own.parent / f"of_{file.name}")
    before = {path: path.read_bytes() for path in (*own.parent.rglob("*named*"), *own.rglob("predictions*"))}
    asked(own)
    said = " ".join(capsys.readouterr().err.split())
    assert CHANGES[change] in said and "so it is kept, and these go to predictions_data_final_2.jsonl" in said
    with pytest.raises(UserError, match=rf"^--out: .*named.*{CHANGES[change]}, so it isn't replaced; choose another"):
        asked(own, out=named)
    assert before == {path: path.read_bytes() for path in before}
    assert len((own / "predictions_data_final_2.jsonl").read_text().splitlines()) == 2


def test_the_reason_names_the_setting(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = own.parent / "mine.jsonl"
    asked(own, max_new_tokens=3, out=out)
    with pytest.raises(
        UserError, match=r"mine\.jsonl has answers of other settings \(max_new_tokens 3, now 4\), so it"
    ):
        asked(own, max_new_tokens=4, out=out)
    assert "answering" not in capsys.readouterr().err
    assert len(asked(own, limit=1).predictions) == 1


def test_a_program_saves_only_where_nothing_is_lost(own: Path, trained: Path) -> None:
    data, captions, file = own.parent / "data.json", own.parent / "captions.csv", own.parent / "p.jsonl"
    captions.write_text("image,caption\na.png,a cat\n")
    model = open_run(own, device="cpu")
    scores = model.evaluate(data, image_dir=own.parent / "images")
    with pytest.raises(UserError, match=r"^save: .*captions\.csv is there already and holds no predictions"):
        scores.save(captions)
    assert captions.read_text().startswith("image,caption")
    for _ in range(2):  # a notebook's cell may run again
        scores.save(file)
    with pytest.raises(UserError, match=r"p\.jsonl has answers of other settings \(limit not given, now 1"):
        model.evaluate(data, image_dir=own.parent / "images", limit=1).save(file)
    asked(own, out=own.parent / "eval.jsonl", controls=500)
    scores.save(own.parent / "eval.jsonl")  # the same evaluation
    mark(file, own)
    with pytest.raises(UserError, match="was changed since"):
        scores.save(file)
    one = Prediction(1, "1", "", [], "what?", "a cat", "a cat", True)
    EvalResult([one]).save(own.parent / "hand.jsonl")
    with pytest.raises(UserError, match="has the answers of another model"):  # of one made by hand it can't be told
        EvalResult([one]).save(own.parent / "hand.jsonl")
    with pytest.raises(UserError, match=r"^save: can't write .*"):
        scores.save(own.parent)


@pytest.mark.parametrize("name", ["", "."])
def test_no_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="names no file"):
        EvalResult([]).save(name)

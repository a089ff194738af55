"""``runs`` and ``clean``: what is in the run folders, what of it goes, and that nothing else does."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from basic_lite.cli import main
from basic_lite.errors import UserError
from basic_lite.run import train
from basic_lite.tools.chat.of_run import RunSpeaker
from basic_lite.tools.clean import BEST_STEP, LOST, clean
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.export.command import export
from basic_lite.tools.runs import RunRow, row_of, show_runs
from basic_lite.training.lock import locked
from basic_lite.training.places import MANIFEST
from tests.support.runs import assert_same_weights, quiet, run, tiny_recipe

BASE = {"training.max_steps": 3, "training.save_every": 1, "training.keep": 9}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, and under `runs`: a finished run, one that is further down, one that goes on from it."""
    folder = tmp_path_factory.mktemp("made")
    tiny_recipe(folder)
    held_out = {"path": str(folder / "data.json"), "image_dir": str(folder / "images")}
    done = run(folder, {**BASE, "name": "done", "data.eval": held_out, "training.eval_every": 1})
    one = {"name": "stage1", "stage": 1, "lora.enabled": False, "output": str(folder / "runs" / "demo")}
    run(folder, {**BASE, **one})
    run(folder, {**BASE, "name": "more", "model.start": str(done)})
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of the runs: one was stopped at step 2, one never saved anything, one set a checkpoint aside."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    more, done = tmp_path / "runs" / "more", tmp_path / "runs" / "done"
    shutil.rmtree(more / "final")
    shutil.rmtree(more / "checkpoint-3")
    shutil.copytree(more / "checkpoint-1", more / "checkpoint-3.part")
    shutil.copytree(done / "checkpoint-3", done / "set-aside-checkpoint-3")
    (done / "predictions_data_final.summary.json").write_text('{"exact_match": {"all": 0.25}}')
    failed = tmp_path / "runs" / "failed"
    failed.mkdir()
    for name in ("recipe.yaml", "parts.json", "data.json", "log.jsonl", "software.json", "trained_on.safetensors"):
        shutil.copy2(more / name, failed / name)
    return tmp_path


def shown(folder: Path, width: int = 200, *, terminal: bool = False) -> tuple[list[RunRow], str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    rows = show_runs(folder, console)
    assert isinstance(console.file, io.StringIO)
    return rows, console.file.getvalue()


def test_runs_lists_state_score_and_origin(place: Path, made: Path) -> None:
    runs = place / "runs"
    with locked(runs / "demo" / "stage1"):
        rows, text = shown(runs)
    found = {str(row.path.relative_to(runs)): row for row in rows}
    assert {name: row.state for name, row in found.items()} == {
        "done": "finished, 3 steps",
        "demo/stage1": "running, step 3 of 3",
        "failed": "ended before its first checkpoint",
        "more": "stopped at step 2 of 3",
    }
    before = "(12 of 12 pictures trained on); exact match 25.0% not known if trained on"
    assert found["done"].score.startswith("held-out loss ") and found["done"].score.endswith(before)
    assert found["more"].started_from == str(made / "runs" / "done") and found["done"].started_from == ""
    total = sum(path.stat().st_size for path in (runs / "done").rglob("*") if path.is_file())
    assert found["done"].size in (f"{total / 1024:.0f} KiB", f"{total / 2**20:.0f} MiB")
    assert found["done"].changed.startswith(time.strftime("%Y-"))
    # Plain lines in a pipe, one a run, however long.
    lines = text.splitlines()
    assert len(lines) == 5 and all(line.isprintable() for line in lines)
    assert shown(runs, 40)[1].count("\n") == 5
    (row,) = show_runs(runs / "done", quiet())
    assert row == found["done"]
    (row,) = show_runs(runs / "demo", quiet())
    assert row.state == "finished, 3 steps"  # the lock file of a run that is over says nothing


def test_runs_says_when_what_a_run_started_from_is_gone_or_another(place: Path, made: Path) -> None:
    parent = place / "runs" / "done"
    manifest = place / "runs" / "more" / "checkpoint-2" / MANIFEST
    text = json.loads(manifest.read_text())
    text["started_from"]["bundle"] = str(parent / "final")
    manifest.write_text(json.dumps(text))
    named = str(made / "runs" / "done")
    assert row_of(place / "runs" / "more").started_from == named
    (parent / "final" / MANIFEST).write_text("{}")
    assert row_of(place / "runs" / "more").started_from == f"{named} (replaced since)"
    shutil.rmtree(parent)
    assert row_of(place / "runs" / "more").started_from == f"{named} (no longer there)"


def test_runs_shows_scores_by_other_metrics(place: Path) -> None:
    done = place / "runs" / "done"
    settings = {"data": "/x/charts.json"}
    summary = {"metric": "relaxed", "score": {"all": 0.5}, "counts": {"all": 12}, "settings": settings}
    (done / "predictions_charts_final.summary.json").write_text(json.dumps(summary))
    assert row_of(done).score.endswith("exact match 25.0% not known if trained on; relaxed 50.0% of 12 (charts.json)")


def test_runs_shows_the_newest_checkpoints_score_from_the_most_new_answers(place: Path, made: Path) -> None:
    done = place / "runs" / "done"

    def score_after(name: str, step: int, **marks: int) -> str:
        shares = {mark: {"right": 0, "n": n} for mark, n in marks.items()}
        summary = {**shares, "settings": {"step": step, "data": name}}
        (done / f"predictions_{Path(name).stem}.summary.json").write_text(json.dumps(summary))
        return row_of(done).score.split("; ", 1)[1]

    first = score_after("a", 1, not_trained_on=900)
    assert first == "exact match 0.0% [0%, 0%] of 900 not recognised as trained on (a) at step 1"
    # More answers, but none is new: they say nothing of new pictures, whatever the checkpoint.
    assert score_after("b", 3, trained_on=1000) == first
    later = "exact match 0.0% [0%, 1%] of 500 not recognised as trained on"
    assert score_after("c", 2, not_trained_on=500) == f"{later} (c) at step 2"
    assert score_after("d", 2, not_trained_on=500) == f"{later} (d) at step 2"
    # The run's own data and another file's: pictures of the other that were resized look new.
    own, other = score_after("held-out", 2, not_trained_on=5).split("; ")
    assert " of 5 not recognised as trained on (held-out)" in own
    assert other == f"{later} (d) at step 2"
    # Of its own data the split goes before the table that it was trained on, but not if a part of the split was.
    table = str(made / "data.json")
    assert score_after(table, 2, not_trained_on=9, trained_on=40).split("; ") == [own, other]
    assert " of 9 " in score_after("held-out", 2, not_trained_on=5, trained_on=2).split("; ")[0]
    # The run has three steps: these are of the model as it is.
    assert score_after("e", 3, not_trained_on=40).endswith(" of 40 not recognised as trained on (e)")


def test_runs_fits_a_narrow_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    _, text = shown(Path("runs"), 40, terminal=True)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 40 and "runs/demo/stage1" in lines and "  stopped at step 2 of 3" in lines


def test_runs_reads_what_is_damaged(place: Path) -> None:
    done = place / "runs" / "done"
    (done / "final" / "manifest.json").write_text("{")
    (done / "final" / "recipe.json").write_text("[1]")
    (done / "recipe.yaml").write_bytes(b"\xff{")
    (done / "log.jsonl").write_bytes(b'\xff\n[1]\n{"step": 1, "eval_loss": "x"}\n{"step": 2, "eval_loss": NaN}\n')
    (done / "predictions_data_final.summary.json").write_text("[]")
    rows, text = shown(place / "runs")
    assert [row.state for row in rows if row.path == done] == ["damaged: its manifest.json can't be read"]
    told = [line for line in text.splitlines() if "3 lines of log.jsonl are damaged and left out" in line]
    assert len(told) == 1 and "manifest.json can't be read; 3 lines" in told[0] and text.count("log.jsonl") == 1
    assert [row.score for row in rows if row.path == done] == [
        "held-out loss is no number (12 of 12 pictures trained on)"
    ]
    for damaged in ("[]", '{"eval": {"trained_on": {"of": {"pictures": [1]}, "known": 1}}}', '{"eval": 3}'):
        (done / "data.json").write_text(damaged)
        assert row_of(done).score == "held-out loss is no number (not known if trained on)"
    with pytest.raises(UserError, match="there is no folder"):
        shown(place / "nowhere")
    (place / "empty").mkdir()
    assert "no runs in" in shown(place / "empty")[1]


def test_a_run_may_not_know_how_many_steps_it_has(place: Path) -> None:
    manifest = place / "runs" / "more" / "checkpoint-2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"total_steps": 3', '"total_steps": null'))
    assert [row.state for row in show_runs(place / "runs" / "more", quiet())] == ["stopped at step 2"]


def test_runs_and_clean_need_no_torch(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both = "import sys\nfrom basic_lite.cli import main\n"
    for words in (["runs", str(place / "runs")], ["clean", "--yes", str(place / "runs")]):
        both += f"try: main({words!r})\nexcept SystemExit as stop: assert not stop.code\n"
    both += "assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", both]) == 0
    said = capfd.readouterr().out
    assert "finished, 3 steps" in said and "freed " in said


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


GOES = {
    "done": ["checkpoint-1", "checkpoint-2", "checkpoint-3", "set-aside-checkpoint-3"],
    "demo/stage1": ["checkpoint-1", "checkpoint-2", "checkpoint-3"],
    "more": ["checkpoint-1", "checkpoint-3.part"],
    "failed": [""],
}


def test_clean_frees_what_it_showed_and_nothing_else(place: Path) -> None:
    runs = place / "runs"
    before = files_in(runs)
    gone = [str(Path(name, item)) for name, items in GOES.items() for item in items]
    expected = {path for path in before if not any(path == one or path.startswith(f"{one}/") for one in gone)}
    console = Console(file=io.StringIO(), width=40)
    asked: list[str] = []

    def answer(reply: bool) -> Callable[[], bool]:
        def ask() -> bool:
            assert isinstance(console.file, io.StringIO)
            asked.append(console.file.getvalue())  # all of it is shown before
            return reply

        return ask

    assert clean([runs], ask=answer(False), console=console) == 0
    assert files_in(runs) == before and "nothing was deleted" in console.file.getvalue()  # type: ignore[attr-defined]
    freed = clean([runs, runs / "done"], ask=answer(True), console=console)
    assert all(f"  {runs / path}  (" in asked[0] for path in gone)
    assert (
        asked[0].count("  (") == len(gone)
        and "  in all\n" in asked[0]
        and all(lost in asked[0] for why, lost in LOST.items() if why != BEST_STEP)
    )
    assert files_in(runs) == expected and freed > 10_000
    assert clean([runs], console=console) == 0  # nothing is left to ask about


def test_clean_breaks_lines_between_words(place: Path) -> None:
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    clean([place / "runs"], ask=lambda: False, console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= 40 or len(line.split()) == 1 for line in lines), "a path stays in one piece"
    words = [word for line in lines for word in line.split()]
    assert {"--checkpoint", "finished", "aside"} <= {*words} and "free" not in words


@pytest.mark.long
def test_a_cleaned_run_is_still_of_use(place: Path, made: Path) -> None:
    runs, cpu = place / "runs", torch.device("cpu")
    clean([runs], yes=True, console=quiet())
    result = evaluate_run(runs / "done", made / "data.json", image_dir=made / "images", limit=2, device="cpu")
    assert len(result.predictions) == 2 and RunSpeaker(runs / "done", cpu).bundle.step == 3
    assert export(runs / "done", place / "exported", samples=2, console=quiet())
    changes = {**BASE, "model.start": str(made / "runs" / "done"), "output": str(runs)}
    train(tiny_recipe(made, {**changes, "name": "third", "model.start": str(runs / "done")}), console=quiet())
    # A stopped run goes on from its newest checkpoint, to the same end.
    train(tiny_recipe(made, {**changes, "name": "more"}), resume=True, console=quiet())
    assert_same_weights(runs / "more" / "final", made / "runs" / "more" / "final")
    eval_of = {"data.eval": {"path": str(made / "data.json"), "image_dir": str(made / "images")}}
    done = {**BASE, **eval_of, "training.eval_every": 1, "name": "done", "output": str(runs)}
    with pytest.raises(UserError, match="has no whole checkpoint of that step; it has none"):
        train(tiny_recipe(made, done), resume=True, checkpoint=2, console=quiet())


def test_clean_leaves_running_and_damaged_runs_alone(place: Path) -> None:
    runs = place / "runs"
    shutil.rmtree(runs / "failed")
    before = files_in(runs)
    console = Console(file=io.StringIO(), width=400)
    # The one good copy of a damaged run may be among what would go.
    for run_folder, kept in (("done", "final"), ("more", "checkpoint-2")):
        with (runs / run_folder / kept / "projector.safetensors").open("ab") as stream:
            stream.write(b"x")
    with locked(runs / "demo" / "stage1"):
        clean([runs], yes=True, console=console)
    assert files_in(runs) == {path for path in before if "checkpoint-3.part" not in path}
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a process trains there now" in text and text.count("its other bundles stay, since") == 2


def test_a_training_that_begins_while_clean_asks_is_left_alone(place: Path) -> None:
    done = place / "runs" / "done"
    before, running = files_in(done), locked(done)

    def ask() -> bool:
        running.__enter__()
        return True

    assert clean([done], ask=ask, console=quiet()) == 0
    running.__exit__(None, None, None)
    assert files_in(done) == before


def test_clean_leaves_folders_that_only_look_like_checkpoints(place: Path) -> None:
    done = place / "runs" / "done"
    for copy in ("checkpoint-99", "checkpoint-0002", "checkpoint-best"):
        shutil.copytree(done / "checkpoint-2", done / copy)
    clean([done], yes=True, console=quiet())
    assert all((done / copy).is_dir() for copy in ("checkpoint-99", "checkpoint-0002", "checkpoint-best"))


def test_clean_leaves_what_a_person_has_put_into_a_checkpoint(place: Path) -> None:
    runs = place / "runs"
    note = runs / "done" / "checkpoint-1" / "mynote.txt"
    note.write_text("mine")
    changed = runs / "done" / "checkpoint-2" / "tokenizer" / "tokenizer_config.json"
    changed.write_text(changed.read_text() + "\n")
    photo = runs / "done" / "checkpoint-98" / "cat.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"jpeg")
    empty = runs / "done" / "checkpoint-3" / "for later"
    empty.mkdir()
    console = Console(file=io.StringIO(), width=400)
    clean([runs / "done"], yes=True, console=console)
    assert note.read_text() == "mine" and changed.exists() and photo.exists()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for number, name in (("1", "mynote.txt"), ("2", "tokenizer_config.json"), ("3", "for later")):
        why = "stays, since it has files that the run didn't write or that were changed"
        assert f"checkpoint-{number} {why}: {name}; move them to free it" in text
    # A start that saved nothing goes as a whole, unless something of a person is in it.
    plot = runs / "failed" / "tensorboard" / "plot.png"
    plot.parent.mkdir(exist_ok=True)
    plot.write_bytes(b"png")
    console = Console(file=io.StringIO(), width=400)
    clean([runs / "failed"], yes=True, console=console)
    assert plot.exists()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "saved nothing, and stays since" in text and "plot.png; move them" in text and "Lost with it" not in text
    plot.unlink()
    recipe = runs / "failed" / "recipe.yaml"
    later = recipe.stat().st_mtime + 60
    os.utime(recipe, (later, later))
    clean([runs / "failed"], yes=True, console=quiet())
    assert recipe.exists()


def test_clean_says_of_a_place_that_it_holds_no_run(place: Path) -> None:
    done, photos = place / "runs" / "done", place / "photos"
    photos.mkdir()
    console = Console(file=io.StringIO(), width=400)
    assert clean([photos, done / "checkpoint-1"], yes=True, console=console) == 0
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{photos} holds no runs\n" in text and f"checkpoint-1 holds no runs; it is in one: give {done}" in text
    assert (done / "checkpoint-1").exists()


def test_clean_takes_old_unfinished_folders_and_no_persons_files(place: Path) -> None:
    runs = place / "runs"
    shutil.rmtree(runs / "done")
    hours_ago = time.time() - 7200
    for name in (".basic-lite-old", ".basic-lite-new", "demo/.basic-lite-old", "more/.basic-lite-old"):
        (runs / name).mkdir()
        (runs / name / "half").write_bytes(b"x")
        if name.endswith("old"):
            os.utime(runs / name / "half", (hours_ago, hours_ago))
    (runs / "failed" / "notes.txt").write_text("mine")
    photos = runs / "photos"
    photos.mkdir()
    for name in ("recipe.yaml", "data.json", "checkpoint-1.part"):
        (photos / name).write_text("[]")
    for step in (1, 2):  # of another program
        (runs / "trainer" / f"checkpoint-{step}").mkdir(parents=True)
    clean([runs], yes=True, console=quiet())
    assert {path.name for path in runs.glob("**/.basic-lite-*")} == {".basic-lite-new"}
    assert len(list(photos.iterdir())) == 3 and len(list((runs / "trainer").iterdir())) == 2
    assert len(list((runs / "failed").iterdir())) == 7


def test_clean_asks_on_a_terminal_only(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)

    def command(typed: str, *options: str, terminal: bool) -> Any:
        stream = io.StringIO(typed)
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(SystemExit) as stopped:
            main(["clean", *options])
        return stopped.value.code

    before = files_in(place)
    assert command("", terminal=False) == 2
    captured = capsys.readouterr()
    assert "add --yes" in captured.err and "runs/done/checkpoint-1" in captured.out
    assert command("\n", terminal=True) == 0 and files_in(place) == before
    assert command("y\n", "runs/demo", terminal=True) == 0
    assert not (place / "runs" / "demo" / "stage1" / "checkpoint-1").exists()
    assert command("", "--yes", terminal=False) == 0
    assert not (place / "runs" / "done" / "checkpoint-1").exists()

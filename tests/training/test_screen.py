"""What a run shows as it goes: evaluations, held-out answers, the progress line, the pace, the last line."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from basic_lite.console import command_line
from basic_lite.run import train
from basic_lite.training import evaluation, samples
from basic_lite.training.answer import answer, chat_format
from basic_lite.training.bundle import load_trained
from basic_lite.training.loss_text import held_out_text, overfit_text
from basic_lite.training.places import SAMPLES
from basic_lite.training.progress import Pace, ProgressLine, finished_text
from tests.support.data import write_image
from tests.support.runs import (
    LOUD,
    assert_same_terms,
    assert_same_weights,
    log_of,
    quiet,
    run,
    steps_of,
    tiny_recipe,
    write_data,
)


def with_held_out(folder: Path, count: int = 7, **changes: Any) -> dict[str, Any]:
    source = {"path": str(write_data(folder, count)), "image_dir": str(folder / "images")}
    return {"data.train": source, "data.eval": source, "training.eval_answers": 2, **changes}


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_ANSWER_TOKENS", 6)


def shown(folder: Path, changes: dict[str, Any]) -> tuple[Path, list[str]]:
    console = quiet()
    path = train(tiny_recipe(folder, changes), console=console).folder
    return path, console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.long
def test_held_out_answers_change_no_training_number(tmp_path: Path) -> None:
    """Generation in the middle of training with dropout: every loss and weight is bit for bit the same."""
    changes = with_held_out(tmp_path, **LOUD, **{"lora.dropout": 0.3, "training.eval_every": 2})
    changes |= {"training.gradient_checkpointing": True, "supervision.refinement_batches": 1}
    without = run(tmp_path, {**changes, "name": "without", "training.eval_answers": 0})
    asked = run(tmp_path, {**changes, "name": "asked", "training.eval_answers": 3})
    assert_same_terms(without, asked, rel=0)
    assert_same_weights(without / "final", asked / "final")
    # At the start and the end as many as the report shows, of the few that there are.
    counts = [(line["step"], len(line["answers"])) for line in log_of(asked) if "answers" in line]
    assert [step for step, _ in counts] == [0, 2, 4] and counts[1][1] == 3 < counts[0][1] == counts[2][1] <= 12
    assert (asked / SAMPLES).is_file() and not (without / SAMPLES).exists()
    assert not [line for line in log_of(without) if "answers" in line]


@pytest.mark.long
def test_an_evaluation_is_on_the_terminal(tmp_path: Path) -> None:
    changes = with_held_out(tmp_path, **{"training.eval_every": 2, "supervision.refinement_batches": 1})
    folder, lines = shown(tmp_path, changes)
    two, four = (line["eval_loss"] for line in log_of(folder) if "eval_loss" in line)
    assert f"step 2: held-out loss {two:.3f}" in lines
    assert f"step 4: held-out loss {four:.3f} (was {two:.3f} at step 2)" in lines
    curves = [line for line in lines if "BASIC's premise (README): visual tokens nearest to a word" in line]
    assert [line.split(":")[0] for line in curves] == ["step 0", "step 2", "step 4"]
    told = r"v \S\d\.\d{3} → v̂ \S\d\.\d{3}, gain \S+ over \d samples, too few .* 16 at least: can't tell"
    told += r" \(best after layer \d: [+-]\d"
    assert all(re.search(told, line) for line in curves)
    # The answers are those that the trained model gives when it is asked outside of the run.
    (last,) = (line["answers"] for line in log_of(folder) if "answers" in line and line["step"] == 4)
    loaded, bundle = load_trained(folder, torch.device("cpu"))
    from basic_lite.data.sources import load_records
    from basic_lite.recipe.schema import SourceSection

    records = list(load_records(SourceSection(**changes["data.eval"]), root=tmp_path))
    texts = answer(
        loaded, chat_format(bundle.recipe, loaded.frontend), records, image_fit="pad", batch_size=1, max_new_tokens=6
    )
    assert [one["answer"] for one in last] == [" ".join(text.split()) for text in texts]
    assert [one["picture"] for one in last] == [f"{i}.png" for i in range(7)] and last[1]["reference"] == "it is blue"
    place = lines.index(
        "  1.png: what colour is it ? there", lines.index(f"step 4: {held_out_text(4, four, [(2, two)])[8:]}")
    )
    # Before the first step they are only asked, and of the others none is on the terminal.
    assert sum(line.startswith("    answer: ") for line in lines) == 2 * 2
    assert lines[place + 1] == f"    answer: {last[1]['answer']}" and lines[place + 2] == "    reference: it is blue"


def test_stage_one_is_asked_for_captions_as_it_was_trained(tmp_path: Path) -> None:
    """The `plain` template has no question; a model that has learnt one caption by heart gives it."""
    write_data(tmp_path, 1, captions=True)
    changes = with_held_out(tmp_path, 1, **{"stage": 1, "lora.enabled": False, "data.template": "plain"})
    changes |= {"training.max_steps": 25, "training.projector_learning_rate": 0.05, "training.global_batch": 1}
    changes |= {"training.micro_batch": 1, "supervision.enabled": False, "training.scheduler": "constant"}
    folder, lines = shown(tmp_path, changes)
    _, answers = (line["answers"] for line in log_of(folder) if "answers" in line)
    (one,) = answers
    assert (one["picture"], one["question"], one["reference"]) == ("0.png", "", "it is red")
    assert one["answer"].startswith("it is red")  # what ends a caption in `plain`, this tokenizer doesn't have
    assert "  0.png" in lines


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("another")])
def test_no_memory_for_answers_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def fail(*_: Any, **__: Any) -> list[str]:
        raise error

    monkeypatch.setattr(samples, "answer", fail)
    changes = with_held_out(tmp_path, **{"training.eval_every": 2})
    if "another" in str(error):
        with pytest.raises(RuntimeError, match="another"):
            shown(tmp_path, changes)
        return
    folder, lines = shown(tmp_path, changes)
    assert sum("not enough memory for held-out answers; training.eval_answers=0" in line for line in lines) == 3
    assert len(steps_of(folder)) == 4 and (folder / "final").is_dir()


def test_the_last_line_says_all_that_one_asks_for(tmp_path: Path) -> None:
    """Held-out data is evaluated at the end, also without ``eval_every``."""
    folder, lines = shown(tmp_path, with_held_out(tmp_path))
    for name, steps in (("eval_loss", [4]), ("answers", [0, 4])):
        assert [line["step"] for line in log_of(folder) if name in line] == steps
    steps, held_out = steps_of(folder), next(line["eval_loss"] for line in log_of(folder) if "eval_loss" in line)
    first, last = steps[0]["loss"], steps[-1]["loss"]
    assert lines[-1].startswith("finished: 4 steps in 0:")
    assert (
        f", loss {first:.3f} → {last:.3f}, held-out {held_out:.3f}; the trained model is {folder / 'final'}"
        in lines[-1]
    )
    assert lines[-1].endswith(f"ask it: basic-lite chat {folder} PICTURE")
    went_on = finished_text(2, 4, 0.0, lambda name: [(1, 9.0), (3, 5.0), (4, 4.0)] * (name == "loss"), folder, folder)
    assert went_on.startswith("finished: steps 3 to 4 in 0:00, loss 5.000 → 4.000; "), "not from the first part's 9"
    again = finished_text(4, 4, 0.0, lambda name: [], Path("my runs/x"), Path("my runs/x/final"))
    assert again.startswith("finished: no step left in 0:00; the trained model is my runs/x/final; ")
    assert again.endswith(f"ask it: {command_line(['basic-lite', 'chat', str(Path('my runs/x')), 'PICTURE'])}")


@pytest.mark.parametrize(
    ("new", "end"),
    [
        (True, ": the model learns the training data by heart; try training.max_steps=2, or more data"),
        (False, "; some or all of that data was trained on before, so the model may only have lost what it knew of it"),
    ],
)
def test_a_rise_is_said_before_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool, end: str
) -> None:
    found = iter((2.0, 1.363, 1.4, 1.892))
    monkeypatch.setattr(evaluation.Evaluation, "_loss", lambda *_: next(found))
    changes = with_held_out(tmp_path, **{"training.eval_every": 1, "training.eval_answers": 0})
    if new:  # pictures of its own
        other = with_held_out(tmp_path / "new")["data.eval"]
        for n, picture in enumerate(sorted((tmp_path / "new" / "images").iterdir())):
            write_image(picture, seed=n)
        changes["data.eval"] = other
    _, lines = shown(tmp_path, changes)
    assert lines[-2] == f"held-out loss was lowest at step 2 (1.363) and is 1.892 now{end}"
    assert lines[-1].startswith("finished: ")


@pytest.mark.parametrize(
    ("losses", "end"),
    [
        ([(36, 1.363), (72, 1.892)], "try training.epochs=3, or more data"),
        (
            [(0, 1.0), (5, 1.06)],
            "start; try training.learning_rate=0.0001 training.projector_learning_rate=0.0001, or more data",
        ),
        ([(0, 2.0), (5, 1.0), (10, 1.049)], None),
        ([(5, float("nan")), (9, 2.0), (12, 3.0)], "try training.epochs=0.75, or more data"),
        ([(5, 2.0), (9, float("nan"))], "try a lower training.projector_learning_rate or training.learning_rate"),
        ([(5, float("nan"))], None),
        ([], None),
    ],
)
def test_only_a_clear_rise_is_said(tmp_path: Path, losses: list[tuple[int, float]], end: str | None) -> None:
    text = overfit_text(losses, tiny_recipe(tmp_path, {"training.max_steps": None}), lambda step: step / 12)
    assert text is None if end is None else str(text).endswith(end)
    met = overfit_text(losses, tiny_recipe(tmp_path, {}), lambda step: step / 12, new=False)
    if end is None or losses[-1][1] != losses[-1][1]:
        assert met == text
    else:
        assert "by heart" not in str(met) and "lost what it knew" in str(met)
    assert "finished: 1 step in" in finished_text(0, 1, 0.0, lambda name: [], tmp_path, tmp_path)
    assert held_out_text(9, float("nan"), [(5, 2.0)]) == "step 9: held-out loss is no number (was 2.000 at step 5)"
    for losses, told in (([(1, 4.15)], ", loss 4.150;"), ([(1, 4.15), (9, 3.0)], ", loss 4.150 → 3.000;")):
        values = {"loss": losses, "eval_loss": []}.__getitem__
        assert told in finished_text(0, 9, 0.0, values, tmp_path, tmp_path)


def test_a_step_of_text_alone_shows_the_last_known_basic(tmp_path: Path) -> None:
    """Its own terms are zero, which is what the log has; the line keeps the values of the last step with images."""
    write_data(tmp_path, 4, text_only=8)
    console = Console(file=io.StringIO(), width=120)
    changes = {**LOUD, "training.max_steps": 6, "training.micro_batch": 4, "training.epochs": 2.0}
    folder = train(tiny_recipe(tmp_path, changes), console=console).folder
    logged = steps_of(folder)
    assert {line["das"] == 0 for line in logged} == {True, False}  # steps of both kinds
    (line,) = (one for one in console.file.getvalue().splitlines() if one.startswith("tiny 6/6"))  # type: ignore[attr-defined]
    known = next(one for one in reversed(logged) if one["das"])
    assert f"das {known['das']:.3f} sds {known['sds']:.3f}" in line


@pytest.mark.parametrize("width", [40, 80, 116, 160])
def test_the_live_line_fits_and_leaves_nothing_behind(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=30, force_terminal=True)
    line = ProgressLine(console, "my_photos")
    line.start(0)
    values = {"loss": 12.345, "lm": 12.345, "das": 1.234, "sds": 123.456, "sum_a": 0.5, "cos": 0.9}
    line.show(1234, 2180, {**values, "tokens_per_s": 12345.0, "peak_memory_gib": 23.45})
    text = line.line(1234, 2180)
    assert all(cell_len(row) <= width for row in text.plain.split("\n"))
    for word in ("my_photos 1234/2180", "loss 12.345", "sds 123.456", "tok/s 12,345", "GiB 23.45", "left "):
        assert any(word in row for row in text.plain.split("\n")), text.plain
    assert ("\n" in text.plain) == (width < 116)
    line.show(1234, 2180, {"peak_memory_gib": 0.002})
    assert "MiB 2" in line.line(1234, 2180).plain, "of a tiny model on a card"
    line.close()
    # The last thing written goes up over the line's rows and erases each of them.
    rows = text.plain.count("\n") + 1
    assert console.file.getvalue().count("\x1b[2K") >= rows  # type: ignore[attr-defined]
    assert console.file.getvalue().rstrip("\r").endswith("\x1b[2K")  # type: ignore[attr-defined]


def test_a_notebook_and_a_file_have_plain_lines() -> None:
    for console in (Console(file=io.StringIO(), force_jupyter=True), Console(file=io.StringIO())):
        line = ProgressLine(console, "x")
        line.start(0)
        assert line._live is None


def test_the_pace_is_measured_once_where_a_run_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("basic_lite.training.progress.time.perf_counter", lambda: now)
    said: list[str] = []

    def steps(first: int, total: int, seconds: float) -> list[str]:
        said.clear()
        pace = Pace(torch.device("cpu"), first, total, said.append)
        for step in range(first + 1, first + 9):
            pace.add(step, now - (50.0 if step == first + 1 else seconds))  # the first one is slow
        return said

    text = "measured over steps 2 to 4: 2.5 s a step, so 12:30 for all 300 steps; evaluations and saving come on top"
    assert steps(0, 300, 2.5) == [text]
    assert steps(100, 300, 2.5) == [
        text.replace("2 to 4", "102 to 104").replace("12:30 for all 300 steps", "8:20 for the 200 steps left")
    ]
    assert steps(0, 300, 0.01) == []

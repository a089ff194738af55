"""The demo from end to end, small; the whole one is a soak test."""

from __future__ import annotations

import csv
import functools
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import basic_lite.demo.run as demo_run
from basic_lite.cli import main
from basic_lite.demo.compare import Beside, acted
from basic_lite.errors import UserError
from basic_lite.scoring.metrics.exact import normalise
from tests.support.answers import Prompt
from tests.support.programs import transformers_answers
from tests.support.runs import log_of, quiet, steps_of

SMALL = {
    "train_scenes": 80,
    "held_out_scenes": 20,
    "captions": 64,
    "questions": 96,
    "eval_questions": 12,
    "eval_captions": 6,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real demo on a small world, for a few steps."""
    real = demo_run.Place.recipe

    def short(self: demo_run.Place, stage: int, folder: Path, **changes: Any) -> Any:
        steps = {"training__max_steps": 4, "training__log_every": 1, "training__global_batch": 8}
        batch = {"training__micro_batch": 8, "data__workers": 0, "supervision__refinement_batches": 8}
        return real(self, stage, folder, **{**steps, **batch, **changes})

    monkeypatch.setattr(demo_run, "write_world", functools.partial(demo_run.write_world, **SMALL))
    monkeypatch.setattr(demo_run.Place, "recipe", short)


def shown_by(console: Any) -> str:
    return console.file.getvalue()


def table_in(report: str) -> str:
    found = re.search(r"question type.*?(?=chance: the best)", report, re.DOTALL)
    assert found is not None
    return found.group()


@pytest.mark.soak
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("cores", [1, 2])
def test_basic_on_and_off_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr("basic_lite.demo.compare.usable_cores", lambda: cores)
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", str(tmp_path / "demo"), "--compare"])
    out = capsys.readouterr().out
    assert not stopped.value.code and "12 questions" in out and "minus BASIC off" in out
    assert "BASIC stayed off in the demo's run" in out and not acted([tmp_path / "demo" / "stage2"])
    assert all("das" in line for line in steps_of(tmp_path / "demo" / "on" / "stage2"))
    assert "BASIC on against BASIC off" in (tmp_path / "demo" / "compare.html").read_text()
    # On a second core the output of the other training goes to a file.
    output = tmp_path / "demo" / "on" / "output.txt"
    assert output.exists() == (cores == 2) and ("held-out questions, BASIC on" in out) == (cores == 1)
    assert cores == 1 or "held-out questions, BASIC on" in output.read_text()


@pytest.mark.soak
@pytest.mark.usefixtures("small")
def test_a_training_beside_that_fails_goes_on_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Beside.start

    def killed(self: Beside) -> None:
        started(self)
        assert self.process is not None
        self.process.kill()

    monkeypatch.setattr("basic_lite.demo.compare.usable_cores", lambda: 2)
    monkeypatch.setattr(Beside, "start", killed)
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", str(tmp_path / "demo"), "--compare"])
    out = capsys.readouterr().out
    assert not stopped.value.code and "so they go on here" in out
    assert (tmp_path / "demo" / "compare.html").exists()


@pytest.mark.usefixtures("small")
def test_what_was_trained_beside_ends_with_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends it: nothing goes on training unseen."""
    seen: list[Beside] = []

    def fails(*_: Any) -> None:
        raise UserError("no room")

    def started(self: Beside) -> None:
        seen.append(self)
        start(self)

    start = Beside.start
    monkeypatch.setattr("basic_lite.demo.compare.usable_cores", lambda: 2)
    monkeypatch.setattr(Beside, "start", started)
    monkeypatch.setattr(demo_run, "_train_and_score", fails)
    with pytest.raises(UserError, match="no room"):
        demo_run.demo(tmp_path / "demo", compare=True, console=quiet())
    (other,) = seen
    assert other.process is not None and not other.process.is_alive()


def test_whether_basic_acted_is_read_from_the_losses(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0, "gate": {}}\n{"step": 1, "lm": 2.0}\n')
    assert not acted([tmp_path])
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 2, "lm": 2.0, "das": 0.5}\n')
    assert acted([tmp_path])


@pytest.mark.soak
@pytest.mark.usefixtures("small")
def test_demo_reports_and_reuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = quiet()
    demo_run.demo(tmp_path / "demo", seed=3, console=console)
    report = shown_by(console)
    for text in (
        "chance", "before training", "after stage 1", "after stage 2", "other image", "caption F1", "refinement curve",
        "h4", "v̂", "time", "total", "run folder", "report.html", "basic-lite chat",
        "Right word for word: after stage 1 ", "your own photos",
    ):  # fmt: skip
        assert text in report, text
    parts = json.loads((tmp_path / "demo" / "stage2" / "parts.json").read_text())
    assert {p["dtype"] for p in parts if p["part"] == "LLM linears"} == {"nf4 double"}
    assert any("gate" in line for line in log_of(tmp_path / "demo" / "stage2"))

    # The lines that it ends with work as they stand.
    chat, export, plain = (
        shlex.split(line) for line in report.splitlines() if line.startswith(("  basic", "  python"))
    )
    for words in (chat, export):
        with pytest.raises(SystemExit) as stopped:
            main(words[1:])
        assert not stopped.value.code
    said = capsys.readouterr().out.splitlines()[0]
    done = subprocess.run([sys.executable, *plain[1:]], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == said

    # Again: everything is there, so nothing is trained, and the table is the same.
    again = quiet()
    demo_run.demo(tmp_path / "demo", seed=3, console=again)
    assert table_in(shown_by(again)) == table_in(report)
    assert shown_by(again).count("(reused)") == 3


@pytest.mark.soak
@pytest.mark.usefixtures("small")
def test_demo_repeats_and_replaces(tmp_path: Path) -> None:
    here, elsewhere = quiet(), quiet()
    demo_run.demo(tmp_path / "demo", seed=3, console=here)
    # Elsewhere with the same seed: the same run.
    demo_run.demo(tmp_path / "other", seed=3, console=elsewhere)
    assert table_in(shown_by(elsewhere)) == table_in(shown_by(here))
    for stage in ("stage1", "stage2"):
        one, other = steps_of(tmp_path / "demo" / stage), steps_of(tmp_path / "other" / stage)
        assert [line["loss"] for line in one] == [line["loss"] for line in other]

    # There with another seed: all of it is replaced.
    replaced = quiet()
    demo_run.demo(tmp_path / "other", seed=1, console=replaced)
    assert "(reused)" not in shown_by(replaced)
    assert steps_of(tmp_path / "other" / "stage2")[-1]["loss"] != one[-1]["loss"]


def test_a_folder_with_other_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "thesis.txt").write_text("do not lose")
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "world" / "thesis.txt").exists()


@pytest.mark.soak
def test_the_whole_demo(tmp_path: Path) -> None:
    """≤ 4 minutes on two free cores; ≥ 85 % of held-out questions; what it learnt, it learnt from the pictures."""
    started = time.perf_counter()
    demo_run.demo(tmp_path / "demo", console=quiet())
    seconds = time.perf_counter() - started

    def scores(name: str) -> dict[str, float]:
        text = (tmp_path / "demo" / "scores" / f"{name}.json").read_text()
        return json.loads(text)["scores"]["accuracy"]

    assert scores("stage2")["all"] >= 0.85
    assert scores("shuffled")["all"] <= 0.5
    assert scores("before")["all"] <= scores("stage1")["all"] <= scores("stage2")["all"]
    assert seconds <= 240
    check_its_export(tmp_path / "demo", tmp_path, scores("stage2")["all"])


def check_its_export(demo: Path, scratch: Path, score: float) -> None:
    """≤ 20 s on two free cores; plain transformers answers as many held-out questions, but for two."""
    started = time.perf_counter()
    words = ["export", str(demo / "stage2"), str(scratch / "exported")]
    subprocess.run([sys.executable, "-m", "basic_lite", *words], check=True, cwd=scratch)
    seconds = time.perf_counter() - started
    records = json.loads((demo / "world" / "eval.json").read_text())
    prompts = [
        Prompt(
            str(demo / "world" / "images" / record["image"]),
            record["conversations"][0]["value"].removeprefix("<image>").strip(),
        )
        for record in records
    ]
    answers = transformers_answers(scratch / "exported", prompts, scratch)
    references = [record["conversations"][1]["value"] for record in records]
    right = sum(normalise(one.text) == normalise(other) for one, other in zip(answers, references, strict=True))
    assert abs(right - score * len(records)) <= 2, right
    assert seconds <= 20


def test_photos_to_try_the_data_command_with(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--photos", str(folder)])
    assert not stopped.value.code
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 50 == len(list(folder.glob("*.png"))) and all(row["caption"] for row in rows)
    assert all((folder / row["image"]).is_file() for row in rows)
    with pytest.raises(SystemExit) as refused:
        main(["demo", "--photos", str(folder)])
    assert refused.value.code == 2

"""The probe where a user meets it: at a run's end, in its log and report, and as a command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from basic_lite.cli import main
from basic_lite.errors import NoMemory
from basic_lite.run import train
from basic_lite.tools import text_probe
from basic_lite.tools.report.page import write_report
from basic_lite.tools.text_probe import probe_run
from basic_lite.training.interruption import Interruption
from basic_lite.training.log import RunLog
from basic_lite.training.processes import ALONE
from basic_lite.training.text_probe import at_end
from basic_lite.training.text_probe import measure as measuring
from basic_lite.training.text_probe.measure import FROZEN
from basic_lite.training.text_probe.outcome import NoOutcome, outcome_from
from basic_lite.training.text_probe.scoring import Stopped
from tests.support.readers import few_passages, few_questions, write_reader
from tests.support.runs import assert_same_weights, log_of, quiet, tiny_recipe

# What differs from run to run.
TIMES = {"tokens_per_s", "step_s", "time", "peak_memory_gib"}


@pytest.fixture(autouse=True, scope="module")
def _few() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "passages", few_passages)
        patch.setattr(measuring, "questions", few_questions)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    write_reader(folder / "reader")
    return folder


def run(folder: Path, name: str, **changes: Any) -> tuple[Path, list[str]]:
    """A run of the reader with BASIC, dropout and recomputed layers; its folder and what it said."""
    every = {"name": name, "model.llm": str(folder / "reader"), "lora.dropout": 0.3, "training.learning_rate": 0.05}
    recipe = tiny_recipe(folder, {**every, "training.text_probe": True, "training.max_steps": 2, **changes})
    console = quiet()
    path = train(recipe, console=console, report=write_report).folder
    return path, console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Path, list[str]]:
    return run(folder, "on")


@pytest.mark.long
def test_on_or_off_the_training_is_the_same(folder: Path, made: tuple[Path, list[str]]) -> None:
    on, _ = made
    off, said = run(folder, "off", **{"training.text_probe": False})
    assert_same_weights(on / "final", off / "final")
    logs = [[{k: v for k, v in line.items() if k not in TIMES} for line in log_of(one)] for one in (on, off)]
    assert [line for line in logs[0] if "text_probe" not in line] == logs[1]
    assert not any("text probe" in line for line in said)


def test_the_end_says_and_logs_it(made: tuple[Path, list[str]]) -> None:
    path, said = made
    lines = [line for line in said if line.startswith("text probe: the LLM's own ability with text ")]
    assert len(lines) == 1 and said.index(lines[0]) < len(said) - 1, "the run's last line is the last"
    record = log_of(path)[-1]
    assert set(record) == {"step", "text_probe"} and record["step"] == 2
    found = outcome_from(record["text_probe"])
    assert lines[0] == f"text probe: {found.text}" and found.bits.difference.value != 0


def test_the_report_shows_it(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    found = outcome_from(log_of(made[0])[-1]["text_probe"])
    page = (made[0] / "report.html").read_text(encoding="utf-8")
    assert "<h2>The LLM&#39;s own ability with text</h2>" in page or "<h2>The LLM's own ability with text</h2>" in page
    assert f"<td>{found.kinds[0].name}</td><td>{found.kinds[0].n}</td>" in page.replace("\n", "")
    copied = tmp_path / "run"
    shutil.copytree(made[0], copied)
    lines = [line for line in log_of(copied) if "text_probe" not in line]
    for damaged in ({}, {"step": 2, "text_probe": 3}, {"step": 2, "text_probe": {"bits": {}}}):
        (copied / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, damaged]))
        assert "own ability with text" not in write_report(copied).read_text(encoding="utf-8")


def test_the_command_finds_the_same_and_the_report_takes_it(
    made: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made[0], run)
    lines = [line for line in log_of(run) if "text_probe" not in line]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as ended:
        main(["text-probe", str(run), "--device", "cpu"])
    out = capsys.readouterr().out
    logged = log_of(made[0])[-1]["text_probe"]
    assert not ended.value.code and out.splitlines()[-1] == outcome_from(logged).text
    kept = json.loads((run / "text_probe_final.json").read_text())
    assert kept["text_probe"] == logged and kept["step"] == 2
    assert "own ability with text" in write_report(run).read_text(encoding="utf-8")
    kept["model_sha256"] = "another"
    (run / "text_probe_final.json").write_text(json.dumps(kept))
    assert "own ability with text" not in write_report(run).read_text(encoding="utf-8")


def test_a_frozen_llm_is_not_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "nats_of", lambda *_: pytest.fail("measured"))
    path, said = run(folder, "frozen", **{"stage": 1, "lora.enabled": False, "training.max_steps": 1})
    assert f"text probe: {FROZEN}" in said
    console = Console(file=quiet().file, width=200)
    assert probe_run(path, console=console).text == FROZEN, "no model is loaded for that"
    assert FROZEN[4:] in (path / "report.html").read_text(encoding="utf-8").replace("The LLM is", "the LLM is")


class Failing:
    """``measure`` that raises; it notes the sizes that were tried."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.sizes: list[int] = []

    def __call__(self, *_: Any, tokens_at_once: int, **__: Any) -> None:
        self.sizes.append(tokens_at_once)
        raise self.error


def test_without_memory_the_run_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_end, "measure", failing := Failing(MemoryError("out of memory")))
    path, said = run(folder, "fails", **{"training.max_steps": 1})
    later = f"measure it later with: basic-lite text-probe {path}"
    assert any("not enough memory beside the training" in line and line.endswith(later) for line in said)
    assert said[-1].startswith("finished: 1 step") and (path / "final" / "manifest.json").is_file()
    assert failing.sizes == list(at_end.SIZES) and "text_probe" not in log_of(path)[-1]


def test_a_command_without_memory_says_what_mends_it(
    made: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_end, "measure", failing := Failing(MemoryError("out of memory")))
    with pytest.raises(NoMemory, match=r"^out of memory with a single text; free some, or give --device cpu$"):
        probe_run(made[0], device="cpu", console=quiet())
    assert failing.sizes == list(at_end.SIZES)
    monkeypatch.setattr(text_probe, "load_trained", lambda *_: torch.empty(2**60))
    with pytest.raises(NoMemory, match=r"^out of memory in loading the model; free some, or give --device cpu$"):
        probe_run(made[0], device="cpu", console=quiet())


def test_after_out_of_memory_the_bar_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would run over its end if the texts of the try that failed stayed in it."""
    bars: list[list[int]] = []

    @contextmanager
    def bar() -> Iterator[Callable[[int], None]]:
        bars.append([])
        yield bars[-1].append

    def measure(*_: Any, tokens_at_once: int, progress: Callable[[int], None], **__: Any) -> NoOutcome:
        progress(3)
        if tokens_at_once > 1:
            raise MemoryError("out of memory")
        progress(4)
        return NoOutcome("read")

    monkeypatch.setattr(at_end, "measure", measure)
    assert at_end.measured(None, nullcontext, bar) == NoOutcome("read")  # type: ignore[arg-type]
    assert bars == [[3], [3], [3, 4]]


@pytest.mark.parametrize(
    "error, word",
    [
        (ValueError("odd"), "no text probe, through a fault of basic-lite's own (ValueError: odd)"),
        (Stopped(), "stopped: the text probe is left out; measure it later with: basic-lite text-probe"),
    ],
)
def test_nothing_else_of_it_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, word: str
) -> None:
    monkeypatch.setattr(at_end, "measure", Failing(error))
    recipe, said = tiny_recipe(tmp_path, {"training.text_probe": True}), list[str]()
    loaded = SimpleNamespace(parts=SimpleNamespace(device=torch.device("cpu")))
    log, interruption = RunLog(tmp_path / "log.jsonl", ALONE), Interruption(said.append, alone=True)
    at_end.probe_at_end(recipe, loaded, ALONE, log, 1, said.append, interruption)  # type: ignore[arg-type]
    assert len(said) == 1 and word in said[0] and not log.path.exists()

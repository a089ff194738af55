"""Tables at 40, 80 and 120 columns, in a pipe and in a notebook: whole cells, no line wider than the terminal."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from torch.utils.data import DataLoader

from basic_lite.cards import Card
from basic_lite.console import Sheet, quiet_libraries, show, show_entry
from basic_lite.demo.report import Phases, refinement_table
from basic_lite.model.audit import Part, render
from basic_lite.rehearsal.hours import CardTimes, Work, cards_table
from basic_lite.tools.dry_run import dry_run
from basic_lite.tools.estimate import estimate
from basic_lite.tools.score import accuracy_table
from tests.support.runs import tiny_recipe, write_data


def terminal(width: int, *, is_terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None)


def said(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


class Timed(CardTimes):
    """An outlook whose times are known."""

    def on(self, card: Card) -> tuple[float, str]:
        return 1e9 / card.tflops, "micro-batch 128, 25 of 32 layers recomputed, their inputs on the host"


def sheets() -> list[Sheet]:
    """The tables that the commands print, with figures as large as they get."""
    one = Timed(Work(5000, 150_000), None, True)  # type: ignore[arg-type]
    shares = {name: {"how many": 0.5, "all": 0.75} for name in ("before training", "after stage 1", "other image")}
    curve = {"places": ["v", *(f"h{n}" for n in range(1, 33)), "target"], "score": [-0.125] * 34}
    phases = Phases(terminal(80))
    phases.seconds = {"stage 2: projector and LoRA learn questions": 123.4}
    facts = Sheet(("", ""))
    facts.add("trainable parameters", "340,787,200 of 7,403,210,752")
    facts.add("BASIC adds", "v̂ from layers 1..16 of 32; 1.1% more operations a step and 18 MiB of buffers")
    return [
        render(
            [
                Part("vision tower", "CLIPVisionModel", "bfloat16", 303_507_456, 0, 607_014_912),
                Part("LLM linears", "Linear4bit", "nf4 double", 6_476_005_376, 0, 3_351_724_032),
                Part("LoRA", "Linear", "float32", 319_815_680, 319_815_680, 1_279_262_720),
            ]
        ),
        accuracy_table(shares, {"how many": 1200, "all": 1200}),
        refinement_table({"stage2": {"start": curve, "end": curve}}),
        phases.table(),
        cards_table({"one": one}, "150,000 records"),
        cards_table({"small_pretrain": one, "small_instruct": one}),
        facts,
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_every_cell_is_whole_at_every_width(width: int) -> None:
    for sheet in sheets():
        console = terminal(width)
        show(console, sheet)
        lines = said(console)
        assert all(cell_len(line) <= width for line in lines), "\n".join(lines)
        text = " ".join(word for line in lines for word in line.split())
        assert "…" not in text
        for cells, _ in sheet.rows:
            for name, cell in zip(sheet.columns, cells, strict=True):
                if name and width > 40:  # a sentence may be broken over lines, and so may long names at 40 columns
                    assert cell in text, (cell, text)
                assert all(word in text for word in cell.split())


def test_a_wide_terminal_has_frames_and_a_narrow_one_paragraphs() -> None:
    parts = sheets()[0]
    wide, middle, narrow = terminal(120), terminal(80), terminal(40)
    for console in (wide, middle, narrow):
        show(console, parts)
    assert "│ LoRA         │ Linear          │" in wide.file.getvalue()  # type: ignore[attr-defined]
    # A few columns too wide for its frame: the same columns without it.
    assert any(
        line.split() == ["LoRA", "Linear", "float32", *["319,815,680"] * 2, "1.19", "GiB"] for line in said(middle)
    )
    lines = said(narrow)
    place = lines.index("LoRA")
    assert [line.rstrip() for line in lines[place + 1 : place + 5]] == [
        "  class Linear, dtype float32,",
        "  parameters 319,815,680,",
        "  trainable 319,815,680,",
        "  memory 1.19 GiB",
    ]


@pytest.mark.parametrize("jupyter", [False, True])
def test_a_log_file_has_neither_frames_nor_colours_nor_broken_lines(jupyter: bool) -> None:
    console = Console(file=io.StringIO(), width=80, force_jupyter=jupyter)
    assert not console.is_terminal  # so no line is rewritten there either
    if jupyter:
        return
    for sheet in sheets():
        show(console, sheet)
        lines = said(console)[-len(sheet.rows) - 1 :]
        assert all(line == line.rstrip() for line in lines)
        assert [line.split("  ")[0] for line in lines][-len(sheet.rows) :] == [cells[0] for cells, _ in sheet.rows]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text and not set("│┃━─┌┐") & set(text)
    assert max(map(len, text.splitlines())) > 200  # the curve of 32 layers, in one line


def test_wide_letters_are_counted_as_they_are_shown() -> None:
    sheet = Sheet(("question type", "n"))
    sheet.add("色は何ですか", "12")
    sheet.add("colour", "3")
    console = terminal(80, is_terminal=False)
    show(console, sheet)
    assert len({cell_len(line) for line in said(console)}) == 1


@pytest.mark.long
def test_dry_run_and_estimate_at_40_columns(tmp_path: Path) -> None:
    write_data(tmp_path, 6)
    recipe = tiny_recipe(tmp_path, {"training.micro_batch": 1})
    for command in (lambda c: dry_run(recipe, c), lambda c: estimate(recipe, gpu=8.0, console=c)):
        console = terminal(40)
        command(console)
        lines = said(console)
        assert all(cell_len(line) <= 40 for line in lines), "\n".join(lines)
        assert "…" not in "".join(lines)


def test_keys_are_broken_between_words_on_a_terminal_alone() -> None:
    narrow, pipe = terminal(40), terminal(40, is_terminal=False)
    body = "Optimizer steps between evaluations on held-out data; none: one, at the end."
    for console in (narrow, pipe):
        show_entry(console, "training.eval_every  (an integer; default none)", body)
    assert all(len(line) <= 40 for line in said(narrow)) and said(pipe)[1] == f"    {body}"
    assert all(line.startswith("    ") for line in said(narrow)[2:])


def test_a_run_shows_none_of_torchs_warnings_of_workers() -> None:
    """They name no key; of workers that are more than cores, the run's own line on its time speaks."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet_libraries()
        DataLoader(range(4), num_workers=1000)  # type: ignore[arg-type]
    assert heard == []

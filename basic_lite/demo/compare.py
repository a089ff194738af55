"""``basic-lite demo --compare``: the demo's run beside one with BASIC on from the start, as the paper has it."""

import multiprocessing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from rich.console import Console

from basic_lite.console import quiet_libraries, speaker
from basic_lite.cores import usable_cores
from basic_lite.demo.place import EVAL_BATCH, Place, logged
from basic_lite.recipe.schema import Recipe
from basic_lite.run import run_stage
from basic_lite.tools.compare.command import compare
from basic_lite.tools.compare.comparison import Side
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.report.page import write_report

PAGE, OUTPUT = "compare.html", "output.txt"
ON, OFF, MEASURED = "BASIC on", "BASIC off", "BASIC where its premise holds"
# The losses in a log that only BASIC has.
_LOSSES = ("das", "sds")


class Beside:
    """Both stages with BASIC on, and their held-out questions, in a process of its own while the demo's own run goes.

    On one core there is none: then all of it is done afterwards.
    """

    def __init__(self, place: Place, console: Console) -> None:
        self.place, self.console, self.recipes = place, console, _recipes(place, ON)
        self.output = place.out / "on" / OUTPUT
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        if usable_cores() < 2:
            return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        speaker(self.console)(f"beside it, both stages are trained with BASIC on from the start: {self.output}")
        # A fresh interpreter: this one has threads, which a fork would not take along.
        self.process = multiprocessing.get_context("spawn").Process(
            target=_train_and_ask, args=(self.place, self.recipes, self.output)
        )
        self.process.start()

    def finished(self) -> bool:
        """Wait for it. False: there is none, or it failed, and what it left undone is to be done here."""
        if self.process is None:
            return False
        if self.process.is_alive():
            speaker(self.console)("waiting for the stages with BASIC on")
        self.process.join()
        if self.process.exitcode:
            speaker(self.console)(f"the stages with BASIC on broke off ({self.output} says why), so they go on here")
        return not self.process.exitcode

    def stop(self) -> None:
        """It keeps what it has; the same command goes on from there."""
        if self.process is not None and self.process.is_alive():
            self.process.terminate()
            self.process.join()


@contextmanager
def beside(place: Place, console: Console) -> Iterator[Beside]:
    """The other training while something else is done; stopped when that is."""
    other = Beside(place, console)
    try:
        other.start()
        yield other
    finally:
        other.stop()


def compare_on_and_off(place: Place, other: Beside, console: Console) -> None:
    """Ask all runs the held-out questions, and compare them.

    The demo's recipes turn BASIC on where its premise is measured to hold. Where that never was, the demo's run is the
    one without BASIC. Else one without it is trained too, and the demo's own is the third.

    Args:
        place: of a demo that has run.

    Raises:
        Interrupted: Ctrl-C during a training; the same command goes on.
    """
    say = speaker(console)
    own = MEASURED if acted(place.out / stage for stage in ("stage1", "stage2")) else OFF
    runs = {own: _ask(place, own, place.out / "stage2", console)}
    if own == OFF:
        say("BASIC stayed off in the demo's run, as its premise wasn't measured to hold")
    else:
        say("BASIC was on for a part of the demo's run, so both stages are trained without it too")
        runs[OFF] = _ask(place, OFF, _train(_recipes(place, OFF), OFF, console), console)
    runs[ON] = other.recipes[-1].run_path
    if not other.finished():
        _ask(place, ON, _train(other.recipes, ON, console), console)
    console.rule("[bold]BASIC on and off", align="left")
    sides = [Side(name, (runs[name],)) for name in (OFF, MEASURED, ON) if name in runs]
    compare(sides, place.out / PAGE, console)


def acted(runs: Iterable[Path]) -> bool:
    """Whether BASIC was on at any step of one of the runs."""
    return any(logged(run, loss) for run in runs for loss in _LOSSES)


def _recipes(place: Place, name: str) -> list[Recipe]:
    """Both stages, made here: a process of its own has nothing but what it is given."""
    if name == ON:
        return [place.recipe(stage, place.out / "on", supervision__preset="paper") for stage in (1, 2)]
    return [place.recipe(stage, place.out / "off", supervision__enabled=False) for stage in (1, 2)]


def _train(recipes: Iterable[Recipe], name: str, console: Console) -> Path:
    """The run of the last stage."""
    for stage, recipe in enumerate(recipes, 1):
        console.rule(f"[bold]{name}, stage {stage}", align="left")
        run_stage(recipe, replace=True, console=console, report=write_report)
    return recipe.run_path


def _ask(place: Place, name: str, run: Path, console: Console) -> Path:
    console.rule(f"[bold]held-out questions, {name}", align="left")
    evaluate_run(
        run, place.world.eval, image_dir=place.world.images, batch_size=EVAL_BATCH, device="cpu", console=console
    )
    return run


def _train_and_ask(place: Place, recipes: Iterable[Recipe], output: Path) -> None:
    """What the process beside does."""
    torch.set_num_threads(1)
    output.unlink(missing_ok=True)  # it may be a link
    with output.open("x", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        quiet_libraries()
        console = Console(file=file, highlight=False)
        _ask(place, ON, _train(recipes, ON, console), console)

"""``basic-lite demo --compare``: the demo's run beside the same run with BASIC the other way, on or off."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from basic_lite.console import speaker
from basic_lite.demo.place import EVAL_BATCH, Place, logged
from basic_lite.run import run_stage
from basic_lite.tools.compare.command import compare
from basic_lite.tools.compare.comparison import Side
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.report.page import write_report

PAGE, ON, OFF = "compare.html", "BASIC on", "BASIC off"
# The losses in a log that only BASIC has.
_LOSSES = ("das", "sds")


def compare_on_and_off(place: Place, console: Console | None = None) -> None:
    """Train both stages again, ask both runs the held-out questions, and compare them.

    The demo's recipes turn BASIC on where its premise is measured to hold. Where that never was, the demo's run is the
    one without BASIC, and the other one has it from the start; else the other one is without.

    Args:
        place: of a demo that has run.

    Raises:
        Interrupted: Ctrl-C during a training; the same command goes on.
    """
    console = console or Console(highlight=False)
    say = speaker(console)
    if acted(place.out / stage for stage in ("stage1", "stage2")):
        own, other = ON, OFF
        changes: dict[str, Any] = {"supervision__enabled": False}
        say("BASIC was on in the demo's run, so both stages are trained again without it")
    else:
        own, other = OFF, ON
        changes = {"supervision__preset": "paper"}
        say(
            "BASIC stayed off in the demo's run, as its premise wasn't measured to hold; both stages are trained again "
            "with BASIC on from the start (supervision.preset=paper)"
        )
    runs = {own: place.out / "stage2", other: _trained(place, other, changes, console)}
    for name, run in runs.items():
        console.rule(f"[bold]held-out questions, {name}", align="left")
        evaluate_run(
            run, place.world.eval, image_dir=place.world.images, batch_size=EVAL_BATCH, device="cpu", console=console
        )
    console.rule("[bold]BASIC on and off", align="left")
    compare([Side(name, (runs[name],)) for name in (OFF, ON)], place.out / PAGE, console)


def acted(runs: Iterable[Path]) -> bool:
    """Whether BASIC was on at any step of one of the runs."""
    return any(logged(run, loss) for run in runs for loss in _LOSSES)


def _trained(place: Place, name: str, changes: dict[str, Any], console: Console) -> Path:
    """The second stage's run of the other way."""
    folder = place.out / ("on" if name == ON else "off")
    for stage in (1, 2):
        console.rule(f"[bold]{name}, stage {stage}", align="left")
        run_stage(place.recipe(stage, folder, **changes), replace=True, console=console, report=write_report)
    return folder / "stage2"

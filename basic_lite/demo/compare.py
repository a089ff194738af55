"""``basic-lite demo --compare``: the demo's run beside the same run without BASIC."""

from rich.console import Console

from basic_lite.demo.place import EVAL_BATCH, Place
from basic_lite.run import run_stage
from basic_lite.tools.compare.command import compare
from basic_lite.tools.compare.comparison import Side
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.report.page import write_report

PAGE = "compare.html"


def compare_on_and_off(place: Place, console: Console | None = None) -> None:
    """Train both stages again without BASIC, ask both runs the held-out questions, and compare them.

    Args:
        place: of a demo that has run.

    Raises:
        Interrupted: Ctrl-C during a training; the same command goes on.
    """
    console = console or Console(highlight=False)
    off = place.out / "off"
    for stage in (1, 2):
        console.rule(f"[bold]without BASIC, stage {stage}", align="left")
        recipe = place.recipe(stage, off, supervision__enabled=False)
        run_stage(recipe, replace=True, console=console, report=write_report)
    runs = {"BASIC on": place.out / "stage2", "BASIC off": off / "stage2"}
    for name, run in runs.items():
        console.rule(f"[bold]held-out questions, {name}", align="left")
        evaluate_run(
            run, place.world.eval, image_dir=place.world.images, batch_size=EVAL_BATCH, device="cpu", console=console
        )
    console.rule("[bold]BASIC on and off", align="left")
    sides = [Side(name, (run,)) for name, run in reversed(runs.items())]
    compare(sides, place.out / PAGE, console)

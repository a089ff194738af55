"""``runs``, ``report`` and ``clean``: what is in the run folders, and what of it can go."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from basic_lite.training.places import RUNS


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs (a recipe's `output`), or one run.")] = RUNS,
) -> None:
    """List runs: state, size, score, and what each started from.

    A score is the last loss on held-out data, and a share of exact matches that `eval` found: of answers that weren't
    trained on if there are any, with their number, the name of the data, and the 95 % interval where they are few. A
    picture that was resized or saved anew isn't recognised as trained on. Beside the loss stands how many of its
    pictures were trained on, if any.
    """
    from basic_lite.tools.runs import show_runs

    show_runs(folder)


def report(run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]) -> None:
    """Write a run's page, report.html, anew.

    It lies in the run's folder, with all that is known of the run. A run writes it at each evaluation and at its end.
    It opens in a browser, without a network.
    """
    from basic_lite.printable import printable
    from basic_lite.training.bundle_files import require_run

    require_run(run)
    from basic_lite.tools.report.page import write_report

    print(printable(str(write_report(run))))


def clean(
    places: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER|RUN]...", help="Runs, or folders that hold runs.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Also the best steps that finished runs have kept.")] = False,
) -> None:
    """Delete what runs don't need any more; it asks first.

    What goes is shown with sizes; then you are asked.

    Goes: all checkpoints of finished runs, all but the newest of stopped ones, bundles that --resume --checkpoint has
    set aside, what a kill has left half written, starts that saved nothing. Stays: trained models, best steps (without
    --best), logs, recipes, predictions, and every run that goes on now.
    """
    from basic_lite.tools.clean import clean as free

    def ask() -> bool:
        return typer.confirm("Delete these?", default=False, err=True)

    free(places or [RUNS], yes=yes, best=best, ask=ask if sys.stdin.isatty() else None)

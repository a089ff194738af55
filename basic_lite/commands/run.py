"""``run``: several recipes one after another, and the export, in one command."""

import os
from pathlib import Path
from typing import Annotated

import typer

from basic_lite.commands.common import note
from basic_lite.errors import Interrupted, UserError


def run(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...",
            help="Recipe files, or names of shipped recipes, in their order; then keys to change: key.path=value in "
            "all of them, 2:key.path=value in the second alone.",
            show_default=False,
        ),
    ],
    export: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Export the last run to this new folder.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the estimate of all of it, and stop.")
    ] = False,
) -> None:
    """Train both stages, and export the result, in one command.

    Each recipe takes the projector of the one before it. All of them are checked, and memory, hours and disk of all are
    shown, before the first begins. A finished stage is taken as it is, and one that was stopped goes on: after Ctrl-C
    or a crash, give the same command again.
    """
    from basic_lite.console import command_line
    from basic_lite.recipe.sequence import load_sequence

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("`run` works in one process; with several, train each recipe with `basic-lite train`")
    recipes = load_sequence(words, note)
    from basic_lite.tools.stages import look_ahead

    exported = look_ahead(recipes, export, dry_run=dry_run)
    if dry_run:
        return
    from basic_lite.run import run_stage
    from basic_lite.tools.export.command import export as write_export
    from basic_lite.tools.report.page import write_report

    again = command_line(["basic-lite", "run", *words, *(["--export", str(export)] if export is not None else [])])
    try:
        for number, recipe in enumerate(recipes, 1):
            note(f"\nrecipe {number} of {len(recipes)}: {recipe.name}")
            run_stage(recipe, report=write_report)
        if export is not None and exported is None:
            note(f"\nexport to {export}")
            exported = write_export(recipes[-1].run_path, export)
    except (Interrupted, KeyboardInterrupt) as stopped:
        note(f"{str(stopped) or 'stopped'}; the same command goes on: {again}")
        raise typer.Exit(130) from None
    if exported is False:
        raise typer.Exit(1)

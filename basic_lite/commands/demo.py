"""``demo``."""

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.choices import DEMO
from basic_lite.commands.common import note
from basic_lite.errors import Interrupted
from basic_lite.printable import printable


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's world and runs.")] = DEMO,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world, the weights and the order.")] = 0,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Train the demo's vision encoder and LLM again instead of using the shipped ones (long)."
        ),
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Train with BASIC on from the start as well, beside it on a second core: compare.html."
        ),
    ] = False,
    photos: Annotated[
        Path | None,
        typer.Option(help="Only write this new folder: 50 pictures and captions.csv, to try `basic-lite data` with."),
    ] = None,
) -> None:
    """Run both stages and an evaluation on a tiny world.

    Needs no GPU and no download, and takes a few minutes on two CPU cores.
    """
    if photos is not None:
        from basic_lite.demo.photos import write_photos

        write_photos(photos, seed)
        print(
            printable(
                f"50 pictures and captions.csv are in {photos}; next: basic-lite data {photos} --recipe demo_photos"
            )
        )
        return
    from basic_lite.demo.run import demo as run_demo

    try:
        run_demo(out, seed=seed, rebuild=rebuild, compare=compare)
    except Interrupted:
        note("stopped; run the same command to continue")
        raise typer.Exit(130) from None

"""``check``."""

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.commands.common import Overrides
from basic_lite.commands.spare import require_place_and_keys
from basic_lite.endings import RECIPE_ENDINGS


def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Pictures and texts, as `data` takes them, or a recipe that names them.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        str, typer.Option(help="Recipe that the data is looked at for: a file, or a shipped one's name.")
    ] = "my_photos",
    out: Annotated[
        Path | None, typer.Option(help="File for the page; default: NAME_check.html here.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Language model (folder or hub name) that also answers without the pictures.", show_default=False
        ),
    ] = None,
) -> None:
    """Look for what is wrong with data before a training.

    Writes a page with examples.

    Pictures that can't be read, that are there twice, that look alike, that are held out and trained on, that are made
    very small; answers that are blank, endless or cut, or that the question alone tells; special tokens in texts,
    scripts, languages, lengths. Each with what to do. Every picture is opened, once.

    With --model, a language model reads a sample of 200 answers without their pictures: those that it has right word
    for word teach nothing about pictures.
    """
    if path.suffix.lower() not in RECIPE_ENDINGS:
        require_place_and_keys("check", path, overrides or [], recipe)
    if out is not None:
        from basic_lite.tools.report.html import require_own

        require_own(out, "check")
    from basic_lite.tools.check.command import check as look_and_write

    look_and_write(path, base=recipe, overrides=overrides or [], out=out, model=model)

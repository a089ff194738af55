"""``data``."""

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.commands.common import Overrides
from basic_lite.commands.spare import require_place_and_keys


def data(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER_OR_FILE", help="Where your pictures and texts are.", show_default=False)
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        str, typer.Option(help="Recipe that is taken, but for the data: a file, or a shipped one's name.")
    ] = "my_photos",
    out: Annotated[
        Path | None, typer.Option(help="File for the recipe; default: NAME.yaml here, as the data is called.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
) -> None:
    """Look at your data, and write a recipe that trains on it.

    Shows three samples. Takes CSV, TSV, JSON, JSONL and parquet files; a folder with one of these in it; a folder of
    pictures with .txt files of the same name; `imagefolder` and `save_to_disk` of the datasets library.
    docs/DATA.md shows each. Every picture is opened.
    """
    # What can be told by the path alone is told before seconds of imports.
    require_place_and_keys("data", path, overrides or [], recipe)
    if out is not None:
        from basic_lite.tools.data.write import require_new

        require_new(out, overwrite=overwrite)
    from basic_lite.tools.data.command import data as look_and_write

    look_and_write(path, base=recipe, overrides=overrides or [], out=out, overwrite=overwrite)

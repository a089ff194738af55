"""Data that a shipped recipe's first lines fetch: who misses it has nothing to correct, but something to download."""

import re
from pathlib import Path

from basic_lite.choices import mend_of_missing
from basic_lite.outside import read_text
from basic_lite.recipe.load import shipped_recipes

_FETCHED_TO = re.compile(r"^#.* --local-dir (\S+)", re.MULTILINE)
_NAMED = re.compile(r"^ +(?:path|image_dir): (\S+)", re.MULTILINE)


def mend_of_missing_data(path: Path, name: str = "") -> str:
    """What mends a missing file or folder of a recipe's data; empty: nobody knows.

    Args:
        path: as the recipe has it.
        name: of the recipe, whose own first lines are named before another's.
    """
    if mend := mend_of_missing(path):
        return mend
    files = sorted(shipped_recipes(), key=lambda file: file.stem != name)
    file = next((file for file in files if _fetches(file, path.absolute())), None)
    if file is None:
        return ""
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"it is to be downloaded: the first lines of {shown.as_posix()} have the commands"


def _fetches(file: Path, path: Path) -> bool:
    """Whether a recipe names this data, and the commands in its first lines write to where it is."""
    text = read_text(file, encoding="utf-8-sig")
    written, named = ([Path(one).absolute() for one in places.findall(text)] for places in (_FETCHED_TO, _NAMED))
    return path in named and any(path.is_relative_to(folder) for folder in written)

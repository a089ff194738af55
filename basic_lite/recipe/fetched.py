"""Data that a shipped recipe's first lines fetch, or look at: who misses it has no path to correct, but that to do."""

import re
from pathlib import Path

from basic_lite.choices import mend_of_missing
from basic_lite.outside import read_text
from basic_lite.recipe.load import shipped_recipes

_FETCHED_TO = re.compile(r"^#.* --local-dir (\S+)", re.MULTILINE)
_OWN_FOLDER = re.compile(r"^# +basic-lite data (\S+)", re.MULTILINE)
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
    for file in files:
        text = read_text(file, encoding="utf-8-sig")
        if path.absolute() not in _places(_NAMED, text):
            continue
        if any(path.absolute().is_relative_to(folder) for folder in _places(_FETCHED_TO, text)):
            shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
            return f"it is to be downloaded: the first lines of {shown.as_posix()} have the commands"
        if any(path.absolute().is_relative_to(folder) for folder in _places(_OWN_FOLDER, text)):
            return "put your own there, or let `basic-lite data FOLDER` write a recipe for your pictures"
    return ""


def _places(pattern: re.Pattern[str], text: str) -> list[Path]:
    return [Path(place).absolute() for place in pattern.findall(text)]

"""A folder of token maps: a page that a browser opens without a network, and a PNG file for each picture."""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from basic_lite.errors import UserError
from basic_lite.outside import read_text
from basic_lite.printable import printable
from basic_lite.supervision.picture_maps import PictureMaps
from basic_lite.tools.maps.panels import STYLE, picture_panels, reading, strongest_of
from basic_lite.tools.maps.png import is_own, save, sheet
from basic_lite.tools.report.html import fill, mark_of, write_page
from basic_lite.training.files import saving

COMMAND, PAGE = "inspect --maps", "maps.html"
# How a page lists its PNG files, and what their names look like.
_LIST, _NAME = re.compile(r'<meta name="maps" content="([^"]*)">'), re.compile(r"[0-9]+[A-Za-z0-9_-]*\.png")


def require_own_folder(folder: Path) -> None:
    """Refuse a folder for maps that holds something else.

    Raises:
        UserError: it isn't empty and has no maps of ours, or can't be a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--maps: {folder} is a file; name a folder for the page and its pictures")
    page = folder / PAGE
    try:
        ours = page.is_file() and mark_of(COMMAND) in read_text(page, errors="replace")[:2000]
        if folder.is_dir() and any(folder.iterdir()) and not ours:
            raise UserError(f"--maps: {folder} isn't empty, and its files are no token maps; choose another folder")
    except OSError as error:
        raise UserError(f"--maps: {folder} can't be read ({error.strerror or error}); choose another folder") from error


def write_folder(folder: Path, title: str, facts: Sequence[str], found: Sequence[PictureMaps]) -> Path:
    """Write the page and the PNG files. Those of an older page go; any other file stays as it is.

    Returns:
        The page's path.

    Raises:
        UserError: they can't be written.
    """
    with saving(folder, "Make room, or choose another folder with --maps"):
        folder.mkdir(parents=True, exist_ok=True)
        for old in _own_files(folder):
            old.unlink()
        names = [_free(folder, name) for name in png_names(found)]
        for name, one in zip(names, found, strict=True):
            save(sheet(one, _strongest_beside(found, one)), folder / name)
    write_page(folder / PAGE, render(title, facts, found, names))
    return folder / PAGE


def _own_files(folder: Path) -> list[Path]:
    """The PNG files that the page in a folder lists, but for those that a person put in their place."""
    page = folder / PAGE
    listed = _LIST.search(read_text(page, errors="replace")) if page.is_file() else None
    names = [] if listed is None else listed[1].split()
    return [folder / name for name in dict.fromkeys(names) if _NAME.fullmatch(name) and is_own(folder / name)]


def _free(folder: Path, name: str) -> str:
    """The name, or one with a number that no file has."""
    stem = name.removesuffix(".png")
    others = (f"{stem}-{n}.png" for n in itertools.count(2))
    return next(one for one in itertools.chain([name], others) if not os.path.lexists(folder / one))


def render(title: str, facts: Sequence[str], found: Sequence[PictureMaps], names: Sequence[str]) -> str:
    """The page's text.

    Args:
        names: of the PNG files.
    """
    return fill(
        "basic_lite.tools.maps",
        "maps.html.j2",
        mark=mark_of(COMMAND),
        files=" ".join(names),
        map_style=STYLE,
        title=title,
        facts=facts,
        reading=reading(),
        pictures=[
            (heading(one), one, picture_panels(one, _strongest_beside(found, one)), png)
            for one, png in zip(found, names, strict=True)
        ],
    )


def heading(one: PictureMaps) -> str:
    """The name of a picture, and of its part."""
    return ", ".join(filter(None, (printable(one.name), one.part)))


def _strongest_beside(found: Sequence[PictureMaps], one: PictureMaps) -> float:
    """Parts of one picture have one scale of heat."""
    return strongest_of([other for other in found if other.number == one.number])


def png_names(found: Sequence[PictureMaps]) -> Iterator[str]:
    """A file's name for each."""
    for number, one in zip(itertools.count(1), found, strict=False):
        words = re.sub(r"[^A-Za-z0-9-]+", "_", f"{Path(one.name).stem} {one.part}")[:60].strip("_")
        yield f"{number}_{words}.png" if words else f"{number}.png"

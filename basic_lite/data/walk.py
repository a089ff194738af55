"""Folders walked through, for pictures or by a pattern: each is read once, so links that lead back to one end."""

import fnmatch
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from basic_lite.errors import UserError

# Folders that systems make on a disk, and let nobody read.
_OF_SYSTEMS = {"lost+found", "System Volume Information", "$RECYCLE.BIN"}


def walked_once(folder: Path, met: Callable[[Path], set[int]], again: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it, by their path inside, with the names of their files.

    Links are followed.

    Args:
        met: which parts of a pattern a folder meets, by its path inside. One that meets none isn't read. One that is
            reached by two paths is read again where the second meets parts that the first doesn't.
        again: gets the paths of links to folders that are read already.

    Raises:
        UserError: a folder can't be read, so what is in it would be missing.
    """
    seen = {_identity(folder): met(Path())}
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        inside = Path(place).relative_to(folder)
        new = []
        # A folder itself comes before links to it.
        for name in sorted(folders, key=lambda name: (os.path.islink(os.path.join(place, name)), name)):
            if not (here := met(inside / name)):
                continue
            known = seen.setdefault(_identity(Path(place, name)), set())
            if here <= known:
                again.append((inside / name).as_posix())
            else:
                new.append(name)
            known |= here
        folders[:] = sorted(new)
        yield inside, names


def _unreadable(error: OSError) -> NoReturn:
    """For ``os.walk``, which passes over folders that can't be read.

    Raises:
        UserError: names the folder.
    """
    raise UserError(
        f"the folder {error.filename} can't be read ({error.strerror or error}), so what is in it would be missing; "
        "allow reading it (chmod), or move it elsewhere"
    ) from error


def _identity(folder: Path) -> tuple[int, int] | Path:
    """What tells a folder from others, however it is reached; the path where the system has no number for it."""
    found = folder.stat()
    return (found.st_dev, found.st_ino) if found.st_ino else folder


def is_aside(name: str) -> bool:
    """Whether a folder of this name is passed over: hidden, or a system's own."""
    return name.startswith((".", "__")) or name in _OF_SYSTEMS


def links_note(again: list[str], name: str) -> tuple[str, ...]:
    """The note on links to folders that are read already; none where there are none."""
    if not again:
        return ()
    return (f"{name}: links to folders that are read already are left out: {first_few(again)}",)


def first_few(names: list[str]) -> str:
    """Names for a message: the first five."""
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)


def matching(pattern: Path, again: list[str]) -> list[str]:
    """The files of a pattern. Not by the library for patterns: it passes over folders that can't be read.

    Args:
        again: gets links to folders that are read already.

    Raises:
        UserError: a folder that the pattern leads through can't be read.
    """
    fixed = next((place for place in pattern.parents if not glob.has_magic(str(place))), pattern.parent)
    parts = pattern.parts[len(fixed.parts) :]
    met = partial(_parts_met, parts)
    return sorted(
        str(fixed / inside / name)
        for inside, names in (walked_once(fixed, met, again) if os.path.isdir(fixed) else ())
        if len(parts) - 1 in met(inside)
        for name in fnmatch.filter(names, parts[-1])
        if parts[-1].startswith(".") or not name.startswith(".")
    )


def _parts_met(parts: Sequence[str], folder: Path) -> set[int]:
    """How many parts of a pattern a folder's path meets, of those before the last, which is for files.

    Several numbers may be right, since "**" stands for any folders, or for none.
    """
    last = len(parts) - 1

    def and_without(met: set[int]) -> set[int]:
        """These, and those where a "**" that comes next stands for no folder."""
        for at in range(last):
            met |= {at + 1} if at in met and parts[at] == "**" else set()
        return met

    met = and_without({0})
    for name in folder.parts:
        met = and_without({at + (parts[at] != "**") for at in met if _is_meant(name, parts[at])} - {last + 1})
    return met


def _is_meant(name: str, part: str) -> bool:
    """Whether a pattern's part leads into a folder; into one that is passed over only if the part says so."""
    said = name == part or part.startswith((".", "__"))
    return fnmatch.fnmatch(name, part) and (said or not is_aside(name))

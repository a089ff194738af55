"""What mends the name of a picture where no file is: a file of nearly that name, or of that name in another folder."""

import os
import re
from functools import lru_cache
from urllib.parse import unquote

from basic_lite.printable import quoted

# Published lists name a picture with one ending while the download has another (OCR-VQA is known for it), or with none.
_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".JPG", ".JPEG", ".PNG")
# Folders in the image folder, and beside it, that are looked into for a missing picture.
_MOST_FOLDERS = 20
# What people put between several names.
_BETWEEN = re.compile(r"[;,|\s]+")


def mend_of_missing_picture(name: str, root: str, path: str) -> str:
    """What to do about a picture that isn't there.

    Args:
        name: as the record has it.
        root: the image folder.
        path: where the picture would be.
    """
    above, parts = os.path.dirname(root), _BETWEEN.split(name)
    if os.path.islink(path):
        return f"it is a link to {quoted(os.readlink(path))}, where nothing is: correct it"
    if other := in_other_ending(path) or in_other_case(path):
        if not os.path.splitext(name)[1] and os.path.splitext(other)[1]:
            return f"there is {other!r}; write the endings behind the names"
        return f"there is {other!r} beside it; rename one of the two"
    if os.path.isfile(os.path.join(above, name)):
        # `photos/a.png` in the folder `photos`: people name the folder twice.
        return f"it is in {above}: set image_dir of this source to that folder"
    if os.path.isfile(os.path.join(root, plain := unquote(name))):
        return f"there is {plain!r}; write names as files have them, and not as web addresses do"
    if len(parts) > 1 and all(os.path.isfile(os.path.join(root, part)) for part in parts):
        return f"these are {len(parts)} names in one text; list them under `images` (JSON or parquet)"
    if inside := mend_by_folder(name, root):
        return inside
    if other := _folder_with(name, above):
        mend = f"name each picture with its folder, as in {other}/{name}, and set image_dir of this source to {above}"
        return f"there is one in the folder {other!r} beside it: {mend}"
    return "fetch it, or correct image_dir"


def in_other_ending(path: str) -> str | None:
    """A file beside a missing one whose name has another ending, or has one at all."""
    if _changed(os.path.dirname(path)) is None:
        return None
    stems = dict.fromkeys((os.path.splitext(path)[0], path))
    files = (stem + end for stem in stems for end in _ENDINGS if stem + end != path)
    return next((os.path.basename(file) for file in files if os.path.isfile(file)), None)


def in_other_case(path: str) -> str | None:
    """A file beside a missing one whose name differs in small and capital letters alone."""
    folder, name = os.path.split(path)
    return _names(folder, _changed(folder)).get(name.casefold())


def mend_by_folder(name: str, root: str) -> str | None:
    """What to do about a path, perhaps of another computer, whose file is in the image folder or in a folder of it.

    None: it isn't.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    if last not in ("", name) and os.path.isfile(os.path.join(root, last)):
        return f"{last!r} is in that folder: give the name alone, without the folders before it"
    inside = _folder_with(last, root)
    return f"{last!r} is in its folder {inside!r}: write {inside}/{last}" if inside else None


def _folder_with(name: str, parent: str) -> str | None:
    """The first folder in another one that has a file of this name."""
    return next((one for one in folders_in(parent) if os.path.isfile(os.path.join(parent, one, name))), None)


def folders_in(folder: str) -> list[str]:
    """The first folders in a folder, without hidden ones."""
    return _folders(folder, _changed(folder))


def _changed(folder: str) -> int | None:
    """When what is in a folder has changed, so that an old list isn't used; None: there is no folder."""
    try:
        return os.stat(folder).st_mtime_ns
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=8)
def _names(folder: str, changed: int | None) -> dict[str, str]:
    """Names in a folder by their small letters."""
    try:
        return {name.casefold(): name for name in os.listdir(folder)}
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=8)
def _folders(folder: str, changed: int | None) -> list[str]:
    try:
        with os.scandir(folder) as entries:  # of a picture it knows without asking the disk that it is no folder
            return sorted(one.name for one in entries if one.is_dir() and one.name[0] != ".")[:_MOST_FOLDERS]
    except (OSError, ValueError):
        return []

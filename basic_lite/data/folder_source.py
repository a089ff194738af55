"""A folder of pictures, each with a text of the same name beside it: cat.jpg and cat.txt."""

import codecs
import itertools
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basic_lite.data.missing import in_other_case
from basic_lite.data.problems import BadRecord
from basic_lite.data.prompts import prompts_of
from basic_lite.data.walk import first_few, is_aside, links_note, walked_once
from basic_lite.endings import PICTURE_ENDINGS
from basic_lite.errors import UserError
from basic_lite.outside import place_in, read_file
from basic_lite.recipe.schema import ANY_SPLIT, SourceSection

# How the `datasets` library calls the file that describes a folder of pictures.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def metadata_of(folder: Path, split: str) -> str | None:
    """Path inside a folder of the file that describes its pictures (those of its split, where splits have folders)."""
    own = [f"{split}/{name}" for name in METADATA]
    inside = [*METADATA, *own] if split == ANY_SPLIT else own
    return next((name for name in inside if os.path.isfile(folder / name)), None)


def require_no_split(name: str, split: str) -> None:
    """Refuse a split of what has none: all of it would be read.

    Args:
        name: the source's.

    Raises:
        UserError: a split is given.
    """
    if split != ANY_SPLIT:
        raise UserError(
            f"{name}: it has no split {split!r}, so all of it would be read; name that part's own folder, and remove "
            "`split` of this data source"
        )


class FolderSource:
    """Pictures in the order of their paths. Holds the paths (some 100 bytes each); a text is read when asked for.

    A picture without a text is a bad record. A text without a picture is no record: `notes` names it.
    """

    def __init__(self, section: SourceSection, root: Path) -> None:
        assert section.folder is not None
        self.name, self.prompts = section.folder, prompts_of(section)
        folder = place_in(root, section.folder).absolute()
        self.image_dir = str(folder)
        self.columns: Mapping[str, str] = {"image": "picture", "answer": "text"}
        self.present: tuple[str, ...] = ("picture", "text")
        pictures, self._texts, again = files_of(folder)
        if section.columns:
            raise UserError(f"{self.name}: pictures with .txt files have no columns; remove `columns`.")
        if not pictures:
            raise UserError(f"{self.name}: there is no picture in this folder; correct `folder` of this data source.")
        self.notes = (*_orphans(pictures, self._texts, self.name), *links_note(again, self.name))
        self._pictures = list(itertools.islice(pictures, section.limit))

    def __len__(self) -> int:
        return len(self._pictures)

    def place(self, index: int) -> str:
        """Path of the picture."""
        return f"{self.name.rstrip('/')}/{self._pictures[index]}"

    def row(self, index: int) -> dict[str, Any]:
        """A picture's path and its text.

        Raises:
            BadRecord: it has no text.
        """
        picture = self._pictures[index]
        text = text_of(picture, self._texts)
        if text is None:
            name = os.path.splitext(os.path.basename(picture))[0] + ".txt"
            other = in_other_case(os.path.join(self.image_dir, os.path.dirname(picture), name))
            mend = f"there is {other!r}; rename it" if other else "write one, or move the picture elsewhere"
            raise BadRecord(f"there is no {name} beside it with its text", mend)
        words = _read(os.path.join(self.image_dir, text), os.path.basename(text))
        if not words:
            raise BadRecord(f"{os.path.basename(text)} beside it is empty", "write the picture's text into it")
        return {"picture": picture, "text": words}


def files_of(folder: Path) -> tuple[list[str], dict[str, str], list[str]]:
    """Pictures below a folder, the texts by their path without the ending, and links to folders that are read already.

    Paths have forward slashes.

    Raises:
        UserError: a folder among them can't be read, so what is in it would be missing.
    """
    pictures: list[str] = []
    texts: dict[str, str] = {}
    again: list[str] = []
    for inside, names in walked_once(folder, lambda one: set() if is_aside(one.name) else {0}, again):
        for name in names:
            stem, ending = os.path.splitext(name)
            if name.startswith("."):  # among them macOS's "._cat.jpg"
                continue
            if ending.lower() in PICTURE_ENDINGS:
                pictures.append((inside / name).as_posix())
            elif ending.lower() == ".txt":
                texts[(inside / stem).as_posix()] = (inside / name).as_posix()
    for stem in list(texts):
        texts.setdefault(unicodedata.normalize("NFC", stem), texts[stem])
    return sorted(pictures), texts, again


def text_of(picture: str, texts: Mapping[str, str]) -> str | None:
    """The text of a picture's name. macOS takes "ä" apart in names; the text may have it in one piece."""
    stem = os.path.splitext(picture)[0]
    return texts.get(stem) or texts.get(unicodedata.normalize("NFC", stem))


def _orphans(pictures: list[str], texts: dict[str, str], name: str) -> tuple[str, ...]:
    lonely = sorted(set(texts.values()) - {text_of(one, texts) for one in pictures})
    if not lonely:
        return ()
    one = len(lonely) == 1
    return (
        f"{name}: {'a text has' if one else f'{len(lonely)} texts have'} no picture of the same name and "
        f"{'is' if one else 'are'} left out: {first_few(lonely)}",
    )


def _read(path: str, name: str) -> str:
    try:
        data = read_file(Path(path))
    except OSError as error:
        raise BadRecord(f"{name} beside it can't be read ({error.strerror})", "put a text file in its place") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadRecord(f"{name} beside it isn't UTF-8", "save it as UTF-8") from error

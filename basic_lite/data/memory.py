"""Pictures and records that a Python program holds, instead of files."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from basic_lite.data.columns import picture_columns
from basic_lite.data.images import ImageRef
from basic_lite.data.pictures import columns_of, image_at, is_filled, looked_at_in
from basic_lite.data.problems import BadImage, shorten
from basic_lite.data.record import Record, numbered
from basic_lite.data.records import Records
from basic_lite.data.room import to_rgb
from basic_lite.data.turns import PICTURES_OF_TURN, is_turns, picture_in

Picture = str | os.PathLike[str] | bytes | Image.Image
"""A path, the bytes of an image file, or a PIL image. In a row also what a file may have: see ``image_at``."""


def picture_of(picture: Picture | Mapping[str, Any], folder: str | os.PathLike[str] | None = None) -> ImageRef:
    """A picture as records have it; a path is not looked at yet.

    Args:
        folder: where paths start, and what they may not leave; None: they are paths as any program takes them.

    Raises:
        BadRecord, BadImage: it is no picture, a PIL image that can't be read, or lies on the web.
    """
    if isinstance(picture, os.PathLike):
        picture = os.fspath(picture)
    if isinstance(picture, str | Mapping):
        ref = image_at(picture, "" if folder is None else os.fspath(folder))
        return ref if folder is not None or ref.blob is not None else ImageRef.of_file(Path(ref.name).expanduser())
    if isinstance(picture, bytes):
        return ImageRef("(bytes)", blob=picture)
    if not isinstance(picture, Image.Image):
        hint = "Image.fromarray of PIL makes one of an array of bytes"
        if isinstance(picture, bytearray | memoryview):
            hint = "make bytes of it with bytes(…)"
        elif hasattr(picture, "read"):
            hint = "give the bytes that its read() returns"
        raise BadImage(f"a picture is a path, bytes or a PIL image, and this is {shorten(picture)}", hint)
    file = getattr(picture, "filename", "")
    name = os.path.basename(file) if isinstance(file, str) and file else "(PIL image)"
    return ImageRef(name, blob=_png(picture), encoded_here=True)


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    try:
        to_rgb(ImageOps.exif_transpose(picture) or picture).save(out, "PNG", compress_level=1)
    except (OSError, SyntaxError, ValueError) as error:  # PIL reads a file only when its pixels are wanted
        raise BadImage(f"a PIL image can't be read ({error})", "open it again") from error
    return out.getvalue()


def records_of(rows: Iterable[Record | Mapping[str, Any]], image_dir: str | os.PathLike[str] | None) -> list[Record]:
    """Rows in a form of training data (conversations, or question and answer) as records.

    Args:
        image_dir: as ``folder`` of ``picture_of``.

    Raises:
        RecordProblem: names the row, from 1.
    """
    rows = list(rows)
    known = [row for row in rows if isinstance(row, Record)]
    return known if len(known) == len(rows) else list(Records([MemorySource(rows, image_dir)]))


class MemorySource:
    """Rows of a Python program. Their pictures may also be PIL images."""

    def __init__(self, rows: Sequence[Any], image_dir: str | os.PathLike[str] | None = None) -> None:
        self.name = "records"
        self.columns: Mapping[str, str] = {}
        self.present: tuple[str, ...] = ()
        self.image_dir = "" if image_dir is None else os.fspath(image_dir)
        self.prompts: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._rows, self._folder = rows, image_dir

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> str:
        """See ``Source``."""
        return numbered(self.name, index + 1)

    def row(self, index: int) -> Any:
        """One row, with its pictures as references.

        Raises:
            BadRecord, BadImage: one is none.
        """
        row = self._rows[index]
        if not isinstance(row, Mapping):
            return row
        chosen = looked_at_in(row, picture_columns(columns_of(row, {}), row))
        return {name: self._pictures(held) if name in chosen else self._parts(held) for name, held in row.items()}

    def _pictures(self, held: Any) -> list[ImageRef]:
        if not is_filled(held):
            return []
        return [picture_of(one, self._folder) for one in (held if isinstance(held, list | tuple) else [held])]

    def _parts(self, held: Any) -> Any:
        """Turns, with the pictures in their parts as references."""
        if isinstance(held, list | tuple):
            return [self._parts(one) for one in held]
        if not isinstance(held, Mapping):
            return held
        if is_turns([held]):
            return {
                name: self._pictures(one) if name in PICTURES_OF_TURN else self._parts(one)
                for name, one in held.items()
            }
        picture = picture_in(held)
        if picture is None:
            return {name: self._parts(one) for name, one in held.items()}
        return {"type": "image", "image": picture_of(picture, self._folder)}

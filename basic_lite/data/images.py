"""Images: find, check, decode (PIL). No torch is imported here: a picture that can't be read is told at once."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from basic_lite.data.heic import formats, lacking
from basic_lite.data.missing import mend_by_folder, mend_of_missing_picture
from basic_lite.data.not_a_picture import HEAD, what_it_is
from basic_lite.data.problems import BadImage
from basic_lite.data.room import require_room, require_room_to_turn, to_rgb
from basic_lite.outside import open_file
from basic_lite.printable import quoted
from basic_lite.recipe.schema import ImageCheck

# Not the picture's fault: too many open files, no memory.
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True)
class ImageRef:
    """One image of a record, not yet read: a path inside ``folder``, or bytes that came with the record.

    Attributes:
        name: The path as the record has it, or a description of where the bytes are; for messages.
        folder: Image folder the path is relative to and may not leave.
        blob: Encoded image bytes (or an Arrow scalar of them, so that nothing is copied before it is needed).
        encoded_here: The bytes were made from an image in memory, so they are no file's.
    """

    name: str
    folder: str = ""
    blob: Any = None
    encoded_here: bool = False

    @property
    def buffer(self) -> Any:
        """The bytes of ``blob``, to be hashed; those of a scalar aren't copied."""
        return self.blob.as_buffer() if hasattr(self.blob, "as_buffer") else self.blob

    @staticmethod
    def of_file(path: str | Path) -> ImageRef:
        """A picture anywhere on disk, not part of a data set."""
        path = Path(path).absolute()
        return ImageRef(path.name, str(path.parent))


def locate(image: ImageRef, *, must_exist: bool = True) -> str:
    """Absolute path of an image that lies in a file.

    A record's path may not climb out of the image folder. Links inside the folder are followed: that is how people
    put `coco`, `gqa`, … from other disks side by side. A list made on Windows separates folders by backslashes; such a
    path is read so where no file has that name as it stands.

    Raises:
        BadImage: the path leaves the image folder (`..`, absolute), or there is no such file.
    """
    return _find(image, must_exist=must_exist)[0]


def _find(image: ImageRef, *, must_exist: bool = True) -> tuple[str, os.stat_result | None]:
    if "\0" in image.name or "://" in image.name:
        raise BadImage(f"image {quoted(image.name)} is not a file path", "give a path inside the image folder")
    root = os.path.abspath(image.folder or ".")
    path = os.path.normpath(os.path.join(root, image.name))
    if "\\" in image.name and not os.path.exists(path):
        path = os.path.normpath(os.path.join(root, image.name.replace("\\", "/")))
    if not os.path.normcase(path).startswith(os.path.normcase(root.rstrip(os.sep) + os.sep)):
        raise BadImage(
            f"image {quoted(image.name)} leaves the image folder {root}",
            mend_by_folder(image.name, root)
            or "move it inside, or set image_dir of this source to a folder that holds all its images",
        )
    found = _stat(path)
    if found is None and not path.isascii():
        # macOS takes "ä" apart in names; a list may have it in one piece.
        inside = os.path.relpath(path, root)
        for other_form in (unicodedata.normalize("NFC", inside), unicodedata.normalize("NFD", inside)):
            if found is None and (found := _stat(os.path.join(root, other_form))) is not None:
                path = os.path.join(root, other_form)
    if must_exist and (found is None or not stat.S_ISREG(found.st_mode)):
        if found is not None:
            raise BadImage(f"image {quoted(image.name)} is not a file in {root}", "correct the path")
        hint = mend_of_missing_picture(image.name, root, path)
        raise BadImage(f"image {quoted(image.name)} does not exist in {root}", hint)
    return path, found


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def picture_key(image: ImageRef, *, as_it_is: bool = True) -> int:
    """64 bits that stand for a picture: its bytes, or its path.

    Args:
        as_it_is: with the file's size and time, so that a replaced file has another key. False: links to one file have
            one key.

    Raises:
        BadImage: the file is missing or outside its folder. With ``as_it_is`` false it may be missing.
    """
    if image.blob is not None:
        data = image.buffer
    else:
        path, found = _find(image, must_exist=as_it_is)
        seen = f"\0{found.st_size}\0{found.st_mtime_ns}" if as_it_is and found is not None else ""
        data = ((path if as_it_is else os.path.realpath(path)) + seen).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def open_image(image: ImageRef, *, least: int | None = None) -> Image.Image:
    """Read and decode an image completely, upright (EXIF), as RGB.

    Args:
        least: a JPEG may be decoded at a half, a quarter or an eighth, as long as both sides keep so many pixels.

    Raises:
        BadImage: missing, outside its folder, truncated or not an image.
    """
    return open_small(image, least)[0]


def require_whole(image: ImageRef) -> None:
    """Find out whether ``open_image`` can read an image.

    A JPEG is decoded at an eighth of its size, in about 60 % of the time: all of its data is read all the same. In
    10,440 files that were cut or had bits flipped, both found the same 4,946 broken.

    Raises:
        BadImage: as ``open_image``.
    """
    with _reading(image) as opened:
        size = opened.size
        if opened.format == "JPEG":
            opened.draft("RGB", (max(opened.width // 8, 1), max(opened.height // 8, 1)))
        opened.load()
        require_room_to_turn(opened, size)
        to_rgb(opened)


def open_small(image: ImageRef, least: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """A picture as ``open_image`` gives it, and the width and height it has in its file, upright.

    Args:
        least: see ``open_image``.

    Raises:
        BadImage: as ``open_image``.
    """
    with _reading(image) as opened:
        size = opened.size
        if least is not None:
            opened.draft(None, (least, least))  # does nothing to another format
        opened.load()
        before = opened.size
        _turn_upright(opened)
        turned = opened.size != before
        return to_rgb(opened), (size[1], size[0]) if turned else size


def small_copy(image: ImageRef, side: int, quality: int, *, least: int | None = None) -> str:
    """A small JPEG for a page, as a data URI.

    Args:
        side: pixels of its longer side, at most.
        least: see ``open_image``.

    Raises:
        BadImage: as ``open_image``.
    """
    small = open_image(image, least=least)
    small.thumbnail((side, side))
    small.save(data := io.BytesIO(), "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


@contextmanager
def _reading(image: ImageRef) -> Iterator[Image.Image]:
    if image.blob is None:
        source: Any = locate(image)
    else:
        blob = image.blob.as_py() if hasattr(image.blob, "as_py") else image.blob
        source = io.BytesIO(blob)
    try:
        with Image.open(source, formats=formats()) as opened:
            require_room(opened)
            yield opened
    except MemoryError:
        raise
    except BadImage as problem:
        raise BadImage(f"image {quoted(image.name)}: {problem.what}", problem.mend) from None
    # PIL's decoders raise whatever their format parser trips over (OSError, SyntaxError, struct.error, …).
    except Exception as error:
        if getattr(error, "errno", None) in _OF_THE_MACHINE:
            raise
        head = _head(source)
        # Of the system's errors without the path.
        said = getattr(error, "strerror", None) or " ".join(str(error).replace(f" {source!r}", "").split())
        mends = {PermissionError: "let this user read it", Image.DecompressionBombError: "save it with fewer pixels"}
        reason, mend = what_it_is(head) or (
            said or type(error).__name__,
            lacking(head) or f"{mends.get(type(error), 'fetch it again')}, or leave the record out",
        )
        raise BadImage(f"image {quoted(image.name)} can't be decoded ({reason})", mend) from error


def _head(source: Any) -> bytes:
    """The first bytes of a picture's file, or of its data; a space where they can't be read: an empty file has none."""
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:HEAD]
    with suppress(OSError), open_file(Path(source)) as file:
        return file.read(HEAD)
    return b" "


def check_image(image: ImageRef, how: ImageCheck) -> None:
    """Look at an image as closely as `data.check_images` says.

    Raises:
        BadImage: it is missing, outside its folder, or (``open``) can't be decoded.
    """
    if how == "open":
        require_whole(image)
    elif image.blob is None:
        locate(image, must_exist=how == "exists")


def _turn_upright(image: Image.Image) -> None:
    require_room_to_turn(image, image.size)
    # Damaged EXIF says nothing about the orientation; the pixels are fine.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)

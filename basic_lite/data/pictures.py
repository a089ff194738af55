"""What a record writes where a picture belongs: a path, a file:// or data: URL, bytes, or a list of these."""

import base64
import binascii
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from basic_lite.data.columns import CAPTIONS, TEXTS, find_columns, has_text, plain_name
from basic_lite.data.images import ImageRef
from basic_lite.data.problems import BadImage, BadRecord, shorten
from basic_lite.data.unclear import is_written_list

# Characters of a path, as systems have it; what is longer and has these signs alone is a picture itself.
_LONGEST_PATH = 255
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
# Two usual names for the same column.
_TWINS = ("image", "images")


@dataclass(frozen=True)
class DataUrl:
    """A picture written into the text, as data:image/…;base64,…; its bytes are made when it is opened.

    Its methods are called as those of Arrow's scalars.
    """

    url: str

    def as_buffer(self) -> bytes:
        """Bytes that tell this picture from others, without decoding it."""
        return self.url.encode("utf-8", "surrogatepass")

    def as_py(self) -> bytes:
        """The picture's bytes.

        Raises:
            BadImage: it isn't base64.
        """
        head, _, data = self.url.partition(",")
        try:
            # Some programs break the lines, or write it as a part of an address.
            return base64.b64decode("".join(unquote(data).split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadImage(
                f"the picture {shorten(head)} can't be decoded: {error}", "write it as data:image/png;base64,…"
            ) from error


def is_filled(value: Any) -> bool:
    """Whether a column holds something: no null, blank text or NaN, nor a list or an object of these alone."""
    if value is None:
        return False
    if isinstance(value, (str, bytes)):
        return bool(value.strip())
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, (list, tuple)):
        return any(map(is_filled, value))
    return not isinstance(value, Mapping) or any(map(is_filled, value.values()))


def columns_of(row: Mapping[str, Any], asked: Mapping[str, str]) -> Mapping[str, str]:
    """Our names to a row's. Of several usual names for a text, the first that holds something is taken.

    Tables that were joined have the columns of all of them, and nothing in most.

    Args:
        asked: what the recipe maps. A mapped column is taken even if it holds nothing.
    """
    mapped, every = asked.values(), find_columns(asked, row)
    blank = {name for name in row if isinstance(name, str) and plain_name(name) in TEXTS and not is_filled(row[name])}
    if not blank - {*mapped}:
        return every
    found = find_columns(asked, [name for name in row if name in mapped or name not in blank])
    if not has_text(found):
        return every
    empty = every.get("answer")
    asked_for = is_filled(row.get(found.get("question", ""))) and plain_name(empty or "") not in CAPTIONS
    if empty is None or ("answer" in found and not (asked_for and plain_name(found["answer"]) in CAPTIONS)):
        return found
    # A caption answers no question. What is wrong with an empty answer is told by its name.
    return {**found, "answer": empty}


def shown(value: Any) -> str:
    """What stands for a file, for messages: its path or address, or that its bytes are there."""
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("url")
    if isinstance(value, ImageRef):
        value = value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value[:2]))}{', …' if len(value) > 2 else ''}]"
    return shorten(value, 60) if isinstance(value, str) else "bytes"


def looked_at_in(row: Mapping[str, Any], names: Sequence[str]) -> set[str]:
    """Those of some columns whose pictures are looked at: the first that holds something, and image and images."""
    chosen = next((name for name in names if is_filled(row.get(name))), None)
    return {name for name in names if name == chosen or plain_name(name) in _TWINS}


def filled_column(row: Mapping[str, Any], names: Sequence[str], whose: str = "it") -> str | None:
    """The first of some columns that holds something, else the first of them.

    Args:
        whose: what has them, for messages.

    Raises:
        BadRecord: there are an image and images, and they differ.
    """
    filled = [name for name in names if is_filled(row.get(name))]
    twins = [name for name in filled if plain_name(name) in _TWINS and not isinstance(row[name], (bool, int, float))]
    one, *others = (_listed(row[name]) for name in twins) if twins else ([],)
    if any(other != one for other in others):
        what = " and ".join(f"{name!r} ({shown(row[name])})" for name in twins)
        raise BadRecord(f"{whose} has different pictures under {what}", "leave those of one of the two")
    return next(iter([*filled, *names]), None)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def images_of(value: Any, image_dir: str) -> Iterator[ImageRef]:
    """The pictures of a record's image column.

    Raises:
        BadRecord, BadImage: it is something else, or lies on the web.
    """
    if value is None or (isinstance(value, str) and not value.strip()) or _is_null(value):
        return
    if isinstance(value, (list, tuple)):
        for n, one in enumerate(value, 1):
            if one is None or isinstance(one, (list, tuple)) or _is_null(one):
                raise BadRecord(f"image {n} of its list is {shorten(one)}", "list paths")
            yield from images_of(one, image_dir)
    else:
        yield image_at(value, image_dir)


def _is_null(value: Any) -> bool:
    """Whether a value is how a table of objects writes that there is no picture."""
    return isinstance(value, Mapping) and bool(value) and all(one is None for one in value.values())


def image_at(value: Any, image_dir: str) -> ImageRef:
    """One picture: a path, a URL, bytes, or the object of bytes and path that `datasets` makes.

    Raises:
        BadRecord, BadImage: it is something else, or lies on the web.
    """
    if isinstance(value, ImageRef):
        return value
    if isinstance(value, str):
        return _named(value, image_dir)
    if isinstance(value, bytes) or hasattr(value, "as_py"):
        return ImageRef("(image column)", blob=value)
    if isinstance(value, Mapping) and (value.get("bytes") is not None or isinstance(value.get("path"), str)):
        name, blob = value.get("path"), value.get("bytes")
        if blob is not None and not isinstance(blob, bytes) and not hasattr(blob, "as_py"):
            raise BadRecord(
                f"the bytes of its image are {shorten(blob)}", "write the path of a file, or a data: address"
            )
        known = name if isinstance(name, str) and name else "(image column)"
        return ImageRef(known, image_dir if blob is None else "", blob)
    raise BadRecord(f"its image is {shorten(value)}", "image must be a path, a list of paths, or null")


def _named(text: str, image_dir: str) -> ImageRef:
    if is_written_list(text):
        raise BadImage(
            f"its picture is a list written as one text ({shorten(text)})",
            "write one path, or make the file JSON or parquet, where a list is one",
        )
    if len(text) > _LONGEST_PATH and _BASE64.fullmatch(text):
        raise BadImage(
            f"its picture is base64 without its kind ({shorten(text)})", "write `data:image/jpeg;base64,` before it"
        )
    scheme = text[:8].partition(":")[0].lower()
    if scheme in ("http", "https"):
        raise BadImage(
            f"the picture {shorten(text)} lies on the web", "download it first, and write the file's path instead"
        )
    if scheme == "data":
        return ImageRef("(picture in the record)", blob=DataUrl(text))
    if scheme == "file":
        try:
            address = urlsplit(text)
        except ValueError as error:
            raise BadImage(f"the address {shorten(text)} is none ({error})", "write the file's path instead") from error
        if address.netloc not in ("", "localhost"):
            raise BadImage(
                f"the address {shorten(text)} names a computer, {shorten(address.netloc)}, where its path should begin",
                "write file:/// with the whole path, or the path alone",
            )
        return ImageRef(url2pathname(address.path), image_dir)
    return ImageRef(text, image_dir)

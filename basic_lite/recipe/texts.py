"""Texts of a recipe that no file or folder can be called, and no program can print."""

import re
from collections.abc import Iterator
from typing import Any

# Keys that name a place on disk, or a model by its folder or hub name.
PLACES = frozenset({"name", "output", "base", "vision", "llm", "projector", "start"}) | {
    "path", "folder", "hub", "parquet", "saved", "image_dir",
}  # fmt: skip
# Bytes of a name and of a whole path that file systems take.
_MOST_OF_NAME, _MOST_OF_PATH = 255, 4096
_MOST_OF_TEXT = 100_000
_HALF = re.compile("[\ud800-\udfff]")


def text_problem(key: str, text: str) -> str | None:
    """What is wrong with a text as the value of a key (its last part); None: nothing."""
    if "\0" in text:
        return "has the character NUL in it; take it out"
    if _HALF.search(text):
        return "isn't Unicode (it has half of a character in it); write it in UTF-8"
    if len(text) > _MOST_OF_TEXT:
        return f"has {len(text):,} characters, and {_MOST_OF_TEXT:,} are the most; shorten it"
    if key not in PLACES:
        return None
    longest = max(len(part.encode()) for part in re.split(r"[/\\]", text))
    if longest > _MOST_OF_NAME:
        return f"has a name of {longest:,} bytes in it, and file systems take {_MOST_OF_NAME}; shorten it"
    if len(text.encode()) > _MOST_OF_PATH:
        return f"has {len(text.encode()):,} bytes, and a path has {_MOST_OF_PATH:,} at most; shorten it"
    return None


def texts_in(value: Any) -> Iterator[str]:
    """A value's texts: itself, or those of a list or of a map."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from (*texts_in(name), *texts_in(one))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts_in(one)

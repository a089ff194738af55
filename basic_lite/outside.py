"""Files from outside, and JSON in them. Whatever is wrong is one kind of error; what has no end isn't begun.

Every file that a person or a stranger may have made is opened here: data, recipes, bundles, logs, configurations.
"""

import errno
import json
import math
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeGuard

# What reading raises where a person has changed what a program wrote.
CHANGED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)
TOO_DEEP, TOO_LONG_A_NUMBER = "values are nested too deeply", "a number has too many digits"


def place_in(root: Path, text: str) -> Path:
    """The path that a text means: relative to ``root``, with `~` for the home folder."""
    return root / at_home(text)


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path with `~` at its start as the home folder."""
    return Path(os.path.expanduser(path))


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value of JSON is a number that arithmetic can be done with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def as_object(value: Any) -> dict[str, Any]:
    """An object of JSON; an empty one where there is something else."""
    return value if isinstance(value, dict) else {}


def open_file(path: Path) -> BufferedReader:
    """A file opened to be read.

    Raises:
        OSError: it can't be read, or is no file: a pipe or a device may have no end.
    """
    # A pipe that nobody writes to would be waited for; this asks for nothing on a file.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"it is not a file but a {'folder' if stat.S_ISDIR(mode) else 'device or a pipe'}")
    return os.fdopen(handle, "rb")


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: as ``open_file``.
    """
    with open_file(path) as file:
        return file.read()


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a file; its line breaks as one sign.

    Raises:
        OSError: as ``open_file``.
        UnicodeDecodeError: it is in another encoding.
    """
    text = read_file(path).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: says what is wrong; a JSONDecodeError also where.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except ValueError:  # Python reads no number of more than 4300 digits
        raise ValueError(TOO_LONG_A_NUMBER) from None


def read_json_file(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it isn't UTF-8, or no JSON.
        OSError: as ``open_file``.
    """
    return parse_json(read_text(path))

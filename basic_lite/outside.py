"""JSON from outside. Whatever is wrong with it is one kind of error, and files that have no end aren't begun."""

import json
import os
from pathlib import Path
from typing import Any

TOO_DEEP, TOO_LONG_A_NUMBER = "values are nested too deeply", "a number has too many digits"


def place_in(root: Path, text: str) -> Path:
    """The path that a text means: relative to ``root``, with `~` for the home folder."""
    return root / os.path.expanduser(text)


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
        OSError: it can't be read, or is no file: a pipe or a device may have no end.
    """
    if not os.path.isfile(path):
        raise OSError("there is no such file" if not os.path.exists(path) else "it is no file")
    return parse_json(path.read_text(encoding="utf-8"))

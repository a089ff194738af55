"""What a run's ``data.json`` says of its data, read again: by the run when it continues, and by tools."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from basic_lite.data.names import BROKEN, EVAL, HELD_OUT, HELD_OUT_PICTURES, TRAIN
from basic_lite.training.places import DATA, read_json

T = TypeVar("T")


def _said(folder: Path, read: Callable[[Any], T]) -> T | None:
    """What ``read`` makes of the file; None: it can't be read, or doesn't say."""
    try:
        return read(read_json(folder / DATA))
    except (ValueError, TypeError, KeyError):  # of a file that can't be read there is None, which has no keys
        return None


def broken_at_start(folder: Path) -> dict[str, list[int]] | None:
    """Which records a run dropped for a picture when it started, by data key; None: its data.json doesn't say."""
    names = {TRAIN: "train", EVAL: "eval"}
    return _said(
        folder, lambda data: {key: [int(n) for n in data[name][BROKEN]] for key, name in names.items() if name in data}
    )


def held_out_of(folder: Path) -> list[int] | None:
    """Which records of data.train a run kept for evaluation (`data.held_out`); None: its data.json doesn't say."""
    return _said(folder, lambda data: [int(n) for n in data["eval"][HELD_OUT]])


def held_out_pictures_of(folder: Path) -> list[list[str]] | None:
    """The names of each held-out record's pictures; None: its data.json doesn't say."""
    return _said(folder, lambda data: [[str(name) for name in names] for names in data["eval"][HELD_OUT_PICTURES]])


def train_records_of(folder: Path) -> int | None:
    """How many records data.train had; None: its data.json doesn't say."""
    return _said(folder, lambda data: int(data["train"]["records"]))

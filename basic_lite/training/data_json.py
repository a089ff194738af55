"""What a run's ``data.json`` says of its data, read again: by the run when it continues, and by tools."""

from pathlib import Path

from basic_lite.data.names import BROKEN, EVAL, HELD_OUT, HELD_OUT_PICTURES, TRAIN
from basic_lite.training.places import DATA, read_json

# Where the file can't be read, ``read_json`` gives None, which has no keys: a TypeError.
_WRONG = (ValueError, TypeError, KeyError)


def broken_at_start(folder: Path) -> dict[str, list[int]] | None:
    """Which records a run dropped for a picture when it started, by data key; None: its data.json doesn't say."""
    try:
        data = read_json(folder / DATA)
        names = {TRAIN: "train", EVAL: "eval"}
        return {key: [int(n) for n in data[name][BROKEN]] for key, name in names.items() if name in data}
    except _WRONG:
        return None


def held_out_of(folder: Path) -> list[int] | None:
    """Which records of data.train a run kept for evaluation (`data.held_out`); None: its data.json doesn't say."""
    try:
        return [int(n) for n in read_json(folder / DATA)["eval"][HELD_OUT]]
    except _WRONG:
        return None


def held_out_pictures_of(folder: Path) -> list[list[str]] | None:
    """The names of each held-out record's pictures; None: its data.json doesn't say."""
    try:
        return [[str(name) for name in names] for names in read_json(folder / DATA)["eval"][HELD_OUT_PICTURES]]
    except _WRONG:
        return None


def train_records_of(folder: Path) -> int | None:
    """How many records data.train had; None: its data.json doesn't say."""
    try:
        return int(read_json(folder / DATA)["train"]["records"])
    except _WRONG:
        return None

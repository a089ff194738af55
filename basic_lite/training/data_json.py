"""What a run's ``data.json`` says of its data, read again: by the run that goes on, and by tools. No torch here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from basic_lite.data.names import BROKEN, EVAL, HELD_OUT, HELD_OUT_PICTURES, TRAIN
from basic_lite.outside import as_object
from basic_lite.training.places import DATA, read_json

# Said of a score.
UNKNOWN = "not known if trained on"
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


def known_before(run: Path) -> str:
    """What a run's evaluation data is, beside what it was trained on; nothing where all of it is new."""
    told = _told(run)
    met = met_before(run)
    counts = list(_counts(told).values())
    unknown = told.get("known") is not True and any(one[0] < one[1] for one in counts or [(0, 1)])
    return ", ".join(text for text in (met, UNKNOWN if unknown else "") if text)


def met_before(run: Path) -> str:
    """How many of its pictures and texts are known to be trained on; nothing where none is."""
    return ", ".join(f"{met} of {of} {name} trained on" for name, (met, of) in _counts(_told(run)).items() if met)


def _told(run: Path) -> dict[str, Any]:
    return as_object(as_object(as_object(read_json(run / DATA)).get("eval")).get("trained_on"))


def _counts(told: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Name → how many are trained on, and of how many. What somebody changed is passed over."""
    pairs = {name: one for name, one in as_object(told.get("of")).items() if isinstance(one, list) and len(one) == 2}
    return {name: (one[0], one[1]) for name, one in pairs.items() if all(isinstance(n, int) for n in one)}

"""Answers of an evaluation that isn't over: kept as they come, so that one that was broken off goes on.

A line of JSON for each answer, after a first one with the settings, which say what model and what data it is of.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from basic_lite.outside import parse_json, read_file
from basic_lite.training.files import saving
from basic_lite.whole_file import PART

FIX = "Make room, or name another file with --out"

# What was shown with the question.
Shown = Literal["own picture", "other picture", "no picture"]
OWN: Shown = "own picture"
OTHER: Shown = "other picture"
NONE: Shown = "no picture"
_KEYS = ("shown", "at", "answer", "cut")


class Answers:
    """Answers by what was shown and the question's place (from 0): the text, and whether it was cut.

    Where there is a file, each is in it as soon as it is kept.
    """

    def __init__(self, path: Path | None = None, file: BinaryIO | None = None) -> None:
        self.found: dict[tuple[str, int], tuple[str, bool]] = {}
        self._path, self._file = path, file

    def keep(self, shown: Shown, at: int, answer: str, cut: bool) -> None:
        """Keep an answer.

        Raises:
            UserError: the disk is full.
        """
        self.found[shown, at] = (answer, cut)
        if self._path is not None and self._file is not None:
            with saving(self._path, FIX):
                _write_line(self._file, {"shown": shown, "at": at, "answer": answer, "cut": cut})

    def text(self, shown: Shown, at: int) -> str | None:
        """The text of an answer; None: there is none."""
        found = self.found.get((shown, at))
        return None if found is None else found[0]


def part_of(predictions: Path) -> Path:
    """Where the answers are kept until the predictions are written."""
    return predictions.with_name(predictions.name + PART)


def is_of_another(predictions: Path, settings: Mapping[str, Any]) -> bool:
    """Whether answers of another evaluation lie there, which somebody may still want to go on with."""
    part = part_of(predictions)
    # A link may lead to a file that isn't an evaluation's, and lines would be written into it.
    return part.is_symlink() or (part.exists() and part.stat().st_size > 0 and _read(part, settings) is None)


@contextmanager
def answers_kept(predictions: Path, settings: Mapping[str, Any]) -> Iterator[Answers]:
    """The answers that are there already, and a place for the others. The file stays where an error breaks this off.

    Raises:
        UserError: it can't be written.
    """
    part = part_of(predictions)
    with saving(part, FIX):
        part.parent.mkdir(parents=True, exist_ok=True)
        found, whole = _read(part, settings) or ({}, 0)
        if not whole:
            part.unlink(missing_ok=True)
        file = part.open("r+b" if whole else "xb")
    with file:
        answers, done = Answers(part, file), False
        answers.found = found
        try:
            with saving(part, FIX):
                if whole:
                    # A line that a kill has cut off goes.
                    file.truncate(whole)
                    file.seek(whole)
                else:
                    _write_line(file, {"settings": settings})
            yield answers
            done = True
        finally:
            file.close()
            if done or not answers.found:
                part.unlink(missing_ok=True)


def _write_line(file: BinaryIO, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value).encode() + b"\n")
    file.flush()


def _read(part: Path, settings: Mapping[str, Any]) -> tuple[dict[tuple[str, int], tuple[str, bool]], int] | None:
    """The answers in a file and the bytes of its whole lines; None: it is no file of these settings."""
    lines = read_file(part).splitlines(keepends=True) if part.is_file() else []
    first = _parsed(lines[0]) if lines else None
    if first is None or first.get("settings") != json.loads(json.dumps(settings)):
        return None
    found, whole = {}, len(lines[0])
    for line in lines[1:]:
        one = _parsed(line) or {}
        shown, at, answer, cut = (one.get(key) for key in _KEYS)
        if shown not in (OWN, OTHER, NONE) or type(at) is not int:
            break  # this line and those below it are made anew
        if not isinstance(answer, str) or not isinstance(cut, bool):
            break
        found[str(shown), at] = (answer, cut)
        whole += len(line)
    return found, whole


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = parse_json(line.decode("utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

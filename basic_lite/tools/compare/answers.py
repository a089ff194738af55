"""The predictions of runs, and whether they are answers to the same questions, scored by the same rule."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from basic_lite.errors import UserError
from basic_lite.printable import quoted
from basic_lite.tools.predictions import SHA256, SUMMARY
from basic_lite.training.files import sha256
from basic_lite.training.places import PREDICTIONS, is_run, log_lines, read_json

_EVAL = "basic-lite eval RUN --data FILE answers the same file with each"
# What a question is: with any of these changed it is another one.
_QUESTION = ("number", "id", "images", "question", "reference", "references")

Mark = TypeVar("Mark")


@dataclass(frozen=True)
class Answers:
    """One file of predictions.

    Attributes:
        rows: the predictions that have a score, as the file has them, by their question's digest.
        metric: the name of the rule that they are scored by.
        data: the file or split that was asked.
    """

    path: Path
    rows: Mapping[str, dict[str, Any]]
    metric: str
    data: str
    data_sha256: str
    notes: tuple[str, ...] = ()


def read_answers(path: Path) -> Answers:
    """Read a file that ``eval`` wrote.

    Raises:
        UserError: it is none, or nothing in it has a score.
    """
    summary = read_json(path.with_suffix(SUMMARY))
    settings = summary.get("settings") if isinstance(summary, dict) else None
    if not isinstance(settings, dict):
        raise UserError(
            f"{path} has no {path.with_suffix(SUMMARY).name} beside it, so it isn't known what was asked and how it "
            f"was scored; {_EVAL}"
        )
    try:
        rows = [row for row in log_lines(path) if isinstance(row.get("question"), str)]
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}); {_EVAL}") from error
    found = {_digest(row): row for row in rows if _score(row) is not None}
    if not found:
        raise UserError(f"{path} has no scored answers; ask questions that come with their answers: {_EVAL}")
    changed = summary.get(SHA256) not in (None, sha256(path))
    notes = (f"{path} was changed since `eval` wrote it",) if changed else ()
    return Answers(
        path, found, str(summary.get("metric", "exact")), str(settings.get("data", "")),
        str(settings.get("data_sha256", "")), notes,
    )  # fmt: skip


def _digest(row: Mapping[str, Any]) -> str:
    text = json.dumps([row.get(key) for key in _QUESTION if row.get(key)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _score(row: Mapping[str, Any]) -> float | None:
    """From 0 to 1; files of earlier versions only say what is right."""
    value = row.get("correct") if row.get("score") is None else row["score"]
    return float(value) if isinstance(value, bool | int | float) else None


def candidates(place: Path) -> list[Answers]:
    """The files of predictions that a run has, the newest first; of a file itself.

    Raises:
        UserError: neither, or the run has none.
    """
    if place.is_file():
        return [read_answers(place)]
    if not place.is_dir() or not (is_run(place) or any(place.glob(PREDICTIONS))):
        raise UserError(f"{place} is no run folder and no file of predictions; {_EVAL}, and compare takes the runs")
    paths = sorted(place.glob(PREDICTIONS), key=lambda path: path.stat().st_mtime, reverse=True)
    if not paths:
        raise UserError(f"{place} has no predictions yet; {_EVAL} (or --held-out where all runs kept the same)")
    return [read_answers(path) for path in paths]


def in_common(places: Sequence[Path]) -> list[Answers]:
    """For each place the newest of its files that answers the same questions by the same rule as one of every other.

    Raises:
        UserError: there are no such questions, or they were scored by different rules.
    """
    found = [candidates(place) for place in places]
    shared = _shared([[(frozenset(one.rows), one.metric) for one in files] for files in found])
    if shared is not None:
        return [next(one for one in files if (frozenset(one.rows), one.metric) == shared) for files in found]
    asked = _shared([[frozenset(one.rows) for one in files] for files in found])
    if asked is None:
        others = [files[0] for files in found[1:] if files[0].rows.keys() != found[0][0].rows.keys()]
        raise UserError(_difference(found[0][0], others[0]))
    one, *rest = [next(one for one in files if frozenset(one.rows) == asked) for files in found]
    other = next(other for other in rest if other.metric != one.metric)
    raise UserError(
        f"{one.path} was scored by {one.metric}, and {other.path} by {other.metric}: these scores "
        "can't be compared; evaluate both by the same rule"
    )


def _shared(marks: Sequence[Sequence[Mark]]) -> Mark | None:
    """The first mark of the first list that is in all lists."""
    return next((mark for mark in marks[0] if all(mark in other for other in marks)), None)


def _difference(one: Answers, other: Answers) -> str:
    """Which questions of two files differ."""
    only = [row for digest, row in one.rows.items() if digest not in other.rows]
    others = [row for digest, row in other.rows.items() if digest not in one.rows]
    example = (only or others)[0]
    return (
        f"{one.path} and {other.path} answer different questions: {len(only):,} of {len(one.rows):,} are only in the "
        f"first, {len(others):,} of {len(other.rows):,} only in the second, as number {example.get('number')} "
        f"({quoted(example['question'], 60)}); {_EVAL}"
    )


def scores_of(answers: Sequence[Answers]) -> tuple[list[str], NDArray[np.float64]]:
    """Digests of questions, and [files, n] scores. Rotations of one question count once, as right as the worst."""
    first = answers[0].rows
    units: dict[str, list[str]] = defaultdict(list)
    for digest, row in first.items():
        units[str(row.get("circle") or digest)].append(digest)
    scores = [[min(_score(one.rows[d]) or 0.0 for d in unit) for unit in units.values()] for one in answers]
    return [unit[0] for unit in units.values()], np.array(scores, dtype=np.float64)


def trained_on(answers: Sequence[Answers]) -> set[str]:
    """Digests of the questions with a picture that one of the runs was trained on."""
    return {digest for one in answers for digest, row in one.rows.items() if row.get("trained_on") is True}

"""The predictions that runs have, and the scores in them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basic_lite.errors import UserError
from basic_lite.outside import as_object
from basic_lite.scoring.metrics.circular import as_one, worst
from basic_lite.tools.predictions import SHA256, SUMMARY, read_summary
from basic_lite.training.bundle_files import meant_run
from basic_lite.training.files import sha256
from basic_lite.training.places import PREDICTIONS, is_run, json_lines, later

EVAL = "`basic-lite eval RUN --data FILE` answers the same file with each"
# What a question is: with any of these changed it is another one.
_QUESTION = ("number", "id", "images", "question", "reference", "references")


@dataclass(frozen=True)
class Answers:
    """One file of predictions.

    Attributes:
        rows: the predictions that have a score, as the file has them, by their question's digest.
        metric: the name of the rule that they are scored by.
        settings: that they were made with.
        notes: what to know of the file.
        passed: other files of its folder that can't be used, each with why.
    """

    path: Path
    rows: Mapping[str, dict[str, Any]]
    metric: str
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file with its folder: enough to find it, and nothing of the machine."""
        return f"{self.path.absolute().parent.name}/{self.path.name}"

    @property
    def data(self) -> str:
        """The name of the file or split that was asked."""
        return Path(str(self.settings.get("data") or "")).name


def read_answers(path: Path) -> Answers:
    """Read a file that ``eval`` wrote.

    Raises:
        UserError: it is none, or nothing in it has a score.
    """
    summary = as_object(read_summary(path))
    settings = summary.get("settings")
    if not isinstance(settings, dict):
        raise UserError(
            f"{path} has no {path.with_suffix(SUMMARY).name} beside it, so it isn't known what was asked and how it "
            f"was scored; {EVAL}"
        )
    try:
        rows = [row for row in json_lines(path) if isinstance(row, dict) and isinstance(row.get("question"), str)]
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}); {EVAL}") from error
    found = {_digest(row): row for row in rows if _score(row) is not None}
    if not found:
        raise UserError(f"{path} has no scored answers; ask questions that come with their answers: {EVAL}")
    changed = summary.get(SHA256) not in (None, sha256(path))
    notes = (f"{path.name} was changed since `eval` wrote it",) if changed else ()
    return Answers(path, found, str(summary.get("metric", "exact")), settings, notes)


def _digest(row: Mapping[str, Any]) -> str:
    text = json.dumps([row.get(key) for key in _QUESTION if row.get(key)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _score(row: Mapping[str, Any]) -> float | None:
    """From 0 to 1, else none: somebody changed it. Files of earlier versions only say what is right."""
    value = row.get("correct") if row.get("score") is None else row["score"]
    return float(value) if isinstance(value, bool | int | float) and 0 <= value <= 1 else None


def require_answers(place: Path) -> None:
    """Refuse what holds no predictions, without reading them.

    Raises:
        UserError: it is neither a file nor a run that has some.
    """
    if place.is_file():
        return
    if place.suffix.lower() in (".html", ".htm"):
        raise UserError(f"{place} is no run; if the page is meant, name it with --out {place}")
    if not place.exists() and (hint := meant_run(place, fits=is_run)):
        raise UserError(f"there is no run {place}; {hint}")
    if not place.is_dir() or not (is_run(place) or any(place.glob(PREDICTIONS))):
        raise UserError(f"{place} is no run folder and no file of predictions; {EVAL}, and compare takes the runs")
    if not any(place.glob(PREDICTIONS)):
        raise UserError(f"{place} has no predictions yet; {EVAL} (or --held-out where all runs kept the same)")


def candidates(place: Path) -> list[Answers]:
    """The files of predictions that a run has, the latest first (``later``); of a file itself.

    Of a run's files those that can't be used are passed over; the others name them.

    Raises:
        UserError: neither, or the run has none that can be used.
    """
    require_answers(place)
    if place.is_file():
        return [read_answers(place)]
    paths = sorted(place.glob(PREDICTIONS))
    found, faults = [], []
    for path in paths:
        try:
            found.append(read_answers(path))
        except UserError as error:
            faults.append(error)
    if not found:
        raise faults[0]
    # The last part of a message says what to do.
    passed = tuple(str(error).rpartition("; ")[0] for error in faults)
    found = [replace(one, passed=passed, notes=(*one.notes, *_before_the_end(one, place))) for one in found]
    return sorted(found, key=lambda one: later(one.path, one.settings), reverse=True)


def _before_the_end(answers: Answers, run: Path) -> list[str]:
    """The note on answers that a run gave before its end; none of others."""
    bundle = str(answers.settings.get("bundle") or "")
    return [f"{run.name} answered as it was at {bundle}, before its end"] * bundle.startswith("checkpoint-")


def scores_of(answers: Sequence[Answers]) -> tuple[list[str], NDArray[np.float64]]:
    """Digests of questions, and [files, n] scores. Orders of one question count once (``circular.py``)."""
    first = answers[0].rows
    digests, circles = list(first), [str(row.get("circle") or "") for row in first.values()]
    units = [[digests[at] for at in unit] for unit in as_one(circles)]
    scores = [[worst([_score(one.rows[digest]) for digest in unit]) for unit in units] for one in answers]
    return [unit[0] for unit in units], np.array(scores, dtype=np.float64)


def other_pictures(one: Answers, other: Answers) -> list[str]:
    """Digests of the questions that both have, with pictures of the same names and other contents."""
    pairs = [(digest, _pictures(row), _pictures(other.rows.get(digest, {}))) for digest, row in one.rows.items()]
    return [digest for digest, mine, theirs in pairs if mine and theirs and mine != theirs]


def pictures_known(answers: Answers) -> bool:
    """Whether the contents of all pictures are known; files of earlier versions don't say."""
    return all(_pictures(row) for row in answers.rows.values() if row.get("images"))


def _pictures(row: Mapping[str, Any]) -> list[Any]:
    found = row.get("image_digests")
    return found if isinstance(found, list) else []


def trained_on(answers: Sequence[Answers]) -> set[str]:
    """Digests of the questions with a picture that one of the runs was trained on."""
    return {digest for one in answers for digest, row in one.rows.items() if row.get("trained_on") is True}

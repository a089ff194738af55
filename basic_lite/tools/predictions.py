"""The predictions of an evaluation on disk: one JSON object a line, and a summary beside them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from basic_lite.errors import UserError
from basic_lite.tools.answer_file import is_of_another, part_of
from basic_lite.training.files import json_text, sha256, write_json
from basic_lite.training.places import read_json

SUMMARY = ".summary.json"
# In the summary: the digest of the predictions as they were written.
SHA256 = "predictions_sha256"


@dataclass(frozen=True)
class Prediction:
    """One answered question.

    Attributes:
        number: 1-based position of its record in the data.
        images: names of the pictures that were shown, as the record has them.
        reference: the answer it is compared with; empty where the record has none.
        correct: whether the score is at least one half; None where there is no reference.
        cut: the answer was cut off at the most tokens it might have.
        trained_on: whether the run was trained on one of its pictures; None: that can't be told.
        score: by the metric, from 0 to 1; None where there is no reference.
        other_picture, no_picture: the answers to the same question with another picture, and without one; None: it
            wasn't asked so. Their scores are ``score_other_picture`` and ``score_no_picture``.
        references: all answers that count, where there are several.
        groups: rows of the table that it counts in, besides that of its type.
        circle: of a multiple choice that is asked in several orders of its options: what they have in common.
    """

    number: int
    id: str
    question_type: str
    images: list[str]
    question: str
    reference: str
    prediction: str
    correct: bool | None
    cut: bool = False
    trained_on: bool | None = None
    score: float | None = None
    other_picture: str | None = None
    no_picture: str | None = None
    score_other_picture: float | None = None
    score_no_picture: float | None = None
    references: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    circle: str = ""


def why_kept(path: Path, settings: Mapping[str, Any] | None) -> str | None:
    """Why predictions may not be written to a file; None: nothing is lost by it.

    A file is replaced only if it is an evaluation's own, of the same settings, the same model and the same data, and
    nobody has changed it since.

    Args:
        settings: of the new predictions (``evaluate.made_with``); None: they aren't known yet.
    """
    beside = path.with_suffix(SUMMARY)
    there = path.is_file() and path.stat().st_size > 0
    if not there and not beside.exists():
        return None
    summary = read_json(beside)
    if not isinstance(summary, dict) or not isinstance(summary.get("settings"), dict):
        return f"{path if there else beside} is there already and holds no predictions of basic-lite"
    if not there:
        return f"{beside} is there already and has the scores of other predictions"
    if SHA256 not in summary:
        return f"{path} is of an older basic-lite, which didn't note whether it was changed since"
    if sha256(path) != summary[SHA256]:
        return f"{path} was changed since basic-lite wrote it"
    if settings is None:
        return None
    old = summary["settings"]
    if not settings or old.get("model_sha256") != settings.get("model_sha256"):
        return f"{path} has the answers of another model"
    if old.get("data_sha256") != settings.get("data_sha256"):
        return f"{path} has the answers to other data"
    other = [key for key in sorted(old.keys() | settings.keys()) if old.get(key) != settings.get(key)]
    if not other:
        return None
    changes = ", ".join(f"{key} {_shown(old.get(key))}, now {_shown(settings.get(key))}" for key in other)
    return f"{path} has answers of other settings ({changes})"


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)


def free_place(wanted: Path, settings: Mapping[str, Any]) -> Path:
    """``wanted``, or the same name with the first number behind it that costs no other predictions or answers."""
    names = itertools.chain([wanted.stem], (f"{wanted.stem}_{number}" for number in itertools.count(2)))
    paths = (wanted.with_name(name + wanted.suffix) for name in names)
    return next(path for path in paths if why_kept(path, settings) is None and not is_of_another(path, settings))


def require_free(path: Path, settings: Mapping[str, Any] | None, key: str) -> None:
    """Refuse a file that a person named, where something would be lost with it.

    Raises:
        UserError: ``why_kept`` has a reason.
    """
    if not path.name:
        raise UserError(f"{key}: {str(path)!r} names no file; give one, such as predictions.jsonl")
    if why := why_kept(path, settings):
        raise UserError(f"{key}: {why}, so it isn't replaced; choose another name")
    if settings is not None and is_of_another(path, settings):
        raise UserError(
            f"{key}: {part_of(path)} has the answers of another evaluation that was broken off; choose another name, "
            "or delete it"
        )


def require_writable(path: Path, key: str) -> None:
    """Refuse an output file that can't be written, before the first answer and not after the last.

    Raises:
        UserError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        if not new and not path.is_file():  # a pipe that nobody reads would be waited for
            raise OSError("it is not a file")
        with path.open("ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"{key}: can't write {path} ({error.strerror or error}); name a file") from error


def write_predictions(predictions: Sequence[Prediction], summary: dict[str, Any], path: Path) -> None:
    """One JSON object a prediction, and ``summary`` beside it as ``.summary.json`` with the file's digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json_text(asdict(one)) + "\n" for one in predictions), encoding="utf-8")
    write_json(path.with_suffix(SUMMARY), {**summary, SHA256: sha256(path)})

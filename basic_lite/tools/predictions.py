"""The predictions of an evaluation on disk: one JSON object a line, and a summary beside them."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from basic_lite.errors import UserError
from basic_lite.training.files import write_json
from basic_lite.training.places import read_json

SUMMARY = ".summary.json"


@dataclass(frozen=True)
class Prediction:
    """One answered question.

    Attributes:
        number: 1-based position of its record in the data.
        images: names of the pictures that were shown, as the record has them.
        reference: the answer it is compared with; empty where the record has none.
        correct: None where there is no reference.
        cut: the answer was cut off at the most tokens it might have.
        trained_on: whether the run was trained on one of its pictures; None: that can't be told.
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


def place_for(folder: Path, stem: str, settings: dict[str, Any]) -> Path:
    """``stem``.jsonl in ``folder``, or with the first number behind it that keeps predictions of other settings."""
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    paths = (folder / f"{name}.jsonl" for name in names)
    return next(path for path in paths if not path.exists() or _settings_of(path) == settings)


def _settings_of(path: Path) -> Any:
    """The settings that made the predictions in a file; None where they aren't known."""
    summary = read_json(path.with_suffix(SUMMARY))
    return summary.get("settings") if isinstance(summary, dict) else None


def require_writable(path: Path) -> None:
    """Refuse an output file before the first answer, not after the last: one that can't be written, or is not ours.

    Raises:
        UserError: it can't be written, or there is a file that holds no predictions.
    """
    if path.is_file() and path.stat().st_size and _settings_of(path) is None:
        raise UserError(
            f"--out: {path} is there already and holds no predictions of an earlier evaluation, so it isn't replaced; "
            "name a new file"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"--out: can't write {path} ({error.strerror or error}); name a file") from error


def write_predictions(predictions: Sequence[Prediction], summary: dict[str, Any], path: Path) -> None:
    """One JSON object a prediction, and ``summary`` beside it as ``.summary.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(one), ensure_ascii=False) for one in predictions]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    write_json(path.with_suffix(SUMMARY), summary)

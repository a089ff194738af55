"""The predictions of an evaluation on disk: one JSON object a line, and a summary beside them."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from basic_lite.errors import UserError
from basic_lite.printable import quoted
from basic_lite.scoring.prediction import Prediction
from basic_lite.training.answer_file import is_of_another, part_of
from basic_lite.training.files import json_text, sha256
from basic_lite.training.places import read_json
from basic_lite.whole_file import whole_file, write_whole

SUMMARY = ".summary.json"
# What both names end in until both are whole. The answers as they came are in a file with the usual ending.
_NEW = ".new"
# In the summary: the digest of the predictions as they were written.
SHA256 = "predictions_sha256"
# Settings that say which of the data's questions are asked, and in which words; and those that follow from the data.
_ASKED = {"benchmark", "image_dir", "instruction", "limit"}
_DIGESTS = {"data_sha256", "not_known"}


def why_kept(path: Path, settings: Mapping[str, Any] | None) -> str | None:
    """Why predictions may not be written to a file; None: nothing is lost by it.

    A file is replaced only if it is an evaluation's own, of the same settings, the same model and the same data, and
    nobody has changed it since.

    Args:
        settings: of the new predictions (``evaluate.Ready``); None: they aren't known yet.
    """
    beside = path.with_suffix(SUMMARY)
    if linked := next((one for one in (path, beside) if one.is_symlink()), None):
        return f"{linked} is a link, and nothing is written through one"
    there = path.is_file() and path.stat().st_size > 0
    if not there and not beside.exists():
        return None
    summary = read_summary(path)
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
    other = [key for key in sorted(old.keys() | settings.keys()) if old.get(key) != settings.get(key)]
    if not other:
        return None
    # Another limit or instruction makes other questions of the same data, and is named as such.
    if "data_sha256" in other and ("data" in other or not _ASKED & set(other)):
        return f"{path} has the answers to other data"
    other = [key for key in other if key not in _DIGESTS] or other
    changes = ", ".join(f"{key} {_shown(old.get(key))}, now {_shown(settings.get(key))}" for key in other)
    return f"{path} has answers of other settings ({changes})"


def _shown(value: object) -> str:
    return "not given" if value is None else quoted(value) if isinstance(value, str) and not value else str(value)


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
    """One JSON object a prediction, and ``summary`` beside it as ``.summary.json`` with the file's digest.

    Both are whole before either has its name. After a kill between the names ``read_summary`` finds the summary.

    Raises:
        OSError: they can't be written; then what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json_text(asdict(one)) + "\n" for one in predictions).encode()
    about = {**summary, SHA256: hashlib.sha256(lines).hexdigest()}
    with whole_file(path.with_suffix(SUMMARY), _NEW) as beside:
        beside.write((json_text(about, indent=1) + "\n").encode())
        beside.flush()
        write_whole(path, lines, _NEW)


def read_summary(path: Path) -> Any:
    """The summary of the predictions in a file, also one that a kill has kept from its name."""
    beside = path.with_suffix(SUMMARY)
    new = read_json(beside.with_name(beside.name + _NEW))
    if isinstance(new, dict) and path.is_file() and new.get(SHA256) == sha256(path):
        return new
    return read_json(beside)

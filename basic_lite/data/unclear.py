"""Data that could be read in a way nobody meant: a table by columns, lists of questions, options that nobody shows."""

import ast
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from basic_lite.data.columns import TEXTS, options_columns, plain_name
from basic_lite.data.problems import BadRecord, shorten
from basic_lite.endings import ends_as_picture
from basic_lite.errors import UserError
from basic_lite.outside import parse_json
from basic_lite.sizes import number_of

# An answer that points at an option: B, (B), B. and so on.
_LETTER = re.compile(r"\(?([A-Ja-j])[).:]?")
_NUMBER = re.compile(r"\(?(\d+)[).:]?")
# A letter before an option: A. cat, (A) cat, A: cat.
_MARKED = re.compile(r"^\(?[A-Ja-j][).:]\s*")
# What stands where a row has fewer options than others.
_NO_OPTION = {"", "nan", "none", "null", "n/a", "-"}
# Columns that hold a list, by their name.
_LISTS = ("answers", "captions")
_WRITTEN_LIST = re.compile(r"\[\s*(?:(['\"]).*\1|\{.*\})\s*\]", re.DOTALL)
# Between options in one text, be it a person's, or a list as numpy writes it.
_BETWEEN = re.compile(r"[\n;|,]|'\s+'|\"\s+\"|(?=\b[B-J][.):]\s)")
# Characters. A list of options that a program wrote into one cell of a table is no longer than this.
_LONGEST_CELL = 20_000


def require_rows(value: Any, name: str) -> None:
    """Refuse a file whose one object is a whole table, as pandas writes it unless told otherwise.

    In most of its orients each key is a column, with the values of all rows.

    Args:
        value: the object at the file's top level.
        name: the file, for messages.

    Raises:
        UserError: it is such a table.
    """
    if not isinstance(value, Mapping) or len(value) < 2:
        return
    keys, columns = shorten(list(value)), [_listed(column) for column in value.values()]
    lengths = {-1 if column is None else len(column) for column in columns}
    if value.keys() == {"columns", "index", "data"}:
        what = f"it is one object with the keys {keys}, as pandas writes a table with orient='split'"
    elif len(lengths) == 1 and not lengths <= {-1, 0, 1}:
        texts = [values for key, values in zip(value, columns, strict=True) if plain_name(str(key)) in TEXTS]
        # A list of objects is that of one record: turns, parts of a message, answers of several people.
        if any(isinstance(one, Mapping) for values in texts or columns for one in values or ()):
            return
        what = f"this is a table by columns: its keys {keys} have {lengths.pop()} values each"
    else:
        return
    raise UserError(f"{name}: {what}; write one record a line: df.to_json(path, orient='records', lines=True).")


def _listed(column: Any) -> list[Any] | None:
    """The values of a column: a list, or an object from the rows' numbers to values."""
    if isinstance(column, Mapping):
        return list(column.values()) if all(str(key).isdigit() for key in column) else None
    return column if isinstance(column, list) else None


def require_one_question(name: str, question: Any, answer: Any) -> None:
    """Refuse several questions in one record. A list of parts, as messages have them, is one question.

    Args:
        name: the question's column.

    Raises:
        BadRecord: there are several questions, or several answers to a list of them.
    """
    if not isinstance(question, (list, tuple)) or not all(isinstance(one, str) for one in question):
        return
    if len(question) > 1 or (isinstance(answer, (list, tuple)) and len(answer) > 1):
        answers = f" and {number_of(len(answer), 'answer')}" if isinstance(answer, (list, tuple)) else ""
        raise BadRecord(
            f"its {name!r} is a list of {number_of(len(question), 'question')}{answers}",
            "write one record a question, each with its picture and its answer",
        )


def refuse_swapped(row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Refuse a record with a text where its picture belongs, and a picture's name for a text.

    Args:
        columns: our names to the row's.

    Raises:
        BadRecord: names both columns.
    """
    image = row.get(columns.get("image", ""))
    if not isinstance(image, str) or " " not in image or ends_as_picture(image) or image.startswith("data:"):
        return
    for name in (columns[ours] for ours in ("question", "answer") if ours in columns):
        if isinstance(row[name], str) and ends_as_picture(row[name]):
            raise BadRecord(
                f"its {columns['image']!r} is a text ({shorten(image)}), and {name!r} names a picture "
                f"({shorten(row[name])})",
                "swap the names of these two columns in the file, or in `columns` of this data source",
            )


def refuse_nul(text: str) -> None:
    """Refuse a NUL character, which no text has.

    Raises:
        BadRecord: there is one.
    """
    if "\0" in text:
        at = text.index("\0")
        raise BadRecord(
            f"its text has a NUL character ({shorten(text[max(0, at - 20) : at + 20])})",
            "take it out; a program wrote it, or the file is damaged",
        )


def is_written_list(text: str) -> bool:
    """Whether a text is a list of texts or objects as Python, JSON or numpy writes it."""
    return text[:1] == "[" and bool(_WRITTEN_LIST.fullmatch(text))


def refuse_written_lists(row: Mapping[str, Any], columns: Mapping[str, str], *, prompted: bool) -> None:
    """Refuse a list that a program wrote into one cell of a table, as ['A cat.', 'A dog.'].

    An answer to a question may be such a list, as one in JSON that was asked for; one of objects also to a prompt.

    Args:
        columns: our names to the row's.
        prompted: the source has a prompt for texts without a question.

    Raises:
        BadRecord: its brackets and quotes would be learned.
    """
    asked, said = columns.get("question"), columns.get("answer")
    if said is not None and plain_name(said) not in _LISTS:
        said = None if asked is not None or (prompted and _is_objects(row[said])) else said
    for name in (asked, said):
        text = row[name].strip() if name is not None and isinstance(row[name], str) else ""
        if is_written_list(text):
            raise BadRecord(
                f"its {name!r} is a list written as one text ({shorten(text)}), and its brackets would be learned",
                "write one of its texts, or make the file JSON or parquet, where a list is one; if the list is what a "
                "question asks for, give the question too, and call this column answer",
            )


def _is_objects(text: Any) -> bool:
    """Whether a text is a list of objects as JSON writes it; pandas writes one of Python."""
    with suppress(ValueError):
        found = parse_json(text) if isinstance(text, str) else None
        return isinstance(found, list) and all(isinstance(one, Mapping) for one in found)
    return False


def require_shown_options(row: Mapping[str, Any], asked: str, answer: Any) -> None:
    """Refuse an answer that names one of several options (1, "B") where the question doesn't show them.

    Args:
        asked: all that is asked.
        answer: as the row has it.

    Raises:
        BadRecord: the model would learn a number or a letter, and never see what it stands for.
    """
    name, options = _options(row)
    answer = next(iter(answer), None) if isinstance(answer, (list, tuple)) else answer
    # Letters alone stand for what is drawn in the picture.
    if len(options) < 2 or not _points(answer, options) or all(_LETTER.fullmatch(one) for one in options):
        return
    number = _NUMBER.fullmatch(answer.strip() if isinstance(answer, str) else str(int(answer)))
    # Numbers must be shown, too: they may count from 0 or from 1.
    shown = asked.casefold()
    told = [_MARKED.sub("", one).casefold() for one in options]
    if all(one in shown for one in told) and (not number or re.search(rf"(?<!\d){number[1]}[).:]", asked)):
        return
    raise BadRecord(
        f"its answer {shorten(answer)} stands for one of the options in {name}, which aren't shown to the model",
        "write the options into the question, and the right one's text as the answer",
    )


def _options(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The options of a row, after the names of their columns."""
    names = options_columns(row)
    held: Any = row[names[0]] if len(names) == 1 else [row[name] for name in names if isinstance(row[name], str)]
    return ", ".join(map(repr, names)), _texts_of(held)


def _texts_of(held: Any) -> list[str]:
    if isinstance(held, Mapping):
        listed = next((held[key] for key in ("text", "texts") if isinstance(held.get(key), list)), None)
        if listed is None and any(len(str(key)) > 1 for key in held):
            return []  # settings of a program
        held = list(held.values()) if listed is None else listed
    if isinstance(held, str) and held.strip()[:1] in ("[", "{") and len(held) <= _LONGEST_CELL:
        # MMMU, and tables, have the list as a text.
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            written = ast.literal_eval(held.strip())
            if isinstance(written, list | dict) and len(written) != 1:
                return _texts_of(written)
    if isinstance(held, (list, tuple)):
        texts = (one.get("text") if isinstance(one, Mapping) else one for one in held)
        told = (one.strip() if isinstance(one, str) else shorten(one) for one in texts if one is not None)
        return [one for one in told if one.lower() not in _NO_OPTION]
    if isinstance(held, str):
        return [one for part in _BETWEEN.split(held) if (one := part.strip(" \t\"'[](){}"))]
    return []


def _points(answer: Any, options: Sequence[str]) -> bool:
    """Whether an answer names an option by its letter or number, and is none itself."""
    if isinstance(answer, bool) or not isinstance(answer, (int, float, str)):
        return False
    if not isinstance(answer, str):
        return answer == answer // 1 and 0 <= answer <= len(options) and str(int(answer)) not in options
    text = answer.strip()
    if text in options:
        return False
    number = _NUMBER.fullmatch(text)
    return bool(_LETTER.fullmatch(text)) or bool(number and len(number[1]) < 3 and int(number[1]) <= len(options))
